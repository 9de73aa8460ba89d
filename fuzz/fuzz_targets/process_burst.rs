//! Any frames from any port through a whole worker.
#![cfg_attr(fuzzing, no_main)]

#[cfg(fuzzing)]
libfuzzer_sys::fuzz_target!(|frames: &[u8]| vswitch_fuzz::process_burst::run(frames));

#[cfg(not(fuzzing))]
fn main() {}
