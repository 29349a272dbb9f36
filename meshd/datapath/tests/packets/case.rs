//! A row of a table: packets, and what is to become of each.
//!
//! Whatever a row expects, the runner also asks that the verdict is one the hook knows, that exactly one counter moves and by the
//! length of the packet, that every sum of a packet out is right, that a packet that passes unclaimed is the packet that came, and
//! that there is one flow event for a connection that begins, moves or ends and for a packet that is dropped, and none for others. At
//! the link of a workload that is so for TCP connections that nobody translates, too.
//!
//! What a test run cannot show: an skb whose sum is still to be computed by the device (`CHECKSUM_PARTIAL`), which is what packets of
//! local sockets look like, one whose bytes are paged, and a redirect carried out. The tests on real links have those.

use std::{cell::RefCell, path::Path};

use aya::{
    maps::{Map, MapData, RingBuf},
    programs::{Program as Loaded, TestRun, TestRunOptions},
};
use meshd_abi::{FlowEvent, LAYOUT_VERSION, Reason, event_kind};
use meshd_datapath::{Program, Programs};

use crate::{
    bench::{in_namespaces, links, load},
    frame::{Frame, verify},
    scene::{LINK, Scene},
};

/// What a program says about a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// On to the stack, or out.
    Pass,
    Drop,
    /// XDP: out by the link it came from.
    Back,
    /// By another link; in TC by any.
    Redirect,
}
use Verdict::{Back, Drop, Pass, Redirect};

impl Verdict {
    fn of(program: Program, value: u32) -> Option<Self> {
        match (program, value) {
            (Program::XdpUplink, 1) => Some(Drop),
            (Program::XdpUplink, 2) => Some(Pass),
            (Program::XdpUplink, 3) => Some(Back),
            (Program::XdpUplink, 4) => Some(Redirect),
            (Program::XdpUplink, _) => None,
            // To the next program, `TC_ACT_UNSPEC`.
            (_, u32::MAX) => Some(Pass),
            (_, 2) => Some(Drop),
            (_, 7) => Some(Redirect),
            _ => None,
        }
    }
}

enum Step {
    Change(Box<dyn Fn(&Scene<'_>)>),
    Packet(Expected),
}

/// A packet and what is to become of it.
struct Expected {
    program: Program,
    packet: Vec<u8>,
    verdict: Verdict,
    /// `None`: it does not matter, it was dropped.
    out: Option<Vec<u8>>,
    counter: Option<Reason>,
    /// What is counted besides, without the packet's length.
    noted: Option<Reason>,
}

/// A row: changes of the scene and packets, in order.
pub(crate) struct Case {
    name: String,
    steps: Vec<Step>,
}

/// Begins a row.
pub(crate) fn case(name: impl Into<String>) -> Case {
    Case { name: name.into(), steps: Vec::new() }
}

impl Case {
    /// Changes the scene, or looks at it.
    pub(crate) fn given(mut self, change: impl Fn(&Scene<'_>) + 'static) -> Self {
        self.steps.push(Step::Change(Box::new(change)));
        self
    }

    /// A packet that leaves as another one.
    pub(crate) fn becomes(
        self,
        program: Program,
        packet: &Frame,
        verdict: Verdict,
        out: &Frame,
        counter: Reason,
    ) -> Self {
        self.step(program, packet.bytes(), verdict, Some(out.bytes()), Some(counter))
    }

    /// A packet that ends here.
    pub(crate) fn drops(self, program: Program, packet: &Frame, counter: Reason) -> Self {
        self.step(program, packet.bytes(), Drop, None, Some(counter))
    }

    /// A packet that is not claimed.
    pub(crate) fn passes(self, program: Program, packet: &Frame) -> Self {
        self.passes_bytes(program, &packet.bytes(), Some(Reason::Passed))
    }

    /// A packet that goes on as it came, and what it is counted as.
    pub(crate) fn passes_as(self, program: Program, packet: &Frame, counter: Reason) -> Self {
        self.passes_bytes(program, &packet.bytes(), Some(counter))
    }

    /// A packet that goes on as it came, while something else is counted besides.
    pub(crate) fn passes_noting(mut self, program: Program, packet: &Frame, noted: Reason) -> Self {
        let (packet, counter) = (packet.bytes(), Some(Reason::Passed));
        let out = Some(packet.clone());
        self.steps.push(Step::Packet(Expected { program, packet, verdict: Pass, out, counter, noted: Some(noted) }));
        self
    }

    /// The same for bytes that are no good frame.
    pub(crate) fn passes_bytes(self, program: Program, packet: &[u8], counter: Option<Reason>) -> Self {
        self.step(program, packet.to_vec(), Pass, Some(packet.to_vec()), counter)
    }

    /// Bytes that leave as others.
    pub(crate) fn becomes_bytes(
        self,
        program: Program,
        packet: &[u8],
        verdict: Verdict,
        out: &[u8],
        counter: Reason,
    ) -> Self {
        self.step(program, packet.to_vec(), verdict, Some(out.to_vec()), Some(counter))
    }

    /// Bytes that end here.
    pub(crate) fn drops_bytes(self, program: Program, packet: &[u8], counter: Reason) -> Self {
        self.step(program, packet.to_vec(), Drop, None, Some(counter))
    }

    fn step(
        mut self,
        program: Program,
        packet: Vec<u8>,
        verdict: Verdict,
        out: Option<Vec<u8>>,
        counter: Option<Reason>,
    ) -> Self {
        self.steps.push(Step::Packet(Expected { program, packet, verdict, out, counter, noted: None }));
        self
    }
}

/// The loaded programs.
pub(crate) struct Machine {
    pub programs: Programs,
    events: RefCell<RingBuf<MapData>>,
}

/// What became of a packet.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Outcome {
    pub verdict: Option<Verdict>,
    pub out: Vec<u8>,
    /// The counters that moved, with packets and bytes.
    pub counted: Vec<(Reason, u64, u64)>,
    pub events: Vec<FlowEvent>,
}

impl Machine {
    pub(crate) fn scene(&self) -> Scene<'_> {
        Scene { maps: &self.programs.maps }
    }

    /// All counters, in the order of their reasons.
    pub(crate) fn counters(&self) -> Vec<meshd_abi::Counter> {
        self.programs.maps.counters.sums(Reason::COUNT, meshd_abi::Counter::plus).expect("the counters")
    }

    /// Runs a program on bytes.
    pub(crate) fn run(&self, program: Program, packet: &[u8]) -> Outcome {
        let before = self.counters();
        let (value, out) = self.run_uncounted(program, packet);
        let after = self.counters();
        let moved = |(at, reason): (usize, &Reason)| {
            let packets = after[at].packets - before[at].packets;
            (packets != 0).then(|| (*reason, packets, after[at].bytes - before[at].bytes))
        };
        let counted = Reason::ALL.iter().enumerate().filter_map(moved).collect();
        Outcome { verdict: Verdict::of(program, value), out, counted, events: self.take_events() }
    }

    /// The flow events since the last call.
    pub(crate) fn take_events(&self) -> Vec<FlowEvent> {
        let mut ring = self.events.borrow_mut();
        let mut events = Vec::new();
        while let Some(record) = ring.next() {
            assert_eq!(record.len(), size_of::<FlowEvent>());
            // SAFETY: the record is as long as the type, of which any bytes are a value.
            events.push(unsafe { record.as_ptr().cast::<FlowEvent>().read_unaligned() });
        }
        events
    }

    /// Runs a program on bytes without looking at counters.
    pub(crate) fn run_uncounted(&self, program: Program, packet: &[u8]) -> (u32, Vec<u8>) {
        let mut out = vec![0; packet.len() + 256];
        // `struct __sk_buff` up to `ifindex`; XDP runs arrive at the loopback without being told.
        let mut context = [0; 44];
        context[40..].copy_from_slice(&LINK.to_ne_bytes());
        let mut options = TestRunOptions { data_in: Some(packet), data_out: Some(&mut out), ..TestRunOptions::new() };
        let result = match self.programs.object().program(program.name()).expect("it is in the object") {
            Loaded::Xdp(xdp) => xdp.test_run(options),
            Loaded::SchedClassifier(classifier) => {
                options.ctx_in = Some(&context);
                classifier.test_run(options)
            }
            other => unreachable!("{other:?}"),
        };
        let result = result.unwrap_or_else(|error| panic!("{program:?} on {} octets: {error:?}", packet.len()));
        out.truncate(result.data_size_out as usize);
        (result.return_value, out)
    }

    fn check(&self, case: &Case) -> Result<(), String> {
        let scene = self.scene();
        scene.reset();
        let mut number = 0;
        for step in &case.steps {
            match step {
                Step::Change(change) => {
                    change(&scene);
                    scene.maps.forget_recent().expect("another epoch");
                }
                Step::Packet(expected) => {
                    number += 1;
                    let (known, closing) = (scene.connections(), scene.closing());
                    let untranslated = scene.told_untranslated(expected.program, &expected.packet);
                    let outcome = self.run(expected.program, &expected.packet);
                    // An entry is taken over in its place by the next connection with the same tuple.
                    let begins = [Reason::DsrReceived, Reason::Masqueraded, Reason::Passed];
                    let may_begin = expected.counter.is_some_and(|counter| begins.contains(&counter));
                    let is_taken_over = may_begin && scene.closing() < closing;
                    let has_begun = scene.connections() > known || is_taken_over;
                    // Cases have one connection: its second goodbye is not told.
                    let has_ended = closing == 0 && scene.closing() > 0;
                    let told = expected.events(has_begun, has_ended, untranslated);
                    expected.compare(&outcome, &told).map_err(|error| {
                        let (packet, out) = (hex(&expected.packet), hex(&outcome.out));
                        let program = expected.program.name();
                        format!("packet {number}, {program}: {error}\n  in  {packet}\n  out {out}")
                    })?;
                    self.check_remembered(expected, &outcome).map_err(|error| format!("packet {number}: {error}"))?;
                }
            }
        }
        Ok(())
    }
}

impl Machine {
    /// A packet of a known connection gets the same when it comes again: once the entry was looked up and noted, then what was noted is
    /// used.
    fn check_remembered(&self, expected: &Expected, first: &Outcome) -> Result<(), String> {
        if !matches!(expected.counter, Some(Reason::ToBackend | Reason::Reply)) || !first.events.is_empty() {
            return Ok(());
        }
        for time in 2..=3 {
            let again = self.run(expected.program, &expected.packet);
            if again != *first {
                return Err(format!("time {time}: {again:?} instead of {first:?}"));
            }
        }
        Ok(())
    }
}

impl Expected {
    fn compare(&self, outcome: &Outcome, events: &[u8]) -> Result<(), String> {
        if outcome.verdict != Some(self.verdict) {
            return Err(format!("{:?} instead of {:?}, counted {:?}", outcome.verdict, self.verdict, outcome.counted));
        }
        let mut counted: Vec<_> = self.counter.iter().map(|reason| (*reason, 1, self.packet.len() as u64)).collect();
        counted.extend(self.noted.iter().map(|reason| (*reason, 1, 0)));
        if outcome.counted != counted {
            return Err(format!("counted {:?} instead of {counted:?}", outcome.counted));
        }
        let told: Vec<u8> = outcome.events.iter().map(|event| event.kind).collect();
        if told != events {
            return Err(format!("events of kinds {told:?} instead of {events:?}"));
        }
        let Some(out) = &self.out else { return Ok(()) };
        if outcome.out != *out {
            return Err(format!("another packet\n  not {}", hex(out)));
        }
        // What passes may be as broken as it came.
        if *out == self.packet { Ok(()) } else { verify(&outcome.out) }
    }

    /// The kinds of events that this packet makes when it is counted as it should; `untranslated`: what it makes when it passes.
    fn events(&self, has_begun: bool, has_ended: bool, untranslated: Option<u8>) -> Vec<u8> {
        let Some(reason) = self.counter else { return Vec::new() };
        let is_replaced = reason == Reason::NewConnection && !has_begun;
        let rows = [
            (has_begun || is_replaced && is_syn(&self.packet), event_kind::NEW),
            (is_replaced && !is_syn(&self.packet), event_kind::CHANGE),
            (has_ended, event_kind::CLOSE),
            // A connection may begin with a packet that then cannot go its way.
            // What a stranger says of itself in a note is told to nobody.
            (reason.is_drop() && !matches!(reason, Reason::DsrRefused | Reason::TunnelRefused), event_kind::DROP),
        ];
        let passed = untranslated.filter(|_| reason == Reason::Passed);
        rows.into_iter().filter(|(is_told, _)| *is_told).map(|(_, kind)| kind).chain(passed).collect()
    }
}

fn is_syn(packet: &[u8]) -> bool {
    let parsed = etherparse::SlicedPacket::from_ethernet(packet).ok().and_then(|parsed| parsed.transport);
    matches!(parsed, Some(etherparse::TransportSlice::Tcp(tcp)) if tcp.syn() && !tcp.ack())
}

fn hex(bytes: &[u8]) -> String {
    let words: Vec<String> =
        bytes.chunks(2).map(|pair| pair.iter().map(|byte| format!("{byte:02x}")).collect::<String>()).collect();
    words.join(" ")
}

/// Gives a test the loaded programs in namespaces of their own.
pub(crate) fn with_machine(test: impl FnOnce(&Machine) + Send + 'static) {
    in_namespaces(|folder| {
        links();
        let programs = load(&folder);
        let pin = folder.join(format!("v{LAYOUT_VERSION}/EVENTS"));
        let machine = Machine { programs, events: RefCell::new(events(&pin)) };
        machine.scene().reset();
        test(&machine);
        machine.programs.remove().expect("remove");
    });
}

fn events(pin: &Path) -> RingBuf<MapData> {
    let map = Map::RingBuf(MapData::from_pin(pin).expect("the pinned ring"));
    RingBuf::try_from(map).expect("a ring")
}

/// Runs a table, and fails with all rows that failed.
pub(crate) fn run(cases: fn() -> Vec<Case>) {
    with_machine(move |machine| {
        let cases = cases();
        let failed: Vec<String> = cases
            .iter()
            .filter_map(|case| machine.check(case).err().map(|error| format!("{}: {error}", case.name)))
            .collect();
        assert!(failed.is_empty(), "{} of {} cases failed\n\n{}", failed.len(), cases.len(), failed.join("\n\n"));
        println!("{} cases", cases.len());
    });
}
