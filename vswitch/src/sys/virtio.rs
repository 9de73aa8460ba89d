//! Numbers and layouts that both sides of a vhost-user connection share: virtio 1.3 features,
//! ring flags, `virtio_net_hdr`, and the vhost-user message header. No behaviour.

use virtio_bindings::virtio_config as config;
use virtio_bindings::virtio_net as net;
use virtio_bindings::virtio_ring as ring;

/// Feature bits (virtio 1.3 sections 2.2, 5.1.3 and 6), as masks.
pub mod feature {
    use super::{config, net, ring};

    /// The device takes partial checksums.
    pub const CSUM: u64 = 1 << net::VIRTIO_NET_F_CSUM;
    /// The driver takes partial checksums.
    pub const GUEST_CSUM: u64 = 1 << net::VIRTIO_NET_F_GUEST_CSUM;
    /// The device gives its MTU.
    pub const MTU: u64 = 1 << net::VIRTIO_NET_F_MTU;
    /// The driver takes TCP over IPv4 unsegmented.
    pub const GUEST_TSO4: u64 = 1 << net::VIRTIO_NET_F_GUEST_TSO4;
    /// The driver takes TCP over IPv6 unsegmented.
    pub const GUEST_TSO6: u64 = 1 << net::VIRTIO_NET_F_GUEST_TSO6;
    /// The device takes TCP over IPv4 unsegmented.
    pub const HOST_TSO4: u64 = 1 << net::VIRTIO_NET_F_HOST_TSO4;
    /// The device takes TCP over IPv6 unsegmented.
    pub const HOST_TSO6: u64 = 1 << net::VIRTIO_NET_F_HOST_TSO6;
    /// Receive buffers can be merged.
    pub const MRG_RXBUF: u64 = 1 << net::VIRTIO_NET_F_MRG_RXBUF;
    /// The device has a link status.
    pub const STATUS: u64 = 1 << net::VIRTIO_NET_F_STATUS;
    /// The driver can announce itself.
    pub const GUEST_ANNOUNCE: u64 = 1 << net::VIRTIO_NET_F_GUEST_ANNOUNCE;
    /// More than one queue pair.
    pub const MQ: u64 = 1 << net::VIRTIO_NET_F_MQ;
    /// Indirect descriptor tables.
    pub const INDIRECT_DESC: u64 = 1 << ring::VIRTIO_RING_F_INDIRECT_DESC;
    /// Notifications by position.
    pub const EVENT_IDX: u64 = 1 << ring::VIRTIO_RING_F_EVENT_IDX;
    /// vhost-user: the back-end marks each page that it writes in the dirty log (`SET_LOG_BASE`).
    pub const LOG_ALL: u64 = 1 << 26;
    /// vhost-user: protocol features can be negotiated (vhost-user "Feature negotiation").
    pub const PROTOCOL_FEATURES: u64 = 1 << 30;
    /// The device follows virtio 1.0 or later.
    pub const VERSION_1: u64 = 1 << config::VIRTIO_F_VERSION_1;
    /// Packed rings.
    pub const RING_PACKED: u64 = 1 << config::VIRTIO_F_RING_PACKED;
    /// Buffers are used in the order they were made available.
    pub const IN_ORDER: u64 = 1 << config::VIRTIO_F_IN_ORDER;
    /// The driver takes UDP over IPv4 unsegmented.
    pub const GUEST_USO4: u64 = 1 << net::VIRTIO_NET_F_GUEST_USO4;
    /// The driver takes UDP over IPv6 unsegmented.
    pub const GUEST_USO6: u64 = 1 << net::VIRTIO_NET_F_GUEST_USO6;
    /// The device takes UDP unsegmented.
    pub const HOST_USO: u64 = 1 << net::VIRTIO_NET_F_HOST_USO;
}

/// Ring constants (virtio 1.3 sections 2.7 and 2.8).
#[allow(clippy::cast_possible_truncation)] // all are below 2^16; the C header has no types
pub mod vring {
    use super::ring;

    /// The chain goes on.
    pub const DESC_F_NEXT: u16 = ring::VRING_DESC_F_NEXT as u16;
    /// The device writes this buffer.
    pub const DESC_F_WRITE: u16 = ring::VRING_DESC_F_WRITE as u16;
    /// The buffer is a table of descriptors.
    pub const DESC_F_INDIRECT: u16 = ring::VRING_DESC_F_INDIRECT as u16;
    /// Packed: the driver's half of the ownership mark.
    pub const DESC_F_AVAIL: u16 = 1 << ring::VRING_PACKED_DESC_F_AVAIL;
    /// Packed: the device's half of the ownership mark.
    pub const DESC_F_USED: u16 = 1 << ring::VRING_PACKED_DESC_F_USED;
    /// Split: the driver wants no calls.
    pub const AVAIL_F_NO_INTERRUPT: u16 = ring::VRING_AVAIL_F_NO_INTERRUPT as u16;
    /// Split: the device wants no kicks.
    pub const USED_F_NO_NOTIFY: u16 = ring::VRING_USED_F_NO_NOTIFY as u16;
    /// Packed event suppression: notify always.
    pub const EVENT_ENABLE: u16 = ring::VRING_PACKED_EVENT_FLAG_ENABLE as u16;
    /// Packed event suppression: never notify.
    pub const EVENT_DISABLE: u16 = ring::VRING_PACKED_EVENT_FLAG_DISABLE as u16;
    /// Packed event suppression: notify at a position (needs `EVENT_IDX`).
    pub const EVENT_DESC: u16 = ring::VRING_PACKED_EVENT_FLAG_DESC as u16;
    /// Packed: the wrap counter's bit in an event offset and in a vring base.
    pub const WRAP_BIT: u16 = 1 << ring::VRING_PACKED_EVENT_F_WRAP_CTR;
    /// Bytes of a descriptor, split and packed.
    pub const DESC_BYTES: usize = 16;
    /// Most entries of a ring (virtio 1.3 section 2.7: 32768).
    pub const SIZE_MAX: u32 = 32768;

    /// Whether moving an index from `old` to `new` passes `event` (virtio 1.3 section 2.7.10).
    #[inline]
    #[must_use]
    pub const fn need_event(event: u16, new: u16, old: u16) -> bool {
        new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
    }
}

/// `struct virtio_net_hdr` (virtio 1.3 section 5.1.6), little-endian as all of virtio 1.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NetHdr {
    /// [`NetHdr::F_NEEDS_CSUM`], [`NetHdr::F_DATA_VALID`].
    pub flags: u8,
    /// One of the `GSO_` values.
    pub gso_type: u8,
    /// Bytes of all headers; a hint.
    pub hdr_len: u16,
    /// Payload bytes per segment.
    pub gso_size: u16,
    /// Where summing starts.
    pub csum_start: u16,
    /// Where the sum goes, from `csum_start`.
    pub csum_offset: u16,
    /// Receive buffers the frame fills.
    pub num_buffers: u16,
}

#[allow(clippy::cast_possible_truncation)] // bytes by the specification; the C header has no types
impl NetHdr {
    /// Bytes, with `num_buffers`: always so since virtio 1.0.
    pub const BYTES: usize = 12;
    /// Bytes without `num_buffers`: a legacy driver without `MRG_RXBUF`.
    pub const LEGACY_BYTES: usize = 10;
    /// The checksum field holds the pseudo-header's sum.
    pub const F_NEEDS_CSUM: u8 = net::VIRTIO_NET_HDR_F_NEEDS_CSUM as u8;
    /// The checksum was verified.
    pub const F_DATA_VALID: u8 = net::VIRTIO_NET_HDR_F_DATA_VALID as u8;
    /// A frame as on the wire.
    pub const GSO_NONE: u8 = net::VIRTIO_NET_HDR_GSO_NONE as u8;
    /// TCP over IPv4.
    pub const GSO_TCPV4: u8 = net::VIRTIO_NET_HDR_GSO_TCPV4 as u8;
    /// TCP over IPv6.
    pub const GSO_TCPV6: u8 = net::VIRTIO_NET_HDR_GSO_TCPV6 as u8;
    /// UDP datagrams of `gso_size` payload bytes each.
    pub const GSO_UDP_L4: u8 = net::VIRTIO_NET_HDR_GSO_UDP_L4 as u8;

    /// As the eight bytes of a little-endian word and the four of another: two stores.
    #[inline]
    #[must_use]
    pub fn to_words(&self) -> (u64, u32) {
        let low = u64::from(self.flags)
            | u64::from(self.gso_type) << 8
            | u64::from(self.hdr_len) << 16
            | u64::from(self.gso_size) << 32
            | u64::from(self.csum_start) << 48;
        let high = u32::from(self.csum_offset) | u32::from(self.num_buffers) << 16;
        (low, high)
    }

    /// As bytes; a legacy header is the first [`NetHdr::LEGACY_BYTES`] of them.
    #[inline]
    #[must_use]
    pub fn to_bytes(&self) -> [u8; Self::BYTES] {
        let (low, high) = self.to_words();
        let [a, b, c, d, e, f, g, h] = low.to_le_bytes();
        let [i, j, k, l] = high.to_le_bytes();
        [a, b, c, d, e, f, g, h, i, j, k, l]
    }

    /// From what [`NetHdr::to_words`] makes.
    #[inline]
    #[must_use]
    #[allow(clippy::cast_possible_truncation)] // taking words apart
    pub fn from_words(low: u64, high: u32) -> Self {
        NetHdr {
            flags: low as u8,
            gso_type: (low >> 8) as u8,
            hdr_len: (low >> 16) as u16,
            gso_size: (low >> 32) as u16,
            csum_start: (low >> 48) as u16,
            csum_offset: high as u16,
            num_buffers: (high >> 16) as u16,
        }
    }

    /// From bytes.
    #[inline]
    #[must_use]
    pub fn from_bytes(bytes: [u8; Self::BYTES]) -> Self {
        let [flags, gso_type, h0, h1, g0, g1, s0, s1, o0, o1, n0, n1] = bytes;
        NetHdr {
            flags,
            gso_type,
            hdr_len: u16::from_le_bytes([h0, h1]),
            gso_size: u16::from_le_bytes([g0, g1]),
            csum_start: u16::from_le_bytes([s0, s1]),
            csum_offset: u16::from_le_bytes([o0, o1]),
            num_buffers: u16::from_le_bytes([n0, n1]),
        }
    }
}

/// vhost-user messages (QEMU `docs/interop/vhost-user.rst`).
pub mod vhost_user {
    /// Bytes of a message header: request, flags, payload size, each a native `u32`.
    pub const HEADER_BYTES: usize = 12;
    /// Bytes of payload we take. The largest message we know has 264 (a table of 8 regions).
    pub const PAYLOAD_MAX: usize = 4096;
    /// Descriptors one message may carry: one per region of a table.
    pub const FDS_MAX: usize = 8;
    /// Protocol version, in the flags' low two bits.
    pub const VERSION: u32 = 1;
    /// Flag: this is a reply.
    pub const FLAG_REPLY: u32 = 1 << 2;
    /// Flag: the sender wants an answer (with `REPLY_ACK`).
    pub const FLAG_NEED_REPLY: u32 = 1 << 3;
    /// In `SET_VRING_KICK/CALL/ERR`: no descriptor comes with it.
    pub const VRING_NO_FD: u64 = 1 << 8;
    /// Regions in one table message.
    pub const TABLE_REGIONS_MAX: usize = 8;

    macro_rules! requests {
        ($($name:ident = $code:literal,)+) => {
            /// Requests of the front-end.
            #[allow(missing_docs)] // the names are the specification's
            #[derive(Clone, Copy, PartialEq, Eq, Debug)]
            #[repr(u32)]
            pub enum Request { $($name = $code,)+ }

            impl Request {
                /// By number.
                #[must_use]
                pub const fn from_code(code: u32) -> Option<Request> {
                    match code { $($code => Some(Request::$name),)+ _ => None }
                }
            }
        };
    }
    requests! {
        GetFeatures = 1,
        SetFeatures = 2,
        SetOwner = 3,
        ResetOwner = 4,
        SetMemTable = 5,
        SetLogBase = 6,
        SetLogFd = 7,
        SetVringNum = 8,
        SetVringAddr = 9,
        SetVringBase = 10,
        GetVringBase = 11,
        SetVringKick = 12,
        SetVringCall = 13,
        SetVringErr = 14,
        GetProtocolFeatures = 15,
        SetProtocolFeatures = 16,
        GetQueueNum = 17,
        SetVringEnable = 18,
        SendRarp = 19,
        NetSetMtu = 20,
        SetBackendReqFd = 21,
        ResetDevice = 34,
        GetMaxMemSlots = 36,
        AddMemReg = 37,
        RemMemReg = 38,
        SetStatus = 39,
        GetStatus = 40,
    }

    /// Protocol features, as masks.
    pub mod protocol {
        /// More than one queue pair; `GET_QUEUE_NUM`.
        pub const MQ: u64 = 1 << 0;
        /// The dirty log comes as a descriptor of shared memory.
        pub const LOG_SHMFD: u64 = 1 << 1;
        /// Answers on request.
        pub const REPLY_ACK: u64 = 1 << 3;
        /// `NET_SET_MTU`.
        pub const NET_MTU: u64 = 1 << 4;
        /// `RESET_DEVICE`.
        pub const RESET_DEVICE: u64 = 1 << 13;
        /// `GET_MAX_MEM_SLOTS`, `ADD_MEM_REG`, `REM_MEM_REG`.
        pub const CONFIGURE_MEM_SLOTS: u64 = 1 << 15;
        /// `SET_STATUS`, `GET_STATUS`.
        pub const STATUS: u64 = 1 << 16;
    }

    /// A message header.
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    pub struct Header {
        /// Request code.
        pub request: u32,
        /// Version and flags.
        pub flags: u32,
        /// Payload bytes.
        pub size: u32,
    }

    impl Header {
        /// As bytes.
        #[must_use]
        pub fn to_bytes(&self) -> [u8; HEADER_BYTES] {
            let mut out = [0; HEADER_BYTES];
            let words = [self.request, self.flags, self.size];
            for (to, word) in out.chunks_exact_mut(4).zip(words) {
                to.copy_from_slice(&word.to_ne_bytes());
            }
            out
        }

        /// From bytes.
        #[must_use]
        pub fn from_bytes(b: [u8; HEADER_BYTES]) -> Self {
            let [r0, r1, r2, r3, f0, f1, f2, f3, s0, s1, s2, s3] = b;
            Header {
                request: u32::from_ne_bytes([r0, r1, r2, r3]),
                flags: u32::from_ne_bytes([f0, f1, f2, f3]),
                size: u32::from_ne_bytes([s0, s1, s2, s3]),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{NetHdr, vring::need_event};

    #[test]
    fn header_round_trip() {
        let bytes = [1, 4, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11];
        assert_eq!(NetHdr::from_bytes(bytes).to_bytes(), bytes);
        assert_eq!(NetHdr::from_bytes(bytes).gso_size, 0x0504);
    }

    #[test]
    fn events_by_position() {
        assert!(need_event(5, 6, 5));
        assert!(!need_event(6, 6, 5));
        assert!(need_event(0xffff, 1, 0xfff0));
        assert!(!need_event(0, 0, 0));
    }
}
