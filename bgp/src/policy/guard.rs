//! What is refused before any rule is asked, and what well-known communities do.

use std::{collections::BTreeSet, net::IpAddr};

use ipnet::IpNet;

use super::{candidate::RuleId, nested::Nested};
use crate::family::{Family, PerFamily};

/// Checks that hold for every path a peer sends, whatever its policy says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImportGuard {
    own: Nested<()>,
    settings: GuardSettings,
    martians: Nested<()>,
    /// First octets of addresses in [`Self::own`] or [`Self::martians`]: most prefixes of a full table begin with another.
    octets: PerFamily<[bool; 256]>,
}

/// Which checks are made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GuardSettings {
    /// Refuse prefixes that are never routed.
    pub martians: Martians,
    /// Accept 0.0.0.0/0 and ::/0 where the rules do.
    pub default_route: bool,
    /// Accept prefixes that cover one of ours, as a fabric advertises that summarizes all nodes. What is equal to one of
    /// ours or inside it is refused in any case.
    pub covering_own: bool,
    /// Refuse paths with an AS_SET or AS_CONFED_SET (RFC 9774).
    pub refuse_as_sets: bool,
    /// Let the community of RFC 8326 lower LOCAL_PREF to 0.
    pub graceful_shutdown: bool,
    /// Let the community of RFC 7999 turn a path into one that drops packets.
    pub blackhole: bool,
}

impl Default for GuardSettings {
    fn default() -> Self {
        Self {
            martians: Martians::Unroutable,
            default_route: false,
            covering_own: false,
            refuse_as_sets: true,
            graceful_shutdown: true,
            blackhole: false,
        }
    }
}

/// Prefixes that are never routed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Martians {
    /// All are routed.
    Accept,
    /// Those that no router forwards to: this network, loopback, link-local, multicast, reserved.
    Unroutable,
    /// Also those that are not to be seen on the Internet: private use, shared address space, documentation,
    /// benchmarking, transition mechanisms that are gone.
    NotOnInternet,
}

/// RFC 6890 and the registries it made: "this network", loopback, link-local, multicast and reserved.
const UNROUTABLE: [&str; 12] = [
    "0.0.0.0/8",
    "127.0.0.0/8",
    "169.254.0.0/16",
    "224.0.0.0/3",
    "::/128",
    "::1/128",
    "::/96",
    "::ffff:0:0/96",
    "100::/64",
    "fe80::/10",
    "fec0::/10",
    "ff00::/8",
];

/// The same registries: not globally reachable, or withdrawn.
const NOT_ON_INTERNET: [&str; 18] = [
    "10.0.0.0/8",
    "100.64.0.0/10",
    "172.16.0.0/12",
    "192.0.0.0/24",
    "192.0.2.0/24",
    "192.88.99.0/24",
    "192.168.0.0/16",
    "198.18.0.0/15",
    "198.51.100.0/24",
    "203.0.113.0/24",
    "64:ff9b:1::/48",
    "2001::/23",
    "2001:db8::/32",
    "2002::/16",
    "3ffe::/16",
    "3fff::/20",
    "5f00::/16",
    "fc00::/7",
];

impl ImportGuard {
    /// Checks with `own`: PodCIDRs, service ranges and addresses of this node and its cluster's services.
    #[must_use]
    pub fn new(own: impl IntoIterator<Item = IpNet>, settings: GuardSettings) -> Self {
        let lists: [&[&str]; 2] = match settings.martians {
            Martians::Accept => [&[], &[]],
            Martians::Unroutable => [&UNROUTABLE, &[]],
            Martians::NotOnInternet => [&UNROUTABLE, &NOT_ON_INTERNET],
        };
        let martians = lists.concat().into_iter().filter_map(|text| Some((text.parse().ok()?, ())));
        let martians: Vec<(IpNet, ())> = martians.collect();
        let own: Vec<(IpNet, ())> = own.into_iter().map(|prefix| (prefix, ())).collect();
        let mut octets = PerFamily { ipv4: [false; 256], ipv6: [false; 256] };
        for (prefix, ()) in own.iter().chain(&martians) {
            let family = octets.get_mut(Family::of(prefix));
            let range = usize::from(first_octet(prefix.network()))..=usize::from(first_octet(prefix.broadcast()));
            family.get_mut(range).unwrap_or_default().fill(true);
        }
        Self { own: Nested::build(own), settings, martians: Nested::build(martians), octets }
    }

    /// The settings it was made with.
    #[must_use]
    pub const fn settings(&self) -> GuardSettings {
        self.settings
    }

    /// Own prefixes that only one of the two has, when they differ in nothing else.
    pub(super) fn own_difference(&self, other: &Self) -> Option<Vec<IpNet>> {
        // What martians are follows from the settings, and the octets from both.
        if self.settings != other.settings {
            return None;
        }
        let [ours, theirs] = [self, other].map(|guard| guard.own.prefixes().collect::<BTreeSet<_>>());
        Some(ours.symmetric_difference(&theirs).copied().collect())
    }

    /// The check that refuses this prefix, if one does. What is equal to, inside of or covers one of ours is refused;
    /// the default route, which covers everything, has a check of its own.
    #[must_use]
    pub fn check(&self, prefix: &IpNet) -> Option<RuleId> {
        let octets = self.octets.get(Family::of(prefix));
        let octet = usize::from(first_octet(prefix.addr()));
        if prefix.prefix_len() >= 8 && octets.get(octet) == Some(&false) {
            return None;
        }
        if self.own.any_covering(prefix) {
            return Some(RuleId::OWN_PREFIX);
        }
        if prefix.prefix_len() == 0 {
            return if self.settings.default_route { None } else { Some(RuleId::DEFAULT_ROUTE) };
        }
        if self.martians.any_covering(prefix) {
            return Some(RuleId::MARTIAN);
        }
        (!self.settings.covering_own && self.own.any_within(prefix)).then_some(RuleId::COVERS_OWN_PREFIX)
    }
}

const fn first_octet(address: IpAddr) -> u8 {
    match address {
        IpAddr::V4(address) => address.octets()[0],
        IpAddr::V6(address) => address.octets()[0],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn net(text: &str) -> IpNet {
        text.parse().unwrap_or_else(|_| panic!("{text}"))
    }

    fn guard(settings: GuardSettings) -> ImportGuard {
        ImportGuard::new(["10.0.1.0/24", "10.2.0.0/16", "172.18.0.5/32", "fd00:1::/64"].map(net), settings)
    }

    #[test]
    fn own_prefixes_are_refused_whether_equal_inside_or_covering() {
        let strict = guard(GuardSettings::default());
        let loose = guard(GuardSettings { covering_own: true, default_route: true, ..GuardSettings::default() });
        for (prefix, by_strict, by_loose) in [
            ("10.0.1.0/24", Some(RuleId::OWN_PREFIX), Some(RuleId::OWN_PREFIX)),
            ("10.0.1.128/25", Some(RuleId::OWN_PREFIX), Some(RuleId::OWN_PREFIX)),
            ("10.2.7.1/32", Some(RuleId::OWN_PREFIX), Some(RuleId::OWN_PREFIX)),
            ("172.18.0.5/32", Some(RuleId::OWN_PREFIX), Some(RuleId::OWN_PREFIX)),
            ("fd00:1::7/128", Some(RuleId::OWN_PREFIX), Some(RuleId::OWN_PREFIX)),
            ("10.0.0.0/8", Some(RuleId::COVERS_OWN_PREFIX), None),
            ("172.18.0.0/16", Some(RuleId::COVERS_OWN_PREFIX), None),
            ("8.0.0.0/5", Some(RuleId::COVERS_OWN_PREFIX), None),
            ("fd00::/8", Some(RuleId::COVERS_OWN_PREFIX), None),
            ("0.0.0.0/0", Some(RuleId::DEFAULT_ROUTE), None),
            ("::/0", Some(RuleId::DEFAULT_ROUTE), None),
            ("10.0.2.0/24", None, None),
            ("172.18.0.4/32", None, None),
            ("fd00:2::/64", None, None),
        ] {
            assert_eq!(strict.check(&net(prefix)), by_strict, "{prefix}");
            assert_eq!(loose.check(&net(prefix)), by_loose, "{prefix}");
        }
    }

    #[test]
    fn martians_are_refused_at_the_chosen_level() {
        let [none, some, all] = [Martians::Accept, Martians::Unroutable, Martians::NotOnInternet]
            .map(|martians| ImportGuard::new([], GuardSettings { martians, ..GuardSettings::default() }));
        for (prefix, by_some, by_all) in [
            ("127.0.0.1/32", true, true),
            ("169.254.0.0/16", true, true),
            ("224.0.0.0/4", true, true),
            ("240.0.0.0/8", true, true),
            ("::1/128", true, true),
            ("fe80::/64", true, true),
            ("ff02::1/128", true, true),
            ("10.0.0.0/8", false, true),
            ("192.0.2.0/25", false, true),
            ("2001:db8::/48", false, true),
            ("fd00:1::/64", false, true),
            ("8.8.8.0/24", false, false),
            ("128.0.0.0/1", false, false),
            ("2600::/32", false, false),
        ] {
            let prefix = net(prefix);
            assert_eq!(none.check(&prefix), None, "{prefix}");
            assert_eq!(some.check(&prefix), by_some.then_some(RuleId::MARTIAN), "{prefix}");
            assert_eq!(all.check(&prefix), by_all.then_some(RuleId::MARTIAN), "{prefix}");
        }
        let count = |guard: &ImportGuard| guard.martians.len();
        assert_eq!(
            (count(&none), count(&some), count(&all)),
            (0, UNROUTABLE.len(), UNROUTABLE.len() + NOT_ON_INTERNET.len())
        );
    }
}
