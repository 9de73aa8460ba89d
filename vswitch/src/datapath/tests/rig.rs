//! A whole switch without threads: mem ports, one worker that is stepped by hand, a policy, and a
//! clock that is a number. Every step checks conservation.

use std::collections::BTreeMap;
use std::sync::Arc;

use etherparse::PacketBuilder;

use crate::counters::{PortValues, WorkerValues};
use crate::datapath::passes::Walls;
use crate::datapath::quarantine::Quarantine;
use crate::datapath::quota::{GroupId, Groups, Quota};
use crate::datapath::snapshot::{AttachmentId, PortInput, Snapshot, SnapshotInput, WorkloadInput};
use crate::datapath::worker::{PollMode, Shared, Worker, WorkerConfig};
use crate::drop_reason::DropReason;
use crate::event::{AskEvent, ConnEvent, Consumer, SuspicionEvent};
use crate::frame::Offload;
use crate::packet::{Cidr, Mac};
use crate::policy::model::{Action, Policy, Rule, Segment};
use crate::policy::{Classifier, Party, SetId, TenantId, WorkloadFacts};
use crate::port::mem::{MemConfig, MemEnd};
use crate::port::{Port, PortId, mem};
use crate::sys::eventfd::EventFd;

/// A workload of a port in a rig.
#[derive(Clone, Debug)]
pub(super) struct Guest {
    pub(super) name: &'static str,
    pub(super) mac: u8,
    pub(super) ips: Vec<&'static str>,
    pub(super) tag: &'static str,
    pub(super) vlan: Option<u16>,
}

/// A port in a rig.
#[derive(Clone, Debug, Default)]
pub(super) struct RigPort {
    pub(super) name: &'static str,
    pub(super) guests: Vec<Guest>,
    pub(super) uplink: bool,
    pub(super) guard_off: bool,
    pub(super) vlan: u16,
    pub(super) trunk: Vec<u16>,
    pub(super) routes: Vec<Cidr>,
    pub(super) max_connections: Option<u32>,
}

pub(super) fn guest(name: &'static str, mac: u8, ips: &[&'static str], tag: &'static str) -> Guest {
    Guest {
        name,
        mac,
        ips: ips.to_vec(),
        tag,
        vlan: None,
    }
}

pub(super) fn port(name: &'static str, guests: Vec<Guest>) -> RigPort {
    RigPort {
        name,
        guests,
        ..RigPort::default()
    }
}

pub(super) fn mac(last: u8) -> Mac {
    Mac([0x52, 0x54, 0, 0, 0, last])
}

/// What came of sending one frame.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Outcome {
    /// Frames received, by port.
    pub(super) got: BTreeMap<&'static str, Vec<Vec<u8>>>,
    /// Drops, by name.
    pub(super) drops: BTreeMap<&'static str, u64>,
}

impl Outcome {
    /// The one reason why nothing arrived anywhere.
    #[track_caller]
    pub(super) fn dropped(&self, reason: DropReason) {
        assert_eq!(self.got, BTreeMap::new(), "somebody received it");
        assert_eq!(self.drops, BTreeMap::from([(reason.name(), 1)]));
    }

    /// The only port that got one frame, unchanged, and nothing was dropped.
    #[track_caller]
    pub(super) fn reached(&self, port: &str, frame: &[u8]) {
        assert_eq!(self.drops, BTreeMap::new());
        assert_eq!(self.got.keys().collect::<Vec<_>>(), [&port]);
        assert_eq!(self.got[port], [frame.to_vec()]);
    }

    /// What `port` got, when it got exactly one frame.
    #[track_caller]
    pub(super) fn one(&self, port: &str) -> &[u8] {
        let got = self
            .got
            .get(port)
            .unwrap_or_else(|| panic!("{port} got nothing: {self:?}"));
        assert_eq!(got.len(), 1);
        &got[0]
    }
}

pub(super) struct Rig {
    pub(super) shared: Arc<Shared>,
    pub(super) now_ns: u64,
    worker: Worker,
    events: Consumer<ConnEvent>,
    asks: Consumer<AskEvent>,
    suspicions: Consumer<SuspicionEvent>,
    layout: Vec<RigPort>,
    pub(super) ports: Vec<Arc<Port>>,
    ends: Vec<MemEnd>,
    classifier: Option<Arc<Classifier>>,
    groups: Groups,
    /// In force with the next policy.
    pub(super) walls: Option<Arc<Walls>>,
    pub(super) quarantine: Option<Arc<Quarantine>>,
}

impl Rig {
    pub(super) fn new(layout: Vec<RigPort>, policy: &Policy) -> Self {
        Rig::with_capacity(layout, policy, 1024)
    }

    pub(super) fn with_capacity(layout: Vec<RigPort>, policy: &Policy, capacity: usize) -> Self {
        let table = flowtable::Config {
            capacity,
            ..flowtable::Config::default()
        };
        let shared = Shared::new(1, 16, table).unwrap();
        let config = WorkerConfig {
            index: 0,
            core: None,
            poll: PollMode::Busy,
        };
        let wake = Arc::new(EventFd::new().unwrap());
        let worker = Worker::new(Arc::clone(&shared), config, wake).unwrap();
        let events = shared.take_events(0).unwrap();
        let asks = shared.take_asks(0).unwrap();
        let suspicions = shared.take_suspicions(0).unwrap();
        let (mut ports, mut ends) = (Vec::new(), Vec::new());
        for (i, p) in (0..).zip(&layout) {
            let config = MemConfig::default();
            let (port, end) = mem::open(PortId(i), p.name, &config).unwrap();
            ports.push(port);
            ends.push(end);
        }
        let mut rig = Rig {
            shared,
            now_ns: 1_000_000_000_000,
            worker,
            events,
            asks,
            suspicions,
            layout,
            ports,
            ends,
            classifier: None,
            groups: Groups::default(),
            walls: None,
            quarantine: None,
        };
        rig.apply(policy);
        rig
    }

    /// Compiles and publishes a policy for the present layout.
    pub(super) fn apply(&mut self, policy: &Policy) {
        let facts: Vec<_> = self
            .layout
            .iter()
            .flat_map(|p| &p.guests)
            .map(|g| WorkloadFacts {
                tenant: TenantId(0),
                name: g.name.to_owned(),
                tags: vec![g.tag.to_owned()],
                ips: g.ips.iter().map(|ip| ip.parse().unwrap()).collect(),
                ..WorkloadFacts::default()
            })
            .collect();
        let compiled = Classifier::compile(policy, &facts, self.classifier.as_deref()).unwrap();
        let classifier = Arc::new(compiled.classifier);
        self.classifier = Some(Arc::clone(&classifier));
        let (groups, segments) = self.groups.assign(policy, &facts);
        let mut residents = compiled.parties.into_iter().zip(groups);
        self.publish(Some(classifier), segments, &mut residents);
    }

    fn publish(
        &mut self,
        classifier: Option<Arc<Classifier>>,
        segments: Vec<Quota>,
        residents: &mut dyn Iterator<Item = (Party, GroupId)>,
    ) {
        let mut attachment = 100;
        let ports = self
            .layout
            .iter()
            .zip(&self.ports)
            .zip(0..)
            .map(|((p, port), index)| PortInput {
                port: Arc::clone(port),
                tenant: TenantId(0),
                vlan: p.vlan,
                trunk: p.trunk.clone(),
                uplink: p.uplink,
                guard: !p.guard_off,
                routes: p.routes.clone(),
                mtu: 1500,
                max_connections: p.max_connections.unwrap_or(1000),
                attachment: AttachmentId(index),
                workloads: p
                    .guests
                    .iter()
                    .map(|g| {
                        attachment += 1;
                        let (party, group) = residents.next().unwrap();
                        WorkloadInput {
                            attachment: AttachmentId(attachment),
                            name: g.name.to_owned(),
                            party,
                            group,
                            macs: vec![mac(g.mac)],
                            ips: g.ips.iter().map(|ip| ip.parse().unwrap()).collect(),
                            vlan: g.vlan,
                        }
                    })
                    .collect(),
            })
            .collect();
        let input = SnapshotInput {
            ports,
            classifier,
            segments,
            workers: 1,
        };
        let snapshot = Snapshot::build(input).walled(self.walls.clone());
        let snapshot = snapshot.quarantined(self.quarantine.clone());
        self.shared.publish(snapshot);
    }

    /// Publishes the ports of the layout without any policy, as before the first one.
    pub(super) fn apply_without_policy(&mut self) {
        let nobody = Party {
            tenant: TenantId(0),
            set: SetId(0),
        };
        let mut residents = std::iter::repeat((nobody, GroupId::NONE));
        self.publish(None, Vec::new(), &mut residents);
    }

    /// Gives a port another number and new queues, as when its interface comes back; in force with
    /// the next policy.
    pub(super) fn renumber(&mut self, name: &'static str, id: u16) {
        let at = self.index(name);
        let (port, end) = mem::open(PortId(id), name, &MemConfig::default()).unwrap();
        self.ports[at] = port;
        self.ends[at] = end;
    }

    /// Connections open from a port.
    pub(super) fn open_connections(&self, port: &str) -> u64 {
        let id = self.ports[self.index(port)].id;
        let snapshot = self.shared.snapshots.current();
        self.shared
            .quotas
            .of_port(&snapshot.port(id).unwrap().quota)
    }

    pub(super) fn classifier(&self) -> &Classifier {
        self.classifier.as_deref().unwrap()
    }

    pub(super) fn index(&self, port: &str) -> usize {
        self.layout.iter().position(|p| p.name == port).unwrap()
    }

    /// Sends one frame into the switch by `port` and lets the switch finish.
    pub(super) fn send(&mut self, port: &str, frame: &[u8]) -> Outcome {
        self.send_all(port, &[frame.to_vec()], Offload::default())
    }

    /// Sends frames in one burst.
    pub(super) fn send_all(&mut self, port: &str, frames: &[Vec<u8>], offload: Offload) -> Outcome {
        let at = self.index(port);
        let before = self.drops();
        for f in frames {
            self.ends[at].send_with(f, offload).unwrap();
        }
        self.settle(&before)
    }

    /// Sends a frame that the switch does not look at yet.
    pub(super) fn leave(&mut self, port: &str, frame: &[u8]) {
        let at = self.index(port);
        let sent = self.ends[at].send_with(frame, Offload::default());
        sent.unwrap();
    }

    /// Lets the switch finish what it has to do.
    pub(super) fn step(&mut self) -> Outcome {
        self.settle(&self.drops())
    }

    fn settle(&mut self, before: &BTreeMap<&'static str, u64>) -> Outcome {
        while self.worker.step(self.now_ns) {}
        let mut outcome = Outcome::default();
        let mut bytes = Vec::new();
        for (i, end) in self.ends.iter_mut().enumerate() {
            while end.recv(&mut bytes).is_some() {
                outcome
                    .got
                    .entry(self.layout[i].name)
                    .or_default()
                    .push(bytes.clone());
            }
        }
        for (name, n) in self.drops() {
            let delta = n - before.get(name).copied().unwrap_or(0);
            if delta > 0 {
                outcome.drops.insert(name, delta);
            }
        }
        self.check_conservation();
        outcome
    }

    /// Lets time pass, with the switch looking at its connections every second.
    pub(super) fn pass_secs(&mut self, secs: u64) {
        for _ in 0..secs {
            self.now_ns += 1_000_000_000;
            for _ in 0..self.shared.table.buckets() {
                self.worker.step(self.now_ns);
            }
        }
    }

    pub(super) fn drops(&self) -> BTreeMap<&'static str, u64> {
        let mut all = BTreeMap::new();
        for reason in DropReason::ALL {
            let n: u64 = self.shared.counters[0]
                .ports
                .iter()
                .map(|c| c.drops.get(*reason))
                .sum();
            if n > 0 {
                all.insert(reason.name(), n);
            }
        }
        all
    }

    pub(super) fn worker_values(&self) -> WorkerValues {
        let mut v = WorkerValues::default();
        v.add(&self.shared.counters[0].worker);
        v
    }

    pub(super) fn totals(&self) -> PortValues {
        let mut v = PortValues::default();
        for cell in &self.shared.counters[0].ports {
            v.add(&cell.pkts);
        }
        v
    }

    /// rx + originated + copies + extra segments = tx + drops + consumed + held.
    #[track_caller]
    pub(super) fn check_conservation(&self) {
        let v = self.totals();
        let drops: u64 = self.drops().values().sum();
        assert_eq!(
            v.rx_pkts + v.originated_pkts + v.copies_pkts + v.extra_segments_pkts,
            v.tx_pkts + drops + v.consumed_pkts + (v.held_pkts - v.unheld_pkts),
            "a frame was lost or made up: {v:?}, drops {:?}",
            self.drops()
        );
    }

    /// What was asked since the last call.
    pub(super) fn asks(&mut self) -> Vec<AskEvent> {
        std::iter::from_fn(|| self.asks.pop()).collect()
    }

    /// Who was suspected since the last call.
    pub(super) fn suspicions(&mut self) -> Vec<SuspicionEvent> {
        std::iter::from_fn(|| self.suspicions.pop()).collect()
    }

    /// The attachment of a guest.
    pub(super) fn attachment(&self, name: &str) -> AttachmentId {
        let snapshot = self.shared.snapshots.current();
        let mut owners = snapshot.owners().iter();
        owners.find(|o| o.name == name).unwrap().attachment
    }

    pub(super) fn events(&mut self) -> Vec<ConnEvent> {
        std::iter::from_fn(|| self.events.pop()).collect()
    }
}

// --- policies -------------------------------------------------------------------------------

pub(super) fn segment(name: &str, tag: &str) -> Segment {
    Segment {
        tags: vec![tag.to_owned()],
        ..Segment::new(name)
    }
}

pub(super) fn outside() -> Segment {
    Segment {
        cidr: ["0.0.0.0/0", "::/0"]
            .map(|c| {
                let (addr, len) = c.split_once('/').unwrap();
                Cidr {
                    addr: addr.parse().unwrap(),
                    len: len.parse().unwrap(),
                }
            })
            .to_vec(),
        ..Segment::new("outside")
    }
}

pub(super) fn rule(name: &str, from: &str, to: &str, service: &[&str], action: Action) -> Rule {
    Rule {
        service: service.iter().map(|s| s.parse().unwrap()).collect(),
        ..Rule::new(name, &[from], &[to], action)
    }
}

// --- frames ---------------------------------------------------------------------------------

/// Who talks to whom, as the sender writes it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Talk {
    pub(super) src_mac: u8,
    pub(super) dst_mac: Mac,
    pub(super) src: &'static str,
    pub(super) dst: &'static str,
}

pub(super) fn talk(src_mac: u8, src: &'static str, dst_mac: u8, dst: &'static str) -> Talk {
    Talk {
        src_mac,
        dst_mac: mac(dst_mac),
        src,
        dst,
    }
}

impl Talk {
    pub(super) fn back(self) -> Talk {
        Talk {
            src_mac: self.dst_mac.0[5],
            dst_mac: mac(self.src_mac),
            src: self.dst,
            dst: self.src,
        }
    }

    fn ip(&self) -> etherparse::PacketBuilderStep<etherparse::IpHeaders> {
        let eth = PacketBuilder::ethernet2(mac(self.src_mac).0, self.dst_mac.0);
        match (self.src.parse().unwrap(), self.dst.parse().unwrap()) {
            (std::net::IpAddr::V4(s), std::net::IpAddr::V4(d)) => {
                eth.ipv4(s.octets(), d.octets(), 64)
            }
            (std::net::IpAddr::V6(s), std::net::IpAddr::V6(d)) => {
                eth.ipv6(s.octets(), d.octets(), 64)
            }
            _ => panic!("mixed families"),
        }
    }

    /// An ICMPv6 message with the hop limit that shows it came through no router.
    pub(super) fn icmp6(&self, kind: u8, flags: u8, body: &[u8]) -> Vec<u8> {
        let (Ok(src), Ok(dst)) = (self.src.parse(), self.dst.parse()) else {
            panic!("not IPv6")
        };
        let (src, dst): (std::net::Ipv6Addr, std::net::Ipv6Addr) = (src, dst);
        let mut out = Vec::new();
        PacketBuilder::ethernet2(mac(self.src_mac).0, self.dst_mac.0)
            .ipv6(src.octets(), dst.octets(), 255)
            .icmpv6_raw(kind, 0, [flags, 0, 0, 0])
            .write(&mut out, body)
            .unwrap();
        out
    }

    pub(super) fn udp(&self, sport: u16, dport: u16, payload: &[u8]) -> Vec<u8> {
        let b = self.ip().udp(sport, dport);
        let mut out = Vec::new();
        b.write(&mut out, payload).unwrap();
        out
    }

    /// `flags` as letters of "SAFRP".
    pub(super) fn tcp(
        &self,
        (sport, dport): (u16, u16),
        flags: &str,
        seq: u32,
        ack: u32,
        payload: &[u8],
    ) -> Vec<u8> {
        let mut b = self.ip().tcp(sport, dport, seq, 64_000);
        for f in flags.chars() {
            b = match f {
                'S' => b.syn(),
                'A' => b.ack(ack),
                'F' => b.fin(),
                'R' => b.rst(),
                'P' => b.psh(),
                other => panic!("no flag {other}"),
            };
        }
        let mut out = Vec::new();
        b.write(&mut out, payload).unwrap();
        out
    }

    /// "Port unreachable" about an IPv4 packet.
    pub(super) fn unreachable(&self, about: &[u8]) -> Vec<u8> {
        let port = etherparse::icmpv4::DestUnreachableHeader::Port;
        let b = self
            .ip()
            .icmpv4(etherparse::Icmpv4Type::DestinationUnreachable(port));
        let mut out = Vec::new();
        b.write(&mut out, &about[14..]).unwrap();
        out
    }

    pub(super) fn ping(&self, id: u16, reply: bool) -> Vec<u8> {
        let mut out = Vec::new();
        if self.src.contains(':') {
            let b = self.ip();
            let b = if reply {
                b.icmpv6_echo_reply(id, 1)
            } else {
                b.icmpv6_echo_request(id, 1)
            };
            b.write(&mut out, b"ping").unwrap();
        } else {
            let b = self.ip();
            let b = if reply {
                b.icmpv4_echo_reply(id, 1)
            } else {
                b.icmpv4_echo_request(id, 1)
            };
            b.write(&mut out, b"ping").unwrap();
        }
        out
    }
}

/// An IPv4 frame as two fragments, the first with 16 bytes of payload.
pub(super) fn fragments(frame: &[u8], id: u16) -> [Vec<u8>; 2] {
    const DATA: usize = 14 + 20;
    let cut = DATA + 16;
    let piece = |data: &[u8], field: u16| {
        let mut ip = frame[14..DATA].to_vec();
        ip[2..4].copy_from_slice(&u16::try_from(20 + data.len()).unwrap().to_be_bytes());
        ip[4..6].copy_from_slice(&id.to_be_bytes());
        ip[6..8].copy_from_slice(&field.to_be_bytes());
        ip[10..12].fill(0);
        let sum: u32 = ip
            .chunks(2)
            .map(|c| u32::from(u16::from_be_bytes([c[0], c[1]])))
            .sum();
        let folded = (sum & 0xffff) + (sum >> 16);
        ip[10..12].copy_from_slice(&(!u16::try_from(folded).unwrap()).to_be_bytes());
        [&frame[..14], &ip, data].concat()
    };
    // More fragments; then two units of 8 bytes further on.
    [
        piece(&frame[DATA..cut], 0x2000),
        piece(&frame[cut..], 16 / 8),
    ]
}

/// The same frame with an 802.1Q tag.
pub(super) fn tagged(frame: &[u8], vid: u16) -> Vec<u8> {
    let mut out = frame[..12].to_vec();
    out.extend([0x81, 0]);
    out.extend(vid.to_be_bytes());
    out.extend(&frame[12..]);
    out
}
