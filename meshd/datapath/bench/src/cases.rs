//! What is measured, and what it may cost.

use aya::programs::ProgramFd;
use meshd_abi::{Counter, Reason, V4, V6};
use meshd_datapath::{Program, Programs};

use crate::{
    driver::{Driver, Layer, Sample},
    world::{self, Aim, Side, TCP_ACK, TCP_SYN},
};

/// Measurements of a case with few flows, and packets of each: short ones find the moments in which the machine does nothing else.
const ROUNDS: usize = 61;
const REPEAT: u32 = 50_000;
/// The same with more flows than this, of which each is to be met, and of first packets.
const MANY: u32 = 10_000;
const ROUNDS_MANY: usize = 15;
const REPEAT_MANY: u32 = 200_000;
/// First packets of one measurement: with a table that is empty, and with one that is nearly full. Each makes two entries.
const NEW: u32 = 25_000;
const NEW_NEARLY_FULL: u32 = 5_000;

/// A program on packets of a kind.
pub(crate) struct Case {
    /// Name of the figure.
    pub(crate) name: String,
    program: Program,
    aim: Aim,
    /// Number of flows, or what the table of connections is like when connections begin.
    flows: Flows,
    /// What each packet must be counted as.
    reason: Reason,
    /// Most it may cost, in empty XDP programs.
    pub(crate) target: Option<f64>,
    is_ipv4: bool,
}

#[derive(Clone, Copy)]
enum Flows {
    Known(u32),
    New { full: bool },
}

/// All of them.
pub(crate) fn all() -> Vec<Case> {
    use Program::{UplinkEgress, WorkloadIngress, XdpUplink};
    let new = |full| Flows::New { full };
    let known = Flows::Known;
    let list = [
        ("miss", XdpUplink, Aim::Nobody, known(1), Reason::Passed, Some(3.0)),
        ("dnat-1", XdpUplink, Aim::Kept, known(1), Reason::ToBackend, Some(6.5)),
        ("dnat-1k", XdpUplink, Aim::Kept, known(1_000), Reason::ToBackend, Some(6.5)),
        ("dnat-100k", XdpUplink, Aim::Kept, known(100_000), Reason::ToBackend, Some(16.5)),
        ("dnat-fib-1", XdpUplink, Aim::Routed, known(1), Reason::ToBackend, Some(14.5)),
        ("dnat-fib-1k", XdpUplink, Aim::Routed, known(1_000), Reason::ToBackend, Some(14.5)),
        ("snat-1", XdpUplink, Aim::Replaced, known(1), Reason::ToBackend, Some(7.5)),
        ("snat-1k", XdpUplink, Aim::Replaced, known(1_000), Reason::ToBackend, Some(7.5)),
        ("snat-100k", XdpUplink, Aim::Replaced, known(100_000), Reason::ToBackend, Some(16.5)),
        ("reply-1", XdpUplink, Aim::Answer, known(1), Reason::Reply, Some(6.0)),
        ("reply-1k", XdpUplink, Aim::Answer, known(1_000), Reason::Reply, Some(6.0)),
        ("reply-100k", XdpUplink, Aim::Answer, known(100_000), Reason::Reply, Some(16.5)),
        ("new-dnat-fresh", XdpUplink, Aim::Local, new(false), Reason::NewConnection, Some(55.0)),
        ("new-dnat-full", XdpUplink, Aim::Local, new(true), Reason::NewConnection, Some(55.0)),
        ("new-snat-fresh", XdpUplink, Aim::Replaced, new(false), Reason::NewConnection, Some(105.0)),
        ("new-snat-full", XdpUplink, Aim::Replaced, new(true), Reason::NewConnection, Some(105.0)),
        ("masquerade-1", UplinkEgress, Aim::World, known(1), Reason::Masqueraded, None),
        ("masquerade-1k", UplinkEgress, Aim::World, known(1_000), Reason::Masqueraded, None),
        ("masquerade-100k", UplinkEgress, Aim::World, known(100_000), Reason::Masqueraded, None),
        ("tc-miss", WorkloadIngress, Aim::Nobody, known(1), Reason::Passed, None),
        ("tc-dnat-1", WorkloadIngress, Aim::Internal, known(1), Reason::ToBackend, None),
        ("tc-dnat-100k", WorkloadIngress, Aim::Internal, known(100_000), Reason::ToBackend, None),
    ];
    let case = |is_ipv4| {
        list.map(|(name, program, aim, flows, reason, target)| Case {
            name: format!("{}-{name}", if is_ipv4 { "ipv4" } else { "ipv6" }),
            program,
            aim,
            flows,
            reason,
            target: target.filter(|_| is_ipv4),
            is_ipv4,
        })
    };
    [true, false].into_iter().flat_map(case).collect()
}

impl Case {
    /// Measures it.
    pub(crate) fn measure(&self, driver: &mut Driver, programs: &Programs) -> anyhow::Result<Vec<Sample>> {
        if self.is_ipv4 { self.measure_in::<V4>(driver, programs) } else { self.measure_in::<V6>(driver, programs) }
    }

    fn measure_in<A: Side>(&self, driver: &mut Driver, programs: &Programs) -> anyhow::Result<Vec<Sample>> {
        let layer = if self.program == Program::XdpUplink { Layer::Xdp } else { Layer::Tc };
        let program = descriptor(programs, self.program)?;
        let maps = &programs.maps;
        let (packets, repeat, rounds) = match self.flows {
            Flows::Known(flows) => {
                let (repeat, rounds) = if flows > MANY { (REPEAT_MANY, ROUNDS_MANY) } else { (REPEAT, ROUNDS) };
                if self.aim != Aim::Nobody {
                    world::know::<A>(maps, self.aim, flows)?;
                }
                (world::packets::<A>(self.aim, flows, TCP_ACK), repeat, rounds)
            }
            Flows::New { full } => {
                let repeat = if full { NEW_NEARLY_FULL } else { NEW };
                let room = if A::IS_V4 { crate::CONNECTIONS } else { crate::CONNECTIONS.div_ceil(4) };
                world::fill::<A>(maps, if full { room - 3 * repeat } else { 0 })?;
                (world::packets::<A>(self.aim, 0, TCP_SYN), repeat, ROUNDS_MANY)
            }
        };
        let mut samples = Vec::new();
        for _ in 0..rounds {
            if matches!(self.flows, Flows::New { .. }) {
                world::forget_new::<A>(maps)?;
                crate::drain_events(programs)?;
            }
            let before = count(programs, self.reason)?;
            samples.push(driver.sample(&program, layer, &packets, repeat)?);
            let counted = count(programs, self.reason)?.wrapping_sub(before);
            anyhow::ensure!(
                counted == u64::from(repeat),
                "{} of {repeat} packets were counted as {}: {}",
                counted,
                self.reason.word(),
                all_counts(programs)?
            );
        }
        Ok(samples)
    }
}

fn descriptor(programs: &Programs, program: Program) -> anyhow::Result<ProgramFd> {
    let loaded = programs.object().program(program.name());
    Ok(loaded.ok_or_else(|| anyhow::anyhow!("no program {}", program.name()))?.fd()?.try_clone()?)
}

fn count(programs: &Programs, reason: Reason) -> anyhow::Result<u64> {
    let copies = programs.maps.counters.get(reason as u32)?;
    Ok(copies.into_iter().fold(Counter::default(), Counter::plus).packets)
}

fn all_counts(programs: &Programs) -> anyhow::Result<String> {
    let mut text = String::new();
    for reason in Reason::ALL {
        text.push_str(&format!("{} {}, ", reason.word(), count(programs, *reason)?));
    }
    Ok(text)
}
