use bgp::{
    id::{Asn, RouterId},
    session::{RemoteAs, SessionConfig, negotiate},
    wire::header::HEADER_LEN,
};

use super::*;
use crate::speaker::testing::{core, key, on_thread, settings};

fn ends() -> (SocketAddr, SocketAddr) {
    (SocketAddr::from(([192, 0, 2, 10], 179)), SocketAddr::from(([192, 0, 2, 1], 40_000)))
}

/// An established session in the first place.
fn established() -> Described {
    let config = |asn: u32, other: u32| SessionConfig::new(Asn(asn), RemoteAs::Number(Asn(other)), RouterId(asn));
    let open = our_open(&config(65_001, 65_010), &LocalRestart::default());
    let negotiated = negotiate(&config(65_010, 65_001), &open).expect("a session");
    let (local, remote) = ends();
    describe(&negotiated, Slot::First, local, remote, <[Vec<u8>; 2]>::default())
}

/// A Cease with this subcode.
fn cease(peer: PeerId, slot: Slot, subcode: u8) -> Mirrored {
    let octets = [&[0xff; TYPE_AT - 2][..], &[0, 21, MessageType::Notification as u8, 6, subcode]].concat();
    assert_eq!(octets.len(), HEADER_LEN + 2);
    Mirrored { peer, slot, direction: Direction::Sent, octets }
}

/// A second connection that is refused while the session is up has words of its own; they are not why the session ends later.
#[test]
fn words_on_another_connection_are_not_the_reason_of_the_end() {
    let test = async {
        let core = core(settings("{address: 127.0.0.2, remote_as: 65002, passive: true}"));
        let core = &mut *core.borrow_mut();
        let peer = core.ids[&key("127.0.0.2")];
        core.monitor.up.insert(peer, established());
        core.mirrored(&cease(peer, Slot::Second, 7));
        assert!(core.monitor.last_words.is_empty(), "the connection was not the session's");
        let words = cease(peer, Slot::First, 2);
        core.mirrored(&words);
        assert_eq!(core.monitor.last_words[&peer], (Direction::Sent, words.octets));
        core.monitor.down(None, peer);
        assert!(core.monitor.last_words.is_empty() && core.monitor.up.is_empty());
    };
    on_thread(test);
}

/// The number of a peer that is gone is another's soon: nothing that was said to the first is told of the second.
#[test]
fn nothing_is_kept_of_a_peer_that_is_removed() {
    let test = async {
        let core = core(settings("{address: 127.0.0.2, remote_as: 65002}, {address: 127.0.0.3, remote_as: 65003}"));
        let [gone, stays] = ["127.0.0.2", "127.0.0.3"].map(|name| core.borrow().ids[&key(name)]);
        for peer in [gone, stays] {
            let monitor = &mut core.borrow_mut().monitor;
            monitor.opens.insert((peer, Slot::First), <[Vec<u8>; 2]>::default());
            monitor.opens.insert((peer, Slot::Second), <[Vec<u8>; 2]>::default());
            monitor.last_words.insert(peer, (Direction::Sent, Vec::new()));
            let (local, remote) = ends();
            let ends =
                Ends { remote_as: Asn(65_002), local_as: Asn(65_010), link: 0, remote: remote.ip(), local: local.ip() };
            monitor.last_ends.insert(peer, ends);
        }
        Core::remove(&core, gone, "");
        let monitor = &core.borrow().monitor;
        assert_eq!(monitor.opens.keys().map(|(peer, _)| *peer).collect::<Vec<_>>(), [stays; 2]);
        assert_eq!(monitor.last_words.keys().copied().collect::<Vec<_>>(), [stays]);
        assert_eq!(monitor.last_ends.keys().copied().collect::<Vec<_>>(), [stays]);
    };
    on_thread(test);
}
