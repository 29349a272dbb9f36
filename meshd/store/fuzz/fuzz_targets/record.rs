//! See `meshd_store::fuzzing::record`.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| meshd_store::fuzzing::record(data));
