#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| ringpost_fuzz_targets::secure_records(input));
