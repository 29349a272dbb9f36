//! See `bgp::fuzzing::route_refresh`.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| bgp::fuzzing::route_refresh(data));
