//! The one way in which a test says that it did not run.
//!
//! No dependencies, so that a unit test may include this file by its path.

use std::fs::OpenOptions;
use std::io::Write;

/// Reports the calling test as skipped; the test then returns.
///
/// Prints `SKIPPED: why`, and appends `TEST<tab>why` to the file that `VSWITCH_TEST_SKIPS` names, which is how `tests/run`
/// tells a skipped test from a passed one.
///
/// # Panics
///
/// When that file cannot be written: an uncounted skip would look like a pass.
pub fn skip(why: &str) {
    println!("SKIPPED: {why}");
    let Some(file) = std::env::var_os("VSWITCH_TEST_SKIPS") else {
        return;
    };
    let exe = std::env::current_exe().ok();
    let stem = exe
        .as_deref()
        .and_then(|p| p.file_stem())
        .and_then(|s| s.to_str())
        .unwrap_or("?");
    // cargo appends a hash to a test binary's name.
    let binary = stem.rsplit_once('-').map_or(stem, |(name, _)| name);
    // libtest names the thread after the test.
    let thread = std::thread::current();
    let line = format!("{binary}::{}\t{why}\n", thread.name().unwrap_or("?"));
    // One write of one line: several processes append to this file.
    OpenOptions::new()
        .append(true)
        .create(true)
        .open(&file)
        .and_then(|mut f| f.write_all(line.as_bytes()))
        .unwrap_or_else(|e| panic!("VSWITCH_TEST_SKIPS={}: {e}", file.display()));
}
