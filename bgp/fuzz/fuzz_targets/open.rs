//! See `bgp::fuzzing::open`.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| bgp::fuzzing::open(data));
