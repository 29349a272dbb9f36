use super::*;

fn expected(max: MaxClusters) -> ConfigExpectations {
    let id = |n| ClusterId::new(n, max).unwrap();
    ConfigExpectations {
        cluster: "east".parse().unwrap(),
        own_cluster: "west".parse().unwrap(),
        own_id: id(1),
        max_clusters: max,
        taken: vec![("north".parse().unwrap(), id(3)), ("east".parse().unwrap(), id(4))],
    }
}

#[test]
fn refusals_name_both_clusters() {
    for (max, value, message) in [
        (
            MaxClusters::C255,
            r#"{"capabilities":{}}"#,
            r#"cluster "east" has no cluster id (0 is reserved); give it one between 1 and 255"#,
        ),
        (
            MaxClusters::C255,
            r#"{"id":0}"#,
            r#"cluster "east" has no cluster id (0 is reserved); give it one between 1 and 255"#,
        ),
        (
            MaxClusters::C255,
            r#"{"id":256}"#,
            r#"cluster "east" has cluster id 256, but cluster "west" is in a mesh of ids 1 to 255 (is max_clusters the same in both?)"#,
        ),
        (
            MaxClusters::C255,
            r#"{"id":1}"#,
            r#"cluster "east" has cluster id 1, which is the id of our own cluster "west"; one of them must change it"#,
        ),
        (
            MaxClusters::C255,
            r#"{"id":3}"#,
            r#"cluster "east" has cluster id 3, which cluster "north" has already; one of them must change it"#,
        ),
        (
            MaxClusters::C511,
            r#"{"id":2}"#,
            r#"cluster "east" is in a mesh of 0 clusters, but cluster "west" has max_clusters 511; both must have the same"#,
        ),
        (
            MaxClusters::C511,
            r#"{"id":2,"capabilities":{"maxConnectedClusters":255}}"#,
            r#"cluster "east" is in a mesh of 255 clusters, but cluster "west" has max_clusters 511; both must have the same"#,
        ),
        (
            MaxClusters::C255,
            r#"{"id":2,"capabilities":{"endpointSlicesExportMode":"all"}}"#,
            r#"cluster "east" exports services in mode "all", which cluster "west" does not know"#,
        ),
        (
            MaxClusters::C255,
            r#"{"id":}"#,
            r#"cluster-config of cluster "east" is unreadable: malformed JSON at line 1 column 7: expected value"#,
        ),
        (MaxClusters::C255, "", r#"cluster-config of cluster "east" is unreadable: the value is empty"#),
    ] {
        assert_eq!(accept(&expected(max), value.as_bytes()).unwrap_err().to_string(), message);
    }
    let own = ConfigExpectations { cluster: "west".parse().unwrap(), ..expected(MaxClusters::C255) };
    let message = accept(&own, br#"{"id":9}"#).unwrap_err().to_string();
    assert!(message.starts_with(r#"the store of our own cluster "west" says its id is 9, but cluster.id is 1"#));
    assert!(accept(&own, br#"{"id":1}"#).is_ok());
}

#[test]
fn what_a_config_leaves_out_has_a_default() {
    let config = accept(&expected(MaxClusters::C255), br#"{"id":7,"capabilities":{}}"#).unwrap();
    assert_eq!(config.id.get(), 7);
    assert_eq!(config.keyspace, Keyspace::State);
    assert!(!config.canaries);
    assert_eq!((config.max_clusters, config.service_exports, config.export_mode), (None, None, ExportMode::Services));
    // A reader of 255 does not compare, and an id it had itself before is not taken.
    let value = br#"{"id":4,"capabilities":{"cached":true,"maxConnectedClusters":511,"later":[1]},"later":{}}"#;
    let config = accept(&expected(MaxClusters::C255), value).unwrap();
    assert_eq!((config.keyspace, config.max_clusters), (Keyspace::Cache, Some(511)));
}

#[test]
fn our_own_config_leaves_out_what_is_not_exported() {
    let config = OwnConfig {
        id: ClusterId::new(1, MaxClusters::C255).unwrap(),
        max_clusters: MaxClusters::C255,
        cached: false,
        canaries: true,
        service_exports: None,
        export_mode: ExportMode::Services,
    };
    let text = String::from_utf8(encode(&config)).unwrap();
    assert_eq!(text, r#"{"id":1,"capabilities":{"syncedCanaries":true,"maxConnectedClusters":255}}"#);
}
