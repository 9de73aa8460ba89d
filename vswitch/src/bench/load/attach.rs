//! How guests come to a switch.

use std::path::Path;
use std::time::{Duration, Instant};

use super::LOOK;
use crate::bench::BenchError;
use crate::bench::frames::Sizes;
use crate::bench::options::Rings;
use crate::guest::{Guest, GuestConfig, GuestError, GuestListener, NetHdr, feature};

/// Bytes from one buffer to the next: what DPDK's default pool has (2048 of data, 128 of headroom,
/// 192 of header). A power of two would put all buffers into a few sets of every cache.
const BUF_BYTES: usize = 2368;
/// What guests negotiate to exchange frames that nobody cuts.
const UNCUT: u64 = feature::CSUM | feature::GUEST_CSUM | feature::HOST_TSO4 | feature::GUEST_TSO4;

/// Who waits for whom.
#[derive(Clone, Copy, Debug)]
pub(in crate::bench) enum Attach {
    /// The switch listens, now or within that time.
    Connect(Duration),
    /// The switch connects within that time.
    Listen(Duration),
}

/// The switch listens.
pub(in crate::bench) const NOW: Attach = Attach::Connect(Duration::ZERO);

/// Attaches two guests to the back-ends at these paths.
pub(in crate::bench) fn attach(
    sockets: [&Path; 2],
    rings: Rings,
    sizes: Sizes,
    how: Attach,
) -> Result<[Guest; 2], BenchError> {
    let mut features = feature::VERSION_1 | feature::MRG_RXBUF | feature::EVENT_IDX;
    let uncut = sizes.uncut();
    if uncut.is_some() {
        features |= UNCUT;
    }
    if rings.packed {
        features |= feature::RING_PACKED;
    }
    let guest = GuestConfig {
        ring_size: rings.ring,
        buf_bytes: BUF_BYTES,
        send_buf_bytes: uncut.map(|bytes| bytes + NetHdr::BYTES),
        features,
        huge: rings.huge,
        ..GuestConfig::default()
    };
    let since = Instant::now();
    let failed = |e: GuestError| match e {
        e @ GuestError::Io(_) if rings.huge => BenchError::HugePages(e),
        e => BenchError::Guest(e),
    };
    let absent = |socket: &Path, source| BenchError::NoSwitch {
        socket: socket.to_owned(),
        source,
    };
    let connect = |socket: &Path, within| {
        use std::io::ErrorKind::{ConnectionRefused, NotFound, PermissionDenied};
        loop {
            match Guest::connect(socket, guest.clone()) {
                Err(GuestError::Io(e))
                    if matches!(e.kind(), NotFound | ConnectionRefused | PermissionDenied) =>
                {
                    if since.elapsed() >= within {
                        return Err(absent(socket, e));
                    }
                    std::thread::sleep(LOOK);
                }
                other => return other.map_err(failed),
            }
        }
    };
    let [a, b] = sockets;
    let guests = match how {
        Attach::Connect(within) => [connect(a, within)?, connect(b, within)?],
        Attach::Listen(within) => {
            // Both before either is waited for: the switch connects in its own order.
            let listen = |socket| GuestListener::bind(socket).map_err(|e| absent(socket, e));
            let [listen_a, listen_b] = [listen(a)?, listen(b)?];
            let accept = |socket, listener: &GuestListener| {
                let stream = listener
                    .accept_within(within)
                    .map_err(|e| absent(socket, e))?;
                Guest::over(stream, guest.clone()).map_err(failed)
            };
            [accept(a, &listen_a)?, accept(b, &listen_b)?]
        }
    };
    if uncut.is_some() && guests.iter().any(|g| g.features() & UNCUT != UNCUT) {
        return Err(BenchError::Cut);
    }
    Ok(guests)
}
