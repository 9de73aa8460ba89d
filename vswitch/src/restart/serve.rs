//! The restarter's side: `vswitch restarter`.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use super::course::Course;
use super::job::{Driver, Job, Said, Task, UNDER_WAY, What};
use super::{command, docker, qmp};

/// Longest line, either way: command lines of machines have some thousand bytes.
pub(super) const LINE_MAX: u64 = 64 << 10;

/// The next line; `None`: the other end is gone.
///
/// # Errors
/// It is too long, or cannot be read.
pub(super) fn line(from: &mut impl BufRead) -> io::Result<Option<Vec<u8>>> {
    let mut line = Vec::new();
    from.take(LINE_MAX).read_until(b'\n', &mut line)?;
    match line.last() {
        Some(b'\n') => Ok(Some(line)),
        Some(_) if line.len() as u64 == LINE_MAX => Err(io::Error::new(
            io::ErrorKind::InvalidData,
            format!("a line of more than {LINE_MAX} bytes"),
        )),
        // What ends in the middle of a line is gone, too.
        _ => Ok(None),
    }
}

/// Does what comes by `stream` until the other end is gone.
///
/// # Errors
/// What comes makes no sense, or cannot be read.
pub fn serve(stream: UnixStream) -> io::Result<()> {
    let out = Arc::new(Mutex::new(stream.try_clone()?));
    let under_way = Arc::new(AtomicUsize::new(0));
    let mut jobs = BufReader::new(stream);
    while let Some(line) = line(&mut jobs)? {
        let job: Job = serde_json::from_slice(&line)?;
        if under_way.fetch_add(1, Ordering::AcqRel) >= UNDER_WAY {
            under_way.fetch_sub(1, Ordering::AcqRel);
            let busy = What::Failed(format!("{UNDER_WAY} restarts are under way already"));
            say(&out, job.id, busy)?;
            continue;
        }
        let (out, under_way) = (Arc::clone(&out), Arc::clone(&under_way));
        let run = move || {
            let what = run(&job, &out);
            under_way.fetch_sub(1, Ordering::AcqRel);
            // Nobody is there to hear it when this fails.
            let _ = say(&out, job.id, what);
        };
        std::thread::Builder::new()
            .name("restart".to_owned())
            .spawn(run)?;
    }
    Ok(())
}

fn run(job: &Job, out: &Mutex<UnixStream>) -> What {
    let tell = |step| {
        // As above.
        let _ = say(out, job.id, What::Step(step));
    };
    let limit = Duration::from_secs(job.how.limit_s.into());
    let course = Course::new(limit, &tell);
    let done = match &job.how.driver {
        Driver::Qmp { socket, .. } if job.task == Task::Pause => qmp::pause(socket, &course),
        Driver::Qmp { socket, .. } if job.task == Task::GoOn => qmp::go_on(socket, &course),
        _ if job.task != Task::Restart => Err("only QEMU pauses, and goes on".to_owned()),
        Driver::Command { argv } => command::restart(argv, job, &course),
        Driver::Docker {
            socket,
            container,
            image,
        } => docker::restart(socket, (container, image), &course),
        Driver::Qmp { socket, method } => qmp::restart(socket, method, job, &course),
    };
    match done {
        Ok(done) => What::Done(done),
        Err(why) => What::Failed(shortened(why)),
    }
}

/// What comes from elsewhere may be of any length.
fn shortened(mut text: String) -> String {
    /// More than anybody reads.
    const MOST: usize = 2000;
    if let Some((end, _)) = text.char_indices().nth(MOST) {
        text.truncate(end);
        text.push('…');
    }
    text
}

fn say(out: &Mutex<UnixStream>, id: u64, what: What) -> io::Result<()> {
    let mut line = serde_json::to_vec(&Said { id, what })?;
    line.push(b'\n');
    let mut out = out.lock().unwrap_or_else(PoisonError::into_inner);
    out.write_all(&line)
}
