//! The tables of a node under test, and the packets it gets.

use std::net::{IpAddr, SocketAddr};

use anyhow::Context as _;
use meshd_abi::{
    Address, Backend, BackendState, Connection, ConnectionKey, LINKS, Link, NeighborKey, NextHop, Service, ServiceKey,
    Settings, Tuple, V4, V6, connection_flags, link_flags, settings_flags,
};
use meshd_core::maglev::{Maglev, Slots};
use meshd_datapath::{FamilyMaps, Maps};
use meshd_steps::choose::Ports;

use crate::driver::Packets;

/// First address and port of clients; the driver counts up from here.
pub(crate) const CLIENT: u32 = 0x0a40_0000;
/// The same of clients that come for the first time.
pub(crate) const STRANGER: u32 = 0x0a80_0000;
pub(crate) const CLIENT_PORT: u16 = 20_000;
/// Flows of one client, as a power of two.
pub(crate) const PORT_BITS: u32 = 4;
/// The address of all services.
const FRONTEND: u32 = 0xc000_020a;
/// The address before the first backend's.
const BACKEND: u32 = 0x0a01_0000;
/// Number of every service: they share their backends.
const SERVICE: u32 = 1;
const BACKEND_PORT: u16 = 8_080;
/// This node.
const NODE: u32 = 0xc633_6401;
/// Somebody who is no service.
const OUTSIDE: u32 = 0xcb00_7132;
/// The ports that stand for others.
const PORTS: (u16, u16) = (32_768, 28_000);
/// Link-layer address of who sends everything.
const SENDER: [u8; 6] = [2, 0, 0, 0, 0, 9];
/// The link a test run's packets arrive at: the loopback of the namespace.
const ARRIVAL: u32 = 1;
/// Backends of each kind.
const BACKENDS: u16 = 100;
/// The backend that is reached through the kernel's routing table.
const ROUTED: u32 = 201;
pub(crate) const TCP_SYN: u8 = 0x02;
pub(crate) const TCP_ACK: u8 = 0x10;

/// What a packet is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Aim {
    /// A service whose connections keep the client's address.
    Kept,
    /// The same, its backend reached through the kernel's routing table.
    Routed,
    /// A service whose connections get this node's address.
    Replaced,
    /// A service with backends on this node.
    Local,
    /// A service that workloads ask.
    Internal,
    /// This node, in the place of a client: an answer.
    Answer,
    /// The world, from a workload.
    World,
    /// Nobody we know.
    Nobody,
}

impl Aim {
    fn service_port(self) -> u16 {
        match self {
            Self::Kept => 80,
            Self::Routed => 81,
            Self::Replaced => 82,
            Self::Local => 83,
            Self::Internal => 84,
            Self::Answer => PORTS.0 + 7,
            Self::World | Self::Nobody => 443,
        }
    }

    fn destination(self) -> u32 {
        match self {
            Self::Kept | Self::Routed | Self::Replaced | Self::Local | Self::Internal => FRONTEND,
            Self::Answer => NODE,
            Self::World | Self::Nobody => OUTSIDE,
        }
    }
}

/// A family of addresses.
pub(crate) trait Side: Address {
    /// The address that ends in this word, host byte order.
    fn of(low: u32) -> Self;
    /// Its tables.
    fn maps(maps: &Maps) -> &FamilyMaps<Self>;
    /// The network header of a TCP packet with 20 octets of header and what fills the frame up.
    fn header(source: Self, destination: Self) -> Vec<u8>;
    /// As the standard library has it.
    fn ip(self) -> IpAddr;
}

impl Side for V4 {
    fn of(low: u32) -> Self {
        Self::from_octets(low.to_be_bytes())
    }
    fn maps(maps: &Maps) -> &FamilyMaps<Self> {
        &maps.v4
    }
    fn header(source: Self, destination: Self) -> Vec<u8> {
        let mut header = vec![0x45, 0, 0, 50, 0, 1, 0x40, 0, 64, 6, 0, 0];
        header.extend(source.octets());
        header.extend(destination.octets());
        header
    }
    fn ip(self) -> IpAddr {
        self.octets().into()
    }
}

impl Side for V6 {
    fn of(low: u32) -> Self {
        Self([0x2001_0db8_u32.to_be(), 0, 0, low.to_be()])
    }
    fn maps(maps: &Maps) -> &FamilyMaps<Self> {
        &maps.v6
    }
    fn header(source: Self, destination: Self) -> Vec<u8> {
        let mut header = vec![0x60, 0, 0, 0, 0, 26, 6, 64];
        header.extend(source.octets());
        header.extend(destination.octets());
        header
    }
    fn ip(self) -> IpAddr {
        self.octets().into()
    }
}

/// Packets of `flows` flows; 0: each is a flow of its own.
pub(crate) fn packets<A: Side>(aim: Aim, flows: u32, tcp_flags: u8) -> Packets {
    let address = if flows == 0 { STRANGER } else { CLIENT };
    let mut frame = vec![2, 0, 0, 0, 0, 1];
    frame.extend(SENDER);
    frame.extend(A::ETHERTYPE.to_be_bytes());
    frame.extend(A::header(A::of(address), A::of(aim.destination())));
    frame.extend(CLIENT_PORT.to_be_bytes());
    frame.extend(aim.service_port().to_be_bytes());
    frame.extend([0, 0, 0, 1, 0, 0, 0, 2, 0x50, tcp_flags, 0xff, 0xff, 0x12, 0x34, 0, 0]);
    frame.resize(if A::IS_V4 { 64 } else { 80 }, 0);
    Packets { frame, flows, address, port: CLIENT_PORT, port_bits: PORT_BITS }
}

/// Settings, next hops, services and backends. `link` is where packets leave, `events` how many flow events may be told in a tick.
pub(crate) fn prepare(maps: &Maps, link: u32, events: u32) -> anyhow::Result<()> {
    let settings = Settings {
        source4: V4::of(NODE),
        source6: V6::of(NODE),
        ports: PORTS.0,
        port_count: PORTS.1,
        flags: settings_flags::MASQUERADE | settings_flags::EVENTS | settings_flags::IPV6_CHECKSUM_FLAG,
        seed: 7_606,
        loopback4: V4::of(0xa9fe_2a01),
        loopback6: V6::of(0xa9fe_2a01),
        events_per_tick: events,
        ..Settings::default()
    };
    maps.settings.put(&0, &settings)?;
    let hop = NextHop { link, mtu: 1_500, destination: [2, 0, 0, 0, 0, 5], source: [2, 0, 0, 0, 0, 6], flags: 0 };
    maps.next_hops.put(&1, &hop)?;
    for index in [ARRIVAL, link] {
        let link = Link { index, address: [2, 0, 0, 0, 0, 1], flags: link_flags::RETURNS | link_flags::TRANSMITS };
        maps.links.put(&(index % LINKS), &link)?;
    }
    maps.neighbors.put(&NeighborKey { link: ARRIVAL, address: SENDER, reserved: 0 }, &1)?;
    let mut maglev = Maglev::new(Slots::Normal, 7_606);
    for member in 0..BACKENDS {
        maglev.put(SocketAddr::new(V4::of(BACKEND + u32::from(member)).ip(), BACKEND_PORT), member, 1);
    }
    let table = maglev.table().context("there are backends")?;
    for (index, chunk) in (0..).zip(table.chunks()) {
        maps.put_chunk(index, chunk)?;
    }
    for member in 0..2 * u32::from(BACKENDS) {
        maps.members.put(&member, &(member + 1))?;
    }
    prepare_family::<V4>(maps)?;
    prepare_family::<V6>(maps)
}

fn prepare_family<A: Side>(maps: &Maps) -> anyhow::Result<()> {
    let tables = A::maps(maps);
    for index in 1..=ROUTED {
        let backend = Backend {
            address: A::of(BACKEND + index),
            // What XDP hands to a workload of this node goes through the stack.
            next_hop: u32::from(index <= u32::from(BACKENDS)),
            port: BACKEND_PORT.to_be(),
            state: BackendState::Active as u8,
            local: u8::from((101..ROUTED).contains(&index)),
            owner: SERVICE,
        };
        tables.backends.put(&index, &backend)?;
    }
    for (aim, scope, members) in
        [(Aim::Kept, 0, 0), (Aim::Routed, 0, 0), (Aim::Replaced, 0, 0), (Aim::Local, 0, 100), (Aim::Internal, 1, 0)]
    {
        let key = ServiceKey { address: A::of(FRONTEND), port: aim.service_port().to_be(), protocol: 6, scope };
        let service = Service {
            id: SERVICE,
            table: 0,
            slots: Slots::Normal.count(),
            members,
            affinity: 0,
            count: BACKENDS,
            flags: 0,
        };
        tables.services.put(&key, &service)?;
    }
    Ok(())
}

/// Makes known the connections that packets of `flows` flows belong to, and forgets all others.
pub(crate) fn know<A: Side>(maps: &Maps, aim: Aim, flows: u32) -> anyhow::Result<()> {
    let mut all = Vec::with_capacity(flows as usize);
    let destination = A::of(aim.destination());
    let port = aim.service_port().to_be();
    for flow in 0..flows {
        let source = A::of(CLIENT + (flow >> PORT_BITS));
        let source_port = (CLIENT_PORT + (flow & ((1 << PORT_BITS) - 1)) as u16).to_be();
        let index = if aim == Aim::Routed { ROUTED } else { 1 + flow % u32::from(BACKENDS) };
        let backend = A::of(BACKEND + index);
        let own_port = (PORTS.0 + (flow % u32::from(PORTS.1)) as u16).to_be();
        let (tuple, to, flags) = match aim {
            Aim::Answer => {
                let client = Tuple {
                    source: A::of(FRONTEND),
                    destination: A::of(STRANGER + (flow >> PORT_BITS)),
                    source_port: 80u16.to_be(),
                    destination_port: source_port,
                };
                (client, 1, connection_flags::REPLY | connection_flags::SNAT)
            }
            Aim::World => {
                let flags = connection_flags::MASQUERADE | connection_flags::SNAT;
                (Tuple { source: A::of(NODE), destination, source_port: own_port, destination_port: port }, 0, flags)
            }
            Aim::Replaced => {
                // The first that the programs try.
                let own_port = Ports::of(&source, source_port, port).next(PORTS.0, PORTS.1);
                let (source, destination_port) = (A::of(NODE), BACKEND_PORT.to_be());
                let flags = connection_flags::SNAT;
                (Tuple { source, destination: backend, source_port: own_port, destination_port }, index, flags)
            }
            Aim::Kept | Aim::Routed | Aim::Local | Aim::Internal | Aim::Nobody => {
                let destination_port = BACKEND_PORT.to_be();
                (Tuple { source, destination: backend, source_port, destination_port }, index, 0)
            }
        };
        let key =
            ConnectionKey { source, destination, source_port, destination_port: port, protocol: 6, reserved: [0; 3] };
        let flags = flags | connection_flags::ANSWERED;
        let service = aim.service_port().into();
        all.push((key, Connection { tuple, to, service, used: 0, began: 0, flags, closed_by: 0, reserved: [0; 2] }));
    }
    forget::<A>(maps)?;
    put(A::maps(maps), &all)
}

/// The service number of connections that only fill the table.
const FILLER: u32 = u32::MAX;

/// Fills the table of connections with `count` of other people's.
pub(crate) fn fill<A: Side>(maps: &Maps, count: u32) -> anyhow::Result<()> {
    forget::<A>(maps)?;
    let connection = |number: u32| {
        let key = ConnectionKey {
            source: A::of(0x2000_0000 + (number >> PORT_BITS)),
            destination: A::of(FRONTEND),
            source_port: (number & ((1 << PORT_BITS) - 1)) as u16,
            destination_port: 9,
            protocol: 6,
            reserved: [0; 3],
        };
        (key, Connection { service: FILLER, ..Connection::default() })
    };
    let all: Vec<_> = (0..count).map(connection).collect();
    put(A::maps(maps), &all)
}

/// Removes all connections but those that [`fill`] made.
pub(crate) fn forget_new<A: Side>(maps: &Maps) -> anyhow::Result<()> {
    remove::<A>(maps, |connection| connection.service != FILLER)
}

/// Removes all connections.
pub(crate) fn forget<A: Side>(maps: &Maps) -> anyhow::Result<()> {
    remove::<A>(maps, |_| true)
}

fn remove<A: Side>(maps: &Maps, which: impl Fn(&Connection<A>) -> bool) -> anyhow::Result<()> {
    A::maps(maps).connections.remove_if(|_, connection| which(connection))?;
    Ok(())
}

fn put<A: Side>(tables: &FamilyMaps<A>, all: &[(ConnectionKey<A>, Connection<A>)]) -> anyhow::Result<()> {
    let view = tables.connections.view()?;
    for (key, connection) in all {
        view.put(key, connection)?;
    }
    Ok(())
}
