//! What the fuzz targets run, as ordinary functions.
//!
//! A target in `fuzz/` only calls one of these, and the test below feeds the committed corpus to the same functions on the
//! stable toolchain. Each returns normally for every input or panics on a broken promise. The corpus of [`netlink`] is what a
//! kernel answered to dumps of a namespace with links, addresses, rules, neighbors, routes and nexthop objects.

use std::net::Ipv6Addr;

use bgp::bfd::EchoPacket;
use meshd_core::plan::ActualChange;

use crate::{
    kernel::linux,
    sources::netlink,
    speaker::{
        bfd::datagram::{self, Datagram},
        unnumbered::advertisement,
    },
};

/// A link-local address.
const ROUTER: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);

/// Reads a datagram of the kernel as both netlink threads do: changes of our own routes and nexthop objects, and rows of
/// everything else.
///
/// # Panics
///
/// When a nexthop object outside of our range is taken for one of ours.
pub fn netlink(data: &[u8]) {
    for frame in linux::socket::frames(data) {
        if let Some(ActualChange::Nexthop(id, _)) = linux::decode::change(&frame) {
            assert!(id.is_owned(), "{id} is not ours");
        }
        // Reading must end in a row or in nothing.
        let _row = netlink::parse(&frame);
    }
}

/// Reads a packet from its IPv4 header on, as the socket does that hears BFD echo packets.
///
/// # Panics
///
/// When what was read, and an echo packet in it, are not written as they read.
pub fn echo(data: &[u8]) {
    let Some(heard) = datagram::decode_ipv4(data) else { return };
    let written = datagram::encode(heard.source.into(), heard.destination.into(), heard.payload);
    // Ours have no options and cross no router.
    assert_eq!(datagram::decode_ipv4(&written), Some(Datagram { ttl: datagram::TTL, ..heard }));
    if let Some(packet) = EchoPacket::decode(heard.payload) {
        assert_eq!(packet.encode(), heard.payload);
    }
}

/// Reads a router advertisement. The first octet is the hop limit that it came with.
///
/// # Panics
///
/// When one is taken that was forwarded, or whose options are no whole ones.
pub fn router_advertisement(data: &[u8]) {
    let Some((hop_limit, message)) = data.split_first() else { return };
    if let Ok(read) = advertisement::decode(message, ROUTER, *hop_limit) {
        assert!(*hop_limit == advertisement::HOP_LIMIT && read.router == ROUTER);
        assert!(message.len() >= 16 && message.len() % 8 == 0 && message[0] == advertisement::ROUTER_ADVERTISEMENT);
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use super::*;

    fn corpus(target: &str) -> Vec<Vec<u8>> {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(target);
        let entries = fs::read_dir(&folder).expect("the corpus is committed");
        let inputs: Vec<_> =
            entries.map(|entry| fs::read(entry.expect("an entry").path()).expect("an input")).collect();
        assert!(!inputs.is_empty(), "{} is empty", folder.display());
        inputs
    }

    #[test]
    fn corpus_of_netlink() {
        let (mut own, mut rows) = (0, 0);
        for input in corpus("netlink") {
            netlink(&input);
            own += linux::socket::frames(&input).filter_map(|frame| linux::decode::change(&frame)).count();
            rows += linux::socket::frames(&input).filter_map(|frame| netlink::parse(&frame)).count();
        }
        assert!(own >= 6 && rows >= 10, "the corpus reaches too little: {own} changes of ours, {rows} rows");
    }

    #[test]
    fn corpus_of_echo() {
        let inputs = corpus("echo");
        inputs.iter().for_each(|input| echo(input));
        let is_echo = |input: &&Vec<u8>| {
            datagram::decode_ipv4(input).is_some_and(|heard| EchoPacket::decode(heard.payload).is_some())
        };
        assert!(inputs.iter().filter(is_echo).count() >= 3, "the corpus reaches too little");
    }

    #[test]
    fn corpus_of_router_advertisement() {
        let inputs = corpus("router_advertisement");
        inputs.iter().for_each(|input| router_advertisement(input));
        let is_taken = |input: &&Vec<u8>| advertisement::decode(&input[1..], ROUTER, input[0]).is_ok();
        assert!(inputs.iter().filter(is_taken).count() >= 3, "the corpus reaches too little");
    }

    #[test]
    fn cut_datagrams_are_read_without_panic() {
        for input in corpus("netlink") {
            for end in 0..input.len().min(2_048) {
                netlink(&input[..end]);
            }
        }
    }
}
