//! What `meshd bgp summary` and `neighbors` print for people.

use std::fmt::{Display, Write as _};

use jiff::Timestamp;

use super::output;
use crate::api::bgp_view::{BgpCapabilityView, BgpFamilyView, BgpNeighborRow, BgpNeighborView, BgpSummaryView};

/// The columns of `summary`; those behind `SUMMARY_SHORT` are for the wide form.
const SUMMARY: [&str; 13] = [
    "NEIGHBOR",
    "AS",
    "MSGRCVD",
    "MSGSENT",
    "UP/DOWN",
    "STATE",
    "PFXRCD",
    "PFXACC",
    "PFXSNT",
    "DESC",
    "PFXBEST",
    "DOWNS",
    "LAST RESET",
];
const SUMMARY_SHORT: usize = 10;

pub(super) fn summary(view: &BgpSummaryView, wide: bool, now: Timestamp) -> String {
    let mut page = String::new();
    let _ = writeln!(page, "BGP router identifier {}, local AS number {}", view.router_id, view.asn);
    let table = |of: &crate::api::bgp_view::BgpTableView| {
        format!("{} prefixes with {} paths ({})", of.prefixes, of.paths, of.family)
    };
    let tables: Vec<String> = view.tables.iter().map(table).collect();
    let _ = writeln!(page, "RIB: {}, {} attribute sets", tables.join(", "), view.attribute_sets);
    for station in &view.stations {
        let state = match (station.connected, &station.problem) {
            (true, _) => format!("connected, {} bytes sent", station.sent_bytes),
            (false, Some(problem)) => format!("not connected: {problem}"),
            (false, None) => "not connected yet".to_owned(),
        };
        let _ = writeln!(page, "BMP station {}: {state}, {} overflows", station.address, station.overflows);
    }
    if let Some(log) = &view.mrt_log {
        let problem = log.problem.as_ref().map(|problem| format!(", {problem}")).unwrap_or_default();
        let _ = writeln!(
            page,
            "MRT log: {} bytes written, {} files finished, {} records lost{problem}",
            log.written_bytes, log.files, log.lost
        );
    }
    let keep = if wide { SUMMARY.len() } else { SUMMARY_SHORT };
    let row = |peer: &BgpNeighborRow| {
        let mut row = vec![
            peer.peer.clone(),
            optional(peer.remote_as),
            peer.messages_received.to_string(),
            peer.messages_sent.to_string(),
            up_or_down(peer, now),
            state(peer),
            peer.received.to_string(),
            peer.accepted.to_string(),
            peer.advertised.to_string(),
            optional(peer.description.as_ref()),
            peer.best.to_string(),
            peer.downs.to_string(),
            optional(peer.last_reset.as_ref().or(peer.last_failure.as_ref()).map(|last| &last.reason)),
        ];
        row.truncate(keep);
        row
    };
    if !view.neighbors.is_empty() {
        page.push('\n');
        page.push_str(&output::columns(&SUMMARY[..keep], view.neighbors.iter().map(row).collect()));
        page.push('\n');
    }
    let _ = writeln!(page, "{} neighbors, {} established", view.peers, view.established);
    if view.strangers > 0 {
        let _ = writeln!(page, "{} connections of strangers closed", view.strangers);
    }
    page
}

pub(super) fn neighbors(views: &[BgpNeighborView]) -> String {
    views.iter().map(neighbor).collect::<Vec<_>>().join("\n")
}

fn neighbor(view: &BgpNeighborView) -> String {
    let mut page = String::new();
    let row = &view.row;
    let asn = row.remote_as.map_or_else(|| "any".to_owned(), |asn| asn.to_string());
    let _ = writeln!(page, "BGP neighbor is {}, remote AS {asn}, local AS {}, {}", row.peer, view.local_as, view.kind);
    let mut line = |name: &str, text: &dyn Display| {
        let _ = writeln!(page, "  {:<18} {text}", format!("{name}:"));
    };
    if let Some(description) = &row.description {
        line("Description", description);
    }
    if row.dynamic {
        line("Origin", &"listen range");
    }
    match (row.uptime_s, row.established_since) {
        (Some(uptime_s), Some(since)) => {
            line("State", &format!("{}, up for {} (since {since:.0})", state(row), clock(uptime_s)));
        }
        _ => line("State", &state(row)),
    }
    if let (Some(local), Some(remote)) = (&view.local_address, &view.remote_address) {
        line("Connection", &format!("local {local}, remote {remote}"));
    }
    if let Some(id) = &view.remote_router_id {
        line("Router ID", id);
    }
    if let Some(authentication) = &row.authentication {
        line("Authentication", authentication);
    }
    if let Some(role) = &view.role {
        line("Local role", role);
    }
    line("Timers", &timers(view));
    if let Some(bfd) = &view.bfd {
        line("BFD", bfd);
    }
    if let Some(echo) = &view.bfd_echo {
        line("BFD echo", echo);
    }
    if let Some(restart_time_s) = view.restart_time_s {
        line("Graceful restart", &format!("the neighbor may be away for {restart_time_s} s"));
    }
    if let Some(octets) = view.message_length_max {
        line("Message length", &format!("{octets} octets at most"));
    }
    line("Established", &format!("{} times, lost {} times", view.established_count, row.downs));
    if let Some(last) = &row.last_reset {
        line("Last reset", &format!("{:.0}, {}", last.at, last.reason));
        if let Some(words) = &last.communication {
            line("Its operator said", &format!("{words:?}"));
        }
    }
    if let Some(last) = &row.last_failure {
        line("Last failure", &format!("{:.0}, {}", last.at, last.reason));
    }
    if let Some(seconds) = row.send_blocked_s.filter(|seconds| *seconds > 0) {
        line("Not reading", &format!("for {seconds} s: what it is to be told waits"));
    }
    if row.connections_refused > 0 {
        let last = row.last_refusal.as_deref().unwrap_or("unknown");
        line("Refused", &format!("{} connections, the last one because {last}", row.connections_refused));
    }
    if view.malformed_updates > 0 {
        let last = view.last_malformed.as_deref().unwrap_or("unknown");
        line("Malformed updates", &format!("{}, last: {last}", view.malformed_updates));
    }
    page.push('\n');
    page.push_str(&indented(&families(&row.families)));
    page.push('\n');
    page.push_str(&indented(&messages(view)));
    page.push('\n');
    page.push_str(&indented(&capabilities(view)));
    page
}

fn timers(view: &BgpNeighborView) -> String {
    let timers = &view.timers;
    match (timers.hold_time_s, timers.keepalive_s) {
        (Some(hold), Some(keepalive)) => format!(
            "hold time {hold} s, keepalive {keepalive} s (offered {}, neighbor offered {})",
            timers.offered_hold_time_s,
            optional(timers.remote_hold_time_s)
        ),
        (Some(_), None) => "no hold time".to_owned(),
        (None, _) => {
            format!("hold time {} s offered, connect retry {} s", timers.offered_hold_time_s, timers.connect_retry_s)
        }
    }
}

fn families(families: &[BgpFamilyView]) -> String {
    let heading = ["FAMILY", "RECEIVED", "ACCEPTED", "BEST", "STALE", "ADVERTISED", "LIMIT", "AGREED"];
    let row = |of: &BgpFamilyView| {
        let agreed = [
            (of.add_path_receive, "add-path receive"),
            (of.add_path_send, "add-path send"),
            (of.extended_next_hop, "extended next hop"),
            (of.graceful_restart, "graceful restart"),
            (of.long_lived_stale_s > 0, "long-lived graceful restart"),
        ];
        let agreed: Vec<&str> = agreed.iter().filter(|(is_on, _)| *is_on).map(|(_, name)| *name).collect();
        vec![
            of.family.clone(),
            of.received.to_string(),
            of.accepted.to_string(),
            of.best.to_string(),
            of.stale.to_string(),
            of.advertised.to_string(),
            optional(of.received_max.or(of.accepted_max)),
            match (of.negotiated, agreed.is_empty()) {
                (true, true) => "yes".to_owned(),
                (true, false) => agreed.join(", "),
                (false, _) => "no".to_owned(),
            },
        ]
    };
    output::columns(&heading, families.iter().map(row).collect())
}

fn messages(view: &BgpNeighborView) -> String {
    let row = |name: &str, of: &crate::api::bgp_view::BgpMessagesView| {
        let counts = [of.open, of.update, of.notification, of.keepalive, of.route_refresh];
        [name.to_owned()].into_iter().chain(counts.map(|count| count.to_string())).collect()
    };
    let rows = vec![row("received", &view.messages.received), row("sent", &view.messages.sent)];
    output::columns(&["MESSAGES", "OPEN", "UPDATE", "NOTIFICATION", "KEEPALIVE", "ROUTE-REFRESH"], rows)
}

/// Every capability of either side on one line.
fn capabilities(view: &BgpNeighborView) -> String {
    let said = |of: &BgpCapabilityView| of.value.clone().unwrap_or_else(|| "yes".to_owned());
    let (ours, theirs) = (&view.capabilities.sent, &view.capabilities.received);
    // Several of one name belong together: one line for each family, for instance.
    let key = |of: &BgpCapabilityView| match of.name.as_str() {
        "multiprotocol" | "unknown" => (of.code, of.name.clone(), of.value.clone()),
        _ => (of.code, of.name.clone(), None),
    };
    let mut keys: Vec<_> = ours.iter().chain(theirs).map(key).collect();
    keys.sort();
    keys.dedup();
    let find = |list: &[BgpCapabilityView], wanted: &(u8, String, Option<String>)| {
        list.iter().find(|of| key(of) == *wanted).map(|of| if wanted.2.is_some() { "yes".to_owned() } else { said(of) })
    };
    let row = |wanted: &(u8, String, Option<String>)| {
        let name = match &wanted.2 {
            Some(value) if wanted.1 == "unknown" => format!("code {}: {value}", wanted.0),
            Some(value) => format!("{} {value}", wanted.1),
            None => wanted.1.clone(),
        };
        vec![name, find(ours, wanted).unwrap_or_default(), find(theirs, wanted).unwrap_or_default()]
    };
    output::columns(&["CAPABILITY", "SENT", "RECEIVED"], keys.iter().map(row).collect())
}

fn indented(text: &str) -> String {
    text.lines().map(|line| format!("  {line}\n")).collect()
}

/// The state as routers print it.
fn state(peer: &BgpNeighborRow) -> String {
    let name = match peer.state.as_str() {
        "idle" => "Idle",
        "connect" => "Connect",
        "active" => "Active",
        "open_sent" => "OpenSent",
        "open_confirm" => "OpenConfirm",
        "established" => "Established",
        other => other,
    };
    if peer.shutdown { format!("{name} (Admin)") } else { name.to_owned() }
}

/// How long it is established, or since it was.
fn up_or_down(peer: &BgpNeighborRow, now: Timestamp) -> String {
    match (peer.uptime_s, &peer.last_reset) {
        (Some(uptime_s), _) => clock(uptime_s),
        (None, Some(last)) if peer.downs > 0 => {
            clock(u64::try_from(now.duration_since(last.at).as_secs()).unwrap_or(0))
        }
        _ => "never".to_owned(),
    }
}

/// `01:02:03`, `1d02h03m` or `2w03d04h`, as FRR has it.
fn clock(seconds: u64) -> String {
    let (minutes, hours, days) = (seconds / 60, seconds / 3_600, seconds / 86_400);
    match (days, days / 7) {
        (0, _) => format!("{hours:02}:{:02}:{:02}", minutes % 60, seconds % 60),
        (_, 0) => format!("{days}d{:02}h{:02}m", hours % 24, minutes % 60),
        (_, weeks) => format!("{weeks}w{:02}d{:02}h", days % 7, hours % 24),
    }
}

fn optional(value: Option<impl Display>) -> String {
    value.map(|value| value.to_string()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn example() -> BgpNeighborView {
        let value = serde_json::json!({
            "peer": "192.0.2.2", "address": "192.0.2.2", "interface": null, "description": "tor 1", "remote_as": 65002,
            "state": "established", "shutdown": false, "dynamic": false, "established_since": "2026-01-01T00:00:00Z",
            "uptime_s": 3_723, "downs": 1,
            "last_reset": {"at": "2026-01-01T00:00:00Z", "reason": "hold timer expired", "communication": "see you"},
            "connections_refused": 12, "messages_received": 70, "messages_sent": 71, "updates_received": 4, "updates_sent": 5,
            "received": 10, "accepted": 9, "best": 8, "advertised": 7,
            "families": [{
                "family": "ipv4", "negotiated": true, "received": 10, "accepted": 9, "best": 8, "stale": 0, "advertised": 7,
                "received_max": 1000, "accepted_max": null, "add_path_receive": false, "add_path_send": true,
                "extended_next_hop": false, "graceful_restart": true, "long_lived_stale_s": 0,
            }],
            "kind": "external", "local_as": 65001, "remote_router_id": "192.0.2.2", "local_address": "192.0.2.1:179",
            "remote_address": "192.0.2.2:40000", "established_count": 2,
            "timers": {
                "hold_time_s": 9, "keepalive_s": 3, "offered_hold_time_s": 90, "remote_hold_time_s": 9, "connect_retry_s": 5,
            },
            "role": null,
            "capabilities": {
                "sent": [
                    {"code": 1, "name": "multiprotocol", "value": "ipv4-unicast"},
                    {"code": 2, "name": "route-refresh", "value": null},
                ],
                "received": [
                    {"code": 1, "name": "multiprotocol", "value": "ipv4-unicast"},
                    {"code": 99, "name": "unknown", "value": "00ff"},
                ],
            },
            "restart_time_s": 120, "message_length_max": 4096,
            "messages": {
                "received": {"open": 1, "update": 4, "notification": 0, "keepalive": 65, "route_refresh": 0},
                "sent": {"open": 1, "update": 5, "notification": 0, "keepalive": 65, "route_refresh": 0},
            },
            "malformed_updates": 1, "last_malformed": "MED of 3 octets", "bfd": "up", "bfd_echo": "active, every 50ms from 10.255.1.1",
        });
        let mut view: BgpNeighborView = serde_json::from_value(value).expect("a neighbor");
        view.row.authentication = Some("tcp-md5".to_owned());
        view.row.last_refusal = Some("the session is established".to_owned());
        view.row.send_blocked_s = Some(31);
        view
    }

    fn cells(line: &str) -> Vec<&str> {
        line.split("   ").map(str::trim).filter(|cell| !cell.is_empty()).collect()
    }

    #[test]
    fn the_summary_has_the_columns_of_routers() {
        let up = example().row;
        let down = BgpNeighborRow {
            peer: "eth0".to_owned(),
            state: "idle".to_owned(),
            shutdown: true,
            uptime_s: None,
            established_since: None,
            downs: 0,
            description: None,
            ..up.clone()
        };
        let lost = BgpNeighborRow { state: "active".to_owned(), shutdown: false, downs: 2, ..down.clone() };
        let view = BgpSummaryView {
            asn: 65001,
            router_id: "192.0.2.1".to_owned(),
            peers: 3,
            established: 1,
            tables: vec![crate::api::bgp_view::BgpTableView { family: "ipv4".to_owned(), prefixes: 10, paths: 12 }],
            attribute_sets: 3,
            attribute_bytes: 100,
            strangers: 7,
            neighbors: vec![up, down, lost],
            stations: Vec::new(),
            mrt_log: None,
        };
        let page = summary(&view, false, "2026-01-02T00:00:00Z".parse().expect("a time"));
        let lines: Vec<&str> = page.lines().collect();
        assert_eq!(lines[0], "BGP router identifier 192.0.2.1, local AS number 65001");
        assert_eq!(lines[1], "RIB: 10 prefixes with 12 paths (ipv4), 3 attribute sets");
        assert_eq!(cells(lines[3]), SUMMARY[..SUMMARY_SHORT]);
        let expected = ["192.0.2.2", "65002", "70", "71", "01:02:03", "Established", "10", "9", "7", "tor 1"];
        assert_eq!(cells(lines[4]), expected);
        assert_eq!(cells(lines[5])[4..6], ["never", "Idle (Admin)"]);
        assert_eq!(cells(lines[6])[4..6], ["1d00h00m", "Active"]);
        assert_eq!(lines[lines.len() - 2..], ["3 neighbors, 1 established", "7 connections of strangers closed"]);
        let wide = summary(&view, true, Timestamp::UNIX_EPOCH);
        assert!(wide.contains("hold timer expired"), "{wide}");
    }

    #[test]
    fn a_neighbor_is_told_with_all_that_explains_it() {
        let page = neighbors(&[example()]);
        for expected in [
            "BGP neighbor is 192.0.2.2, remote AS 65002, local AS 65001, external\n",
            "Established, up for 01:02:03 (since 2026-01-01T00:00:00Z)",
            "local 192.0.2.1:179, remote 192.0.2.2:40000",
            "hold time 9 s, keepalive 3 s (offered 90, neighbor offered 9)",
            "2026-01-01T00:00:00Z, hold timer expired",
            "\"see you\"",
            "Authentication:    tcp-md5",
            "1, last: MED of 3 octets",
            "for 31 s: what it is to be told waits",
            "12 connections, the last one because the session is established",
            "add-path send, graceful restart",
        ] {
            assert!(page.contains(expected), "{expected} in\n{page}");
        }
        let capability = |name: &str| page.lines().find(|line| line.trim().starts_with(name)).map(cells);
        assert_eq!(capability("multiprotocol"), Some(vec!["multiprotocol ipv4-unicast", "yes", "yes"]));
        assert_eq!(capability("route-refresh"), Some(vec!["route-refresh", "yes", "-"]));
        assert_eq!(capability("code 99"), Some(vec!["code 99: 00ff", "-", "yes"]));
    }

    #[test]
    fn times_are_short() {
        assert_eq!(clock(0), "00:00:00");
        assert_eq!(clock(90_061), "1d01h01m");
        assert_eq!(clock(8 * 86_400 + 3_600), "1w01d01h");
    }
}
