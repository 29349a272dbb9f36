//! Who may talk to whom: the table of the policy work.
//!
//! The map is made, sized, pinned and taken over like all others, and no program asks it yet: as long as nothing writes it, everybody may talk
//! to everybody. In which order it is to be asked is in `meshd_steps::policy`.

/// Values of [`PolicyKey::direction`], as the workload sees it that the policy is about.
pub mod policy_direction {
    /// Others begin a connection to it.
    pub const INGRESS: u8 = 1;
    /// It begins one to others.
    pub const EGRESS: u8 = 2;
}

/// Values of [`Policy::verdict`].
pub mod policy_verdict {
    /// The connection may begin.
    pub const ALLOW: u8 = 1;
    /// It may not. Of several entries that hold, one that says so counts.
    pub const DENY: u8 = 2;
}

/// Key of `policy`. One hash of whole keys, because a lookup of the longest match costs four to five times as much: a range of ports is
/// written out, and what holds for all of a kind has a key of its own, with 0 in its place.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PolicyKey {
    /// Number of the policy that applies to a workload: all workloads with the same one share its entries.
    pub policy: u32,
    /// Identity of the other end; 0: whoever it is.
    pub identity: u32,
    /// Port of the end that is asked, network byte order; 0: every one.
    pub port: u16,
    /// IP protocol number; 0: every one, and every port then.
    pub protocol: u8,
    /// One of [`policy_direction`].
    pub direction: u8,
}

const _: () = assert!(size_of::<PolicyKey>() == 12 && align_of::<PolicyKey>() == 4);

/// Value of `policy`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Policy {
    /// Number of the rule that says it, for whoever asks why.
    pub rule: u32,
    /// One of [`policy_verdict`].
    pub verdict: u8,
    /// 0.
    pub reserved: [u8; 3],
}

const _: () = assert!(size_of::<Policy>() == 8 && align_of::<Policy>() == 4);
