//! How long user space takes to write tables.

use std::{collections::BTreeMap, time::Instant};

use anyhow::{bail, ensure};
use meshd_abi::{Identity, V4};
use meshd_core::{
    desired::{Backend, BackendState, Frontend, FrontendKind, Service, ServicePort},
    maglev::Slots,
    observed::{ForwardingMode, Protocol, ServiceName},
    plan::datapath::{Carried, Existing, ServicePlanner, ServiceSettings, Write},
};
use meshd_datapath::{Maps, Programs};

use crate::{
    report::{Better, Figure, Machine, median},
    world::Side as _,
};

/// Identities that are written at once, rounds, and seconds they may take.
const IDENTITIES: u32 = 500_000;
const IDENTITY_ROUNDS: usize = 5;
const IDENTITY_S_MAX: f64 = 1.0;
/// Backends of the large service, changes, and milliseconds one may take.
const BACKENDS: u16 = 10_000;
const CHANGES: usize = 40;
const CHANGE_MS_MAX: f64 = 2.0;
/// Room for all of it twice, in front of what other cases write.
const BACKENDS_ROOM: u32 = 30_000;
const MEMBERS_ROOM: u32 = 60_000;
const CHUNKS_ROOM: u32 = 64;
/// Above the numbers of services of other cases.
const LAST_ID: u32 = 1_000_000;

/// Writes the identities of a large mesh.
pub(crate) fn identities(programs: &Programs, machine: &Machine) -> anyhow::Result<Figure> {
    let table = &programs.maps.v4.identities;
    let keys: Vec<V4> = (0..IDENTITIES).map(|number| V4::of(0x0a00_0000 + number)).collect();
    let values: Vec<Identity> =
        (0..IDENTITIES).map(|number| Identity { identity: number, way: 1, flags: 0, cluster: 7 }).collect();
    let mut runs = Vec::new();
    for _ in 0..IDENTITY_ROUNDS {
        let start = Instant::now();
        table.put_all(&keys, &values)?;
        runs.push(start.elapsed().as_secs_f64());
        table.remove_all(&keys)?;
    }
    Ok(figure("fill-identities-500000", "s", runs, IDENTITY_S_MAX, machine))
}

/// Takes a backend out of a large service and puts it back, until the kernel has all that follows from it: planned and written as the daemon
/// does.
pub(crate) fn service(programs: &Programs, machine: &Machine) -> anyhow::Result<Figure> {
    let maps = &programs.maps;
    let settings = ServiceSettings {
        slots: Some(Slots::Large),
        seed: 7_606,
        mode: ForwardingMode::Snat,
        backends: BACKENDS_ROOM,
        members: MEMBERS_ROOM,
        chunks: CHUNKS_ROOM,
        ranges: 1,
    };
    let mut planner = ServicePlanner::new(settings, Existing { last_id: LAST_ID, ..Existing::default() });
    let name = ServiceName { namespace: "default".into(), name: "large".into() };
    let all: Vec<Backend> = (0..BACKENDS).map(backend).collect();
    let mut change = |backends: &[Backend]| -> anyhow::Result<f64> {
        let wanted = of(backends);
        planner.begin_round();
        let start = Instant::now();
        let plan = planner.plan(&name, Some(&wanted), |_| 1);
        ensure!(plan.problems.is_empty() && !plan.writes.is_empty(), "{:?}", plan.problems);
        for write in &plan.writes {
            carry_out(maps, write)?;
        }
        let elapsed = start.elapsed().as_secs_f64() * 1_000.0;
        planner.done(&name, Carried::All);
        // Nobody uses the backend that went.
        for write in &planner.release(|_, _| false).writes {
            carry_out(maps, write)?;
        }
        Ok(elapsed)
    };
    change(&all)?;
    let mut runs = Vec::new();
    for round in 0..CHANGES / 2 {
        let mut without = all.clone();
        without.remove(round * 451 % all.len());
        runs.push(change(&without)?);
        runs.push(change(&all)?);
    }
    Ok(figure("service-10000-backends-change", "ms", runs, CHANGE_MS_MAX, machine))
}

fn backend(number: u16) -> Backend {
    Backend {
        address: V4::of(0x0a09_0000 + u32::from(number)).ip(),
        port: 8_080,
        cluster: "east".parse().expect("a name"),
        node: None,
        state: BackendState::Active,
        preferred: true,
        used: true,
        weight: 100,
        local: false,
        zone: None,
        near: false,
    }
}

fn of(backends: &[Backend]) -> Service {
    let frontend = Frontend { address: V4::of(0xc000_0214).ip(), port: 80, kind: FrontendKind::ClusterIp };
    let port = ServicePort {
        name: "http".into(),
        protocol: Protocol::Tcp,
        port: 80,
        node_port: None,
        frontends: [frontend].into(),
        backends: backends.into(),
    };
    Service::with_ports([port])
}

/// Writes what a plan of one service of IPv4 may say.
fn carry_out(maps: &Maps, write: &Write) -> anyhow::Result<()> {
    match write {
        Write::Backend4(index, backend) => maps.v4.backends.put(index, backend)?,
        Write::Members(begin, members) => {
            let places: Vec<u32> = (*begin..).take(members.len()).collect();
            maps.members.put_all(&places, members)?;
        }
        Write::Chunk(index, slots) => maps.put_chunk(*index, slots)?,
        Write::Service4(key, Some(entry)) => maps.v4.services.put(key, entry)?,
        other => bail!("{other:?} is no part of this service"),
    }
    Ok(())
}

fn figure(name: &str, unit: &'static str, runs: Vec<f64>, target: f64, machine: &Machine) -> Figure {
    let ours = median(&runs);
    Figure {
        name: name.into(),
        unit,
        better: Better::Lower,
        ours,
        runs,
        peers: BTreeMap::new(),
        unfinished: BTreeMap::new(),
        limit: None,
        target: format!("at most {target}"),
        met: ours <= target,
        machine: machine.clone(),
    }
}
