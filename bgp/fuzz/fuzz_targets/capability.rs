//! See `bgp::fuzzing::capability`.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| bgp::fuzzing::capability(data));
