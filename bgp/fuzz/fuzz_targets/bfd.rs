//! Packets, time and configuration played to a BFD session; see `bgp::fuzzing::bfd`.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| bgp::fuzzing::bfd(data));
