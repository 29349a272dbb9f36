//! All sessions of a speaker, and which of them a packet belongs to (RFC 5880 section 6.3).
//!
//! A packet that names our discriminator belongs to that session, whatever its addresses say; one that does not know it
//! yet is taken by addresses and device. Nobody but configuration makes sessions, so a packet of a stranger makes none.
//!
//! Both ways the packet must have come as the session's kind of path says: RFC 5881 to port 3784 with a TTL of 255, which
//! nobody farther than one link can give it; RFC 5883 to port 4784 with a TTL that shows no more hops than allowed.
//! Discriminators are drawn at random, so that who is not on the path cannot name one.

use std::{
    collections::{BTreeMap, btree_map::Entry},
    net::IpAddr,
};

use thiserror::Error;

use super::{
    echo::EchoPacket,
    jitter::Jitter,
    packet::{Discriminator, Packet},
    session::Session,
    settings::Settings,
};

/// The TTL of a packet that no router has forwarded.
pub const TTL_UNFORWARDED: u8 = 255;
/// The TTL of a packet that one router has sent back, and nobody farther can give.
pub const TTL_LOOPED: u8 = TTL_UNFORWARDED - 1;

/// How far the other side is away.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Hops {
    /// On the same link (RFC 5881).
    Single,
    /// Behind routers (RFC 5883).
    Multi,
}

/// What tells sessions of one speaker apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Path {
    /// How far.
    pub hops: Hops,
    /// The other side's address.
    pub remote: IpAddr,
    /// Our address.
    pub local: IpAddr,
    /// The index of the link, where the session is bound to one: always with link-local addresses.
    pub device: Option<u32>,
}

/// How a packet came in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Arrival {
    /// By the port it came to.
    pub hops: Hops,
    /// Source address.
    pub source: IpAddr,
    /// Destination address.
    pub destination: IpAddr,
    /// The index of the link it came in by.
    pub device: u32,
    /// TTL or hop limit.
    pub ttl: u8,
}

/// Why a packet belongs to no session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Error)]
pub enum Unselected {
    /// It names a discriminator that no session has.
    #[error("no session has discriminator {0}")]
    Discriminator(Discriminator),
    /// It names none, and no session has its addresses.
    #[error("no session with this peer is configured")]
    Address,
    /// It came to the port of the other kind of path, or by another link.
    #[error("packet did not come by the path of its session")]
    Path,
    /// It has come too far.
    #[error("time to live {ttl} is below {least}")]
    Ttl {
        /// Of the packet.
        ttl: u8,
        /// What the session asks for.
        least: u8,
    },
}

/// A session with this path exists.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("a session from {} to {} exists already", .0.local, .0.remote)]
pub struct PathTaken(pub Path);

/// A session and where it runs.
#[derive(Clone, Debug)]
pub struct Member {
    /// Where.
    pub path: Path,
    /// The least TTL its packets must have.
    pub ttl_min: u8,
    /// The session.
    pub session: Session,
}

/// The sessions of one speaker.
#[derive(Clone, Debug)]
pub struct Sessions {
    members: BTreeMap<Discriminator, Member>,
    by_path: BTreeMap<Path, Discriminator>,
    random: Jitter,
}

impl Sessions {
    /// None yet. The seed chooses discriminators, so a good one is not known to others.
    #[must_use]
    pub const fn new(seed: u64) -> Self {
        Self { members: BTreeMap::new(), by_path: BTreeMap::new(), random: Jitter::seeded(seed) }
    }

    /// Adds a session, which wants an [`super::Event::Tick`] to begin. `ttl_min` is for paths of many hops; on a single
    /// hop it is always 255.
    pub fn insert(&mut self, path: Path, ttl_min: u8, settings: Settings) -> Result<Discriminator, PathTaken> {
        let Entry::Vacant(by_path) = self.by_path.entry(path) else {
            return Err(PathTaken(path));
        };
        let discriminator = loop {
            let drawn = Discriminator::new(self.random.next() as u32);
            if let Some(drawn) = drawn.filter(|drawn| !self.members.contains_key(drawn)) {
                break drawn;
            }
        };
        by_path.insert(discriminator);
        let ttl_min = match path.hops {
            Hops::Single => TTL_UNFORWARDED,
            Hops::Multi => ttl_min,
        };
        let session = Session::new(discriminator, settings, self.random.next());
        self.members.insert(discriminator, Member { path, ttl_min, session });
        Ok(discriminator)
    }

    /// Takes a session out.
    pub fn remove(&mut self, discriminator: Discriminator) -> Option<Member> {
        let member = self.members.remove(&discriminator)?;
        self.by_path.remove(&member.path);
        Some(member)
    }

    /// A session.
    #[must_use]
    pub fn get(&self, discriminator: Discriminator) -> Option<&Member> {
        self.members.get(&discriminator)
    }

    /// A session, to hand it an event.
    pub fn get_mut(&mut self, discriminator: Discriminator) -> Option<&mut Member> {
        self.members.get_mut(&discriminator)
    }

    /// All of them, by discriminator.
    pub fn iter(&self) -> impl Iterator<Item = (Discriminator, &Member)> {
        self.members.iter().map(|(discriminator, member)| (*discriminator, member))
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.members.len()
    }

    /// True without any.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.members.is_empty()
    }

    /// The session that a packet belongs to.
    pub fn select(&self, arrival: &Arrival, packet: &Packet) -> Result<Discriminator, Unselected> {
        let discriminator = match packet.your_discriminator {
            Some(discriminator) => discriminator,
            None => self.by_addresses(arrival).ok_or(Unselected::Address)?,
        };
        let member = self.members.get(&discriminator).ok_or(Unselected::Discriminator(discriminator))?;
        let other_device = member.path.device.is_some_and(|device| device != arrival.device);
        if member.path.hops != arrival.hops || other_device {
            return Err(Unselected::Path);
        }
        if arrival.ttl < member.ttl_min {
            return Err(Unselected::Ttl { ttl: arrival.ttl, least: member.ttl_min });
        }
        Ok(discriminator)
    }

    /// The session whose echo packet came back. It was addressed to our end of the session, and went no farther than the
    /// other.
    pub fn select_echo(&self, arrival: &Arrival, packet: EchoPacket) -> Result<Discriminator, Unselected> {
        let member = self.members.get(&packet.discriminator).ok_or(Unselected::Discriminator(packet.discriminator))?;
        let other_device = member.path.device.is_some_and(|device| device != arrival.device);
        if member.path.hops != Hops::Single || other_device || arrival.destination != member.path.local {
            return Err(Unselected::Path);
        }
        if arrival.ttl < TTL_LOOPED {
            return Err(Unselected::Ttl { ttl: arrival.ttl, least: TTL_LOOPED });
        }
        Ok(packet.discriminator)
    }

    fn by_addresses(&self, arrival: &Arrival) -> Option<Discriminator> {
        let Arrival { hops, source: remote, destination: local, device, .. } = *arrival;
        let by_path = |device| self.by_path.get(&Path { hops, remote, local, device }).copied();
        by_path(Some(device)).or_else(|| by_path(None))
    }
}
