//! See `meshd::fuzzing::netlink`.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| meshd::fuzzing::netlink(data));
