//! What a worker needs to judge frames, as one immutable value: ports, who lives there, who
//! answers for which address, and the policy. Built by `control::apply`, published whole.

use std::net::IpAddr;
use std::sync::Arc;

use crate::packet::{Addr, Cidr, Mac};
use crate::policy::{Party, TenantId};
use crate::port::Port;

/// A (port, workload) pair by stable name, interned for the life of the process: the same pair
/// has the same number in every snapshot, and a number is never reused.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct AttachmentId(pub u32);

/// One port, as `control::apply` describes it to [`Snapshot::build`].
#[derive(Clone, Debug)]
pub struct PortInput {
    /// Its queues.
    pub port: Arc<Port>,
    /// Owner.
    pub tenant: TenantId,
    /// Access VLAN; 0 is the untagged domain.
    pub vlan: u16,
    /// VLANs carried tagged.
    pub trunk: Vec<u16>,
    /// Carries the outside.
    pub uplink: bool,
    /// Spoof guard.
    pub guard: bool,
    /// Networks behind a router port.
    pub routes: Vec<Cidr>,
    /// Longest L3 packet, bytes.
    pub mtu: u16,
    /// Most connections it may have open as initiator.
    pub max_connections: usize,
    /// The attachment of whoever is not a declared workload (an uplink's outside, a guard-off port).
    pub attachment: AttachmentId,
    /// Who lives there.
    pub workloads: Vec<WorkloadInput>,
}

/// One workload on a port.
#[derive(Clone, Debug)]
pub struct WorkloadInput {
    /// Its attachment.
    pub attachment: AttachmentId,
    /// Stable name, for messages.
    pub name: String,
    /// Tenant and segments, by the classifier of the same snapshot.
    pub party: Party,
    /// MACs.
    pub macs: Vec<Mac>,
    /// Addresses.
    pub ips: Vec<IpAddr>,
    /// VLAN that tells it from its neighbours on the port; `None`: the port's access VLAN.
    pub vlan: Option<u16>,
}

/// The key under which addresses are compared.
#[must_use]
pub fn addr_key(ip: IpAddr) -> Addr {
    Addr::from(ip)
}
