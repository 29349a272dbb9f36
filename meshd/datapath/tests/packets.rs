//! The programs on whole packets: packet in, verdict and packet out, by the kernel's own test run.

#[path = "packets/bench.rs"]
mod bench;
#[path = "packets/loading.rs"]
mod loading;
