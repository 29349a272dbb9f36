//! Everything that outlives a packet.
//!
//! Sizes here are defaults; the loader sets those of the configuration. What the bytes mean is said in `meshd-abi`. Tables that
//! exist once per family are reached through [`Tables`], so that a program is written once.

pub mod connections;
pub mod identities;
pub mod packed;
pub mod ranges;
pub mod recent;
pub mod sockets;

use core::mem::MaybeUninit;

use aya_ebpf::{
    bindings::BPF_F_NO_PREALLOC,
    btf_maps::{Array, ArrayOfMaps, HashMap, LpmTrie, LruHashMap, PerCpuArray, RingBuf},
    helpers::bpf_map_lookup_elem,
    macros::btf_map,
};
use meshd_abi::{
    Address, AffinityKey, AffinityValue, Backend, CidrKey, Counter, FRONTEND_WORDS, FlowEvent, Fragment, FragmentKey,
    Identity, LINKS as LINK_ROOM, Link, MAGLEV_CHUNK, NeighborKey, NextHop, Policy, PolicyKey, Reason, Service,
    ServiceKey, Settings, V4, V6, frontend_slot,
};
use meshd_steps::{bucket::pair, header::Family};

pub use self::identities::Who;
use self::{identities::IDENTITIES4, ranges::Ranges};
use crate::{
    context::Rewriting,
    steps::{connect::Beginning, dsr, related::Relating, tunnel},
};

/// Memory is taken when entries come: a node with ten services should not pay for 65,536.
pub const ON_DEMAND: usize = BPF_F_NO_PREALLOC as usize;

/// One Maglev chunk: offsets into a service's members.
type Chunk = Array<[u16; MAGLEV_CHUNK], 1>;

#[btf_map]
static SETTINGS: Array<Settings, 1> = Array::new();
#[btf_map]
static COUNTERS: PerCpuArray<Counter, { Reason::COUNT as usize }> = PerCpuArray::new();
#[btf_map]
static EVENT_BUDGET: PerCpuArray<Budget, 1> = PerCpuArray::new();
#[btf_map]
static TELLING: PerCpuArray<FlowEvent, 1> = PerCpuArray::new();
#[btf_map]
static NEIGHBORS: HashMap<NeighborKey, u32, 4_096, ON_DEMAND> = HashMap::new();
#[btf_map]
static ROUTES: PerCpuArray<Route, 1> = PerCpuArray::new();
#[btf_map]
static REWRITING6: PerCpuArray<Rewriting<V6>, 1> = PerCpuArray::new();
#[btf_map]
static MEMBERS: Array<u32, 262_144> = Array::new();
#[btf_map]
static MAGLEV: ArrayOfMaps<Chunk, 4_096> = ArrayOfMaps::new();
#[btf_map]
static NEXT_HOPS: Array<NextHop, 4_096> = Array::new();
#[btf_map]
static LINKS: Array<Link, { LINK_ROOM as usize }> = Array::new();
#[btf_map]
static HANDOVER: Array<u32, 1> = Array::new();
#[btf_map]
static FRONTENDS: Array<u64, { FRONTEND_WORDS as usize }> = Array::new();
#[btf_map]
static IDENTITIES6: HashMap<V6, Identity, 524_288, ON_DEMAND> = HashMap::new();
/// Who may talk to whom. No program asks it yet: see `meshd_abi::PolicyKey`.
#[btf_map]
static POLICY: HashMap<PolicyKey, Policy, 65_536, ON_DEMAND> = HashMap::new();
#[btf_map]
static EVENTS: RingBuf<FlowEvent, 1_048_576> = RingBuf::new();

/// `struct bpf_fib_lookup` of the kernel's interface, with the members of its unions that are used here.
#[repr(C)]
pub struct Route {
    /// `AF_INET` or `AF_INET6`.
    pub family: u8,
    /// Protocol of layer 4.
    pub protocol: u8,
    /// Source port.
    pub source_port: u16,
    /// Destination port.
    pub destination_port: u16,
    /// Length of the packet on the way in, 0: not to be checked; the path's MTU on the way out.
    pub length: u16,
    /// The link it arrived at on the way in, the one to leave through on the way out.
    pub link: u32,
    /// Type of service, or flow label.
    pub flow: u32,
    /// Source address.
    pub source: [u32; 4],
    /// Destination address.
    pub destination: [u32; 4],
    /// VLAN of the answer.
    pub vlan: u32,
    /// The link's own address.
    pub source_mac: [u8; 6],
    /// The neighbor's address.
    pub destination_mac: [u8; 6],
}

const _: () = assert!(size_of::<Route>() == 64);

/// How many flow events a CPU has written.
#[repr(C)]
pub struct Budget {
    /// The tick that is counted.
    pub tick: u32,
    /// Events of this tick by kind, those that were not written included.
    pub told: [u32; 4],
    /// Records since the programs were loaded.
    pub written: u32,
}

impl Budget {
    /// User space is woken with each so many records of a CPU. It costs 8.6 microseconds, which is then a third of what
    /// writing a record costs; and a ring of the default size takes what 32 CPUs write in between.
    pub const WAKE_EVERY: u32 = 256;
}

/// What this node is.
#[inline(always)]
pub fn settings() -> Option<&'static Settings> {
    SETTINGS.get(0)
}

/// The tick until which resets of connections that nobody knows are held back.
#[inline(always)]
pub fn handover() -> u32 {
    // SAFETY: an element of the map; volatile, because user space writes it.
    HANDOVER.get(0).map_or(0, |tick| unsafe { core::ptr::from_ref(tick).read_volatile() })
}

/// Adds a packet to a counter.
#[inline(always)]
pub fn count(reason: Reason, bytes: u64) {
    if let Some(counter) = COUNTERS.get_ptr_mut(reason as u32) {
        // SAFETY: it is this CPU's copy of an existing element, and programs of packets do not interrupt each other on a CPU.
        unsafe {
            (*counter).packets += 1;
            (*counter).bytes += bytes;
        }
    }
}

/// False for a destination that is no frontend of any service.
#[inline(always)]
pub fn may_be_frontend<A: Address>(address: &A, port: u16) -> bool {
    let (word, bit) = frontend_slot(address, port);
    FRONTENDS.get(word).is_some_and(|word| *word & bit != 0)
}

/// A backend's index by its place among the members of a service.
#[inline(always)]
pub fn member(index: u32) -> Option<u32> {
    MEMBERS.get(index).copied()
}

/// What a slot of a Maglev table holds.
#[inline(always)]
pub fn slot(chunk: u32, index: usize) -> Option<u16> {
    let chunk = MAGLEV.get_value(chunk, &0)?;
    chunk.get(index).copied()
}

/// A neighbor; `None` when it is not known now.
#[inline(always)]
pub fn next_hop(index: u32) -> Option<&'static NextHop> {
    if index == 0 {
        return None;
    }
    NEXT_HOPS.get(index).filter(|hop| hop.link != 0)
}

/// A link that XDP runs on; `None` when there is nothing known of it.
#[inline(always)]
pub fn link(index: u32) -> Option<&'static Link> {
    LINKS.get(index & (LINK_ROOM - 1)).filter(|link| link.index == index)
}

/// This CPU's question to the routing table: it is too big for the stack beside the rest.
#[inline(always)]
pub fn route() -> Option<&'static mut Route> {
    // SAFETY: it is this CPU's copy, and programs of packets do not interrupt each other on a CPU.
    ROUTES.get_ptr_mut(0).map(|route| unsafe { &mut *route })
}

/// The next hop that is the neighbor with this link-layer address; 0: none that is known.
#[inline(always)]
pub fn neighbor(key: &NeighborKey) -> u32 {
    // SAFETY: a copy is taken at once.
    unsafe { NEIGHBORS.get(key) }.copied().unwrap_or(0)
}

/// What this CPU has told.
#[inline(always)]
pub fn event_budget() -> Option<&'static mut Budget> {
    // SAFETY: it is this CPU's copy, and programs of packets do not interrupt each other on a CPU.
    EVENT_BUDGET.get_ptr_mut(0).map(|budget| unsafe { &mut *budget })
}

/// This CPU's record of a flow event under way.
#[inline(always)]
pub fn telling() -> Option<&'static mut FlowEvent> {
    // SAFETY: as with `event_budget`.
    TELLING.get_ptr_mut(0).map(|event| unsafe { &mut *event })
}

/// The ring of flow events.
#[inline(always)]
pub fn events() -> &'static RingBuf<FlowEvent, 1_048_576> {
    &EVENTS
}

/// A key of a service of IPv4 as a whole double word.
///
/// The kernel reads keys by words and double words. What was written octet by octet it has to wait for, because a processor hands
/// a load what one earlier store wrote, and not what several did.
#[inline(always)]
fn whole_service<A: Address>(key: &ServiceKey<A>) -> MaybeUninit<u64> {
    let mut whole = MaybeUninit::<u64>::uninit();
    let kind = u16::from_ne_bytes([key.protocol, key.scope]);
    let rest = pair(key.port.into(), kind.into(), 16);
    // SAFETY: it is the whole value. Volatile, so that the compiler does not take the write apart.
    unsafe { whole.as_mut_ptr().write_volatile(pair(key.address.words()[0].into(), rest, 32)) };
    whole
}

/// The tables of one family.
pub trait Tables: Family + Ranges + connections::Connections + packed::Packs + dsr::Maps + tunnel::Arrived {
    /// This CPU's room for a connection that begins: the stack is too small for it.
    fn beginning() -> Option<&'static mut Beginning<Self>>;
    /// This CPU's room for an ICMP error under way.
    fn relating() -> Option<&'static mut Relating<Self>>;
    /// This CPU's room for a translation under way; IPv4 needs none.
    fn rewriting() -> Option<&'static mut Rewriting<Self>>;
    /// The service behind a destination.
    fn service(key: &ServiceKey<Self>) -> Option<&'static Service>;
    /// A backend by index.
    fn backend(index: u32) -> Option<&'static Backend<Self>>;
    /// The backend a client had last.
    fn affinity(key: &AffinityKey<Self>) -> Option<AffinityValue>;
    /// Remembers a client's backend.
    fn put_affinity(key: &AffinityKey<Self>, value: &AffinityValue);
    /// The ports of a datagram.
    fn fragment(key: &FragmentKey<Self>) -> Option<Fragment>;
    /// Remembers the ports of a datagram.
    fn put_fragment(key: &FragmentKey<Self>, value: &Fragment);
    /// Who has an address.
    fn identity(address: &Self) -> Option<Who>;
    /// All that is known of whoever has an address, its cluster too: slower than [`Tables::identity`].
    fn known(address: &Self) -> Option<&'static Identity>;
    /// What is known of a prefix around an address. Nobody has the address for that: it is for telling, not for deciding.
    fn around(address: &Self) -> Option<&'static Identity>;
    /// What masquerade thinks of an address (`meshd_abi::mesh_flags`).
    fn mesh(address: &Self) -> u32;
    /// The node's address for packets it sends in place of others.
    fn own_source(settings: &Settings) -> Self;
    /// The address a workload sees when it reaches itself.
    fn loopback(settings: &Settings) -> Self;
}

macro_rules! tables {
    ($family:ty, $module:ident, $bits:literal, $source:ident, $loopback:ident,
     $services:ident, $backends:ident, $affinity:ident, $fragments:ident, $identity:expr, $identities:ident, $cidrs:ident, $mesh:ident, $beginnings:ident, $relatings:ident, $rewritings:expr) => {
        mod $module {
            use super::*;

            #[btf_map]
            pub static $beginnings: PerCpuArray<Beginning<$family>, 1> = PerCpuArray::new();
            #[btf_map]
            pub static $relatings: PerCpuArray<Relating<$family>, 1> = PerCpuArray::new();
            #[btf_map]
            pub static $services: HashMap<ServiceKey<$family>, Service, 65_536, ON_DEMAND> = HashMap::new();
            #[btf_map]
            pub static $backends: Array<Backend<$family>, 65_536> = Array::new();
            #[btf_map]
            pub static $affinity: LruHashMap<AffinityKey<$family>, AffinityValue, 65_536> = LruHashMap::new();
            #[btf_map]
            pub static $fragments: LruHashMap<FragmentKey<$family>, Fragment, 8_192> = LruHashMap::new();
            #[btf_map]
            pub static $mesh: LpmTrie<$family, u32, 65_536> = LpmTrie::new();
            #[btf_map]
            pub static $cidrs: LpmTrie<$family, Identity, 65_536> = LpmTrie::new();
        }
        use $module::*;

        impl Tables for $family {
            #[inline(always)]
            fn beginning() -> Option<&'static mut Beginning<Self>> {
                // SAFETY: it is this CPU's copy, programs of packets do not interrupt each other on a CPU, and each takes it once.
                $beginnings.get_ptr_mut(0).map(|beginning| unsafe { &mut *beginning })
            }
            #[inline(always)]
            fn relating() -> Option<&'static mut Relating<Self>> {
                // SAFETY: as with `beginning`.
                $relatings.get_ptr_mut(0).map(|relating| unsafe { &mut *relating })
            }
            #[inline(always)]
            fn rewriting() -> Option<&'static mut Rewriting<Self>> {
                let room: Option<&PerCpuArray<Rewriting<Self>, 1>> = $rewritings;
                // SAFETY: as with `beginning`.
                room.and_then(|room| room.get_ptr_mut(0)).map(|room| unsafe { &mut *room })
            }
            #[inline(always)]
            fn service(key: &ServiceKey<Self>) -> Option<&'static Service> {
                // SAFETY: user space replaces whole values; a reader that races sees the old or the new words of a freed
                // element until the end of its run, which the kernel allows (RCU), and each of them alone is harmless.
                unsafe {
                    if Self::IS_V4 { $services.get(&*whole_service(key).as_ptr().cast()) } else { $services.get(key) }
                }
            }
            #[inline(always)]
            fn backend(index: u32) -> Option<&'static Backend<Self>> {
                $backends.get(index)
            }
            #[inline(always)]
            fn affinity(key: &AffinityKey<Self>) -> Option<AffinityValue> {
                // SAFETY: a copy is taken at once.
                unsafe { $affinity.get(key) }.copied()
            }
            #[inline(always)]
            fn put_affinity(key: &AffinityKey<Self>, value: &AffinityValue) {
                // Least recently used goes: an entry that finds no room costs a client its affinity, not its connection.
                let _lost = $affinity.insert(key, value, 0);
            }
            #[inline(always)]
            fn fragment(key: &FragmentKey<Self>) -> Option<Fragment> {
                // SAFETY: a copy is taken at once.
                unsafe { $fragments.get(key) }.copied()
            }
            #[inline(always)]
            fn put_fragment(key: &FragmentKey<Self>, value: &Fragment) {
                // Without room the later fragments of this datagram are dropped and counted.
                let _lost = $fragments.insert(key, value, 0);
            }
            #[inline(always)]
            fn identity(address: &Self) -> Option<Who> {
                $identity(address)
            }
            #[inline(always)]
            fn known(address: &Self) -> Option<&'static Identity> {
                // SAFETY: as with `service`.
                unsafe { $identities.get(address) }
            }
            #[inline(always)]
            fn around(address: &Self) -> Option<&'static Identity> {
                let key = CidrKey { length: $bits, address: *address };
                // SAFETY: `CidrKey` has the layout of the kernel's key; the value as with `service`.
                unsafe {
                    let value = bpf_map_lookup_elem((&raw const $cidrs).cast_mut().cast(), (&raw const key).cast());
                    value.cast::<Identity>().as_ref()
                }
            }
            #[inline(always)]
            fn mesh(address: &Self) -> u32 {
                let key = CidrKey { length: $bits, address: *address };
                // SAFETY: `CidrKey` has the layout of the kernel's key, and the value is a word.
                unsafe {
                    let value = bpf_map_lookup_elem((&raw const $mesh).cast_mut().cast(), (&raw const key).cast());
                    if value.is_null() { 0 } else { *value.cast::<u32>() }
                }
            }
            #[inline(always)]
            fn own_source(settings: &Settings) -> Self {
                settings.$source
            }
            #[inline(always)]
            fn loopback(settings: &Settings) -> Self {
                settings.$loopback
            }
        }
    };
}

tables!(
    V4,
    v4,
    32,
    source4,
    loopback4,
    SERVICES4,
    BACKENDS4,
    AFFINITY4,
    FRAGMENTS4,
    (|address: &V4| identities::find(*address)),
    IDENTITIES4,
    CIDRS4,
    MESH4,
    BEGINNINGS4,
    RELATING4,
    None
);
tables!(
    V6,
    v6,
    128,
    source6,
    loopback6,
    SERVICES6,
    BACKENDS6,
    AFFINITY6,
    FRAGMENTS6,
    // SAFETY: as with `service`; a copy is taken at once.
    (|address: &V6| unsafe { IDENTITIES6.get(address) }.map(Who::from)),
    IDENTITIES6,
    CIDRS6,
    MESH6,
    BEGINNINGS6,
    RELATING6,
    Some(&REWRITING6)
);
