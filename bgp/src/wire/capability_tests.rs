use proptest::prelude::*;

use super::*;

fn encoded(capability: &Capability) -> Vec<u8> {
    let mut out = Vec::new();
    capability.encode(&mut out).expect("a capability that fits");
    out
}

/// Each capability with the octets its RFC prescribes.
#[test]
fn every_capability_has_the_octets_of_its_rfc() {
    let restart = GracefulRestart {
        restarted: true,
        notification: true,
        restart_time_s: 120,
        families: vec![RestartFamily { afi: 2, safi: 1, forwarding: true }],
    };
    let long_lived = LongLivedFamily { afi: 1, safi: 1, forwarding: false, stale_time_s: 86_400 };
    for (capability, octets) in [
        (Capability::family(Family::Ipv6Unicast), &[1, 4, 0, 2, 0, 1][..]),
        (Capability::RouteRefresh, &[2, 0]),
        (Capability::ExtendedNextHop(vec![(1, 1, 2)]), &[5, 6, 0, 1, 0, 1, 0, 2]),
        (Capability::ExtendedMessage, &[6, 0]),
        (Capability::Role(Role::Customer), &[9, 1, 3]),
        (Capability::GracefulRestart(restart), &[64, 6, 0xc0, 120, 0, 2, 1, 0x80]),
        (Capability::FourOctetAs(Asn(4_200_000_001)), &[65, 4, 0xfa, 0x56, 0xea, 0x01]),
        (Capability::AddPath(vec![AddPathFamily { afi: 1, safi: 1, mode: AddPathMode::Both }]), &[69, 4, 0, 1, 1, 3]),
        (Capability::EnhancedRouteRefresh, &[70, 0]),
        (Capability::LongLivedGracefulRestart(vec![long_lived]), &[71, 7, 0, 1, 1, 0, 0x01, 0x51, 0x80]),
        (Capability::BfdStrict, &[74, 0]),
        (Capability::Fqdn { host: "n1".into(), domain: "x".into() }, &[73, 5, 2, b'n', b'1', 1, b'x']),
        (Capability::Unknown { code: 200, value: vec![1, 2, 3] }, &[200, 3, 1, 2, 3]),
    ] {
        assert_eq!(encoded(&capability), octets, "{capability:?}");
        assert_eq!(Capability::decode(octets[0], &octets[2..]), capability);
        assert_eq!(capability.code(), octets[0]);
    }
}

#[test]
fn a_known_code_with_a_wrong_value_is_not_understood() {
    for (code, value) in [
        (code::MULTIPROTOCOL, &[0, 1, 0][..]),
        (code::ROUTE_REFRESH, &[0]),
        (code::EXTENDED_NEXT_HOP, &[0, 1, 0, 1, 0]),
        (code::EXTENDED_MESSAGE, &[0]),
        (code::ROLE, &[5]),
        (code::ROLE, &[0, 0]),
        (code::GRACEFUL_RESTART, &[0]),
        (code::GRACEFUL_RESTART, &[0, 120, 0, 1, 1]),
        (code::FOUR_OCTET_AS, &[0, 1]),
        (code::ADD_PATH, &[0, 1, 1, 0]),
        (code::ADD_PATH, &[0, 1, 1, 3, 0, 2, 1, 4]),
        (code::ADD_PATH, &[0, 1, 1]),
        (code::ENHANCED_ROUTE_REFRESH, &[1]),
        (code::LONG_LIVED_GRACEFUL_RESTART, &[0, 1, 1, 0, 0, 0]),
        (code::FQDN, &[9, b'n']),
        (code::FQDN, &[1, b'n', 0, 0]),
        (code::FQDN, &[1, 0xff, 0]),
    ] {
        assert_eq!(Capability::decode(code, value), Capability::Unknown { code, value: value.to_vec() });
    }
}

#[test]
fn what_does_not_fit_is_refused_and_leaves_nothing_behind() {
    let mut out = vec![1];
    let capability = Capability::Fqdn { host: "h".repeat(200), domain: "d".repeat(200) };
    assert_eq!(capability.encode(&mut out), Err(CapabilityLengthError { code: code::FQDN, octets: 402 }));
    assert_eq!(out, [1]);
}

proptest! {
    #[test]
    fn what_decodes_encodes_to_what_decodes_equal(code: u8, value in prop::collection::vec(any::<u8>(), 0..40)) {
        let capability = Capability::decode(code, &value);
        let again = encoded(&capability);
        prop_assert_eq!(usize::from(again[1]), value.len());
        prop_assert_eq!(Capability::decode(again[0], &again[2..]), capability);
    }
}
