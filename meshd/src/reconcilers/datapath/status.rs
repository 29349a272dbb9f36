//! What the datapath says about itself.

use meshd_abi::Reason;

use super::State;
use crate::config::model::services::DsrKind;

/// The datapath at one moment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DatapathStatus {
    /// Programs on links and control groups.
    pub programs: Vec<LinkStatus>,
    /// How full the maps are, and how many ports for translated sources are used towards the destination that has most.
    pub maps: Vec<MapStatus>,
    /// How notes of frontends travel, where a service uses direct server return.
    pub direct_return: Option<&'static str>,
    /// What the programs write around packets that go through the tunnel; `None`: the kernel's device does it, or there is no tunnel.
    pub tunnel: Option<&'static str>,
    /// Workloads of different nodes reach each other past the stack.
    pub fast_path: bool,
    /// What the kernel lacks, with what follows from it.
    pub lacking: Vec<(&'static str, &'static str)>,
    /// Packets by reason, since the maps were made; those without any are left out.
    pub packets: Vec<(Reason, u64)>,
}

/// A program on a link or a control group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LinkStatus {
    /// The program.
    pub program: &'static str,
    /// The link, or the path of the control group.
    pub link: String,
    /// How it is attached, or why not.
    pub outcome: Result<String, String>,
}

/// How full a map is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MapStatus {
    /// What it holds.
    pub name: &'static str,
    /// Elements in use.
    pub used: u64,
    /// Elements there is room for.
    pub room: u64,
}

impl State {
    pub(super) fn status(&self) -> DatapathStatus {
        let sizes = &self.options.sizes;
        let map = |name, used: u64, room: u32| MapStatus { name, used, room: room.into() };
        let [members, chunks] = self.services.room();
        let [backends4, backends6] = self.services.backends();
        let identities = self.identities.used();
        let [prefixes4, prefixes6] = self.masquerade.exclusions.used();
        let [ranges4, ranges6] = self.services.ranges();
        let mut maps = vec![
            map("services", self.services.frontends() as u64, sizes.services),
            map("backends_ipv4", backends4 as u64, sizes.backends),
            map("backends_ipv6", backends6 as u64, sizes.backends),
            map("members", u64::from(sizes.members) - members, sizes.members),
            map("maglev", u64::from(sizes.maglev) - chunks, sizes.maglev),
            map("connections_ipv4", self.connections[0] as u64, sizes.connections),
            map("connections_ipv6", self.connections[1] as u64, sizes.connections.div_ceil(4)),
            map("snat_ports", self.busiest.map_or(0, |busiest| busiest.used.into()), self.options.ports.1.into()),
            map("tunnels", self.far_ends.len() as u64, sizes.next_hops),
            map("identities_ipv4", identities.addresses[0] as u64, sizes.identities),
            map("identities_ipv6", identities.addresses[1] as u64, sizes.identities),
            map("identity_prefixes_ipv4", identities.prefixes[0] as u64, sizes.prefixes),
            map("identity_prefixes_ipv6", identities.prefixes[1] as u64, sizes.prefixes),
            map("masquerade_prefixes_ipv4", prefixes4 as u64, sizes.prefixes),
            map("masquerade_prefixes_ipv6", prefixes6 as u64, sizes.prefixes),
            map("source_ranges_ipv4", ranges4 as u64, sizes.ranges),
            map("source_ranges_ipv6", ranges6 as u64, sizes.ranges),
            map("next_hops", self.hops.used(), sizes.next_hops),
        ];
        if self.sockets.is_wanted() {
            maps.push(map("sockets_ipv4", self.sockets.used[0] as u64, sizes.sockets));
            maps.push(map("sockets_ipv6", self.sockets.used[1] as u64, sizes.sockets));
        }
        let programs = self
            .links
            .attached
            .iter()
            .map(|((program, _), attachment)| LinkStatus {
                program: program.name(),
                link: attachment.name.to_string(),
                outcome: attachment.outcome.clone().map(|attached| attached.word().to_owned()),
            })
            .chain(self.sockets.status())
            .collect();
        let packets = Reason::ALL
            .iter()
            // A counter that cannot be read is not worth losing the others for.
            .filter_map(|reason| Some((*reason, self.counter(*reason).ok()?)))
            .filter(|(_, packets)| *packets > 0)
            .collect();
        let direct_return = self.has_direct.then_some(match self.options.dsr {
            DsrKind::Option => "option",
            DsrKind::Ipip => "ipip",
            DsrKind::Geneve => "geneve",
        });
        let lacking = self.programs.features().lacking();
        let tunnel = self.far_ends.protocol();
        let fast_path = self.options.fast_path;
        DatapathStatus { programs, maps, direct_return, tunnel, fast_path, lacking, packets }
    }
}
