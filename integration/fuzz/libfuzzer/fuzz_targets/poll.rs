//! Lets libFuzzer feed one target.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| fuzz::poll(bytes));
