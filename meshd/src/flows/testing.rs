//! A flow to begin with.

use crate::api::flow_view::{Direction, FlowEndView, FlowKind, FlowServiceView, FlowView, TranslatedView, Verdict};

/// A client in west that asks a service and gets a backend in east.
pub(crate) fn flow() -> FlowView {
    let end = |address: &str, port| FlowEndView { address: address.parse().ok(), port, ..FlowEndView::default() };
    let client = FlowEndView {
        identity: Some(70_001),
        cluster: Some("west".to_owned()),
        namespace: Some("default".to_owned()),
        workload: Some("client".to_owned()),
        ..end("10.0.1.10", 40_000)
    };
    let backend = FlowEndView {
        identity: Some(140_001),
        cluster: Some("east".to_owned()),
        namespace: Some("default".to_owned()),
        workload: Some("webpod-2".to_owned()),
        ..end("10.1.1.10", 8_080)
    };
    FlowView {
        kind: FlowKind::New,
        time: "2026-01-01T12:30:45.123456Z".parse().expect("a time"),
        verdict: Verdict::Forwarded,
        reason: "new_connection".to_owned(),
        direction: Direction::Egress,
        place: "from_workload".to_owned(),
        is_reply: false,
        family: 4,
        protocol: "tcp".to_owned(),
        tcp_flags: Some(vec!["SYN".to_owned()]),
        length: 74,
        source: client.clone(),
        destination: end("10.2.0.80", 80),
        translated: Some(TranslatedView { source: client, destination: backend }),
        service: Some(FlowServiceView {
            number: 1,
            namespace: Some("default".to_owned()),
            name: Some("webpod".to_owned()),
        }),
        link: Some("veth1".to_owned()),
        link_index: 7,
        node: "west-worker".to_owned(),
    }
}
