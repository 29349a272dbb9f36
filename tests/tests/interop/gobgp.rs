//! GoBGP and ours, whichever of both opens the connection.

use super::configurations::{OURS, OURS_AS, assert_content, both_directions, gobgp};

#[test]
fn gobgp_and_we_tell_each_other_everything() {
    let network =
        both_directions(gobgp("waiting", 3, (OURS, OURS_AS), true), gobgp("calling", 4, (OURS, OURS_AS), false), true);
    let (waiting, calling) = (network.router("waiting").unwrap(), network.router("calling").unwrap());
    for (router, prefix) in [(&waiting, "fd10:4::/64"), (&calling, "fd10:3::/64")] {
        assert_eq!(router.wait_path(prefix).unwrap().next_hops, ["fd00::10"]);
    }
    // A withdrawal goes the same way.
    waiting.text("global rib del 10.3.0.0/24").unwrap();
    calling.wait_no_path("10.3.0.0/24").unwrap();
    assert_content(&network, &["waiting", "calling", "ours"]);
    network.down().unwrap();
}
