//! Ports that the kernel gives to sockets of this node, of which the programs may use none.
//!
//! What comes back from a destination is told apart by its port on this node alone. When a process of the node talks to a destination
//! from a port that a translated connection towards it has, too, the answers to one of them go to the other. The programs do not see the
//! sockets of the node; the kernel gives none of them a port from the programs' ranges as long as these are outside of its own one,
//! or reserved. A process may still bind to such a port by its number.

use std::{fs, io, ops::RangeInclusive};

/// Name of these ports among the problems of a node.
pub(super) const COMPONENT: &str = "datapath/local-ports";
/// First and last port, of IPv6, too (Linux, `networking/ip-sysctl`).
const RANGE: &str = "/proc/sys/net/ipv4/ip_local_port_range";
/// Ports that are given to nobody who does not name them: single ones and ranges, with commas.
const RESERVED: &str = "/proc/sys/net/ipv4/ip_local_reserved_ports";
/// How to change the latter.
const SETTING: &str = "net.ipv4.ip_local_reserved_ports";

/// Ports that the programs use, and what they are called in the configuration.
#[derive(Debug, Clone)]
pub(super) struct Used {
    pub setting: &'static str,
    pub ports: RangeInclusive<u16>,
}

/// What is wrong with ranges that the programs use, in the network namespace of this process.
pub(super) fn problem(used: &[Used]) -> Option<String> {
    let read = |path: &'static str| fs::read_to_string(path).map_err(|error| unknown(path, &error));
    let local = read(RANGE).and_then(|range| LocalPorts::parse(&range, &read(RESERVED)?));
    match local {
        Ok(local) => local.problem(used),
        Err(message) => Some(message),
    }
}

fn unknown(path: &str, error: &io::Error) -> String {
    format!("it is not known which ports the kernel gives to sockets, {path}: {error}; hint: /proc has to be mounted")
}

/// What the kernel chooses the port of a socket from.
#[derive(Debug, PartialEq, Eq)]
struct LocalPorts {
    range: RangeInclusive<u16>,
    reserved: Vec<RangeInclusive<u16>>,
}

impl LocalPorts {
    /// Reads both settings as the kernel writes them.
    fn parse(range: &str, reserved: &str) -> Result<Self, String> {
        let port = |text: &str| text.parse::<u16>().ok();
        let bounds = range.split_once(char::is_whitespace);
        let bounds = bounds.and_then(|(first, last)| Some(port(first)?..=port(last.trim())?));
        let range = bounds.ok_or_else(|| unknown(RANGE, &io::ErrorKind::InvalidData.into()))?;
        let several = |text: &str| {
            let (first, last) = text.split_once('-').unwrap_or((text, text));
            Some(port(first)?..=port(last)?)
        };
        let all = reserved.trim().split(',').filter(|text| !text.is_empty()).map(several);
        let reserved =
            all.collect::<Option<_>>().ok_or_else(|| unknown(RESERVED, &io::ErrorKind::InvalidData.into()))?;
        Ok(Self { range, reserved })
    }

    fn gives(&self, port: u16) -> bool {
        self.range.contains(&port) && !self.reserved.iter().any(|range| range.contains(&port))
    }

    fn problem(&self, used: &[Used]) -> Option<String> {
        let shared: Vec<(usize, &Used)> = used
            .iter()
            .map(|used| (used.ports.clone().filter(|port| self.gives(*port)).count(), used))
            .filter(|(count, _)| *count > 0)
            .collect();
        if shared.is_empty() {
            return None;
        }
        let named =
            shared.iter().map(|(count, used)| format!("{count} ports of {} {}", used.setting, words(&used.ports)));
        let wanted = self.reserved.iter().chain(shared.iter().map(|(_, used)| &used.ports)).map(words);
        Some(format!(
            "the kernel gives sockets of this node ports {}, among them {}: answers to these and to translated connections may be taken for \
             each other; reserve them: sysctl -w {SETTING}={}",
            words(&self.range),
            named.collect::<Vec<_>>().join(" and "),
            wanted.collect::<Vec<_>>().join(",")
        ))
    }
}

fn words(range: &RangeInclusive<u16>) -> String {
    let (first, last) = (range.start(), range.end());
    if first == last { first.to_string() } else { format!("{first}-{last}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn used() -> [Used; 2] {
        [
            Used { setting: "services.node_port_range", ports: 30_000..=32_767 },
            Used { setting: "services.snat_ports", ports: 61_000..=65_535 },
        ]
    }

    fn message(range: &str, reserved: &str) -> Option<String> {
        LocalPorts::parse(range, reserved).unwrap().problem(&used())
    }

    #[test]
    fn ports_that_the_kernel_gives_to_nobody_are_no_problem() {
        for (range, reserved) in [
            ("32768\t60999\n", "\n"),
            ("32768\t60999\n", "8080,9000-9010\n"),
            ("1024\t65535\n", "30000-32767,61000-65535\n"),
            ("1024\t65535\n", "30000-32000,32001-32767,60000-65534,65535\n"),
        ] {
            assert_eq!(message(range, reserved), None, "{range} {reserved}");
        }
    }

    #[test]
    fn ports_that_are_used_twice_are_named_with_what_to_do() {
        let text = message("1024\t65535\n", "8080,30000-32767\n").unwrap();
        assert!(text.contains("1024-65535, among them 4536 ports of services.snat_ports 61000-65535:"), "{text}");
        assert!(text.ends_with("net.ipv4.ip_local_reserved_ports=8080,30000-32767,61000-65535"), "{text}");
        let text = message("32767\t61000\n", "\n").unwrap();
        assert!(
            text.contains("1 ports of services.node_port_range 30000-32767 and 1 ports of services.snat"),
            "{text}"
        );
        assert!(text.ends_with("ports=30000-32767,61000-65535"), "{text}");
    }

    #[test]
    fn a_setting_that_is_not_understood_is_named() {
        for (range, reserved, place) in [
            ("32768", "", RANGE),
            ("32768\tmany", "", RANGE),
            ("70000\t80000", "", RANGE),
            ("32768\t60999", "80-", RESERVED),
            ("32768\t60999", "80,,x", RESERVED),
        ] {
            let text = LocalPorts::parse(range, reserved).unwrap_err();
            assert!(text.contains(place), "{text}");
        }
    }

    #[test]
    fn this_kernel_is_understood() {
        // What is said depends on the machine, but for this.
        let none = [Used { setting: "none", ports: 1..=1 }];
        assert_eq!(problem(&none), None);
    }
}
