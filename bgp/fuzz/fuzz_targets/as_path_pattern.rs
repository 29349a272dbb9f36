//! Reading a pattern of AS paths and matching with it; see `bgp::fuzzing::as_path_pattern`.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| bgp::fuzzing::as_path_pattern(data));
