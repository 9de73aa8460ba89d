//! Commands in a machine that somebody else has started, over its serial line.

use super::wait_for;
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

/// Bound on a boot.
const LIMIT: Duration = Duration::from_secs(120);
/// How long a machine may say nothing that works, and one that may not be there yet, before it is asked again.
const PATIENCE: Duration = Duration::from_secs(30);
const WHILE_IT_BOOTS: Duration = Duration::from_secs(2);

/// The guest's serial line, to which one at a time may connect.
pub struct Serial {
    path: String,
    next: u32,
    /// Kept until the machine has ended: QEMU 7.2 may stop sending when the one who hears goes in the midst of it.
    line: Option<UnixStream>,
}

impl Serial {
    /// A machine's whose serial line is this socket.
    pub fn at(path: String) -> Self {
        Serial {
            path,
            next: 0,
            line: None,
        }
    }

    /// What QEMU is told of it: it listens, and waits for nobody.
    pub fn listens(&self) -> String {
        format!("unix:{},server=on,wait=off", self.path)
    }

    /// Runs a command in the guest (`tests/vm/init`): its exit code and output. `None`: it does not answer.
    pub fn run(&mut self, command: &str) -> Option<(i32, String)> {
        self.request(command, PATIENCE)
    }

    fn request(&mut self, command: &str, patience: Duration) -> Option<(i32, String)> {
        self.next += 1;
        let answer = self.line().and_then(|line| line.try_clone());
        let answer = answer.and_then(|line| request(line, self.next, command, patience));
        if answer.is_err() {
            self.line = None;
        }
        answer.ok().flatten()
    }

    fn line(&mut self) -> io::Result<&UnixStream> {
        if self.line.is_none() {
            let line = UnixStream::connect(&self.path)?;
            line.set_read_timeout(Some(Duration::from_millis(100)))?;
            self.line = Some(line);
        }
        Ok(self.line.as_ref().expect("it was connected"))
    }

    /// Waits until the guest takes commands.
    pub fn boots(&mut self) {
        wait_for("the guest's boot", LIMIT, || {
            self.request("true", WHILE_IT_BOOTS)
        });
    }

    /// The same, and gives it its address.
    pub fn booted(&mut self) {
        self.boots();
        self.ok("ip address add 10.0.0.1/24 dev eth0 && ip link set eth0 up");
    }

    /// Runs a command that must succeed; its output.
    pub fn ok(&mut self, command: &str) -> String {
        let (code, output) = self
            .run(command)
            .unwrap_or_else(|| panic!("no answer to {command}"));
        assert_eq!(code, 0, "{command}: {output}");
        output
    }
}

/// What the guest answers, if it does.
fn request(
    mut line: UnixStream,
    id: u32,
    command: &str,
    patience: Duration,
) -> io::Result<Option<(i32, String)>> {
    writeln!(line, "{id} {command}")?;
    let (begin, end) = (format!("@@begin {id}\n"), format!("\n@@end {id} "));
    let (mut text, mut heard) = (Vec::new(), Instant::now());
    let mut piece = [0; 4096];
    while heard.elapsed() < patience {
        match line.read(&mut piece) {
            Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
            Ok(n) => {
                text.extend_from_slice(&piece[..n]);
                heard = Instant::now();
            }
            Err(e) if e.kind() == ErrorKind::WouldBlock => continue,
            Err(e) => return Err(e),
        }
        let said = String::from_utf8_lossy(&text);
        let done = said
            .split_once(&begin)
            .and_then(|(_, rest)| rest.split_once(&end));
        if let Some((output, (code, _))) =
            done.and_then(|(o, rest)| Some((o, rest.split_once('\n')?)))
        {
            let code = code.trim().parse().expect("a shell's exit code");
            return Ok(Some((code, output.trim().to_owned())));
        }
        // Only now does it read lines, and of this one it may have got a part, or nothing.
        if said.contains("\n@@ready\n") {
            return Ok(None);
        }
    }
    Ok(None)
}
