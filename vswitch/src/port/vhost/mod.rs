//! vhost-user ports: a VM, or any virtio-net driver, over a Unix socket. We are the back-end.
//!
//! * [`session`]: the protocol, pure; `control`: sockets, and what messages do to the queues;
//! * [`guest_mem`]: the guest's memory; `vring`, `split`, `packed`: its rings;
//! * `rx`, `tx`: the two hot paths. Names are the switch's: we *receive* from the guest's transmit
//!   ring.
//!
//! [`open`] makes a port with all its queue pairs, each behind a gate, and a [`VhostControl`] that
//! one control thread drives. Guests come and go; the port stays.

use crate::frame::TxCaps;
use crate::sys::virtio::feature;

mod control;
pub mod guest_mem;
mod packed;
mod queue;
mod rx;
pub mod session;
mod split;
mod tx;
mod vring;

pub use control::{VhostConfig, VhostControl, VhostError, VhostStatus, open};
pub use rx::Rx;
pub use tx::Tx;
pub use vring::{RingError, VringConfig};

/// Queue pairs a port offers when it is not told otherwise.
pub const QUEUE_PAIRS_MAX: u16 = 16;

/// What the guest takes, from what it accepted.
fn tx_caps(features: u64, mtu: u16) -> TxCaps {
    let has = |bits: u64| features & bits == bits;
    TxCaps {
        csum: has(feature::GUEST_CSUM),
        tso4: has(feature::GUEST_CSUM | feature::GUEST_TSO4),
        tso6: has(feature::GUEST_CSUM | feature::GUEST_TSO6),
        uso: has(feature::GUEST_CSUM | feature::GUEST_USO4 | feature::GUEST_USO6),
        // Ethernet and one tag; neither counts for an MTU.
        max_frame_bytes: u32::from(mtu) + 14 + 4,
    }
}
