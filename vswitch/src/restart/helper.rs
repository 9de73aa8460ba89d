//! The switch's side of the restarter.
//!
//! A thread of its own starts the process, hears it, and starts it again when it has ended, later each time. Whoever gives it a
//! job never waits: what the socket does not take at once is not taken.

use std::io::{self, BufReader};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tracing::{error, info, warn};

use super::job::{Heard, Job};
use super::serve;
use crate::sys::eventfd::EventFd;
use crate::sys::{child, fdpass, unix};

/// How long it is not there after its first end; twice as long after each one that follows soon.
const BACK_OFF: Duration = Duration::from_millis(100);
/// The longest.
const BACK_OFF_MAX: Duration = Duration::from_secs(30);
/// Whoever has run this long is started again at once.
const GOOD: Duration = Duration::from_secs(60);
/// Messages that nobody has taken: those of one that says more are lost, and so is it.
const HEARD_MAX: usize = 4096;

#[derive(Debug, Default)]
struct Link {
    stream: Option<UnixStream>,
    /// How often it was started.
    session: u64,
    /// It is not there yet, but in a moment.
    coming: bool,
    /// Jobs that wait for that, as they are sent.
    waiting: Vec<Vec<u8>>,
    heard: Vec<Heard>,
    over: bool,
}

#[derive(Debug)]
struct Shared {
    link: Mutex<Link>,
    changed: Condvar,
    wake: Option<Arc<EventFd>>,
}

impl Shared {
    fn link(&self) -> MutexGuard<'_, Link> {
        self.link.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn hear(&self, heard: Heard) {
        self.link().heard.push(heard);
        if let Some(wake) = &self.wake {
            wake.signal();
        }
    }
}

/// See the module documentation. Dropping it ends the process.
#[derive(Debug)]
pub struct Helper {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl Helper {
    /// Starts `program restarter`, and again when it ends. `wake` is signalled when there is something to hear.
    ///
    /// # Errors
    /// There can be no other thread. That the program does not start is told by [`Helper::give`], and in the log.
    pub fn start(program: &Path, wake: Option<Arc<EventFd>>) -> io::Result<Self> {
        let shared = Arc::new(Shared {
            link: Mutex::new(Link {
                coming: true,
                ..Link::default()
            }),
            changed: Condvar::new(),
            wake,
        });
        let (program, of_thread) = (program.to_owned(), Arc::clone(&shared));
        let thread = std::thread::Builder::new()
            .name("restarter".to_owned())
            .spawn(move || run(&program, &of_thread))?;
        Ok(Helper {
            shared,
            thread: Some(thread),
        })
    }

    /// Gives it a job, now or when it is there in a moment; its session.
    ///
    /// # Errors
    /// It is not there now, or takes nothing.
    pub fn give(&self, job: &Job) -> Result<u64, String> {
        // Plain values with string keys: serialising them cannot fail.
        let mut line = serde_json::to_vec(job).unwrap_or_default();
        line.push(b'\n');
        if line.len() as u64 > serve::LINE_MAX {
            return Err("what it says is too long for the restarter".to_owned());
        }
        let mut link = self.shared.link();
        let Some(stream) = link.stream.as_ref() else {
            if link.coming {
                link.waiting.push(line);
                return Ok(link.session + 1);
            }
            return Err("the restarter does not run; the log says why".to_owned());
        };
        match fdpass::send(stream.as_fd(), &line, &[]) {
            Ok(n) if n == line.len() => Ok(link.session),
            _ => {
                // Half a line is no job, nor is what comes after it.
                unix::shutdown(stream.as_fd());
                Err("the restarter takes nothing, and is started again".to_owned())
            }
        }
    }

    /// What was heard since the last call.
    pub fn take(&self) -> Vec<Heard> {
        std::mem::take(&mut self.shared.link().heard)
    }

    /// Ends the process, which is started again: it does not do what it should.
    pub fn end(&self) {
        if let Some(stream) = &self.shared.link().stream {
            unix::shutdown(stream.as_fd());
        }
    }
}

impl Drop for Helper {
    fn drop(&mut self) {
        self.shared.link().over = true;
        self.shared.changed.notify_all();
        self.end();
        if let Some(thread) = self.thread.take() {
            // A panic of that thread was reported by itself.
            let _ = thread.join();
        }
    }
}

fn run(program: &Path, shared: &Shared) {
    let mut pause = BACK_OFF;
    while !shared.link().over {
        let since = Instant::now();
        match spawn(program) {
            Ok((child, stream)) => follow(child, &stream, shared),
            Err(e) => {
                error!("cannot start the restarter, {}: {e}", program.display());
                let session = {
                    let mut link = shared.link();
                    link.waiting.clear();
                    link.session += 1;
                    link.session
                };
                shared.hear(Heard::Gone(session));
            }
        }
        if since.elapsed() >= GOOD {
            pause = BACK_OFF;
        }
        let mut link = shared.link();
        link.coming = pause == BACK_OFF;
        // Left early only when all is over.
        let waited = shared.changed.wait_timeout_while(link, pause, |l| !l.over);
        drop(waited);
        pause = (pause * 2).min(BACK_OFF_MAX);
    }
}

/// Starts the process; it has its end of the socket as standard input.
fn spawn(program: &Path) -> io::Result<(Child, UnixStream)> {
    let (ours, its) = UnixStream::pair()?;
    let mut command = Command::new(program);
    command
        .arg0("vswitch")
        .arg("restarter")
        .stdin(Stdio::from(OwnedFd::from(its)))
        .stdout(Stdio::null())
        // Ctrl-C is for the switch, which ends it.
        .process_group(0);
    let child = child::dies_with_us(&mut command).spawn()?;
    Ok((child, ours))
}

/// Hears it until it ends.
fn follow(mut child: Child, stream: &UnixStream, shared: &Shared) {
    let ours = stream.try_clone();
    match ours {
        Ok(ours) => {
            let mut link = shared.link();
            link.session += 1;
            let waiting = std::mem::take(&mut link.waiting);
            let mut sent = waiting
                .iter()
                .map(|line| fdpass::send(ours.as_fd(), line, &[]).is_ok_and(|n| n == line.len()));
            if !sent.all(|sent| sent) {
                // As in `give`.
                unix::shutdown(ours.as_fd());
            }
            // Who wanted it to end did not find it then.
            if !link.over {
                link.stream = Some(ours);
            }
        }
        Err(e) => error!("the restarter cannot be given anything: {e}"),
    }
    info!(pid = child.id(), "the restarter runs");
    let mut from = BufReader::new(stream);
    while shared.link().stream.is_some() {
        let said = serve::line(&mut from).map(|line| line.map(|l| serde_json::from_slice(&l)));
        match said {
            Ok(Some(Ok(said))) if shared.link().heard.len() < HEARD_MAX => {
                shared.hear(Heard::Said(said));
            }
            Ok(None) => break,
            _ => {
                error!("the restarter says what makes no sense, or too much");
                break;
            }
        }
    }
    let session = {
        let mut link = shared.link();
        (link.stream, link.coming) = (None, false);
        link.session
    };
    // It may still run, and must not.
    let _ = child.kill();
    match child.wait() {
        _ if shared.link().over => {}
        Ok(status) => warn!("the restarter has ended, {status}"),
        Err(e) => warn!("the restarter has ended: {e}"),
    }
    shared.hear(Heard::Gone(session));
}
