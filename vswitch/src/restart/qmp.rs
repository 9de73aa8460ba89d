//! QEMU, by its machine protocol (QMP; QEMU's docs/interop/qmp-spec.rst): lines of JSON over a Unix socket.
//!
//! Whoever answers there may be a machine that was taken over. It is believed nothing but that it did what it was told, its
//! lines are bounded, and each answer is waited for no longer than the restart may take.

use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use serde_json::{Value, json};

use super::command::PATH;
use super::course::Course;
use super::image;
use super::job::{Done, Image, Job, Method, digests};
use crate::sys::child;
use crate::sys::unix;

/// Longest line. Those of the commands used here have a hundred bytes, events some thousand.
const LINE_MAX: u64 = 1 << 20;
/// Lines, mostly events, before the answer to a command.
const LINES_MAX: usize = 10_000;

/// See the module documentation.
pub(super) fn restart(
    socket: &Path,
    method: &Method,
    job: &Job,
    course: &Course<'_>,
) -> Result<Done, String> {
    let note = match method {
        Method::SystemReset => {
            let mut qemu = Monitor::connect(socket, course)?;
            qemu.run("stop", &Value::Null)?;
            qemu.run("system_reset", &Value::Null)?;
            qemu.go_on()?;
            "its disk is as it was"
        }
        Method::Loadvm { snapshot } => {
            let mut qemu = Monitor::connect(socket, course)?;
            qemu.run("stop", &Value::Null)?;
            let line = format!("loadvm {snapshot}");
            let said = qemu.run("human-monitor-command", &json!({ "command-line": line }))?;
            // What people are told of a command that worked is nothing.
            let said = said.as_str().unwrap_or("no text").trim();
            if !said.is_empty() {
                return Err(format!("loadvm {snapshot:?}: {said:?}; it stays stopped"));
            }
            course.step("it went back to its snapshot");
            "it is what it was when the snapshot was taken"
        }
        Method::Fresh { argv, images } => return fresh(socket, (argv, images), job, course),
    };
    Ok(Done {
        verified: None,
        note: note.to_owned(),
    })
}

/// Pauses the machine.
pub(super) fn pause(socket: &Path, course: &Course<'_>) -> Result<Done, String> {
    let mut qemu = Monitor::connect(socket, course)?;
    qemu.run("stop", &Value::Null)?;
    if qemu.is_running()? {
        return Err("QEMU says that the machine runs".to_owned());
    }
    Ok(Done::default())
}

/// Has the machine go on.
pub(super) fn go_on(socket: &Path, course: &Course<'_>) -> Result<Done, String> {
    Monitor::connect(socket, course)?.go_on()?;
    Ok(Done::default())
}

/// A monitor's connection.
struct Monitor<'c> {
    stream: BufReader<UnixStream>,
    course: &'c Course<'c>,
    sent: u64,
}

impl<'c> Monitor<'c> {
    /// Connects, and is greeted.
    fn connect(socket: &Path, course: &'c Course<'c>) -> Result<Self, String> {
        let stream = course.wait("nobody takes the connection", || {
            match unix::connect(socket) {
                Ok(stream) => Ok(Some(stream)),
                Err(e) if e.kind() == ErrorKind::WouldBlock => Ok(None),
                Err(e) => Err(format!("cannot reach QEMU at {}: {e}", socket.display())),
            }
        })?;
        Self::greeted(stream, socket, course)
    }

    fn greeted(stream: UnixStream, socket: &Path, course: &'c Course<'c>) -> Result<Self, String> {
        let at = || socket.display();
        stream
            .set_nonblocking(false)
            .map_err(|e| format!("QEMU at {}: {e}", at()))?;
        let mut monitor = Monitor {
            stream: BufReader::new(stream),
            course,
            sent: 0,
        };
        let greeting = monitor.line();
        let greeting = greeting.map_err(|e| format!("QEMU at {} does not greet: {e}", at()))?;
        if !greeting["QMP"].is_object() {
            return Err(format!("what listens at {} is no QEMU", at()));
        }
        monitor.run("qmp_capabilities", &Value::Null)?;
        course.step("QEMU answers");
        Ok(monitor)
    }

    fn line(&mut self) -> Result<Value, String> {
        let mut line = Vec::new();
        while line.last() != Some(&b'\n') {
            let left = self.course.left()?;
            let limited = self.stream.get_ref().set_read_timeout(Some(left));
            limited.map_err(|e| e.to_string())?;
            let room = LINE_MAX.saturating_sub(line.len() as u64);
            // One piece at a time: whoever sends a byte now and then has no more time than others.
            match self.stream.fill_buf() {
                Ok([]) => return Err("it closed the connection".to_owned()),
                Ok(piece) => {
                    let end = piece.iter().position(|b| *b == b'\n');
                    let n = end.map_or(piece.len(), |end| end + 1);
                    if n as u64 > room {
                        return Err(format!("it sent a line of more than {LINE_MAX} bytes"));
                    }
                    line.extend_from_slice(piece.get(..n).unwrap_or_default());
                    self.stream.consume(n);
                }
                Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) => return Err(e.to_string()),
            }
        }
        serde_json::from_slice(&line).map_err(|e| format!("it sent no JSON: {e}"))
    }

    /// Runs a command; what it returned.
    fn run(&mut self, command: &str, arguments: &Value) -> Result<Value, String> {
        self.send(command, arguments)?;
        self.returned(command)
    }

    fn send(&mut self, command: &str, arguments: &Value) -> Result<(), String> {
        self.sent += 1;
        let mut request = json!({ "execute": command, "id": self.sent });
        if let (Some(request), Value::Object(_)) = (request.as_object_mut(), arguments) {
            request.insert("arguments".to_owned(), arguments.clone());
        }
        let left = self.course.left()?;
        let stream = self.stream.get_mut();
        let sent = stream
            .set_write_timeout(Some(left))
            .and_then(|()| stream.write_all(format!("{request}\n").as_bytes()));
        sent.map_err(|e| format!("{command}: {e}"))
    }

    fn returned(&mut self, command: &str) -> Result<Value, String> {
        for _ in 0..LINES_MAX {
            let mut line = self.line().map_err(|e| format!("{command}: {e}"))?;
            // An event, or an answer that nobody waits for.
            if line["id"] != self.sent {
                continue;
            }
            if let Some(error) = line.get("error") {
                let text = error["desc"].as_str().unwrap_or("no reason");
                return Err(format!("{command} was refused: {text:?}"));
            }
            if let Some(returned) = line.get_mut("return") {
                return Ok(returned.take());
            }
        }
        Err(format!("{command}: it says everything but an answer"))
    }

    fn is_running(&mut self) -> Result<bool, String> {
        let status = self.run("query-status", &Value::Null)?;
        Ok(status["running"] == true)
    }

    /// Has the machine run.
    fn go_on(&mut self) -> Result<(), String> {
        self.run("cont", &Value::Null)?;
        if self.is_running()? {
            self.course.step("the machine runs");
            return Ok(());
        }
        Err("QEMU says that the machine does not run".to_owned())
    }

    /// Has QEMU end, and waits until it has.
    fn quit(mut self, socket: &Path) -> Result<(), String> {
        let process = crate::sys::peer::peer(self.stream.get_ref());
        let process = process.map_err(|e| format!("quit: {e}"))?.pid;
        self.send("quit", &Value::Null)?;
        let mut rest = std::io::sink();
        while self.course.left().is_ok() {
            let mut piece = (&mut self.stream).take(LINE_MAX);
            match std::io::copy(&mut piece, &mut rest) {
                Ok(0) => break,
                Ok(_) => {}
                Err(e) if e.kind() == ErrorKind::ConnectionReset => break,
                Err(_) => return Err(format!("quit: {}", self.course.too_long())),
            }
        }
        self.course.wait("QEMU did not end", || {
            let gone = matches!(unix::connect(socket), Err(e) if e.kind() != ErrorKind::WouldBlock);
            Ok((gone && has_ended(process)).then_some(()))
        })?;
        self.course.step("the old machine has ended");
        Ok(())
    }
}

/// Whether a process is gone, or waits for nothing but its parent (proc_pid_stat(5): the state stands behind the name).
fn has_ended(process: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat"));
    let stat = stat.unwrap_or_default();
    let state = stat.rsplit_once(") ").map(|(_, rest)| rest.chars().next());
    matches!(state, None | Some(Some('Z' | 'X')))
}

/// Another QEMU in the place of the one at `socket`, if there is one.
fn fresh(
    socket: &Path,
    (argv, images): (&[String], &[Image]),
    job: &Job,
    course: &Course<'_>,
) -> Result<Done, String> {
    let mut copies = Vec::new();
    for image in images {
        copies.push((image, OwnedFd::from(image::verified(image, course)?)));
        course.step(format!("image {} is verified", image.name));
    }
    // QEMU talks to one at a time: this is dropped before the next one comes.
    let there = unix::connect(socket).map(drop);
    match there {
        Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::ConnectionRefused) => {
            course.step("there is no old machine");
        }
        _ => Monitor::connect(socket, course)?.quit(socket)?,
    }
    let (program, arguments) = argv.split_first().ok_or("there is no command line")?;
    let arguments = arguments.iter().map(|argument| {
        copies
            .iter()
            .fold(argument.clone(), |argument, (image, copy)| {
                let path = format!("/proc/self/fd/{}", copy.as_raw_fd());
                argument.replace(&format!("{{{}}}", image.name), &path)
            })
    });
    let mut command = Command::new(program);
    command
        .args(arguments)
        .env_clear()
        .env("PATH", PATH)
        .env("VSWITCH_WORKLOAD", &job.workload)
        .stdin(Stdio::null())
        .stdout(Stdio::null());
    let copies = copies.into_iter().map(|(_, copy)| copy).collect();
    let child = child::leaves_with(&mut command, copies).spawn();
    let mut child = child.map_err(|e| format!("cannot start {program}: {e}"))?;
    course.step("a new machine was started");
    let up = comes_up(socket, &mut child, course);
    // What the descriptors of the copies were for.
    drop(command);
    if up.is_err() {
        // One that does not come up is none that somebody should find running.
        child::kill_group(child.id());
    }
    // It stays when we end; if it ends before, somebody must take note.
    std::thread::spawn(move || child.wait());
    up?;
    Ok(Done {
        verified: Some(digests(images)),
        note: "it runs on copies of its own, which are gone when it ends".to_owned(),
    })
}

/// Waits until a new QEMU runs its machine.
fn comes_up(socket: &Path, child: &mut Child, course: &Course<'_>) -> Result<(), String> {
    let stream = course.wait("the new machine does not answer", || {
        let ended = child.try_wait().map_err(|e| e.to_string())?;
        if let Some(status) = ended.filter(|status| !status.success()) {
            return Err(format!(
                "the new machine failed, {status}; the switch's log has what it wrote"
            ));
        }
        Ok(unix::connect(socket).ok())
    })?;
    let mut qemu = Monitor::greeted(stream, socket, course)?;
    course.wait("the new machine does not run", || {
        Ok(qemu.is_running()?.then_some(()))
    })?;
    course.step("the machine runs");
    Ok(())
}
