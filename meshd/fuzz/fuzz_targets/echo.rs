//! See `meshd::fuzzing::echo`.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| meshd::fuzzing::echo(data));
