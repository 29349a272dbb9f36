use super::*;
use crate::{clustermesh::Accept, id::MaxClusters};

fn ctx() -> PeerContext {
    PeerContext {
        cluster: "edge".parse().unwrap(),
        id: ClusterId::new(7, MaxClusters::C255).unwrap(),
        max_clusters: MaxClusters::C255,
        own: false,
        accept: Accept { pod_cidrs: vec!["10.0.0.0/8".parse().unwrap()], node_cidrs: vec![] },
        own_pod_cidrs: vec!["10.9.0.0/16".parse().unwrap()],
        own_addresses: vec![],
    }
}

fn slice() -> EndpointSlice {
    EndpointSlice {
        cluster_id: ctx().id,
        namespace: "billing".into(),
        name: "api-x".into(),
        labels: Labels("kubernetes.io/service-name=api;".into()),
        ipv4: true,
        endpoints: vec![SliceEndpoint {
            addresses: vec!["10.7.21.15".parse().unwrap()],
            ready: Some(true),
            serving: Some(true),
            terminating: Some(false),
            hostname: Some("h-0".into()),
            node: Some("vm-a1".into()),
            zone: Some("z1".into()),
            hints: vec!["z1".into()],
        }],
        ports: vec![SlicePort {
            name: "http".into(),
            protocol: Protocol::Tcp,
            port: Some(8080),
            app_protocol: Some("h2c".into()),
        }],
    }
}

fn read(value: &[u8]) -> Result<EndpointSlice, Rejection> {
    accept(&ctx(), "billing", "api-x", value)
}

#[test]
fn a_slice_is_read_as_it_was_written() {
    assert_eq!(read(&encode(&ctx().cluster, &slice())), Ok(slice()));
    let large = EndpointSlice { endpoints: vec![slice().endpoints[0].clone(); SLICE_ENDPOINTS_MAX], ..slice() };
    let value = encode(&ctx().cluster, &large);
    assert!(value.len() < 20_000, "{} bytes", value.len());
    assert_eq!(read(&value), Ok(large));
}

#[test]
fn frames_may_follow_each_other_and_be_skipped() {
    let message = encode_message(&ctx().cluster, &slice());
    let (left, right) = message.split_at(20);
    let skip: &[u8] = &[0x50, 0x2a, 0x4d, 0x18, 3, 0, 0, 0, 1, 2, 3];
    let compress = |part| compress_to_vec(part, CompressionLevel::Fastest);
    let value = [&compress(left), skip, &compress(right)].concat();
    assert_eq!(read(&value), Ok(slice()));
    let cut: &[u8] = &[0x50, 0x2a, 0x4d, 0x18, 30, 0, 0, 0, 1];
    assert!(matches!(read(&[&value, cut].concat()), Err(Rejection::Zstd { .. })));
}

#[test]
fn bad_slices_are_refused() {
    let edge = ctx().cluster;
    let change = |change: fn(&mut EndpointSlice)| {
        let mut slice = slice();
        change(&mut slice);
        read(&encode(&edge, &slice)).unwrap_err().to_string()
    };
    assert_eq!(read(b"junk").unwrap_err().to_string().split(':').next(), Some("malformed zstd frame"));
    assert_eq!(read(b"").unwrap_err(), Rejection::Empty);
    assert_eq!(change(|s| s.name = "other".into()), r#"the key says "api-x", but name in the value is "other""#);
    assert_eq!(change(|s| s.namespace = String::new()), "field namespace is missing or empty");
    assert_eq!(change(|s| s.ipv4 = false), "addresses holds 10.7.21.15, an address of the wrong family");
    assert_eq!(
        change(|s| s.endpoints[0].addresses = vec!["10.9.0.1".parse().unwrap()]),
        "addresses 10.9.0.1/32 lies inside our own PodCIDR 10.9.0.0/16; own prefixes always win"
    );
    assert_eq!(
        change(|s| s.endpoints = vec![SliceEndpoint::default(); SLICE_ENDPOINTS_MAX + 1]),
        "endpoints has 1001 entries, more than the 1000 that are read"
    );
    let west = "west".parse().unwrap();
    assert!(matches!(read(&encode(&west, &slice())), Err(Rejection::WrongCluster { .. })));
    let bare = |message: &[u8]| accept_message(&ctx(), "billing", "api-x", message).unwrap_err().to_string();
    assert!(bare(&[0xff]).starts_with("malformed protobuf"), "{}", bare(&[0xff]));
    let mut fqdn = encode_message(&edge, &slice());
    fqdn.extend([0x3a, 4, b'F', b'Q', b'D', b'N']);
    assert_eq!(bare(&fqdn), r#"field addressType is "FQDN", and must be IPv4 or IPv6"#);
    let mut port = encode_message(&edge, &slice());
    port.extend([0x4a, 4, 0x18, 0x80, 0x80, 0x04]);
    assert_eq!(bare(&port), "field port is 65536, and must be between 0 and 65535");
}

#[test]
fn a_bomb_is_refused_before_it_grows() {
    let value = compress_to_vec(&*vec![0u8; DECOMPRESSED_MAX + 1], CompressionLevel::Fastest);
    assert!(value.len() < 1000);
    assert_eq!(read(&value), Err(Rejection::DecompressedTooLarge { limit: DECOMPRESSED_MAX }));
    // A frame that asks for a window of gigabytes.
    let window: &[u8] = &[0x28, 0xb5, 0x2f, 0xfd, 0x00, 0xa0, 0x01, 0x00, 0x00];
    assert_eq!(read(window), Err(Rejection::DecompressedTooLarge { limit: DECOMPRESSED_MAX }));
}

#[test]
fn a_damaged_frame_is_refused_by_its_checksum() {
    let mut value = encode(&ctx().cluster, &slice());
    let last = value.len() - 1;
    value[last] ^= 1;
    assert!(matches!(read(&value), Err(Rejection::Zstd { .. })));
}
