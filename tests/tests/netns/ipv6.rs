//! Two clusters on a network without IPv4.

use super::meshes::{Expected, Mesh, ping};

const ROUTES: Expected = &[
    ("alpha-1", &[("fd10:a2::/64", "fd18::12"), ("fd10:b1::/64", "fd18::21"), ("fd10:b2::/64", "fd18::22")]),
    ("alpha-2", &[("fd10:a1::/64", "fd18::11"), ("fd10:b1::/64", "fd18::21"), ("fd10:b2::/64", "fd18::22")]),
    ("beta-1", &[("fd10:a1::/64", "fd18::11"), ("fd10:a2::/64", "fd18::12"), ("fd10:b2::/64", "fd18::22")]),
    ("beta-2", &[("fd10:a1::/64", "fd18::11"), ("fd10:a2::/64", "fd18::12"), ("fd10:b1::/64", "fd18::21")]),
];

#[test]
fn pods_of_two_ipv6_clusters_talk() {
    let mesh = Mesh::up("single-l2-ipv6", ROUTES);
    for pod in ["alpha-1-client", "alpha-2-client"] {
        for target in ["fd10:b1::10", "fd10:b2::10"] {
            assert_eq!(ping(&mesh.node(pod), target), 62, "{pod} to {target}");
        }
    }
    assert_eq!(ping(&mesh.node("beta-2-client"), "fd10:a1::10"), 62);
    mesh.wait_healthy(&["alpha-1", "alpha-2", "beta-1", "beta-2"]);
    for (node, _) in ROUTES {
        assert_eq!(mesh.ask(node, &["plan"]), serde_json::json!({"actions": []}), "plan of {node}");
        assert_eq!(mesh.ask(node, &["get", "rejected"]), serde_json::json!([]), "refusals on {node}");
    }
    mesh.finish();
}
