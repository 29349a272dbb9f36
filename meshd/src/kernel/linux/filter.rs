//! Classic BPF filters on event sockets.
//!
//! A node may carry a full foreign table, and every change of it is multicast to every subscriber. The filters here run
//! inside the kernel before a message is queued, so that what we do not want costs neither memory nor a wake-up. They
//! look at the first message of a datagram; notifications are sent one by one. Loads of classic BPF are big-endian while
//! netlink is in host order, so constants are swapped when the program is built.

use std::os::fd::{AsRawFd, BorrowedFd};

use meshd_core::id::{Metric, NEXTHOP_IDS, ROUTE_PROTOCOL};
use nix::errno::Errno;

use super::wire::{
    NHA_ID, NLM_F_REPLACE, RTA_PRIORITY, RTM_DELADDR, RTM_DELLINK, RTM_DELNEIGH, RTM_DELNEXTHOP, RTM_DELROUTE,
    RTM_NEWLINK, RTM_NEWNEIGH, RTM_NEWNEXTHOP, RTM_NEWROUTE,
};
use crate::kernel::KernelError;

// `struct sock_filter` codes of linux/bpf_common.h.
const LD_W_ABS: u16 = 0x20;
const LD_H_ABS: u16 = 0x28;
const LD_B_ABS: u16 = 0x30;
const LD_W_IND: u16 = 0x40;
const LD_IMM: u16 = 0x00;
const LDX_IMM: u16 = 0x01;
const TAX: u16 = 0x07;
const AND: u16 = 0x54;
const JEQ: u16 = 0x15;
const JGE: u16 = 0x35;
const JSET: u16 = 0x45;
const RET: u16 = 0x06;

/// `SKF_AD_OFF + SKF_AD_NLATTR`: A becomes the offset of the attribute of type X, searched from offset A on; 0 when there
/// is none.
const FIND_ATTRIBUTE: u32 = (-0x1000i32 + 12).cast_unsigned();
/// Whole messages pass.
const PASS: u32 = u32::MAX;

// Offsets into a message; 16 bytes are the netlink header.
const NLMSG_TYPE: u32 = 4;
const NLMSG_FLAGS: u32 = 6;
const RTM_TABLE: u32 = 16 + 4;
const RTM_PROTOCOL: u32 = 16 + 5;
const RTM_TYPE: u32 = 16 + 7;
const RTM_ATTRIBUTES: u32 = 16 + 12;
const RTM_FLAGS: u32 = 16 + 8;
const NDM_FAMILY: u32 = 16;
const NH_PROTOCOL: u32 = 16 + 2;
const NH_ATTRIBUTES: u32 = 16 + 8;

const RTN_UNICAST: u32 = 1;
const RTN_BROADCAST: u32 = 3;
const RTN_MULTICAST: u32 = 5;
const RT_TABLE_LOCAL: u32 = 255;
const RTM_F_CLONED: u32 = 0x200;
const AF_BRIDGE: u32 = 7;

/// A classic BPF program.
#[derive(Debug, Clone)]
pub(crate) struct Filter(Vec<libc::sock_filter>);

impl Filter {
    /// What the stream about our own objects needs:
    ///
    /// - routes and nexthop objects with our protocol;
    /// - a route that *replaced* one with a metric of ours: when somebody else takes over our route, the only message about it
    ///   carries their protocol;
    /// - nexthop objects in our id range, for the same reason;
    /// - links, and addresses that vanish: the kernel removes routes over them without telling.
    pub(crate) fn own(metric: Metric, bgp_metric: Metric) -> Self {
        let mut asm = Assembler::default();
        asm.step(LD_H_ABS, NLMSG_TYPE);
        asm.jump(JEQ, half(RTM_NEWROUTE), "route", "");
        asm.jump(JEQ, half(RTM_DELROUTE), "route", "");
        asm.jump(JEQ, half(RTM_NEWNEXTHOP), "nexthop", "");
        asm.jump(JEQ, half(RTM_DELNEXTHOP), "nexthop", "");
        asm.jump(JEQ, half(RTM_NEWLINK), "pass", "");
        asm.jump(JEQ, half(RTM_DELLINK), "pass", "");
        asm.jump(JEQ, half(RTM_DELADDR), "pass", "drop");

        asm.label("route");
        asm.step(LD_B_ABS, RTM_PROTOCOL);
        asm.jump(JEQ, ROUTE_PROTOCOL.into(), "pass", "");
        asm.step(LD_H_ABS, NLMSG_FLAGS);
        asm.jump(JSET, half(NLM_F_REPLACE), "", "drop");
        asm.find(RTM_ATTRIBUTES, RTA_PRIORITY);
        asm.jump(JEQ, 0, "drop", "");
        asm.step(TAX, 0);
        asm.step(LD_W_IND, 4);
        asm.jump(JEQ, word(metric.0), "pass", "");
        asm.jump(JEQ, word(bgp_metric.0), "pass", "drop");

        asm.label("nexthop");
        asm.step(LD_B_ABS, NH_PROTOCOL);
        asm.jump(JEQ, ROUTE_PROTOCOL.into(), "pass", "");
        asm.find(NH_ATTRIBUTES, NHA_ID);
        asm.jump(JEQ, 0, "drop", "");
        asm.step(TAX, 0);
        asm.step(LD_W_IND, 4);
        // The ids of our range share their upper bits with few others; the reader compares exactly.
        let (mask, upper) = shared_bits(*NEXTHOP_IDS.start(), *NEXTHOP_IDS.end());
        asm.step(AND, word(mask));
        asm.jump(JEQ, word(upper), "pass", "drop");
        asm.finish()
    }

    /// What the source of foreign kernel rows needs: everything except routes with our protocol, the local table,
    /// broadcast, anycast, multicast and cached routes, and the forwarding tables of bridges.
    pub(crate) fn foreign() -> Self {
        let mut asm = Assembler::default();
        asm.step(LD_H_ABS, NLMSG_TYPE);
        asm.jump(JEQ, half(RTM_NEWROUTE), "route", "");
        asm.jump(JEQ, half(RTM_DELROUTE), "route", "");
        asm.jump(JEQ, half(RTM_NEWNEIGH), "neighbor", "");
        asm.jump(JEQ, half(RTM_DELNEIGH), "neighbor", "pass");
        asm.label("neighbor");
        asm.step(LD_B_ABS, NDM_FAMILY);
        asm.jump(JEQ, AF_BRIDGE, "drop", "pass");
        asm.label("route");
        asm.step(LD_B_ABS, RTM_PROTOCOL);
        asm.jump(JEQ, ROUTE_PROTOCOL.into(), "drop", "");
        asm.step(LD_W_ABS, RTM_FLAGS);
        asm.jump(JSET, word(RTM_F_CLONED), "drop", "");
        asm.step(LD_B_ABS, RTM_TABLE);
        asm.jump(JEQ, RT_TABLE_LOCAL, "drop", "");
        asm.step(LD_B_ABS, RTM_TYPE);
        asm.jump(JEQ, RTN_UNICAST, "pass", "");
        asm.jump(JGE, RTN_MULTICAST + 1, "pass", "");
        asm.jump(JGE, RTN_BROADCAST, "drop", "pass");
        asm.finish()
    }

    /// Puts the program on a socket, in place of an earlier one.
    pub(crate) fn attach(&self, socket: BorrowedFd<'_>) -> Result<(), KernelError> {
        let mut code = self.0.clone();
        let program = libc::sock_fprog {
            len: u16::try_from(code.len()).expect("filters have a few dozen instructions"),
            filter: code.as_mut_ptr(),
        };
        let size = libc::socklen_t::try_from(size_of_val(&program)).expect("a small structure");
        // SAFETY: `program` and the instructions it points to outlive the call, which copies them.
        let result = unsafe {
            libc::setsockopt(
                socket.as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_ATTACH_FILTER,
                (&raw const program).cast(),
                size,
            )
        };
        Errno::result(result).map(|_| ()).map_err(KernelError::errno("attach a socket filter"))
    }
}

/// Turns labels into jump distances.
#[derive(Debug, Default)]
struct Assembler {
    code: Vec<libc::sock_filter>,
    labels: Vec<(&'static str, usize)>,
    jumps: Vec<(usize, &'static str, &'static str)>,
}

impl Assembler {
    fn step(&mut self, code: u16, k: u32) {
        self.code.push(libc::sock_filter { code, jt: 0, jf: 0, k });
    }

    /// An empty label is the next instruction.
    fn jump(&mut self, code: u16, k: u32, yes: &'static str, no: &'static str) {
        self.jumps.push((self.code.len(), yes, no));
        self.step(code, k);
    }

    fn label(&mut self, name: &'static str) {
        self.labels.push((name, self.code.len()));
    }

    /// A becomes the offset of the attribute.
    fn find(&mut self, attributes: u32, kind: u16) {
        self.step(LDX_IMM, kind.into());
        self.step(LD_IMM, attributes);
        self.step(LD_W_ABS, FIND_ATTRIBUTE);
    }

    fn finish(mut self) -> Filter {
        self.label("pass");
        self.step(RET, PASS);
        self.label("drop");
        self.step(RET, 0);
        for (at, yes, no) in std::mem::take(&mut self.jumps) {
            (self.code[at].jt, self.code[at].jf) = (self.distance(at, yes), self.distance(at, no));
        }
        Filter(self.code)
    }

    fn distance(&self, from: usize, label: &str) -> u8 {
        let target = match label {
            "" => from + 1,
            _ => self.labels.iter().find(|(name, _)| *name == label).expect("every label is defined").1,
        };
        u8::try_from(target - from - 1).expect("jumps are short and forward")
    }
}

/// A host-order `u16` as a big-endian load sees it.
fn half(value: u16) -> u32 {
    u16::from_be_bytes(value.to_ne_bytes()).into()
}

/// A host-order `u32` as a big-endian load sees it.
fn word(value: u32) -> u32 {
    u32::from_be_bytes(value.to_ne_bytes())
}

/// The upper bits that all numbers from `low` to `high` share, as (mask, value).
fn shared_bits(low: u32, high: u32) -> (u32, u32) {
    let differ = 32 - (low ^ high).leading_zeros();
    let mask = u32::MAX.checked_shl(differ).unwrap_or(0);
    (mask, low & mask)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shared_bits_cover_the_range() {
        let (mask, upper) = shared_bits(*NEXTHOP_IDS.start(), *NEXTHOP_IDS.end());
        for id in [*NEXTHOP_IDS.start(), 77_123_456, *NEXTHOP_IDS.end()] {
            assert_eq!(id & mask, upper);
        }
        assert_ne!(1 & mask, upper);
        assert_eq!(shared_bits(5, 5), (u32::MAX, 5));
        assert_eq!(shared_bits(0, u32::MAX), (0, 0));
    }

    #[test]
    fn the_kernel_accepts_the_programs() {
        let socket = crate::kernel::linux::socket::RouteSocket::open().unwrap();
        for filter in [Filter::own(Metric(77), Metric(78)), Filter::foreign()] {
            filter.attach(std::os::fd::AsFd::as_fd(&socket)).unwrap();
        }
    }
}
