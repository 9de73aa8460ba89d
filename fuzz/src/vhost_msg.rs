//! A front-end that says anything: never a panic, and the device is only asked for what the
//! protocol's rules allow.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::LazyLock;

use vswitch::guest::feature;
use vswitch::port::vhost::guest_mem::{DirtyLog, GuestMem, RegionSpec};
use vswitch::port::vhost::session::{Decoder, Device, FEATURES, Session, SessionError};
use vswitch::port::vhost::{RingError, VringConfig};
use vswitch::sys::closer::{Closer, PeerFd};
use vswitch::sys::memfd::memfd;
use vswitch::sys::virtio::vhost_user::Request;

const PAIRS: usize = 2;

/// What stops a device whole.
const RESETS: [u32; 2] = [Request::ResetOwner as u32, Request::ResetDevice as u32];

/// One for all inputs: a thread for each would be most of the work.
static CLOSER: LazyLock<Option<Closer>> = LazyLock::new(|| Closer::new().ok());

/// A device that knows what it was asked for.
#[derive(Default)]
struct Checked {
    mem: GuestMem,
    log: Option<DirtyLog>,
    running: [bool; PAIRS * 2],
    features: u64,
}

impl Device for Checked {
    fn set_memory(&mut self, table: Vec<(RegionSpec, PeerFd)>) -> Result<(), SessionError> {
        self.mem = GuestMem::map(&table)?;
        Ok(())
    }
    fn add_region(&mut self, spec: RegionSpec, fd: PeerFd) -> Result<(), SessionError> {
        self.mem = self.mem.with(spec, &fd)?;
        Ok(())
    }
    fn remove_region(&mut self, spec: RegionSpec) -> Result<(), SessionError> {
        self.mem = self.mem.without(spec)?;
        Ok(())
    }
    fn has_memory(&self) -> bool {
        !self.mem.is_empty()
    }
    fn set_log(&mut self, size: u64, offset: u64, fd: PeerFd) -> Result<(), SessionError> {
        self.log = Some(DirtyLog::map(size, offset, fd.as_fd())?);
        Ok(())
    }
    fn has_log(&self) -> bool {
        self.log.is_some()
    }
    fn end_log(&mut self) {
        assert_eq!(
            self.running,
            [false; PAIRS * 2],
            "a ring is without its log"
        );
        self.log = None;
    }
    fn start(&mut self, index: usize, config: &VringConfig) -> Result<(), RingError> {
        assert!(!self.running[index], "started twice");
        assert!(self.has_memory(), "started without memory");
        let logged = config.features & feature::LOG_ALL != 0;
        assert!(!logged || self.has_log(), "started without a log");
        assert_eq!(config.features, self.features);
        if config.size > 32768 {
            return Err(RingError::BadSize);
        }
        self.running[index] = true;
        Ok(())
    }
    fn stop(&mut self, index: usize) -> Option<u32> {
        std::mem::take(&mut self.running[index]).then_some(7)
    }
    fn enable(&mut self, index: usize, _on: bool) {
        assert!(index < PAIRS * 2);
    }
    fn set_kick(&mut self, index: usize, _fd: Option<PeerFd>) -> io::Result<()> {
        assert!(index < PAIRS * 2);
        Ok(())
    }
    fn set_call(&mut self, index: usize, _fd: Option<PeerFd>) -> io::Result<()> {
        assert!(index < PAIRS * 2);
        Ok(())
    }
    fn set_err(&mut self, index: usize, _fd: Option<PeerFd>) -> io::Result<()> {
        assert!(index < PAIRS * 2);
        Ok(())
    }
    fn set_features(&mut self, features: u64) {
        assert_eq!(features & !FEATURES, 0, "features nobody offered");
        assert_eq!(
            self.running,
            [false; PAIRS * 2],
            "changed under a running ring"
        );
        self.features = features;
    }
    fn set_mtu(&mut self, _mtu: u16) {}
}

/// Messages, each: request, flags (the version is added), descriptors (how many; from 10 on, of memory),
/// payload bytes, payload.
pub fn run(mut input: &[u8]) {
    let (Some(closer), Ok(file), Ok(memory)) = (
        &*CLOSER,
        std::fs::File::open("/proc/self/exe"),
        memfd(c"fuzz", 1 << 16, false),
    ) else {
        return;
    };
    let kinds = [OwnedFd::from(file), memory];
    let mut decoder = Decoder::default();
    let mut session = Session::new(PAIRS, FEATURES);
    let mut device = Checked::default();
    while let [request, flags, fds, len, rest @ ..] = input {
        let len = usize::from(*len).min(rest.len());
        let (payload, rest) = rest.split_at(len);
        input = rest;
        let mut bytes = Vec::new();
        let words = [
            u32::from(*request),
            u32::from(*flags) | 1,
            payload.len() as u32,
        ];
        words
            .iter()
            .for_each(|w| bytes.extend_from_slice(&w.to_ne_bytes()));
        bytes.extend_from_slice(payload);
        let kind = &kinds[usize::from(*fds / 10 % 2)];
        let mut fds: Vec<PeerFd> = (0..fds % 10)
            .filter_map(|_| kind.try_clone().ok())
            .map(|fd| closer.own(fd))
            .collect();
        let mut at = 0;
        while at < bytes.len() {
            let to = (at + decoder.wanted()).min(bytes.len());

            let message = match decoder.feed(&bytes[at..to], fds.drain(..)) {
                Ok(m) => m,
                Err(_) => return,
            };
            at = to;
            if let Some(message) = message {
                assert_eq!(at, bytes.len());
                let resets = RESETS.contains(&message.header.request);
                match session.handle(message, &mut device) {
                    Ok(Some(reply)) => assert!(reply.len() > 12),
                    Ok(None) => {}
                    Err(_) => return,
                }
                assert!(!resets || !device.has_log(), "a log outlived its device");
            }
        }
    }
}
