use super::*;
use crate::{Family, wire::header::HEADER_LEN};

fn open(capabilities: Vec<Capability>) -> Open {
    Open { asn: Asn(65_001), hold_time_s: 90, router_id: RouterId(0x0a00_0001), capabilities }
}

/// A body with these parameter octets behind the fixed fields.
fn body(parameters_length: u8, parameters: &[u8]) -> Vec<u8> {
    [&[4, 0xfd, 0xe9, 0, 90, 10, 0, 0, 1, parameters_length], parameters].concat()
}

#[test]
fn what_is_made_decodes_to_itself_with_any_number_of_capabilities() {
    for count in [0, 1, 5, 62, 63, 64, 600] {
        let made = open(vec![Capability::family(Family::Ipv4Unicast); count]);
        let message = made.encode().expect("it fits");
        assert_eq!(Open::decode(&message[HEADER_LEN..]), Ok(made.clone()), "{count}");
        // From 43 capabilities of six octets on, one length octet is not enough.
        assert_eq!(message[HEADER_LEN + 9] == 255, count * 6 > 252, "{count}");
    }
    let too_many = open(vec![Capability::family(Family::Ipv4Unicast); 700]);
    assert!(matches!(too_many.encode(), Err(OpenEncodeError::Message(_))));
    let far_too_many = open(vec![Capability::family(Family::Ipv4Unicast); 20_000]);
    assert!(matches!(far_too_many.encode(), Err(OpenEncodeError::Message(_))));
    let too_long = open(vec![Capability::Unknown { code: 99, value: vec![0; 256] }]);
    assert!(matches!(too_long.encode(), Err(OpenEncodeError::Capability(_))));
}

#[test]
fn a_four_octet_number_is_hidden_from_the_fixed_field() {
    let mut made = open(vec![Capability::FourOctetAs(Asn(4_200_000_001))]);
    made.asn = Asn(4_200_000_001);
    let message = made.encode().expect("it fits");
    assert_eq!(message[HEADER_LEN + 1..HEADER_LEN + 3], 23_456_u16.to_be_bytes());
    assert_eq!(Open::decode(&message[HEADER_LEN..]), Ok(made));
}

#[test]
fn parameters_may_come_in_any_grouping() {
    let two = vec![Capability::RouteRefresh, Capability::EnhancedRouteRefresh];
    for octets in [
        body(6, &[2, 4, 2, 0, 70, 0]),
        body(8, &[2, 2, 2, 0, 2, 2, 70, 0]),
        body(10, &[2, 0, 2, 2, 2, 0, 2, 2, 70, 0]),
        body(255, &[255, 0, 7, 2, 0, 4, 2, 0, 70, 0]),
        // RFC 9072 section 2: the length octet of the old form means nothing when the type says extended.
        body(1, &[255, 0, 7, 2, 0, 4, 2, 0, 70, 0]),
    ] {
        assert_eq!(Open::decode(&octets), Ok(open(two.clone())), "{octets:?}");
    }
}

#[test]
fn lengths_must_agree() {
    for octets in [
        body(1, &[]),
        body(0, &[2]),
        body(2, &[2, 2]),
        body(3, &[2, 2, 2]),
        body(4, &[2, 2, 2, 1]),
        body(1, &[2]),
        body(255, &[255]),
        body(255, &[255, 0, 9, 2, 0, 4, 2, 0, 70, 0]),
        body(255, &[255, 0, 7, 2, 0, 5, 2, 0, 70, 0]),
        body(8, &[2, 6, 65, 4, 0, 0, 1]),
        body(6, &[2, 4, 65, 2, 0, 1]),
        vec![],
        vec![4, 0],
    ] {
        let error = Open::decode(&octets).expect_err("malformed");
        assert!(matches!(error, OpenError::Malformed(_)), "{octets:?}: {error}");
        assert_eq!(error.notification(), Notification::new(ErrorCode::Open, open_error::UNSPECIFIC));
    }
}

/// RFC 4271 section 6.2, RFC 6286, RFC 7607: what is refused without knowing the configuration.
#[test]
fn refusals_become_the_notification_of_the_rfc() {
    let with = |at: usize, octets: &[u8]| {
        let mut body = body(0, &[]);
        body[at..at + octets.len()].copy_from_slice(octets);
        body
    };
    for (octets, error, subcode, data) in [
        (with(0, &[3]), OpenError::Version(3), 1, &[0, 4][..]),
        (with(1, &[0, 0]), OpenError::AsZero, 2, &[]),
        (with(3, &[0, 1]), OpenError::HoldTime(1), 6, &[]),
        (with(3, &[0, 2]), OpenError::HoldTime(2), 6, &[]),
        (with(5, &[0, 0, 0, 0]), OpenError::Identifier, 3, &[]),
        (body(3, &[1, 1, 0]), OpenError::Parameter(1), 4, &[]),
        (body(8, &[2, 6, 65, 4, 0, 0, 0, 0]), OpenError::AsZero, 2, &[]),
    ] {
        assert_eq!(Open::decode(&octets), Err(error));
        assert_eq!(error.notification(), Notification { code: ErrorCode::Open, subcode, data: data.to_vec() });
    }
    for hold_time in [[0, 0], [0, 3], [255, 255]] {
        assert!(Open::decode(&with(3, &hold_time)).is_ok());
    }
}
