//! See `bgp::fuzzing::notification`.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| bgp::fuzzing::notification(data));
