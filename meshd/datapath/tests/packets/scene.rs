//! The node of the tables: its addresses, services, backends and neighbors in either family, and the maps that say so.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    ops::ControlFlow,
};

use etherparse::{NetSlice, SlicedPacket, TransportSlice};
use meshd_abi::{
    Address, AffinityKey, AffinityValue, Backend, BackendState, CidrKey, Connection, ConnectionKey, Direct, Identity,
    LINKS, Link, NO_TABLE, NeighborKey, NextHop, ReceiverKey, Scope, Service, ServiceKey, Settings, Tuple, V4, V6,
    event_kind, identity_flags, link_flags, mesh_flags, service_flags, settings_flags,
};
use meshd_datapath::{FamilyMaps, Maps, Program, ticks};
use meshd_steps::bucket::Client;

use crate::frame::{GATEWAY, Mac, OWN, SCTP, TCP, UDP};

/// A neighbor behind another link than the one a packet arrives at.
pub(crate) const OTHER: Mac = [2, 0, 0, 0, 0, 0xaa];
/// A workload with a link of its own.
pub(crate) const POD: Mac = [2, 0, 0, 0, 0, 0xbb];
/// The neighbor that the kernel's table knows.
pub(crate) const KERNEL: Mac = [2, 0, 0, 0, 0, 0xdd];

/// The link that test runs arrive at: the loopback of the namespace.
pub(crate) const LINK: u32 = 1;
/// The link the kernel's routes point to; it exists.
pub(crate) const UPLINK: u32 = 20;
/// The link of [`POD`], which is a number only: a test run carries no redirect out.
pub(crate) const POD_LINK: u32 = 21;

/// Elements of `next_hops`.
pub(crate) mod hop {
    /// The gateway, behind the link of the test run.
    pub(crate) const GATEWAY: u32 = 1;
    /// A neighbor behind the uplink.
    pub(crate) const OTHER: u32 = 2;
    /// A workload's link.
    pub(crate) const POD: u32 = 3;
    /// A neighbor whose link takes packets of 100 octets.
    pub(crate) const NARROW: u32 = 4;
    /// A neighbor that is not resolved now.
    pub(crate) const UNRESOLVED: u32 = 5;
}

/// Elements of the backends, and of `members`, which are the same numbers.
pub(crate) mod backend {
    /// A workload of this node, reached through the stack.
    pub(crate) const LOCAL: u32 = 1;
    /// Another node's, behind [`super::hop::GATEWAY`].
    pub(crate) const REMOTE: u32 = 2;
    /// Another node's, behind [`super::hop::OTHER`].
    pub(crate) const OTHER: u32 = 3;
    /// Another node's, to be found by the kernel.
    pub(crate) const FAR: u32 = 4;
    /// A workload of this node, reached past the stack.
    pub(crate) const POD: u32 = 5;
    /// Another node's, behind [`super::hop::NARROW`].
    pub(crate) const NARROW: u32 = 6;
    /// Another node's, behind [`super::hop::UNRESOLVED`], and the kernel knows no route.
    pub(crate) const NOWHERE: u32 = 7;
    /// Four of them behind [`super::hop::GATEWAY`], for choices.
    pub(crate) const FIRST_OF_FOUR: u32 = 8;
    /// Every backend that a service of its own asks for.
    pub(crate) const ALL: [u32; 7] = [LOCAL, REMOTE, OTHER, FAR, POD, NARROW, NOWHERE];
}

/// Kinds of frontends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Cluster,
    NodePort,
    LoadBalancer,
    ExternalIp,
}

/// First port that this node uses for others. One port makes every translation a known one.
pub(crate) const PORT: u16 = 40_000;
/// The port of all backends.
pub(crate) const BACKEND_PORT: u16 = 8_080;
pub(crate) const SEED: u32 = 7_606;

/// The addresses of one family.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Net {
    pub word: &'static str,
    is_v4: bool,
}

pub(crate) const NET4: Net = Net { word: "v4", is_v4: true };
pub(crate) const NET6: Net = Net { word: "v6", is_v4: false };
pub(crate) const NETS: [Net; 2] = [NET4, NET6];

impl Net {
    pub(crate) const fn is_v4(&self) -> bool {
        self.is_v4
    }

    fn ip(&self, v4: [u8; 4], v6: [u16; 8]) -> IpAddr {
        if self.is_v4 { Ipv4Addr::from(v4).into() } else { Ipv6Addr::from(v6).into() }
    }

    /// Outside of the mesh.
    pub(crate) fn client_ip(&self) -> IpAddr {
        self.ip([198, 51, 100, 7], [0x2001, 0xdb8, 0x100, 0, 0, 0, 0, 7])
    }

    pub(crate) fn client(&self) -> SocketAddr {
        (self.client_ip(), 50_000).into()
    }

    pub(crate) fn node_ip(&self) -> IpAddr {
        self.ip([192, 0, 2, 1], [0x2001, 0xdb8, 0, 0, 0, 0, 0, 1])
    }

    /// The node as the source of what it sends for others.
    pub(crate) fn node(&self) -> SocketAddr {
        (self.node_ip(), PORT).into()
    }

    /// Another node of the cluster.
    pub(crate) fn peer_ip(&self) -> IpAddr {
        self.ip([192, 0, 2, 2], [0x2001, 0xdb8, 0, 0, 0, 0, 0, 2])
    }

    pub(crate) fn loopback_ip(&self) -> IpAddr {
        self.ip([169, 254, 42, 1], [0xfd42, 0, 0, 0, 0, 0, 0, 1])
    }

    /// The workload that asks: one of this node.
    pub(crate) fn workload_ip(&self) -> IpAddr {
        self.ip([10, 1, 0, 9], [0xfd00, 1, 0, 0, 0, 0, 0, 9])
    }

    pub(crate) fn workload(&self) -> SocketAddr {
        (self.workload_ip(), 33_000).into()
    }

    /// A workload of another node.
    pub(crate) fn far_workload(&self) -> SocketAddr {
        (self.ip([10, 2, 0, 77], [0xfd00, 2, 0, 0, 0, 0, 0, 77]), 33_077).into()
    }

    /// Somebody whom workloads ask, outside of the mesh.
    pub(crate) fn world(&self) -> SocketAddr {
        (self.ip([198, 51, 100, 99], [0x2001, 0xdb8, 0x100, 0, 0, 0, 0, 0x99]), 443).into()
    }

    /// All of the mesh.
    pub(crate) fn mesh_prefix(&self) -> IpAddr {
        self.ip([10, 0, 0, 0], [0xfd00, 0, 0, 0, 0, 0, 0, 0])
    }

    /// Of this node, and without an identity.
    pub(crate) fn nameless_ip(&self) -> IpAddr {
        self.ip([172, 16, 0, 5], [0x2001, 0xdb8, 0x16, 0, 0, 0, 0, 5])
    }

    /// A router on the way.
    pub(crate) fn router_ip(&self) -> IpAddr {
        self.ip([172, 31, 0, 1], [0x2001, 0xdb8, 0xf, 0, 0, 0, 0, 1])
    }

    pub(crate) fn backend_ip(&self, index: u32) -> IpAddr {
        let last = index as u8;
        match index {
            backend::LOCAL | backend::POD => self.ip([10, 1, 0, last], [0xfd00, 1, 0, 0, 0, 0, 0, index as u16]),
            backend::FAR => self.ip([10, 3, 0, last], [0xfd00, 3, 0, 0, 0, 0, 0, index as u16]),
            backend::NOWHERE => self.ip([10, 9, 0, last], [0xfd00, 9, 0, 0, 0, 0, 0, index as u16]),
            _ => self.ip([10, 2, 0, last], [0xfd00, 2, 0, 0, 0, 0, 0, index as u16]),
        }
    }

    /// A backend as packets of a protocol reach it: SCTP's sum covers the ports, so they stay.
    pub(crate) fn backend(&self, index: u32) -> SocketAddr {
        (self.backend_ip(index), BACKEND_PORT).into()
    }

    /// An address behind the uplink that answers no question about its link-layer address.
    pub(crate) fn silent_ip(&self) -> IpAddr {
        self.ip([192, 0, 2, 99], [0x2001, 0xdb8, 0, 0, 0, 0, 0, 0x99])
    }

    /// The frontend of a kind whose only member is a backend.
    pub(crate) fn frontend(&self, kind: Kind, index: u32) -> SocketAddr {
        let port = index as u16;
        match kind {
            Kind::Cluster => (self.ip([10, 96, 0, 10], [0xfd00, 0x96, 0, 0, 0, 0, 0, 10]), 80 + port).into(),
            Kind::NodePort => (self.node_ip(), 30_080 + port).into(),
            Kind::LoadBalancer => {
                (self.ip([203, 0, 113, 10], [0x2001, 0xdb8, 0x203, 0, 0, 0, 0, 10]), 80 + port).into()
            }
            Kind::ExternalIp => (self.ip([203, 0, 113, 20], [0x2001, 0xdb8, 0x203, 0, 0, 0, 0, 20]), 80 + port).into(),
        }
    }
}

/// Addresses of the tables as the maps have them.
pub(crate) trait Family: Address {
    fn of(ip: IpAddr) -> Self;
    fn maps(maps: &Maps) -> &FamilyMaps<Self>;
}

impl Family for V4 {
    fn of(ip: IpAddr) -> Self {
        let IpAddr::V4(ip) = ip else { unreachable!("{ip} is IPv6") };
        Self::from_octets(ip.octets())
    }

    fn maps(maps: &Maps) -> &FamilyMaps<Self> {
        &maps.v4
    }
}

impl Family for V6 {
    fn of(ip: IpAddr) -> Self {
        let IpAddr::V6(ip) = ip else { unreachable!("{ip} is IPv4") };
        Self::from_octets(ip.octets())
    }

    fn maps(maps: &Maps) -> &FamilyMaps<Self> {
        &maps.v6
    }
}

/// Calls a function of both families by the family of an address.
macro_rules! by_family {
    ($ip:expr, $function:ident($($argument:expr),*)) => {
        if $ip.is_ipv4() { $function::<V4>($($argument),*) } else { $function::<V6>($($argument),*) }
    };
}

/// The maps, by the words of the tables.
#[derive(Clone, Copy)]
pub(crate) struct Scene<'a> {
    pub maps: &'a Maps,
}

/// A service with one backend; tests change what they are about.
pub(crate) fn service(id: u32, member: u32) -> Service {
    Service { id, table: NO_TABLE, slots: 1, members: member, affinity: 0, count: 1, flags: 0 }
}

pub(crate) fn settings() -> Settings {
    Settings {
        source4: V4::of(NET4.node_ip()),
        source6: V6::of(NET6.node_ip()),
        ports: PORT,
        port_count: 1,
        flags: settings_flags::MASQUERADE | settings_flags::EVENTS,
        seed: SEED,
        loopback4: V4::of(NET4.loopback_ip()),
        loopback6: V6::of(NET6.loopback_ip()),
        events_per_tick: 1_000_000,
        ..Settings::default()
    }
}

pub(crate) fn next_hop(link: u32, mtu: u16, destination: Mac) -> NextHop {
    NextHop { link, mtu, destination, source: OWN, flags: 0 }
}

fn put_owner<A: Family>(maps: &Maps, index: u32, owner: u32) {
    let table = &A::maps(maps).backends;
    let old = table.get(&index).expect("read").expect("an element");
    table.put(&index, &Backend { owner, ..old }).expect("a backend");
}

impl Scene<'_> {
    /// What does not change from case to case unless a case changes it; connections, affinity and fragments are gone after it.
    pub(crate) fn reset(&self) {
        self.maps.settings.put(&0, &settings()).expect("settings");
        for index in [LINK, UPLINK] {
            self.put_link(index, link_flags::RETURNS | link_flags::TRANSMITS);
        }
        for (index, hop) in [
            (hop::GATEWAY, next_hop(LINK, 1_500, GATEWAY)),
            (hop::OTHER, next_hop(UPLINK, 1_500, OTHER)),
            (hop::POD, next_hop(POD_LINK, 1_500, POD)),
            (hop::NARROW, next_hop(LINK, 100, GATEWAY)),
            (hop::UNRESOLVED, next_hop(0, 0, [0; 6])),
        ] {
            self.maps.next_hops.put(&index, &hop).expect("a next hop");
        }
        for (mac, index) in [(GATEWAY, hop::GATEWAY), (POD, hop::POD)] {
            self.maps
                .neighbors
                .put(&NeighborKey { link: LINK, address: mac, reserved: 0 }, &index)
                .expect("a neighbor");
        }
        let members: Vec<u32> = (0..64).collect();
        self.maps.members.put_all(&members, &members).expect("members");
        self.reset_family::<V4>(NET4);
        self.reset_family::<V6>(NET6);
        self.maps.forget_recent().expect("another epoch");
        self.maps.hold_resets(0).expect("no handover");
    }

    fn reset_family<A: Family>(&self, net: Net) {
        let maps = A::maps(self.maps);
        maps.connections.remove_if(|_, _| true).expect("remove connections");
        for (key, _) in maps.affinity.all().expect("affinity") {
            maps.affinity.remove(&key).expect("remove affinity");
        }
        for (key, _) in maps.fragments.all().expect("fragments") {
            maps.fragments.remove(&key).expect("remove fragments");
        }
        for (key, _) in maps.services.all().expect("services") {
            maps.services.remove(&key).expect("remove services");
        }
        for (key, _) in maps.receivers.all().expect("receivers") {
            maps.receivers.remove(&key).expect("remove receivers");
        }
        for index in 1..backend::FIRST_OF_FOUR + 4 {
            maps.direct.put(&index, &Direct::default()).expect("a node");
            let next_hop = match index {
                backend::LOCAL | backend::FAR => 0,
                backend::OTHER => hop::OTHER,
                backend::POD => hop::POD,
                backend::NARROW => hop::NARROW,
                backend::NOWHERE => hop::UNRESOLVED,
                _ => hop::GATEWAY,
            };
            let value = Backend {
                address: A::of(net.backend_ip(index)),
                next_hop,
                port: BACKEND_PORT.to_be(),
                state: BackendState::Active as u8,
                local: u8::from(matches!(index, backend::LOCAL | backend::POD)),
                owner: index,
            };
            maps.backends.put(&index, &value).expect("a backend");
        }
        for (ip, flags) in [
            (net.workload_ip(), identity_flags::LOCAL),
            (net.backend_ip(backend::LOCAL), identity_flags::LOCAL),
            (net.backend_ip(backend::POD), identity_flags::LOCAL),
            (net.far_workload().ip(), 0),
            (net.node_ip(), identity_flags::NODE | identity_flags::THIS_NODE),
            (net.peer_ip(), identity_flags::NODE),
        ] {
            let identity = Identity { identity: 300, way: 0, flags, cluster: 1 };
            maps.identities.put(&A::of(ip), &identity).expect("an identity");
        }
        for index in backend::ALL {
            for protocol in [TCP, UDP, SCTP] {
                self.put_service(net.frontend(Kind::Cluster, index), protocol, Scope::Internal, service(index, index));
                self.put_service(net.frontend(Kind::NodePort, index), protocol, Scope::Internal, service(index, index));
                for kind in [Kind::NodePort, Kind::LoadBalancer, Kind::ExternalIp] {
                    self.put_service(net.frontend(kind, index), protocol, Scope::External, service(index, index));
                }
            }
        }
        self.put_mesh(net.mesh_prefix(), 8, mesh_flags::KEEP_SOURCE);
    }

    /// Direct server return for all that the outside may ask, with notes in a form (`settings_flags`): backends of other nodes are
    /// on the peer, and [`backend::LOCAL`] is one that others send to.
    pub(crate) fn put_direct(&self, form: u32) {
        self.put_settings(|settings| settings.flags |= settings_flags::DSR | form);
        self.put_direct_family::<V4>(NET4);
        self.put_direct_family::<V6>(NET6);
    }

    fn put_direct_family<A: Family>(&self, net: Net) {
        let maps = A::maps(self.maps);
        for index in backend::ALL {
            let flags = service_flags::DSR;
            let (ip, port) = (A::of(net.backend_ip(index)), BACKEND_PORT.to_be());
            let next_hop = match index {
                backend::REMOTE => hop::GATEWAY,
                backend::OTHER => hop::OTHER,
                backend::NARROW => hop::NARROW,
                _ => 0,
            };
            if !matches!(index, backend::LOCAL | backend::POD) {
                maps.direct.put(&index, &Direct { node: A::of(net.peer_ip()), next_hop }).expect("a node");
            }
            for protocol in [TCP, UDP, SCTP] {
                for kind in [Kind::NodePort, Kind::LoadBalancer] {
                    let asked = Service { flags, ..service(index, index) };
                    self.put_service(net.frontend(kind, index), protocol, Scope::External, asked);
                }
                if index == backend::LOCAL {
                    // The ports of SCTP stay: the backend listens where the frontends are.
                    let sctp =
                        [Kind::NodePort, Kind::LoadBalancer].map(|kind| net.frontend(kind, index).port().to_be());
                    for port in [port, sctp[0], sctp[1]] {
                        let key = ReceiverKey { backend: ip, service: index, port, protocol, reserved: 0 };
                        maps.receivers.put(&key, &index).expect("a receiver");
                    }
                }
            }
        }
    }

    /// Takes the nodes of all backends away.
    pub(crate) fn forget_nodes(&self) {
        for index in backend::ALL {
            self.maps.v4.direct.put(&index, &Direct::default()).expect("a node");
            self.maps.v6.direct.put(&index, &Direct::default()).expect("a node");
        }
    }

    pub(crate) fn put_next_hop_mtu(&self, index: u32, mtu: u16) {
        let old = self.maps.next_hops.get(&index).expect("read").expect("an element");
        self.maps.next_hops.put(&index, &NextHop { mtu, ..old }).expect("a next hop");
    }

    /// Tells XDP what a link takes, bits of `link_flags`.
    pub(crate) fn put_link(&self, index: u32, flags: u16) {
        self.maps.links.put(&(index % LINKS), &Link { index, address: OWN, flags }).expect("a link");
    }

    /// Tells XDP nothing of a link.
    pub(crate) fn forget_link(&self, index: u32) {
        self.maps.links.put(&(index % LINKS), &Link::default()).expect("no link");
    }

    pub(crate) fn put_settings(&self, change: impl FnOnce(&mut Settings)) {
        let mut changed = settings();
        change(&mut changed);
        self.maps.settings.put(&0, &changed).expect("settings");
    }

    /// Adds a service, which its members belong to from then on.
    pub(crate) fn put_service(&self, frontend: SocketAddr, protocol: u8, scope: Scope, service: Service) {
        fn put<A: Family>(maps: &Maps, frontend: SocketAddr, protocol: u8, scope: Scope, service: Service) {
            let key = ServiceKey::new(A::of(frontend.ip()), frontend.port().to_be(), protocol, scope);
            A::maps(maps).services.put(&key, &service).expect("a service");
            for index in (1..backend::FIRST_OF_FOUR + 4)
                .filter(|index| index.checked_sub(service.members).is_some_and(|at| at < service.count.into()))
            {
                put_owner::<A>(maps, index, service.id);
            }
        }
        by_family!(frontend, put(self.maps, frontend, protocol, scope, service));
    }

    pub(crate) fn put_backend_state(&self, index: u32, state: BackendState) {
        fn put<A: Family>(maps: &Maps, index: u32, state: BackendState) {
            let table = &A::maps(maps).backends;
            let old = table.get(&index).expect("read").expect("an element");
            table.put(&index, &Backend { state: state as u8, ..old }).expect("a backend");
        }
        put::<V4>(self.maps, index, state);
        put::<V6>(self.maps, index, state);
    }

    /// Says who has an address.
    pub(crate) fn put_identity(&self, ip: IpAddr, identity: Identity) {
        fn put<A: Family>(maps: &Maps, ip: IpAddr, identity: &Identity) {
            A::maps(maps).identities.put(&A::of(ip), identity).expect("an identity");
        }
        by_family!(ip, put(self.maps, ip, &identity));
    }

    /// What is known of a prefix around an address.
    pub(crate) fn put_prefix(&self, ip: IpAddr, length: u32, identity: Identity) {
        fn put<A: Family>(maps: &Maps, ip: IpAddr, length: u32, identity: &Identity) {
            let key = CidrKey { length, address: A::of(ip) };
            A::maps(maps).cidrs.put(&key, identity).expect("a prefix");
        }
        by_family!(ip, put(self.maps, ip, length, &identity));
    }

    /// Nothing is known of any prefix again.
    pub(crate) fn forget_prefixes(&self) {
        for (key, _) in self.maps.v4.cidrs.all().expect("prefixes") {
            self.maps.v4.cidrs.remove(&key).expect("a prefix goes");
        }
        for (key, _) in self.maps.v6.cidrs.all().expect("prefixes") {
            self.maps.v6.cidrs.remove(&key).expect("a prefix goes");
        }
    }

    /// Makes a backend that of another service.
    pub(crate) fn put_backend_owner(&self, index: u32, owner: u32) {
        put_owner::<V4>(self.maps, index, owner);
        put_owner::<V6>(self.maps, index, owner);
    }

    /// Makes the workload that asks the backend itself.
    pub(crate) fn put_backend_address(&self, index: u32, ip: IpAddr) {
        fn put<A: Family>(maps: &Maps, index: u32, ip: IpAddr) {
            let table = &A::maps(maps).backends;
            let old = table.get(&index).expect("read").expect("an element");
            table.put(&index, &Backend { address: A::of(ip), ..old }).expect("a backend");
        }
        by_family!(ip, put(self.maps, index, ip));
    }

    /// A known connection that was used now.
    pub(crate) fn put_connection(
        &self,
        protocol: u8,
        key: (SocketAddr, SocketAddr),
        tuple: (SocketAddr, SocketAddr),
        to: u32,
        flags: u8,
    ) {
        self.put_connection_at(protocol, key, tuple, (to, flags), ticks());
    }

    /// A known connection, and when it was used last.
    pub(crate) fn put_connection_at(
        &self,
        protocol: u8,
        key: (SocketAddr, SocketAddr),
        tuple: (SocketAddr, SocketAddr),
        (to, flags): (u32, u8),
        used: u32,
    ) {
        fn put<A: Family>(
            maps: &Maps,
            protocol: u8,
            key: (SocketAddr, SocketAddr),
            tuple: (SocketAddr, SocketAddr),
            (to, flags): (u32, u8),
            used: u32,
        ) {
            let tuple = Tuple {
                source: A::of(tuple.0.ip()),
                destination: A::of(tuple.1.ip()),
                source_port: tuple.0.port().to_be(),
                destination_port: tuple.1.port().to_be(),
            };
            let value = Connection { tuple, to, service: 1, used, began: used, flags, closed_by: 0, reserved: [0; 2] };
            A::maps(maps).connections.put(&connection_key(protocol, key), &value).expect("a connection");
        }
        by_family!(key.0, put(self.maps, protocol, key, tuple, (to, flags), used));
    }

    /// Flags of a known connection.
    pub(crate) fn connection_flags(&self, protocol: u8, key: (SocketAddr, SocketAddr)) -> Option<u8> {
        fn get<A: Family>(maps: &Maps, protocol: u8, key: (SocketAddr, SocketAddr)) -> Option<u8> {
            let found = A::maps(maps).connections.get(&connection_key(protocol, key)).expect("read");
            found.map(|connection| connection.flags)
        }
        by_family!(key.0, get(self.maps, protocol, key))
    }

    /// Number of entries of connections in both families.
    pub(crate) fn connections(&self) -> usize {
        let v4 = self.maps.v4.connections.all().expect("read").len();
        v4 + self.maps.v6.connections.all().expect("read").len()
    }

    /// Number of those that an end has closed.
    pub(crate) fn closing(&self) -> usize {
        fn closing<A: Family>(maps: &Maps) -> usize {
            let entries = A::maps(maps).connections.all().expect("read");
            entries.iter().filter(|(_, entry)| entry.has_goodbye()).count()
        }
        closing::<V4>(self.maps) + closing::<V6>(self.maps)
    }

    /// The kind of event that a packet makes which passes a workload's link as it came: of a TCP connection that begins or ends and that
    /// nobody else tells of.
    pub(crate) fn told_untranslated(&self, program: Program, packet: &[u8]) -> Option<u8> {
        fn is_told<A: Family>(scene: &Scene<'_>, program: Program, from: SocketAddr, to: SocketAddr) -> bool {
            let maps = A::maps(scene.maps);
            let identity = |ip: IpAddr| maps.identities.get(&A::of(ip)).expect("read");
            let mesh = |ip: IpAddr, flag: u32| {
                let key = CidrKey { length: if ip.is_ipv4() { 32 } else { 128 }, address: A::of(ip) };
                maps.mesh.get(&key).expect("read").is_some_and(|flags| flags & flag != 0)
            };
            let is_local = |ip: IpAddr| match identity(ip) {
                Some(identity) => identity.flags & identity_flags::LOCAL != 0,
                None => mesh(ip, mesh_flags::OWN),
            };
            let settings = scene.maps.settings.get(&0).expect("read").expect("settings");
            let masquerades = settings.flags & settings_flags::MASQUERADE != 0;
            let is_of_mesh = |ip: IpAddr| identity(ip).is_some() || mesh(ip, mesh_flags::KEEP_SOURCE);
            let is_elsewhere = match program {
                Program::WorkloadIngress => masquerades && is_local(from.ip()) && !is_of_mesh(to.ip()),
                // Where its workload's link is, it was told.
                _ => identity(from.ip()).is_some_and(|identity| identity.flags & identity_flags::LOCAL != 0),
            };
            let is_known = |key| scene.connection_flags(TCP, key).is_some();
            !is_elsewhere && !is_known((from, to)) && !is_known((to, from))
        }
        let is_at_workload = matches!(program, Program::WorkloadIngress | Program::WorkloadEgress);
        // Frames of a VLAN are not looked into.
        if !is_at_workload || !matches!(packet.get(12..14)?, [8, 0] | [0x86, 0xdd]) {
            return None;
        }
        let sliced = SlicedPacket::from_ethernet(packet).ok()?;
        let Some(TransportSlice::Tcp(tcp)) = &sliced.transport else { return None };
        let (from, to): (IpAddr, IpAddr) = match sliced.net.as_ref()? {
            NetSlice::Ipv4(ip) => (ip.header().source_addr().into(), ip.header().destination_addr().into()),
            NetSlice::Ipv6(ip) => (ip.header().source_addr().into(), ip.header().destination_addr().into()),
            NetSlice::Arp(_) => return None,
        };
        // Nor is what has more headers, or longer ones, than are looked into.
        let extensions = match sliced.net.as_ref()? {
            NetSlice::Ipv6(ip) => ip.extensions().clone().into_iter().count(),
            NetSlice::Ipv4(_) | NetSlice::Arp(_) => 0,
        };
        let headers = packet.len() - tcp.slice().len();
        if extensions > 4 || headers > 255 {
            return None;
        }
        let kind = match (tcp.syn(), tcp.ack(), tcp.fin() || tcp.rst()) {
            (_, _, true) => event_kind::CLOSE,
            (true, false, false) => event_kind::NEW,
            _ => return None,
        };
        let (from, to): (SocketAddr, SocketAddr) =
            ((from, tcp.source_port()).into(), (to, tcp.destination_port()).into());
        by_family!(from, is_told(self, program, from, to)).then_some(kind)
    }

    pub(crate) fn put_affinity(&self, client: IpAddr, service: u32, value: AffinityValue) {
        fn put<A: Family>(maps: &Maps, client: IpAddr, service: u32, value: AffinityValue) {
            A::maps(maps).affinity.put(&AffinityKey { client: A::of(client), service }, &value).expect("affinity");
        }
        by_family!(client, put(self.maps, client, service, value));
    }

    pub(crate) fn put_mesh(&self, prefix: IpAddr, length: u32, flags: u32) {
        fn put<A: Family>(maps: &Maps, prefix: IpAddr, length: u32, flags: u32) {
            A::maps(maps).mesh.put(&CidrKey { length, address: A::of(prefix) }, &flags).expect("a prefix");
        }
        by_family!(prefix, put(self.maps, prefix, length, flags));
    }

    pub(crate) fn remove_mesh(&self, prefix: IpAddr, length: u32) {
        fn remove<A: Family>(maps: &Maps, prefix: IpAddr, length: u32) {
            A::maps(maps).mesh.remove(&CidrKey { length, address: A::of(prefix) }).expect("a prefix");
        }
        by_family!(prefix, remove(self.maps, prefix, length));
    }

    /// Fills the table of connections of a family to the last entry.
    pub(crate) fn fill_connections(&self, net: Net) {
        fn fill<A: Family>(maps: &Maps) {
            let connections = &A::maps(maps).connections;
            let view = connections.view().expect("mapped");
            let mut known = 0;
            view.walk(|_, _| known += 1);
            // Some are refused before there is no room for any.
            for number in 0..u32::MAX {
                known += usize::from(view.put(&filler(number), &Connection::default()).is_ok());
                if known == connections.room() {
                    return;
                }
            }
        }
        if net.is_v4 { fill::<V4>(self.maps) } else { fill::<V6>(self.maps) }
    }

    /// Removes what filled it.
    pub(crate) fn remove_fillers(&self, net: Net) {
        while self.remove_filler(net) {}
    }

    /// Removes one of them; false without any.
    pub(crate) fn remove_filler(&self, net: Net) -> bool {
        fn remove<A: Family>(maps: &Maps) -> bool {
            let view = A::maps(maps).connections.view().expect("mapped");
            let mut found = None;
            view.walk_until(|key, _| {
                found = Some(*key).filter(|key| key.protocol == FILLER);
                if found.is_some() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
            });
            found.is_some_and(|key| view.remove(&key, Client::Source))
        }
        if net.is_v4 { remove::<V4>(self.maps) } else { remove::<V6>(self.maps) }
    }
}

/// IP protocol number of what fills the table.
const FILLER: u8 = 255;

/// A key of no packet.
fn filler<A: Family>(number: u32) -> ConnectionKey<A> {
    let source = A::from_words([number, 0, 0, 0]);
    ConnectionKey { source, protocol: FILLER, ..ConnectionKey::default() }
}

fn connection_key<A: Family>(protocol: u8, key: (SocketAddr, SocketAddr)) -> ConnectionKey<A> {
    ConnectionKey {
        source: A::of(key.0.ip()),
        destination: A::of(key.1.ip()),
        source_port: key.0.port().to_be(),
        destination_port: key.1.port().to_be(),
        protocol,
        reserved: [0; 3],
    }
}
