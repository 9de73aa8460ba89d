//! A program restarts the workload.
//!
//! It is started by its arguments, no shell reads them, with an environment that holds nothing of ours: `PATH`,
//! `VSWITCH_WORKLOAD` and `VSWITCH_REASON`. What it writes goes to our errors. Exit code 0 means that the workload was
//! restarted; nobody has verified from what. When its time is over it is killed with all of its process group.

use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

use super::course::Course;
use super::job::{Done, Job};
use crate::sys::child;

/// Where programs are found that it starts by name, as a system service's are (systemd.exec(5), `ExecSearchPath`).
pub(super) const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// See the module documentation.
pub(super) fn restart(argv: &[String], job: &Job, course: &Course<'_>) -> Result<Done, String> {
    let (program, arguments) = argv.split_first().ok_or("there is no command")?;
    let errors = std::io::stderr().as_fd().try_clone_to_owned();
    let errors = errors.map_err(|e| format!("cannot pass on what it writes: {e}"))?;
    let mut command = Command::new(program);
    command
        .args(arguments)
        .env_clear()
        .env("PATH", PATH)
        .env("VSWITCH_WORKLOAD", &job.workload)
        .env("VSWITCH_REASON", &job.reason)
        .stdin(Stdio::null())
        .stdout(errors)
        .process_group(0);
    let spawned = child::dies_with_us(&mut command).spawn();
    let mut child = spawned.map_err(|e| format!("cannot start {program}: {e}"))?;
    course.step(format!("{program} runs"));
    let ended = course.wait("it was killed", || {
        child
            .try_wait()
            .map_err(|e| format!("cannot wait for {program}: {e}"))
    });
    let status = match ended {
        Ok(status) => status,
        Err(late) => {
            child::kill_group(child.id());
            // It was killed.
            let _ = child.wait();
            return Err(format!("{program}: {late}"));
        }
    };
    if status.success() {
        return Ok(Done::default());
    }
    Err(format!(
        "{program} failed, {status}; the switch's log has what it wrote"
    ))
}
