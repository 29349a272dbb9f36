//! What must hold after every step, and what must be reached in the end.

use std::{collections::BTreeMap, time::Duration};

use ipnet::IpNet;
use meshd_core::{
    desired::{Hop, RouteRow},
    id::{ROUTE_METRIC, ROUTE_PROTOCOL},
    observed::ClusterChange,
    plan::{Action, ActualKey},
};

use super::{
    faults::is_quarrel,
    kernel::key,
    node::cluster_id,
    store::Good,
    world::{CLUSTERS, NODES, World, link_of},
};

/// A route may go when its node was not on-link for this long; a little less for the way of the notification.
const HOLD: Duration = Duration::from_millis(4_990);

impl World {
    /// A route stopped being forwarded because of our action. Was that right? (I4, I8, I10)
    pub(crate) fn check_removal(&mut self, node: usize, prefix: IpNet, action: &Action) {
        if let Err(reason) = self.judge_removal(node, prefix) {
            self.fail(format!("node {node} lost its route to {prefix} by `{action}`: {reason}"));
        }
    }

    /// A route of ours never leads away from the node's own prefixes, nor is part of a prefix routed to another cluster.
    pub(crate) fn check_addition(&mut self, node: usize, action: &Action) {
        let Action::PutRoute { key, .. } = action else { return };
        let overlaps = |other: &IpNet| other.contains(&key.prefix) || key.prefix.contains(other);
        let me = &self.nodes[node];
        if let Some(own) = me.pod_cidrs.iter().find(|own| overlaps(own)) {
            let what = format!("node {node} routes its own prefix {own} elsewhere by `{action}`");
            self.fail(what);
            return;
        }
        let Some(routes) = me.life.as_ref().map(|life| &life.desired.routes) else { return };
        // The other prefixes lie in ranges that only one cluster may claim.
        let Some(row) = routes.get(&key.prefix).filter(|_| is_quarrel(&key.prefix)) else { return };
        let cluster = |row: &RouteRow| row.target.node().map(|target| target.cluster.to_string());
        let other = routes.iter().find(|(prefix, of)| overlaps(prefix) && cluster(of) != cluster(row));
        if let Some((prefix, of)) = other {
            let (ours, theirs) = (cluster(row), cluster(of));
            let what = format!("node {node} wants {} of {ours:?} and {prefix} of {theirs:?}", key.prefix);
            self.fail(what);
        }
    }

    /// Rows a reader accepted must be rows that a good record described (I12).
    pub(crate) fn check_changes(&mut self, node: usize, cluster: usize, changes: &[ClusterChange]) {
        // A node trusts its own cluster: if that is the hostile one, nothing can be said about it.
        let trusts = self.nodes[node].cluster == cluster;
        for change in changes {
            let fine = match change {
                ClusterChange::Node(name, Some(row)) => self
                    .nodes
                    .iter()
                    .find(|of| of.cluster == cluster && of.name == *name)
                    .is_some_and(|of| self.ever_good.contains(&(of.index, row.pod_cidrs.to_vec()))),
                ClusterChange::Identity(id, Some(_)) => {
                    let first = (u32::from(cluster_id(cluster).get()) << 16) + 1;
                    (first..first + u32::try_from(NODES).expect("small")).contains(&id.0)
                }
                ClusterChange::Endpoint(prefix, Some(_)) => {
                    let range: IpNet = format!("10.{}.0.0/16", 10 + cluster).parse().expect("a prefix");
                    range.contains(prefix) && prefix.to_string().ends_with(".9/32")
                }
                ClusterChange::Service(_, Some(_)) => false,
                ClusterChange::Rejected(_, Some(row)) => {
                    let reason = serde_json::to_value(&row.reason).expect("a reason");
                    let word = reason.as_str().map(str::to_owned);
                    let word = word.or_else(|| reason.as_object()?.keys().next().cloned());
                    self.refusals_seen.extend(word);
                    true
                }
                _ => true,
            };
            if !fine && !trusts {
                self.fail(format!("node {node} believed cluster {cluster} something nobody honest wrote: {change:?}"));
            }
        }
    }

    /// Cheap checks after each round of a node (I5, I9).
    pub(crate) fn check_node(&mut self, node: usize) {
        if let Some(what) = self.nodes[node].kernel.touched_foreign.first() {
            let what = format!("node {node} touched something foreign: {what}");
            self.fail(what);
        }
        let present =
            |key: &ActualKey| self.nodes[node].kernel.routes.get(key).is_some_and(|e| e.protocol != ROUTE_PROTOCOL);
        if let Some(gone) = self.nodes[node].hand_made.iter().find(|key| !present(key)) {
            let what = format!("foreign route {} of node {node} is gone", gone.prefix);
            self.fail(what);
        }
        if let Some(what) = self.nodes[node].unbounded() {
            self.fail(what);
        }
    }

    /// The routes a node must have when nothing is wrong: the whole truth in a few lines.
    pub(crate) fn expected(&self, node: usize) -> BTreeMap<IpNet, Vec<Hop>> {
        let me = &self.nodes[node];
        let others = self.nodes.iter().filter(|other| other.index != node && me.configured.contains(&other.cluster));
        let mut routes = BTreeMap::new();
        for other in others {
            for prefix in &other.pod_cidrs {
                let hop = |via: &std::net::IpAddr| Hop { via: *via, dev: link_of(*via), tunnel: None };
                let family = other.addresses.iter().filter(|a| a.is_ipv4() == prefix.addr().is_ipv4());
                let mut hops: Vec<Hop> = family.map(hop).collect();
                hops.sort_unstable();
                routes.insert(*prefix, hops);
            }
        }
        routes
    }

    /// What a node lacks to be as it should be; `None` when it is.
    pub(crate) fn difference(&self, node: usize) -> Option<String> {
        let me = &self.nodes[node];
        let Some(life) = &me.life else { return Some(format!("node {node} is not running")) };
        let expected = self.expected(node);
        for (prefix, hops) in &expected {
            let key = key(*prefix, ROUTE_METRIC);
            let owned = me.kernel.routes.get(&key).is_some_and(|entry| entry.protocol == ROUTE_PROTOCOL);
            let mut found = me.kernel.forwards(&key);
            found.sort_unstable();
            if !owned || found != *hops {
                let row = life.desired.routes.get(prefix);
                let state = row.map(|row| life.planner.state(prefix, &row.target));
                return Some(format!(
                    "node {node} has {found:?} for {prefix}, expected {hops:?}; desired {row:?}, {state:?}"
                ));
            }
        }
        if let Some(extra) =
            me.kernel.owned().find(|key| !expected.contains_key(&key.prefix) || key.metric.0 != ROUTE_METRIC)
        {
            return Some(format!("node {node} has a route nobody wants: {extra:?}"));
        }
        if me.idle_nexthops() > 0 {
            return Some(format!("node {node} has {} nexthop objects nothing refers to", me.idle_nexthops()));
        }
        let counts = life.planner.counts();
        if counts != (expected.len(), 0) {
            return Some(format!("node {node} counts {counts:?} routes done and failed of {}", expected.len()));
        }
        let not_ready = (0..CLUSTERS).find(|c| !life.peers.get(c).is_some_and(|peer| peer.reader.row().is_ready()));
        if let Some(cluster) = not_ready {
            let row = life.peers.get(&cluster).map(|peer| peer.reader.row());
            return Some(format!("node {node} is not ready for cluster {cluster}: {row:?}"));
        }
        None
    }

    fn judge_removal(&self, node: usize, prefix: IpNet) -> Result<(), String> {
        if is_quarrel(&prefix) || Some(self.nodes[node].cluster) == self.hostile {
            return Ok(());
        }
        let me = &self.nodes[node];
        let mut excused = false;
        for (_, told) in me.told.iter().filter(|(cluster, _)| me.configured.contains(cluster)) {
            for good in told.values().filter(|good| good.pod_cidrs.contains(&prefix) && good.node != node) {
                if !self.is_excused(node, good) {
                    return Err(format!("node {} was last told to have it", good.node));
                }
                excused = true;
            }
        }
        let owner = self.nodes.iter().find(|of| of.member && of.pod_cidrs.contains(&prefix) && of.index != node);
        match owner {
            Some(of)
                if !excused && me.told.contains_key(&of.cluster) && !self.withdrawn.contains(&(of.index, prefix)) =>
            {
                Err(format!("node {} has it, and it never was withdrawn", of.index))
            }
            Some(_) | None => Ok(()),
        }
    }

    /// The route may go although its record is there: no link to the node for a while, or the process forgot everything
    /// and refused the record when it read it again.
    fn is_excused(&self, node: usize, good: &Good) -> bool {
        let me = &self.nodes[node];
        let now = self.agenda.now;
        let long_down =
            |address: &std::net::IpAddr| me.down.get(&link_of(*address)).is_some_and(|at| now >= *at + HOLD);
        if self.nodes[good.node].addresses.iter().all(long_down) {
            return true;
        }
        me.amnesia && me.unread.contains(&good.node)
    }
}
