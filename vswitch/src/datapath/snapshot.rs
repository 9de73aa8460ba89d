//! What a worker needs to judge frames, as one immutable value: ports, who lives there, who
//! answers for which address, and the policy. Built by `control::apply`, published whole.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use crate::datapath::frozen::FrozenMap;
use crate::datapath::guard::eui64_link_local;
use crate::datapath::passes::Walls;
use crate::datapath::quarantine::Quarantine;
use crate::datapath::quota::{GroupId, Quota};
use crate::datapath::suspect::UNWATCHED;
use crate::packet::{Addr, Cidr, Mac};
use crate::policy::{Classifier, Party, TenantId};
use crate::port::{Port, PortId};

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
    pub max_connections: u32,
    /// The attachment of whoever is not a declared workload: an uplink's outside.
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
    /// Which of those have a quota.
    pub group: GroupId,
    /// MACs.
    pub macs: Vec<Mac>,
    /// Addresses.
    pub ips: Vec<IpAddr>,
    /// VLAN that tells it from its neighbours on the port; `None`: untagged.
    pub vlan: Option<u16>,
}

/// Everything [`Snapshot::build`] needs.
#[derive(Debug)]
pub struct SnapshotInput {
    /// Ports.
    pub ports: Vec<PortInput>,
    /// Policy; `None` before the first whole policy stands: everything is dropped as `no_policy`.
    pub classifier: Option<Arc<Classifier>>,
    /// Quotas of segments: how many connections their members may have open.
    pub segments: Vec<Quota>,
    /// How many workers share the receive queues.
    pub workers: usize,
}

/// An L2 domain: a VLAN of a tenant. An index into [`Snapshot::domains`].
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct DomainId(pub u16);

/// An index into [`Snapshot::owners`].
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct OwnerIdx(pub u32);

/// Whoever can be at one end of a connection: a workload, or the outside behind an uplink.
#[derive(Clone, Debug)]
pub struct Owner {
    /// Identity in connection keys.
    pub attachment: AttachmentId,
    /// Where it is attached.
    pub port: PortId,
    /// Its L2 domain (an uplink's outside has one per domain it carries).
    pub domain: DomainId,
    /// Tag to push on frames for it.
    pub tag: Option<u16>,
    /// Tenant and segments; the outside's set depends on the address and is asked for each time.
    pub party: Party,
    /// Whether this is the outside behind an uplink.
    pub outside: bool,
    /// Whether it is in quarantine; see [`Snapshot::quarantine`].
    pub quarantined: bool,
    /// Its segments with a quota.
    pub group: GroupId,
    /// The first of `macs` and of `ips`, here too: nearly every frame is from and for these, and to follow
    /// a vector is to wait for its line.
    first: (Option<Mac>, Option<Addr>),
    /// Those quotas, by index; see [`Snapshot::segment_quotas`].
    pub quotas: Vec<usize>,
    /// MACs, the first one answers ARP and ND.
    pub macs: Vec<Mac>,
    /// Addresses.
    pub ips: Vec<Addr>,
    /// Where detectors count what it does.
    pub(crate) cell: u32,
    /// Workload name; the port's for the outside.
    pub name: String,
}

impl Owner {
    /// Whether this is one of its MACs.
    #[inline]
    #[must_use]
    pub fn has_mac(&self, mac: Mac) -> bool {
        self.first.0 == Some(mac) || self.macs.contains(&mac)
    }

    /// Whether this is one of its addresses.
    #[inline]
    #[must_use]
    pub fn has_ip(&self, addr: &Addr) -> bool {
        self.first.1 == Some(*addr) || self.ips.contains(addr)
    }
}

/// A port as the data path sees it.
#[derive(Clone, Debug)]
pub struct PortView {
    /// Its queues.
    pub port: Arc<Port>,
    /// Owner.
    pub tenant: TenantId,
    /// Domain of untagged frames.
    pub access: DomainId,
    /// Tag to domain.
    pub trunk: Vec<(u16, DomainId)>,
    /// Carries the outside.
    pub uplink: bool,
    /// Spoof guard.
    pub guard: bool,
    /// Networks behind a router port.
    pub routes: Vec<Cidr>,
    /// Longest frame taken from it: MTU, Ethernet header and one inner tag.
    pub max_frame_bytes: u32,
    /// Connections whoever is on it may have open as initiators.
    pub quota: Quota,
    /// Workloads and (for an uplink) the outside, by tag.
    pub owners: Vec<OwnerIdx>,
}

/// A VLAN of a tenant.
#[derive(Clone, Debug)]
pub struct Domain {
    /// Whose.
    pub tenant: TenantId,
    /// VLAN, 0 for the untagged one.
    pub vlan: u16,
    /// Everybody in it: receivers of broadcast and multicast.
    pub members: Vec<OwnerIdx>,
    /// The outsides among them: where unknown unicast goes.
    pub uplinks: Vec<OwnerIdx>,
}

/// One receive queue a worker polls.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RxAssignment {
    /// Port.
    pub port: PortId,
    /// Index into the port's receive queues.
    pub queue: usize,
}

/// See the module documentation.
#[derive(Debug)]
pub struct Snapshot {
    ports: Vec<Option<PortView>>,
    owners: Vec<Owner>,
    domains: Vec<Domain>,
    /// (domain, MAC) to owner.
    macs: FrozenMap<u64>,
    /// (domain, address) to owner.
    neighbours: FrozenMap<(u16, Addr)>,
    /// Attachment to owner; an uplink's outside appears once.
    by_attachment: FrozenMap<u64>,
    classifier: Option<Arc<Classifier>>,
    walls: Option<Arc<Walls>>,
    quarantine: Option<Arc<Quarantine>>,
    reborn: Vec<AttachmentId>,
    segments: Vec<Quota>,
    assignments: Vec<Vec<RxAssignment>>,
    /// Ports whose transmit queues need housekeeping also when nothing is sent.
    maintained: Vec<Arc<Port>>,
}

/// The key of the MAC map: 16 bits of domain over 48 of address.
#[inline]
#[must_use]
pub fn mac_key(domain: DomainId, mac: Mac) -> u64 {
    u64::from(domain.0) << 48 | mac.as_u64()
}

impl Snapshot {
    /// An empty switch without policy: what workers start with.
    #[must_use]
    pub fn empty(workers: usize) -> Self {
        Snapshot::build(SnapshotInput {
            ports: Vec::new(),
            classifier: None,
            segments: Vec::new(),
            workers,
        })
    }

    /// Compiles the tables. The input was validated: names, MACs and addresses are unique within
    /// their domain, port ids are distinct. A later duplicate would lose to the first.
    #[must_use]
    pub fn build(input: SnapshotInput) -> Self {
        let mut s = Builder::default();
        for p in &input.ports {
            s.add_port(p);
        }
        s.finish(input)
    }

    /// A port.
    #[inline]
    #[must_use]
    pub fn port(&self, id: PortId) -> Option<&PortView> {
        self.ports.get(id.0 as usize)?.as_ref()
    }

    /// All ports.
    pub fn ports(&self) -> impl Iterator<Item = &PortView> {
        self.ports.iter().flatten()
    }

    /// An owner.
    #[inline]
    #[must_use]
    pub fn owner(&self, idx: OwnerIdx) -> Option<&Owner> {
        self.owners.get(idx.0 as usize)
    }

    /// All owners.
    #[must_use]
    pub fn owners(&self) -> &[Owner] {
        &self.owners
    }

    /// All owners, before it is published.
    pub(crate) fn owners_mut(&mut self) -> &mut [Owner] {
        &mut self.owners
    }

    /// A domain.
    #[inline]
    #[must_use]
    pub fn domain(&self, id: DomainId) -> Option<&Domain> {
        self.domains.get(id.0 as usize)
    }

    /// Who declared this MAC in this domain.
    #[inline]
    #[must_use]
    pub fn by_mac(&self, domain: DomainId, mac: Mac) -> Option<OwnerIdx> {
        self.macs.get(&mac_key(domain, mac)).map(OwnerIdx)
    }

    /// Whose this address is in this domain: who declared it, or has the MAC a link-local one is
    /// made of.
    #[inline]
    #[must_use]
    pub fn by_addr(&self, domain: DomainId, addr: Addr) -> Option<OwnerIdx> {
        self.neighbours.get(&(domain.0, addr)).map(OwnerIdx)
    }

    /// Who holds this attachment now; `None` when it is gone.
    #[must_use]
    pub fn by_attachment(&self, id: AttachmentId) -> Option<&Owner> {
        self.owner(OwnerIdx(self.by_attachment.get(&u64::from(id.0))?))
    }

    /// Whether `owner` forwards for networks behind its port.
    #[must_use]
    pub fn is_router(&self, owner: &Owner) -> bool {
        self.port(owner.port).is_some_and(|v| !v.routes.is_empty())
    }

    /// What bounds the connections the members of `owner`'s segments may open.
    pub fn segment_quotas(&self, owner: &Owner) -> impl Iterator<Item = &Quota> {
        owner.quotas.iter().filter_map(|i| self.segments.get(*i))
    }

    /// The policy; `None` before the first one.
    #[inline]
    #[must_use]
    pub fn classifier(&self) -> Option<&Arc<Classifier>> {
        self.classifier.as_ref()
    }

    /// With these walls.
    #[must_use]
    pub fn walled(mut self, walls: Option<Arc<Walls>>) -> Self {
        self.walls = walls;
        self
    }

    /// The walls; `None` when there are none.
    #[inline]
    #[must_use]
    pub fn walls(&self) -> Option<&Walls> {
        self.walls.as_deref()
    }

    /// With these in quarantine.
    #[must_use]
    pub fn quarantined(mut self, quarantine: Option<Arc<Quarantine>>) -> Self {
        for owner in &mut self.owners {
            let holds = |q: &Arc<Quarantine>| q.holds(owner.attachment);
            owner.quarantined = quarantine.as_ref().is_some_and(holds);
        }
        self.quarantine = quarantine;
        self
    }

    /// Who is in quarantine, and what is kept; `None` when nobody is, and nothing was kept.
    #[inline]
    #[must_use]
    pub fn quarantine(&self) -> Option<&Quarantine> {
        self.quarantine.as_deref()
    }

    /// With these restarted a moment ago, without a memory of their connections.
    #[must_use]
    pub fn reborn(mut self, reborn: Vec<AttachmentId>) -> Self {
        self.reborn = reborn;
        self
    }

    /// Whether somebody has forgotten his connections: what belongs to one is refused in his stead.
    #[must_use]
    pub fn is_reborn(&self, attachment: AttachmentId) -> bool {
        self.reborn.contains(&attachment)
    }

    /// Ports whose transmit queues need housekeeping also when nothing is sent.
    #[must_use]
    pub fn maintained(&self) -> &[Arc<Port>] {
        &self.maintained
    }

    /// The receive queues worker `index` polls.
    #[must_use]
    pub fn assignments(&self, index: usize) -> &[RxAssignment] {
        self.assignments.get(index).map_or(&[], Vec::as_slice)
    }

    /// Tenant and segments of `owner` when it uses `addr`: an outside is known by its address,
    /// a workload by who it is.
    #[inline]
    #[must_use]
    pub fn party(&self, classifier: &Classifier, owner: &Owner, addr: &Addr) -> Party {
        if owner.outside {
            Party {
                tenant: owner.party.tenant,
                set: classifier.outside(owner.party.tenant, addr),
            }
        } else {
            owner.party
        }
    }
}

#[derive(Default)]
struct Builder {
    ports: Vec<Option<PortView>>,
    owners: Vec<Owner>,
    domains: Vec<Domain>,
}

impl Builder {
    fn domain(&mut self, tenant: TenantId, vlan: u16) -> DomainId {
        let found = self
            .domains
            .iter()
            .position(|d| d.tenant == tenant && d.vlan == vlan);
        let index = found.unwrap_or_else(|| {
            self.domains.push(Domain {
                tenant,
                vlan,
                members: Vec::new(),
                uplinks: Vec::new(),
            });
            self.domains.len() - 1
        });
        // Tenants times VLANs in use; validation keeps both far below 65536.
        DomainId(u16::try_from(index).unwrap_or(u16::MAX))
    }

    fn add_owner(&mut self, owner: Owner) -> OwnerIdx {
        let idx = OwnerIdx(u32::try_from(self.owners.len()).unwrap_or(u32::MAX));
        if let Some(d) = self.domains.get_mut(owner.domain.0 as usize) {
            d.members.push(idx);
            if owner.outside {
                d.uplinks.push(idx);
            }
        }
        self.owners.push(owner);
        idx
    }

    fn add_port(&mut self, p: &PortInput) {
        let access = self.domain(p.tenant, p.vlan);
        let trunk: Vec<_> = p
            .trunk
            .iter()
            .map(|v| (*v, self.domain(p.tenant, *v)))
            .collect();
        let mut owners = Vec::new();
        for w in &p.workloads {
            // A workload's tag that is also a trunk VLAN puts it into that VLAN's domain. Any other
            // tag only tells containers inside a VM apart: they share the port's domain.
            let domain = w
                .vlan
                .and_then(|v| trunk.iter().find(|t| t.0 == v))
                .map_or(access, |t| t.1);
            owners.push(self.add_owner(Owner {
                attachment: w.attachment,
                port: p.port.id,
                domain,
                tag: w.vlan,
                party: w.party,
                outside: false,
                quarantined: false,
                group: w.group,
                first: (
                    w.macs.first().copied(),
                    w.ips.first().map(|ip| Addr::from(*ip)),
                ),
                quotas: Vec::new(),
                macs: w.macs.clone(),
                ips: w.ips.iter().map(|ip| Addr::from(*ip)).collect(),
                cell: UNWATCHED,
                name: w.name.clone(),
            }));
        }
        if p.uplink {
            let carried = std::iter::once((None, access))
                .chain(trunk.iter().map(|(v, d)| (Some(*v), *d)))
                .collect::<Vec<_>>();
            for (tag, domain) in carried {
                owners.push(self.add_owner(Owner {
                    attachment: p.attachment,
                    port: p.port.id,
                    domain,
                    tag,
                    party: Party {
                        tenant: p.tenant,
                        set: Default::default(),
                    },
                    outside: true,
                    quarantined: false,
                    group: GroupId::NONE,
                    first: (None, None),
                    quotas: Vec::new(),
                    macs: Vec::new(),
                    ips: Vec::new(),
                    cell: UNWATCHED,
                    name: p.port.name.clone(),
                }));
            }
        }
        let mut members: Vec<_> = p.workloads.iter().map(|w| w.attachment.0).collect();
        if p.uplink {
            members.push(p.attachment.0);
        }
        let index = p.port.id.0 as usize;
        if self.ports.len() <= index {
            self.ports.resize_with(index + 1, || None);
        }
        if let Some(slot) = self.ports.get_mut(index) {
            *slot = Some(PortView {
                port: Arc::clone(&p.port),
                tenant: p.tenant,
                access,
                trunk,
                uplink: p.uplink,
                guard: p.guard,
                routes: p.routes.clone(),
                // Ethernet header (14) and one inner VLAN tag (4).
                max_frame_bytes: u32::from(p.mtu) + 18,
                quota: Quota {
                    max: p.max_connections,
                    members,
                },
                owners,
            });
        }
    }

    fn finish(mut self, input: SnapshotInput) -> Snapshot {
        let mut by_group: HashMap<u32, Vec<usize>> = HashMap::new();
        for (i, quota) in input.segments.iter().enumerate() {
            for group in &quota.members {
                by_group.entry(*group).or_default().push(i);
            }
        }
        for owner in &mut self.owners {
            if let Some(quotas) = by_group.get(&owner.group.0) {
                owner.quotas.clone_from(quotas);
            }
        }
        let mut macs = Vec::new();
        let mut neighbours = Vec::new();
        let mut by_attachment = Vec::new();
        for (i, o) in self.owners.iter().enumerate() {
            let i = u32::try_from(i).unwrap_or(u32::MAX);
            macs.extend(o.macs.iter().map(|m| (mac_key(o.domain, *m), i)));
            neighbours.extend(o.ips.iter().map(|a| ((o.domain.0, *a), i)));
            by_attachment.push((u64::from(o.attachment.0), i));
        }
        // Behind all that was declared, which comes first.
        for (i, o) in (0..).zip(&self.owners) {
            let made = o.macs.iter().map(|m| (o.domain.0, eui64_link_local(*m)));
            neighbours.extend(made.map(|key| (key, i)));
        }
        let workers = input.workers.max(1);
        let mut assignments = vec![Vec::new(); workers];
        let mut next = 0;
        for view in self.ports.iter().flatten() {
            for queue in 0..view.port.rxqs.len() {
                if let Some(list) = assignments.get_mut(next % workers) {
                    list.push(RxAssignment {
                        port: view.port.id,
                        queue,
                    });
                }
                next += 1;
            }
        }
        let maintained = self.ports.iter().flatten().map(|v| &v.port);
        let maintained = maintained.filter(|p| p.is_maintained).cloned().collect();
        Snapshot {
            maintained,
            ports: self.ports,
            owners: self.owners,
            domains: self.domains,
            macs: FrozenMap::new(macs),
            neighbours: FrozenMap::new(neighbours),
            by_attachment: FrozenMap::new(by_attachment),
            classifier: input.classifier,
            walls: None,
            quarantine: None,
            reborn: Vec::new(),
            segments: input.segments,
            assignments,
        }
    }
}
