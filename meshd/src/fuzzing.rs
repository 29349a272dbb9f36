//! What the fuzz targets run, as ordinary functions.
//!
//! A target in `fuzz/` only calls one of these, and the test below feeds the committed corpus to the same functions on the
//! stable toolchain. Each returns normally for every input or panics on a broken promise. The corpus of [`netlink`] is what a
//! kernel answered to dumps of a namespace with links, addresses, rules, neighbors, routes and nexthop objects.

use meshd_core::plan::ActualChange;

use crate::{kernel::linux, sources::netlink};

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
    fn cut_datagrams_are_read_without_panic() {
        for input in corpus("netlink") {
            for end in 0..input.len().min(2_048) {
                netlink(&input[..end]);
            }
        }
    }
}
