//! A guest of our own: a virtio-net *driver* over a vhost-user front-end, in this process or
//! another. It exists for demo, tests and benches; the data path never imports it.
//!
//! [`Guest::connect`] (or [`Guest::accept`]) shares a memfd with the back-end, negotiates
//! [`GuestConfig`] and sets up its queue pairs. Each [`GuestQueue`] then sends and receives in
//! batches without allocation, and can be moved to a thread of its own. After the back-end's death
//! [`Guest::reconnect`] goes on with the same memory and rings.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::sys::epoll::{Epoll, Event, Interest};
use crate::sys::eventfd::EventFd;
use crate::sys::fdpass;
use crate::sys::memfd::memfd;
use crate::sys::mmap::Mapping;
use crate::sys::unix::{self, Listener};
use crate::sys::virtio::vhost_user::{
    FLAG_NEED_REPLY, FLAG_REPLY, HEADER_BYTES, Header, Request, VERSION, protocol,
};
pub use crate::sys::virtio::{NetHdr, feature};

mod memory;
mod ring;

use memory::Memory;
use ring::DriverRing;

/// Bytes of a long frame's end that [`GuestQueue::recv_ends`] copies.
pub const TAIL: usize = 8;
/// How long a back-end may take to answer. It answers from a control loop, at once.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// What the guest is like.
#[derive(Clone, Debug)]
pub struct GuestConfig {
    /// Queue pairs.
    pub queue_pairs: u16,
    /// Entries per ring; a power of two unless packed.
    pub ring_size: u16,
    /// Features wanted; those the back-end lacks are not used.
    pub features: u64,
    /// Bytes of each buffer, header included: the longest frame to send, plus 12.
    pub buf_bytes: usize,
    /// The same of the buffers to send from, where they are others; then `buf_bytes` is of those to receive into.
    pub send_buf_bytes: Option<usize>,
    /// Descriptors each buffer is cut into: 1, or the header's and the rest's.
    pub pieces: usize,
    /// Use indirect tables.
    pub indirect: bool,
    /// Use 2 MiB pages.
    pub huge: bool,
}

impl Default for GuestConfig {
    /// One pair of 256 entries, mergeable, all checksum and TCP offloads, 2 KiB buffers.
    fn default() -> Self {
        GuestConfig {
            queue_pairs: 1,
            ring_size: 256,
            features: feature::VERSION_1
                | feature::MRG_RXBUF
                | feature::EVENT_IDX
                | feature::CSUM
                | feature::GUEST_CSUM
                | feature::HOST_TSO4
                | feature::HOST_TSO6
                | feature::GUEST_TSO4
                | feature::GUEST_TSO6,
            buf_bytes: 2048,
            send_buf_bytes: None,
            pieces: 1,
            indirect: false,
            huge: false,
        }
    }
}

impl GuestConfig {
    /// Of a ring that the device writes to, or reads.
    fn bytes_of_buffer(&self, device_writes: bool) -> usize {
        match self.send_buf_bytes {
            Some(bytes) if !device_writes => bytes,
            _ => self.buf_bytes,
        }
    }
}

/// Why the guest cannot be.
#[derive(Debug, thiserror::Error)]
pub enum GuestError {
    /// Settings that do not fit together.
    #[error("guest configuration: bad {0}")]
    BadConfig(&'static str),
    /// The back-end has fewer queue pairs.
    #[error("the back-end has {0} queue pairs only")]
    TooFewQueues(u64),
    /// The back-end refused a message.
    #[error("the back-end refused {0:?}")]
    Refused(Request),
    /// The back-end answered something else.
    #[error("the back-end's answer to {0:?} makes no sense")]
    BadAnswer(Request),
    /// Socket or memory.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// See the module documentation.
#[derive(Debug)]
pub struct Guest {
    config: GuestConfig,
    memory: Memory,
    socket: UnixStream,
    features: u64,
    queues: Vec<GuestQueue>,
}

/// One queue pair.
#[derive(Debug)]
pub struct GuestQueue {
    rx: Side,
    tx: Side,
    wake: Epoll,
    /// The frame whose last buffers have not come yet.
    partial: Partial,
    /// Kicks sent so far.
    kicks: u64,
}

/// A frame of which some buffers came.
#[derive(Debug, Default)]
struct Partial {
    hdr: NetHdr,
    /// What is kept of it.
    bytes: Vec<u8>,
    /// Its length so far.
    len: usize,
    /// Buffers that are missing.
    missing: u16,
}

#[derive(Debug)]
struct Side {
    ring: DriverRing,
    kick: EventFd,
    call: EventFd,
}

impl Guest {
    /// Connects to a back-end that listens.
    ///
    /// # Errors
    /// See [`GuestError`].
    pub fn connect(path: &Path, config: GuestConfig) -> Result<Self, GuestError> {
        Self::over(unix::connect(path)?, config)
    }

    /// Waits for a back-end that connects.
    ///
    /// # Errors
    /// See [`GuestError`].
    pub fn accept(listener: &GuestListener, config: GuestConfig) -> Result<Self, GuestError> {
        Self::over(listener.accept()?, config)
    }

    /// Starts a guest over a connected socket.
    ///
    /// # Errors
    /// See [`GuestError`].
    pub fn over(socket: UnixStream, config: GuestConfig) -> Result<Self, GuestError> {
        let packed = config.features & feature::RING_PACKED != 0;
        if config.ring_size == 0 || (!packed && !config.ring_size.is_power_of_two()) {
            return Err(GuestError::BadConfig("ring_size"));
        }
        if config.pieces == 0 || (!config.indirect && config.pieces > usize::from(config.ring_size))
        {
            return Err(GuestError::BadConfig("pieces"));
        }
        for side in [true, false] {
            if config.bytes_of_buffer(side) < NetHdr::BYTES + config.pieces {
                return Err(GuestError::BadConfig("buf_bytes"));
            }
        }
        let mut frontend = FrontEnd { socket: &socket };
        let features = frontend.negotiate(&config)?;
        if packed != (features & feature::RING_PACKED != 0) {
            return Err(GuestError::BadConfig("features: no packed rings there"));
        }
        if config.indirect && features & feature::INDIRECT_DESC == 0 {
            return Err(GuestError::BadConfig("indirect"));
        }
        let event_idx = features & feature::EVENT_IDX != 0;
        let pairs = usize::from(config.queue_pairs);
        let bytes = DriverRing::bytes(&config, true) + DriverRing::bytes(&config, false);
        let mut memory = Memory::new(pairs * bytes, config.huge)?;
        let mut queues = Vec::with_capacity(pairs);
        for _ in 0..pairs {
            let mut side = |device_writes| -> Result<Side, GuestError> {
                Ok(Side {
                    ring: DriverRing::new(&config, packed, device_writes, event_idx, &mut memory)?,
                    kick: EventFd::new()?,
                    call: EventFd::new()?,
                })
            };
            let (rx, tx) = (side(true)?, side(false)?);
            let wake = Epoll::new()?;
            wake.add(rx.call.fd(), 0, Interest::READ)?;
            let mut queue = GuestQueue {
                rx,
                tx,
                wake,
                partial: Partial {
                    bytes: Vec::with_capacity(1 << 17),
                    ..Partial::default()
                },
                kicks: 0,
            };
            queue.offer_buffers(config.buf_bytes);
            queues.push(queue);
        }
        frontend.start(&memory, &queues, None)?;
        Ok(Guest {
            config,
            memory,
            socket,
            features,
            queues,
        })
    }

    /// Goes on with another back-end (or the same, restarted): same memory, same rings.
    ///
    /// # Errors
    /// See [`GuestError`]; also when it lacks a feature that was in use.
    pub fn reconnect(&mut self, socket: UnixStream) -> Result<(), GuestError> {
        self.reconnect_at(socket, None)
    }

    /// As [`Guest::reconnect_to`], as QEMU does it with packed rings when its back-end died: it says
    /// `base` of every ring, whatever has happened since.
    ///
    /// # Errors
    /// As there.
    pub fn reconnect_replaying(&mut self, path: &Path, base: u32) -> Result<(), GuestError> {
        self.reconnect_at(unix::connect(path)?, Some(base))
    }

    fn reconnect_at(&mut self, socket: UnixStream, base: Option<u32>) -> Result<(), GuestError> {
        let mut frontend = FrontEnd { socket: &socket };
        if frontend.negotiate(&self.config)? != self.features {
            return Err(GuestError::BadConfig("features: fewer than before"));
        }
        frontend.start(&self.memory, &self.queues, base)?;
        self.socket = socket;
        Ok(())
    }

    /// As [`Guest::reconnect`], to a back-end that listens.
    ///
    /// # Errors
    /// As there.
    pub fn reconnect_to(&mut self, path: &Path) -> Result<(), GuestError> {
        self.reconnect(unix::connect(path)?)
    }

    /// Whether the back-end is still there.
    #[must_use]
    pub fn is_connected(&self) -> bool {
        let mut byte = [0u8; 1];
        match fdpass::recv(self.socket.as_fd(), &mut byte, &mut Vec::new()) {
            Ok(n) => n > 0,
            Err(e) => e.kind() == io::ErrorKind::WouldBlock,
        }
    }

    /// Stops every ring as a driver that is unloaded does; frames not yet taken stay in the rings.
    ///
    /// # Errors
    /// See [`GuestError`].
    pub fn stop(&mut self) -> Result<(), GuestError> {
        let mut frontend = FrontEnd {
            socket: &self.socket,
        };
        for index in 0..self.queues.len() * 2 {
            frontend.ask(Request::GetVringBase, &[index as u64], &[])?;
        }
        Ok(())
    }

    /// Starts the rings again after [`Guest::stop`].
    ///
    /// # Errors
    /// See [`GuestError`].
    pub fn restart(&mut self) -> Result<(), GuestError> {
        FrontEnd {
            socket: &self.socket,
        }
        .start(&self.memory, &self.queues, None)
    }

    /// As where live migration begins: from now on the back-end marks what it writes, with a bit for each 4096 bytes of
    /// [`Guest::raw_memory`], in the memory that is returned.
    ///
    /// # Errors
    /// See [`GuestError`].
    pub fn log_writes(&mut self) -> Result<Mapping, GuestError> {
        let bytes = (self.memory.bytes() / 4096)
            .div_ceil(8)
            .next_multiple_of(4096);
        let fd = memfd(c"vswitch-guest-log", bytes, false)?;
        let log = Mapping::shared(fd.as_fd(), 0, bytes)?;
        let mut frontend = FrontEnd {
            socket: &self.socket,
        };
        frontend.ask(Request::SetLogBase, &[bytes as u64, 0], &[fd.as_raw_fd()])?;
        let features = self.features | feature::LOG_ALL;
        frontend.command(Request::SetFeatures, &[features], &[])?;
        Ok(log)
    }

    /// What was negotiated.
    #[must_use]
    pub fn features(&self) -> u64 {
        self.features
    }

    /// The queue pairs, for one thread each if wanted.
    pub fn queues_mut(&mut self) -> &mut [GuestQueue] {
        &mut self.queues
    }

    /// One queue pair.
    pub fn queue(&mut self, index: usize) -> Option<&mut GuestQueue> {
        self.queues.get_mut(index)
    }

    /// The shared memory, for tests that play a hostile guest: address and bytes. The addresses in
    /// [`GuestQueue::ring_addresses`] lie in it.
    #[must_use]
    pub fn raw_memory(&self) -> (*mut u8, usize) {
        (self.memory.as_ptr(), self.memory.bytes())
    }

    /// The descriptor behind [`Guest::raw_memory`].
    #[must_use]
    pub fn memory_fd(&self) -> RawFd {
        self.memory.fd()
    }
}

/// A socket that a back-end in client mode connects to.
#[derive(Debug)]
pub struct GuestListener(Listener);

impl GuestListener {
    /// Listens at `path`, which must not exist.
    ///
    /// # Errors
    /// What bind(2) says.
    pub fn bind(path: &Path) -> io::Result<Self> {
        Listener::bind(path, 0o600, None).map(GuestListener)
    }

    /// Waits for a connection.
    ///
    /// # Errors
    /// What accept(2) says.
    pub fn accept(&self) -> io::Result<UnixStream> {
        self.accept_before(-1)
    }

    /// Waits for a connection, no longer than that.
    ///
    /// # Errors
    /// What accept(2) says; `TimedOut`.
    pub fn accept_within(&self, time: Duration) -> io::Result<UnixStream> {
        self.accept_before(i32::try_from(time.as_millis()).unwrap_or(i32::MAX))
    }

    fn accept_before(&self, ms: i32) -> io::Result<UnixStream> {
        let set = Epoll::new()?;
        set.add(self.0.as_raw_fd(), 0, Interest::READ)?;
        loop {
            match self.0.accept() {
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                    if set.wait(&mut [Event::EMPTY; 1], ms)? == 0 {
                        return Err(io::ErrorKind::TimedOut.into());
                    }
                }
                other => return other,
            }
        }
    }
}

impl GuestQueue {
    /// Sends as many of `frames` as there is room for, in order; returns how many.
    #[inline]
    pub fn send(&mut self, frames: &[(NetHdr, &[u8])]) -> usize {
        let fits = |&&(ref hdr, frame): &&(NetHdr, &[u8])| self.push(hdr, frame);
        let sent = frames.iter().take_while(fits).count();
        self.flush();
        sent
    }

    /// Puts a frame into the ring, if there is room; the back-end sees it after
    /// [`GuestQueue::flush`].
    #[inline]
    pub fn push(&mut self, hdr: &NetHdr, frame: &[u8]) -> bool {
        self.push_head(hdr, frame, frame.len())
    }

    /// As [`GuestQueue::push`], a frame of `len` bytes of which only `head` is written: what follows is what its buffer held
    /// before, which [`GuestQueue::fill`] wrote.
    #[inline]
    pub fn push_head(&mut self, hdr: &NetHdr, head: &[u8], len: usize) -> bool {
        let ring = &mut self.tx.ring;
        if ring.free() == 0 {
            while ring.take_used().is_some() {}
        }
        let Some(slot) = ring.next_free() else {
            return false;
        };
        let at = ring.at(slot);
        ring.buffers().write(at, &hdr.to_bytes());
        ring.buffers().write(at + NetHdr::BYTES, head);
        ring.offer(NetHdr::BYTES + len);
        true
    }

    /// Writes a frame into every buffer to send from, and sends nothing.
    pub fn fill(&mut self, frame: &[u8]) {
        let ring = &mut self.tx.ring;
        for slot in 0..ring.slot_count() {
            let at = ring.at(slot);
            ring.buffers().write(at + NetHdr::BYTES, frame);
        }
    }

    /// Shows the back-end what was pushed.
    #[inline]
    pub fn flush(&mut self) {
        if self.tx.ring.publish() {
            self.tx.kick.signal();
            self.kicks += 1;
        }
    }

    /// Frames handed to the back-end and not yet returned.
    #[must_use]
    pub fn unsent(&mut self) -> usize {
        let ring = &mut self.tx.ring;
        while ring.take_used().is_some() {}
        let slots = usize::from(ring.size()) / ring.descs_per_slot();
        slots - ring.free()
    }

    /// Receives at most `max` frames; `sink` sees each, copied out of shared memory. Returns how
    /// many. Buffers go back at once.
    #[inline]
    pub fn recv(&mut self, max: usize, mut sink: impl FnMut(&NetHdr, &[u8])) -> usize {
        self.recv_ends(max, usize::MAX, |hdr, bytes, _| sink(hdr, bytes))
    }

    /// As [`GuestQueue::recv`], but of longer frames only the first `head` bytes and the last [`TAIL`] are copied;
    /// `sink` sees these, and the frame's length.
    #[inline]
    pub fn recv_ends(
        &mut self,
        max: usize,
        head: usize,
        mut sink: impl FnMut(&NetHdr, &[u8], usize),
    ) -> usize {
        let ring = &mut self.rx.ring;
        let frame = &mut self.partial;
        let mut received = 0;
        while received < max {
            let Some((slot, len)) = ring.take_used() else {
                break;
            };
            let at = ring.at(slot);
            let mut len = (len as usize).min(ring.buf_bytes());
            let mut from = at;
            if frame.missing == 0 {
                if len < NetHdr::BYTES {
                    // Nothing in it: what a device was filling when it died.
                    continue;
                }
                frame.bytes.clear();
                frame.len = 0;
                let mut raw = [0; NetHdr::BYTES];
                ring.buffers().read(at, &mut raw);
                frame.hdr = NetHdr::from_bytes(raw);
                frame.missing = frame.hdr.num_buffers.max(1);
                from += NetHdr::BYTES;
                len -= NetHdr::BYTES;
            }
            frame.len += len;
            let first = head.saturating_sub(frame.bytes.len()).min(len);
            ring.buffers().append_to(from, first, &mut frame.bytes);
            let last = (len - first).min(TAIL);
            if last > 0 {
                let kept = frame.bytes.len().saturating_sub(head).min(TAIL - last);
                let end = frame.bytes.len() - kept;
                frame.bytes.drain(head..end);
                ring.buffers()
                    .append_to(from + len - last, last, &mut frame.bytes);
            }
            frame.missing -= 1;
            if frame.missing == 0 {
                sink(&frame.hdr, &frame.bytes, frame.len);
                received += 1;
            }
        }
        let len = ring.buf_bytes();
        self.offer_buffers(len);
        received
    }

    /// Offers every free receive buffer.
    fn offer_buffers(&mut self, bytes: usize) {
        let ring = &mut self.rx.ring;
        while ring.free() > 0 {
            ring.offer(bytes);
        }
        if ring.publish() {
            self.rx.kick.signal();
            self.kicks += 1;
        }
    }

    /// Blocks until a frame waits or the time is over; says whether one does.
    ///
    /// # Errors
    /// What epoll_wait(2) says.
    pub fn wait(&mut self, timeout: Duration) -> io::Result<bool> {
        let until = Instant::now() + timeout;
        self.rx.ring.want_calls(true);
        let waits = loop {
            if self.rx.ring.has_used() {
                break true;
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break false;
            }
            let ms = i32::try_from(left.as_nanos().div_ceil(1_000_000)).unwrap_or(i32::MAX);
            self.wake.wait(&mut [Event::EMPTY; 1], ms)?;
            // It may have come late, for what was taken before it.
            self.rx.call.drain();
        };
        self.rx.ring.want_calls(false);
        self.rx.call.drain();
        Ok(waits)
    }

    /// Kicks sent so far.
    #[must_use]
    pub fn kicks(&self) -> u64 {
        self.kicks
    }

    /// For hostile tests: addresses in this process of descriptors, device's and driver's part of
    /// the receive ring, then of the transmit ring.
    #[must_use]
    pub fn ring_addresses(&self) -> [[u64; 3]; 2] {
        [self.rx.ring.addresses(), self.tx.ring.addresses()]
    }

    /// For hostile tests: kicks the transmit ring whatever the back-end wishes.
    pub fn force_kick(&self) {
        self.tx.kick.signal();
    }
}

/// The front-end's half of the protocol.
struct FrontEnd<'a> {
    socket: &'a UnixStream,
}

impl FrontEnd<'_> {
    fn negotiate(&mut self, config: &GuestConfig) -> Result<u64, GuestError> {
        self.socket.set_nonblocking(true)?;
        let offered = self.ask(Request::GetFeatures, &[], &[])?;
        self.tell(Request::SetOwner, &[], &[])?;
        let features = offered & (config.features | feature::PROTOCOL_FEATURES);
        if features & feature::PROTOCOL_FEATURES == 0 {
            return Err(GuestError::BadAnswer(Request::GetFeatures));
        }
        let known = protocol::MQ | protocol::REPLY_ACK | protocol::LOG_SHMFD;
        let offered = self.ask(Request::GetProtocolFeatures, &[], &[])?;
        if offered & protocol::REPLY_ACK == 0 {
            return Err(GuestError::BadAnswer(Request::GetProtocolFeatures));
        }
        self.tell(Request::SetProtocolFeatures, &[offered & known], &[])?;
        if offered & protocol::MQ != 0 {
            let pairs = self.ask(Request::GetQueueNum, &[], &[])?;
            if pairs < u64::from(config.queue_pairs) {
                return Err(GuestError::TooFewQueues(pairs));
            }
        }
        self.command(Request::SetFeatures, &[features], &[])?;
        Ok(features)
    }

    /// Describes every ring and starts it at `base`, or where the driver sees it.
    fn start(
        &mut self,
        memory: &Memory,
        queues: &[GuestQueue],
        base: Option<u32>,
    ) -> Result<(), GuestError> {
        let region = [1, 0, memory.bytes() as u64, memory.front_end(), 0];
        self.command(Request::SetMemTable, &region, &[memory.fd()])?;
        let sides = queues.iter().flat_map(|q| [&q.rx, &q.tx]);
        for (index, side) in sides.enumerate() {
            let i = index as u64;
            // Index and value are two native 32-bit words.
            let pair = |value: u32| {
                let mut bytes = [0; 8];
                let (a, b) = bytes.split_at_mut(4);
                a.copy_from_slice(&u32::try_from(i).unwrap_or(0).to_ne_bytes());
                b.copy_from_slice(&value.to_ne_bytes());
                u64::from_ne_bytes(bytes)
            };
            let [desc, used, avail] = side.ring.addresses();
            self.tell(Request::SetVringNum, &[pair(side.ring.size().into())], &[])?;
            let base = base.unwrap_or_else(|| side.ring.base());
            self.tell(Request::SetVringBase, &[pair(base)], &[])?;
            self.tell(Request::SetVringAddr, &[pair(0), desc, used, avail, 0], &[])?;
            self.tell(Request::SetVringCall, &[i], &[side.call.fd()])?;
            self.command(Request::SetVringKick, &[i], &[side.kick.fd()])?;
            self.command(Request::SetVringEnable, &[pair(1)], &[])?;
        }
        // DPDK acknowledges first and starts the device then: with the answer to one more question it has.
        self.ask(Request::GetFeatures, &[], &[])?;
        Ok(())
    }

    fn write(
        &mut self,
        request: Request,
        flags: u32,
        words: &[u64],
        fds: &[RawFd],
    ) -> Result<(), GuestError> {
        let size = u32::try_from(words.len() * 8).map_err(|_e| GuestError::BadConfig("message"))?;
        let header = Header {
            request: request as u32,
            flags: VERSION | flags,
            size,
        };
        let mut bytes = header.to_bytes().to_vec();
        for w in words {
            bytes.extend_from_slice(&w.to_ne_bytes());
        }
        let sent = fdpass::send(self.socket.as_fd(), &bytes, fds)?;
        if sent == bytes.len() {
            Ok(())
        } else {
            Err(io::Error::from(io::ErrorKind::WriteZero).into())
        }
    }

    /// A request without an answer.
    fn tell(&mut self, request: Request, words: &[u64], fds: &[RawFd]) -> Result<(), GuestError> {
        self.write(request, 0, words, fds)
    }

    /// A request that is acknowledged.
    fn command(
        &mut self,
        request: Request,
        words: &[u64],
        fds: &[RawFd],
    ) -> Result<(), GuestError> {
        self.write(request, FLAG_NEED_REPLY, words, fds)?;
        match self.answer(request)? {
            0 => Ok(()),
            _ => Err(GuestError::Refused(request)),
        }
    }

    /// A request with an answer of its own.
    fn ask(&mut self, request: Request, words: &[u64], fds: &[RawFd]) -> Result<u64, GuestError> {
        self.write(request, 0, words, fds)?;
        self.answer(request)
    }

    fn answer(&mut self, request: Request) -> Result<u64, GuestError> {
        let mut header = [0; HEADER_BYTES];
        self.read(&mut header)?;
        let header = Header::from_bytes(header);
        let mut word = [0; 8];
        if header.request != request as u32 || header.flags & FLAG_REPLY == 0 || header.size != 8 {
            return Err(GuestError::BadAnswer(request));
        }
        self.read(&mut word)?;
        Ok(u64::from_ne_bytes(word))
    }

    fn read(&mut self, mut to: &mut [u8]) -> Result<(), GuestError> {
        let set = Epoll::new()?;
        set.add(self.socket.as_raw_fd(), 0, Interest::READ)?;
        let mut fds: Vec<OwnedFd> = Vec::new();
        while !to.is_empty() {
            match fdpass::recv(self.socket.as_fd(), to, &mut fds) {
                Ok(0) => return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()),
                Ok(n) => to = to.get_mut(n..).unwrap_or(&mut []),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                    let ms = i32::try_from(ANSWER_TIMEOUT.as_millis()).unwrap_or(i32::MAX);
                    if set.wait(&mut [Event::EMPTY; 1], ms)? == 0 {
                        return Err(io::Error::from(io::ErrorKind::TimedOut).into());
                    }
                }
                Err(e) => return Err(e.into()),
            }
        }
        Ok(())
    }
}
