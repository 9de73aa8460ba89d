//! Rings of any bytes under a vhost-user port.
#![cfg_attr(fuzzing, no_main)]

#[cfg(fuzzing)]
libfuzzer_sys::fuzz_target!(|rings: &[u8]| vswitch_fuzz::vring::run(rings));

#[cfg(not(fuzzing))]
fn main() {}
