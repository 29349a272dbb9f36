//! Which session a packet belongs to.

use std::net::IpAddr;

use super::{
    super::{Arrival, Hops, Path, Sessions, Unselected},
    *,
};

fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

fn path(hops: Hops, device: Option<u32>) -> Path {
    Path { hops, remote: ip("192.0.2.2"), local: ip("192.0.2.1"), device }
}

fn arrival(hops: Hops, device: u32, ttl: u8) -> Arrival {
    Arrival { hops, source: ip("192.0.2.2"), destination: ip("192.0.2.1"), device, ttl }
}

#[test]
fn a_packet_finds_its_session_by_number_or_by_path() {
    let mut sessions = Sessions::new(1);
    let bound = sessions.insert(path(Hops::Single, Some(5)), 0, Settings::default()).expect("free");
    let free = sessions.insert(path(Hops::Single, None), 0, Settings::default()).expect("free");
    let far = sessions.insert(path(Hops::Multi, None), 250, Settings::default()).expect("free");
    assert!(sessions.insert(path(Hops::Multi, None), 250, Settings::default()).is_err());
    let unknown = Packet { your_discriminator: None, ..packet(State::Down) };
    let to = |number| Packet { your_discriminator: Some(number), ..packet(State::Up) };

    assert_eq!(sessions.select(&arrival(Hops::Single, 5, 255), &unknown), Ok(bound));
    assert_eq!(sessions.select(&arrival(Hops::Single, 6, 255), &unknown), Ok(free));
    assert_eq!(sessions.select(&arrival(Hops::Multi, 6, 250), &unknown), Ok(far));
    let stranger = Arrival { source: ip("192.0.2.3"), ..arrival(Hops::Single, 5, 255) };
    assert_eq!(sessions.select(&stranger, &unknown), Err(Unselected::Address));
    // By number the addresses do not count.
    assert_eq!(sessions.select(&stranger, &to(bound)), Ok(bound));
    assert_eq!(sessions.select(&arrival(Hops::Single, 6, 255), &to(bound)), Err(Unselected::Path));
    assert_eq!(sessions.select(&arrival(Hops::Multi, 5, 255), &to(bound)), Err(Unselected::Path));
    let nobody = discriminator(if bound.get() == 1 || free.get() == 1 || far.get() == 1 { 2 } else { 1 });
    assert_eq!(sessions.select(&arrival(Hops::Single, 5, 255), &to(nobody)), Err(Unselected::Discriminator(nobody)));

    sessions.remove(bound);
    assert_eq!(sessions.select(&arrival(Hops::Single, 5, 255), &unknown), Ok(free));
    assert_eq!(sessions.len(), 2);
}

#[test]
fn a_packet_from_too_far_away_is_refused() {
    let mut sessions = Sessions::new(1);
    let near = sessions.insert(path(Hops::Single, None), 0, Settings::default()).expect("free");
    let far = sessions.insert(path(Hops::Multi, None), 250, Settings::default()).expect("free");
    let unknown = Packet { your_discriminator: None, ..packet(State::Down) };
    for (hops, ttl, expected) in [
        (Hops::Single, 255, Ok(near)),
        (Hops::Single, 254, Err(Unselected::Ttl { ttl: 254, least: 255 })),
        (Hops::Multi, 250, Ok(far)),
        (Hops::Multi, 249, Err(Unselected::Ttl { ttl: 249, least: 250 })),
    ] {
        assert_eq!(sessions.select(&arrival(hops, 1, ttl), &unknown), expected);
    }
}

#[test]
fn numbers_differ_and_depend_on_the_seed() {
    let numbers = |seed| {
        let mut sessions = Sessions::new(seed);
        for device in 0..1_000 {
            sessions.insert(path(Hops::Single, Some(device)), 0, Settings::default()).expect("free");
        }
        sessions.iter().map(|(number, _)| number).collect::<Vec<_>>()
    };
    assert_eq!(numbers(1).len(), 1_000);
    assert_ne!(numbers(1), numbers(2));
    assert_eq!(numbers(3), numbers(3));
}
