//! Any vhost-user messages to a session.
#![cfg_attr(fuzzing, no_main)]

#[cfg(fuzzing)]
libfuzzer_sys::fuzz_target!(|messages: &[u8]| vswitch_fuzz::vhost_msg::run(messages));

#[cfg(not(fuzzing))]
fn main() {}
