//! Any text as rules for decisions.
#![cfg_attr(fuzzing, no_main)]

#[cfg(fuzzing)]
libfuzzer_sys::fuzz_target!(|input: &[u8]| vswitch_fuzz::cedar_rules::run(input));

#[cfg(not(fuzzing))]
fn main() {}
