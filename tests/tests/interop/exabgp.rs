//! ExaBGP and ours, whichever of both opens the connection.

use super::configurations::{OURS, OURS_AS, assert_content, both_directions, exabgp};

#[test]
fn exabgp_and_we_tell_each_other_everything() {
    let network = both_directions(
        exabgp("waiting", 3, (OURS, OURS_AS), "passive; listen 179;"),
        exabgp("calling", 4, (OURS, OURS_AS), ""),
        false,
    );
    let (waiting, calling) = (network.router("waiting").unwrap(), network.router("calling").unwrap());
    for (router, prefix) in [(&waiting, "fd10:4::/64"), (&calling, "fd10:3::/64")] {
        let path = router.wait_path(prefix).unwrap();
        // With our link-local address beside it (RFC 2545 section 3).
        assert_eq!(path.next_hops[0], "fd00::10");
        assert!(path.next_hops[1..].iter().all(|next_hop| next_hop.starts_with("fe80:")), "{path:?}");
    }
    waiting.tell("withdraw route 10.3.0.0/24 next-hop 192.0.2.3").unwrap();
    calling.wait_no_path("10.3.0.0/24").unwrap();
    assert_content(&network, &["waiting", "calling", "ours"]);
    network.down().unwrap();
}
