//! Peers that are configured by link: who is there?

use std::collections::{BTreeMap, btree_map::Entry};

use bgp::session::{Event, IfName, PeerKey};
use meshd_core::id::IfIndex;
use tokio::task::{JoinHandle, spawn_local};
use tracing::{info, warn};

use super::{
    core::{Core, Shared},
    unnumbered,
};

/// Links that are listened to.
#[derive(Default)]
pub(super) struct Discovery {
    running: BTreeMap<IfName, (IfIndex, JoinHandle<()>)>,
}

impl Drop for Discovery {
    fn drop(&mut self) {
        for (_, task) in self.running.values() {
            task.abort();
        }
    }
}

impl Discovery {
    /// Listens on every link that is up and has a peer, and on no other.
    pub(super) fn update(&mut self, core: &Shared) {
        let wanted: BTreeMap<IfName, IfIndex> = {
            let core = core.borrow();
            let links = core.known.values().filter_map(|known| match &known.key {
                PeerKey::Interface(link) if core.host.is_up(link.as_str()) => Some(link.clone()),
                PeerKey::Interface(_) | PeerKey::Address(..) => None,
            });
            links.filter_map(|link| Some((link.clone(), core.host.index(link.as_str())?))).collect()
        };
        self.running.retain(|link, (index, task)| {
            let keep = wanted.get(link) == Some(index) && !task.is_finished();
            if !keep {
                task.abort();
                let mut core = core.borrow_mut();
                core.host.set_router(*index, None);
                core.routers_changed.notify_one();
            }
            keep
        });
        for (link, index) in wanted {
            if let Entry::Vacant(free) = self.running.entry(link) {
                let task = spawn_local(follow(core.clone(), free.key().clone(), index));
                free.insert((index, task));
            }
        }
    }
}

async fn follow(core: Shared, link: IfName, index: IfIndex) {
    let heard = |router: Option<std::net::Ipv6Addr>| {
        let news = core.borrow_mut().host.set_router(index, router);
        if !news {
            return;
        }
        core.borrow().routers_changed.notify_one();
        match router {
            Some(router) => info!(link = link.as_str(), %router, "heard a router on the link of a BGP peer"),
            None => info!(link = link.as_str(), "the router on the link of a BGP peer has fallen silent"),
        }
        let id = core.borrow().ids.get(&PeerKey::Interface(link.clone())).copied();
        if let (Some(id), Some(_)) = (id, router) {
            Core::event(&core, id, Event::Reachable);
        }
    };
    if let Err(error) = unnumbered::follow(index, link.as_str(), heard).await {
        warn!(link = link.as_str(), %error, "cannot look for the BGP peer on a link");
    }
}
