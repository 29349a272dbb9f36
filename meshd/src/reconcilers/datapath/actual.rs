//! What the maps hold when the process starts, and what connections still refer to.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use ipnet::IpNet;
use meshd_abi::{Address, Connection, ConnectionKey, Direct, Identity, V4, V6, connection_flags};
use meshd_core::plan::datapath::{Existing, digest_of, prefix4, prefix6};
use meshd_datapath::{DatapathError, FamilyMaps, Maps, Unwritten, client_of};

use super::refusals::Busiest;

/// Reads what an earlier process left.
///
/// # Errors
/// When a map cannot be read.
pub(super) fn existing(maps: &Maps) -> Result<Existing, DatapathError> {
    let services4 = maps.v4.services.all()?;
    let services6 = maps.v6.services.all()?;
    let entries = services4.iter().map(|(_, entry)| entry).chain(services6.iter().map(|(_, entry)| entry));
    let last_id = entries.clone().map(|entry| entry.id).max().unwrap_or(0).max(last_client(maps)?);
    let top = entries.map(|entry| entry.members.saturating_add(u32::from(entry.count))).max().unwrap_or(0);
    let mut members = vec![0; top as usize];
    maps.members.walk(|index, backend| {
        if let Some(place) = members.get_mut(*index as usize) {
            *place = *backend;
        }
    })?;
    let mut existing = Existing { services4, services6, members, last_id, ..Existing::default() };
    maps.walk_chunks(|index, chunk| _ = existing.chunks.insert(index, digest_of(chunk)))?;
    maps.v4.ranges.walk(|key, _| existing.ranges4.push(*key))?;
    maps.v6.ranges.walk(|key, _| existing.ranges6.push(*key))?;
    maps.v4.backends.walk(|index, backend| {
        if backend.state != 0 {
            existing.backends4.push((*index, *backend));
        }
    })?;
    maps.v6.backends.walk(|index, backend| {
        if backend.state != 0 {
            existing.backends6.push((*index, *backend));
        }
    })?;
    maps.v4.direct.walk(|index, direct| {
        if *direct != Direct::default() {
            existing.direct4.push((*index, *direct));
        }
    })?;
    maps.v6.direct.walk(|index, direct| {
        if *direct != Direct::default() {
            existing.direct6.push((*index, *direct));
        }
    })?;
    existing.receivers4 = maps.v4.receivers.all()?;
    existing.receivers6 = maps.v6.receivers.all()?;
    Ok(existing)
}

/// Prefixes with an identity.
///
/// # Errors
/// When a map cannot be read.
pub(super) fn prefixes(maps: &Maps) -> Result<Vec<(IpNet, Identity)>, DatapathError> {
    let mut prefixes = Vec::new();
    maps.v4.cidrs.walk(|key, known| prefixes.extend(prefix4(key).map(|prefix| (prefix, *known))))?;
    maps.v6.cidrs.walk(|key, known| prefixes.extend(prefix6(key).map(|prefix| (prefix, *known))))?;
    Ok(prefixes)
}

/// The highest number of a service that a client is remembered of.
fn last_client(maps: &Maps) -> Result<u32, DatapathError> {
    let mut last = 0;
    maps.v4.affinity.walk(|key, _| last = last.max(key.service))?;
    maps.v6.affinity.walk(|key, _| last = last.max(key.service))?;
    maps.socket_affinity.walk(|key, _| last = last.max(key.service))?;
    Ok(last)
}

/// Elements of next hops that connections name.
///
/// # Errors
/// When a map cannot be read.
pub(super) fn named_hops(maps: &Maps) -> Result<BTreeSet<u32>, DatapathError> {
    let mut hops = BTreeSet::new();
    maps.v4.connections.walk(|_, connection| name_hop(connection, &mut hops))?;
    maps.v6.connections.walk(|_, connection| name_hop(connection, &mut hops))?;
    Ok(hops)
}

fn name_hop<A>(connection: &Connection<A>, hops: &mut BTreeSet<u32>) {
    if connection.flags & connection_flags::REPLY != 0 && connection.to != 0 {
        hops.insert(connection.to);
    }
}

/// How long entries live without a packet, in seconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Lifetimes {
    /// TCP with packets in both directions.
    pub established: u32,
    /// TCP that was only opened.
    pub opening: u32,
    /// TCP of which an end said goodbye.
    pub closing: u32,
    /// Everything else.
    pub datagram: u32,
}

impl Lifetimes {
    /// With room for new connections.
    pub(super) const RELAXED: Self = Self { established: 21_600, opening: 60, closing: 15, datagram: 90 };
    /// With hardly any: what a flood leaves must go first.
    pub(super) const PRESSED: Self = Self { established: 21_600, opening: 5, closing: 2, datagram: 15 };
}

/// What one look at the connections found.
#[derive(Debug, Default)]
pub(super) struct Sweep {
    /// Entries that stay, of both families.
    pub left: [usize; 2],
    /// Entries that were removed.
    pub removed: usize,
    /// Backends that entries refer to, per family.
    pub used: [BTreeSet<u32>; 2],
    /// Next hops that entries refer to.
    pub hops: BTreeSet<u32>,
    /// The destination that most translated sources talk to.
    pub busiest: Option<Busiest>,
}

impl Sweep {
    fn stays<A>(&mut self, family: usize, connection: &Connection<A>) {
        self.left[family] += 1;
        if connection.flags & connection_flags::REPLY == 0 {
            self.used[family].insert(connection.to);
        }
        name_hop(connection, &mut self.hops);
    }
}

/// Removes entries that nobody has used for as long as they live, and tells what the others refer to.
///
/// # Errors
/// When a map cannot be read or written.
pub(super) fn sweep(
    maps: &Maps,
    now: u32,
    lifetimes: &Lifetimes,
    unwritten: &mut [Unwritten; 2],
) -> Result<Sweep, DatapathError> {
    let mut sweep = Sweep::default();
    let [v4, v6] = unwritten;
    sweep_family(&maps.v4, now, lifetimes, (&mut sweep, 0), v4)?;
    sweep_family(&maps.v6, now, lifetimes, (&mut sweep, 1), v6)?;
    Ok(sweep)
}

fn sweep_family<A: Address>(
    maps: &FamilyMaps<A>,
    now: u32,
    lifetimes: &Lifetimes,
    (sweep, family): (&mut Sweep, usize),
    unwritten: &mut Unwritten,
) -> Result<(), DatapathError> {
    let mut idle = Vec::new();
    let mut ports: BTreeMap<([u32; 4], u16, u8), u32> = BTreeMap::new();
    let view = maps.connections.view()?;
    view.sweep(unwritten, |key, connection| {
        if is_idle(key, connection, now, lifetimes) {
            idle.push((*key, *connection));
        } else {
            sweep.stays(family, connection);
            let translates_back = connection_flags::REPLY | connection_flags::SNAT;
            if connection.flags & translates_back == translates_back {
                *ports.entry((key.source.words(), key.source_port, key.protocol)).or_default() += 1;
            }
        }
    });
    let most = ports.into_iter().max_by_key(|(_, used)| *used).map(|((words, port, number), used)| {
        let port = u16::from_be(port);
        Busiest { address: ip(A::from_words(words)), port, number, used }
    });
    sweep.busiest = sweep.busiest.into_iter().chain(most).max_by_key(|busiest| busiest.used);
    let is_used = |key: &ConnectionKey<A>, client| {
        view.get(key, client).is_some_and(|connection| !is_idle(key, &connection, now, lifetimes))
    };
    for (key, connection) in idle {
        // Both directions live as long as one of them is used: an address and port that is given to somebody else must not
        // be named by what is left of an older connection. Some were used meanwhile.
        let client = client_of(&connection);
        if is_used(&key, client) || is_used(&other_direction(&key, &connection), client.other()) {
            sweep.stays(family, &connection);
        } else if view.remove(&key, client) {
            sweep.removed += 1;
        }
    }
    Ok(())
}

fn is_idle<A>(key: &ConnectionKey<A>, connection: &Connection<A>, now: u32, lifetimes: &Lifetimes) -> bool {
    /// IP protocol number of TCP.
    const TCP: u8 = 6;
    let has = |flag| connection.flags & flag != 0;
    let seconds = match key.protocol {
        TCP if has(connection_flags::CLOSING) => lifetimes.closing,
        TCP if has(connection_flags::ANSWERED) => lifetimes.established,
        TCP => lifetimes.opening,
        _ => lifetimes.datagram,
    };
    // A program may be ahead of the clock that was read here.
    let age = now.wrapping_sub(connection.used);
    age < u32::MAX / 2 && age > seconds
}

/// The address that a map's words are.
fn ip<A: Address>(address: A) -> IpAddr {
    let words = address.words();
    if A::IS_V4 { V4(words[0]).octets().into() } else { V6(words).octets().into() }
}

/// The key of the entry for the other direction.
fn other_direction<A: Copy>(key: &ConnectionKey<A>, connection: &Connection<A>) -> ConnectionKey<A> {
    ConnectionKey {
        source: connection.tuple.destination,
        destination: connection.tuple.source,
        source_port: connection.tuple.destination_port,
        destination_port: connection.tuple.source_port,
        protocol: key.protocol,
        reserved: [0; 3],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TCP: u8 = 6;
    const UDP: u8 = 17;
    const OPENED: u8 = 0;
    const ANSWERED: u8 = connection_flags::ANSWERED;
    const CLOSING: u8 = connection_flags::ANSWERED | connection_flags::CLOSING;

    fn is_idle_at(now: u32, used: u32, (protocol, flags): (u8, u8), lifetimes: &Lifetimes) -> bool {
        let key = ConnectionKey::<V4> { protocol, ..ConnectionKey::default() };
        is_idle(&key, &Connection { used, flags, ..Connection::default() }, now, lifetimes)
    }

    #[test]
    fn each_kind_is_idle_when_its_own_time_is_over() {
        let kinds = [
            ((TCP, OPENED), 60, 5),
            ((TCP, ANSWERED), 21_600, 21_600),
            ((TCP, CLOSING), 15, 2),
            // One that was refused says goodbye before it is answered.
            ((TCP, connection_flags::CLOSING), 15, 2),
            ((UDP, OPENED), 90, 15),
            ((UDP, ANSWERED), 90, 15),
            // No other protocol has a beginning and an end.
            ((UDP, CLOSING), 90, 15),
            ((1, OPENED), 90, 15),
            ((132, ANSWERED), 90, 15),
        ];
        for (kind, relaxed, pressed) in kinds {
            for (lifetimes, seconds) in [(&Lifetimes::RELAXED, relaxed), (&Lifetimes::PRESSED, pressed)] {
                // Time runs in a circle.
                for used in [1_000_000, u32::MAX - 1] {
                    let idle = |age: u32| is_idle_at(used.wrapping_add(age), used, kind, lifetimes);
                    assert_eq!([0, seconds, seconds + 1].map(idle), [false, false, true], "{kind:?} {lifetimes:?}");
                }
            }
        }
    }

    #[test]
    fn who_is_ahead_of_the_clock_is_not_idle() {
        for (now, used) in [(1_000_000, 1_000_003), (u32::MAX, 2), (7, 7)] {
            assert!(!is_idle_at(now, used, (TCP, CLOSING), &Lifetimes::PRESSED), "{used} at {now}");
        }
    }
}
