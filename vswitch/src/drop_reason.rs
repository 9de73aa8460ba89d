//! The one list of reasons why a frame does not reach anybody.
//!
//! Every drop in the switch names exactly one [`DropReason`]; the counter of that name is what
//! `vswitch drops` shows. A test provokes every reason.

macro_rules! drop_reasons {
    ($($(#[doc = $sentence:literal])+ $variant:ident => $name:literal,)+) => {
        /// Why a frame was dropped. One byte; the counter index is `reason as usize`.
        #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
        #[repr(u8)]
        pub enum DropReason {
            $($(#[doc = $sentence])+ $variant,)+
        }

        impl DropReason {
            /// Every reason, in counter order.
            pub const ALL: &'static [DropReason] = &[$(DropReason::$variant,)+];
            /// How many reasons there are: the length of a counter array indexed by reason.
            pub const COUNT: usize = Self::ALL.len();

            /// The counter's name, in `snake_case`, as the CLI and the metrics show it.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $(DropReason::$variant => $name,)+ }
            }

            /// One sentence for the operator: what happened.
            #[must_use]
            pub const fn sentence(self) -> &'static str {
                match self { $(DropReason::$variant => concat!($($sentence),+).trim_ascii(),)+ }
            }
        }
    };
}

drop_reasons! {
    // --- what the sender's port hands us ---
    /// The frame is shorter than an Ethernet header.
    Runt => "runt",
    /// The frame is longer than its port's MTU allows, or than the switch handles.
    Oversize => "oversize",
    /// The guest's descriptor chain is malformed (loop, bad index, outside its memory, no data).
    BadDescriptor => "bad_descriptor",
    /// The sender's offload request does not fit the frame's own headers.
    BadOffload => "bad_offload",
    /// Segmenting the frame would need more segments than the switch allows (128).
    TooManySegments => "too_many_segments",
    /// The kernel or device marked the received frame as unusable.
    PortRxError => "port_rx_error",
    // --- parsing ---
    /// An IPv4 header is truncated, has a bad version, length or header checksum.
    BadIpv4 => "bad_ipv4",
    /// An IPv6 header is truncated or inconsistent with the frame.
    BadIpv6 => "bad_ipv6",
    /// IPv6 extension headers are too many, too long, repeated or malformed.
    BadIpv6Extension => "bad_ipv6_extension",
    /// A TCP, UDP or ICMP header is truncated or inconsistent.
    BadL4 => "bad_l4",
    /// TCP flags that no honest sender sets together (for example SYN with FIN).
    BadTcpFlags => "bad_tcp_flags",
    /// An ARP message is malformed or not Ethernet/IPv4.
    BadArp => "bad_arp",
    /// A neighbour-discovery message is malformed.
    BadNd => "bad_nd",
    /// The headers do not fit the private head of 256 bytes.
    HeadersTooLong => "headers_too_long",
    /// The source address is multicast, broadcast, loopback or unspecified where it may not be.
    BadSourceAddress => "bad_source_address",
    // --- VLAN ---
    /// A tagged frame on an access port that carries no such VLAN, or with a second tag that would be
    /// its receiver's first.
    VlanNotAllowed => "vlan_not_allowed",
    // --- spoof guard ---
    /// The source MAC is not one of the sending port's workloads.
    SpoofedMac => "spoofed_mac",
    /// The source IP is not one of the sending workload's.
    SpoofedIp => "spoofed_ip",
    /// An ARP or ND message claims an address the sender does not own.
    SpoofedArp => "spoofed_arp",
    /// A frame from an uplink carries a local workload's MAC or IP as its source.
    SpoofedFromUplink => "spoofed_from_uplink",
    /// A MAC declared for one port appeared as source on another.
    DeclaredMacMoved => "declared_mac_moved",
    // --- output ---
    /// No workload, learned MAC or uplink answers for the destination MAC.
    UnknownDestination => "unknown_destination",
    /// The destination IP is not one of the workload the destination MAC belongs to.
    DestinationMismatch => "destination_mismatch",
    /// The frame would leave by the port it came in by, and no other workload lives there.
    SamePort => "same_port",
    /// The destination MAC is reserved for the link itself (802.1D) and is never forwarded.
    ReservedMulticast => "reserved_multicast",
    /// Broadcast or multicast that nobody may receive, or beyond the sender's budget of copies.
    FloodBudget => "flood_budget",
    /// A broadcast or multicast frame has no receiver.
    NoReceiver => "no_receiver",
    /// ARP or ND for an address the switch does not know and no uplink could.
    UnknownNeighbour => "unknown_neighbour",
    // --- policy ---
    /// No rule allows it: the end of the last tier.
    PolicyDefaultDeny => "policy_default_deny",
    /// A rule with `action = "deny"` matched.
    PolicyDeny => "policy_deny",
    /// A rule with `action = "reject"` matched; the sender was told.
    PolicyReject => "policy_reject",
    /// A rule with `action = "decoy"` matched: nobody got the frame, and TCP was answered in its receiver's stead.
    PolicyDecoy => "policy_decoy",
    /// A rule with `action = "ask"` matched, and the answer was no, or there was none in time; or its record could not be made.
    PolicyAskDenied => "policy_ask_denied",
    /// More wait for the manager than the sending port may have waiting, or the frame is too long to be held.
    AskOverBudget => "ask_over_budget",
    /// It waited for the manager, and a newer one of its kind took its place; or enough of its kind wait.
    AskPending => "ask_pending",
    /// It waited for the manager, and its sender gave up or is gone.
    AskCancelled => "ask_cancelled",
    /// A Chinese wall stands between the two: together they would carry both sides of it.
    Wall => "wall",
    /// Its sender or its receiver is in quarantine, and it is no part of a connection that is kept.
    Quarantined => "quarantined",
    /// Its receiver is frozen: its sender is answered, or it is put to its receiver when he goes on; or it came from somebody who went
    /// back to a snapshot, before it is known what he remembers.
    Frozen => "frozen",
    /// The rule's `limit` is exhausted.
    PolicyLimit => "policy_limit",
    /// An EtherType or multicast that no rule's `service` names.
    EtherTypeDenied => "ethertype_denied",
    /// The sending port has no workload that matches: an unknown sender is denied.
    UnknownSender => "unknown_sender",
    /// No policy is in force yet.
    NoPolicy => "no_policy",
    // --- tracking ---
    /// A TCP segment without a connection that is not a SYN (strict start).
    TcpNotSyn => "tcp_not_syn",
    /// A TCP segment outside the connection's window.
    TcpOutOfWindow => "tcp_out_of_window",
    /// A TCP segment that the connection's state does not allow.
    TcpBadState => "tcp_bad_state",
    /// A TCP segment to a broadcast or multicast address, where no connection can be (RFC 9293, MUST-57).
    TcpToGroup => "tcp_to_group",
    /// A fragment to a broadcast or multicast address, where nothing remembers what its first one was allowed.
    FragmentToGroup => "fragment_to_group",
    /// An ICMP error about no connection we know.
    IcmpUnrelated => "icmp_unrelated",
    /// A reply (for example an echo reply) without its request.
    ReplyWithoutRequest => "reply_without_request",
    /// The connection table is full.
    ConnTableFull => "conn_table_full",
    /// The quota of connections of the sending port, or of a segment of the sender's, is used up.
    ConnQuota => "conn_quota",
    /// A fragment before its first fragment, or after it was refused.
    FragmentWithoutFirst => "fragment_without_first",
    /// A fragment that is tiny, overlapping or inconsistent.
    BadFragment => "bad_fragment",
    /// The port's fragment table is full.
    FragmentTableFull => "fragment_table_full",
    // --- sending ---
    /// The receiver's queue has no free buffer.
    TxQueueFull => "tx_queue_full",
    /// The receiver is not connected, or its queue is stopped or broken.
    TxNotReady => "tx_not_ready",
    /// The frame is larger than the receiver takes and cannot be segmented.
    TxTooBig => "tx_too_big",
    /// The receiver's descriptor chain is malformed.
    TxBadDescriptor => "tx_bad_descriptor",
    /// The kernel refused the frame.
    TxError => "tx_error",
}

#[cfg(test)]
mod tests {
    use super::DropReason;

    #[test]
    fn names_are_unique_and_snake_case() {
        let mut seen = std::collections::HashSet::new();
        for (i, r) in DropReason::ALL.iter().enumerate() {
            assert_eq!(*r as usize, i);
            assert!(seen.insert(r.name()), "{} twice", r.name());
            assert!(
                r.name()
                    .bytes()
                    .all(|b| b.is_ascii_lowercase() || b == b'_' || b.is_ascii_digit())
            );
            assert!(r.sentence().ends_with('.'));
        }
    }
}
