//! Which link events may have taken routes away in silence.
//!
//! When a link goes down, loses its carrier, leaves its master, or gets an MTU below IPv6's minimum, the kernel drops
//! routes and nexthop objects over it without a notification. Most link messages say nothing of the kind: they are
//! compared with what the link was before.

use std::collections::BTreeMap;

use super::{
    socket::{Frame, attributes, u32_at, u32_value},
    wire::{IFLA_MASTER, IFLA_MTU, RTM_DELLINK},
};

/// Flags, MTU and master of a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct LinkState(u32, u32, u32);

/// Last known state of every link, as many as the kernel has.
#[derive(Debug, Default)]
pub(crate) struct LinkStates(BTreeMap<u32, LinkState>);

impl LinkStates {
    /// Takes an `RTM_NEWLINK` or `RTM_DELLINK`; true when routes may be gone.
    pub(crate) fn observe(&mut self, frame: &Frame<'_>) -> bool {
        let Some(header) = frame.payload.first_chunk::<16>() else { return false };
        let index = u32_at(header, 4);
        if frame.kind == RTM_DELLINK {
            self.0.remove(&index);
            return true;
        }
        let mut state = LinkState(u32_at(header, 8), 0, 0);
        for (kind, value) in attributes(&frame.payload[16..]) {
            match kind {
                IFLA_MTU => state.1 = u32_value(value).unwrap_or_default(),
                IFLA_MASTER => state.2 = u32_value(value).unwrap_or_default(),
                _ => {}
            }
        }
        // A change mask of all ones announces a new link, over which there are no routes yet.
        let is_new = u32_at(header, 12) == u32::MAX;
        self.0.insert(index, state).map_or(!is_new, |before| before != state)
    }
}

#[cfg(test)]
mod tests {
    use super::{super::wire::RTM_NEWLINK, *};

    fn link(kind: u16, flags: u32, change: u32) -> (u16, Vec<u8>) {
        let mut payload = vec![0; 16];
        payload[4..8].copy_from_slice(&7u32.to_ne_bytes());
        payload[8..12].copy_from_slice(&flags.to_ne_bytes());
        payload[12..].copy_from_slice(&change.to_ne_bytes());
        (kind, payload)
    }

    #[test]
    fn only_changes_of_a_known_link_count() {
        let mut states = LinkStates::default();
        for ((kind, payload), counts) in [
            (link(RTM_NEWLINK, 0, u32::MAX), false),
            (link(RTM_NEWLINK, 1, 1), true),
            (link(RTM_NEWLINK, 1, 0), false),
            (link(RTM_NEWLINK, 0, 1), true),
            (link(RTM_DELLINK, 0, u32::MAX), true),
            // Not known and not new: it was there before we listened.
            (link(RTM_NEWLINK, 1, 0), true),
        ] {
            let frame = Frame { kind, flags: 0, seq: 0, port: 0, payload: &payload, whole: &payload };
            assert_eq!(states.observe(&frame), counts, "{payload:?}");
        }
    }
}
