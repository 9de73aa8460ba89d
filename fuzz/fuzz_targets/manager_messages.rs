//! Any bytes as messages between switch and manager.
#![cfg_attr(fuzzing, no_main)]

#[cfg(fuzzing)]
libfuzzer_sys::fuzz_target!(|input: &[u8]| vswitch_fuzz::manager_messages::run(input));

#[cfg(not(fuzzing))]
fn main() {}
