use super::*;
use crate::{
    clustermesh::Accept,
    id::{ClusterId, MaxClusters},
};

const EXPORT: &str = r#"{"cluster":"edge","name":"api","namespace":"billing","exportCreationTimestamp":"2026-03-01T08:00:00Z","ports":[{"name":"http","protocol":"TCP","port":80}],"type":"ClusterSetIP","sessionAffinity":"None"}"#;

fn read(value: &str) -> Result<ServiceExport, Rejection> {
    let ctx = PeerContext {
        cluster: "edge".parse().unwrap(),
        id: ClusterId::new(7, MaxClusters::C255).unwrap(),
        max_clusters: MaxClusters::C255,
        own: false,
        accept: Accept::default(),
        own_pod_cidrs: vec![],
        own_addresses: vec![],
    };
    accept(&ctx, &ServiceName { namespace: "billing".into(), name: "api".into() }, value.as_bytes())
}

#[test]
fn an_export_is_read_and_written_alike() {
    let name = ServiceName { namespace: "billing".into(), name: "api".into() };
    let write = |export: &ServiceExport| String::from_utf8(encode(&"edge".parse().unwrap(), &name, export)).unwrap();
    assert_eq!(write(&read(EXPORT).unwrap()), EXPORT);
    let full = EXPORT.replace(
        r#""sessionAffinity":"None""#,
        r#""sessionAffinity":"ClientIP","sessionAffinityConfig":{"clientIP":{"timeoutSeconds":10}},"ipFamilies":["IPv6","IPv4"],"internalTrafficPolicy":"Local","trafficDistribution":"PreferClose""#,
    );
    assert_eq!(write(&read(&full).unwrap()), full);
}

#[test]
fn bad_exports_are_refused() {
    for (from, to, message) in [
        ("\"edge\"", "\"west\"", r#"the record names cluster "west", but was published by cluster "edge""#),
        ("\"api\"", "\"web\"", r#"the key says "api", but name in the value is "web""#),
        ("2026-03-01T08:00:00Z", "", r#"field exportCreationTimestamp is "", and must be an RFC 3339 time"#),
        (
            "2026-03-01T08:00:00Z",
            "-002026-03-01T08:00:00Z",
            r#"field exportCreationTimestamp is "-002026-03-01T08:00:00Z", and must be an RFC 3339 time"#,
        ),
        ("ClusterSetIP", "NodePort", r#"field type is "NodePort", and must be ClusterSetIP or Headless"#),
        ("\"None\"", "\"\"", r#"field sessionAffinity is "", and must be None or ClientIP"#),
        ("\"TCP\"", "\"tcp\"", r#"field protocol is "tcp", and must be TCP, UDP, SCTP, ANY or NONE"#),
    ] {
        assert_eq!(read(&EXPORT.replacen(from, to, 1)).unwrap_err().to_string(), message);
    }
}
