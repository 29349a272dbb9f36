//! Connections that found no room, and those that soon will not: what `status` says of both.
//!
//! Whatever is refused is counted by the programs. A count alone says nothing to somebody whose connections fail now, so one that
//! moved in the last minute is a problem of the node, with what to do; and a table that is nearly full is one before that.

use std::{
    net::{IpAddr, SocketAddr},
    time::{Duration, Instant},
};

use super::PRESSED_PERCENT;

/// Name of the table of connections among the problems of a node.
pub(super) const CONNECTIONS: &str = "datapath/connections";
/// The same of ports for translated sources.
pub(super) const PORTS: &str = "datapath/ports";
/// How long a refusal is a problem.
const MEMORY: Duration = Duration::from_secs(60);

/// Why connections are refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Refusal {
    /// The table of connections takes no entry.
    NoRoom,
    /// No port is free for a translated source.
    NoPort,
}

/// What was refused lately.
#[derive(Debug, Default)]
pub(super) struct Refusals {
    seen: [Option<Seen>; 2],
}

#[derive(Debug, Clone, Copy)]
struct Seen {
    total: u64,
    /// What the counter was before the refusals that are a problem now.
    before: u64,
    last: Option<Instant>,
}

impl Refusals {
    /// Takes a counter over; true when it moved. What it was at the first look is an earlier daemon's.
    pub(super) fn saw(&mut self, refusal: Refusal, total: u64, now: Instant) -> bool {
        let Some(seen) = &mut self.seen[refusal as usize] else {
            self.seen[refusal as usize] = Some(Seen { total, before: total, last: None });
            return false;
        };
        if seen.last.is_none_or(|last| now.duration_since(last) > MEMORY) {
            (seen.before, seen.last) = (seen.total, None);
        }
        let moved = total != seen.total;
        if moved {
            (seen.total, seen.last) = (total, Some(now));
        }
        moved
    }

    /// How many were refused, when that is a problem now.
    fn recent(&self, refusal: Refusal) -> Option<u64> {
        let seen = self.seen[refusal as usize]?;
        seen.last.map(|_| seen.total.saturating_sub(seen.before))
    }

    /// What is wrong with the table of connections: `used` of `room` entries of IPv4 and of IPv6.
    pub(super) fn connections(&self, used: [usize; 2], room: [usize; 2]) -> Option<String> {
        let advice = "raise services.maps.connections; `meshd bpf ct list` shows what is in it";
        if let Some(count) = self.recent(Refusal::NoRoom) {
            return Some(format!(
                "the table of connections is full, {count} packets that begin one were refused; {advice}"
            ));
        }
        let families = ["IPv4", "IPv6"].into_iter().zip(used).zip(room);
        let mut full = families.filter(|((_, used), room)| used * 100 >= room * PRESSED_PERCENT);
        full.next().map(|((family, used), room)| {
            let percent = used * 100 / room.max(1);
            format!(
                "the table of {family} connections is filled to {percent} % ({used} of {room}), new ones are refused where they find no place; {advice}"
            )
        })
    }

    /// What is wrong with the ports for translated sources, of which there are `room` to each destination.
    pub(super) fn ports(&self, busiest: Option<Busiest>, room: u16) -> Option<String> {
        let advice = "widen services.snat_ports";
        let where_to =
            |busiest: Busiest| format!("{}/{}", SocketAddr::from((busiest.address, busiest.port)), busiest.protocol());
        if let Some(count) = self.recent(Refusal::NoPort) {
            let most = busiest
                .map(|busiest| format!(", most are used towards {} ({} of {room})", where_to(busiest), busiest.used));
            return Some(format!(
                "no port is free for translated sources, {count} packets that begin a connection were refused{}; {advice}",
                most.unwrap_or_default()
            ));
        }
        let busiest = busiest.filter(|busiest| busiest.used as usize * 100 >= usize::from(room) * PRESSED_PERCENT)?;
        Some(format!(
            "{} of {room} ports for translated sources are used towards {}, new connections there are refused when none is left; {advice}",
            busiest.used,
            where_to(busiest)
        ))
    }
}

/// The destination that most translated sources talk to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Busiest {
    /// Its address.
    pub address: IpAddr,
    /// Its port.
    pub port: u16,
    /// IP protocol number.
    pub number: u8,
    /// Ports in use.
    pub used: u32,
}

impl Busiest {
    fn protocol(&self) -> String {
        match self.number {
            6 => "tcp".to_owned(),
            17 => "udp".to_owned(),
            other => other.to_string(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_is_a_problem_for_a_minute() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut refusals = Refusals::default();
        let problem = |refusals: &Refusals| refusals.connections([10, 0], [100, 25]);
        assert!(!refusals.saw(Refusal::NoRoom, 7, at(0)), "what was before is not ours");
        assert_eq!(problem(&refusals), None);
        assert!(refusals.saw(Refusal::NoRoom, 9, at(1)));
        assert!(refusals.saw(Refusal::NoRoom, 12, at(30)));
        assert!(!refusals.saw(Refusal::NoRoom, 12, at(90)));
        let text = problem(&refusals).unwrap();
        assert!(text.contains("5 packets") && text.contains("raise services.maps.connections"), "{text}");
        assert!(!refusals.saw(Refusal::NoRoom, 12, at(91)));
        assert_eq!(problem(&refusals), None);
        assert!(refusals.saw(Refusal::NoRoom, 13, at(200)));
        assert!(problem(&refusals).unwrap().contains("1 packets"));
        assert_eq!(refusals.ports(None, 100), None);
    }

    #[test]
    fn a_table_and_a_range_of_ports_are_a_problem_before_they_are_full() {
        let refusals = Refusals::default();
        for (used, words) in [([84, 0], None), ([85, 0], Some("IPv4")), ([0, 22], Some("IPv6")), ([0, 21], None)] {
            let text = refusals.connections(used, [100, 25]);
            assert_eq!(text.is_some(), words.is_some(), "{text:?}");
            assert!(text.is_none_or(|text| text.contains(words.unwrap())));
        }
        let busiest = |used| Some(Busiest { address: "2001:db8::7".parse().unwrap(), port: 443, number: 6, used });
        assert_eq!(refusals.ports(busiest(84), 100), None);
        let text = refusals.ports(busiest(85), 100).unwrap();
        assert!(text.contains("85 of 100") && text.contains("[2001:db8::7]:443/tcp"), "{text}");
        let mut refusals = Refusals::default();
        refusals.saw(Refusal::NoPort, 0, Instant::now());
        refusals.saw(Refusal::NoPort, 3, Instant::now());
        let text = refusals.ports(busiest(100), 100).unwrap();
        assert!(text.contains("3 packets") && text.contains("widen services.snat_ports"), "{text}");
    }
}
