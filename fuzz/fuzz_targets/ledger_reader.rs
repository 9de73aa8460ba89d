//! Any bytes as a ledger's file.
#![cfg_attr(fuzzing, no_main)]

#[cfg(fuzzing)]
libfuzzer_sys::fuzz_target!(|file: &[u8]| vswitch_fuzz::ledger_reader::run(file));

#[cfg(not(fuzzing))]
fn main() {}
