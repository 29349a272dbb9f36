//! What happens to peers while configurations, connections and restarts come and go.

use std::{collections::BTreeSet, net::Ipv4Addr};

use bgp::{
    policy::LocalSource,
    session::{SELECTION_DEFERRAL, Session, Slot},
};
use ipnet::{IpNet, Ipv4Net};
use socket2::SockRef;
use tokio::{
    io::AsyncWriteExt as _,
    net::{TcpListener, TcpSocket},
    task::{spawn_local, yield_now},
};

use super::{
    convert,
    core::Core,
    listen::{self, Listeners},
    testing::{connection, core, key, message, on_thread, open, read_until, settings, until},
    transport::{Key, Secret},
    work,
};
use crate::lifecycle::Problems;

#[test]
fn a_reload_reaches_peers_of_ranges_with_the_new_key() {
    let peers = "{range: 198.51.100.0/24, remote_as: 65009}, {range: 203.0.113.0/24, remote_as: 65008}";
    let (before, signed) = (settings(peers), Key::Md5(Secret::new(b"hush".to_vec())));
    let mut after = before.clone();
    after.listen = vec!["127.0.0.1:0".parse().expect("an address")];
    after.ranges.swap(0, 1);
    after.ranges[0].template.transport.key = Some(signed.clone());
    after.ranges[0].template.description = "signed".to_owned();
    let test = async {
        let core = core(before);
        let address = "203.0.113.3".parse().expect("an address");
        let id = listen::admit(&core, address).expect("there is room");
        Core::settle(&core, after.clone());
        let mut listeners = Listeners::default();
        assert_eq!(listeners.update(&core, &Problems::default()), None);
        {
            let core = core.borrow();
            let known = &core.known[&id];
            assert_eq!((known.range, known.settings.description.as_str()), (Some(0), "signed"));
            assert_eq!(known.settings.transport.key, Some(signed.clone()));
            assert_eq!(known.settings.config.tables.address, address, "the template is for all of the range");
            assert_eq!(core.listener_keys.values().collect::<Vec<_>>(), [&signed]);
        }
        after.ranges.remove(0);
        Core::settle(&core, after);
        assert!(!core.borrow().known.contains_key(&id), "its range is gone");
    };
    on_thread(test);
}

/// A change that comes up while the kernel takes nothing of what is to be sent follows as soon as it does.
#[test]
fn a_peer_that_reads_again_is_told_what_changed_meanwhile() {
    /// More than the kernel takes for a peer that does not read, and not more than is asked for at a time.
    const PREFIXES: u32 = 8_000;
    const SMALL: u32 = 4_096;
    let mut settings = settings("{address: 127.0.0.2, remote_as: 65010, passive: true}");
    let route = convert::local_route(LocalSource::Static);
    let prefix = |number: u32| IpNet::from(Ipv4Net::new_assert(Ipv4Addr::from(0x6400_0000 + (number << 8)), 24));
    settings.originate = (0..PREFIXES).map(|number| (prefix(number), route.clone())).collect();
    let test = async {
        let core = core(settings.clone());
        let worker = spawn_local(work(core.clone()));
        let id = core.borrow().ids[&key("127.0.0.2")];
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a listener");
        let socket = TcpSocket::new_v4().expect("a socket");
        socket.set_recv_buffer_size(SMALL).expect("a small buffer");
        socket.bind("127.0.0.2:0".parse().expect("an address")).expect("the address");
        let mut client = socket.connect(listener.local_addr().expect("an address")).await.expect("a connection");
        let (server, _) = listener.accept().await.expect("a connection");
        SockRef::from(&server).set_send_buffer_size(SMALL as usize).expect("a small buffer");
        Core::accept(&core, id, server);
        client.write_all(&open(65_010, false)).await.expect("sent");
        client.write_all(&message(4)).await.expect("sent");
        let lag = || core.borrow().speaker.rib().export_lag(id);
        let is_blocked = || core.borrow().send_blocked_since(id).is_some();
        until("all to be asked for and not taken", || is_blocked() && lag() == 0).await;
        settings.originate.push(("10.99.0.0/24".parse().expect("a prefix"), route));
        Core::settle(&core, settings);
        until("the change", || lag() > 0 && !core.borrow().speaker.has_waiting_exports()).await;
        // The connection has been woken for it.
        for _ in 0..10 {
            yield_now().await;
        }
        assert!(is_blocked());
        while !read_until(&mut client, 2).await.windows(4).any(|octets| octets == [24, 10, 99, 0]) {}
        worker.abort();
    };
    on_thread(test);
}

/// Who came from a range and fails once after our restart is waited for as long as the others.
#[test]
fn peers_of_ranges_are_not_forgotten_before_a_restart_is_over() {
    let test = async {
        let core = core(settings("{range: 203.0.113.0/24, remote_as: 65008}"));
        let (fails, silent) = (key("203.0.113.3"), key("203.0.113.4"));
        Core::begin_restart(&core, &BTreeSet::from([fails.clone(), silent.clone()]));
        let id = core.borrow().ids[&fails];
        let (mut client, server) = connection("127.0.0.9").await;
        Core::accept(&core, id, server);
        let is_connected = || {
            let core = core.borrow();
            core.speaker
                .session(id)
                .is_some_and(|session| Slot::ALL.into_iter().any(|slot| session.has_connection(slot)))
        };
        assert!(is_connected());
        client.write_all(b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n").await.expect("sent");
        until("the end of a connection that speaks no BGP", || !is_connected()).await;
        assert!(core.borrow().speaker.session(id).is_some_and(Session::is_spent));
        assert!(core.borrow().speaker.is_restarting() && core.borrow().ids.contains_key(&fails));

        let later = core.borrow().now().after(SELECTION_DEFERRAL);
        core.borrow_mut().speaker.work(later, 100, true);
        assert!(!core.borrow().speaker.is_restarting());
        core.borrow_mut().note_end_of_restart();
        Core::run_commands(&core);
        assert!(core.borrow().ids.is_empty(), "neither came back: {:?}", core.borrow().ids);
    };
    on_thread(test);
}
