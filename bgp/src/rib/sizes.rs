//! How large the steps of export are. Tests make them small, so that what takes a full table happens with ten prefixes.

/// Octets of encoded messages that are kept for one group of peers and one family; somewhat more while one is written. A
/// peer that is further behind walks the Adj-RIB-Out instead.
pub const LOG_OCTETS_MAX: usize = 1 << 20;

/// Destinations without paths that are kept because a slow peer has yet to hear of their withdrawal. A table that was
/// larger than this before may keep as many as it had.
pub const TOMBSTONES_MAX: u32 = 1 << 20;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Sizes {
    pub(super) log_octets_max: usize,
    /// What is forgotten at once.
    pub(super) log_chunk_octets: usize,
    /// Destinations that a walk looks at before it writes messages.
    pub(super) scan_window: u32,
    /// Destinations after which a slice of packing ends with the next change of attributes.
    pub(super) slice_destinations: usize,
    /// Destinations after which it ends anyway.
    pub(super) slice_destinations_max: usize,
    /// Octets of messages after which it ends.
    pub(super) slice_octets: usize,
    /// Slices of packing or walking in one call.
    pub(super) slices_max: usize,
    pub(super) tombstones_max: u32,
}

impl Default for Sizes {
    fn default() -> Self {
        Self {
            log_octets_max: LOG_OCTETS_MAX,
            log_chunk_octets: 64 << 10,
            scan_window: 2_048,
            slice_destinations: 512,
            slice_destinations_max: 4_096,
            slice_octets: 64 << 10,
            slices_max: 64,
            tombstones_max: TOMBSTONES_MAX,
        }
    }
}

#[cfg(test)]
impl Sizes {
    pub(super) const SMALL: Self = Self {
        log_octets_max: 400,
        log_chunk_octets: 100,
        scan_window: 3,
        slice_destinations: 2,
        slice_destinations_max: 4,
        slice_octets: 200,
        slices_max: 4,
        tombstones_max: TOMBSTONES_MAX,
    };
}
