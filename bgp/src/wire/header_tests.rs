use proptest::prelude::*;

use super::*;

fn octets(length: u16, message_type: u8) -> [u8; HEADER_LEN] {
    let mut octets = [0xff; HEADER_LEN];
    octets[16..18].copy_from_slice(&length.to_be_bytes());
    octets[18] = message_type;
    octets
}

fn decode(length: u16, message_type: u8, limit: LengthLimit) -> Result<MessageType, HeaderError> {
    Header::decode(&octets(length, message_type), limit).map(Header::message_type)
}

#[test]
fn lengths_are_checked_for_each_type() {
    use LengthLimit::{Extended, Standard};
    use MessageType::{Keepalive, Notification, Open, RouteRefresh, Update};
    let bad = |length| Err(HeaderError::Length(length));
    let cases = [
        (0, 4, Standard, bad(0)),
        (18, 4, Standard, bad(18)),
        (19, 4, Standard, Ok(Keepalive)),
        (20, 4, Standard, bad(20)),
        (20, 4, Extended, bad(20)),
        (28, 1, Standard, bad(28)),
        (29, 1, Standard, Ok(Open)),
        (4_096, 1, Standard, Ok(Open)),
        (4_097, 1, Standard, bad(4_097)),
        (4_097, 1, Extended, bad(4_097)),
        (22, 2, Standard, bad(22)),
        (23, 2, Standard, Ok(Update)),
        (4_096, 2, Standard, Ok(Update)),
        (4_097, 2, Standard, bad(4_097)),
        (4_097, 2, Extended, Ok(Update)),
        (65_535, 2, Extended, Ok(Update)),
        (20, 3, Standard, bad(20)),
        (21, 3, Standard, Ok(Notification)),
        (65_535, 3, Extended, Ok(Notification)),
        (19, 5, Standard, Ok(RouteRefresh)),
        (23, 5, Standard, Ok(RouteRefresh)),
    ];
    for (length, message_type, limit, expected) in cases {
        assert_eq!(decode(length, message_type, limit), expected, "length {length}, type {message_type}, {limit:?}");
    }
}

#[test]
fn unknown_types_are_refused() {
    for message_type in (0..=u8::MAX).filter(|octet| !(1..=5).contains(octet)) {
        assert_eq!(decode(19, message_type, LengthLimit::Standard), Err(HeaderError::Type(message_type)));
    }
}

#[test]
fn every_octet_of_the_marker_counts() {
    for position in 0..16 {
        let mut octets = octets(19, 4);
        octets[position] = 0xfe;
        assert_eq!(Header::decode(&octets, LengthLimit::Standard), Err(HeaderError::Marker), "octet {position}");
    }
}

#[test]
fn the_first_wrong_field_is_reported() {
    let mut all_wrong = octets(7, 99);
    all_wrong[0] = 0;
    assert_eq!(Header::decode(&all_wrong, LengthLimit::Standard), Err(HeaderError::Marker));
    assert_eq!(decode(7, 99, LengthLimit::Standard), Err(HeaderError::Length(7)));
}

/// RFC 4271 section 6.1 by the letter: code 1, and what the data field quotes.
#[test]
fn refusals_become_the_notification_of_the_rfc() {
    let cases = [
        (HeaderError::Marker, 1, vec![]),
        (HeaderError::Length(4_097), 2, vec![0x10, 0x01]),
        (HeaderError::Type(99), 3, vec![99]),
    ];
    for (error, subcode, data) in cases {
        assert_eq!(error.notification(), Notification { code: ErrorCode::MessageHeader, subcode, data });
    }
}

#[test]
fn a_stream_is_cut_into_messages() {
    let keepalive = octets(19, 4);
    let update = [octets(23, 2).as_slice(), &[0; 4]].concat();
    let stream = [keepalive.as_slice(), &update, &keepalive[..7]].concat();

    let first = next_frame(&stream, LengthLimit::Standard).expect("valid").expect("complete");
    assert_eq!(first.header.message_type(), MessageType::Keepalive);
    assert!(first.body.is_empty());
    let second = next_frame(first.rest, LengthLimit::Standard).expect("valid").expect("complete");
    assert_eq!(second.header.message_type(), MessageType::Update);
    assert_eq!(second.body, [0; 4]);
    assert_eq!(next_frame(second.rest, LengthLimit::Standard), Ok(None));
}

#[test]
fn a_bad_header_is_refused_before_its_body_arrives() {
    assert_eq!(next_frame(&octets(5_000, 2), LengthLimit::Standard), Err(HeaderError::Length(5_000)));
}

#[test]
fn a_body_that_does_not_fit_gets_no_header() {
    let longest = 4_096 - HEADER_LEN;
    for (message_type, body, fits) in [
        (MessageType::Update, 3, false),
        (MessageType::Update, 4, true),
        (MessageType::Update, longest, true),
        (MessageType::Update, longest + 1, false),
        (MessageType::Update, usize::MAX, false),
        (MessageType::Keepalive, 0, true),
        (MessageType::Keepalive, 1, false),
    ] {
        let header = Header::for_body(message_type, body, LengthLimit::Standard);
        assert_eq!(header.is_ok(), fits, "{message_type:?} with {body}");
    }
}

fn any_limit() -> impl Strategy<Value = LengthLimit> {
    prop_oneof![Just(LengthLimit::Standard), Just(LengthLimit::Extended)]
}

proptest! {
    #[test]
    fn what_decodes_encodes_to_the_same_octets(length: u16, message_type in 0_u8..8, limit in any_limit()) {
        let input = octets(length, message_type);
        if let Ok(header) = Header::decode(&input, limit) {
            prop_assert_eq!(header.encode(), input);
            prop_assert_eq!(header.body_length() + HEADER_LEN, usize::from(length));
        }
    }

    #[test]
    fn what_is_made_decodes_to_itself(body in 0_usize..70_000, index in 0_usize..5, limit in any_limit()) {
        if let Ok(header) = Header::for_body(MessageType::ALL[index], body, limit) {
            prop_assert_eq!(header.body_length(), body);
            prop_assert_eq!(Header::decode(&header.encode(), limit), Ok(header));
        }
    }

    #[test]
    fn nothing_is_lost_when_a_stream_is_cut(stream: Vec<u8>, length in 0_u16..200, message_type in 1_u8..6, limit in any_limit()) {
        let stream = [octets(length, message_type).as_slice(), &stream].concat();
        if let Ok(Some(frame)) = next_frame(&stream, limit) {
            let parts = [frame.header.encode().as_slice(), frame.body, frame.rest].concat();
            prop_assert_eq!(parts, stream);
        }
    }
}
