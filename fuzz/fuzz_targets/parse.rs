//! Frames of any bytes through the parser and what answers them.
#![cfg_attr(fuzzing, no_main)]

#[cfg(fuzzing)]
libfuzzer_sys::fuzz_target!(|frame: &[u8]| vswitch_fuzz::parse::run(frame));

#[cfg(not(fuzzing))]
fn main() {}
