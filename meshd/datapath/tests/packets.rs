//! The programs on whole packets: packet in, verdict and packet out, by the kernel's own test run. See `packets/case.rs` for what
//! a row of a table is, and `packets/scene.rs` for the node that all of them share.

#[path = "packets/bench.rs"]
mod bench;
#[path = "packets/buckets.rs"]
mod buckets;
#[path = "packets/case.rs"]
mod case;
#[path = "packets/choices.rs"]
mod choices;
#[path = "packets/connections.rs"]
mod connections;
#[path = "packets/disturb.rs"]
mod disturb;
#[path = "packets/dsr.rs"]
mod dsr;
#[path = "packets/events.rs"]
mod events;
#[path = "packets/fast.rs"]
mod fast;
#[path = "packets/fragments.rs"]
mod fragments;
#[path = "packets/frame.rs"]
mod frame;
#[path = "packets/handover.rs"]
mod handover;
#[path = "packets/headers.rs"]
mod headers;
#[path = "packets/hops.rs"]
mod hops;
#[path = "packets/hostile.rs"]
mod hostile;
#[path = "packets/icmp.rs"]
mod icmp;
#[path = "packets/identities.rs"]
mod identities;
#[path = "packets/loading.rs"]
mod loading;
#[path = "packets/masquerade.rs"]
mod masquerade;
#[path = "packets/random.rs"]
mod random;
#[path = "packets/ranges.rs"]
mod ranges;
#[path = "packets/recent.rs"]
mod recent;
#[path = "packets/scene.rs"]
mod scene;
#[path = "packets/services.rs"]
mod services;
#[path = "packets/tables.rs"]
mod tables;
#[path = "packets/tunnels.rs"]
mod tunnels;
