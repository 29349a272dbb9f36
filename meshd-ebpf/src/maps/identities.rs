//! Who has an address of IPv4. The driver of the benchmark has the same.

use core::arch::asm;

use aya_ebpf::{
    bindings::{BPF_F_MMAPABLE, BPF_F_NO_PREALLOC},
    btf_maps::{Array, HashMap},
    macros::btf_map,
};
use meshd_abi::{Identity, IdentityLine, V4, identity_flags};
use meshd_steps::identity::{home, way_of};

/// Memory is taken when entries come.
const ON_DEMAND: usize = BPF_F_NO_PREALLOC as usize;
/// Lines begin at a page, and with it at a cache line.
const ALIGNED: usize = BPF_F_MMAPABLE as usize;

/// All of them, also those that are in lines.
#[btf_map]
pub static IDENTITIES4: HashMap<V4, Identity, 524_288, ON_DEMAND> = HashMap::new();
#[btf_map]
static IDENTITY_LINES4: Array<IdentityLine, 131_072, ALIGNED> = Array::new();

/// Number of lines, which the loader sets. 0: there are none, only the table.
#[unsafe(no_mangle)]
#[unsafe(link_section = ".rodata.identities")]
static IDENTITY_LINES4_COUNT: u32 = 0;

/// What is known of whoever has an address, but for the cluster.
#[derive(Clone, Copy)]
pub struct Who {
    /// As in [`Identity`].
    pub identity: u32,
    /// As in [`Identity`].
    pub way: u32,
    /// As in [`Identity`].
    pub flags: u16,
}

impl From<&Identity> for Who {
    #[inline(always)]
    fn from(known: &Identity) -> Self {
        Self { identity: known.identity, way: known.way, flags: known.flags }
    }
}

/// In one word, which a function can return: a bit that something is known, seven of flags, the way, the identity.
const KNOWN: u64 = 1 << 63;
const FLAGS: u16 = !identity_flags::LINE;
const _: () = assert!(FLAGS < 1 << 7);
const WAYS: u32 = (1 << 24) - 1;

impl Who {
    #[inline(always)]
    fn word(identity: u32, way: u32, flags: u16) -> u64 {
        // No next hop has such a number, and 0 is the stack.
        let way = if way > WAYS { 0 } else { way };
        KNOWN | u64::from(flags & FLAGS) << 56 | u64::from(way) << 32 | u64::from(identity)
    }
}

/// Who has an address.
#[inline(always)]
pub fn find(address: V4) -> Option<Who> {
    let word = identity4(address.0);
    if word & KNOWN == 0 {
        return None;
    }
    Some(Who { identity: word as u32, way: (word >> 32) as u32 & WAYS, flags: (word >> 56) as u16 & FLAGS })
}

/// Looks in the address's line, and in the table for what is not there. A function of its own, so that the verifier need not follow each of
/// its answers to the end of the packet.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn identity4(address: u32) -> u64 {
    // SAFETY: a static of this program; volatile, because the loader changes it.
    let lines = unsafe { (&raw const IDENTITY_LINES4_COUNT).read_volatile() };
    let address = V4(address);
    if lines != 0
        && address.0 != 0
        && let Some(line) = IDENTITY_LINES4.get_ptr(home(address, lines))
        && let Some(known) = in_line(line, address)
    {
        return known;
    }
    // SAFETY: user space replaces whole values; a reader that races sees the words of the old or of the new one until the end of its run, which
    // the kernel allows (RCU), and each of them alone is harmless.
    unsafe { IDENTITIES4.get(&address) }.map_or(0, |known| Who::word(known.identity, known.way, known.flags))
}

/// What a line knows of an address, 0 for nothing; `None`: the table has to be asked.
#[inline(always)]
fn in_line(line: *const IdentityLine, address: V4) -> Option<u64> {
    // SAFETY: words of an element; volatile, because user space writes it meanwhile.
    unsafe {
        let first = (&raw const (*line).identities).cast::<Identity>();
        let state = (&raw const (*first).flags).read_volatile();
        if state & identity_flags::CHANGE != 0 {
            return None;
        }
        let addresses = (&raw const (*line).addresses).cast::<u32>();
        let there = [0, 1, 2, 3].map(|way: usize| addresses.add(way).read_volatile());
        let word = match way_of(there, address) {
            Some(mut way) => {
                // One instruction on one register, which the compiler would leave out: for the verifier.
                asm!("{way} &= 3", way = inout(reg) way, options(nomem, nostack, preserves_flags));
                let known = first.add(way);
                Who::word(
                    (&raw const (*known).identity).read_volatile(),
                    (&raw const (*known).way).read_volatile(),
                    (&raw const (*known).flags).read_volatile(),
                )
            }
            None if state & identity_flags::MORE != 0 => return None,
            None => 0,
        };
        // All of it was read between two changes.
        if (&raw const (*first).flags).read_volatile() == state { Some(word) } else { None }
    }
}
