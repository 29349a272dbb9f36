//! See `bgp::fuzzing::update`.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| bgp::fuzzing::update(data));
