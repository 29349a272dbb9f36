//! Reading the export of an RPKI validator; see `bgp::fuzzing::vrps`.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| bgp::fuzzing::vrps(data));
