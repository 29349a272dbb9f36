//! Tunnels: packets that go to another node inside of a frame of VXLAN or Geneve, written and read here.
//!
//! Which packets do is decided by the routing table: a route through the tunnel's link names the far end, and user space changes
//! both in one step. At that link [`send`] writes what the link's device would write, with the source's identity as VNI, and hands the
//! frame to the uplink. At the uplink [`receive`] takes it off again and hands the packet to the tunnel's link. The stack sees a packet
//! on both sides as if the device had done it, so filters, conntrack and routing stay what they are, whichever of the two does it; and
//! what is not understood here is left to the device.
//!
//! A service's packet that goes past the stack is told its far end by [`aim`], because it has no route.

pub mod receive;
pub mod send;

use aya_ebpf::{
    btf_maps::{Array, HashMap, LruHashMap, PerCpuArray},
    helpers::{bpf_skb_get_tunnel_key, bpf_skb_set_tunnel_key},
    macros::btf_map,
    programs::TcContext,
};
use meshd_abi::{Address, Settings, Tunnel, V4, V6, VNI_MAX};
use meshd_steps::tunnel::Wrap;

use crate::maps::{self, ON_DEMAND};

#[btf_map]
static TUNNELS: Array<Tunnel, 4_096> = Array::new();
#[btf_map]
static FAR_ENDS: HashMap<V6, u32, 4_096, ON_DEMAND> = HashMap::new();
#[btf_map]
static WRAPPING: PerCpuArray<Wrapping, 1> = PerCpuArray::new();
#[btf_map]
static ARRIVED4: LruHashMap<V4, u32, 4_096> = LruHashMap::new();
#[btf_map]
static ARRIVED6: LruHashMap<V6, u32, 4_096> = LruHashMap::new();

/// Octets of a packet that may hold headers: a frame's, those of IPv6 and TCP.
const HEADERS: u32 = 192;

/// A packet that is about to get a frame, or has just lost one.
#[repr(C)]
pub struct Wrapping {
    wrap: Wrap,
    /// The node it goes to, or comes from.
    far: V6,
    next_hop: u32,
    flags: u64,
}

/// `struct bpf_tunnel_key` of the kernel's interface.
#[repr(C)]
#[derive(Default)]
struct Key {
    vni: u32,
    remote: [u32; 4],
    service: u8,
    ttl: u8,
    flags: u16,
    label: u32,
    local: [u32; 4],
}

const _: () = assert!(size_of::<Key>() == 44);

/// `BPF_F_TUNINFO_IPV6`.
const IPV6: u64 = 1;
/// `BPF_F_ZERO_CSUM_TX`.
const NO_SUM: u64 = 1 << 1;
/// `-EPROTO`: the key is one of the other family.
const OTHER_FAMILY: i64 = -71;

/// Identities of the sources of one family, as frames said it.
pub trait Arrived: Address {
    /// What a frame said of a source that nobody else knows; 0: nothing.
    fn arrived(source: &Self) -> u32;
    /// Remembers it.
    fn put_arrived(source: &Self, identity: u32);
}

macro_rules! arrived {
    ($family:ty, $map:ident) => {
        impl Arrived for $family {
            #[inline(always)]
            fn arrived(source: &Self) -> u32 {
                // SAFETY: a copy is taken at once.
                unsafe { $map.get(source) }.copied().unwrap_or(0)
            }
            #[inline(always)]
            fn put_arrived(source: &Self, identity: u32) {
                // Without room an event has no identity.
                let _lost = $map.insert(source, identity, 0);
            }
        }
    };
}

arrived!(V4, ARRIVED4);
arrived!(V6, ARRIVED6);

/// An address in the form that the table of far ends has.
#[inline(always)]
fn far_end<A: Address>(address: &A) -> V6 {
    let words = address.words();
    if A::IS_V4 { V6::mapped(V4(words[0])) } else { V6(words) }
}

/// The element of a far end; 0: none that packets go to now.
#[inline(always)]
fn tunnel_to(far: &V6) -> u32 {
    // SAFETY: a copy is taken at once.
    unsafe { FAR_ENDS.get(far) }.copied().unwrap_or(0)
}

/// Remembers on this CPU what node a packet came from until [`come_from`]. False: there is no room for it.
#[inline(always)]
fn remember(far: V6) -> bool {
    let Some(work) = WRAPPING.get_ptr_mut(0) else { return false };
    // SAFETY: it is this CPU's copy, and programs of packets do not interrupt each other on a CPU.
    unsafe { (*work).far = far };
    true
}

/// What node the packet came from.
#[inline(always)]
fn come_from() -> Option<&'static V6> {
    // SAFETY: as above.
    WRAPPING.get_ptr_mut(0).map(|work| unsafe { &(*work).far })
}

/// What the frame said, or the route says, that a packet came in or is to leave in.
#[inline(always)]
fn key_of(ctx: &TcContext, key: &mut Key) -> Option<bool> {
    let at = (&raw mut *key).cast();
    // SAFETY: the key is as long as the kernel is told.
    match unsafe { bpf_skb_get_tunnel_key(ctx.skb.skb, at, size_of::<Key>() as u32, 0) } {
        0 => return Some(true),
        OTHER_FAMILY => {}
        _ => return None,
    }
    let at = (&raw mut *key).cast();
    // SAFETY: as above.
    if unsafe { bpf_skb_get_tunnel_key(ctx.skb.skb, at, size_of::<Key>() as u32, IPV6) } == 0 {
        Some(false)
    } else {
        None
    }
}

/// An address of a key.
#[inline(always)]
fn address_of(words: [u32; 4], is_v4: bool) -> V6 {
    if is_v4 { V6::mapped(V4(words[0].to_be())) } else { V6(words) }
}

/// Tells a packet that goes to the tunnel's link without a route where it is to go. False: nowhere.
#[inline(always)]
pub fn aim(ctx: &TcContext, index: u32) -> bool {
    tc_aim(ctx.skb.skb, index) == 0
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn tc_aim(ctx: *mut aya_ebpf::bindings::__sk_buff, index: u32) -> u32 {
    let (Some(tunnel), Some(settings)) = (TUNNELS.get(index), maps::settings()) else { return 1 };
    if tunnel.address == V6::default() {
        return 1;
    }
    let mut key = Key { vni: settings.tunnel_vni, ttl: 64, ..Key::default() };
    let flags = match tunnel.address.unmapped() {
        Some(address) => {
            key.remote[0] = u32::from_be(address.0);
            NO_SUM
        }
        None => {
            key.remote = tunnel.address.0;
            NO_SUM | IPV6
        }
    };
    let at = (&raw mut key).cast();
    // SAFETY: the key is as long as the kernel is told.
    u32::from(unsafe { bpf_skb_set_tunnel_key(ctx, at, size_of::<Key>() as u32, flags) } != 0)
}

/// An identity that fits into a header.
#[inline(always)]
fn fits(identity: u32) -> bool {
    identity != 0 && identity <= VNI_MAX
}

/// True where there is a tunnel.
#[inline(always)]
pub fn is_on(settings: &Settings) -> bool {
    settings.tunnel_link != 0
}
