//! Peers that send and listen: what they heard is decoded from the octets they were sent.

use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, Ipv6Addr},
};

use crate::{
    Asn, Family, Moment, NextHop, PathId, PeerId, PerFamily, Prefix, RouterId,
    family::{V4, V6},
    policy::Policy,
    rib::{FibRoute, PeerSettings, Rib, RibConfig, Stored},
    session::{Negotiated, NegotiatedFamily, PeerKind},
    wire::{
        as_path::{SegmentKind, write_segments},
        attributes::{Attributes, Builder, Origin, code},
        capability::Capability,
        header::{MessageType, next_frame},
        route_refresh::{RefreshKind, RouteRefresh},
        update::{self, Context},
    },
};

pub(crate) const OWN_AS: Asn = Asn(65_000);
pub(crate) const OWN_ID: RouterId = RouterId(1);
pub(crate) const OWN_V4: NextHop = NextHop::V4(Ipv4Addr::new(10, 0, 0, 1));

pub(crate) const OWN_V6: NextHop = NextHop::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1));

/// What a peer heard, by prefix and path identifier.
pub(crate) type Heard = BTreeMap<(ipnet::IpNet, PathId), (Vec<u8>, NextHop)>;

/// A peer at the other end of a session.
pub(crate) struct Peer {
    pub(crate) id: PeerId,
    pub(crate) settings: PeerSettings,
    pub(crate) negotiated: Negotiated,
    pub(crate) own: PerFamily<Option<NextHop>>,
    pub(crate) is_up: bool,
    pub(crate) heard: Heard,
    pub(crate) ends_of_rib: Vec<Family>,
    pub(crate) refreshes: Vec<RefreshKind>,
    /// UPDATEs with prefixes.
    pub(crate) messages: usize,
    /// Paths that it had and that were withdrawn.
    pub(crate) losses: usize,
    /// Octets that are not a whole message yet.
    rest: Vec<u8>,
}

impl Peer {
    pub(crate) fn new(number: u16, kind: PeerKind) -> Self {
        let asn = if kind == PeerKind::External { Asn(64_600 + u32::from(number)) } else { OWN_AS };
        Self::of_as(number, kind, asn)
    }

    pub(crate) fn of_as(number: u16, kind: PeerKind, asn: Asn) -> Self {
        let family = Some(NegotiatedFamily { extended_next_hop: false, ..NegotiatedFamily::default() });
        let router_id = RouterId(100 + u32::from(number));
        let negotiated = Negotiated {
            route_refresh: true,
            ..Negotiated::plain(kind, OWN_AS, asn, router_id, PerFamily { ipv4: family, ipv6: family })
        };
        Self {
            id: PeerId(number),
            settings: PeerSettings::new(address(number).into(), Policy::accept_all(), Policy::accept_all()),
            negotiated,
            own: PerFamily { ipv4: Some(OWN_V4), ipv6: Some(OWN_V6) },
            is_up: false,
            heard: Heard::new(),
            ends_of_rib: Vec::new(),
            refreshes: Vec::new(),
            messages: 0,
            losses: 0,
            rest: Vec::new(),
        }
    }

    pub(crate) fn knows_llgr(mut self) -> Self {
        self.negotiated.remote_open.capabilities.push(Capability::LongLivedGracefulRestart(Vec::new()));
        self
    }

    pub(crate) fn client(mut self) -> Self {
        self.settings.reflector_client = true;
        self
    }

    pub(crate) fn hears_several(mut self, max: u16) -> Self {
        let families = &mut self.negotiated.families;
        for family in [&mut families.ipv4, &mut families.ipv6] {
            family.as_mut().expect("a family").add_path_send = true;
        }
        self.settings.add_path_max = PerFamily { ipv4: max, ipv6: max };
        self
    }

    /// What this peer's decoder depends on.
    fn context(&self) -> Context {
        let mut context = Context::from(&self.negotiated);
        for family in Family::ALL {
            let sends = self.negotiated.families.get(family).is_some_and(|agreed| agreed.add_path_send);
            context.families.get_mut(family).add_path = sends;
        }
        context
    }

    /// Reads octets as they come out of a socket.
    pub(crate) fn read(&mut self, octets: &[u8]) {
        self.rest.extend_from_slice(octets);
        let stream = std::mem::take(&mut self.rest);
        let mut rest = stream.as_slice();
        while let Some(frame) = next_frame(rest, self.negotiated.length_limit).expect("a good header") {
            match frame.header.message_type() {
                MessageType::Update => self.update(frame.body),
                MessageType::RouteRefresh => {
                    let refresh =
                        RouteRefresh::decode(frame.body, true).expect("a good message").expect("a known kind");
                    self.refreshes.push(refresh.kind);
                }
                other => panic!("the tables do not send {other:?}"),
            }
            rest = frame.rest;
        }
        self.rest = rest.to_vec();
    }

    fn update(&mut self, body: &[u8]) {
        let context = self.context();
        let mut scratch = Vec::new();
        let update = update::decode(body, &context, &mut scratch).expect("a good UPDATE");
        assert!(update.problems.is_empty() && !update.treat_as_withdraw, "{:?}", update.problems);
        if let Some(family) = update.end_of_rib {
            self.ends_of_rib.push(family);
            return;
        }
        self.messages += 1;
        for nlri in update.withdrawals() {
            for key in keys(nlri) {
                self.losses += usize::from(self.heard.remove(&key).is_some());
            }
        }
        for announced in update.announcements() {
            for key in keys(announced.nlri) {
                self.heard.insert(key, (update.attributes.to_vec(), announced.next_hop));
            }
        }
    }

    pub(crate) fn attributes_of(&self, prefix: &str) -> Option<Attributes<'_>> {
        let net: ipnet::IpNet = prefix.parse().expect("a prefix");
        let (_, (octets, _)) = self.heard.range((net, PathId(0))..=(net, PathId(u32::MAX))).next()?;
        Some(Attributes(octets))
    }
}

fn keys(nlri: crate::wire::nlri::Nlri<'_>) -> Vec<(ipnet::IpNet, PathId)> {
    match nlri.family() {
        Family::Ipv4Unicast => nlri.iter::<V4>().map(|(id, prefix)| (prefix.to_net(), id)).collect(),
        Family::Ipv6Unicast => nlri.iter::<V6>().map(|(id, prefix)| (prefix.to_net(), id)).collect(),
    }
}

pub(crate) fn address(number: u16) -> Ipv4Addr {
    Ipv4Addr::from_bits(0x0a00_0100 + u32::from(number))
}

pub(crate) fn next_hop(number: u16) -> NextHop {
    NextHop::V4(address(number))
}

pub(crate) fn v4(text: &str) -> V4 {
    V4::from_net(&text.parse().expect("a prefix")).expect("IPv4")
}

pub(crate) fn v6(text: &str) -> V6 {
    V6::from_net(&text.parse().expect("a prefix")).expect("IPv6")
}

/// Attributes with this AS path.
pub(crate) fn path(numbers: &[u32]) -> Builder {
    let numbers: Vec<Asn> = numbers.iter().copied().map(Asn).collect();
    let mut builder = Builder::new();
    builder.origin(Origin::Igp).set(code::AS_PATH, write_segments([(SegmentKind::Sequence, numbers.as_slice())]));
    if numbers.is_empty() {
        builder.set(code::AS_PATH, Vec::new());
    }
    builder
}

/// Tables with peers around them.
pub(crate) struct Lab {
    pub(crate) rib: Rib,
    pub(crate) peers: Vec<Peer>,
    pub(crate) fib: BTreeMap<ipnet::IpNet, FibRoute>,
    pub(crate) now: Moment,
}

impl Lab {
    pub(crate) fn new(peers: Vec<Peer>) -> Self {
        let mut config = RibConfig::new(OWN_AS, OWN_ID, 99);
        config.next_hop_tracking = false;
        Self::with(config, peers)
    }

    pub(crate) fn with(config: RibConfig, peers: Vec<Peer>) -> Self {
        let mut rib = Rib::new(config);
        rib.in_small_steps();
        for peer in &peers {
            rib.add_peer(peer.id, peer.settings.clone());
        }
        Self { rib, peers, fib: BTreeMap::new(), now: Moment(0) }
    }

    /// The same with all sessions up.
    pub(crate) fn up(peers: Vec<Peer>) -> Self {
        let mut lab = Self::new(peers);
        for number in 0..lab.peers.len() {
            lab.session_up(number);
        }
        lab
    }

    pub(crate) fn session_up(&mut self, number: usize) {
        let peer = &mut self.peers[number];
        (peer.is_up, peer.heard, peer.rest) = (true, Heard::new(), Vec::new());
        peer.ends_of_rib.clear();
        self.rib.peer_up(peer.id, &peer.negotiated, peer.own);
    }

    pub(crate) fn session_down(&mut self, number: usize, retain: bool) {
        self.peers[number].is_up = false;
        self.rib.peer_down(self.peers[number].id, PerFamily { ipv4: retain, ipv6: retain });
    }

    pub(crate) fn change_settings(&mut self, number: usize, change: impl FnOnce(&mut PeerSettings)) {
        change(&mut self.peers[number].settings);
        self.rib.set_peer_settings(self.peers[number].id, self.peers[number].settings.clone());
    }

    /// Announces as a peer that is its own next hop.
    pub(crate) fn announce<P: Stored>(&mut self, number: usize, prefix: P, attributes: &Builder) {
        self.announce_via(number, prefix, PathId(0), attributes, default_next_hop::<P>(number));
    }

    pub(crate) fn announce_via<P: Stored>(
        &mut self,
        number: usize,
        prefix: P,
        path_id: PathId,
        attributes: &Builder,
        via: NextHop,
    ) {
        let id = self.peers[number].id;
        self.rib.announce(id, &attributes.build(), via, [(path_id, prefix)], self.now).expect("no limit");
    }

    pub(crate) fn withdraw<P: Stored>(&mut self, number: usize, prefix: P) {
        self.rib.withdraw(self.peers[number].id, [(PathId(0), prefix)]);
    }

    /// A peer reads some octets.
    pub(crate) fn poll(&mut self, number: usize, octets: usize) -> bool {
        let mut out = Vec::new();
        let more = self.rib.poll_export(self.peers[number].id, &mut out, octets);
        if self.peers[number].is_up {
            self.peers[number].read(&out);
        }
        more
    }

    pub(crate) fn decide(&mut self) {
        while self.rib.run(1_000) {}
        for change in self.rib.take_fib_changes(usize::MAX) {
            match change.route {
                Some(route) => self.fib.insert(change.prefix, route),
                None => self.fib.remove(&change.prefix),
            };
        }
    }

    /// Everything is decided, packed and read.
    pub(crate) fn settle(&mut self) {
        for _ in 0..2 {
            self.decide();
            self.rib.flush_exports();
            for number in 0..self.peers.len() {
                while self.poll(number, 1 << 20) {}
            }
        }
        self.decide();
    }

    /// The same while one peer reads nothing.
    pub(crate) fn settle_but(&mut self, stuck: usize) {
        self.decide();
        self.rib.flush_exports();
        for number in (0..self.peers.len()).filter(|number| *number != stuck) {
            while self.poll(number, 1 << 20) {}
        }
        self.decide();
    }

    /// Everybody leaves; nothing may be left behind.
    pub(crate) fn assert_leaves_nothing(mut self) {
        for number in 0..self.peers.len() {
            self.session_down(number, false);
        }
        for _ in 0..3 {
            self.settle();
        }
        let totals = self.rib.totals();
        for (family, totals) in totals.families.iter() {
            assert_eq!((totals.destinations, totals.tombstones, totals.paths), (0, 0, 0), "{family}");
        }
        assert_eq!((totals.attribute_sets, totals.attribute_octets), (0, 0));
        assert_eq!(self.rib.next_hops_to_track().count(), 0);
        assert!(self.fib.is_empty(), "{:?}", self.fib);
    }
}

pub(crate) fn default_next_hop<P: Prefix>(number: usize) -> NextHop {
    let number = u16::try_from(number).expect("few peers");
    match P::FAMILY {
        Family::Ipv4Unicast => next_hop(number),
        Family::Ipv6Unicast => NextHop::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 1, number)),
    }
}
