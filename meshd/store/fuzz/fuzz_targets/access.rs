//! See `meshd_store::fuzzing::access`.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| meshd_store::fuzzing::access(data));
