//! What goes wrong, and how it is mended.

use std::{rc::Rc, time::Duration};

use ipnet::IpNet;
use jiff::SignedDuration;
use meshd_core::{
    desired::Hop,
    id::{IfIndex, ROUTE_METRIC},
    observed::Kind,
};

use super::{
    hostile,
    kernel::key,
    node::cluster_name,
    store::Value,
    world::{CLUSTERS, Event, NODES, World},
};

/// The end of a fault.
#[derive(Debug, Clone)]
pub(crate) enum Repair {
    Store(usize),
    Cut(usize, usize),
    Start(usize),
    Link(usize, IfIndex),
    Kernel(usize),
    Slow(usize),
    Config(usize),
    Heartbeat(usize),
    Peer(usize, usize),
    Foreign(usize, meshd_core::plan::ActualKey),
    Member(usize),
}

impl World {
    /// One fault, and the moment of its repair on the agenda; another one follows.
    pub(crate) fn inject_fault(&mut self) {
        if self.agenda.now >= self.chaos_until {
            return;
        }
        let pause = self.rng.ms(50, 5_000);
        self.agenda.after(pause, Event::Fault);
        let (node, cluster) = (self.rng.below(NODES), self.rng.below(CLUSTERS));
        match self.rng.below(22) {
            0 => self.crash_store(cluster),
            1 => self.replace_store(cluster),
            2 | 3 => self.compact(cluster),
            4 | 5 => self.cut(node, cluster),
            6 => self.slow_down(node),
            7 => self.kill(node, true),
            8 => self.kill(node, false),
            9 => self.bounce(node),
            10 | 11 => self.meddle(node),
            12 | 13 => self.foreign(node),
            14 => self.lose_notes(node),
            15 => self.refuse(node),
            16 | 17 => self.attack(),
            18 => self.move_node(node),
            19 => self.quarrel(node),
            20 => self.unpeer(node, cluster),
            _ => self.trouble(node, cluster),
        }
    }

    /// Mends one thing.
    pub(crate) fn repair(&mut self, repair: Repair) {
        self.note(|| format!("repair {repair:?}"));
        match repair {
            Repair::Store(cluster) => {
                if !self.stores[cluster].up {
                    self.restart_store(cluster);
                }
            }
            Repair::Cut(node, cluster) => drop(self.cuts.remove(&(node, cluster))),
            Repair::Start(node) => {
                if self.nodes[node].life.is_none() && self.nodes[node].member {
                    self.start_node(node);
                }
            }
            Repair::Link(node, link) => {
                self.nodes[node].down.remove(&link);
                self.nodes[node].kernel.set_link(link, true);
                self.poke(node);
            }
            Repair::Kernel(node) => self.nodes[node].kernel.refusing = false,
            Repair::Slow(node) => self.nodes[node].slow = 1,
            Repair::Config(cluster) => self.controls[cluster].bad_config = None,
            Repair::Heartbeat(cluster) => self.controls[cluster].silent = false,
            Repair::Peer(node, cluster) => {
                if !self.nodes[node].configured.contains(&cluster) {
                    let seed = self.rng.next();
                    let commands = self.nodes[node].add_peer(cluster, seed, self.sabotage);
                    self.carry_out(node, cluster, commands);
                }
            }
            Repair::Foreign(node, key) => {
                self.nodes[node].kernel.give_back(&key);
                self.nodes[node].hand_made.remove(&key);
                self.poke(node);
            }
            Repair::Member(node) => {
                self.nodes[node].member = true;
                self.repair(Repair::Start(node));
            }
        }
    }

    /// Mends everything.
    pub(crate) fn heal(&mut self) {
        self.note(|| "everything is mended".to_owned());
        for cluster in 0..CLUSTERS {
            self.repair(Repair::Store(cluster));
            self.repair(Repair::Config(cluster));
            self.repair(Repair::Heartbeat(cluster));
        }
        self.cuts.clear();
        // Its own nodes believe a hostile cluster what nobody else does.
        for key in std::mem::take(&mut self.evil_keys) {
            self.put(self.hostile.unwrap_or(0), &key, None, None);
        }
        for node in 0..NODES {
            // Of two claims to one prefix the younger gives way.
            let younger = |prefix: &IpNet| is_quarrel(prefix) && self.quarrel_winner() != Some(node);
            if self.nodes[node].pod_cidrs.iter().any(younger) {
                self.nodes[node].pod_cidrs.retain(|prefix| !is_quarrel(prefix));
                self.kill_node(node);
            }
            self.repair(Repair::Member(node));
            self.repair(Repair::Kernel(node));
            self.repair(Repair::Slow(node));
            for link in [IfIndex(2), IfIndex(3)] {
                self.repair(Repair::Link(node, link));
            }
            for cluster in 0..CLUSTERS {
                self.repair(Repair::Peer(node, cluster));
            }
            // A route of somebody else under one of our keys would stay in the way for ever.
            let blocking: Vec<_> =
                self.nodes[node].kernel.foreign().filter(|k| k.metric.0 == ROUTE_METRIC).copied().collect();
            for key in blocking {
                self.repair(Repair::Foreign(node, key));
            }
        }
    }

    fn quarrel_winner(&self) -> Option<usize> {
        self.nodes.iter().find(|node| node.pod_cidrs.iter().any(is_quarrel)).map(|node| node.index)
    }

    fn crash_store(&mut self, cluster: usize) {
        let pause = self.rng.ms(1_000, 150_000);
        self.note(|| format!("fault: store {cluster} dies for {pause:?}"));
        self.stores[cluster].up = false;
        self.break_lines(None, cluster, (0, 100), "connection reset");
        self.agenda.after(pause, Event::Repair(Repair::Store(cluster)));
    }

    fn replace_store(&mut self, cluster: usize) {
        self.note(|| format!("fault: store {cluster} loses its data"));
        self.break_lines(None, cluster, (0, 100), "connection reset");
        let up = self.stores[cluster].up;
        self.lose_store(cluster);
        self.stores[cluster].up = up;
    }

    fn compact(&mut self, cluster: usize) {
        self.note(|| format!("fault: store {cluster} is compacted"));
        self.stores[cluster].compact();
    }

    fn cut(&mut self, node: usize, cluster: usize) {
        let pause = self.rng.ms(100, 200_000);
        self.note(|| format!("fault: node {node} cannot reach store {cluster} for {pause:?}"));
        self.cuts.insert((node, cluster));
        self.break_lines(Some(node), cluster, (1_000, 20_000), "timed out");
        self.agenda.after(pause, Event::Repair(Repair::Cut(node, cluster)));
    }

    fn slow_down(&mut self, node: usize) {
        self.note(|| format!("fault: node {node} is slow"));
        self.nodes[node].slow = 40;
        let pause = self.rng.ms(1_000, 60_000);
        self.agenda.after(pause, Event::Repair(Repair::Slow(node)));
    }

    fn kill(&mut self, node: usize, memory: bool) {
        let pause = self.rng.ms(50, if self.rng.clone().one_in(5) { 200_000 } else { 5_000 });
        self.note(|| format!("fault: node {node} is killed for {pause:?}, memory kept: {memory}"));
        self.kill_node(node);
        if !memory {
            self.nodes[node].memory = Default::default();
            self.nodes[node].amnesia = true;
        }
        self.agenda.after(pause, Event::Repair(Repair::Start(node)));
    }

    fn bounce(&mut self, node: usize) {
        let link = self.rng.pick(&[IfIndex(2), IfIndex(3)]);
        let pause = self.rng.ms(20, 20_000);
        self.note(|| format!("fault: link {link} of node {node} is down for {pause:?}"));
        let now = self.agenda.now;
        self.nodes[node].down.entry(link).or_insert(now);
        self.nodes[node].kernel.set_link(link, false);
        // The kernel removes routes over a dead link, whoever added them.
        let left: std::collections::BTreeSet<_> = self.nodes[node].kernel.foreign().copied().collect();
        self.nodes[node].hand_made.retain(|key| left.contains(key));
        self.poke(node);
        self.agenda.after(pause, Event::Repair(Repair::Link(node, link)));
    }

    /// Somebody changes our routes by hand.
    fn meddle(&mut self, node: usize) {
        let way = self.rng.below(3);
        let owned: Vec<_> = self.nodes[node].kernel.owned().copied().collect();
        let nexthops: Vec<_> = self.nodes[node].kernel.nexthops.keys().copied().collect();
        if owned.is_empty() || nexthops.is_empty() {
            return;
        }
        let (key, id) = (self.rng.pick(&owned), self.rng.pick(&nexthops));
        let kernel = &mut self.nodes[node].kernel;
        match way {
            0 => kernel.remove_by_hand(&key),
            1 => kernel.change_by_hand(&key, elsewhere()),
            _ => kernel.remove_nexthop_by_hand(id),
        }
        let what = ["removes route", "changes route", "removes a nexthop, not"][way];
        self.note(|| format!("fault: somebody {what} {} of node {node} ({id})", key.prefix));
        self.poke(node);
    }

    /// Another program adds a route, sometimes one under a key of ours.
    fn foreign(&mut self, node: usize) {
        let place = self.rng.below(250);
        let cluster = self.rng.below(CLUSTERS);
        let (prefix, metric) = if self.rng.one_in(3) {
            (format!("10.{}.{}.0/24", 10 + cluster, place % 10), ROUTE_METRIC)
        } else {
            (format!("192.168.{place}.0/24"), 20)
        };
        let key = key(prefix.parse().expect("a prefix"), metric);
        self.note(|| format!("fault: foreign route {} metric {metric} on node {node}", key.prefix));
        self.nodes[node].kernel.take_by_foreign(key, elsewhere());
        self.nodes[node].hand_made.insert(key);
        self.poke(node);
        if metric == ROUTE_METRIC {
            let pause = self.rng.ms(1_000, 60_000);
            self.agenda.after(pause, Event::Repair(Repair::Foreign(node, key)));
        }
    }

    fn lose_notes(&mut self, node: usize) {
        self.note(|| format!("fault: notifications of node {node} overflow"));
        self.meddle(node);
        self.nodes[node].kernel.overflow = true;
        self.poke(node);
    }

    fn refuse(&mut self, node: usize) {
        let pause = self.rng.ms(100, 40_000);
        self.note(|| format!("fault: kernel of node {node} refuses everything for {pause:?}"));
        self.nodes[node].kernel.refusing = true;
        self.agenda.after(pause, Event::Repair(Repair::Kernel(node)));
    }

    /// The hostile cluster writes what it should not: under names of its own, or over the record of one of its nodes.
    fn attack(&mut self) {
        let Some(cluster) = self.hostile else { return };
        let victim = self.rng.below(NODES);
        let victim = if victim / 10 == cluster { (victim + 10) % NODES } else { victim };
        for _ in 0..6 {
            let record = hostile::record(&mut self.rng, cluster, &self.nodes[victim]);
            let value = Value { bytes: record.value.into(), good: None };
            self.put(cluster, &record.key, Some(value), None);
            self.evil_keys.insert(record.key);
        }
        self.note(|| format!("fault: cluster {cluster} writes bad records, against node {victim}"));
        if self.rng.one_in(2) {
            let node = cluster * 10 + self.rng.below(10);
            let key = format!("cilium/state/nodes/v1/{}/{}", cluster_name(cluster), self.nodes[node].name);
            self.note(|| format!("fault: the record of node {node} is damaged"));
            let bytes: Rc<[u8]> = Rc::from(&b"{\"Name\":"[..]);
            self.put(cluster, &key, Some(Value { bytes, good: None }), None);
        }
        if self.rng.one_in(2) {
            // Readers have to list again what they refused.
            self.stores[cluster].compact();
            self.break_lines(None, cluster, (0, 2_000), "connection reset");
        }
    }

    /// A node gets another PodCIDR or another address, which takes a restart.
    fn move_node(&mut self, node: usize) {
        let cluster = self.nodes[node].cluster;
        let number = 100 + self.rng.below(100);
        if self.rng.one_in(2) {
            let prefix: IpNet = format!("10.{}.{number}.0/24", 10 + cluster).parse().expect("a prefix");
            if self.nodes.iter().any(|other| other.pod_cidrs.contains(&prefix)) {
                return;
            }
            self.note(|| format!("fault: node {node} moves to {prefix}"));
            self.nodes[node].pod_cidrs[0] = prefix;
        } else {
            let address = format!("172.18.{}.{}", 100 + cluster, number).parse().expect("an address");
            if self.nodes.iter().any(|other| other.addresses.contains(&address)) {
                return;
            }
            self.note(|| format!("fault: node {node} moves to {address}"));
            self.nodes[node].addresses[0] = address;
        }
        self.kill_node(node);
        self.agenda.after(Duration::from_secs(1), Event::Repair(Repair::Start(node)));
    }

    /// A node claims a prefix that another cluster may claim as well.
    fn quarrel(&mut self, node: usize) {
        let prefix: IpNet =
            self.rng.pick(&["10.100.1.0/24", "10.100.1.128/25", "10.100.0.0/22"]).parse().expect("a prefix");
        if self.nodes[node].pod_cidrs.iter().any(is_quarrel) {
            return;
        }
        self.note(|| format!("fault: node {node} claims {prefix}"));
        self.nodes[node].pod_cidrs.push(prefix);
        self.kill_node(node);
        self.agenda.after(Duration::from_secs(1), Event::Repair(Repair::Start(node)));
    }

    fn unpeer(&mut self, node: usize, cluster: usize) {
        if self.nodes[node].cluster == cluster || !self.nodes[node].configured.contains(&cluster) {
            return;
        }
        self.note(|| format!("fault: node {node} no longer reads cluster {cluster}"));
        self.stores[cluster].watches.retain(|watch| watch.who.0.node != node);
        let now = self.agenda.now;
        self.nodes[node].remove_peer(cluster, now);
        self.wake(node);
        let pause = self.rng.ms(100, 60_000);
        self.agenda.after(pause, Event::Repair(Repair::Peer(node, cluster)));
    }

    /// The rarer kinds.
    fn trouble(&mut self, node: usize, cluster: usize) {
        let pause = self.rng.ms(5_000, 200_000);
        match self.rng.below(4) {
            0 => {
                let hours = i64::try_from(self.rng.below(48)).expect("small") - 24;
                self.note(|| format!("fault: clock of node {node} jumps by {hours} h"));
                self.nodes[node].skew = SignedDuration::from_hours(hours);
            }
            1 => {
                let bad = self.rng.pick::<Option<&'static [u8]>>(&[
                    None,
                    Some(b"{\"id\":"),
                    Some(b"{\"id\":0,\"capabilities\":{}}"),
                    Some(b"{\"id\":70000,\"capabilities\":{\"syncedCanaries\":true}}"),
                ]);
                self.note(|| format!("fault: cluster-config of {cluster} is bad for {pause:?}: {bad:?}"));
                self.controls[cluster].bad_config = Some(bad);
                self.agenda.after(pause, Event::Repair(Repair::Config(cluster)));
            }
            2 => {
                self.note(|| format!("fault: heartbeat of {cluster} is silent for {pause:?}"));
                self.controls[cluster].silent = true;
                self.agenda.after(pause, Event::Repair(Repair::Heartbeat(cluster)));
            }
            _ => {
                self.note(|| format!("fault: node {node} is taken out of its cluster for {pause:?}"));
                let (name, of) = (self.nodes[node].name.clone(), self.nodes[node].cluster);
                self.kill_node(node);
                self.nodes[node].member = false;
                if self.stores[of].up {
                    let key = format!("cilium/state/{}/v1/{}/{name}", Kind::Nodes.key_word(), cluster_name(of));
                    self.put(of, &key, None, None);
                }
                self.agenda.after(pause, Event::Repair(Repair::Member(node)));
            }
        }
    }
}

/// Prefixes that any cluster may claim.
pub(crate) fn is_quarrel(prefix: &IpNet) -> bool {
    let range: IpNet = "10.100.0.0/16".parse().expect("a prefix");
    range.contains(prefix)
}

fn elsewhere() -> Hop {
    Hop { via: "172.18.255.254".parse().expect("an address"), dev: IfIndex(2), tunnel: None }
}
