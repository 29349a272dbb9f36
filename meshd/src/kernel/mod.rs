//! What meshd asks of the kernel.

pub mod ebpf;
