//! One flow as a line for people.

use std::fmt::Write as _;
use std::net::SocketAddr;

use jiff::tz::TimeZone;

use crate::api::flow_view::{FlowEndView, FlowServiceView, FlowView, LostSource, LostView};

/// `12:30:45.123 new    default/client (10.0.1.10:40000) -> default/webpod (10.2.0.80:80) => default/webpod-2 (10.1.1.10:8080) tcp SYN …`
pub(super) fn line(flow: &FlowView, wide: bool, zone: &TimeZone) -> String {
    let time = flow.time.to_zoned(zone.clone());
    let mut line = format!("{} {:<6} ", time.strftime("%H:%M:%S%.3f"), flow.kind.word());
    let source_name = name(&flow.source, None);
    let _ = write!(line, "{}", end(&flow.source, source_name, wide));
    let is_to_service = !flow.is_reply;
    let asked = flow.service.as_ref().filter(|_| is_to_service);
    let _ = write!(line, " -> {}", end(&flow.destination, name(&flow.destination, asked), wide));
    if let Some(to) = &flow.translated {
        if (to.source.address, to.source.port) != (flow.source.address, flow.source.port) {
            let _ = write!(
                line,
                " => from {}",
                end(&to.source, name(&to.source, flow.service.as_ref().filter(|_| flow.is_reply)), wide)
            );
            if (to.destination.address, to.destination.port) != (flow.destination.address, flow.destination.port) {
                let _ = write!(line, " to {}", end(&to.destination, name(&to.destination, None), wide));
            }
        } else {
            let _ = write!(line, " => {}", end(&to.destination, name(&to.destination, None), wide));
        }
    }
    let _ = write!(line, " {}", flow.protocol);
    if let Some(flags) = flow.tcp_flags.as_ref().filter(|flags| !flags.is_empty()) {
        let _ = write!(line, " {}", flags.join("|"));
    }
    let _ = write!(line, " {} {} ({})", flow.direction, flow.verdict, flow.reason);
    if wide {
        let link = flow.link.clone().unwrap_or_else(|| format!("link {}", flow.link_index));
        let _ = write!(line, " {} {link} {} bytes", flow.place, flow.length);
    }
    line
}

/// What a reader lost.
pub(super) fn lost(lost: &LostView) -> String {
    let why = match lost.source {
        LostSource::Follower => "this reader is too slow",
        LostSource::Ring => "the daemon was too slow",
        LostSource::Limit => "more happened than is told in a second",
    };
    format!("{} flows are missing here: {why}", lost.events)
}

/// The name of an end: of its workload, its node, or the service that is asked there.
fn name(end: &FlowEndView, service: Option<&FlowServiceView>) -> Option<String> {
    let of = |namespace: &Option<String>, name: &Option<String>| match (namespace, name) {
        (Some(namespace), Some(name)) => Some(format!("{namespace}/{name}")),
        (None, Some(name)) => Some(name.clone()),
        (_, None) => None,
    };
    of(&end.namespace, &end.workload)
        .or_else(|| end.node.clone())
        .or_else(|| service.and_then(|service| of(&service.namespace, &service.name)))
}

fn end(view: &FlowEndView, name: Option<String>, wide: bool) -> String {
    let at = match view.address {
        Some(address) => SocketAddr::new(address, view.port).to_string(),
        None => "unknown".to_owned(),
    };
    let mut text = match name {
        Some(name) => format!("{name} ({at})"),
        None => at,
    };
    if wide {
        let identity = view.identity.map(|identity| identity.to_string());
        let known: Vec<String> = view.cluster.iter().cloned().chain(identity).collect();
        if !known.is_empty() {
            let _ = write!(text, " [{}]", known.join(" "));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::flow_view::{Direction, FlowKind, LostKind, Verdict};
    use crate::flows::testing::flow;

    #[test]
    fn a_flow_is_a_line() {
        let flow = flow();
        assert_eq!(
            line(&flow, false, &TimeZone::UTC),
            "12:30:45.123 new    default/client (10.0.1.10:40000) -> default/webpod (10.2.0.80:80) => default/webpod-2 \
             (10.1.1.10:8080) tcp SYN egress forwarded (new_connection)"
        );
        let wide = line(&flow, true, &TimeZone::UTC);
        assert!(
            wide.contains("(10.0.1.10:40000) [west 70001] -> ") && wide.ends_with("from_workload veth1 74 bytes"),
            "{wide}"
        );
    }

    #[test]
    fn answers_nodes_and_drops() {
        let to = flow().translated.unwrap();
        let node = FlowEndView {
            address: "172.18.0.5".parse().ok(),
            port: 40_001,
            node: Some("west-worker".into()),
            ..FlowEndView::default()
        };
        let answer = FlowView {
            is_reply: true,
            kind: FlowKind::Close,
            source: to.destination.clone(),
            destination: node.clone(),
            translated: Some(crate::api::flow_view::TranslatedView {
                source: flow().destination,
                destination: to.source,
            }),
            ..flow()
        };
        let text = line(&answer, false, &TimeZone::UTC);
        assert!(
            text.contains(
                "close  default/webpod-2 (10.1.1.10:8080) -> west-worker (172.18.0.5:40001) => from default/webpod \
                 (10.2.0.80:80) to default/client (10.0.1.10:40000) tcp"
            ),
            "{text}"
        );
        let drop = FlowView {
            kind: FlowKind::Drop,
            verdict: Verdict::Dropped,
            direction: Direction::Ingress,
            reason: "no_backend".into(),
            source: FlowEndView { address: "2001:db8::7".parse().ok(), port: 53, ..FlowEndView::default() },
            translated: None,
            tcp_flags: None,
            protocol: "udp".into(),
            ..flow()
        };
        let text = line(&drop, false, &TimeZone::UTC);
        assert!(
            text.ends_with("drop   [2001:db8::7]:53 -> default/webpod (10.2.0.80:80) udp ingress dropped (no_backend)"),
            "{text}"
        );
    }

    #[test]
    fn losses_say_why() {
        let of =
            |source| lost(&LostView { kind: LostKind::Lost, time: jiff::Timestamp::UNIX_EPOCH, source, events: 3 });
        assert_eq!(of(LostSource::Follower), "3 flows are missing here: this reader is too slow");
        assert!(of(LostSource::Limit).contains("in a second") && of(LostSource::Ring).contains("daemon"));
    }
}
