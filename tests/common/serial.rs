//! Commands in a machine that somebody else has started, over its serial line.

use super::wait_for;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

/// Bound on a boot.
const LIMIT: Duration = Duration::from_secs(120);

/// The guest's serial line, to which one at a time may connect.
pub struct Serial {
    path: String,
    next: u32,
}

impl Serial {
    /// A machine's whose serial line is this socket.
    pub fn at(path: String) -> Self {
        Serial { path, next: 0 }
    }

    /// What QEMU is told of it: it listens, and waits for nobody.
    pub fn listens(&self) -> String {
        format!("unix:{},server=on,wait=off", self.path)
    }

    /// Runs a command in the guest (`tests/vm/init`): its exit code and output. `None`: it does not answer yet.
    pub fn run(&mut self, command: &str) -> Option<(i32, String)> {
        self.next += 1;
        let mut line = UnixStream::connect(&self.path).ok()?;
        line.set_read_timeout(Some(Duration::from_secs(1))).ok()?;
        writeln!(line, "{} {command}", self.next).ok()?;
        let (begin, end) = (
            format!("@@begin {}\n", self.next),
            format!("\n@@end {} ", self.next),
        );
        let (mut text, start) = (Vec::new(), Instant::now());
        let mut piece = [0; 4096];
        // A guest that boots answers nothing, so that one is asked again; one that works may take its time.
        while start.elapsed() < Duration::from_secs(30) {
            match line.read(&mut piece) {
                Ok(0) => return None,
                Ok(n) => text.extend_from_slice(&piece[..n]),
                Err(_) if text.is_empty() && start.elapsed() > Duration::from_secs(2) => {
                    return None;
                }
                Err(_) => {}
            }
            let heard = String::from_utf8_lossy(&text);
            let done = heard
                .split_once(&begin)
                .and_then(|(_, rest)| rest.split_once(&end));
            if let Some((output, (code, _))) =
                done.and_then(|(o, rest)| Some((o, rest.split_once('\n')?)))
            {
                return Some((code.trim().parse().ok()?, output.trim().to_owned()));
            }
        }
        None
    }

    /// Waits until the guest takes commands, and gives it its address.
    pub fn booted(&mut self) {
        wait_for("the guest's boot", LIMIT, || self.run("true"));
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
