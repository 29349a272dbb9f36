//! What XDP and TC programs have in common.

use aya_ebpf::{
    bindings::{__sk_buff, xdp_md},
    helpers::{bpf_l4_csum_replace, bpf_skb_pull_data},
    programs::{TcContext, XdpContext},
};
use meshd_abi::{Address, Tuple, V6};
use meshd_steps::{
    Frame, Packet, Part,
    header::{ETHERNET, protocol},
    rewrite,
};

use crate::{maps::Tables, steps::event};

/// `BPF_F_PSEUDO_HDR`: the change is one of the pseudo header, which half checksums contain.
const PSEUDO_HEADER: u64 = 1 << 4;
/// `BPF_F_MARK_MANGLED_0`: a sum of zero means none (UDP), and stays so.
const ZERO_IS_NONE: u64 = 1 << 5;

/// A program's two halves, one per family, as functions that the verifier looks at by themselves: each has a stack of its own, and what
/// one of them does is not multiplied by what the other does. They are exported, because the compiler changes the arguments of
/// what only it knows, and a context does not survive that.
macro_rules! families {
    ($v4:ident, $v6:ident, $program:ident, $raw:ident, $context:ident, $verdict:ty) => {
        /// For IPv4.
        #[unsafe(no_mangle)]
        #[inline(never)]
        pub extern "C" fn $v4(ctx: *mut $raw) -> $verdict {
            $program::<V4>(&$context::new(ctx))
        }

        /// For IPv6.
        #[unsafe(no_mangle)]
        #[inline(never)]
        pub extern "C" fn $v6(ctx: *mut $raw) -> $verdict {
            $program::<V6>(&$context::new(ctx))
        }
    };
}

/// A packet that a program was called for.
pub trait Context {
    /// Its bytes. To be asked once, and again after [`Context::translate`].
    fn frame(&self) -> Frame;

    /// Its length, link-layer header included.
    fn length(&self) -> u64;

    /// The link it arrived at.
    fn link(&self) -> u32;

    /// Completes and writes this CPU's flow event about it: see [`event::tell`].
    fn tell<A: Tables>(&self);

    /// Writes another tuple into it, with all checksums, and with `forward` a TTL that is one lower. `None`: it could not be
    /// written and must be dropped.
    fn translate<A: Tables>(&self, frame: &Frame, packet: &Packet<A>, to: &Tuple<A>, forward: bool) -> Option<()>;
}

impl Context for XdpContext {
    #[inline(always)]
    fn tell<A: Tables>(&self) {
        if A::IS_V4 {
            event::xdp_tell4(self.ctx)
        } else {
            event::xdp_tell6(self.ctx)
        };
    }

    #[inline(always)]
    fn frame(&self) -> Frame {
        // SAFETY: the kernel gives a packet's bounds, and nobody else touches it while the program runs.
        unsafe { Frame::new(self.data(), self.data_end()) }
    }

    #[inline(always)]
    fn length(&self) -> u64 {
        (self.data_end() - self.data()) as u64
    }

    #[inline(always)]
    fn link(&self) -> u32 {
        self.ingress_ifindex() as u32
    }

    #[inline(always)]
    fn translate<A: Tables>(&self, frame: &Frame, packet: &Packet<A>, to: &Tuple<A>, forward: bool) -> Option<()> {
        if A::IS_V4 {
            return rewrite_frame(frame, packet, to, forward);
        }
        A::rewriting()?.fill(packet, to, forward);
        if xdp_rewrite6(self.ctx) == 0 { Some(()) } else { None }
    }
}

#[inline(always)]
fn rewrite_frame<A: Tables>(frame: &Frame, packet: &Packet<A>, to: &Tuple<A>, forward: bool) -> Option<()> {
    let changed = rewrite::rewrite(frame, ETHERNET, packet, to, forward)?;
    rewrite::patch_checksum(frame, packet, &changed)
}

/// A translation of IPv6 under way: addresses of four packets' length do not fit on the stack beside what the program knows.
#[repr(C)]
pub struct Rewriting<A> {
    packet: Packet<A>,
    tuple: Tuple<A>,
    forward: bool,
}

impl<A: Copy> Rewriting<A> {
    #[inline(always)]
    fn fill(&mut self, packet: &Packet<A>, to: &Tuple<A>, forward: bool) {
        self.packet = *packet;
        self.tuple = *to;
        self.forward = forward;
    }
}

/// Carries out this CPU's [`Rewriting`]; 0 when it could be written.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn xdp_rewrite6(ctx: *mut xdp_md) -> u32 {
    let ctx = XdpContext::new(ctx);
    let Some(work) = V6::rewriting() else { return 1 };
    u32::from(rewrite_frame(&ctx.frame(), &work.packet, &work.tuple, work.forward).is_none())
}

/// The same for an skb.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn tc_rewrite6(ctx: *mut __sk_buff) -> u32 {
    let ctx = TcContext::new(ctx);
    let Some(work) = V6::rewriting() else { return 1 };
    u32::from(rewrite_skb(&ctx, &ctx.frame(), &work.packet, &work.tuple, work.forward).is_none())
}

impl Context for TcContext {
    #[inline(always)]
    fn tell<A: Tables>(&self) {
        if A::IS_V4 {
            event::tc_tell4(self.skb.skb)
        } else {
            event::tc_tell6(self.skb.skb)
        };
    }

    #[inline(always)]
    fn frame(&self) -> Frame {
        // SAFETY: as above, for the part of the packet that is not paged.
        unsafe { Frame::new(self.data(), self.data_end()) }
    }

    #[inline(always)]
    fn length(&self) -> u64 {
        u64::from(self.len())
    }

    #[inline(always)]
    fn link(&self) -> u32 {
        // SAFETY: the context is valid while the program runs.
        unsafe { (*self.skb.skb).ifindex }
    }

    #[inline(always)]
    fn translate<A: Tables>(&self, frame: &Frame, packet: &Packet<A>, to: &Tuple<A>, forward: bool) -> Option<()> {
        if A::IS_V4 {
            return rewrite_skb(self, frame, packet, to, forward);
        }
        A::rewriting()?.fill(packet, to, forward);
        if tc_rewrite6(self.skb.skb) == 0 { Some(()) } else { None }
    }
}

#[inline(always)]
fn rewrite_skb<A: Tables>(
    ctx: &TcContext,
    frame: &Frame,
    packet: &Packet<A>,
    to: &Tuple<A>,
    forward: bool,
) -> Option<()> {
    let changed = rewrite::rewrite(frame, ETHERNET, packet, to, forward)?;
    if packet.part == Part::Later {
        return Some(());
    }
    let Some(offset) = packet.checksum_offset() else { return Some(()) };
    let at = (packet.l4 + offset) as u32;
    let zero = if packet.key.protocol == protocol::UDP { ZERO_IS_NONE } else { 0 };
    let skb = ctx.skb.skb;
    // The sum of ICMP has no pseudo header.
    if !changed.pseudo.is_none() && packet.key.protocol != protocol::ICMP {
        let flags = PSEUDO_HEADER | zero | ipv6_flag::<A>();
        // SAFETY: the helper checks the offset itself.
        if unsafe { bpf_l4_csum_replace(skb, at, 0, changed.pseudo.helper_value(), flags) } != 0 {
            return None;
        }
    }
    if !changed.ports.is_none() {
        // SAFETY: as above.
        if unsafe { bpf_l4_csum_replace(skb, at, 0, changed.ports.helper_value(), zero) } != 0 {
            return None;
        }
    }
    Some(())
}

/// `BPF_F_IPV6` where the kernel knows it (6.16): IPv6 has no header checksum that takes part of the change back, so a sum that
/// the device computed over everything must not be changed twice.
#[inline(always)]
fn ipv6_flag<A: Address>() -> u64 {
    const IPV6: u64 = 1 << 7;
    let known = crate::maps::settings()
        .is_some_and(|settings| settings.flags & meshd_abi::settings_flags::IPV6_CHECKSUM_FLAG != 0);
    if !A::IS_V4 && known { IPV6 } else { 0 }
}

/// True for a packet that is only seen because the link listens to everything: its link-layer address is another host's.
#[inline(always)]
pub fn is_for_another_host(ctx: &TcContext) -> bool {
    /// `PACKET_OTHERHOST`
    const OTHER_HOST: u32 = 3;
    // SAFETY: the context is valid while the program runs.
    unsafe { (*ctx.skb.skb).pkt_type == OTHER_HOST }
}

/// True for a packet of a VLAN whose tag lies beside it, where the device has put it. It belongs to the VLAN's own link, and sent
/// elsewhere it would take the tag along. VLAN 0 is only a priority.
#[inline(always)]
pub fn is_of_vlan(ctx: &TcContext) -> bool {
    // SAFETY: as above.
    unsafe { (*ctx.skb.skb).vlan_present != 0 && (*ctx.skb.skb).vlan_tci & 0xfff != 0 }
}

/// Makes the headers of an skb readable when they are paged. Bounds must be read after it.
#[inline(always)]
pub fn linear(ctx: &TcContext, length: u32) {
    if ctx.data() + length as usize > ctx.data_end() && ctx.len() > (ctx.data_end() - ctx.data()) as u32 {
        let length = if ctx.len() < length { ctx.len() } else { length };
        // SAFETY: the context is valid. A failure leaves the packet as it is, and the parser finds it cut short.
        unsafe { bpf_skb_pull_data(ctx.skb.skb, length) };
    }
}
