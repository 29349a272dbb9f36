//! What happens to peers while configurations, connections and restarts come and go.

use std::collections::BTreeSet;

use bgp::session::{SELECTION_DEFERRAL, Session, Slot};
use tokio::{io::AsyncWriteExt as _, task::LocalSet};

use super::{
    core::Core,
    listen::{self, Listeners},
    testing::{connection, core, key, settings, until},
    transport::{Key, Secret},
};
use crate::lifecycle::Problems;

#[tokio::test]
async fn a_reload_reaches_peers_of_ranges_with_the_new_key() {
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
    LocalSet::new().run_until(test).await;
}

/// Who came from a range and fails once after our restart is waited for as long as the others.
#[tokio::test]
async fn peers_of_ranges_are_not_forgotten_before_a_restart_is_over() {
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
    LocalSet::new().run_until(test).await;
}
