#![allow(unsafe_code)]
//! Children that do not outlive us.
//!
//! Invariant owned here: between fork and exec there are system calls only (signal-safety(7)).

use std::io;
use std::os::unix::process::CommandExt;
use std::process::Command;

/// Has the kernel kill the child when the thread that starts it ends, also by SIGKILL.
pub fn dies_with_us(command: &mut Command) -> &mut Command {
    let us = std::process::id();
    // SAFETY: `tie_to` makes two system calls, and allocates nothing.
    unsafe { command.pre_exec(move || tie_to(us)) }
}

/// In the child: to be killed when its parent ends, which should be `parent`.
fn tie_to(parent: u32) -> io::Result<()> {
    // SAFETY: an option and a number (prctl(2), PR_SET_PDEATHSIG).
    let set = unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
    if set < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: no arguments, cannot fail.
    let now = unsafe { libc::getppid() };
    // It may have ended a moment ago.
    if u32::try_from(now) == Ok(parent) {
        Ok(())
    } else {
        Err(io::Error::from_raw_os_error(libc::ESRCH))
    }
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::dies_with_us;

    #[test]
    fn a_child_ends_with_the_thread_that_started_it() {
        let start = || {
            let mut command = Command::new("sleep");
            command.arg("600").stdout(Stdio::null());
            dies_with_us(&mut command).spawn().unwrap()
        };
        let mut child = std::thread::spawn(start).join().unwrap();
        let end = child.wait().unwrap();
        assert_eq!(end.code(), None, "killed by a signal: {end:?}");
    }
}
