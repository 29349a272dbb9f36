//! Cutting a stream into messages; see `bgp::fuzzing::header`.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| bgp::fuzzing::header(data));
