//! Peers and groups of peers.

use std::net::{IpAddr, Ipv6Addr};
use std::time::Duration;

use ::bgp::session::PeerKind;
use ::bgp::wire::capability::Role;
use ::bgp::{Asn, PerFamily};

use super::{Context, Validator};
use crate::config::error::chain;
use crate::config::model::bgp::{
    AoAlgorithm, BgpPeer, LimitAction, PeerAuthentication, PeerBfd, PeerDistance, PeerFamily, PeerNextHop, PeerPlace,
    PeerTimers, PrefixLimit, RemoteAs,
};
use crate::config::raw::bgp_peer::{
    RawAoAlgorithm, RawBfd, RawBgpPeer, RawBgpPeerGroup, RawBgpTimers, RawFamilies, RawFamily, RawLimitAction,
    RawMaxPrefixes, RawNextHop, RawRole, RawTcpAo, RemoteAsText,
};
use crate::config::raw::{Address, FilePath};
use crate::config::secret;

/// Peers from a range unless said otherwise, and at most.
const RANGE_LIMIT: u32 = 100;
const RANGE_LIMIT_MAX: u32 = 10_000;
/// Longest shutdown communication (RFC 9003).
const SHUTDOWN_OCTETS_MAX: usize = 255;
/// Longest name of a link.
const LINK_NAME_OCTETS_MAX: usize = 15;
/// Hold times below this are lost to a busy processor, and BFD does better.
const HOLD_TIME_S_SHORT: u16 = 9;
/// Shortest BFD interval.
const BFD_INTERVAL_MS_MIN: u32 = 10;
/// Seconds until a peer with too many prefixes may come back.
const RESTART_AFTER_S: u32 = 300;

impl Validator<'_> {
    /// Checks what can be checked of a group without knowing who is in it.
    pub(super) fn bgp_group(&mut self, key: &str, raw: RawBgpPeerGroup, context: &Context) {
        let before = self.warnings.len();
        let raw = RawBgpPeer::from(raw);
        let place = PeerPlace::Interface(String::new());
        let remote_as = raw.remote_as.as_ref().and_then(|text| self.remote_as(key, text));
        // External ones may have everything.
        let kind = remote_as.map_or(PeerKind::External, |remote_as| kind_of(remote_as, context));
        self.settings(key, raw, place, remote_as.unwrap_or(RemoteAs::External), kind, context);
        self.warnings.truncate(before);
    }

    pub(super) fn bgp_peer(&mut self, key: &str, raw: RawBgpPeer, context: &Context) -> Option<BgpPeer> {
        let place = self.place(key, &raw);
        let remote_as = match &raw.remote_as {
            Some(text) => self.remote_as(key, text),
            None => {
                self.missing(&format!("{key}.remote_as"), "remote_as: NUMBER (or external, or internal)");
                None
            }
        };
        let (place, remote_as) = (place?, remote_as?);
        let kind = kind_of(remote_as, context);
        let peer = self.settings(key, raw, place, remote_as, kind, context);
        self.odd(key, &peer);
        Some(peer)
    }

    fn settings(
        &mut self,
        key: &str,
        raw: RawBgpPeer,
        place: PeerPlace,
        remote_as: RemoteAs,
        kind: PeerKind,
        context: &Context,
    ) -> BgpPeer {
        let at = |field: &str| format!("{key}.{field}");
        let group = raw.group.map(|name| name.0);
        let import = self.import_policy(key, raw.import.as_deref(), kind, context);
        let export = self.export_policy(key, raw.export.as_deref(), kind, (&place, group.as_deref()), context);
        let own_as_max = self.octet(&at("allow_own_as"), raw.allow_own_as.unwrap_or(0), 0, 10);
        if kind != PeerKind::External && raw.role.is_some() {
            let hint = "remove role; inside an AS there are no customers";
            self.error(&at("role"), "a role is for external peers only (RFC 9234)", hint);
        }
        if kind == PeerKind::External && raw.route_reflector_client == Some(true) {
            let hint = "remove it, or write remote_as: internal; for external ones there is route_server_client";
            self.error(&at("route_reflector_client"), "routes are reflected to internal peers only", hint);
        }
        if kind != PeerKind::External && raw.route_server_client == Some(true) {
            let hint = "remove it, or use route_reflector_client";
            self.error(&at("route_server_client"), "routes are served to external peers only", hint);
        }
        let shutdown = raw.shutdown.map(|words| words.0);
        if shutdown.as_ref().is_some_and(|words| words.len() > SHUTDOWN_OCTETS_MAX) {
            self.error(&at("shutdown"), "the text is longer than 255 octets (RFC 9003)", "shorten it");
        }
        let device = raw.device.map(|name| name.0);
        if let Some(device) = &device {
            self.link_name(&at("device"), device);
        }
        let distance = self.distance(key, raw.ttl_security, raw.multihop, kind);
        BgpPeer {
            group,
            remote_as,
            kind,
            local_as: raw.local_as.and_then(|number| self.local_as(&at("local_as"), number, kind, remote_as)),
            description: raw.description.map_or_else(String::new, |words| words.0),
            shutdown,
            port: self.port(&at("port"), raw.port.unwrap_or(context.port)),
            passive: raw.passive.unwrap_or(matches!(place, PeerPlace::Range(..))),
            source: raw.source.as_ref().and_then(|text| self.peer_address(&at("source"), text)),
            device,
            authentication: self.authentication(key, raw.password_file.as_ref(), raw.tcp_ao.as_ref()),
            distance,
            timers: self.timers(&at("timers"), &raw.timers, context),
            bfd: raw.bfd.as_ref().and_then(|raw| self.bfd(&at("bfd"), raw, distance, &place)),
            families: self.families(&at("families"), &raw.families, &place),
            role: raw.role.map(|role| (role_of(role), raw.role_strict.unwrap_or(false))),
            import,
            export,
            route_reflector_client: raw.route_reflector_client.unwrap_or(false),
            route_server_client: raw.route_server_client.unwrap_or(false),
            own_as_max,
            enforce_first_as: raw.enforce_first_as.unwrap_or(true),
            remove_private_as: raw.remove_private_as.unwrap_or(false),
            graceful_restart: raw.graceful_restart.unwrap_or(context.restart) && context.restart,
            extended_messages: raw.extended_messages.unwrap_or(true),
            place,
        }
    }

    fn place(&mut self, key: &str, raw: &RawBgpPeer) -> Option<PeerPlace> {
        if raw.limit.is_some() && raw.range.is_none() {
            self.error(&format!("{key}.limit"), "only a range of peers has a limit", "remove it, or write range");
        }
        match (&raw.address, &raw.interface, &raw.range) {
            (Some(text), None, None) => {
                let key = format!("{key}.address");
                let address = self.peer_address(&key, text)?;
                if is_link_local(address) && raw.device.is_none() {
                    let hint = "add device: LINK; or write interface: LINK in place of the address";
                    self.error(&key, format!("{address} is link-local and needs a link"), hint);
                }
                Some(PeerPlace::Address(address))
            }
            (None, Some(name), None) => {
                self.link_name(&format!("{key}.interface"), name.as_str());
                Some(PeerPlace::Interface(name.0.clone()))
            }
            (None, None, Some(text)) => {
                let prefix = self.prefix(&format!("{key}.range"), text)?;
                let limit = raw.limit.unwrap_or(RANGE_LIMIT);
                if !(1..=RANGE_LIMIT_MAX).contains(&limit) {
                    let message = format!("{limit} peers are not possible");
                    self.error(&format!("{key}.limit"), message, "write 1 to 10000");
                }
                if raw.passive == Some(false) {
                    let hint = "remove passive, or write the address of each peer";
                    self.error(&format!("{key}.passive"), "this node cannot connect to a range", hint);
                }
                Some(PeerPlace::Range(prefix, limit))
            }
            (None, None, None) => {
                self.error(key, "the peer has neither address, interface nor range", "add one of the three");
                None
            }
            (Some(_), _, _) | (_, Some(_), _) => {
                self.error(key, "the peer has more than one of address, interface and range", "keep one of the three");
                None
            }
        }
    }

    fn peer_address(&mut self, key: &str, text: &Address) -> Option<IpAddr> {
        match text.as_str().parse::<IpAddr>() {
            // A speaker on the same machine is a peer as well.
            Ok(address) if address.is_loopback() => Some(address),
            Ok(_) | Err(_) => self.address(key, text),
        }
    }

    fn link_name(&mut self, key: &str, name: &str) {
        if name.is_empty() || name.len() > LINK_NAME_OCTETS_MAX || name.contains(['/', ':', ' ']) {
            self.error(key, format!("{name:?} is not the name of a link"), "write a name that `ip link` shows");
        }
    }

    fn remote_as(&mut self, key: &str, text: &RemoteAsText) -> Option<RemoteAs> {
        let key = format!("{key}.remote_as");
        match (text.as_str(), text.as_str().parse::<u32>()) {
            ("external", _) => Some(RemoteAs::External),
            ("internal", _) => Some(RemoteAs::Internal),
            (_, Ok(number)) => self.asn(&key, number).map(RemoteAs::Number),
            (_, Err(_)) => {
                let message = format!("{:?} is not an AS", text.as_str());
                self.error(&key, message, "write a number, external or internal");
                None
            }
        }
    }

    fn local_as(&mut self, key: &str, number: u32, kind: PeerKind, remote_as: RemoteAs) -> Option<Asn> {
        let asn = self.asn(key, number)?;
        if kind != PeerKind::External {
            self.error(key, "only external peers can be told another AS", "remove local_as");
        } else if remote_as == RemoteAs::Number(asn) {
            self.error(
                key,
                format!("AS {asn} is that of the peer"),
                "choose another; with its own it is an internal peer",
            );
        }
        Some(asn)
    }

    fn distance(&mut self, key: &str, secured: Option<u16>, multihop: Option<u16>, kind: PeerKind) -> PeerDistance {
        let secured = secured.map(|hops| self.octet(&format!("{key}.ttl_security"), hops, 1, 254));
        let multihop = multihop.map(|hops| self.octet(&format!("{key}.multihop"), hops, 1, 255));
        match (secured, multihop) {
            (Some(hops), None) => PeerDistance::Secured(hops),
            (Some(hops), Some(_)) => {
                let hint = "write ttl_security with the number of hops and remove multihop";
                self.error(key, "ttl_security and multihop exclude each other", hint);
                PeerDistance::Secured(hops)
            }
            (None, Some(1)) if kind == PeerKind::External => PeerDistance::Adjacent,
            (None, Some(hops)) => PeerDistance::Multihop(hops),
            (None, None) if kind == PeerKind::External => PeerDistance::Adjacent,
            (None, None) => PeerDistance::Multihop(255),
        }
    }

    /// A small number.
    fn octet(&mut self, key: &str, number: u16, low: u8, high: u8) -> u8 {
        match u8::try_from(number) {
            Ok(number) if (low..=high).contains(&number) => number,
            Ok(_) | Err(_) => {
                self.error(key, format!("{number} is outside {low} to {high}"), format!("write {low} to {high}"));
                low
            }
        }
    }

    fn authentication(&mut self, key: &str, md5: Option<&FilePath>, ao: Option<&RawTcpAo>) -> PeerAuthentication {
        match (md5, ao) {
            (None, None) => PeerAuthentication::None,
            (Some(path), None) => {
                let path = self.path(path);
                self.secret(&format!("{key}.password_file"), &path);
                PeerAuthentication::Md5(path)
            }
            (None, Some(raw)) => {
                let key = format!("{key}.tcp_ao");
                let Some(path) = &raw.key_file else {
                    self.missing(&format!("{key}.key_file"), "key_file: FILE");
                    return PeerAuthentication::None;
                };
                let key_file = self.path(path);
                self.secret(&format!("{key}.key_file"), &key_file);
                PeerAuthentication::Ao {
                    key_file,
                    send_id: self.octet(&format!("{key}.send_id"), raw.send_id.unwrap_or(1), 0, 255),
                    receive_id: self.octet(&format!("{key}.receive_id"), raw.receive_id.unwrap_or(1), 0, 255),
                    algorithm: match raw.algorithm {
                        Some(RawAoAlgorithm::HmacSha1) | None => AoAlgorithm::HmacSha1,
                        Some(RawAoAlgorithm::AesCmac) => AoAlgorithm::AesCmac,
                        Some(RawAoAlgorithm::HmacSha256) => AoAlgorithm::HmacSha256,
                    },
                }
            }
            (Some(_), Some(_)) => {
                self.error(key, "password_file and tcp_ao exclude each other", "keep one of the two");
                PeerAuthentication::None
            }
        }
    }

    fn secret(&mut self, key: &str, path: &std::path::Path) {
        if let Err(error) = secret::read(path) {
            let hint = error.hint();
            self.error(key, chain(&error), hint);
        }
    }

    fn timers(&mut self, key: &str, raw: &RawBgpTimers, context: &Context) -> PeerTimers {
        let hold_time_s = match raw.hold_time_s {
            Some(seconds) => self.hold_time(&format!("{key}.hold_time_s"), seconds),
            None => context.hold_time_s,
        };
        if let Some(keepalive) = raw.keepalive_s
            && (keepalive == 0 || (hold_time_s > 0 && keepalive >= hold_time_s))
        {
            let message = format!("{keepalive} seconds do not keep a hold time of {hold_time_s} seconds");
            self.error(&format!("{key}.keepalive_s"), message, "write a third of the hold time, or leave it out");
        }
        let connect_retry_s = raw.connect_retry_s.unwrap_or(5);
        if connect_retry_s == 0 {
            self.error(&format!("{key}.connect_retry_s"), "0 seconds are not possible", "write 1 or more");
        }
        PeerTimers {
            hold_time_s,
            keepalive_s: raw.keepalive_s,
            connect_retry: Duration::from_secs(connect_retry_s.into()),
            delay_open: raw.delay_open_s.filter(|s| *s > 0).map(|s| Duration::from_secs(s.into())),
        }
    }

    fn bfd(&mut self, key: &str, raw: &RawBfd, distance: PeerDistance, place: &PeerPlace) -> Option<PeerBfd> {
        let mut interval = |field: &str, ms: u32, may_be_0: bool| {
            if ms < BFD_INTERVAL_MS_MIN && !(may_be_0 && ms == 0) {
                let hint = "write 10 or more; 50 finds a dead link in 150 milliseconds";
                self.error(&format!("{key}.{field}"), format!("{ms} milliseconds are too short"), hint);
            }
            Duration::from_millis(ms.into())
        };
        let transmit = interval("transmit_ms", raw.transmit_ms.unwrap_or(300), false);
        let receive = interval("receive_ms", raw.receive_ms.unwrap_or(300), false);
        let echo = interval("echo_ms", raw.echo_ms.unwrap_or(0), true);
        let echo_transmit = interval("echo_transmit_ms", raw.echo_transmit_ms.unwrap_or(0), true);
        let multiplier = self.octet(&format!("{key}.multiplier"), raw.multiplier.unwrap_or(3), 1, 255);
        let is_far = match distance {
            PeerDistance::Adjacent => false,
            PeerDistance::Secured(hops) | PeerDistance::Multihop(hops) => hops > 1,
        };
        for (field, interval) in [("echo_ms", echo), ("echo_transmit_ms", echo_transmit)] {
            if !interval.is_zero() && is_far {
                let hint = format!("remove {field}, or write ttl_security: 1 for a direct neighbor");
                let problem = "echo packets do not come back over several hops (RFC 5883)";
                self.error(&format!("{key}.{field}"), problem, &hint);
            }
        }
        let is_link_local = match place {
            PeerPlace::Address(IpAddr::V6(address)) => address.is_unicast_link_local(),
            // A group has no place, which is written as a link without a name.
            PeerPlace::Interface(name) => !name.is_empty(),
            PeerPlace::Address(IpAddr::V4(_)) | PeerPlace::Range(..) => false,
        };
        if !echo_transmit.is_zero() && is_link_local {
            let hint = "remove echo_transmit_ms, or name the peer by an address that is routed";
            let problem = "echo packets cannot be addressed to link-local addresses, which nobody forwards";
            self.error(&format!("{key}.echo_transmit_ms"), problem, hint);
        }
        raw.enabled.unwrap_or(true).then_some(PeerBfd {
            transmit,
            receive,
            multiplier,
            echo: (!echo.is_zero()).then_some(echo),
            echo_transmit: (!echo_transmit.is_zero()).then_some(echo_transmit),
            passive: raw.passive.unwrap_or(false),
            strict: raw.strict.unwrap_or(false),
        })
    }

    fn families(&mut self, key: &str, raw: &RawFamilies, place: &PeerPlace) -> PerFamily<Option<PeerFamily>> {
        let (has_ipv4, has_ipv6) = match place {
            PeerPlace::Address(address) => (address.is_ipv4(), address.is_ipv6()),
            PeerPlace::Interface(_) => (true, true),
            PeerPlace::Range(prefix, _) => (prefix.addr().is_ipv4(), prefix.addr().is_ipv6()),
        };
        let ipv4 = self.family(&format!("{key}.ipv4"), raw.ipv4.as_ref(), has_ipv4, has_ipv6);
        if raw.ipv6.as_ref().is_some_and(|raw| raw.extended_next_hop == Some(true)) {
            let hint = "it stands for IPv4 prefixes with IPv6 next hops: write it in families.ipv4";
            self.error(&format!("{key}.ipv6.extended_next_hop"), "IPv6 prefixes always have IPv6 next hops", hint);
        }
        let ipv6 = self.family(&format!("{key}.ipv6"), raw.ipv6.as_ref(), has_ipv6, false);
        if ipv4.is_none() && ipv6.is_none() {
            self.error(key, "no address family is left", "leave one of them on");
        }
        PerFamily { ipv4, ipv6 }
    }

    fn family(&mut self, key: &str, raw: Option<&RawFamily>, default: bool, extended: bool) -> Option<PeerFamily> {
        let written = RawFamily::default();
        let is_on = raw.map_or(default, |raw| raw.enabled.unwrap_or(true));
        let raw = raw.unwrap_or(&written);
        let add_path_send = match raw.add_path.send.as_ref().map(|text| (text.as_str(), text.as_str().parse::<u16>())) {
            None | Some((_, Ok(1))) => None,
            Some(("all", _)) => Some(0),
            Some((_, Ok(paths))) if paths > 1 => Some(paths),
            Some((text, _)) => {
                let message = format!("{text:?} is not a number of paths");
                self.error(&format!("{key}.add_path.send"), message, "write a number from 2, or all");
                None
            }
        };
        let next_hop_address = raw.next_hop_address.as_ref();
        let family = PeerFamily {
            add_path_send,
            add_path_receive: raw.add_path.receive.unwrap_or(false),
            prefixes_max: raw
                .max_prefixes
                .as_ref()
                .and_then(|raw| self.prefix_limit(&format!("{key}.max_prefixes"), raw)),
            next_hop: match raw.next_hop {
                Some(RawNextHop::Auto) | None => PeerNextHop::Auto,
                Some(RawNextHop::Own) => PeerNextHop::Own,
                Some(RawNextHop::Unchanged) => PeerNextHop::Unchanged,
            },
            next_hop_address: next_hop_address
                .and_then(|text| self.peer_address(&format!("{key}.next_hop_address"), text)),
            extended_next_hop: raw.extended_next_hop.unwrap_or(extended),
        };
        is_on.then_some(family)
    }

    fn prefix_limit(&mut self, key: &str, raw: &RawMaxPrefixes) -> Option<PrefixLimit> {
        let Some(limit) = raw.limit else {
            self.missing(&format!("{key}.limit"), "limit: NUMBER");
            return None;
        };
        if limit == 0 {
            let hint = "write how many there may be; to take nothing, give the peer a policy that rejects";
            self.error(&format!("{key}.limit"), "a limit of 0 keeps the session down", hint);
        }
        let restart = Duration::from_secs(raw.restart_after_s.unwrap_or(RESTART_AFTER_S).into());
        Some(PrefixLimit {
            limit,
            warn_percent: self.octet(&format!("{key}.warn_percent"), raw.warn_percent.unwrap_or(75), 1, 100),
            action: match raw.action {
                Some(RawLimitAction::Restart) | None => LimitAction::Restart(restart),
                Some(RawLimitAction::Teardown) => LimitAction::Teardown,
                Some(RawLimitAction::Warn) => LimitAction::Warn,
            },
        })
    }

    /// What is possible, but perhaps not meant.
    fn odd(&mut self, key: &str, peer: &BgpPeer) {
        let place = &peer.place;
        let nothing = [(&peer.import, "import", "imported"), (&peer.export, "export", "exported")];
        for (policy, field, verb) in nothing {
            if *policy == ::bgp::policy::Policy::reject_all() {
                let key = format!("{key}.{field}");
                let more = if field == "import" { "bgp.import.accept" } else { "bgp.advertise" };
                let message = format!("external peer {place} has no policy: nothing is {verb} (RFC 8212)");
                self.warn(&key, message, format!("add {field}: [POLICY], or {more}"));
            }
        }
        let is_open = peer.kind == PeerKind::External
            && peer.authentication == PeerAuthentication::None
            && !matches!(peer.distance, PeerDistance::Secured(_))
            && !matches!(place, PeerPlace::Interface(_));
        if is_open {
            let message = format!("anybody who can send packets to this node can end the session with {place}");
            self.warn(key, message, "add password_file or tcp_ao, or ttl_security: 1 for a direct neighbor");
        }
        let hold_time_s = peer.timers.hold_time_s;
        if hold_time_s < HOLD_TIME_S_SHORT && peer.bfd.is_none() {
            let (message, hint) = if hold_time_s == 0 {
                (
                    format!("a dead peer {place} is never noticed without hold time and BFD"),
                    "add a hold time or bfd: {}",
                )
            } else {
                let message = format!("a hold time of {hold_time_s} seconds ends the session with {place} under load");
                (message, "add bfd: {}, which is faster, and write a hold time of 9 and more")
            };
            self.warn(&format!("{key}.timers.hold_time_s"), message, hint);
        }
    }
}

fn kind_of(remote_as: RemoteAs, context: &Context) -> PeerKind {
    match remote_as {
        RemoteAs::Internal => PeerKind::Internal,
        RemoteAs::Number(asn) if asn == context.asn => PeerKind::Internal,
        RemoteAs::Number(asn) if context.confederation.as_ref().is_some_and(|it| it.members.contains(&asn)) => {
            PeerKind::Confederation
        }
        RemoteAs::Number(_) | RemoteAs::External => PeerKind::External,
    }
}

const fn role_of(role: RawRole) -> Role {
    match role {
        RawRole::Provider => Role::Provider,
        RawRole::RouteServer => Role::RouteServer,
        RawRole::RouteServerClient => Role::RouteServerClient,
        RawRole::Customer => Role::Customer,
        RawRole::Peer => Role::Peer,
    }
}

fn is_link_local(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => address.is_link_local(),
        IpAddr::V6(address) => Ipv6Addr::is_unicast_link_local(&address),
    }
}
