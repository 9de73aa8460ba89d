#![allow(unsafe_code)]
//! Children: those that do not outlive us, those that do, and what they are given.
//!
//! Invariant owned here: between fork and exec there are system calls only (signal-safety(7)).

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
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

/// Gives the child these descriptors under the numbers they have here, in a session of its own: it stays when we end.
pub fn leaves_with(command: &mut Command, fds: Vec<OwnedFd>) -> &mut Command {
    // SAFETY: `leave_with` makes system calls only, and allocates nothing.
    unsafe { command.pre_exec(move || leave_with(&fds)) }
}

/// In the child: to be in a session of its own and keep these descriptors.
fn leave_with(fds: &[OwnedFd]) -> io::Result<()> {
    // SAFETY: no arguments. It fails for the leader of a group, which a child that was just forked is not.
    if unsafe { libc::setsid() } < 0 {
        return Err(io::Error::last_os_error());
    }
    for fd in fds {
        // SAFETY: a command and a number; the descriptor is open because `fds` owns it.
        if unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_SETFD, 0) } < 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

/// SIGKILL for every process of the group whose leader is `leader`, a child of ours that nobody has waited for.
pub fn kill_group(leader: u32) {
    let Ok(leader) = libc::pid_t::try_from(leader) else {
        return;
    };
    // 0 would be our own group, and -1 everybody.
    if leader > 1 {
        // SAFETY: two numbers. It fails when all of them have ended.
        let _ = unsafe { libc::kill(-leader, libc::SIGKILL) };
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::fd::AsRawFd;
    use std::process::{Command, Stdio};

    use super::{dies_with_us, kill_group, leaves_with};

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
    #[test]
    fn a_child_that_leaves_has_what_it_was_given() {
        let mut file = tempfile::tempfile().unwrap();
        std::io::Write::write_all(&mut file, b"given").unwrap();
        let path = format!("/proc/self/fd/{}", file.as_raw_fd());
        let mut command = Command::new("cat");
        command.arg(path).stdout(Stdio::piped());
        let mut child = leaves_with(&mut command, vec![file.into()])
            .spawn()
            .unwrap();
        let mut text = String::new();
        let mut stdout = child.stdout.take().unwrap();
        stdout.read_to_string(&mut text).unwrap();
        assert_eq!(
            (text.as_str(), child.wait().unwrap().success()),
            ("given", true)
        );
    }

    #[test]
    fn a_group_is_killed_with_its_leader() {
        use std::os::unix::process::CommandExt as _;
        let mut command = Command::new("sh");
        // The second one would keep the pipe open.
        command.args(["-c", "sleep 600 & sleep 600"]);
        command.stdout(Stdio::piped()).process_group(0);
        let mut child = command.spawn().unwrap();
        let mut stdout = child.stdout.take().unwrap();
        kill_group(child.id());
        assert_eq!(stdout.read_to_string(&mut String::new()).unwrap(), 0);
        assert_eq!(child.wait().unwrap().code(), None);
    }
}
