//! Any bytes as the two configuration files.
#![cfg_attr(fuzzing, no_main)]

#[cfg(fuzzing)]
libfuzzer_sys::fuzz_target!(|files: &[u8]| vswitch_fuzz::config::run(files));

#[cfg(not(fuzzing))]
fn main() {}
