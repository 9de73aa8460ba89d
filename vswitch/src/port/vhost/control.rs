//! The control side of a vhost-user port: its socket, and what messages do to the queues.
//!
//! *Thread-safety.* One control thread owns a [`VhostControl`]. It waits on [`VhostControl::fd`]
//! and calls [`VhostControl::ready`] when that becomes readable, and [`VhostControl::tick`] at
//! [`VhostControl::next_deadline`]. Nothing here blocks, except on a worker's present burst.

use std::io;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::guest_mem::{DirtyLog, GuestMem, RegionSpec};
use super::queue::Queue;
use super::session::{self, Decoder, Device, Session, SessionError};
use super::vring::{RingError, VringConfig};
use super::{QUEUE_PAIRS_MAX, Rx, Tx, tx_caps};
use crate::port::{Port, PortId, RxQueue, TxQueue};
use crate::sys::aio::Signaller;
use crate::sys::closer::{Closer, PeerFd};
use crate::sys::epoll::{Epoll, Event, Interest};
use crate::sys::eventfd::{self, EventFd};
use crate::sys::fdpass;
use crate::sys::gate::Gate;
use crate::sys::peer;
use crate::sys::unix::{self, Listener};
use crate::sys::virtio::{NetHdr, feature};

/// Where a reconnect starts, and where doubling ends, ns. A guest that starts is found at once; one
/// that is gone costs a system call per second.
const BACK_OFF_FIRST_NS: u64 = 50_000_000;
const BACK_OFF_LAST_NS: u64 = 1_000_000_000;

/// Reads from one front-end before other ports have their turn; a message takes two. QEMU's whole
/// start with one queue pair is some 60 messages.
const READS_PER_TURN: usize = 128;
/// Connections accepted, or refused, before others have their turn.
const ACCEPTS_PER_TURN: usize = 16;
/// Descriptors that wait to be closed, beyond which a port takes no more: only somebody who holds them
/// up lets it come to that. One message has at most 253; QEMU's whole start with 16 queue pairs some 100.
const UNCLOSED_MAX: usize = 256;

const TOKEN_LISTENER: u64 = 0;
const TOKEN_CONNECTION: u64 = 1;

/// A vhost-user port's settings.
#[derive(Clone, Debug)]
pub struct VhostConfig {
    /// Stable name.
    pub name: String,
    /// Socket.
    pub socket: PathBuf,
    /// The guest's side listens, and we (re)connect.
    pub client: bool,
    /// User who may be at the other end, and owns our socket; `None`: ours.
    pub owner: Option<u32>,
    /// Queue pairs; `None`: 16.
    pub queues: Option<u16>,
    /// Longest L3 packet, bytes.
    pub mtu: u16,
}

/// Why a port could not be opened, or a connection ended.
#[derive(Debug, thiserror::Error)]
pub enum VhostError {
    /// Another process listens there.
    #[error("socket path {0} is in use by another process; stop it, or choose another path")]
    PathInUse(PathBuf),
    /// Something that is not a socket is in the way.
    #[error("{0} exists and is not a socket; remove it, or choose another path")]
    NotASocket(PathBuf),
    /// Others could replace the socket.
    #[error("directory {0} can be written by others; make it 0755, or choose another")]
    UnsafeDirectory(PathBuf),
    /// Fewer than 1 or more than 16.
    #[error("{0} queue pairs; choose 1 to {QUEUE_PAIRS_MAX}")]
    BadQueues(u16),
    /// The kernel refused.
    #[error("{what} {path} ({})", advice(.source))]
    Io {
        /// What was tried.
        what: &'static str,
        /// Where.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// The peer is not who may attach.
    #[error("peer runs as user {uid}, but only user {owner} may attach")]
    WrongOwner {
        /// Peer.
        uid: u32,
        /// Configured.
        owner: u32,
    },
    /// The front-end said something wrong.
    #[error("front-end: {0}")]
    Session(#[from] SessionError),
    /// What front-ends passed is held up by whoever serves it.
    #[error(
        "descriptors that a front-end passed cannot be closed, because whoever serves them does not \
         answer; end that, or remove and add the port"
    )]
    Unclosed,
    /// We could not tell what a front-end passes.
    #[error("cannot tell descriptors apart by /proc/self/fd; mount /proc")]
    NoProc(#[source] io::Error),
    /// The front-end does not read our replies.
    #[error("front-end does not read its replies")]
    Stalled,
    /// The front-end closed the connection.
    #[error("front-end disconnected")]
    Disconnected,
    /// The connection broke.
    #[error("connection failed")]
    Connection(#[source] io::Error),
}

/// What to do when the kernel refuses a socket, or what it needs.
fn advice(e: &io::Error) -> &'static str {
    match e.kind() {
        io::ErrorKind::PermissionDenied => {
            "run the switch as root, or choose a path and an `owner` that its user may give it"
        }
        io::ErrorKind::NotADirectory | io::ErrorKind::AlreadyExists => {
            "a file stands where its directory should; choose another path"
        }
        io::ErrorKind::ReadOnlyFilesystem | io::ErrorKind::StorageFull => {
            "choose a path on another file system, as /run/vswitch"
        }
        _ => match e.raw_os_error() {
            Some(libc::EMFILE | libc::ENFILE) => "allow more open files: `ulimit -n`, LimitNOFILE=",
            Some(libc::ENOMEM) => "free memory, or set fewer `queues`",
            _ => "look at its directory, and choose another path if it cannot be mended",
        },
    }
}

/// What an operator wants to know about a port's attachment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct VhostStatus {
    /// A front-end is connected.
    pub connected: bool,
    /// Features it accepted, once it has.
    pub features: Option<u64>,
    /// Queue pairs whose rings both run and are enabled.
    pub live_queue_pairs: u16,
    /// Rings broken by the guest now.
    pub broken_vrings: u16,
    /// Why the first of those is broken.
    pub broken_reason: Option<RingError>,
    /// Connections accepted or made so far.
    pub connections: u64,
    /// Connections refused because one was there.
    pub refused_second: u64,
    /// Connections refused because of their user.
    pub refused_owner: u64,
    /// Connections ended by us because of what the front-end said.
    pub session_errors: u64,
    /// Descriptors that came with front-ends and wait to be closed.
    pub unclosed: usize,
    /// The last reason a connection ended.
    pub last_error: Option<String>,
}

#[derive(Debug)]
struct Connection {
    stream: PeerFd,
    decoder: Decoder,
    session: Session,
}

/// See the module documentation.
#[derive(Debug)]
pub struct VhostControl {
    config: VhostConfig,
    queue_pairs: usize,
    epoll: Epoll,
    closer: Closer,
    listener: Option<Listener>,
    connection: Option<Connection>,
    queues: Queues,
    status: VhostStatus,
    back_off_ns: u64,
    /// Client mode, not connected: when to try again; server mode, not listening because too much waits
    /// to be closed: when to look again. 0: at the next tick, whatever the time.
    retry_at_ns: Option<u64>,
}

/// Makes the port and its control side; in server mode the socket exists then. In client mode the
/// first attempt to connect is made by the first [`VhostControl::tick`].
///
/// # Errors
/// See [`VhostError`].
pub fn open(id: PortId, config: VhostConfig) -> Result<(Arc<Port>, VhostControl), VhostError> {
    let pairs = config.queues.unwrap_or(QUEUE_PAIRS_MAX);
    if pairs == 0 || pairs > QUEUE_PAIRS_MAX {
        return Err(VhostError::BadQueues(pairs));
    }
    let failed = |what, source| VhostError::Io {
        what,
        path: config.socket.clone(),
        source,
    };
    let queues = || -> io::Result<_> {
        let (mut rxqs, mut txqs, mut live) = (Vec::new(), Vec::new(), Vec::new());
        let signaller = Arc::new(Signaller::new()?);
        for _ in 0..pairs {
            let (rx, tx) = (
                Rx::new(Arc::clone(&signaller))?,
                Tx::new(Arc::clone(&signaller))?,
            );
            live.extend([tx.queue.is_live(), rx.queue.is_live()]);
            rxqs.push(Gate::new(RxQueue::Vhost(Box::new(rx))));
            txqs.push(Gate::new(TxQueue::Vhost(Box::new(tx))));
        }
        Ok((rxqs, txqs, live))
    };
    let (rxqs, txqs, live) = queues().map_err(|e| failed("cannot make the queues of", e))?;
    let ours = EventFd::new().map_err(|e| failed("cannot make the queues of", e))?;
    eventfd::from_peer(ours).map_err(VhostError::NoProc)?;
    let closer = Closer::new().map_err(|e| failed("cannot start the closer of", e))?;
    let port = Arc::new(Port::new(id, &config.name, rxqs, txqs));
    port.live_txqs.store(1, Ordering::Relaxed);
    let epoll = Epoll::new().map_err(|e| failed("cannot wait on", e))?;
    let mut listener = None;
    if !config.client {
        let l = listen(&config.socket, config.owner)?;
        epoll
            .add(l.as_raw_fd(), TOKEN_LISTENER, Interest::READ)
            .map_err(|e| failed("cannot wait on", e))?;
        listener = Some(l);
    }
    let control = VhostControl {
        queue_pairs: usize::from(pairs),
        epoll,
        closer,
        listener,
        connection: None,
        queues: Queues {
            port: Arc::clone(&port),
            live,
            mem: Arc::default(),
            log: None,
            features: 0,
            mtu: config.mtu,
            mtu_max: config.mtu,
        },
        status: VhostStatus::default(),
        back_off_ns: BACK_OFF_FIRST_NS,
        retry_at_ns: config.client.then_some(0),
        config,
    };
    Ok((port, control))
}

/// Listens at `path`, replacing the socket of a process that is gone.
fn listen(path: &Path, owner: Option<u32>) -> Result<Listener, VhostError> {
    let failed = |what, source| VhostError::Io {
        what,
        path: path.to_owned(),
        source,
    };
    if let Some(dir) = path.parent().filter(|d| !d.as_os_str().is_empty()) {
        // Others may pass through (the owner must reach his socket), not list, not write.
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o711)
            .create(dir)
            .map_err(|e| failed("cannot make the directory of", e))?;
        let meta = dir
            .metadata()
            .map_err(|e| failed("cannot look at the directory of", e))?;
        const STICKY: u32 = 0o1000;
        if meta.mode() & 0o022 != 0 && meta.mode() & STICKY == 0 {
            return Err(VhostError::UnsafeDirectory(dir.to_owned()));
        }
    }
    match path.symlink_metadata() {
        Ok(meta) if !meta.file_type().is_socket() => {
            return Err(VhostError::NotASocket(path.to_owned()));
        }
        Ok(_) => match unix::connect(path) {
            // Nobody listens: its owner died.
            Err(e) if e.kind() == io::ErrorKind::ConnectionRefused => {
                std::fs::remove_file(path).map_err(|e| failed("cannot replace", e))?;
            }
            _ => return Err(VhostError::PathInUse(path.to_owned())),
        },
        Err(e) if e.kind() == io::ErrorKind::NotFound => {}
        Err(e) => return Err(failed("cannot look at", e)),
    }
    Listener::bind(path, 0o600, owner).map_err(|e| match e.kind() {
        io::ErrorKind::AddrInUse => VhostError::PathInUse(path.to_owned()),
        _ => failed("cannot listen at", e),
    })
}

/// Whether what came from front-ends is closed about as fast as it comes.
fn keeps_up(closer: &Closer) -> Result<(), VhostError> {
    if closer.waiting() > UNCLOSED_MAX {
        return Err(VhostError::Unclosed);
    }
    Ok(())
}

/// An error and what the kernel said, in one line.
fn with_cause(error: &VhostError) -> String {
    match error {
        VhostError::Connection(source) => format!("{error}: {source}"),
        _ => error.to_string(),
    }
}

impl VhostControl {
    /// Readable when [`VhostControl::ready`] has something to do; never changes.
    #[must_use]
    pub fn fd(&self) -> RawFd {
        self.epoll.as_raw_fd()
    }

    /// Serves whatever happened.
    pub fn ready(&mut self, now_ns: u64) {
        let mut events = [Event::EMPTY; 4];
        let n = self.epoll.wait(&mut events, 0).unwrap_or(0);
        for event in events.iter().take(n) {
            match event.token() {
                TOKEN_LISTENER => self.accept(now_ns),
                _ => self.serve(now_ns),
            }
        }
        self.refresh_link();
    }

    /// Does what is due. Call it once after [`open`], and then at [`VhostControl::next_deadline`].
    pub fn tick(&mut self, now_ns: u64) {
        if self.retry_at_ns.is_some_and(|at| at <= now_ns) {
            if self.config.client {
                self.connect(now_ns);
            } else {
                self.accept_again(now_ns);
            }
        }
    }

    /// When [`VhostControl::tick`] is due, ns of the monotonic clock.
    #[must_use]
    pub fn next_deadline(&self) -> Option<u64> {
        self.retry_at_ns
    }

    /// Connections refused so far, for whatever reason.
    #[must_use]
    pub fn refused(&self) -> u64 {
        self.status.refused_second + self.status.refused_owner
    }

    /// The front-end that is connected, if one is, counted from the first one.
    #[must_use]
    pub fn connected(&self) -> Option<u64> {
        self.connection.as_ref().map(|_| self.status.connections)
    }

    /// The attachment's state. Enters the gates of queues that no frame passes by.
    #[must_use]
    pub fn status(&self) -> VhostStatus {
        let mut status = self.status.clone();
        status.connected = self.connection.is_some();
        status.features = self.connection.as_ref().and_then(|c| c.session.features());
        status.live_queue_pairs = self.queues.live_pairs();
        status.unclosed = self.closer.waiting();
        let still = (0..self.queues.rings()).filter(|ring| !self.queues.is_live(*ring));
        for index in still {
            if let Some(Some(e)) = self.queues.with(index, |q| q.broken()) {
                status.broken_vrings += 1;
                status.broken_reason.get_or_insert(e);
            }
        }
        status
    }

    /// Why no frame can pass, or not by every ring, and what to do; `None` when nothing is wrong.
    #[must_use]
    pub fn trouble(&self) -> Option<String> {
        let status = self.status();
        if let Err(e) = keeps_up(&self.closer) {
            return Some(e.to_string());
        }
        let at = self.config.socket.display();
        let last = |what: &str| {
            let error = status.last_error.as_ref();
            error.map_or_else(String::new, |e| format!("; {what}: {e}"))
        };
        if let Some(error) = &status.broken_reason {
            return Some(format!(
                "{} of the guest's rings broken: {error}; restart the guest's network driver",
                status.broken_vrings
            ));
        }
        if status.connected {
            return (status.live_queue_pairs == 0)
                .then(|| "a guest is connected, and its driver is not ready yet".to_owned());
        }
        let Some(listener) = &self.listener else {
            return Some(format!(
                "no guest listens at {at}; start it, it is tried again every second{}",
                last("the last try")
            ));
        };
        Some(match listener.is_in_place() {
            Ok(true) => format!(
                "no guest is connected to {at}; start it{}",
                last("the last connection ended")
            ),
            Ok(false) => format!(
                "{at} was taken by another process; stop that, then restart the switch or remove and add the port"
            ),
            Err(e) => format!(
                "{at} cannot be found any more ({e}); restart the switch, or remove and add the port"
            ),
        })
    }

    fn accept(&mut self, now_ns: u64) {
        for _ in 0..ACCEPTS_PER_TURN {
            let Some(listener) = &self.listener else {
                return;
            };
            if let Err(e) = keeps_up(&self.closer) {
                // A connection that we do not accept costs us nothing; and we need not hear of it.
                let _ = self.epoll.remove(listener.as_raw_fd());
                self.retry_at_ns = Some(now_ns.saturating_add(BACK_OFF_LAST_NS));
                self.note(&e);
                return;
            }
            let Ok(stream) = listener.accept() else {
                return;
            };
            let stream = self.closer.own(stream);
            if self.connection.is_some() {
                // The guest that is there keeps its port: a socket is an identity.
                self.status.refused_second += 1;
                let peer = peer::peer(&stream).ok();
                tracing::warn!(
                    port = %self.config.name,
                    pid = peer.map(|p| p.pid),
                    uid = peer.map(|p| p.uid),
                    "second vhost-user connection refused"
                );
                unix::shutdown(stream.as_fd());
                continue;
            }
            match self.admit(stream) {
                Ok(()) => return,
                Err(e) => self.note(&e),
            }
        }
    }

    fn accept_again(&mut self, now_ns: u64) {
        let again = |listener: &Listener| {
            keeps_up(&self.closer).is_ok()
                && self
                    .epoll
                    .add(listener.as_raw_fd(), TOKEN_LISTENER, Interest::READ)
                    .is_ok()
        };
        let waits = !self.listener.as_ref().is_some_and(again);
        self.retry_at_ns = waits.then(|| now_ns.saturating_add(BACK_OFF_LAST_NS));
    }

    fn connect(&mut self, now_ns: u64) {
        let result = keeps_up(&self.closer)
            .and_then(|()| unix::connect(&self.config.socket).map_err(VhostError::Connection))
            .and_then(|stream| self.admit(self.closer.own(stream)));
        match result {
            Ok(()) => {
                self.retry_at_ns = None;
                self.back_off_ns = BACK_OFF_FIRST_NS;
            }
            Err(e) => {
                self.status.last_error = Some(with_cause(&e));
                self.retry_at_ns = Some(now_ns.saturating_add(self.back_off_ns));
                self.back_off_ns = (self.back_off_ns * 2).min(BACK_OFF_LAST_NS);
            }
        }
    }

    fn admit(&mut self, stream: PeerFd) -> Result<(), VhostError> {
        let uid = peer::peer(&stream).map_err(VhostError::Connection)?.uid;
        let owner = self.config.owner.unwrap_or_else(peer::euid);
        // Root can be anybody anyway.
        if uid != owner && uid != 0 {
            self.status.refused_owner += 1;
            unix::shutdown(stream.as_fd());
            return Err(VhostError::WrongOwner { uid, owner });
        }
        self.epoll
            .add(stream.as_fd().as_raw_fd(), TOKEN_CONNECTION, Interest::READ)
            .map_err(VhostError::Connection)?;
        let mut features = session::FEATURES;
        if self.queue_pairs == 1 {
            features &= !feature::MQ;
        }
        self.status.connections += 1;
        self.connection = Some(Connection {
            stream,
            decoder: Decoder::default(),
            session: Session::new(self.queue_pairs, features),
        });
        Ok(())
    }

    fn serve(&mut self, now_ns: u64) {
        let Some(connection) = &mut self.connection else {
            return;
        };
        let Err(error) = connection.serve(&mut self.queues, &self.closer) else {
            return;
        };
        if matches!(error, VhostError::Session(_)) {
            self.status.session_errors += 1;
        }
        self.note(&error);
        self.hang_up();
        if self.config.client {
            self.retry_at_ns = Some(now_ns);
        }
    }

    fn hang_up(&mut self) {
        if let Some(connection) = self.connection.take() {
            let stream = connection.stream.as_fd();
            // By hand: it is open until the closer has it.
            let _ = self.epoll.remove(stream.as_raw_fd());
            unix::shutdown(stream);
        }
        self.queues.disconnect();
    }

    fn note(&mut self, error: &VhostError) {
        tracing::info!(port = %self.config.name, %error, "vhost-user connection ended");
        self.status.last_error = Some(with_cause(error));
    }

    fn refresh_link(&self) {
        let live_txqs = self.queues.live_txqs().max(1);
        self.queues
            .port
            .live_txqs
            .store(live_txqs, Ordering::Relaxed);
        let up = self.queues.live_pairs() > 0;
        if self.queues.port.link_up.swap(up, Ordering::Relaxed) != up {
            tracing::info!(port = %self.config.name, up, "vhost-user link");
        }
    }
}

impl Drop for VhostControl {
    fn drop(&mut self) {
        self.hang_up();
        // With it go connections that were not accepted, and what was sent over them.
        drop(self.listener.take().map(|l| self.closer.own(l)));
        self.queues.port.link_up.store(false, Ordering::Relaxed);
    }
}

impl Connection {
    /// Reads and obeys messages until none waits, or it is others' turn.
    fn serve(&mut self, queues: &mut Queues, closer: &Closer) -> Result<(), VhostError> {
        let mut buf = [0u8; 512];
        let mut fds = Vec::new();
        for _ in 0..READS_PER_TURN {
            keeps_up(closer)?;
            let want = self.decoder.wanted().min(buf.len());
            let room = buf.get_mut(..want).unwrap_or(&mut []);
            let received = fdpass::recv(self.stream.as_fd(), room, &mut fds);
            let fds: Vec<PeerFd> = fds.drain(..).map(|fd| closer.own(fd)).collect();
            let n = match received {
                Ok(0) => return Err(VhostError::Disconnected),
                Ok(n) => n,
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(e) => return Err(VhostError::Connection(e)),
            };
            let bytes = buf.get(..n).unwrap_or(&[]);
            let Some(message) = self.decoder.feed(bytes, fds)? else {
                continue;
            };
            if let Some(reply) = self.session.handle(message, queues)? {
                // Replies are a few words; a socket without room for them has no reader.
                match fdpass::send(self.stream.as_fd(), &reply, &[]) {
                    Ok(n) if n == reply.len() => {}
                    Ok(_) => return Err(VhostError::Stalled),
                    Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                        return Err(VhostError::Stalled);
                    }
                    Err(e) => return Err(VhostError::Connection(e)),
                }
            }
        }
        Ok(())
    }
}

/// The port's queues as the protocol sees them: ring 2n is the guest's receive ring of pair n (we
/// transmit), ring 2n + 1 its transmit ring (we receive).
#[derive(Debug)]
struct Queues {
    port: Arc<Port>,
    /// Of each ring, whether frames may pass by it.
    live: Vec<Arc<AtomicBool>>,
    /// With `log`.
    mem: Arc<GuestMem>,
    log: Option<DirtyLog>,
    features: u64,
    mtu: u16,
    /// The operator's limit.
    mtu_max: u16,
}

impl Queues {
    /// Runs `f` inside the gate of a ring's queue. `None`: no such ring.
    fn with<T>(&self, index: usize, f: impl FnOnce(&mut Queue) -> T) -> Option<T> {
        let pair = index / 2;
        if index.is_multiple_of(2) {
            if let TxQueue::Vhost(tx) = &mut *self.port.txqs.get(pair)?.lock() {
                return Some(tx.queue.change(f));
            }
        } else if let RxQueue::Vhost(rx) = &mut *self.port.rxqs.get(pair)?.lock() {
            return Some(rx.queue.change(f));
        }
        None
    }

    fn rings(&self) -> usize {
        self.port.rxqs.len() * 2
    }

    /// Moves every ring to `mem`; the old memory is unmapped when the last ring has left it.
    fn install(&mut self, mem: GuestMem) -> Result<(), SessionError> {
        self.mem = Arc::new(mem.logged(self.log.clone()));
        let mut first_error = None;
        for index in 0..self.rings() {
            if let Some(Err(error)) = self.with(index, |q| q.move_to(&self.mem)) {
                first_error.get_or_insert(SessionError::Vring { index, error });
            }
        }
        first_error.map_or(Ok(()), Err)
    }

    /// Whether frames may pass by a ring. No worker is kept out to know it.
    fn is_live(&self, index: usize) -> bool {
        let live = self.live.get(index);
        live.is_some_and(|live| live.load(Ordering::Relaxed))
    }

    /// Rings we transmit to, without a gap from the first on.
    fn live_txqs(&self) -> u16 {
        let pairs = 0..self.port.txqs.len();
        let queues = pairs.take_while(|p| self.is_live(p * 2)).count();
        u16::try_from(queues).unwrap_or(u16::MAX)
    }

    fn live_pairs(&self) -> u16 {
        let pairs = 0..self.port.rxqs.len();
        let live = pairs.filter(|p| self.is_live(p * 2) && self.is_live(p * 2 + 1));
        u16::try_from(live.count()).unwrap_or(u16::MAX)
    }

    /// Lets go of everything that came from the peer.
    fn disconnect(&mut self) {
        for index in 0..self.rings() {
            self.with(index, |q| {
                q.stop();
                q.enable(false);
                // Each can only fail to remove what is not there.
                let _ = q.set_kick(None);
                let _ = q.set_call(None);
                let _ = q.set_err(None);
            });
        }
        self.mem = Arc::default();
        self.log = None;
        self.mtu = self.mtu_max;
        self.port.link_up.store(false, Ordering::Relaxed);
    }

    /// Tells the hot paths what was negotiated.
    fn spread(&self) {
        let modern = self.features & (feature::VERSION_1 | feature::MRG_RXBUF) != 0;
        let hdr_bytes = if modern {
            NetHdr::BYTES
        } else {
            NetHdr::LEGACY_BYTES
        };
        for gate in &self.port.rxqs {
            if let RxQueue::Vhost(rx) = &mut *gate.lock() {
                rx.features = self.features;
                rx.hdr_bytes = hdr_bytes;
            }
        }
        for gate in &self.port.txqs {
            if let TxQueue::Vhost(tx) = &mut *gate.lock() {
                tx.features = self.features;
                tx.hdr_bytes = hdr_bytes;
                tx.caps = tx_caps(self.features, self.mtu);
            }
        }
    }
}

impl Device for Queues {
    fn set_memory(&mut self, table: Vec<(RegionSpec, PeerFd)>) -> Result<(), SessionError> {
        self.install(GuestMem::map(&table)?)
    }

    fn add_region(&mut self, spec: RegionSpec, fd: PeerFd) -> Result<(), SessionError> {
        // QEMU 7.2 adds, and removes, every region once for each queue pair.
        if self.mem.has(spec) {
            return Ok(());
        }
        self.install(self.mem.with(spec, &fd)?)
    }

    fn remove_region(&mut self, spec: RegionSpec) -> Result<(), SessionError> {
        if !self.mem.has(spec) {
            return Ok(());
        }
        self.install(self.mem.without(spec)?)
    }

    fn has_memory(&self) -> bool {
        !self.mem.is_empty()
    }

    fn set_log(&mut self, size: u64, offset: u64, fd: PeerFd) -> Result<(), SessionError> {
        self.log = Some(DirtyLog::map(size, offset, fd.as_fd())?);
        self.install(GuestMem::clone(&self.mem))
    }

    fn has_log(&self) -> bool {
        self.log.is_some()
    }

    fn end_log(&mut self) {
        self.log = None;
        self.mem = Arc::new(GuestMem::clone(&self.mem).logged(None));
    }

    fn start(&mut self, index: usize, config: &VringConfig) -> Result<(), RingError> {
        let started = |q: &mut Queue| q.start(config, &self.mem).map(|()| q.broken());
        let broken = self.with(index, started);
        if let Some(error) = broken.unwrap_or(Err(RingError::BadIndex))? {
            tracing::warn!(port = %self.port.name, vring = index, %error, "vring broken");
        }
        Ok(())
    }

    fn stop(&mut self, index: usize) -> Option<u32> {
        self.with(index, Queue::stop).flatten()
    }

    fn enable(&mut self, index: usize, on: bool) {
        self.with(index, |q| q.enable(on));
    }

    fn set_kick(&mut self, index: usize, fd: Option<PeerFd>) -> io::Result<()> {
        self.with(index, |q| q.set_kick(fd)).unwrap_or(Ok(()))
    }

    fn set_call(&mut self, index: usize, fd: Option<PeerFd>) -> io::Result<()> {
        self.with(index, |q| q.set_call(fd)).unwrap_or(Ok(()))
    }

    fn set_err(&mut self, index: usize, fd: Option<PeerFd>) -> io::Result<()> {
        self.with(index, |q| q.set_err(fd)).unwrap_or(Ok(()))
    }

    fn set_features(&mut self, features: u64) {
        self.features = features;
        self.spread();
    }

    fn set_mtu(&mut self, mtu: u16) {
        self.mtu = mtu.min(self.mtu_max);
        self.spread();
    }
}
