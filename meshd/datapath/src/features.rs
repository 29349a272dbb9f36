//! What the running kernel can do, asked by trying.
//!
//! A "no" is only the exact refusal that a kernel without the feature gives; anything else is an error of the question. Nothing here
//! leaves a trace, and nothing is concluded from a version number: distributions carry features back.

use std::io;

use aya::programs::{ProgramError, SchedClassifier, TcAttachType};

use crate::{DatapathError, sys};

/// Answers of the running kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Features {
    /// TC programs are attached by links of their own (6.6 and newer); otherwise as classifiers of a clsact qdisc.
    pub tcx: bool,
    /// `bpf_l4_csum_replace` knows `BPF_F_IPV6` (6.16, and stable kernels that got it).
    pub ipv6_checksum: bool,
}

impl Features {
    /// Asks the running kernel; needs the capabilities that loading programs needs.
    ///
    /// # Errors
    /// When a question was not answered.
    pub fn probe() -> Result<Self, DatapathError> {
        let error = |question| move |source| DatapathError::Probe { question, source };
        Ok(Self {
            tcx: tcx().map_err(error("for TCX"))?,
            ipv6_checksum: ipv6_checksum().map_err(error("for checksums of IPv6"))?,
        })
    }

    /// What the kernel lacks, each with what follows from it.
    #[must_use]
    pub fn lacking(&self) -> Vec<(&'static str, &'static str)> {
        let all = [
            (
                self.tcx,
                "tcx",
                "TC programs are classifiers of a clsact qdisc, which somebody who deletes that qdisc takes off",
            ),
            (
                self.ipv6_checksum,
                "ipv6-checksum-flag",
                "of IPv6 packets that a device has summed up as a whole the sum is dropped when they are translated by TC programs",
            ),
        ];
        all.into_iter().filter(|(has, ..)| !has).map(|(_, name, consequence)| (name, consequence)).collect()
    }
}

/// Lists the programs of the loopback, which every network namespace has: only a kernel with TCX has such a list.
fn tcx() -> io::Result<bool> {
    match SchedClassifier::query_tcx("lo", TcAttachType::Ingress) {
        Ok(_) => Ok(true),
        // There is a list, and somebody's program is on it, which takes CAP_SYS_ADMIN to look at.
        Err(ProgramError::SyscallError(error)) if error.call != "bpf_prog_query" => Ok(true),
        Err(ProgramError::SyscallError(error)) if error.io_error.raw_os_error() == Some(libc::EINVAL) => Ok(false),
        Err(ProgramError::SyscallError(error)) => Err(error.io_error),
        Err(error) => Err(io::Error::other(error)),
    }
}

/// Lets a program call the helper with the flag. It changes nothing, in a packet of zeros.
fn ipv6_checksum() -> io::Result<bool> {
    /// `bpf_l4_csum_replace`
    const HELPER: i32 = 11;
    /// `BPF_F_PSEUDO_HDR | BPF_F_IPV6`
    const FLAGS: i32 = 1 << 4 | 1 << 7;
    /// Where a TCP header behind an IPv6 header has its checksum.
    const OFFSET: i32 = 14 + 40 + 16;
    let to = |register: u8, value: i32| sys::instruction(0xb7, register, value);
    let program = [
        to(2, OFFSET),
        to(3, 0),
        to(4, 0),
        to(5, FLAGS),
        sys::instruction(0x85, 0, HELPER),
        sys::instruction(0x95, 0, 0),
    ];
    match sys::run_classifier(&program, &[0; 96])?.cast_signed() {
        0 => Ok(true),
        answer if answer == -libc::EINVAL => Ok(false),
        answer => Err(io::Error::from_raw_os_error(-answer)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_lacking_has_a_consequence() {
        assert!(Features { tcx: true, ipv6_checksum: true }.lacking().is_empty());
        let lacking = Features { tcx: false, ipv6_checksum: false }.lacking();
        assert_eq!(lacking.iter().map(|(name, _)| *name).collect::<Vec<_>>(), ["tcx", "ipv6-checksum-flag"]);
    }
}
