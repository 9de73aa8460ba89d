//! The API's Unix socket: lines in, lines out, no patience.
//!
//! Runs on the control thread and never blocks it: every socket is non-blocking; a line, the
//! number of clients and what waits to be read by one of them are bounded; a client that exceeds
//! a bound, or sends nothing for too long, is dropped. Who may connect is decided by the socket's
//! mode (in a directory only we can write to; our own user's, unless there are people to let in) and, request by request, by the
//! kernel's record of the peer (`callers`).

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use tracing::{debug, warn};

use super::api::{MAX_REQUEST_BYTES, WatchFilter};
use crate::sys::epoll::{Epoll, Interest};
use crate::sys::peer::{self, Peer};

/// Clients at once; a person and a few scripts need a handful. Guess.
const MAX_CLIENTS: usize = 64;
/// Of one user who is neither root nor us, so that nobody keeps others out.
const MAX_OF_ONE: usize = 16;
/// What may wait for a client that watches: about 10,000 events. A reply may be larger.
const MAX_STREAM_BYTES: usize = 4 << 20;
/// A client that neither asks nor takes its answer is dropped after this.
const PATIENCE_NS: u64 = 30_000_000_000;

/// Why the API socket could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// Another daemon has the socket.
    #[error(
        "a daemon is already running at {} (pid {pid}); stop it, or choose another socket with --socket", path.display()
    )]
    Running {
        /// Socket.
        path: PathBuf,
        /// Its process.
        pid: u32,
    },
    /// Something that is not a socket stands there.
    #[error("{} exists and is not a socket; remove it, or choose another path with --socket", .0.display())]
    NotASocket(PathBuf),
    /// The system refused.
    #[error("cannot {what} {}: {source}; run as root, or choose a path you may write to with --socket", path.display())]
    Io {
        /// What was tried.
        what: &'static str,
        /// On what.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
}

/// Makes an answer, and takes its time.
pub(crate) type Work = Box<dyn FnOnce() -> String + Send>;

/// What the server does with a request line.
pub(crate) enum Answer {
    /// Sends this line.
    Reply(String),
    /// Keeps the client and sends it events that match.
    Stream(WatchFilter),
    /// Sends what this makes, on a thread of its own; what the client asks next waits for it.
    Later(Work),
}

struct Client {
    stream: UnixStream,
    who: Peer,
    input: Vec<u8>,
    /// Bytes of `input` already searched for a line end.
    searched: usize,
    output: Vec<u8>,
    /// Bytes of `output` already sent.
    sent: usize,
    watch: Option<WatchFilter>,
    /// What is to be worked out for it, before and while that is done.
    work: Option<Work>,
    waits: bool,
    active_ns: u64,
    wants_write: bool,
}

/// See the module documentation.
pub(crate) struct Server {
    listener: UnixListener,
    path: PathBuf,
    clients: BTreeMap<u64, Client>,
    next: u64,
    /// Held for as long as we serve, so that two daemons that start together do not both win.
    _lock: File,
}

impl Server {
    /// Opens the socket at `path`, replacing one that a dead daemon left; for our own user, or for everybody.
    pub(crate) fn bind(path: &Path, everybody: bool) -> Result<Self, ServerError> {
        let io = |what| {
            move |source| ServerError::Io {
                what,
                path: path.to_owned(),
                source,
            }
        };
        if let Some(dir) = path.parent().filter(|d| !d.as_os_str().is_empty()) {
            std::fs::DirBuilder::new()
                .recursive(true)
                // Others may pass through (a port's socket may stand here, and its owner must reach
                // it), not list, not write. Our own socket is protected by its own mode.
                .mode(0o711)
                .create(dir)
                .map_err(io("create the directory of"))?;
        }
        let mut lock = peer::lock_file(path).map_err(io("create the lock of"))?;
        let live = UnixStream::connect(path)
            .ok()
            .and_then(|s| peer::peer(&s).ok());
        if let Some(who) = live {
            return Err(ServerError::Running {
                path: path.to_owned(),
                pid: who.pid,
            });
        }
        if !peer::try_lock(&lock).map_err(io("lock"))? {
            // It does not listen yet, but may have said who it is.
            let mut pid = String::new();
            let _ = lock.read_to_string(&mut pid);
            return Err(ServerError::Running {
                path: path.to_owned(),
                pid: pid.trim().parse().unwrap_or(0),
            });
        }
        lock.set_len(0)
            .and_then(|()| writeln!(lock, "{}", std::process::id()))
            .map_err(io("write the lock of"))?;
        match std::fs::symlink_metadata(path) {
            Ok(m) if m.file_type().is_socket() => {
                std::fs::remove_file(path).map_err(io("replace the stale socket"))?;
            }
            Ok(_) => return Err(ServerError::NotASocket(path.to_owned())),
            Err(_) => {}
        }
        let listener = UnixListener::bind(path).map_err(io("listen on"))?;
        let mode = if everybody { 0o666 } else { 0o600 };
        let mode = std::fs::Permissions::from_mode(mode);
        std::fs::set_permissions(path, mode).map_err(io("set the mode of"))?;
        listener.set_nonblocking(true).map_err(io("listen on"))?;
        Ok(Server {
            listener,
            path: path.to_owned(),
            clients: BTreeMap::new(),
            next: 0,
            _lock: lock,
        })
    }

    /// The listening descriptor.
    pub(crate) fn fd(&self) -> RawFd {
        self.listener.as_raw_fd()
    }

    /// Accepts who waits. `token` makes an epoll token of a client's number.
    pub(crate) fn accept(&mut self, epoll: &Epoll, token: impl Fn(u64) -> u64, now_ns: u64) {
        while let Ok((stream, _)) = self.listener.accept() {
            let Ok(who) = peer::peer(&stream) else {
                continue;
            };
            let (all, his) = (self.clients.len(), self.clients_of(who.uid));
            // Others take no room from whoever owns the machine.
            let is_full = if who.uid == 0 || who.uid == peer::euid() {
                his >= MAX_CLIENTS
            } else {
                his >= MAX_OF_ONE || all >= MAX_CLIENTS
            };
            if is_full {
                warn!(
                    uid = who.uid,
                    pid = who.pid,
                    "API client refused: {all} are connected, {his} of this user"
                );
                continue;
            }
            let id = self.next;
            let added = stream
                .set_nonblocking(true)
                .and_then(|()| epoll.add(stream.as_raw_fd(), token(id), Interest::READ));
            if let Err(e) = added {
                warn!("API client refused: {e}");
                continue;
            }
            self.next += 1;
            self.clients.insert(
                id,
                Client {
                    stream,
                    who,
                    input: Vec::new(),
                    searched: 0,
                    output: Vec::new(),
                    sent: 0,
                    watch: None,
                    work: None,
                    waits: false,
                    active_ns: now_ns,
                    wants_write: false,
                },
            );
        }
    }

    /// Serves client `id`, which is readable or writable. What is returned is to be worked out for it, and it waits until it is
    /// told.
    pub(crate) fn ready(
        &mut self,
        id: u64,
        now_ns: u64,
        epoll: &Epoll,
        token: u64,
        mut answer: impl FnMut(&Peer, &str) -> Answer,
    ) -> Option<Work> {
        let client = self.clients.get_mut(&id)?;
        client.active_ns = now_ns;
        let who = client.who;
        let open = client.flush() && client.read_lines(&mut |line: &str| answer(&who, line));
        let work = client.work.take();
        client.waits |= work.is_some();
        self.settle(id, open, epoll, token);
        work
    }

    /// Tells a client what was worked out for it.
    pub(crate) fn done(&mut self, id: u64, line: &str) {
        if let Some(client) = self.clients.get_mut(&id) {
            client.push(line);
            client.waits = false;
        }
    }

    /// Forgets a client that cannot be answered.
    pub(crate) fn give_up(&mut self, id: u64) {
        self.clients.remove(&id);
    }

    /// Sends an event to the clients that watch for it. `line` is made once, when one does.
    pub(crate) fn publish(
        &mut self,
        matches: impl Fn(&WatchFilter) -> bool,
        line: &str,
        epoll: &Epoll,
        token: impl Fn(u64) -> u64,
    ) {
        let ids: Vec<u64> = self
            .clients
            .iter()
            .filter(|(_, c)| c.watch.as_ref().is_some_and(&matches))
            .map(|(id, _)| *id)
            .collect();
        for id in ids {
            let Some(client) = self.clients.get_mut(&id) else {
                continue;
            };
            client.push(line);
            let mut open = client.flush();
            if open && client.output.len() - client.sent > MAX_STREAM_BYTES {
                warn!("API client dropped: it reads events too slowly");
                open = false;
            }
            self.settle(id, open, epoll, token(id));
        }
    }

    fn clients_of(&self, uid: u32) -> usize {
        self.clients.values().filter(|c| c.who.uid == uid).count()
    }

    /// Whether somebody watches.
    pub(crate) fn watched(&self) -> bool {
        self.clients.values().any(|c| c.watch.is_some())
    }

    /// Drops clients that let us wait.
    pub(crate) fn expire(&mut self, now_ns: u64) {
        self.clients.retain(|_, c| {
            c.watch.is_some() || c.waits || now_ns.saturating_sub(c.active_ns) < PATIENCE_NS
        });
    }

    /// Asks for writability while output waits, drops a client that is finished.
    fn settle(&mut self, id: u64, open: bool, epoll: &Epoll, token: u64) {
        let Some(client) = self.clients.get_mut(&id) else {
            return;
        };
        let waits = client.sent < client.output.len();
        let mut open = open;
        if open && waits != client.wants_write {
            let interest = if waits {
                Interest::READ_WRITE
            } else {
                Interest::READ
            };
            open = epoll
                .modify(client.stream.as_raw_fd(), token, interest)
                .is_ok();
            client.wants_write = waits;
        }
        if !open {
            // Closing the descriptor takes it out of the epoll set.
            self.clients.remove(&id);
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Gone already: nothing to do.
        let _ = std::fs::remove_file(&self.path);
    }
}

impl Client {
    /// Reads and answers; `false` when the client is gone or misbehaves.
    fn read_lines(&mut self, answer: &mut impl FnMut(&str) -> Answer) -> bool {
        let mut buf = [0u8; 64 * 1024];
        loop {
            match self.stream.read(&mut buf) {
                Ok(0) => return false,
                Ok(n) => self
                    .input
                    .extend_from_slice(buf.get(..n).unwrap_or_default()),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => break,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => {
                    debug!("API client: {e}");
                    return false;
                }
            }
            if self.input.len() > MAX_REQUEST_BYTES {
                warn!("API client dropped: its request is longer than {MAX_REQUEST_BYTES} bytes");
                return false;
            }
        }
        // A client that sends requests faster than it reads the answers waits for itself.
        while self.sent == self.output.len() && !self.waits && self.work.is_none() {
            let unseen = self.input.get(self.searched..).unwrap_or_default();
            let Some(end) = unseen.iter().position(|b| *b == b'\n') else {
                self.searched = self.input.len();
                break;
            };
            let end = self.searched + end;
            let rest = self.input.split_off(end + 1);
            let line = std::mem::replace(&mut self.input, rest);
            self.searched = 0;
            let Ok(line) = std::str::from_utf8(line.get(..end).unwrap_or_default()) else {
                warn!("API client dropped: its request is not UTF-8");
                return false;
            };
            match answer(line) {
                Answer::Reply(reply) => self.push(&reply),
                Answer::Stream(filter) => self.watch = Some(filter),
                Answer::Later(work) => self.work = Some(work),
            }
            if !self.flush() {
                return false;
            }
        }
        true
    }

    fn push(&mut self, line: &str) {
        self.output.extend_from_slice(line.as_bytes());
        self.output.push(b'\n');
    }

    /// Sends what the socket takes; `false` when the client is gone.
    fn flush(&mut self) -> bool {
        while let Some(rest) = self.output.get(self.sent..).filter(|r| !r.is_empty()) {
            match self.stream.write(rest) {
                Ok(n) => self.sent += n,
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return true,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return false,
            }
        }
        self.output.clear();
        self.sent = 0;
        true
    }
}
