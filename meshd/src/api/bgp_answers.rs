//! What the BGP speaker says, as JSON shapes.

use bgp::{
    Asn, Family,
    session::{DownCause, MessageCounts, PeerKind, RemoteAs, State},
    wire::capability::{Capability, RestartFamily, Role, code},
};
use jiff::Timestamp;

use super::bgp_view::{
    BgpCapabilitiesView, BgpCapabilityView, BgpFamilyView, BgpMessageCountsView, BgpMessagesView, BgpMrtLogView,
    BgpNeighborRow, BgpNeighborView, BgpResetCauseView, BgpStationView, BgpSummaryView, BgpTableView, BgpTimersView,
};
use crate::speaker::{
    answers::{PeerReport, SpeakerReport},
    bfd::{Echo, EchoState},
    bmp::StationStatus,
};

/// A peer that takes nothing for so long is a problem: it may have forgotten the session, or be overwhelmed.
const NOT_READING_S: u64 = 10;

/// What a session that is to be signed needs.
const SHARED_KEY: &str = "the same TCP-MD5 key";

/// `summary`
#[must_use]
pub fn summary(speaker: &SpeakerReport, peers: &[PeerReport], now: Timestamp) -> BgpSummaryView {
    let table = |family: Family| {
        let of = speaker.totals.families.get(family);
        BgpTableView { family: name(family).to_owned(), prefixes: of.destinations.into(), paths: of.paths.into() }
    };
    BgpSummaryView {
        asn: speaker.asn.0,
        router_id: speaker.router_id.to_string(),
        peers: peers.len() as u64,
        established: peers.iter().filter(|peer| peer.status.state == State::Established).count() as u64,
        tables: Family::ALL.map(table).into(),
        attribute_sets: speaker.totals.attribute_sets.into(),
        attribute_bytes: speaker.totals.attribute_octets as u64,
        strangers: speaker.strangers,
        neighbors: peers.iter().map(|peer| row(peer, now)).collect(),
        stations: speaker.stations.iter().map(station).collect(),
        mrt_log: speaker.log.as_ref().map(|log| BgpMrtLogView {
            written_bytes: log.written_octets,
            files: log.files,
            lost: log.lost,
            problem: log.problem.clone(),
        }),
    }
}

fn station((address, status): &(std::net::SocketAddr, StationStatus)) -> BgpStationView {
    BgpStationView {
        address: address.to_string(),
        connected: status.connection.is_some(),
        sent_bytes: status.sent_octets,
        waiting_bytes: status.waiting_octets as u64,
        overflows: status.overflows,
        problem: status.problem.clone(),
    }
}

/// One of `neighbors`
#[must_use]
pub fn neighbor(peer: &PeerReport, now: Timestamp) -> BgpNeighborView {
    let agreed = peer.negotiated.as_ref();
    let hold_time_s = agreed.map(|agreed| agreed.hold_time_s);
    let keepalive = |hold: u16| peer.config.keepalive_s.unwrap_or(u16::MAX).min((hold / 3).max(1));
    BgpNeighborView {
        row: row(peer, now),
        kind: kind(agreed.map_or_else(|| peer.config.expected_kind(), |agreed| agreed.kind)).to_owned(),
        local_as: agreed.map_or_else(|| peer.config.presented_as(), |agreed| agreed.local_as).0,
        remote_router_id: agreed.map(|agreed| agreed.router_id.to_string()),
        local_address: peer.ends.map(|(local, _)| local.to_string()),
        remote_address: peer.ends.map(|(_, remote)| remote.to_string()),
        established_count: peer.established_count,
        timers: BgpTimersView {
            hold_time_s,
            keepalive_s: hold_time_s.filter(|hold| *hold > 0).map(keepalive),
            offered_hold_time_s: peer.config.hold_time_s,
            remote_hold_time_s: agreed.map(|agreed| agreed.remote_open.hold_time_s),
            connect_retry_s: peer.config.connect_retry.as_secs(),
        },
        role: agreed.and_then(|agreed| agreed.role).map(|role| role_name(role).to_owned()),
        capabilities: BgpCapabilitiesView {
            sent: capabilities(&peer.offered),
            received: agreed.map(|agreed| capabilities(&agreed.remote_open.capabilities)).unwrap_or_default(),
        },
        restart_time_s: agreed.and_then(|agreed| agreed.restart).map(|restart| restart.restart_time_s),
        message_length_max: agreed.map(|agreed| agreed.length_limit.octets() as u64),
        messages: BgpMessageCountsView { received: messages(&peer.received), sent: messages(&peer.sent) },
        malformed_updates: peer.status.malformed_updates,
        last_malformed: peer.status.last_malformed.clone(),
        bfd: match (peer.bfd, peer.wants_bfd) {
            (Some(state), _) => Some(state.to_string()),
            (None, true) => Some("waiting".to_owned()),
            (None, false) => None,
        },
        bfd_echo: peer.bfd_echo.as_ref().map(bfd_echo),
    }
}

/// The echo function in words.
fn bfd_echo(echo: &Echo) -> String {
    let interval = || echo.interval.map(|interval| format!(", every {interval:?}")).unwrap_or_default();
    let source = || echo.source.map(|source| format!(" from {source}")).unwrap_or_default();
    match (&echo.problem, echo.state) {
        (Some(problem), _) => format!("not sent: {problem}"),
        (None, EchoState::Off | EchoState::Waiting) => "waiting".to_owned(),
        (None, EchoState::NotPermitted) => "not sent: the peer does not permit them".to_owned(),
        (None, EchoState::Unanswered) => format!("unanswered{}{}", interval(), source()),
        (None, EchoState::Active) => format!("active{}{}", interval(), source()),
    }
}

/// What `status` says about a peer, and since when; `None` when all is well.
#[must_use]
pub fn problem(peer: &BgpNeighborRow) -> Option<(String, Option<Timestamp>)> {
    if let Some(seconds) = peer.send_blocked_s.filter(|seconds| *seconds >= NOT_READING_S) {
        let message = format!("the peer has not read for {seconds} s: what it is to be told waits");
        return Some((message, peer.send_blocked_since));
    }
    if peer.state == "established" || peer.shutdown || peer.dynamic {
        return None;
    }
    let since = peer.last_reset.as_ref().map(|last| last.at);
    let ended = peer.last_reset.as_ref().map(|last| last.reason.as_str());
    let failed = peer.last_failure.as_ref().map(|last| last.reason.as_str());
    let why = match (ended, failed) {
        (Some(ended), Some(failed)) if ended != failed => format!(": {ended}; since then: {failed}"),
        (Some(only), _) | (None, Some(only)) => format!(": {only}"),
        (None, None) if peer.authentication.is_some() => {
            format!(" yet: nothing came that is signed with {SHARED_KEY}")
        }
        (None, None) => " yet".to_owned(),
    };
    let message = format!("the BGP session is not established{why}");
    Some((message, since))
}

fn row(peer: &PeerReport, now: Timestamp) -> BgpNeighborRow {
    let configured = match peer.config.remote_as {
        RemoteAs::Number(asn) => Some(asn),
        RemoteAs::Internal => Some(peer.config.local_as),
        RemoteAs::External => None,
    };
    let remote_as = peer.negotiated.as_ref().map(|agreed| agreed.remote_as).or(configured);
    let is_up = peer.status.state == State::Established;
    let families: Vec<BgpFamilyView> = Family::ALL.into_iter().filter_map(|it| family(peer, it)).collect();
    let sum = |of: fn(&BgpFamilyView) -> u64| families.iter().map(of).sum();
    BgpNeighborRow {
        peer: peer.key.to_string(),
        address: peer.address(),
        interface: peer.key.link().map(ToString::to_string),
        description: Some(peer.description.clone()).filter(|text| !text.is_empty()),
        remote_as: remote_as.map(|asn| asn.0),
        state: state(peer.status.state).to_owned(),
        shutdown: peer.is_shut_down,
        dynamic: peer.is_dynamic,
        authentication: peer.authentication.map(str::to_owned),
        established_since: peer.established_since,
        uptime_s: peer.established_since.map(|since| seconds(now, since)),
        downs: peer.established_count.saturating_sub(u64::from(is_up)),
        last_reset: peer.last_down.as_ref().map(|(at, cause)| reset_cause(*at, cause, peer.authentication.is_some())),
        last_failure: peer
            .last_failure
            .as_ref()
            .map(|(at, cause)| reset_cause(*at, cause, peer.authentication.is_some())),
        connections_refused: peer.refused,
        last_refusal: peer.refused_why.clone(),
        send_blocked_since: peer.send_blocked.and_then(|time| now.checked_sub(time).ok()),
        send_blocked_s: peer.send_blocked.map(|time| time.as_secs()),
        messages_received: total(&peer.received),
        messages_sent: total(&peer.sent),
        updates_received: peer.received.update,
        updates_sent: peer.sent.update,
        received: sum(|family| family.received),
        accepted: sum(|family| family.accepted),
        best: sum(|family| family.best),
        advertised: sum(|family| family.advertised),
        families,
    }
}

fn reset_cause(at: Timestamp, cause: &DownCause, has_key: bool) -> BgpResetCauseView {
    let communication = match cause {
        DownCause::Received(notification) => notification.communication(),
        _ => None,
    };
    let reason = match cause {
        // The kernel drops what is signed wrongly without a word to either side.
        DownCause::NoAnswer if has_key => format!("{cause}; both sides must have {SHARED_KEY}"),
        cause => cause.to_string(),
    };
    BgpResetCauseView { at, reason, communication }
}

/// A family that is configured, or of which something is left.
fn family(peer: &PeerReport, family: Family) -> Option<BgpFamilyView> {
    let report = peer.families.get(family);
    let agreed = peer.negotiated.as_ref().and_then(|agreed| *agreed.families.get(family));
    let is_wanted = peer.config.families.get(family).is_some();
    if !is_wanted && agreed.is_none() && report.counts.received == 0 {
        return None;
    }
    let of = agreed.unwrap_or_default();
    Some(BgpFamilyView {
        family: name(family).to_owned(),
        negotiated: agreed.is_some(),
        received: report.counts.received.into(),
        accepted: report.counts.accepted.into(),
        best: report.counts.best.into(),
        stale: report.counts.stale.into(),
        advertised: report.advertised.into(),
        received_max: report.limits.received_max.map(Into::into),
        accepted_max: report.limits.accepted_max.map(Into::into),
        add_path_receive: of.add_path_receive,
        add_path_send: of.add_path_send,
        extended_next_hop: of.extended_next_hop,
        graceful_restart: of.restart,
        long_lived_stale_s: of.stale_time_s,
    })
}

/// The name of a family, as the configuration has it.
#[must_use]
pub const fn name(family: Family) -> &'static str {
    match family {
        Family::Ipv4Unicast => "ipv4",
        Family::Ipv6Unicast => "ipv6",
    }
}

/// The name of a state.
#[must_use]
pub const fn state(state: State) -> &'static str {
    match state {
        State::Idle => "idle",
        State::Connect => "connect",
        State::Active => "active",
        State::OpenSent => "open_sent",
        State::OpenConfirm => "open_confirm",
        State::Established => "established",
    }
}

const fn kind(kind: PeerKind) -> &'static str {
    match kind {
        PeerKind::External => "external",
        PeerKind::Internal => "internal",
        PeerKind::Confederation => "confederation",
    }
}

const fn role_name(role: Role) -> &'static str {
    match role {
        Role::Provider => "provider",
        Role::RouteServer => "route-server",
        Role::RouteServerClient => "route-server-client",
        Role::Customer => "customer",
        Role::Peer => "peer",
    }
}

fn seconds(now: Timestamp, since: Timestamp) -> u64 {
    u64::try_from(now.duration_since(since).as_secs()).unwrap_or(0)
}

const fn total(counts: &MessageCounts) -> u64 {
    counts.open + counts.update + counts.notification + counts.keepalive + counts.route_refresh
}

const fn messages(counts: &MessageCounts) -> BgpMessagesView {
    let MessageCounts { open, update, notification, keepalive, route_refresh } = *counts;
    BgpMessagesView { open, update, notification, keepalive, route_refresh }
}

fn capabilities(all: &[Capability]) -> Vec<BgpCapabilityView> {
    all.iter().map(capability).collect()
}

/// A capability, its name and what it says.
fn capability(of: &Capability) -> BgpCapabilityView {
    let (code, name, value) = match of {
        Capability::Multiprotocol { afi, safi } => (code::MULTIPROTOCOL, "multiprotocol", Some(numbers(*afi, *safi))),
        Capability::RouteRefresh => (code::ROUTE_REFRESH, "route-refresh", None),
        Capability::ExtendedNextHop(list) => {
            let one = |(afi, safi, via): &(u16, u16, u16)| {
                let via = if *via == 2 { "IPv6".to_owned() } else { format!("AFI {via}") };
                format!("{} via {via}", numbers(*afi, u8::try_from(*safi).unwrap_or(u8::MAX)))
            };
            (code::EXTENDED_NEXT_HOP, "extended-next-hop", Some(joined(list.iter().map(one))))
        }
        Capability::ExtendedMessage => (code::EXTENDED_MESSAGE, "extended-message", None),
        Capability::Role(role) => (code::ROLE, "role", Some(role_name(*role).to_owned())),
        Capability::GracefulRestart(restart) => {
            let family = |family: &RestartFamily| numbers(family.afi, family.safi);
            let mut said = vec![format!("{} s", restart.restart_time_s)];
            said.extend(restart.restarted.then(|| "restarted".to_owned()));
            said.extend(restart.notification.then(|| "also after notifications".to_owned()));
            said.extend(restart.families.iter().map(family));
            (code::GRACEFUL_RESTART, "graceful-restart", Some(said.join(", ")))
        }
        Capability::FourOctetAs(Asn(asn)) => (code::FOUR_OCTET_AS, "4-octet-as", Some(asn.to_string())),
        Capability::AddPath(list) => {
            let one = |of: &bgp::wire::capability::AddPathFamily| {
                let mode = match (of.mode.sends(), of.mode.receives()) {
                    (true, true) => "send and receive",
                    (true, false) => "send",
                    _ => "receive",
                };
                format!("{} {mode}", numbers(of.afi, of.safi))
            };
            (code::ADD_PATH, "add-path", Some(joined(list.iter().map(one))))
        }
        Capability::EnhancedRouteRefresh => (code::ENHANCED_ROUTE_REFRESH, "enhanced-route-refresh", None),
        Capability::LongLivedGracefulRestart(list) => {
            let one = |of: &bgp::wire::capability::LongLivedFamily| {
                format!("{} {} s", numbers(of.afi, of.safi), of.stale_time_s)
            };
            let value = Some(joined(list.iter().map(one)));
            (code::LONG_LIVED_GRACEFUL_RESTART, "long-lived-graceful-restart", value)
        }
        Capability::Fqdn { host, domain } => {
            let value = if domain.is_empty() { host.clone() } else { format!("{host}.{domain}") };
            (code::FQDN, "fqdn", Some(printable(&value)))
        }
        Capability::BfdStrict => (code::BFD_STRICT, "bfd-strict", None),
        Capability::Unknown { code, value } => (*code, "unknown", Some(hex(value))),
    };
    BgpCapabilityView { code, name: name.to_owned(), value: value.filter(|value| !value.is_empty()) }
}

/// Octets in hexadecimal.
#[must_use]
pub fn hex(octets: &[u8]) -> String {
    use std::fmt::Write as _;
    octets.iter().fold(String::with_capacity(octets.len() * 2), |mut text, octet| {
        // Writing to a string does not fail.
        let _ = write!(text, "{octet:02x}");
        text
    })
}

/// A peer may say anything; a terminal is not told control characters.
fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { char::REPLACEMENT_CHARACTER } else { c }).collect()
}

fn numbers(afi: u16, safi: u8) -> String {
    Family::from_numbers(afi, safi)
        .map_or_else(|| format!("AFI {afi} SAFI {safi}"), |family| format!("{}-unicast", name(family)))
}

fn joined(items: impl Iterator<Item = String>) -> String {
    items.collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(state: &str, ended: Option<&str>, failed: Option<&str>) -> BgpNeighborRow {
        let cause = |reason: Option<&str>| {
            reason.map(
                |reason| serde_json::json!({"at": "2026-01-01T00:00:00Z", "reason": reason, "communication": null}),
            )
        };
        let value = serde_json::json!({
            "peer": "192.0.2.2", "address": "192.0.2.2", "interface": null, "description": null, "remote_as": 65002,
            "state": state, "shutdown": false, "dynamic": false, "authentication": null, "established_since": null,
            "uptime_s": null, "downs": u8::from(ended.is_some()), "last_reset": cause(ended),
            "last_failure": cause(failed), "connections_refused": 0, "last_refusal": null, "send_blocked_since": null,
            "send_blocked_s": null, "messages_received": 0, "messages_sent": 0, "updates_received": 0,
            "updates_sent": 0, "received": 0, "accepted": 0, "best": 0, "advertised": 0, "families": [],
        });
        serde_json::from_value(value).expect("a row")
    }

    #[test]
    fn a_wanted_peer_without_a_session_is_a_problem() {
        let expired = Some("hold timer expired");
        assert_eq!(problem(&peer("established", expired, None)), None);
        for (ended, failed, expected, has_since) in [
            (None, None, "the BGP session is not established yet", false),
            (None, Some("refused"), "the BGP session is not established: refused", false),
            (expired, None, "the BGP session is not established: hold timer expired", true),
            (expired, expired, "the BGP session is not established: hold timer expired", true),
            (
                expired,
                Some("refused"),
                "the BGP session is not established: hold timer expired; since then: refused",
                true,
            ),
        ] {
            let (message, since) = problem(&peer("active", ended, failed)).expect("a problem");
            assert_eq!((message.as_str(), since.is_some()), (expected, has_since));
        }
        assert_eq!(problem(&BgpNeighborRow { shutdown: true, ..peer("idle", expired, None) }), None);
        assert_eq!(problem(&BgpNeighborRow { dynamic: true, ..peer("idle", expired, None) }), None);
    }

    #[test]
    fn a_session_that_is_to_be_signed_and_hears_nothing_names_the_key() {
        let keyed = BgpNeighborRow { authentication: Some("tcp-md5".to_owned()), ..peer("active", None, None) };
        let (message, _) = problem(&keyed).expect("a problem");
        assert!(message.contains("the same TCP-MD5 key"), "{message}");
        let said = |cause: &DownCause, has_key| reset_cause(Timestamp::UNIX_EPOCH, cause, has_key).reason;
        assert!(said(&DownCause::NoAnswer, true).contains("the same TCP-MD5 key"));
        assert_eq!(said(&DownCause::NoAnswer, false), "no answer to the attempt to connect");
        assert_eq!(said(&DownCause::HoldTimer, true), "hold timer expired");
    }

    #[test]
    fn a_peer_that_does_not_read_is_a_problem_after_a_while() {
        let since: Timestamp = "2026-01-01T00:00:00Z".parse().expect("a time");
        let blocked = |seconds| BgpNeighborRow {
            send_blocked_s: Some(seconds),
            send_blocked_since: Some(since),
            ..peer("established", None, None)
        };
        assert_eq!(problem(&blocked(NOT_READING_S - 1)), None);
        let (message, at) = problem(&blocked(NOT_READING_S)).expect("a problem");
        assert_eq!(message, "the peer has not read for 10 s: what it is to be told waits");
        assert_eq!(at, Some(since));
    }

    #[test]
    fn capabilities_are_told_in_words() {
        let told = |of: Capability| {
            let BgpCapabilityView { name, value, .. } = capability(&of);
            (name, value.unwrap_or_default())
        };
        let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        assert_eq!(told(Capability::Multiprotocol { afi: 2, safi: 1 }), pair("multiprotocol", "ipv6-unicast"));
        assert_eq!(told(Capability::Multiprotocol { afi: 25, safi: 70 }), pair("multiprotocol", "AFI 25 SAFI 70"));
        let next_hop = Capability::ExtendedNextHop(vec![(1, 1, 2)]);
        assert_eq!(told(next_hop), pair("extended-next-hop", "ipv4-unicast via IPv6"));
        let name = Capability::Fqdn { host: "a\u{1b}[2J".to_owned(), domain: String::new() };
        assert_eq!(told(name), pair("fqdn", "a\u{fffd}[2J"));
        assert_eq!(told(Capability::Unknown { code: 99, value: vec![0, 255] }), pair("unknown", "00ff"));
    }
}
