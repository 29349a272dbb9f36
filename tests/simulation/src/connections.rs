//! Connections between nodes and stores: requests, answers and watch streams, each with its delay, and what a node was told.

use std::{collections::BTreeSet, time::Duration};

use ipnet::IpNet;
use meshd_core::{
    clustermesh::{
        Key,
        reader::{Command, Header, Input, Record, Target},
    },
    id::ClusterName,
    observed::{ClusterChange, Kind},
};

use super::{
    node::{Peer, cluster_name},
    store::{Good, Page, Row, Value, Watch},
    world::{Event, NODES, World},
};

#[derive(Debug, Clone)]
pub(crate) enum Answer {
    Connected,
    Lost(&'static str),
    Page { target: Target, header: Header, first: bool, more: bool, rows: Vec<Row> },
    ListCompacted(Target),
    Watching(Target, Header),
    Events { target: Target, header: Header, rows: Vec<Row> },
    WatchCompacted(Target),
    Claimed(Result<(), ClusterName>),
}

/// Which connection of which process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Line {
    pub(crate) node: usize,
    pub(crate) incarnation: u64,
    pub(crate) cluster: usize,
    pub(crate) epoch: u64,
}

impl World {
    /// Breaks the connections of one node (or all) to a store. They find out within `detect`.
    pub(crate) fn break_lines(
        &mut self,
        node: Option<usize>,
        cluster: usize,
        detect: (u64, u64),
        reason: &'static str,
    ) {
        self.stores[cluster].watches.retain(|watch| node.is_some_and(|node| watch.who.0.node != node));
        for index in 0..NODES {
            let delay = self.rng.ms(detect.0, detect.1);
            if node.is_some_and(|node| node != index) {
                continue;
            }
            let incarnation = self.nodes[index].incarnation;
            let Some(life) = &mut self.nodes[index].life else { continue };
            let Some(peer) = life.peers.get_mut(&cluster) else { continue };
            if std::mem::replace(&mut peer.alive, false) {
                let line = Line { node: index, incarnation, cluster, epoch: peer.epoch };
                self.agenda.after(delay, Event::Answer(line, Answer::Lost(reason)));
            }
        }
    }

    pub(crate) fn reaches(&self, node: usize, cluster: usize) -> bool {
        self.stores[cluster].up && !self.cuts.contains(&(node, cluster))
    }

    /// The peer behind a line, if the line is still the current one.
    pub(crate) fn peer(&mut self, line: Line) -> Option<&mut Peer> {
        let life = self.process(line.node, line.incarnation)?;
        life.peers.get_mut(&line.cluster).filter(|peer| peer.epoch == line.epoch)
    }

    fn latency(&mut self, node: usize) -> Duration {
        self.rng.ms(1, 20) * self.nodes[node].slow
    }

    pub(crate) fn header(&self, cluster: usize) -> Header {
        Header { store_id: self.stores[cluster].id, revision: self.stores[cluster].revision }
    }

    /// Carries out what a reader wants.
    pub(crate) fn carry_out(&mut self, node: usize, cluster: usize, commands: Vec<Command>) {
        let incarnation = self.nodes[node].incarnation;
        for command in commands {
            let delay = self.latency(node);
            let Some(life) = &mut self.nodes[node].life else { return };
            let Some(peer) = life.peers.get_mut(&cluster) else { return };
            if let Command::Connect { after } = command {
                peer.epoch += 1;
                peer.alive = false;
                peer.tick_at = None;
                peer.stream_free = Duration::ZERO;
                let line = Line { node, incarnation, cluster, epoch: peer.epoch };
                self.stores[cluster].watches.retain(|watch| watch.who.0.node != node);
                self.agenda.after(after + delay, Event::Connect(line));
            } else {
                let line = Line { node, incarnation, cluster, epoch: peer.epoch };
                self.agenda.after(delay, Event::Request(line, command));
            }
        }
    }

    pub(crate) fn connect(&mut self, line: Line) {
        let reaches = self.reaches(line.node, line.cluster);
        let delay = self.latency(line.node);
        let timeout = self.rng.ms(50, 5_000);
        let Some(peer) = self.peer(line) else { return };
        if reaches {
            peer.alive = true;
            self.agenda.after(delay, Event::Answer(line, Answer::Connected));
        } else {
            self.agenda.after(timeout, Event::Answer(line, Answer::Lost("connection refused")));
        }
    }

    pub(crate) fn request(&mut self, line: Line, command: Command) {
        let cluster = line.cluster;
        if !self.reaches(line.node, cluster) || !self.peer(line).is_some_and(|peer| peer.alive) {
            return;
        }
        match command {
            Command::Connect { .. } => {}
            Command::Claim(id) => {
                let answer = Answer::Claimed(self.nodes[line.node].claim(cluster, id));
                self.reply(line, answer);
            }
            Command::List { target, from, end, revision, limit } => {
                let header = self.header(cluster);
                let first = revision == 0;
                let answer = match self.stores[cluster].list(&from, &end, revision, limit as usize) {
                    Ok(Page { rows, more }) => Answer::Page { target, header, first, more, rows },
                    Err(_) => Answer::ListCompacted(target),
                };
                self.reply(line, answer);
            }
            Command::Watch { target, from, end, revision } => {
                let header = self.header(cluster);
                match self.stores[cluster].watch(Watch { who: (line, target), from, end }, revision) {
                    Ok(missed) => {
                        self.stream(line, Answer::Watching(target, header));
                        if !missed.is_empty() {
                            self.stream(line, Answer::Events { target, header, rows: missed });
                        }
                    }
                    Err(_) => self.stream(line, Answer::WatchCompacted(target)),
                }
            }
        }
    }

    fn reply(&mut self, line: Line, answer: Answer) {
        let delay = self.latency(line.node);
        self.agenda.after(delay, Event::Answer(line, answer));
    }

    /// Sends over the watch stream of a connection, which keeps its order.
    pub(crate) fn stream(&mut self, line: Line, answer: Answer) {
        let at = self.agenda.now + self.latency(line.node);
        let Some(peer) = self.peer(line) else { return };
        let at = at.max(peer.stream_free);
        peer.stream_free = at;
        self.agenda.at(at, Event::Answer(line, answer));
    }

    pub(crate) fn answer(&mut self, line: Line, answer: Answer) {
        let lost = matches!(answer, Answer::Lost(_));
        if !self.peer(line).is_some_and(|peer| peer.alive || lost) {
            return;
        }
        if lost && self.peer(line).is_some_and(|peer| peer.reader.row().connected) {
            self.note(|| format!("node {} lost store {}: {answer:?}", line.node, line.cluster));
        }
        self.tell(line, &answer);
        let records = |rows: Vec<Row>| {
            let record =
                |(key, value): Row| Record { key: key.to_vec(), value: value.map(|value| value.bytes.to_vec()) };
            rows.into_iter().map(record).collect()
        };
        let input = match answer {
            Answer::Connected => Input::Connected,
            Answer::Lost(reason) => Input::Lost(reason.into()),
            Answer::Page { target, header, more, rows, .. } => {
                Input::Page { target, header, count: rows.len(), records: records(rows), more }
            }
            Answer::ListCompacted(target) => Input::ListCompacted(target),
            Answer::Watching(target, header) => Input::Watching(target, header),
            Answer::Events { target, header, rows } => Input::Events { target, header, records: records(rows) },
            Answer::WatchCompacted(target) => Input::WatchCompacted(target),
            Answer::Claimed(answer) => Input::Claimed(answer),
        };
        self.hear(line, input);
    }

    pub(crate) fn tick(&mut self, line: Line) {
        let now = self.agenda.now;
        let Some(peer) = self.peer(line) else { return };
        if peer.tick_at == Some(now) {
            peer.tick_at = None;
            self.hear(line, Input::Tick);
        }
    }

    fn hear(&mut self, line: Line, input: Input) {
        let now = self.agenda.now;
        let heard = self.nodes[line.node].hear(line.cluster, input, now, self.sabotage);
        self.check_changes(line.node, line.cluster, &heard.changes);
        self.carry_out(line.node, line.cluster, heard.commands);
        if let (Some(deadline), Some(peer)) = (heard.deadline, self.peer(line)) {
            let at = deadline.max(now + Duration::from_millis(1));
            if peer.tick_at.is_none_or(|due| at < due) {
                peer.tick_at = Some(at);
                self.agenda.at(at, Event::Tick(line));
            }
        }
        if heard.changes.iter().any(|change| !matches!(change, ClusterChange::Peer(_))) {
            self.wake(line.node);
        }
    }

    /// Writes down what a node was told of the truth, as a reader without any cleverness would understand it.
    fn tell(&mut self, line: Line, answer: &Answer) {
        let cluster = line.cluster;
        match answer {
            Answer::Page { target: Target::Records(Kind::Nodes), first, more, rows, .. } => {
                let damaged: BTreeSet<usize> =
                    rows.iter().filter_map(|(key, value)| self.damaged(cluster, key, value.as_ref())).collect();
                let node = &mut self.nodes[line.node];
                let Some(life) = &mut node.life else { return };
                let Some(peer) = life.peers.get_mut(&cluster) else { return };
                node.unread.extend(damaged.iter().copied());
                if *first {
                    peer.listing.clear();
                }
                let told = node.told.entry(cluster).or_default();
                for good in rows.iter().filter_map(|(_, value)| value.as_ref()?.good.clone()) {
                    peer.listing.insert(good.node, good.clone());
                    note_readable(&mut node.unread, &node.pod_cidrs, &good);
                    told.insert(good.node, good);
                }
                // A record nobody can read is still there: what was told of it before holds.
                peer.listing.extend(damaged.iter().filter_map(|n| Some((*n, told.get(n)?.clone()))));
                if !more {
                    *told = std::mem::take(&mut peer.listing);
                }
            }
            Answer::Events { target: Target::Records(Kind::Nodes), rows, .. } => {
                for (key, value) in rows {
                    let owner = self.node_of(cluster, key);
                    let node = &mut self.nodes[line.node];
                    let told = node.told.entry(cluster).or_default();
                    match (value, owner) {
                        (Some(Value { good: Some(good), .. }), _) => {
                            note_readable(&mut node.unread, &node.pod_cidrs, good);
                            told.insert(good.node, good.clone());
                        }
                        (Some(_), Some(owner)) => drop(node.unread.insert(owner)),
                        (None, Some(owner)) => drop(told.remove(&owner)),
                        (_, None) => {}
                    }
                }
            }
            _ => {}
        }
    }

    fn damaged(&self, cluster: usize, key: &[u8], value: Option<&Value>) -> Option<usize> {
        if value.is_some_and(|value| value.good.is_some()) { None } else { self.node_of(cluster, key) }
    }

    pub(crate) fn node_of(&self, cluster: usize, key: &[u8]) -> Option<usize> {
        let name = cluster_name(cluster);
        match Key::parse(key) {
            Ok(Key::Node { cluster: of, node, .. }) if of == name.as_str() => {
                self.nodes.iter().find(|n| n.cluster == cluster && n.name.as_str() == node).map(|n| n.index)
            }
            _ => None,
        }
    }
}

/// A record is read by everybody except by a node whose own prefix it claims.
fn note_readable(unread: &mut BTreeSet<usize>, own: &[IpNet], good: &Good) {
    if good.pod_cidrs.iter().any(|found| own.iter().any(|own| own.contains(found) || found.contains(own))) {
        unread.insert(good.node);
    } else {
        unread.remove(&good.node);
    }
}
