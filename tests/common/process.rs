//! Child processes that end with the test, and consoles to talk to them.

use super::{Lab, poll, wait_for};
use std::fs::File;
use std::io::{Read, Write};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, Command, ExitStatus, Output, Stdio};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

/// A command that is killed when the calling thread ends, so that nothing outlives a killed test process.
///
/// The process it runs as keeps its id through `setpriv`, so signals reach the program itself.
pub fn command(program: impl AsRef<std::ffi::OsStr>) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", "--"]).arg(program);
    command
}

/// A running child; killed and reaped on drop.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Starts `command`, its output going to a log of the lab.
    pub fn spawn(lab: &Lab, name: &str, mut command: Command) -> Self {
        let log = lab.log(name);
        let file = File::create(&log).expect("the lab's directory is writable");
        let errors = file.try_clone().expect("a file can be cloned");
        let child = command
            .stdin(Stdio::null())
            .stdout(file)
            .stderr(errors)
            .spawn()
            .unwrap_or_else(|e| panic!("{command:?}: {e}"));
        Self {
            name: name.to_owned(),
            child,
            log,
        }
    }

    /// The process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// What it has written so far.
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(&self.log).unwrap_or_default()).into_owned()
    }

    /// Its exit status if it has ended.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().expect("a child can be waited for")
    }

    /// Waits for its end.
    pub fn wait(&mut self, limit: Duration) -> ExitStatus {
        let what = format!("{} to end", self.name);
        wait_for(&what, limit, || self.ended())
    }

    /// Sends a signal by name (`TERM`, `STOP`, `CONT`, ...).
    pub fn signal(&self, signal: &str) {
        // The shell's own: Debian's minimal install has no /bin/kill.
        let done = Command::new("sh")
            .args(["-c", &format!("kill -{signal} {}", self.id())])
            .status()
            .expect("sh runs");
        assert!(done.success(), "kill -{signal} {}", self.name);
    }

    /// SIGKILL, and waits for the end.
    pub fn kill(&mut self) {
        // An error means that it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Runs a command to its end.
///
/// # Panics
///
/// When it runs longer than `limit`.
pub fn run(mut command: Command, limit: Duration) -> Output {
    let shown = format!("{command:?}");
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|e| panic!("{shown}: {e}"));
    let stdout = collect(child.stdout.take().expect("stdout is piped"));
    let stderr = collect(child.stderr.take().expect("stderr is piped"));
    let status = poll(limit, || {
        child.try_wait().expect("a child can be waited for")
    });
    let Some(status) = status else {
        let _ = child.kill();
        let _ = child.wait();
        panic!("{shown} ran longer than {limit:?}");
    };
    Output {
        status,
        stdout: stdout.join().expect("the reader does not panic"),
        stderr: stderr.join().expect("the reader does not panic"),
    }
}

/// Runs a command that must succeed; returns its standard output.
pub fn run_ok(command: Command, limit: Duration) -> String {
    let shown = format!("{command:?}");
    let output = run(command, limit);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        output.status.success(),
        "{shown}: {}\n{text}{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    text
}

fn collect(mut from: impl Read + Send + 'static) -> std::thread::JoinHandle<Vec<u8>> {
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        let _ = from.read_to_end(&mut bytes);
        bytes
    })
}

/// The standard input and output of a child that is talked to.
#[derive(Debug)]
pub struct Console {
    process: Process,
    stdin: ChildStdin,
    heard: Arc<(Mutex<Heard>, Condvar)>,
}

#[derive(Debug, Default)]
struct Heard {
    text: String,
    closed: bool,
}

impl Console {
    /// Starts `command` with both ends held here; what it writes also goes to a log of the lab.
    pub fn spawn(lab: &Lab, name: &str, mut command: Command) -> Self {
        let log = lab.log(name);
        let mut file = File::create(&log).expect("the lab's directory is writable");
        let errors = file.try_clone().expect("a file can be cloned");
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(errors)
            .spawn()
            .unwrap_or_else(|e| panic!("{command:?}: {e}"));
        let stdin = child.stdin.take().expect("stdin is piped");
        let mut stdout = child.stdout.take().expect("stdout is piped");
        let heard = Arc::<(Mutex<Heard>, Condvar)>::default();
        let shared = Arc::clone(&heard);
        // Ends with the child's output, so nobody needs to join it.
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            loop {
                let n = stdout.read(&mut buffer).unwrap_or(0);
                let _ = file.write_all(&buffer[..n]);
                let mut heard = shared.0.lock().expect("no holder panics");
                // A multi-byte character may be cut here; nothing these programs are asked for has one.
                heard.text.push_str(&String::from_utf8_lossy(&buffer[..n]));
                heard.closed = n == 0;
                shared.1.notify_all();
                if n == 0 {
                    return;
                }
            }
        });
        Self {
            process: Process {
                name: name.to_owned(),
                child,
                log,
            },
            stdin,
            heard,
        }
    }

    /// The child.
    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    /// How much has been heard so far, in bytes: where the answer to the next line will start.
    pub fn mark(&self) -> usize {
        self.heard.0.lock().expect("no holder panics").text.len()
    }

    /// Sends one line.
    pub fn send(&mut self, line: &str) {
        assert!(!line.contains('\n'), "one line: {line:?}");
        let sent = self
            .stdin
            .write_all(format!("{line}\n").as_bytes())
            .and_then(|()| self.stdin.flush());
        sent.unwrap_or_else(|e| panic!("{} does not take {line:?}: {e}", self.process.name));
    }

    /// Waits until `find` finds something in what was heard since `mark`.
    ///
    /// # Panics
    ///
    /// When `limit` is over, or the child's output ends, before that.
    pub fn expect<T>(
        &self,
        what: &str,
        mark: usize,
        limit: Duration,
        mut find: impl FnMut(&str) -> Option<T>,
    ) -> T {
        let start = Instant::now();
        let (lock, changed) = &*self.heard;
        let mut heard = lock.lock().expect("no holder panics");
        loop {
            if let Some(found) = find(&heard.text[mark..]) {
                return found;
            }
            let left = limit.saturating_sub(start.elapsed());
            let name = &self.process.name;
            assert!(
                !heard.closed,
                "{name} ended before {what}; it said: {}",
                tail(&heard.text[mark..])
            );
            assert!(
                !left.is_zero(),
                "waited {limit:?} for {what} from {name}; it said: {}",
                tail(&heard.text[mark..])
            );
            (heard, _) = changed.wait_timeout(heard, left).expect("no holder panics");
        }
    }
}

/// The last 2000 bytes or so of a text.
fn tail(text: &str) -> &str {
    let mut from = text.len().saturating_sub(2000);
    while !text.is_char_boundary(from) {
        from += 1;
    }
    &text[from..]
}
