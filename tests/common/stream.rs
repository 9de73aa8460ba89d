//! Frames that tell, where they arrive, whether they are intact and in order.
//!
//! Frame `seq` of a [`Flow`] is a function of the two: a UDP datagram whose payload names flow and sequence number and goes on
//! in bytes drawn from them. The receiver builds the frame that should have come and compares every byte, so any damage shows,
//! in headers too.

use pcap_file::pcap::{PcapPacket, PcapReader, PcapWriter};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufReader, BufWriter};
use std::net::Ipv4Addr;
use std::path::Path;
use std::time::Duration;

/// Ethernet, IPv4, UDP, and the two numbers: no frame of a stream is shorter.
const SMALLEST_SIZE: usize = 14 + 20 + 8 + 12;

/// One UDP flow. Its frames are told apart by the destination port, which must differ between the flows of one test.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Flow {
    /// Sender's MAC.
    pub src_mac: [u8; 6],
    /// Receiver's MAC.
    pub dst_mac: [u8; 6],
    /// Sender's address.
    pub src_ip: Ipv4Addr,
    /// Receiver's address.
    pub dst_ip: Ipv4Addr,
    /// Sender's port.
    pub src_port: u16,
    /// Receiver's port: the flow's number.
    pub dst_port: u16,
    /// Smallest and largest frame, in bytes without FCS; each frame's size lies between, both included.
    pub sizes: (usize, usize),
}

impl Flow {
    /// Frame number `seq`.
    pub fn frame(&self, seq: u64) -> Vec<u8> {
        let (low, high) = self.sizes;
        assert!(
            SMALLEST_SIZE <= low && low <= high,
            "sizes {:?}",
            self.sizes
        );
        let mut random = Random::new(u64::from(self.dst_port), seq);
        let span = u64::try_from(high - low + 1).expect("frames are small");
        let size = low + usize::try_from(random.next() % span).expect("less than the span");

        let mut payload = Vec::with_capacity(size);
        payload.extend(u32::from(self.dst_port).to_be_bytes());
        payload.extend(seq.to_be_bytes());
        while payload.len() < size - 42 {
            payload.extend(random.next().to_be_bytes());
        }
        payload.truncate(size - 42);

        let mut frame = Vec::with_capacity(size);
        etherparse::PacketBuilder::ethernet2(self.src_mac, self.dst_mac)
            .ipv4(self.src_ip.octets(), self.dst_ip.octets(), 64)
            .udp(self.src_port, self.dst_port)
            .write(&mut frame, &payload)
            .expect("a vector takes everything");
        frame
    }
}

/// SplitMix64 (Steele, Lea, Flood 2014): good enough to make every byte differ, and the same everywhere.
struct Random(u64);

impl Random {
    fn new(flow: u64, seq: u64) -> Self {
        Self((flow << 48) ^ seq.wrapping_mul(0xd134_2543_de82_ef95))
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

/// Writes a capture with frames `0..count` of each flow, the flows taking turns.
pub fn write_pcap(path: &Path, flows: &[Flow], count: u64) {
    let file =
        BufWriter::new(File::create(path).unwrap_or_else(|e| panic!("{}: {e}", path.display())));
    let mut pcap = PcapWriter::new(file).expect("the header is written");
    for seq in 0..count {
        for flow in flows {
            let frame = flow.frame(seq);
            let len = u32::try_from(frame.len()).expect("frames are small");
            pcap.write_packet(&PcapPacket::new(Duration::ZERO, len, &frame))
                .expect("the frame is written");
        }
    }
}

/// Checks the captures of one receiver, one of each of its queues: every frame of `flows` byte for byte as it was sent, each
/// flow in order, without doubles, and in one queue only. Frames of others (ARP, neighbour discovery) are passed over.
///
/// Returns how many frames of each flow arrived, in the order of `flows`.
///
/// # Errors
///
/// What is wrong with the first frame that is not as it should be.
pub fn check_pcaps(paths: &[impl AsRef<Path>], flows: &[Flow]) -> Result<Vec<u64>, String> {
    let mut seen: BTreeMap<u16, Seen> = BTreeMap::new();
    for (queue, path) in paths.iter().enumerate() {
        let path = path.as_ref();
        let file = File::open(path).map_err(|e| format!("{}: {e}", path.display()))?;
        let mut pcap = PcapReader::new(BufReader::new(file))
            .map_err(|e| format!("{}: {e}", path.display()))?;
        let mut index = 0_u64;
        while let Some(packet) = pcap.next_packet() {
            let packet = packet.map_err(|e| format!("{}: {e}", path.display()))?;
            check_frame(&packet.data, flows, queue, &mut seen)
                .map_err(|e| format!("{}: frame {index}: {e}", path.display()))?;
            index += 1;
        }
    }
    Ok(flows
        .iter()
        .map(|flow| seen.get(&flow.dst_port).map_or(0, |s| s.count))
        .collect())
}

/// What is known of one flow at the receiver.
struct Seen {
    queue: usize,
    last: u64,
    count: u64,
}

fn check_frame(
    data: &[u8],
    flows: &[Flow],
    queue: usize,
    seen: &mut BTreeMap<u16, Seen>,
) -> Result<(), String> {
    // IPv4 without options, UDP; anything else is not ours unless it was damaged, and then our count misses it.
    let is_udp =
        data.len() >= SMALLEST_SIZE && data[12..15] == [0x08, 0x00, 0x45] && data[23] == 17;
    if !is_udp {
        return Ok(());
    }
    let port = u16::from_be_bytes([data[36], data[37]]);
    let Some(flow) = flows.iter().find(|flow| flow.dst_port == port) else {
        return Err(format!(
            "UDP to port {port}, which is no flow of this receiver"
        ));
    };
    let seq = u64::from_be_bytes(data[46..54].try_into().expect("eight bytes"));
    let expected = flow.frame(seq);
    if data != expected {
        let at = data
            .iter()
            .zip(&expected)
            .position(|(a, b)| a != b)
            .unwrap_or(data.len().min(expected.len()));
        return Err(format!(
            "flow {port} seq {seq} is damaged at byte {at} ({} bytes long, {} sent)",
            data.len(),
            expected.len()
        ));
    }
    let Some(known) = seen.get_mut(&port) else {
        seen.insert(
            port,
            Seen {
                queue,
                last: seq,
                count: 1,
            },
        );
        return Ok(());
    };
    if known.queue != queue {
        return Err(format!(
            "flow {port} is in queue {queue} and was in queue {}",
            known.queue
        ));
    }
    if seq <= known.last {
        return Err(format!("flow {port}: seq {seq} after {}", known.last));
    }
    known.last = seq;
    known.count += 1;
    Ok(())
}
