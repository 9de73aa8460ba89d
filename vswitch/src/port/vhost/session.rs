//! The vhost-user protocol as a state machine: bytes and descriptors in, calls on a [`Device`] and
//! reply bytes out. No I/O of its own, so it can be driven by tests and fuzzers.
//!
//! Source: QEMU `docs/interop/vhost-user.rst`. Messages are little more than assignments; what
//! matters is when a ring runs: as soon as its size, addresses, kick descriptor, the features and
//! the memory are known, until `GET_VRING_BASE`. (The specification starts it at the first kick;
//! a polling back-end need not wait for one.) Whether frames pass is `SET_VRING_ENABLE`'s matter.
//!
//! A message that cannot be understood ends the connection with a [`SessionError`]; one that is
//! understood but cannot be obeyed is answered with a failure when the front-end asked for an
//! answer, and ends the connection otherwise, because it would go on in a false belief.
//! Descriptors of refused messages are closed by being dropped, see [`PeerFd`].

use std::collections::VecDeque;
use std::io;

use super::guest_mem::{MemError, REGIONS_MAX, RegionSpec};
use super::vring::{RingError, VringConfig};
use crate::sys::closer::PeerFd;
use crate::sys::virtio::feature;
use crate::sys::virtio::vhost_user::{
    FLAG_NEED_REPLY, FLAG_REPLY, HEADER_BYTES, Header, PAYLOAD_MAX, Request, TABLE_REGIONS_MAX,
    VERSION, VRING_NO_FD, protocol,
};

/// Everything we can do, before the port's configuration takes something away.
pub const FEATURES: u64 = feature::VERSION_1
    | feature::MRG_RXBUF
    | feature::INDIRECT_DESC
    | feature::EVENT_IDX
    | feature::RING_PACKED
    | feature::IN_ORDER
    | feature::MQ
    | feature::CSUM
    | feature::GUEST_CSUM
    | feature::HOST_TSO4
    | feature::HOST_TSO6
    | feature::GUEST_TSO4
    | feature::GUEST_TSO6
    | feature::HOST_USO
    | feature::GUEST_USO4
    | feature::GUEST_USO6
    | feature::MTU
    | feature::STATUS
    | feature::GUEST_ANNOUNCE
    | feature::LOG_ALL
    | feature::PROTOCOL_FEATURES;

/// Protocol features we offer.
pub const PROTOCOL_FEATURES: u64 = protocol::MQ
    | protocol::LOG_SHMFD
    | protocol::REPLY_ACK
    | protocol::NET_MTU
    | protocol::RESET_DEVICE
    | protocol::CONFIGURE_MEM_SLOTS
    | protocol::STATUS;

/// Why a connection was ended.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    /// Version bits are not 1, or the reply flag is set.
    #[error("message header flags {0:#x} are not a vhost-user version 1 request")]
    BadFlags(u32),
    /// Longer than any message.
    #[error("message of {0} bytes is too long")]
    TooLong(u32),
    /// A request we do not know and did not offer.
    #[error("unknown request {0}")]
    UnknownRequest(u32),
    /// The payload is not what the request needs.
    #[error("{request:?} with a payload of {bytes} bytes")]
    BadPayload {
        /// Request.
        request: Request,
        /// Bytes that came.
        bytes: usize,
    },
    /// Too few or too many descriptors.
    #[error("{request:?} with {fds} file descriptors")]
    BadFds {
        /// Request.
        request: Request,
        /// Descriptors that came.
        fds: usize,
    },
    /// More descriptors than any request carries.
    #[error("message with {0} file descriptors")]
    TooManyFds(usize),
    /// A ring that does not exist.
    #[error("{request:?} for vring {index}, but there are {vrings}")]
    BadVring {
        /// Request.
        request: Request,
        /// Ring asked for.
        index: u32,
        /// Rings there are.
        vrings: usize,
    },
    /// Features we did not offer.
    #[error("front-end wants features {0:#x} that were not offered")]
    BadFeatures(u64),
    /// The memory cannot be used.
    #[error(transparent)]
    Memory(#[from] MemError),
    /// The ring cannot be used.
    #[error("vring {index}: {error}")]
    Vring {
        /// Ring.
        index: usize,
        /// Why.
        #[source]
        error: RingError,
    },
    /// A descriptor is not of the kind it should be.
    #[error("{request:?} with an unusable file descriptor")]
    BadFd {
        /// Request.
        request: Request,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
}

impl SessionError {
    /// Whether the message was understood, so that a failure reply is an answer to it.
    #[must_use]
    pub fn is_refusal(&self) -> bool {
        match self {
            SessionError::BadFlags(_)
            | SessionError::TooLong(_)
            | SessionError::TooManyFds(_)
            | SessionError::BadPayload { .. }
            | SessionError::BadFds { .. } => false,
            SessionError::UnknownRequest(_)
            | SessionError::BadVring { .. }
            | SessionError::BadFeatures(_)
            | SessionError::Memory(_)
            | SessionError::Vring { .. }
            | SessionError::BadFd { .. } => true,
        }
    }
}

/// What a session acts on: the port's queues and its memory.
pub trait Device {
    /// Replaces the memory; running rings move to it.
    ///
    /// # Errors
    /// The table cannot be used; nothing changed then, except that a ring may have stopped.
    fn set_memory(&mut self, table: Vec<(RegionSpec, PeerFd)>) -> Result<(), SessionError>;
    /// Adds a region.
    ///
    /// # Errors
    /// As [`Device::set_memory`].
    fn add_region(&mut self, spec: RegionSpec, fd: PeerFd) -> Result<(), SessionError>;
    /// Removes a region.
    ///
    /// # Errors
    /// There is none such.
    fn remove_region(&mut self, spec: RegionSpec) -> Result<(), SessionError>;
    /// Whether there is memory.
    fn has_memory(&self) -> bool;
    /// Replaces the dirty log, `size` bytes of a file from `offset` on; running rings move to it.
    ///
    /// # Errors
    /// As [`Device::set_memory`].
    fn set_log(&mut self, size: u64, offset: u64, fd: PeerFd) -> Result<(), SessionError>;
    /// Whether there is a dirty log.
    fn has_log(&self) -> bool;
    /// Lets go of the dirty log. No ring runs.
    fn end_log(&mut self);
    /// Starts a ring.
    ///
    /// # Errors
    /// It cannot be used; the queue counts as broken then.
    fn start(&mut self, index: usize, config: &VringConfig) -> Result<(), RingError>;
    /// Stops a ring, after the worker's last use; where to go on, when it ran.
    fn stop(&mut self, index: usize) -> Option<u32>;
    /// Lets frames pass, or not.
    fn enable(&mut self, index: usize, on: bool);
    /// Who tells us that chains wait.
    ///
    /// # Errors
    /// The descriptor cannot be waited on.
    fn set_kick(&mut self, index: usize, fd: Option<PeerFd>) -> io::Result<()>;
    /// Whom we tell that chains were returned.
    ///
    /// # Errors
    /// The descriptor is unusable.
    fn set_call(&mut self, index: usize, fd: Option<PeerFd>) -> io::Result<()>;
    /// Whom we tell that the ring is broken.
    ///
    /// # Errors
    /// The descriptor is unusable.
    fn set_err(&mut self, index: usize, fd: Option<PeerFd>) -> io::Result<()>;
    /// The negotiated features changed.
    fn set_features(&mut self, features: u64);
    /// The front-end's limit.
    fn set_mtu(&mut self, mtu: u16);
}

/// Cuts a byte stream into messages. The reader asks how much is wanted and never reads beyond
/// it, so that descriptors stay with the message they came with.
#[derive(Debug, Default)]
pub struct Decoder {
    buf: Vec<u8>,
    fds: Vec<PeerFd>,
}

/// A whole message.
#[derive(Debug)]
pub struct Message {
    /// Its header.
    pub header: Header,
    /// Its payload.
    pub payload: Vec<u8>,
    /// Descriptors that came with it.
    pub fds: Vec<PeerFd>,
}

impl Decoder {
    fn header(&self) -> Option<Header> {
        self.buf
            .first_chunk::<HEADER_BYTES>()
            .map(|b| Header::from_bytes(*b))
    }

    /// Bytes still missing to the next step; never 0.
    #[must_use]
    pub fn wanted(&self) -> usize {
        let whole = match self.header() {
            None => HEADER_BYTES,
            Some(h) => HEADER_BYTES + (h.size as usize).min(PAYLOAD_MAX),
        };
        whole.saturating_sub(self.buf.len()).max(1)
    }

    /// Takes at most [`Decoder::wanted`] bytes and any descriptors; returns a message when one is
    /// whole.
    ///
    /// # Errors
    /// The header is not that of a request, or too many descriptors came.
    pub fn feed(
        &mut self,
        bytes: &[u8],
        fds: impl IntoIterator<Item = PeerFd>,
    ) -> Result<Option<Message>, SessionError> {
        self.buf.extend_from_slice(bytes);
        self.fds.extend(fds);
        if self.fds.len() > TABLE_REGIONS_MAX {
            return Err(SessionError::TooManyFds(self.fds.len()));
        }
        let Some(header) = self.header() else {
            return Ok(None);
        };
        if header.flags & 0x3 != VERSION || header.flags & FLAG_REPLY != 0 {
            return Err(SessionError::BadFlags(header.flags));
        }
        let size = header.size as usize;
        if size > PAYLOAD_MAX {
            return Err(SessionError::TooLong(header.size));
        }
        if self.buf.len() < HEADER_BYTES + size {
            return Ok(None);
        }
        let payload = self.buf.split_off(HEADER_BYTES);
        self.buf.clear();
        Ok(Some(Message {
            header,
            payload,
            fds: std::mem::take(&mut self.fds),
        }))
    }
}

/// What the front-end said about one ring.
#[derive(Clone, Copy, Debug, Default)]
struct VringSetup {
    size: Option<u32>,
    /// Descriptors, driver's part, device's part.
    addr: Option<[u64; 3]>,
    base: u32,
    has_kick: bool,
    /// What `SET_VRING_ENABLE` said.
    enabled: bool,
    running: bool,
}

/// One connection's state.
#[derive(Debug)]
pub struct Session {
    offered: u64,
    features: Option<u64>,
    protocol: u64,
    status: u8,
    vrings: Vec<VringSetup>,
}

/// A payload as native words.
fn words<const N: usize>(request: Request, payload: &[u8]) -> Result<[u64; N], SessionError> {
    let mut out = [0; N];
    let mut chunks = payload.chunks_exact(8);
    for to in &mut out {
        let word = chunks.next().and_then(|c| c.first_chunk::<8>());
        *to = u64::from_ne_bytes(*word.ok_or(SessionError::BadPayload {
            request,
            bytes: payload.len(),
        })?);
    }
    if payload.len() != N * 8 {
        let bytes = payload.len();
        return Err(SessionError::BadPayload { request, bytes });
    }
    Ok(out)
}

/// Two halves of a word, in memory order.
fn halves(word: u64) -> (u32, u32) {
    let [a, b, c, d, e, f, g, h] = word.to_ne_bytes();
    (
        u32::from_ne_bytes([a, b, c, d]),
        u32::from_ne_bytes([e, f, g, h]),
    )
}

fn from_halves(first: u32, second: u32) -> u64 {
    let mut bytes = [0; 8];
    let (a, b) = bytes.split_at_mut(4);
    a.copy_from_slice(&first.to_ne_bytes());
    b.copy_from_slice(&second.to_ne_bytes());
    u64::from_ne_bytes(bytes)
}

impl Session {
    /// A fresh connection to a port with `queue_pairs` queue pairs.
    #[must_use]
    pub fn new(queue_pairs: usize, features: u64) -> Self {
        Session {
            offered: features,
            features: None,
            protocol: 0,
            status: 0,
            vrings: vec![VringSetup::default(); queue_pairs * 2],
        }
    }

    /// Features the front-end accepted, once it has.
    #[must_use]
    pub fn features(&self) -> Option<u64> {
        self.features
    }

    /// Obeys one message; returns the reply's bytes when there is one.
    ///
    /// # Errors
    /// The connection must be closed.
    pub fn handle(
        &mut self,
        message: Message,
        device: &mut impl Device,
    ) -> Result<Option<Vec<u8>>, SessionError> {
        let header = message.header;
        let wants_ack =
            header.flags & FLAG_NEED_REPLY != 0 && self.protocol & protocol::REPLY_ACK != 0;
        let Some(request) = Request::from_code(header.request) else {
            let e = SessionError::UnknownRequest(header.request);
            return self.acknowledge(wants_ack, header, Err(e));
        };
        let mut fds = VecDeque::from(message.fds);
        match self.dispatch(request, &message.payload, &mut fds, device) {
            Ok(Some(words)) => Ok(Some(reply(header, &words))),
            Ok(None) => self.acknowledge(wants_ack, header, Ok(())),
            Err(e) => self.acknowledge(wants_ack, header, Err(e)),
        }
    }

    fn acknowledge(
        &self,
        wanted: bool,
        header: Header,
        result: Result<(), SessionError>,
    ) -> Result<Option<Vec<u8>>, SessionError> {
        match result {
            Ok(()) => Ok(wanted.then(|| reply(header, &[0]))),
            Err(e) if wanted && e.is_refusal() => {
                tracing::warn!(error = %e, "vhost-user message refused");
                Ok(Some(reply(header, &[1])))
            }
            Err(e) => Err(e),
        }
    }

    /// Some: the words of the reply the request has by itself.
    fn dispatch(
        &mut self,
        request: Request,
        payload: &[u8],
        fds: &mut VecDeque<PeerFd>,
        device: &mut impl Device,
    ) -> Result<Option<Vec<u64>>, SessionError> {
        let word = || words::<1>(request, payload).map(|[w]| w);
        // Only these carry descriptors; the others' are refused.
        let carries = matches!(
            request,
            Request::SetMemTable
                | Request::AddMemReg
                | Request::RemMemReg
                | Request::SetLogBase
                | Request::SetLogFd
                | Request::SetVringKick
                | Request::SetVringCall
                | Request::SetVringErr
                | Request::SetBackendReqFd
        );
        if !carries && !fds.is_empty() {
            let fds = fds.len();
            return Err(SessionError::BadFds { request, fds });
        }
        match request {
            Request::GetFeatures => return Ok(Some(vec![self.offered])),
            Request::SetFeatures => self.set_features(word()?, device)?,
            Request::GetProtocolFeatures => return Ok(Some(vec![PROTOCOL_FEATURES])),
            Request::SetProtocolFeatures => {
                let wanted = word()?;
                if wanted & !PROTOCOL_FEATURES != 0 {
                    return Err(SessionError::BadFeatures(wanted));
                }
                self.protocol = wanted;
            }
            Request::SetOwner => {}
            Request::ResetOwner | Request::ResetDevice => self.reset(device),
            Request::GetQueueNum => {
                return Ok(Some(vec![(self.vrings.len() / 2) as u64]));
            }
            Request::SetMemTable => {
                device.set_memory(mem_table(payload, fds)?)?;
                self.settle_all(device)?;
            }
            Request::GetMaxMemSlots => return Ok(Some(vec![REGIONS_MAX as u64])),
            Request::AddMemReg => {
                let spec = single_region(request, payload)?;
                let fd = one_fd(request, fds)?;
                device.add_region(spec, fd)?;
                self.settle_all(device)?;
            }
            // A descriptor may come along (older QEMU sends one); it is closed.
            Request::RemMemReg => device.remove_region(single_region(request, payload)?)?,
            Request::SetLogBase => {
                let [size, offset] = words::<2>(request, payload)?;
                device.set_log(size, offset, one_fd(request, fds)?)?;
                self.settle_all(device)?;
                return Ok(Some(vec![0]));
            }
            // We have nothing to say about the log: the descriptor is closed.
            Request::SetLogFd => drop(one_fd(request, fds)?),
            Request::SetVringNum => {
                let (index, size) = halves(word()?);
                let vring = self.halt(request, index, device)?;
                vring.size = Some(size);
                self.settle(index as usize, device)?;
            }
            Request::SetVringAddr => {
                // The used ring's address for the log is not needed: what we write is found in the regions.
                let [head, desc, used, avail, _log] = words::<5>(request, payload)?;
                let (index, _flags) = halves(head);
                let vring = self.halt(request, index, device)?;
                vring.addr = Some([desc, avail, used]);
                self.settle(index as usize, device)?;
            }
            Request::SetVringBase => {
                let (index, base) = halves(word()?);
                let vring = self.halt(request, index, device)?;
                vring.base = base;
                self.settle(index as usize, device)?;
            }
            Request::GetVringBase => {
                let (index, _zero) = halves(word()?);
                let vring = self.halt(request, index, device)?;
                vring.has_kick = false;
                let base = vring.base;
                device
                    .set_kick(index as usize, None)
                    .map_err(|source| SessionError::BadFd { request, source })?;
                // With its last ring stops the device. QEMU reads the log once more then and frees it; when it starts the
                // device again during one migration, it gives the next log last, after the rings.
                if self.vrings.iter().all(|vring| !vring.running) {
                    device.end_log();
                }
                return Ok(Some(vec![from_halves(index, base)]));
            }
            Request::SetVringKick | Request::SetVringCall | Request::SetVringErr => {
                self.set_vring_fd(request, word()?, fds, device)?;
            }
            Request::SetVringEnable => {
                let (index, on) = halves(word()?);
                self.vring(request, index)?.enabled = on != 0;
                self.enable(index as usize, device);
            }
            // Announced to us only, for a network that learns; ours learns from frames.
            Request::SendRarp => drop(word()?),
            Request::NetSetMtu => {
                let mtu = word()?;
                let mtu = u16::try_from(mtu).map_err(|_e| SessionError::BadPayload {
                    request,
                    bytes: payload.len(),
                })?;
                device.set_mtu(mtu);
            }
            // We have no requests of our own: the channel is closed.
            Request::SetBackendReqFd => drop(one_fd(request, fds)?),
            #[allow(clippy::cast_possible_truncation)] // a status is one byte
            Request::SetStatus => self.status = word()? as u8,
            Request::GetStatus => return Ok(Some(vec![u64::from(self.status)])),
        }
        Ok(None)
    }

    fn vring(&mut self, request: Request, index: u32) -> Result<&mut VringSetup, SessionError> {
        let vrings = self.vrings.len();
        self.vrings
            .get_mut(index as usize)
            .ok_or(SessionError::BadVring {
                request,
                index,
                vrings,
            })
    }

    /// The ring, stopped: its description is about to change.
    fn halt(
        &mut self,
        request: Request,
        index: u32,
        device: &mut impl Device,
    ) -> Result<&mut VringSetup, SessionError> {
        let vring = self.vring(request, index)?;
        if vring.running {
            vring.running = false;
            if let Some(base) = device.stop(index as usize) {
                vring.base = base;
            }
        }
        Ok(vring)
    }

    /// Starts the ring when all is known about it.
    fn settle(&mut self, index: usize, device: &mut impl Device) -> Result<(), SessionError> {
        let (Some(features), Some(vring)) = (self.features, self.vrings.get_mut(index)) else {
            return Ok(());
        };
        let (Some(size), Some([desc, driver, device_part])) = (vring.size, vring.addr) else {
            return Ok(());
        };
        if vring.running || !vring.has_kick || !device.has_memory() {
            return Ok(());
        }
        // QEMU gives the log last, and a page that was written before it would not be copied.
        if features & feature::LOG_ALL != 0 && !device.has_log() {
            return Ok(());
        }
        let config = VringConfig {
            size,
            desc,
            driver,
            device: device_part,
            base: vring.base,
            features,
        };
        device
            .start(index, &config)
            .map_err(|error| SessionError::Vring { index, error })?;
        vring.running = true;
        Ok(())
    }

    fn settle_all(&mut self, device: &mut impl Device) -> Result<(), SessionError> {
        (0..self.vrings.len()).try_for_each(|i| self.settle(i, device))
    }

    /// Tells the device whether frames pass: without protocol features, a ring is enabled from
    /// the start.
    fn enable(&self, index: usize, device: &mut impl Device) {
        let by_default = self
            .features
            .is_some_and(|f| f & feature::PROTOCOL_FEATURES == 0);
        if let Some(vring) = self.vrings.get(index) {
            device.enable(index, vring.enabled || by_default);
        }
    }

    fn set_features(&mut self, wanted: u64, device: &mut impl Device) -> Result<(), SessionError> {
        if wanted & !self.offered != 0 {
            return Err(SessionError::BadFeatures(wanted & !self.offered));
        }
        if self.features != Some(wanted) {
            self.features = Some(wanted);
            for index in 0..self.vrings.len() {
                #[allow(clippy::cast_possible_truncation)] // at most 32 rings
                self.halt(Request::SetFeatures, index as u32, device)?;
            }
            device.set_features(wanted);
        }
        for index in 0..self.vrings.len() {
            self.enable(index, device);
        }
        self.settle_all(device)
    }

    fn set_vring_fd(
        &mut self,
        request: Request,
        word: u64,
        fds: &mut VecDeque<PeerFd>,
        device: &mut impl Device,
    ) -> Result<(), SessionError> {
        let index = (word & 0xff) as u32;
        self.vring(request, index)?;
        let fd = if word & VRING_NO_FD == 0 {
            Some(one_fd(request, fds)?)
        } else if fds.is_empty() {
            None
        } else {
            let fds = fds.len();
            return Err(SessionError::BadFds { request, fds });
        };
        let at = index as usize;
        let done = match request {
            Request::SetVringKick => device.set_kick(at, fd),
            Request::SetVringCall => device.set_call(at, fd),
            _ => device.set_err(at, fd),
        };
        done.map_err(|source| SessionError::BadFd { request, source })?;
        if request == Request::SetVringKick {
            self.vring(request, index)?.has_kick = true;
            self.settle(at, device)?;
        }
        Ok(())
    }

    fn reset(&mut self, device: &mut impl Device) {
        for (index, vring) in self.vrings.iter_mut().enumerate() {
            device.stop(index);
            device.enable(index, false);
            // Removing a descriptor that epoll holds cannot fail; closing it would do too.
            let _ = device.set_kick(index, None);
            *vring = VringSetup::default();
        }
        device.end_log();
        self.features = None;
        self.status = 0;
    }
}

fn reply(header: Header, words: &[u64]) -> Vec<u8> {
    #[allow(clippy::cast_possible_truncation)] // a few words
    let size = (words.len() * 8) as u32;
    let header = Header {
        request: header.request,
        flags: VERSION | FLAG_REPLY,
        size,
    };
    let mut out = header.to_bytes().to_vec();
    for w in words {
        out.extend_from_slice(&w.to_ne_bytes());
    }
    out
}

fn one_fd(request: Request, fds: &mut VecDeque<PeerFd>) -> Result<PeerFd, SessionError> {
    let count = fds.len();
    match (fds.pop_front(), count) {
        (Some(fd), 1) => Ok(fd),
        _ => Err(SessionError::BadFds {
            request,
            fds: count,
        }),
    }
}

fn region(words: [u64; 4]) -> RegionSpec {
    let [guest, size, front_end, offset] = words;
    RegionSpec {
        guest,
        size,
        front_end,
        offset,
    }
}

/// Padding, then one region.
fn single_region(request: Request, payload: &[u8]) -> Result<RegionSpec, SessionError> {
    let [_padding, a, b, c, d] = words::<5>(request, payload)?;
    Ok(region([a, b, c, d]))
}

/// A count, padding, and that many regions; front-ends may send unused entries behind.
fn mem_table(
    payload: &[u8],
    fds: &mut VecDeque<PeerFd>,
) -> Result<Vec<(RegionSpec, PeerFd)>, SessionError> {
    let request = Request::SetMemTable;
    let bad = SessionError::BadPayload {
        request,
        bytes: payload.len(),
    };
    let Some((head, rest)) = payload.split_at_checked(8) else {
        return Err(bad);
    };
    let [head] = words::<1>(request, head)?;
    let count = halves(head).0 as usize;
    if count > TABLE_REGIONS_MAX || rest.len() < count * 32 {
        return Err(bad);
    }
    if fds.len() != count {
        return Err(SessionError::BadFds {
            request,
            fds: fds.len(),
        });
    }
    rest.chunks_exact(32)
        .zip(fds.drain(..))
        .map(|(entry, fd)| Ok((region(words::<4>(request, entry)?), fd)))
        .collect()
}
