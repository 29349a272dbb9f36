//! GoBGP and ours, whichever of both opens the connection.

use tests::routers::Network;

use super::configurations::{OURS, OURS_AS, assert_content, assert_marked, gobgp, neighbor, originate, ours};

#[test]
fn gobgp_and_we_tell_each_other_everything() {
    tests::need_root();
    let network = Network::up(&[
        gobgp("waiting", 3, (OURS, OURS_AS), true),
        gobgp("calling", 4, (OURS, OURS_AS), false),
        ours(
            &[
                "group: open, address: 192.0.2.3, remote_as: 4200000003",
                "group: open, address: 192.0.2.4, remote_as: 4200000004, passive: true",
            ],
            "",
        ),
    ])
    .unwrap();
    let (waiting, calling, ours) =
        (network.router("waiting").unwrap(), network.router("calling").unwrap(), network.router("ours").unwrap());
    for (router, number, ends) in [(&waiting, 3, "remote_address"), (&calling, 4, "local_address")] {
        router.wait_established(OURS).unwrap();
        originate(router, number, true);
        let address = format!("192.0.2.{number}");
        ours.wait_established(&address).unwrap();
        let view = neighbor(&ours, &address).unwrap();
        assert!(view[ends].as_str().unwrap().ends_with(":179"), "who connected? {view}");
        assert_marked(&ours.wait_path(&format!("10.{number}.0.0/24")).unwrap(), &format!("420000000{number}"));
        assert_marked(&router.wait_path("10.0.1.0/24").unwrap(), "4200000000");
    }
    // Through us, from the one to the other.
    for (router, number) in [(&waiting, 4), (&calling, 3)] {
        let path = router.wait_path(&format!("10.{number}.0.0/24")).unwrap();
        assert_marked(&path, &format!("4200000000 420000000{number}"));
        assert_eq!(path.next_hops, [OURS]);
        let path = router.wait_path(&format!("fd10:{number}::/64")).unwrap();
        assert_eq!(
            (path.as_path, path.next_hops),
            (format!("4200000000 420000000{number}"), vec!["fd00::10".to_owned()])
        );
    }
    // A withdrawal goes the same way.
    waiting.text("global rib del 10.3.0.0/24").unwrap();
    calling.wait_no_path("10.3.0.0/24").unwrap();
    assert_content(&network, &["waiting", "calling", "ours"]);
    network.down().unwrap();
}
