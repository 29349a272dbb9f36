use super::*;

fn id(n: u32, max: MaxClusters) -> ClusterId {
    ClusterId::new(n, max).unwrap()
}

fn map(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}

#[test]
fn a_workload_has_the_labels_of_the_contract() {
    let cluster: ClusterName = "edge".parse().unwrap();
    let labels = map(&[
        ("app", "worker"),
        ("app.kubernetes.io/name", "w"),
        ("pod-template-hash", "abc"),
        ("io.kubernetes.pod.name", "x"),
        ("kubernetes.io/arch", "amd64"),
        ("failure-domain.beta.kubernetes.io/zone", "a"),
        ("io.cilium.k8s.policy.cluster", "forged"),
    ]);
    let none = map(&[]);
    let workload = Workload {
        cluster: &cluster,
        namespace: "billing",
        namespace_labels: &none,
        service_account: None,
        labels: &labels,
    };
    assert_eq!(
        &*workload_labels(&workload).unwrap().0,
        "k8s:app=worker;k8s:app.kubernetes.io/name=w;\
         k8s:io.cilium.k8s.namespace.labels.kubernetes.io/metadata.name=billing;\
         k8s:io.cilium.k8s.policy.cluster=edge;k8s:io.cilium.k8s.policy.serviceaccount=default;\
         k8s:io.kubernetes.pod.namespace=billing;"
    );
    let bad = map(&[("app", "a;b")]);
    assert!(matches!(workload_labels(&Workload { labels: &bad, ..workload }), Err(Rejection::Label { .. })));
}

#[test]
fn the_first_candidate_is_the_same_in_every_build() {
    let labels = Labels("k8s:app=worker;k8s:io.cilium.k8s.policy.cluster=edge;".into());
    let first = |n, max| candidates(&labels, id(n, max), max).next().unwrap().0;
    // These numbers are in stores out there.
    assert_eq!(first(1, MaxClusters::C255), FIRST_1_255);
    assert_eq!(first(7, MaxClusters::C255), FIRST_1_255 + 6 * 65_536);
    assert_eq!(first(1, MaxClusters::C511), FIRST_1_511);
}

const FIRST_1_255: u32 = 96_424;
const FIRST_1_511: u32 = 37_544;

#[test]
fn candidates_are_every_allocatable_number_once() {
    let labels = Labels("k8s:a=b;".into());
    for max in [MaxClusters::C255, MaxClusters::C511] {
        let cluster = id(u32::from(max.get()), max);
        let range = cluster.identity_range(max);
        let mut all: Vec<u32> = candidates(&labels, cluster, max).map(|id| id.0).collect();
        all.sort_unstable();
        let expected: Vec<u32> = (range.start() + 256..=*range.end()).collect();
        assert_eq!(all, expected);
    }
}
