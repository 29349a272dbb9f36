use proptest::prelude::*;

use super::*;
use crate::{
    clustermesh::endpointslice::{SliceEndpoint, SlicePort},
    id::MaxClusters,
    observed::{Labels, Protocol},
};

fn id() -> ClusterId {
    ClusterId::new(2, MaxClusters::C255).unwrap()
}

fn service(name: &str) -> ServiceName {
    ServiceName { namespace: "default".into(), name: name.into() }
}

fn slice_name(name: &str) -> SliceName {
    ("default".into(), name.into())
}

fn endpoint(address: &str) -> SliceEndpoint {
    SliceEndpoint { addresses: vec![address.parse().unwrap()], ..SliceEndpoint::default() }
}

fn slice(ports: &[(&str, Option<u16>)], endpoints: Vec<SliceEndpoint>) -> EndpointSlice {
    let port = |(name, port): &(&str, Option<u16>)| SlicePort {
        name: (*name).to_owned(),
        protocol: Protocol::Tcp,
        port: *port,
        app_protocol: None,
    };
    EndpointSlice {
        cluster_id: id(),
        namespace: "default".to_owned(),
        name: String::new(),
        labels: Labels::default(),
        ipv4: true,
        endpoints,
        ports: ports.iter().map(port).collect(),
    }
}

fn web(addresses: &[&str]) -> EndpointSlice {
    slice(&[("http", Some(80))], addresses.iter().map(|address| endpoint(address)).collect())
}

/// Addresses with their ports, or the word of what is known instead.
fn text(told: &Told) -> Vec<String> {
    match told {
        Told::Whole(row) => {
            let ports = |ports: &Ports| -> Vec<String> {
                ports.iter().map(|(name, l4)| format!("{name}={}", l4.port)).collect()
            };
            row.backends.iter().map(|(address, all)| format!("{address} {}", ports(all).join(","))).collect()
        }
        Told::Part => vec!["part".to_owned()],
        Told::TooMany => vec!["too many".to_owned()],
        Told::Gone => vec!["gone".to_owned()],
    }
}

fn take(slices: &mut Slices) -> Vec<(String, Vec<String>)> {
    slices.take(id()).iter().map(|(name, told)| (name.name.to_string(), text(told))).collect()
}

fn one(slices: &mut Slices) -> Vec<String> {
    let mut told = take(slices);
    assert_eq!(told.len(), 1, "{told:?}");
    told.remove(0).1
}

#[test]
fn a_service_is_put_together_from_its_slices() {
    let mut slices = Slices::default();
    slices.put(&slice_name("api-1"), service("api"), web(&["10.1.0.1", "10.1.0.2"])).unwrap();
    let both = slice(&[("http", Some(81)), ("grpc", Some(90)), ("any", None)], vec![endpoint("10.1.0.2")]);
    slices.put(&slice_name("api-2"), service("api"), both).unwrap();
    slices.put(&slice_name("other"), service("other"), web(&["10.1.0.9"])).unwrap();
    let told = take(&mut slices);
    let api = ["10.1.0.1 http=80", "10.1.0.2 grpc=90,http=80"].map(str::to_owned).to_vec();
    assert_eq!(told, [("api".to_owned(), api), ("other".to_owned(), vec!["10.1.0.9 http=80".to_owned()])]);
    assert!(take(&mut slices).is_empty(), "told once");

    slices.remove(&slice_name("api-1"));
    assert_eq!(one(&mut slices), ["10.1.0.2 grpc=90,http=81"]);
    // A slice may come to belong to another service.
    slices.put(&slice_name("api-2"), service("other"), web(&["10.1.0.3"])).unwrap();
    let told = take(&mut slices);
    assert_eq!(told[0], ("api".to_owned(), vec!["gone".to_owned()]));
    assert_eq!(told[1].1, ["10.1.0.3 http=80", "10.1.0.9 http=80"]);
}

#[test]
fn only_ready_endpoints_are_backends_and_zones_are_kept() {
    let with = |address: &str, ready: Option<bool>| SliceEndpoint { ready, ..endpoint(address) };
    let mut near = with("10.1.0.1", Some(true));
    near.zone = Some("z1".to_owned());
    near.hints = vec!["z2".to_owned(), String::new()];
    let mut blank = with("10.1.0.3", None);
    blank.zone = Some(String::new());
    let mut slices = Slices::default();
    let told = slice(&[("http", Some(80))], vec![near, with("10.1.0.2", Some(false)), blank]);
    slices.put(&slice_name("a"), service("api"), told).unwrap();
    let told = slices.take(id());
    let (_, Told::Whole(row)) = &told[0] else { panic!("{told:?}") };
    assert_eq!(text(&told[0].1), ["10.1.0.1 http=80", "10.1.0.3 http=80"]);
    let zone = BackendZone { zone: Some("z1".into()), for_zones: ["z2".into()].into() };
    assert_eq!(row.zones, [("10.1.0.1".parse().unwrap(), zone)].into());
    assert_eq!((row.cluster_id, row.frontends.len(), row.include_external), (id(), 0, true));
}

#[test]
fn a_refused_slice_keeps_what_it_said_and_holds_a_service_back_that_is_not_known() {
    let mut slices = Slices::default();
    slices.put(&slice_name("a"), service("api"), web(&["10.1.0.1"])).unwrap();
    slices.refuse(&slice_name("b"), Some(service("api")));
    assert_eq!(one(&mut slices), ["part"]);
    slices.put(&slice_name("b"), service("api"), web(&["10.1.0.2"])).unwrap();
    assert_eq!(one(&mut slices), ["10.1.0.1 http=80", "10.1.0.2 http=80"]);
    slices.refuse(&slice_name("b"), None);
    assert_eq!(one(&mut slices), ["10.1.0.1 http=80", "10.1.0.2 http=80"]);
    // Nobody can say whose this one is.
    slices.refuse(&slice_name("c"), None);
    assert!(take(&mut slices).is_empty());
    slices.remove(&slice_name("b"));
    assert_eq!(one(&mut slices), ["10.1.0.1 http=80"]);
}

#[test]
fn a_list_removes_what_it_does_not_tell() {
    let mut slices = Slices::default();
    for name in ["a", "b", "c"] {
        slices.put(&slice_name(name), service(name), web(&["10.1.0.1"])).unwrap();
    }
    take(&mut slices);
    slices.begin();
    slices.put(&slice_name("a"), service("a"), web(&["10.1.0.1"])).unwrap();
    slices.refuse(&slice_name("b"), None);
    // The connection is lost, and the next list begins anew.
    slices.begin();
    slices.refuse(&slice_name("b"), None);
    slices.end();
    let gone = || vec!["gone".to_owned()];
    let kept = vec!["10.1.0.1 http=80".to_owned()];
    let told = take(&mut slices);
    assert_eq!(told, [("a".to_owned(), gone()), ("b".to_owned(), kept), ("c".to_owned(), gone())]);
    assert_eq!(slices.backends, 1);
}

#[test]
fn there_is_an_end_to_slices_and_backends() {
    let mut slices = Slices::default();
    let ports: Vec<String> = (0..256).map(|n| format!("p{n}")).collect();
    let ports: Vec<(&str, Option<u16>)> = ports.iter().map(|name| (name.as_str(), Some(80))).collect();
    let address = |n: u32| IpAddr::from(std::net::Ipv4Addr::from(0x0a01_0000 + n)).to_string();
    let large = || slice(&ports, (0..1000).map(|n| endpoint(&address(n))).collect());
    for n in 0..3 {
        slices.put(&slice_name(&format!("s{n}")), service(&format!("s{n}")), large()).unwrap();
    }
    let full = slices.put(&slice_name("s3"), service("s3"), large());
    assert_eq!(full, Err(NoRoom(Limits::SLICE_BACKENDS)));
    slices.remove(&slice_name("s0"));
    slices.put(&slice_name("s3"), service("s3"), large()).unwrap();

    let mut slices = Slices::default();
    for n in 0..17 {
        let endpoints = (0..1000).map(|i| endpoint(&address(n * 1000 + i))).collect();
        slices.put(&slice_name(&format!("s{n}")), service("big"), slice(&[("http", Some(80))], endpoints)).unwrap();
    }
    assert_eq!(one(&mut slices), ["too many"]);
    slices.remove(&slice_name("s0"));
    assert_eq!(one(&mut slices).len(), 16_000);
}

proptest! {
    #[test]
    fn the_order_of_changes_does_not_matter(
        changes in prop::collection::vec((0usize..6, 0usize..3, prop::option::of(0u8..8)), 0..40),
    ) {
        let names = ["a", "b", "c", "d", "e", "f"];
        let mut stepwise = Slices::default();
        let mut rows = BTreeMap::new();
        let mut last = BTreeMap::new();
        for (name, of, address) in changes {
            let key = slice_name(names[name]);
            match address {
                Some(n) => {
                    let told = slice(&[("http", Some(u16::from(n)))], vec![endpoint(&format!("10.1.0.{}", n / 2))]);
                    stepwise.put(&key, service(names[of]), told).unwrap();
                }
                None => stepwise.remove(&key),
            }
            last.insert(name, address.map(|n| (of, n)));
            for (service, told) in stepwise.take(id()) {
                let told = text(&told);
                if told == ["gone"] { rows.remove(&service.name) } else { rows.insert(service.name, told) };
            }
        }
        let mut at_once = Slices::default();
        for (name, told) in last.into_iter().rev() {
            if let Some((of, n)) = told {
                let told = slice(&[("http", Some(u16::from(n)))], vec![endpoint(&format!("10.1.0.{}", n / 2))]);
                at_once.put(&slice_name(names[name]), service(names[of]), told).unwrap();
            }
        }
        let wanted: BTreeMap<Arc<str>, Vec<String>> =
            at_once.take(id()).into_iter().map(|(service, told)| (service.name, text(&told))).collect();
        prop_assert_eq!(rows, wanted);
        prop_assert_eq!(stepwise.backends, at_once.backends);
    }
}
