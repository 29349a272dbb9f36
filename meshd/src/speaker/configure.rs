//! A new version of the settings: only what differs is touched.

use std::{collections::BTreeMap, sync::Arc};

use bgp::{
    family::{Prefix as _, V4, V6},
    id::PeerId,
    rib::{Aggregate, LocalRoute, Rib},
    session::{Event, PeerKey, Stop, StopReason},
};
use ipnet::IpNet;
use meshd_core::observed::BgpChange;
use tracing::info;

use super::{
    core::{Core, Shared},
    settings::{MeshSettings, PeerSettings, Settings},
};

/// What the peer's operator reads when a peer is taken out of the configuration.
const REMOVED: &str = "removed from the configuration";

impl Core {
    /// Takes over settings. Returns true when something waits for the next start, because every session and table is
    /// built on it: the AS, the router identifier and the like.
    pub(super) fn configure(core: &Shared, new: Settings) -> bool {
        let old = {
            let mut core = core.borrow_mut();
            let old = std::mem::replace(&mut core.settings, new.clone());
            core.originate(&old, &new);
            old
        };
        let gone: Vec<PeerId> = {
            let core = core.borrow();
            let stays = |key: &PeerKey, range: Option<usize>| {
                new.peers.contains_key(key) || range.is_some_and(|number| moved(&old, &new, number).is_some())
            };
            core.known.iter().filter(|(_, it)| !stays(&it.key, it.range)).map(|(id, _)| *id).collect()
        };
        for id in gone {
            Self::remove(core, id, REMOVED);
        }
        for (key, settings) in new.peers.clone() {
            let known = core.borrow().ids.get(&key).copied();
            match known {
                Some(id) => {
                    if let Some(known) = core.borrow_mut().known.get_mut(&id) {
                        known.range = None;
                    }
                    Self::change(core, id, settings);
                }
                None => {
                    let shutdown = settings.shutdown.clone();
                    Self::add(core, key.clone(), settings, None);
                    // Not in the condition below, which would hold on to the borrow.
                    let id = core.borrow().ids.get(&key).copied();
                    if let (Some(words), Some(id)) = (shutdown, id) {
                        Self::shut_down(core, id, words);
                    }
                }
            }
        }
        Self::change_ranges(core, &old, &new);
        {
            let mut core = core.borrow_mut();
            let routes_max = new.routes_max;
            core.note(BgpChange::Limit(routes_max));
            let same = match (&core.vrps, &new.vrps) {
                (Some(old), Some(new)) => Arc::ptr_eq(old, new),
                (old, new) => old.is_none() && new.is_none(),
            };
            if !same {
                core.vrps.clone_from(&new.vrps);
                core.speaker.rib_mut().set_vrps(new.vrps.clone());
            }
        }
        Self::change_forwarding(core, &old, &new);
        if old.mesh != new.mesh {
            let mut core = core.borrow_mut();
            let MeshSettings { function, clusters, by_store } = new.mesh.clone();
            core.over_bgp.configure(function.unwrap_or_default(), clusters, &by_store);
            core.speaker.rib_mut().set_mark(function);
            core.speaker.rib_mut().tell_forwarding_again();
            core.fib_news.notify_one();
        }
        Self::watch_for(core, &new);
        core.borrow().worker.notify_one();
        let mut waiting = old.rib;
        waiting.seed = new.rib.seed;
        let decision = new.rib.decision;
        if waiting.decision != decision {
            core.borrow_mut().speaker.rib_mut().set_decision(decision);
        }
        waiting.decision = decision;
        waiting != new.rib
    }

    /// What the pipeline is told of paths, when that is other than before.
    fn change_forwarding(core: &Shared, old: &Settings, new: &Settings) {
        let mut core = core.borrow_mut();
        if old.install && !new.install {
            core.note(BgpChange::Uninstall);
        }
        let rib = core.speaker.rib_mut();
        // Without the list nothing has to be made of every change that nobody asks for.
        rib.set_forwarding(new.install || new.mesh.function.is_some());
        let takes_more = new.install && (!old.install || new.routes_max > old.routes_max);
        if takes_more {
            rib.tell_forwarding_again();
        }
    }

    /// Gives peers of ranges what their range gives now.
    fn change_ranges(core: &Shared, old: &Settings, new: &Settings) {
        let changed: Vec<(PeerId, PeerSettings)> = {
            let known = &mut core.borrow_mut().known;
            let changed = known.iter_mut().filter_map(|(id, known)| {
                let number = moved(old, new, known.range?)?;
                known.range = Some(number);
                Some((*id, new.ranges.get(number)?.peer(known.key.address()?)))
            });
            changed.collect()
        };
        for (id, settings) in changed {
            Self::change(core, id, settings);
        }
    }

    fn change(core: &Shared, id: PeerId, new: PeerSettings) {
        let Some(old) = core.borrow_mut().known.get_mut(&id).map(|it| std::mem::replace(&mut it.settings, new.clone()))
        else {
            return;
        };
        let judges = |it: &PeerSettings| {
            let tables = &it.config.tables;
            (tables.import.clone(), tables.own_as_max, tables.enforce_first_as)
        };
        let judged_anew = judges(&old) != judges(&new);
        let other_connection = old.transport != new.transport || old.port != new.port || old.next_hop != new.next_hop;
        {
            let mut core = core.borrow_mut();
            let now = core.now();
            let key = core.known.get(&id).map(|known| known.key.clone());
            let config = key.map_or_else(|| new.config.clone(), |key| core.with_place(&key, new.config.clone()));
            core.speaker.configure_peer(now, id, config);
        }
        Self::run_commands(core);
        if judged_anew {
            core.borrow_mut().monitor.judged_anew(id);
        }
        core.borrow_mut().watch_path(id);
        if other_connection {
            core.borrow_mut().bfd_first.close(id);
        }
        match (old.shutdown, new.shutdown) {
            (None, Some(words)) => Self::shut_down(core, id, words),
            (Some(_), None) if !core.borrow().draining => Self::event(core, id, Event::Start),
            (_, None) if other_connection => {
                info!(peer = core.borrow().name(id), "the connection is made anew: its settings changed");
                Self::event(core, id, Event::Reset { communication: "connection settings changed".to_owned() });
            }
            _ => {}
        }
    }

    fn shut_down(core: &Shared, id: PeerId, words: String) {
        Self::event(core, id, Event::Stop(Stop { reason: StopReason::Shutdown, communication: words }));
    }

    /// Originates what is new, and withdraws what is no longer wanted.
    fn originate(&mut self, old: &Settings, new: &Settings) {
        let now = self.now();
        let (was, is) = (by_prefix(&old.originate), by_prefix(&new.originate));
        let rib = self.speaker.rib_mut();
        for (key @ (prefix, _), route) in &was {
            if !is.contains_key(key) {
                withdraw(rib, *prefix, route);
            }
        }
        for (key @ (prefix, _), route) in &is {
            if was.get(key) != Some(route) {
                match prefix {
                    IpNet::V4(_) => drop(V4::from_net(prefix).map(|prefix| rib.originate(prefix, route, now))),
                    IpNet::V6(_) => drop(V6::from_net(prefix).map(|prefix| rib.originate(prefix, route, now))),
                }
            }
        }
        for (prefix, _) in old.aggregates.iter().filter(|entry| !new.aggregates.contains(entry)) {
            match prefix {
                IpNet::V4(_) => drop(V4::from_net(prefix).map(|prefix| rib.remove_aggregate(prefix))),
                IpNet::V6(_) => drop(V6::from_net(prefix).map(|prefix| rib.remove_aggregate(prefix))),
            }
        }
        for (prefix, aggregate) in new.aggregates.iter().filter(|entry| !old.aggregates.contains(entry)) {
            add_aggregate(rib, prefix, aggregate);
        }
    }
}

/// The new number of a range that is still there.
fn moved(old: &Settings, new: &Settings, number: usize) -> Option<usize> {
    let prefix = old.ranges.get(number)?.prefix;
    new.ranges.iter().position(|range| range.prefix == prefix)
}

type ByPrefix<'a> = BTreeMap<(IpNet, u32), &'a LocalRoute>;

fn by_prefix(routes: &[(IpNet, LocalRoute)]) -> ByPrefix<'_> {
    routes.iter().map(|(prefix, route)| ((*prefix, route.source as u32), route)).collect()
}

fn withdraw(rib: &mut Rib, prefix: IpNet, route: &LocalRoute) {
    match prefix {
        IpNet::V4(_) => drop(V4::from_net(&prefix).map(|prefix| rib.withdraw_local(prefix, route.source))),
        IpNet::V6(_) => drop(V6::from_net(&prefix).map(|prefix| rib.withdraw_local(prefix, route.source))),
    }
}

fn add_aggregate(rib: &mut Rib, prefix: &IpNet, aggregate: &Aggregate) {
    match prefix {
        IpNet::V4(_) => drop(V4::from_net(prefix).map(|prefix| rib.add_aggregate(prefix, aggregate.clone()))),
        IpNet::V6(_) => drop(V6::from_net(prefix).map(|prefix| rib.add_aggregate(prefix, aggregate.clone()))),
    }
}
