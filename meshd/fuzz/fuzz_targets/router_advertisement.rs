//! See `meshd::fuzzing::router_advertisement`.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| meshd::fuzzing::router_advertisement(data));
