//! The hand that holds the kernel's programs: load, attach, adopt, write maps, read them, detach.
//!
//! The object that `meshd-ebpf` compiles to is embedded by the build script. Loading it puts its maps into a folder of their
//! generation (`generation.rs`), for instance `<folder>/v5/`, where they outlive the process ([`Programs::load`]); attaching a program puts a pin of the attachment
//! beside them ([`Programs::attach`]). That is the whole life story across a restart: the next process loads its own programs over the same
//! maps, opens the pinned attachments and swaps the program in each in one step, so that no packet passes in between without
//! one. Kernels without TCX (before 6.6) have nothing
//! to pin for a TC program; there it is a row of the link's filter table, found and replaced by its name ([`filters`]). Nothing is detached when [`Programs`] is dropped; [`Programs::detach`] and [`Programs::remove`] do that on purpose.
//!
//! Two things are less nice than they look. The kernel reuses a pinned map without asking whether it still has the shape that the
//! program was compiled for, so the shape is compared before loading ([`shape`]); where it differs, a new generation takes over what the old one
//! holds (`takeover.rs`), and the attachments with it. And the name of an attachment's pin
//! holds the index of the link, not its name: bpffs refuses dots, and names of VLAN links have them.

mod clock;
mod connections;
mod driver;
mod error;
mod events;
mod features;
mod filters;
mod generation;
mod identities;
mod layouts;
mod pins;
mod programs;
mod services;
pub mod shape;
mod sockets;
mod sys;
mod table;
mod takeover;

pub use clock::ticks;
pub use connections::{Connections, Unwritten, View, client_of};
pub use error::DatapathError;
pub use events::Events;
pub use features::Features;
pub use generation::latest;
pub use identities::Identities;
pub use programs::{Attached, FamilyMaps, Maps, Program, Programs, remove};
pub use services::Services;
pub use sockets::{ControlGroup, SocketProgram};
pub use table::{CpuArray, Table};

/// What the build script compiled, aligned as the ELF parser needs it.
static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/meshd-ebpf"));

// A file of the build script, compiled here a second time so that its tests run.
#[cfg(test)]
#[path = "../build/toolchain.rs"]
mod toolchain;
