//! How long user space takes to write tables.

use std::{collections::BTreeMap, net::SocketAddr, time::Instant};

use anyhow::Context as _;
use meshd_abi::{Backend, BackendState, Identity, Service, ServiceKey, V4};
use meshd_core::maglev::{Maglev, Slots};
use meshd_datapath::Programs;

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
const CHANGES: usize = 41;
const CHANGE_MS_MAX: f64 = 2.0;
/// Where the large service's chunks, members and backends begin.
const CHUNK: u32 = 16;
const MEMBER: u32 = 1_000;
const BACKEND: u32 = 1_000;
const BACKEND_PORT: u16 = 8_080;

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

/// Takes a backend out of a large service and puts it back, until the kernel has all that follows from it.
pub(crate) fn service(programs: &Programs, machine: &Machine) -> anyhow::Result<Figure> {
    let maps = &programs.maps;
    let mut maglev = Maglev::new(Slots::Large, 7_606);
    let key = |number: u16| SocketAddr::new(V4::of(0x0a09_0000 + u32::from(number)).ip(), BACKEND_PORT);
    let backend = |number: u16, state: BackendState| Backend {
        address: V4::of(0x0a09_0000 + u32::from(number)),
        next_hop: 1,
        port: BACKEND_PORT.to_be(),
        state: state as u8,
        local: 0,
        owner: 9,
    };
    for number in 0..BACKENDS {
        maglev.put(key(number), number, 1);
        maps.members.put(&(MEMBER + u32::from(number)), &(BACKEND + u32::from(number)))?;
        maps.v4.backends.put(&(BACKEND + u32::from(number)), &backend(number, BackendState::Active))?;
    }
    let write_table = |maglev: &Maglev| -> anyhow::Result<()> {
        let table = maglev.table().context("there are backends")?;
        for (index, chunk) in (CHUNK..).zip(table.chunks()) {
            maps.put_chunk(index, chunk)?;
        }
        Ok(())
    };
    write_table(&maglev)?;
    let frontend = ServiceKey { address: V4::of(0xc000_0214), port: 80u16.to_be(), protocol: 6, scope: 0 };
    let mut runs = Vec::new();
    for change in 0..CHANGES {
        let number = (change as u16 / 2) * 451;
        let start = Instant::now();
        let is_there = change % 2 == 1;
        if is_there {
            maglev.put(key(number), number, 1);
        } else {
            maglev.remove(&key(number));
        }
        let state = if is_there { BackendState::Active } else { BackendState::Removed };
        maps.v4.backends.put(&(BACKEND + u32::from(number)), &backend(number, state))?;
        write_table(&maglev)?;
        let service = Service {
            id: 9,
            table: CHUNK,
            slots: Slots::Large.count(),
            members: MEMBER,
            affinity: 0,
            count: BACKENDS - u16::from(!is_there),
            flags: 0,
        };
        maps.v4.services.put(&frontend, &service)?;
        runs.push(start.elapsed().as_secs_f64() * 1_000.0);
    }
    Ok(figure("service-10000-backends-change", "ms", runs, CHANGE_MS_MAX, machine))
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
