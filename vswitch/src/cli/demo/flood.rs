//! Throughput: two guests of our own driver, flat out in both directions through the firewall.

use std::net::Ipv4Addr;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::guest::{Guest, GuestConfig, GuestError, GuestQueue};
use crate::packet::{Mac, checksum, ethertype, proto};
use crate::sys::virtio::{NetHdr, feature};

/// Frames given to the ring at once.
const BURST: usize = 32;

/// One end.
#[derive(Clone, Copy)]
pub(super) struct End<'a> {
    pub(super) socket: &'a Path,
    pub(super) mac: Mac,
    pub(super) ip: Ipv4Addr,
    pub(super) port: u16,
}

/// What arrived.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rate {
    pub(super) frames: u64,
    pub(super) elapsed: Duration,
    pub(super) frame_bytes: usize,
}

impl Rate {
    /// Million frames a second, both directions together.
    #[allow(clippy::cast_precision_loss)] // for reading
    pub(super) fn mpps(&self) -> f64 {
        self.frames as f64 / self.elapsed.as_secs_f64() / 1e6
    }

    /// Gigabits a second of frames without FCS.
    #[allow(clippy::cast_precision_loss)] // for reading
    pub(super) fn gbps(&self) -> f64 {
        self.mpps() * self.frame_bytes as f64 * 8.0 / 1e3
    }
}

/// A UDP datagram in a frame of `len` bytes, checksums complete.
fn frame(from: &End<'_>, to: &End<'_>, len: usize) -> Vec<u8> {
    let ip_len = u16::try_from(len - 14).unwrap_or(u16::MAX);
    let mut f = Vec::with_capacity(len);
    f.extend(to.mac.0);
    f.extend(from.mac.0);
    f.extend(ethertype::IPV4.to_be_bytes());
    let mut header = vec![0x45, 0];
    header.extend(ip_len.to_be_bytes());
    header.extend([0, 0, 0x40, 0, 64, proto::UDP, 0, 0]);
    header.extend(from.ip.octets());
    header.extend(to.ip.octets());
    let sum = (!checksum::fold(checksum::sum(&header, 0))).to_be_bytes();
    if let Some(field) = header.get_mut(10..12) {
        field.copy_from_slice(&sum);
    }
    f.extend(header);
    f.extend(from.port.to_be_bytes());
    f.extend(to.port.to_be_bytes());
    f.extend((ip_len - 20).to_be_bytes());
    // UDP over IPv4 may go without a checksum (RFC 768).
    f.extend([0, 0]);
    f.resize(len, 0);
    f
}

/// Two attached guests.
pub(super) struct Pair<'a> {
    guests: [Guest; 2],
    ends: [End<'a>; 2],
}

impl<'a> Pair<'a> {
    pub(super) fn attach(ends: [End<'a>; 2]) -> Result<Self, GuestError> {
        let attach = |end: &End<'_>| {
            let config = GuestConfig {
                ring_size: 1024,
                features: feature::VERSION_1 | feature::MRG_RXBUF | feature::EVENT_IDX,
                ..GuestConfig::default()
            };
            Guest::connect(end.socket, config)
        };
        Ok(Pair {
            guests: [attach(&ends[0])?, attach(&ends[1])?],
            ends,
        })
    }

    /// Sends frames of `len` bytes as fast as they go for `time`, while `go_on` says so. `None`
    /// when not a single one arrived each way.
    pub(super) fn flood(
        &mut self,
        len: usize,
        time: Duration,
        go_on: impl Fn() -> bool,
    ) -> Option<Rate> {
        let [a, b] = &self.ends;
        let (there, back) = (frame(a, b, len), frame(b, a, len));
        let there = [(NetHdr::default(), there.as_slice()); BURST];
        let back = [(NetHdr::default(), back.as_slice()); BURST];
        let [a, b] = &mut self.guests;
        let (a, b) = (a.queue(0)?, b.queue(0)?);
        let mut arrived = [0u64; 2];
        let take = |q: &mut GuestQueue, n: &mut u64| {
            *n += q.recv(BURST, |_, f| {
                std::hint::black_box(f.len());
            }) as u64;
        };
        let start = Instant::now();
        while start.elapsed() < time && go_on() {
            for _ in 0..16 {
                a.send(&there);
                take(b, &mut arrived[0]);
                // The other direction answers, as a server would.
                if arrived[0] > 0 {
                    b.send(&back);
                }
                take(a, &mut arrived[1]);
            }
        }
        let elapsed = start.elapsed();
        (arrived[0] > 0 && arrived[1] > 0).then(|| Rate {
            frames: arrived[0] + arrived[1],
            elapsed,
            frame_bytes: len,
        })
    }
}
