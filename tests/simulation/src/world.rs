//! Fifty nodes in five clusters, their stores, and everything that happens between them, one event at a time.
//!
//! Every message has a delay of its own, so channels that are independent in reality overtake each other here; a watch
//! stream and the kernel's notifications keep their order. The harness knows the truth (who is a member and claims
//! what), what each node was told of it, and what was really withdrawn; the invariants compare what nodes do with that.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    net::IpAddr,
    time::Duration,
};

use ipnet::IpNet;
use jiff::SignedDuration;
use meshd_core::{
    clustermesh::reader::{Command, Target},
    id::IfIndex,
};

use super::{
    clock::{Agenda, Rng},
    clusters::{CANARY_DEADLINE, Control},
    connections::{Answer, Line},
    faults::Repair,
    kernel::{Connected, Kernel},
    node::{Life, Memory, Node},
    sabotage::Sabotage,
    store::Store,
};

pub(crate) const CLUSTERS: usize = 5;
pub(crate) const NODES: usize = 50;
const PUBLISH: Duration = Duration::from_secs(15);
const DUMP: Duration = Duration::from_secs(60);
/// More events in one second of virtual time are a loop: a whole mesh that starts anew takes about 20,000.
const EVENTS_A_SECOND_MAX: u32 = 60_000;
/// Lines kept for the report of a failure, unless `MESHD_SIM_LINES` asks for more.
const LOG_LINES: usize = 60;

#[derive(Debug)]
pub(crate) enum Event {
    Connect(Line),
    Request(Line, Command),
    Answer(Line, Answer),
    Tick(Line),
    Round { node: usize, incarnation: u64 },
    Notes { node: usize, incarnation: u64 },
    DumpFirst { node: usize, incarnation: u64 },
    DumpSecond { node: usize, incarnation: u64 },
    PeriodicDump { node: usize, incarnation: u64 },
    Persist { node: usize, incarnation: u64 },
    Publish { node: usize, incarnation: u64 },
    Control { cluster: usize },
    Fault,
    Repair(Repair),
}

#[derive(Debug)]
pub(crate) struct World {
    pub(crate) seed: u64,
    pub(crate) agenda: Agenda<Event>,
    pub(crate) rng: Rng,
    pub(crate) nodes: Vec<Node>,
    pub(crate) stores: Vec<Store<(Line, Target)>>,
    pub(crate) controls: Vec<Control>,
    /// Pairs of node and cluster whose store it cannot reach.
    pub(crate) cuts: BTreeSet<(usize, usize)>,
    /// What was really withdrawn at some time: node and prefix.
    pub(crate) withdrawn: BTreeSet<(usize, IpNet)>,
    /// Every row a good record ever described.
    pub(crate) ever_good: BTreeSet<(usize, Vec<IpNet>)>,
    pub(crate) refusals_seen: BTreeSet<String>,
    pub(crate) sabotage: Option<Sabotage>,
    pub(crate) hostile: Option<usize>,
    pub(crate) chaos_until: Duration,
    pub(crate) actions: u64,
    pub(crate) next_store_id: u64,
    pub(crate) failure: Option<String>,
    /// Events so far.
    steps: u64,
    /// Events of the current second of virtual time.
    busy: (u64, u32),
    /// Keys the hostile cluster wrote.
    pub(crate) evil_keys: BTreeSet<String>,
    log: VecDeque<(Duration, String)>,
    log_lines: usize,
}

impl World {
    pub(crate) fn new(seed: u64, sabotage: Option<Sabotage>) -> Self {
        let mut rng = Rng::new(seed);
        let nodes = (0..NODES).map(new_node).collect();
        let hostile = (!rng.one_in(3)).then(|| rng.below(CLUSTERS));
        let mut world = Self {
            seed,
            agenda: Agenda::new(),
            rng,
            nodes,
            stores: (0..CLUSTERS).map(|cluster| Store::new(1000 + cluster as u64)).collect(),
            controls: (0..CLUSTERS).map(|_| Control::default()).collect(),
            cuts: BTreeSet::new(),
            withdrawn: BTreeSet::new(),
            ever_good: BTreeSet::new(),
            refusals_seen: BTreeSet::new(),
            sabotage,
            hostile,
            chaos_until: Duration::ZERO,
            actions: 0,
            next_store_id: 2000,
            failure: None,
            steps: 0,
            busy: (0, 0),
            evil_keys: BTreeSet::new(),
            log: VecDeque::new(),
            log_lines: super::number("MESHD_SIM_LINES").map_or(LOG_LINES, |n| usize::try_from(n).unwrap_or(LOG_LINES)),
        };
        for cluster in 0..CLUSTERS {
            world.controls[cluster].waits_for = (cluster * 10..cluster * 10 + 10).collect();
            world.controls[cluster].canaries_at = Some(CANARY_DEADLINE);
            world.agenda.at(Duration::ZERO, Event::Control { cluster });
        }
        for node in 0..NODES {
            world.start_node(node);
        }
        world
    }

    /// Runs until `end`, or until an invariant is broken.
    pub(crate) fn run_until(&mut self, end: Duration) -> bool {
        while self.failure.is_none() {
            let Some(event) = self.agenda.pop(end) else { break };
            self.step(event);
        }
        self.agenda.now = end.max(self.agenda.now);
        self.failure.is_none()
    }

    pub(crate) fn note(&mut self, line: impl FnOnce() -> String) {
        if self.log.len() >= self.log_lines {
            self.log.pop_front();
        }
        self.log.push_back((self.agenda.now, line()));
    }

    pub(crate) fn fail(&mut self, what: String) {
        if self.failure.is_none() {
            let lines: Vec<String> =
                self.log.iter().map(|(at, line)| format!("  {:>10.3} s  {line}", at.as_secs_f64())).collect();
            let (seed, step, now) = (self.seed, self.steps, self.agenda.now.as_secs_f64());
            self.failure = Some(format!(
                "seed {seed}, step {step}, at {now:.3} s: {what}\n\
                 run it again: MESHD_SIM_SEED={seed} MESHD_SIM_LINES=1000 cargo nextest run -p simulation every_seed\n\
                 last events:\n{}",
                lines.join("\n")
            ));
        }
    }

    pub(crate) fn start_node(&mut self, node: usize) {
        let now = self.agenda.now;
        let seed = self.rng.next();
        let commands = self.nodes[node].start(now, seed, self.sabotage);
        let incarnation = self.nodes[node].incarnation;
        for (cluster, commands) in commands {
            self.carry_out(node, cluster, commands);
        }
        self.ask_dump(node);
        let delay = self.rng.ms(0, 3_000);
        self.agenda.after(delay, Event::Publish { node, incarnation });
        self.agenda.after(DUMP, Event::PeriodicDump { node, incarnation });
        self.wake(node);
    }

    pub(crate) fn kill_node(&mut self, node: usize) {
        self.nodes[node].life = None;
        for store in &mut self.stores {
            store.watches.retain(|watch| watch.who.0.node != node);
        }
    }

    /// A round of the node soon, unless one is due.
    pub(crate) fn wake(&mut self, node: usize) {
        let delay = self.rng.ms(0, 20);
        let incarnation = self.nodes[node].incarnation;
        if let Some(life) = &mut self.nodes[node].life
            && !std::mem::replace(&mut life.round_due, true)
        {
            self.agenda.after(delay, Event::Round { node, incarnation });
        }
    }

    pub(crate) fn ask_dump(&mut self, node: usize) {
        let delay = self.rng.ms(1, 30);
        let incarnation = self.nodes[node].incarnation;
        if let Some(life) = &mut self.nodes[node].life {
            if self.sabotage == Some(Sabotage::DumpOnce) && life.dumped {
            } else if life.dumping {
                life.dump_asked = true;
            } else {
                life.dumping = true;
                life.dumped = true;
                self.agenda.after(delay, Event::DumpFirst { node, incarnation });
            }
        }
    }

    /// The kernel of the node has something to tell.
    pub(crate) fn poke(&mut self, node: usize) {
        let delay = self.rng.ms(0, 50) * self.nodes[node].slow;
        let incarnation = self.nodes[node].incarnation;
        let told = self.nodes[node].kernel.has_notes();
        if let Some(life) = &mut self.nodes[node].life
            && told
            && !std::mem::replace(&mut life.notes_due, true)
        {
            self.agenda.after(delay, Event::Notes { node, incarnation });
        }
    }

    fn step(&mut self, event: Event) {
        let now = self.agenda.now;
        self.steps += 1;
        self.busy = if self.busy.0 == now.as_secs() { (self.busy.0, self.busy.1 + 1) } else { (now.as_secs(), 1) };
        if self.busy.1 > EVENTS_A_SECOND_MAX {
            self.fail(format!("more than {EVENTS_A_SECOND_MAX} events in a second; one of them: {event:?}"));
        }
        match event {
            Event::Connect(line) => self.connect(line),
            Event::Request(line, command) => self.request(line, command),
            Event::Answer(line, answer) => self.answer(line, answer),
            Event::Tick(line) => self.tick(line),
            Event::Round { node, incarnation } => {
                if let Some(life) = self.process(node, incarnation) {
                    life.round_due = false;
                    life.wake_at = life.wake_at.filter(|at| *at > now);
                    self.round(node);
                }
            }
            Event::Notes { node, incarnation } => {
                if let Some(life) = self.process(node, incarnation) {
                    life.notes_due = false;
                    // While a dump is read, what is told waits.
                    if !life.dumping {
                        self.read_kernel(node);
                    }
                }
            }
            Event::DumpFirst { node, incarnation } => {
                if self.process(node, incarnation).is_some() {
                    self.nodes[node].dump_first();
                    let delay = self.rng.ms(0, 40);
                    self.agenda.after(delay, Event::DumpSecond { node, incarnation });
                }
            }
            Event::DumpSecond { node, incarnation } => self.dump_second(node, incarnation),
            Event::PeriodicDump { node, incarnation } => {
                if self.process(node, incarnation).is_some() {
                    self.ask_dump(node);
                    self.agenda.after(DUMP, Event::PeriodicDump { node, incarnation });
                }
            }
            Event::Persist { node, incarnation } => {
                if let Some(life) = self.process(node, incarnation) {
                    life.persist_due = false;
                    self.nodes[node].persist();
                }
            }
            Event::Publish { node, incarnation } => {
                if self.process(node, incarnation).is_some() {
                    self.publish(node);
                    self.agenda.after(PUBLISH, Event::Publish { node, incarnation });
                }
            }
            Event::Control { cluster } => {
                self.control(cluster);
                self.agenda.after(Duration::from_secs(5), Event::Control { cluster });
            }
            Event::Fault => self.inject_fault(),
            Event::Repair(repair) => self.repair(repair),
        }
    }

    pub(crate) fn process(&mut self, node: usize, incarnation: u64) -> Option<&mut Life> {
        let node = &mut self.nodes[node];
        if node.incarnation == incarnation { node.life.as_mut() } else { None }
    }

    fn round(&mut self, node: usize) {
        let now = self.agenda.now;
        let round = self.nodes[node].round(now, self.sabotage);
        if let Some(problem) = round.problem {
            self.fail(format!("node {node}: {problem}"));
        }
        for (action, result) in &round.done {
            self.actions += 1;
            self.note(|| {
                format!(
                    "node {node}: {action}{}",
                    result.as_ref().err().map_or(String::new(), |e| format!(" -> {e:?}"))
                )
            });
            if let Ok(removed) = result {
                for prefix in removed {
                    self.check_removal(node, *prefix, action);
                }
                self.check_addition(node, action);
            }
        }
        self.check_node(node);
        if round.wants_dump {
            self.ask_dump(node);
        }
        let incarnation = self.nodes[node].incarnation;
        if let Some(life) = &mut self.nodes[node].life
            && let Some(wake) = round.wake
            && life.wake_at.is_none_or(|at| wake < at)
        {
            let wake = wake.max(now + Duration::from_millis(1));
            life.wake_at = Some(wake);
            self.agenda.at(wake, Event::Round { node, incarnation });
        }
        if round.touched_nodes {
            let delay = self.rng.ms(0, 3_000);
            if let Some(life) = &mut self.nodes[node].life
                && !std::mem::replace(&mut life.persist_due, true)
            {
                self.agenda.after(delay, Event::Persist { node, incarnation });
            }
        }
        self.poke(node);
    }

    fn read_kernel(&mut self, node: usize) {
        let now = self.agenda.now;
        if self.nodes[node].read_kernel(now) {
            self.ask_dump(node);
        }
        self.wake(node);
    }

    fn dump_second(&mut self, node: usize, incarnation: u64) {
        let now = self.agenda.now;
        let Some(life) = self.process(node, incarnation) else { return };
        life.dumping = false;
        let again = std::mem::take(&mut life.dump_asked);
        self.nodes[node].dump_second(now);
        if again {
            self.ask_dump(node);
        }
        self.read_kernel(node);
    }
}

/// The truth at the start. Every fifth node has an address in a second network, every third speaks IPv6 as well.
fn new_node(index: usize) -> Node {
    let (cluster, place) = (index / 10, index % 10);
    let parse = |text: String| -> IpNet { text.parse().expect("a prefix") };
    let address = |text: String| -> IpAddr { text.parse().expect("an address") };
    let mut addresses = vec![address(format!("172.18.{cluster}.{}", place + 1))];
    let mut pod_cidrs = vec![parse(format!("10.{}.{place}.0/24", 10 + cluster))];
    if index.is_multiple_of(5) {
        addresses.push(address(format!("172.19.{cluster}.{}", place + 1)));
    }
    if index.is_multiple_of(3) {
        addresses.push(address(format!("fdaa::{}:{}", cluster + 1, place + 1)));
        pod_cidrs.push(parse(format!("fd0{cluster}:{place}::/64")));
    }
    let connected = vec![
        Connected { link: IfIndex(2), prefix: parse("172.18.0.0/16".to_owned()) },
        Connected { link: IfIndex(3), prefix: parse("172.19.0.0/16".to_owned()) },
        Connected { link: IfIndex(2), prefix: parse("fdaa::/64".to_owned()) },
    ];
    Node {
        index,
        cluster,
        name: format!("n{place}").parse().expect("a node name"),
        addresses,
        pod_cidrs,
        configured: (0..CLUSTERS).collect(),
        member: true,
        memory: Memory::default(),
        kernel: Kernel::new(connected),
        life: None,
        incarnation: 0,
        skew: SignedDuration::ZERO,
        slow: 1,
        amnesia: false,
        told: BTreeMap::new(),
        down: BTreeMap::new(),
        hand_made: BTreeSet::new(),
        unread: BTreeSet::new(),
    }
}

/// The link an address of the mesh is on.
pub(crate) fn link_of(address: IpAddr) -> IfIndex {
    match address {
        IpAddr::V4(v4) if v4.octets()[1] == 19 => IfIndex(3),
        IpAddr::V4(_) | IpAddr::V6(_) => IfIndex(2),
    }
}
