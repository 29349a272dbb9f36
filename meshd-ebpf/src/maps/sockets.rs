//! What socket programs remember.
//!
//! They run in the context of the calling process, where a packet's program may come in between: nothing here is a CPU's own.

use core::intrinsics::{AtomicOrdering, atomic_xadd};

use aya_ebpf::{btf_maps::LruHashMap, macros::btf_map};
use meshd_abi::{AffinityValue, Reason, SocketClient, SocketKey, SocketValue, V4, V6};

use super::{COUNTERS, Tables};

#[btf_map]
static SOCKETS4: LruHashMap<SocketKey<V4>, SocketValue<V4>, 65_536> = LruHashMap::new();
#[btf_map]
static SOCKETS6: LruHashMap<SocketKey<V6>, SocketValue<V6>, 65_536> = LruHashMap::new();
#[btf_map]
static SOCKET_AFFINITY: LruHashMap<SocketClient, AffinityValue, 65_536> = LruHashMap::new();

/// The sockets of one family of backends.
pub trait Sockets: Tables {
    /// What a socket asked for when it got this peer.
    fn socket(key: &SocketKey<Self>) -> Option<&'static SocketValue<Self>>;
    /// Remembers that.
    fn put_socket(key: &SocketKey<Self>, value: &SocketValue<Self>);
}

macro_rules! sockets {
    ($family:ty, $sockets:ident) => {
        impl Sockets for $family {
            #[inline(always)]
            fn socket(key: &SocketKey<Self>) -> Option<&'static SocketValue<Self>> {
                // SAFETY: only the socket that the key names writes the element, and an element that is reused meanwhile is
                // freed after the end of this run (RCU) at the earliest.
                unsafe { $sockets.get(key) }
            }
            #[inline(always)]
            fn put_socket(key: &SocketKey<Self>, value: &SocketValue<Self>) {
                // Without room, which a table that evicts hardly ever lacks, the socket sees its backend as the peer.
                let _lost = $sockets.insert(key, value, 0);
            }
        }
    };
}

sockets!(V4, SOCKETS4);
sockets!(V6, SOCKETS6);

/// The backend that the sockets of a namespace had last.
#[inline(always)]
pub fn affinity(client: &SocketClient) -> Option<AffinityValue> {
    // SAFETY: a copy is taken at once.
    unsafe { SOCKET_AFFINITY.get(client) }.copied()
}

/// Remembers it.
#[inline(always)]
pub fn put_affinity(client: &SocketClient, value: &AffinityValue) {
    // Least recently used goes: an entry that finds no room costs a client its affinity, not its connection.
    let _lost = SOCKET_AFFINITY.insert(client, value, 0);
}

/// Adds one to a counter of socket programs, which may interrupt each other on a CPU.
#[inline(always)]
pub fn note(reason: Reason) {
    if let Some(counter) = COUNTERS.get_ptr_mut(reason as u32) {
        // SAFETY: it is an existing element; what it was before is not asked, so that this is one instruction.
        unsafe { atomic_xadd::<u64, u64, { AtomicOrdering::Relaxed }>(&raw mut (*counter).packets, 1) };
    }
}
