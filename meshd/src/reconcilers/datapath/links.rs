//! Which programs belong onto which links, and putting them there.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::{Duration, Instant},
};

use meshd_abi::{LINKS, Link, link_flags};
use meshd_core::{
    derive::LocalNode,
    id::{IfIndex, TUNNEL_LINK},
    observed::{LinkRow, RouteKind},
};
use meshd_datapath::{Attached, DatapathError, Program, Programs};
use tracing::{info, warn};

use super::error_chain;
use crate::{
    config::model::services::{LinkPattern, XdpUse},
    pipeline::Snapshot,
};

/// For so long programs stay on a link that should have none: network daemons take addresses away and give them back, and connections are not
/// to end for that.
const GRACE: Duration = Duration::from_secs(5);

/// What the configuration says about links.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LinkPlan {
    /// Links that lead out of the node; empty: those that carry its addresses.
    pub uplinks: Vec<LinkPattern>,
    /// Links of workloads; empty: those that routes to its workloads name.
    pub workloads: Vec<LinkPattern>,
    /// Where packets from outside are taken over.
    pub xdp: XdpUse,
}

/// A program on a link.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Attachment {
    /// The link's name.
    pub name: Arc<str>,
    /// How it is attached, or why not.
    pub outcome: Result<Attached, String>,
}

/// Programs on links.
#[derive(Debug, Default)]
pub(super) struct Links {
    pub(super) attached: BTreeMap<(Program, IfIndex), Attachment>,
    /// Those that are not wanted, since when.
    unwanted: BTreeMap<(Program, IfIndex), Instant>,
    known: bool,
    /// What XDP programs were told of their links; `None`: not known yet.
    told: Option<BTreeMap<u32, Link>>,
}

impl Links {
    /// True when a program is attached to the link with this name.
    pub(super) fn is_on(&self, program: Program, link: &str) -> bool {
        self.attached
            .iter()
            .any(|((on, _), attachment)| *on == program && &*attachment.name == link && attachment.outcome.is_ok())
    }

    /// True when a program is attached to a link.
    pub(super) fn is_at(&self, program: Program, link: IfIndex) -> bool {
        self.attached.get(&(program, link)).is_some_and(|attachment| attachment.outcome.is_ok())
    }

    /// Attaches and detaches until the programs are where they belong; returns what the kernel refused. A refusal is tried again
    /// with the next snapshot.
    pub(super) fn follow(
        &mut self,
        plan: &LinkPlan,
        local: &LocalNode,
        snapshot: &Snapshot,
        programs: &mut Programs,
    ) -> Vec<String> {
        if !snapshot.local_known {
            return Vec::new();
        }
        let wanted = wanted(plan, local, snapshot);
        if !self.known {
            self.known = true;
            // Links of an earlier process that nobody wants any more.
            match programs.attached() {
                Ok(attached) => {
                    for (program, link) in attached.into_iter().filter(|key| !wanted.contains_key(key)) {
                        detach(programs, program, link);
                    }
                }
                Err(error) => warn!(error = error_chain(&error), "programs of an earlier process may be left"),
            }
        }
        for (program, link) in self.unwanted(&wanted, snapshot, Instant::now()) {
            self.attached.remove(&(program, link));
            detach(programs, program, link);
        }
        let mut refusals = Vec::new();
        let mut fresh = Vec::new();
        for (program, link, name) in in_order(wanted) {
            if self.attached.get(&(program, link)).is_some_and(|attachment| attachment.outcome.is_ok()) {
                continue;
            }
            let mut outcome = match self.missing(program, link) {
                // Half of a link would translate one direction and not the other.
                Some(missing) => Err(format!("{} is not on the link", missing.name())),
                None => attach(plan, program, link, programs).map_err(|error| error_chain(&error)),
            };
            match &outcome {
                Ok(Attached::Left) => {
                    info!(link = %name, program = program.name(), "the driver has no XDP: TC programs do all of it");
                }
                Ok(attached) => {
                    info!(link = %name, program = program.name(), ?attached, "attached");
                    if *attached != Attached::Adopted {
                        fresh.push((program, link));
                    }
                    // A link that went in between is told by the next snapshot.
                    outcome = programs.mode(program, link).or(Ok(*attached));
                }
                Err(error) => refusals.push(format!("{} is not on {name}: {error}", program.name())),
            }
            self.attached.insert((program, link), Attachment { name, outcome });
        }
        self.take_back(&fresh, programs);
        match self.tell(snapshot, programs) {
            Ok(crowded) => refusals.extend(crowded),
            Err(error) => refusals.push(format!("XDP does nothing: {}", error_chain(&error))),
        }
        refusals
    }

    /// Programs that are to leave their links now: the link is gone, it has another part to play, or nobody has wanted them for [`GRACE`].
    fn unwanted(
        &mut self,
        wanted: &BTreeMap<(Program, IfIndex), Arc<str>>,
        snapshot: &Snapshot,
        now: Instant,
    ) -> Vec<(Program, IfIndex)> {
        self.unwanted.retain(|key, _| !wanted.contains_key(key) && self.attached.contains_key(key));
        let taken: BTreeSet<IfIndex> = wanted.keys().map(|(_, link)| *link).collect();
        let mut gone = Vec::new();
        for (key, attachment) in self.attached.iter().filter(|(key, _)| !wanted.contains_key(key)) {
            let since = *self.unwanted.entry(*key).or_insert(now);
            let waits = attachment.outcome.is_ok()
                && snapshot.observed.links.get(&key.1).is_some()
                && !taken.contains(&key.1)
                && now < since + GRACE;
            if !waits {
                gone.push(*key);
            }
        }
        gone
    }

    /// True when programs have been unwanted for long enough.
    pub(super) fn is_due(&self, now: Instant) -> bool {
        self.unwanted.values().any(|since| now >= *since + GRACE)
    }

    /// Tells XDP programs what their links are. Without that a program leaves everything to TC, as those do whose links find no place:
    /// what it answers is said of each of them.
    fn tell(&mut self, snapshot: &Snapshot, programs: &Programs) -> Result<Vec<String>, DatapathError> {
        if self.told.is_none() {
            let all = programs.maps.links.all()?;
            self.told = Some(all.into_iter().filter(|(_, link)| link.index != 0).collect());
        }
        let Some(told) = self.told.as_mut() else { return Ok(Vec::new()) };
        let runs = |link: &IfIndex| match self.attached.get(&(Program::XdpUplink, *link))?.outcome {
            Ok(Attached::Left) | Err(_) => None,
            Ok(mode) => Some(mode),
        };
        let on = self.attached.keys().filter(|(program, _)| *program == Program::XdpUplink).map(|(_, link)| *link);
        let (places, crowded) = places(told, &on.filter(|link| runs(link).is_some()).collect::<Vec<_>>());
        let mut wanted = BTreeMap::new();
        for (index, link) in places {
            let Some(row) = snapshot.observed.links.get(&link) else { continue };
            let (Some(address), Some(mode)) = (row.mac, runs(&link)) else { continue };
            let known = told.get(&index).filter(|known| known.index == link.0);
            let flags = match (known, mode) {
                (Some(known), _) => known.flags,
                (None, Attached::Native) if row.kind.as_deref() == Some("veth") => 0,
                (None, Attached::Native) if programs.transmits(link)? => link_flags::RETURNS | link_flags::TRANSMITS,
                (None, Attached::Native) => link_flags::RETURNS,
                (None, _) => link_flags::GENERIC,
            };
            wanted.insert(index, Link { index: link.0, address, flags });
        }
        for index in told.keys().filter(|index| !wanted.contains_key(index)).copied().collect::<Vec<_>>() {
            programs.maps.links.put(&index, &Link::default())?;
            told.remove(&index);
        }
        for (index, link) in wanted {
            if told.get(&index) != Some(&link) {
                programs.maps.links.put(&index, &link)?;
                told.insert(index, link);
            }
        }
        let name = |link: IfIndex| self.attached.get(&(Program::XdpUplink, link)).map_or("?", |there| &*there.name);
        let say = |(link, holder): (IfIndex, IfIndex)| {
            format!(
                "XDP does nothing on {}, TC does all of it: {} has its place, because their indexes {link} and {holder} differ by a multiple of {LINKS}",
                name(link),
                name(holder)
            )
        };
        Ok(crowded.into_iter().map(say).collect())
    }

    /// Takes programs off again that were put onto links in this round of which another one was refused. What was there before
    /// stays: connections may depend on it.
    fn take_back(&mut self, fresh: &[(Program, IfIndex)], programs: &mut Programs) {
        for (program, link) in self.halves(fresh) {
            detach(programs, program, link);
            if let Some(attachment) = self.attached.get_mut(&(program, link)) {
                attachment.outcome = Err("another program of the link was refused".to_owned());
            }
        }
    }

    /// Those of some programs on whose links a TC program was refused. XDP only takes work off the others.
    fn halves(&self, fresh: &[(Program, IfIndex)]) -> Vec<(Program, IfIndex)> {
        let is_half = |link: IfIndex| {
            self.attached.iter().any(|((program, of), attachment)| {
                *of == link && *program != Program::XdpUplink && attachment.outcome.is_err()
            })
        };
        fresh.iter().copied().filter(|(_, link)| is_half(*link)).collect()
    }

    /// A program of the other direction, or of the way back, that this one must not be without.
    fn missing(&self, program: Program, link: IfIndex) -> Option<Program> {
        let is_refused =
            |needed: &Program| self.attached.get(&(*needed, link)).is_none_or(|there| there.outcome.is_err());
        needs(program).iter().copied().find(is_refused)
    }
}

/// Gives links that XDP runs on their elements of `LINKS`: who has one keeps it. Answers who has which, and beside each link that goes
/// without the one that has its element.
fn places(told: &BTreeMap<u32, Link>, links: &[IfIndex]) -> (BTreeMap<u32, IfIndex>, BTreeMap<IfIndex, IfIndex>) {
    let has = |link: &&IfIndex| told.get(&(link.0 % LINKS)).is_some_and(|known| known.index == link.0);
    let (first, then): (Vec<&IfIndex>, Vec<&IfIndex>) = links.iter().partition(has);
    let mut places = BTreeMap::new();
    let mut without = BTreeMap::new();
    for link in first.into_iter().chain(then) {
        let holder = *places.entry(link.0 % LINKS).or_insert(*link);
        if holder != *link {
            without.insert(*link, holder);
        }
    }
    (places, without)
}

/// What must be on a link before a program is: what sends answers back comes before what lets questions in.
const fn needs(program: Program) -> &'static [Program] {
    match program {
        Program::UplinkEgress | Program::WorkloadEgress | Program::TunnelEgress => &[],
        Program::TunnelIngress => &[Program::TunnelEgress],
        Program::UplinkIngress => &[Program::UplinkEgress],
        Program::WorkloadIngress => &[Program::WorkloadEgress],
        Program::XdpUplink => &[Program::UplinkEgress, Program::UplinkIngress],
    }
}

/// Programs with their links in the order in which they are attached: whoever needs others comes after them.
fn in_order(wanted: BTreeMap<(Program, IfIndex), Arc<str>>) -> Vec<(Program, IfIndex, Arc<str>)> {
    let mut ordered: Vec<_> = wanted.into_iter().map(|((program, link), name)| (program, link, name)).collect();
    ordered.sort_by_key(|(program, link, _)| (needs(*program).len(), *link));
    ordered
}

/// XDP in the stack is for who asks for it.
fn attach(
    plan: &LinkPlan,
    program: Program,
    link: IfIndex,
    programs: &mut Programs,
) -> Result<Attached, DatapathError> {
    match plan.xdp {
        XdpUse::On => programs.attach(program, link),
        XdpUse::Auto | XdpUse::Off => programs.attach_where_it_pays(program, link),
    }
}

fn detach(programs: &mut Programs, program: Program, link: IfIndex) {
    match programs.detach(program, link) {
        Ok(true) => info!(%link, program = program.name(), "detached"),
        // The link went, and took the program along.
        Ok(false) => {}
        Err(error) => warn!(%link, program = program.name(), error = error_chain(&error), "failed to detach"),
    }
}

fn wanted(plan: &LinkPlan, local: &LocalNode, snapshot: &Snapshot) -> BTreeMap<(Program, IfIndex), Arc<str>> {
    let mut wanted = BTreeMap::new();
    for (link, row) in snapshot.observed.links.iter().filter(|(_, row)| !row.loopback && row.mac.is_some()) {
        let mut want = |program| drop(wanted.insert((program, *link), row.name.clone()));
        if &*row.name == TUNNEL_LINK {
            want(Program::TunnelIngress);
            want(Program::TunnelEgress);
        } else if is_uplink(plan, local, snapshot, *link, row) {
            want(Program::UplinkIngress);
            want(Program::UplinkEgress);
            // A virtual link has to make a frame of what is a segment of many, which costs more than the stack.
            if plan.xdp == XdpUse::On || (plan.xdp == XdpUse::Auto && row.kind.is_none()) {
                want(Program::XdpUplink);
            }
        } else if is_workload(plan, local, snapshot, *link, row) {
            want(Program::WorkloadIngress);
            want(Program::WorkloadEgress);
        }
    }
    wanted
}

fn is_uplink(plan: &LinkPlan, local: &LocalNode, snapshot: &Snapshot, link: IfIndex, row: &LinkRow) -> bool {
    if !plan.uplinks.is_empty() {
        return plan.uplinks.iter().any(|pattern| pattern.matches(&row.name));
    }
    snapshot.observed.addresses.iter().any(|(key, _)| key.link == link && local.addresses.contains(&key.address.addr()))
}

/// By default a link is one of workloads when a route to an address or a part of our PodCIDRs leads through it directly.
fn is_workload(plan: &LinkPlan, local: &LocalNode, snapshot: &Snapshot, link: IfIndex, row: &LinkRow) -> bool {
    if !plan.workloads.is_empty() {
        return plan.workloads.iter().any(|pattern| pattern.matches(&row.name));
    }
    workload_links(local, snapshot).contains(&link)
}

fn workload_links(local: &LocalNode, snapshot: &Snapshot) -> BTreeSet<IfIndex> {
    let is_own = |prefix: &ipnet::IpNet| local.pod_cidrs.iter().any(|cidr| cidr.contains(prefix));
    snapshot
        .observed
        .routes
        .iter()
        .filter(|(key, row)| row.kind == RouteKind::Unicast && is_own(&key.prefix))
        .flat_map(|(_, row)| row.hops.iter().filter(|hop| hop.via.is_none()).map(|hop| hop.dev))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_two_links_with_one_element_the_one_that_has_it_keeps_it() {
        let link = |index| IfIndex(index);
        let told_of = |index| BTreeMap::from([(index % LINKS, Link { index, ..Link::default() })]);
        let (low, high, other) = (link(7), link(7 + LINKS), link(8 + 2 * LINKS));
        let all = [low, high, other];
        // Nobody has one: the lower index, whatever the order.
        for links in [all, [other, low, high]] {
            let (places, without) = places(&BTreeMap::new(), &links);
            assert_eq!(places, BTreeMap::from([(7, low), (8, other)]));
            assert_eq!(without, BTreeMap::from([(high, low)]));
        }
        // One has it already, and it goes on.
        let (given, without) = places(&told_of(high.0), &all);
        assert_eq!(given, BTreeMap::from([(7, high), (8, other)]));
        assert_eq!(without, BTreeMap::from([(low, high)]));
        // It goes, and the next gets its element; an earlier daemon's link of nobody counts for nothing.
        let (given, without) = places(&told_of(high.0), &[low, other]);
        assert_eq!(given, BTreeMap::from([(7, low), (8, other)]));
        assert!(without.is_empty());
    }

    #[test]
    fn a_link_that_loses_its_part_keeps_its_programs_for_a_moment() {
        let (start, link) = (Instant::now(), IfIndex(2));
        let at = |seconds: f64| start + Duration::from_secs_f64(seconds);
        let mut links = Links::default();
        let pair = [(Program::UplinkIngress, link), (Program::UplinkEgress, link)];
        let attach = |links: &mut Links| {
            let there = Attachment { name: "eth0".into(), outcome: Ok(Attached::Tcx) };
            links.attached = pair.into_iter().map(|key| (key, there.clone())).collect();
        };
        attach(&mut links);
        let both: BTreeMap<_, Arc<str>> = pair.into_iter().map(|key| (key, "eth0".into())).collect();
        let nothing = BTreeMap::new();
        let mut snapshot = Snapshot::default();
        let row = LinkRow {
            name: "eth0".into(),
            kind: None,
            up: true,
            running: true,
            loopback: false,
            mtu: 1_500,
            mac: None,
        };
        drop(snapshot.observed.links.put(link, row));
        // The address goes and comes back.
        assert_eq!(links.unwanted(&nothing, &snapshot, at(0.0)), []);
        assert!(!links.is_due(at(4.0)));
        assert_eq!(links.unwanted(&both, &snapshot, at(4.0)), []);
        assert!(!links.is_due(at(9.0)));
        // It goes for good.
        assert_eq!(links.unwanted(&nothing, &snapshot, at(10.0)), []);
        assert!(links.is_due(at(15.0)));
        assert_eq!(links.unwanted(&nothing, &snapshot, at(15.0)), pair);
        // The link becomes one of workloads, or is gone itself.
        attach(&mut links);
        links.unwanted.clear();
        let workload = BTreeMap::from([((Program::WorkloadEgress, link), "eth0".into())]);
        assert_eq!(links.unwanted(&workload, &snapshot, at(20.0)), pair);
        links.unwanted.clear();
        snapshot.observed.links.remove(&link);
        assert_eq!(links.unwanted(&nothing, &snapshot, at(20.0)), pair);
    }

    #[test]
    fn nothing_is_attached_before_what_it_needs() {
        let wanted = Program::ALL.into_iter().map(|program| ((program, IfIndex(2)), Arc::from("eth0"))).collect();
        let order: Vec<Program> = in_order(wanted).into_iter().map(|(program, ..)| program).collect();
        assert_eq!(order.len(), Program::ALL.len());
        for (at, program) in order.iter().enumerate() {
            for needed in needs(*program) {
                assert!(order[..at].contains(needed), "{program:?} comes before {needed:?}: {order:?}");
            }
        }
    }

    #[test]
    fn a_program_waits_for_what_was_refused() {
        let mut links = Links::default();
        let put = |links: &mut Links, program, outcome: Result<Attached, String>| {
            links.attached.insert((program, IfIndex(2)), Attachment { name: "eth0".into(), outcome });
        };
        assert_eq!(links.missing(Program::UplinkEgress, IfIndex(2)), None);
        assert_eq!(links.missing(Program::UplinkIngress, IfIndex(2)), Some(Program::UplinkEgress));
        put(&mut links, Program::UplinkEgress, Ok(Attached::Tcx));
        assert_eq!(links.missing(Program::UplinkIngress, IfIndex(2)), None);
        put(&mut links, Program::UplinkIngress, Err("EBUSY".to_owned()));
        assert_eq!(links.missing(Program::XdpUplink, IfIndex(2)), Some(Program::UplinkIngress));
        // One direction alone goes again, and what another link has does not matter.
        let fresh = [(Program::UplinkEgress, IfIndex(2)), (Program::UplinkEgress, IfIndex(3))];
        assert_eq!(links.halves(&fresh), [(Program::UplinkEgress, IfIndex(2))]);
        put(&mut links, Program::UplinkIngress, Ok(Attached::Tcx));
        put(&mut links, Program::XdpUplink, Err("EBUSY".to_owned()));
        assert!(links.halves(&fresh).is_empty());
        // Of another link nothing follows.
        assert_eq!(links.missing(Program::UplinkIngress, IfIndex(3)), Some(Program::UplinkEgress));
    }
}
