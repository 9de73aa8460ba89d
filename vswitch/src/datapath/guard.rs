//! Who sent this? The spoof guard, on by default.
//!
//! The sender is the workload on the port a frame came in by: told from its neighbours on that
//! port by VLAN tag and MAC, and allowed to use its own MACs and addresses only. The outside
//! behind an uplink may use any but a local workload's.

use crate::datapath::snapshot::{DomainId, Owner, OwnerIdx, PortView, Snapshot};
use crate::datapath::{flood, neighbour};
use crate::drop_reason::DropReason;
use crate::packet::parse::icmp_type;
use crate::packet::{Addr, L3, Mac, Parsed, proto};

/// The VLAN identifier in a TCI (802.1Q: the low 12 bits).
pub const VID_MASK: u16 = 0x0fff;

/// The domain a frame with this tag belongs to at this port, and the tag its sender is known by.
/// Tag 0 is a priority tag: the frame is untagged (802.1Q-2018 section 9.6).
///
/// # Errors
/// [`DropReason::VlanNotAllowed`] when the port carries no such VLAN.
#[inline]
pub fn domain(
    snapshot: &Snapshot,
    port: &PortView,
    tci: Option<u16>,
) -> Result<(DomainId, Option<u16>), DropReason> {
    let vid = match tci.map(|t| t & VID_MASK) {
        None | Some(0) => return Ok((port.access, None)),
        Some(vid) => vid,
    };
    if let Some((_, domain)) = port.trunk.iter().find(|(v, _)| *v == vid) {
        return Ok((*domain, Some(vid)));
    }
    port.owners
        .iter()
        .filter_map(|i| snapshot.owner(*i))
        .find(|o| o.tag == Some(vid))
        .map(|o| (o.domain, Some(vid)))
        .ok_or(DropReason::VlanNotAllowed)
}

/// Whether `owner` may be given the frame as it is. What remains of its tags once the outer one is
/// off would be the outer tag of a receiver that has none: a VLAN nobody judged it for.
#[inline]
#[must_use]
pub fn keeps_vlan(owner: &Owner, p: &Parsed) -> bool {
    owner.tag.is_some() || !p.has_inner_tag()
}

/// The sender of a frame on `port` in `domain` with tag `tag`.
///
/// # Errors
/// Names what is wrong with the source MAC or address.
#[inline]
pub fn sender<'s>(
    snapshot: &'s Snapshot,
    port: &PortView,
    domain: DomainId,
    tag: Option<u16>,
    p: &Parsed,
) -> Result<(OwnerIdx, &'s Owner), DropReason> {
    let mut outside = None;
    let mut only = None;
    let mut alone = true;
    for &idx in &port.owners {
        let Some(owner) = snapshot.owner(idx) else {
            continue;
        };
        if owner.tag != tag {
            continue;
        }
        if owner.outside {
            outside = Some((idx, owner));
        } else if owner.has_mac(p.src_mac) {
            if port.guard {
                if is_ip(p) && !owner.has_ip(&p.src) {
                    other_source_address(snapshot, port, idx, domain, p)?;
                }
            } else if is_ip(p) && is_of_another(snapshot, domain, idx, &p.src) {
                return Err(DropReason::SpoofedIp);
            }
            return Ok((idx, owner));
        } else {
            alone = only.is_none();
            only = Some((idx, owner));
        }
    }
    if snapshot.by_mac(domain, p.src_mac).is_some() {
        // Declared, but not here.
        return Err(if outside.is_some() {
            DropReason::SpoofedFromUplink
        } else {
            DropReason::DeclaredMacMoved
        });
    }
    if let Some(found) = outside {
        if is_ip(p) && snapshot.by_addr(domain, p.src).is_some() {
            return Err(DropReason::SpoofedFromUplink);
        }
        return Ok(found);
    }
    match only {
        // With the guard off, a port with one workload vouches for whatever comes from it, except
        // what somebody else declared.
        Some((idx, owner)) if !port.guard && alone => {
            if is_ip(p) && is_of_another(snapshot, domain, idx, &p.src) {
                return Err(DropReason::SpoofedIp);
            }
            Ok((idx, owner))
        }
        Some(_) if port.guard => Err(DropReason::SpoofedMac),
        _ => Err(DropReason::UnknownSender),
    }
}

/// Whether `addr` is somebody else's: not even a port without a guard may send from it.
pub(crate) fn is_of_another(
    snapshot: &Snapshot,
    domain: DomainId,
    sender: OwnerIdx,
    addr: &Addr,
) -> bool {
    let owner = snapshot.by_addr(domain, *addr);
    owner.is_some_and(|owner| owner != sender)
}

fn is_ip(p: &Parsed) -> bool {
    matches!(p.l3, L3::V4 | L3::V6)
}

/// A workload's source address that is none of its own: one behind its router port, or one of the few
/// that a host uses before it has any.
#[cold]
fn other_source_address(
    snapshot: &Snapshot,
    port: &PortView,
    idx: OwnerIdx,
    domain: DomainId,
    p: &Parsed,
) -> Result<(), DropReason> {
    if is_unspecified(&p.src) {
        // DHCP discovery (RFC 2131 section 4.1), duplicate address detection and router
        // solicitation (RFC 4861 sections 4.1 and 4.3), MLD before an address is valid (RFC 3590).
        let dhcp = p.protocol == proto::UDP && p.sport == 68 && p.dport == 67;
        let solicits = p.protocol == proto::ICMPV6
            && p.icmp_type == icmp_type::ROUTER_SOLICITATION
            && p.dst_mac.is_group();
        return if dhcp || solicits || ends_here(p) {
            Ok(())
        } else {
            Err(DropReason::SpoofedIp)
        };
    }
    if is_link_local_v6(&p.src) {
        // The EUI-64 address of a MAC is its workload's by construction. A link-local address that is
        // nobody's may be used only for what the switch itself answers or consumes: ND and MLD.
        let holder = snapshot.by_addr(domain, p.src);
        return if holder == Some(idx) || holder.is_none() && ends_here(p) {
            Ok(())
        } else {
            Err(DropReason::SpoofedIp)
        };
    }
    let routed = port.routes.iter().any(|r| r.contains(p.src.to_ip()));
    if routed && snapshot.by_addr(domain, p.src).is_none() {
        return Ok(());
    }
    Err(DropReason::SpoofedIp)
}

/// Whether it is of what the switch itself answers or consumes: neighbour discovery, and reports to
/// a group about groups. To one host they would be delivered like any other packet.
fn ends_here(p: &Parsed) -> bool {
    neighbour::is_discovery(p) || p.dst_mac.is_group() && flood::is_membership(p)
}

/// Whether `owner` at `port` may be sent a packet for `addr`.
pub fn accepts(port: &PortView, owner: &Owner, addr: &Addr) -> bool {
    owner.outside
        || owner.has_ip(addr)
        || (!port.guard && owner.ips.is_empty())
        || (is_link_local_v6(addr) && owner.macs.iter().any(|m| *addr == eui64_link_local(*m)))
        || port.routes.iter().any(|r| r.contains(addr.to_ip()))
}

/// `::` or 0.0.0.0.
#[must_use]
pub fn is_unspecified(a: &Addr) -> bool {
    a.0 == [0; 16] || *a == Addr::from(std::net::IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED))
}

/// fe80::/10 (RFC 4291 section 2.5.6).
#[must_use]
pub fn is_link_local_v6(a: &Addr) -> bool {
    matches!(a.0, [0xfe, second, ..] if second & 0xc0 == 0x80)
}

/// The link-local address a MAC makes (RFC 4291 appendix A).
#[must_use]
pub fn eui64_link_local(mac: Mac) -> Addr {
    let [a, b, c, d, e, f] = mac.0;
    Addr([
        0xfe,
        0x80,
        0,
        0,
        0,
        0,
        0,
        0,
        a ^ 2,
        b,
        c,
        0xff,
        0xfe,
        d,
        e,
        f,
    ])
}
