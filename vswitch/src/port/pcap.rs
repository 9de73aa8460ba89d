#![allow(unsafe_code)]
//! A port for tests and debugging: replays a capture into the switch, records what is sent to it.
//!
//! The capture (pcap or pcapng, Ethernet) is read whole when the port is opened, and replayed once,
//! as fast as the worker polls. What is sent to the port is completed and segmented as for a wire,
//! and written to a pcapng file by the worker itself: one write a burst, so this is not a port for
//! speed.
//!
//! Invariant owned here: the capture's bytes are never changed or freed while the receive queue
//! lives, so tails may point into them.

use std::borrow::Cow;
use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read, Seek, SeekFrom, Write};
use std::os::fd::RawFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime};

use pcap_file::pcap::PcapReader;
use pcap_file::pcapng::blocks::enhanced_packet::EnhancedPacketBlock;
use pcap_file::pcapng::blocks::interface_description::{
    InterfaceDescriptionBlock, InterfaceDescriptionOption,
};
use pcap_file::pcapng::{Block, PcapNgReader, PcapNgWriter};
use pcap_file::{DataLink, PcapError as FileError};

use super::{Port, PortId, RxQueue, TxQueue};
use crate::counters::PortCell;
use crate::drop_reason::DropReason;
use crate::frame::{Burst, HEAD_CAP, OutItem, Scratch, TxCaps};
use crate::offload::{self, Out};
use crate::sys::gate::Gate;

/// Longest frame replayed and recorded: a 64 KiB IP packet with Ethernet and two tags.
const FRAME_MAX: u32 = 65_535 + 22;
/// A full burst of full Ethernet frames is one write.
const WRITE_BUFFER_BYTES: usize = 256 * 1024;
/// The first bytes of a pcapng file, in either byte order.
const PCAPNG_MAGIC: [u8; 4] = [0x0a, 0x0d, 0x0d, 0x0a];

/// How to open a pcap port.
#[derive(Clone, Debug, Default)]
pub struct PcapConfig {
    /// Replayed into the switch.
    pub input: Option<PathBuf>,
    /// Written with what is sent to the port; an old file is replaced.
    pub output: Option<PathBuf>,
}

/// Why a pcap port could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum PcapError {
    /// The capture cannot be opened.
    #[error("pcap port {port}: cannot open {path}")]
    Open {
        /// The port.
        port: String,
        /// The file.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// It is not a capture, or is damaged.
    #[error("pcap port {port}: {path} cannot be read beyond frame {frames}")]
    Read {
        /// The port.
        port: String,
        /// The file.
        path: PathBuf,
        /// Frames read before.
        frames: usize,
        /// What is wrong.
        #[source]
        source: FileError,
    },
    /// It was taken from something else than Ethernet.
    #[error("pcap port {port}: {path} holds {link:?} frames; only Ethernet can be replayed")]
    LinkType {
        /// The port.
        port: String,
        /// The file.
        path: PathBuf,
        /// Its link type.
        link: DataLink,
    },
    /// The recording cannot be started.
    #[error("pcap port {port}: cannot create {path}")]
    Create {
        /// The port.
        port: String,
        /// The file.
        path: PathBuf,
        /// What is wrong.
        #[source]
        source: FileError,
    },
    /// Input and output are one file.
    #[error("pcap port {port}: {path} is both input and output, and would be overwritten")]
    SameFile {
        /// The port.
        port: String,
        /// The file.
        path: PathBuf,
    },
}

/// Opens a port. Its link is up; without an output, frames sent to it are counted and vanish.
///
/// # Errors
/// See [`PcapError`].
pub fn open(
    id: PortId,
    name: &str,
    config: &PcapConfig,
) -> Result<(Arc<Port>, PcapControl), PcapError> {
    let capture = match &config.input {
        Some(path) => read(name, path)?,
        None => Capture::default(),
    };
    if let (Some(input), Some(output)) = (&config.input, &config.output)
        && let (Ok(a), Ok(b)) = (input.canonicalize(), output.canonicalize())
        && a == b
    {
        return Err(PcapError::SameFile {
            port: name.to_owned(),
            path: a,
        });
    }
    let recorder = match &config.output {
        Some(path) => Some(
            Recorder::create(name, path).map_err(|source| PcapError::Create {
                port: name.to_owned(),
                path: path.clone(),
                source,
            })?,
        ),
        None => None,
    };
    let frames = capture.frames.len();
    let rxq = Gate::new(RxQueue::Pcap(Rx { capture, next: 0 }));
    let txq = Gate::new(TxQueue::Pcap(Tx {
        recorder,
        frame: Vec::new(),
        scratch: Scratch::default(),
    }));
    let port = Arc::new(Port::new(id, name, vec![rxq], vec![txq]));
    port.link_up.store(true, Ordering::Relaxed);
    let control = PcapControl {
        port: port.clone(),
        frames,
    };
    Ok((port, control))
}

/// The control thread's side of a port.
#[derive(Debug)]
pub struct PcapControl {
    port: Arc<Port>,
    frames: usize,
}

impl PcapControl {
    /// Frames in the capture.
    #[must_use]
    pub fn frames(&self) -> usize {
        self.frames
    }

    /// Whether all of them were replayed. Waits for a worker's present burst.
    #[must_use]
    pub fn is_done(&self) -> bool {
        self.port.rxqs.iter().all(|q| match &*q.lock() {
            RxQueue::Pcap(rx) => rx.next >= rx.capture.frames.len(),
            _ => true,
        })
    }
}

/// All frames of a capture, one behind the other.
#[derive(Debug, Default)]
struct Capture {
    bytes: Vec<u8>,
    frames: Vec<CapturedFrame>,
}

#[derive(Clone, Copy, Debug)]
struct CapturedFrame {
    start: usize,
    end: usize,
    /// On the wire; more than was captured when the capture was cut short.
    original_len: u32,
}

impl Capture {
    fn push(&mut self, data: &[u8], original_len: u32) {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(data);
        self.frames.push(CapturedFrame {
            start,
            end: self.bytes.len(),
            original_len,
        });
    }
}

fn read(port: &str, path: &Path) -> Result<Capture, PcapError> {
    let open = || {
        let mut file = BufReader::new(File::open(path)?);
        let mut magic = [0; 4];
        // A file of less is no capture, which the reader will say.
        let is_ng = file.read_exact(&mut magic).is_ok() && magic == PCAPNG_MAGIC;
        file.seek(SeekFrom::Start(0))?;
        Ok((file, is_ng))
    };
    let (file, is_ng) = open().map_err(|source| PcapError::Open {
        port: port.to_owned(),
        path: path.to_owned(),
        source,
    })?;
    let mut capture = Capture::default();
    let outcome = if is_ng {
        read_pcapng(file, &mut capture)
    } else {
        read_pcap(file, &mut capture)
    };
    match outcome {
        Ok(DataLink::ETHERNET) => Ok(capture),
        Ok(link) => Err(PcapError::LinkType {
            port: port.to_owned(),
            path: path.to_owned(),
            link,
        }),
        Err(source) => Err(PcapError::Read {
            port: port.to_owned(),
            path: path.to_owned(),
            frames: capture.frames.len(),
            source,
        }),
    }
}

/// Returns the link type; other than Ethernet, reading stopped there.
fn read_pcap(file: impl Read, capture: &mut Capture) -> Result<DataLink, FileError> {
    let mut reader = PcapReader::new(file)?;
    let link = reader.header().datalink;
    if link == DataLink::ETHERNET {
        while let Some(packet) = reader.next_packet() {
            let packet = packet?;
            capture.push(&packet.data, packet.orig_len);
        }
    }
    Ok(link)
}

/// As [`read_pcap`], for the first interface of another type that a frame came from.
fn read_pcapng(file: impl Read, capture: &mut Capture) -> Result<DataLink, FileError> {
    let mut reader = PcapNgReader::new(file)?;
    let mut links: Vec<DataLink> = Vec::new();
    while let Some(block) = reader.next_block() {
        let (interface, data, original_len) = match block? {
            Block::SectionHeader(_) => {
                links.clear();
                continue;
            }
            Block::InterfaceDescription(i) => {
                links.push(i.linktype);
                continue;
            }
            Block::EnhancedPacket(p) => (p.interface_id, p.data, p.original_len),
            Block::SimplePacket(p) => (0, p.data, p.original_len),
            _ => continue,
        };
        match links.get(interface as usize) {
            Some(&DataLink::ETHERNET) => capture.push(&data, original_len),
            Some(&link) => return Ok(link),
            None => return Err(FileError::InvalidInterfaceId(interface)),
        }
    }
    Ok(DataLink::ETHERNET)
}

/// Replays.
#[derive(Debug)]
pub struct Rx {
    capture: Capture,
    /// The frame to come.
    next: usize,
}

impl Rx {
    pub(crate) fn rx_burst(&mut self, burst: &mut Burst, cell: &PortCell) {
        while burst.room() > 0 && burst.seg_room() > 0 {
            let Some(captured) = self.capture.frames.get(self.next) else {
                return;
            };
            self.next += 1;
            let Some(bytes) = self.capture.bytes.get(captured.start..captured.end) else {
                return;
            };
            let reason = if (bytes.len() as u64) < u64::from(captured.original_len) {
                // What was cut off cannot be made up.
                Some(DropReason::PortRxError)
            } else if bytes.len() > FRAME_MAX as usize {
                Some(DropReason::Oversize)
            } else {
                None
            };
            if let Some(reason) = reason {
                cell.pkts.rx_pkts.add(1);
                cell.drops.add(reason, 1);
                continue;
            }
            let Some(frame) = burst.push() else { return };
            let (head, tail) = bytes.split_at(bytes.len().min(HEAD_CAP));
            frame.fill()[..head.len()].copy_from_slice(head);
            frame.set_head_len(head.len());
            if !tail.is_empty() {
                #[allow(clippy::cast_possible_truncation)] // at most FRAME_MAX
                let len = tail.len() as u32;
                // SAFETY: the capture does not change while the queue lives, and the queue lives
                // at least until its gate is left, when the burst has been cleared.
                unsafe { burst.add_tail(tail.as_ptr(), len) };
            }
        }
    }

    pub(crate) fn arm(&mut self) -> bool {
        self.next < self.capture.frames.len()
    }

    pub(crate) fn wake_fd(&self) -> Option<RawFd> {
        None
    }
}

/// Records.
#[derive(Debug)]
pub struct Tx {
    recorder: Option<Recorder>,
    frame: Vec<u8>,
    scratch: Scratch,
}

impl Tx {
    pub(crate) fn tx_burst(&mut self, burst: &Burst, items: &[OutItem], cell: &PortCell) {
        let Tx {
            recorder,
            frame,
            scratch,
        } = self;
        let caps = TxCaps {
            max_frame_bytes: FRAME_MAX,
            ..TxCaps::default()
        };
        let now = SystemTime::now()
            .duration_since(SystemTime::UNIX_EPOCH)
            .unwrap_or(Duration::ZERO);
        for item in items {
            let Some(view) = burst.view(*item, scratch) else {
                cell.drops.add(DropReason::TxTooBig, 1);
                continue;
            };
            offload::send(&view, &caps, cell, &mut |out| match recorder {
                Some(recorder) => record(recorder, frame, now, out),
                None => Ok(()),
            });
        }
        if let Some(recorder) = recorder {
            // What could not be written shows as an error of the next frame, too.
            let _ = recorder.flush();
        }
    }
}

fn record(
    recorder: &mut Recorder,
    frame: &mut Vec<u8>,
    now: Duration,
    out: &Out<'_>,
) -> Result<(), DropReason> {
    frame.clear();
    frame.extend_from_slice(out.head);
    out.tail.append_to(frame);
    recorder
        .write(now, frame)
        .map_err(|_full_disk| DropReason::TxError)
}

/// The pcapng file being written.
struct Recorder(PcapNgWriter<BufWriter<File>>);

impl Recorder {
    fn create(port: &str, path: &Path) -> Result<Recorder, FileError> {
        let file = File::create(path).map_err(FileError::IoError)?;
        let mut writer = PcapNgWriter::new(BufWriter::with_capacity(WRITE_BUFFER_BYTES, file))?;
        writer.write_pcapng_block(InterfaceDescriptionBlock {
            linktype: DataLink::ETHERNET,
            snaplen: 0,
            options: vec![
                InterfaceDescriptionOption::IfName(Cow::Borrowed(port)),
                // Time stamps in nanoseconds.
                InterfaceDescriptionOption::IfTsResol(9),
            ],
        })?;
        writer.get_mut().flush().map_err(FileError::IoError)?;
        Ok(Recorder(writer))
    }

    fn write(&mut self, timestamp: Duration, frame: &[u8]) -> Result<(), FileError> {
        self.0.write_pcapng_block(EnhancedPacketBlock {
            interface_id: 0,
            timestamp,
            original_len: u32::try_from(frame.len()).unwrap_or(u32::MAX),
            data: Cow::Borrowed(frame),
            options: Vec::new(),
        })?;
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.get_mut().flush()
    }
}

impl std::fmt::Debug for Recorder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Recorder").field(self.0.get_ref()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use pcap_file::TsResolution;
    use pcap_file::pcap::{PcapHeader, PcapPacket, PcapWriter};

    fn frame(len: usize) -> Vec<u8> {
        (0..len).map(|i| (i % 253).to_le_bytes()[0]).collect()
    }

    /// Moves everything from one port to the other; returns the first one's counters.
    fn forward(from: &Port, to: &Port) -> (PortCell, PortCell) {
        let (rx_cell, tx_cell) = (PortCell::default(), PortCell::default());
        let mut burst = Burst::new();
        let mut rxq = from.rxqs[0].enter().unwrap();
        while rxq.arm() {
            rxq.rx_burst(&mut burst, &rx_cell);
            let items: Vec<OutItem> = (0..burst.received())
                .map(|slot| OutItem {
                    slot: u16::try_from(slot).unwrap(),
                    tag: None,
                })
                .collect();
            to.txqs[0]
                .enter()
                .unwrap()
                .tx_burst(&burst, &items, &tx_cell);
            rxq.complete(&burst);
            burst.clear();
        }
        (rx_cell, tx_cell)
    }

    fn in_out(input: Option<&Path>, output: Option<&Path>) -> PcapConfig {
        PcapConfig {
            input: input.map(Path::to_owned),
            output: output.map(Path::to_owned),
        }
    }

    fn write_pcap(path: &Path, datalink: DataLink, frames: &[(Vec<u8>, u32)]) {
        let header = PcapHeader {
            datalink,
            snaplen: 1 << 20,
            ts_resolution: TsResolution::NanoSecond,
            ..PcapHeader::default()
        };
        let mut w = PcapWriter::with_header(File::create(path).unwrap(), header).unwrap();
        for (data, original) in frames {
            w.write_packet(&PcapPacket::new(Duration::from_secs(1), *original, data))
                .unwrap();
        }
    }

    #[test]
    fn what_is_replayed_is_recorded_and_can_be_replayed_again() {
        let dir = tempfile::tempdir().unwrap();
        let (first, second) = (dir.path().join("a.pcap"), dir.path().join("b.pcapng"));
        let third = dir.path().join("c.pcapng");
        let lens = [14, 60, 256, 257, 1514, 9014, 65_557];
        let frames: Vec<_> = (0..100)
            .map(|i| {
                let f = frame(lens[i % lens.len()]);
                let len = u32::try_from(f.len()).unwrap();
                (f, len)
            })
            .collect();
        write_pcap(&first, DataLink::ETHERNET, &frames);
        for (input, output) in [(&first, &second), (&second, &third)] {
            let (from, control) =
                open(PortId(0), "in", &in_out(Some(input.as_path()), None)).unwrap();
            let (to, _) = open(PortId(1), "out", &in_out(None, Some(output.as_path()))).unwrap();
            assert_eq!(control.frames(), 100);
            assert!(!control.is_done());
            let (_, tx) = forward(&from, &to);
            assert!(control.is_done());
            assert_eq!(tx.pkts.tx_pkts.get(), 100);
        }
        let mut r = PcapNgReader::new(File::open(&third).unwrap()).unwrap();
        let mut got = Vec::new();
        while let Some(block) = r.next_block() {
            if let Block::EnhancedPacket(p) = block.unwrap() {
                assert!(p.timestamp > Duration::from_secs(1_600_000_000));
                got.push(p.data.into_owned());
            }
        }
        assert!(got.iter().eq(frames.iter().map(|(f, _)| f)));
    }

    #[test]
    fn incomplete_and_oversized_frames_are_counted_drops() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.pcap");
        let frames = [
            (frame(60), 60),
            (frame(60), 61),
            (frame(65_558), 65_558),
            (frame(100), 100),
        ];
        write_pcap(&path, DataLink::ETHERNET, &frames);
        let (from, _) = open(PortId(0), "in", &in_out(Some(&path), None)).unwrap();
        let (to, _) = open(PortId(1), "out", &PcapConfig::default()).unwrap();
        let (rx, tx) = forward(&from, &to);
        assert_eq!(rx.drops.get(DropReason::PortRxError), 1);
        assert_eq!(rx.drops.get(DropReason::Oversize), 1);
        assert_eq!((rx.pkts.rx_pkts.get(), tx.pkts.tx_pkts.get()), (2, 2));
    }

    #[test]
    fn what_a_full_disk_refuses_is_counted() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.pcap");
        let frames: Vec<_> = (0..100).map(|_| (frame(9014), 9014)).collect();
        write_pcap(&path, DataLink::ETHERNET, &frames);
        let (from, _) = open(PortId(0), "in", &in_out(Some(&path), None)).unwrap();
        let full = in_out(None, Some(Path::new("/dev/full")));
        let Ok((to, _)) = open(PortId(1), "out", &full) else {
            return; // Said at once: as good.
        };
        let (_, tx) = forward(&from, &to);
        let refused = tx.drops.get(DropReason::TxError);
        assert!(refused > 0);
        assert_eq!(refused + tx.pkts.tx_pkts.get(), 100);
    }

    #[test]
    fn what_is_wrong_is_said() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.pcap");
        let error = |c: &PcapConfig| open(PortId(0), "p", c).unwrap_err();
        let missing = error(&in_out(Some(&path), None));
        assert!(matches!(missing, PcapError::Open { .. }), "{missing}");
        std::fs::write(&path, b"no").unwrap();
        let short = error(&in_out(Some(&path), None));
        assert!(
            matches!(short, PcapError::Read { frames: 0, .. }),
            "{short}"
        );
        std::fs::write(&path, [7; 400]).unwrap();
        let junk = error(&in_out(Some(&path), None));
        assert!(matches!(junk, PcapError::Read { frames: 0, .. }), "{junk}");
        write_pcap(&path, DataLink::IPV4, &[(frame(60), 60)]);
        let ip = error(&in_out(Some(&path), None));
        assert!(ip.to_string().contains("only Ethernet"), "{ip}");
        write_pcap(&path, DataLink::ETHERNET, &[(frame(60), 60)]);
        let whole = std::fs::read(&path).unwrap();
        std::fs::write(&path, &whole[..whole.len() - 1]).unwrap();
        let cut = error(&in_out(Some(&path), None));
        assert!(matches!(cut, PcapError::Read { .. }), "{cut}");
        let same = error(&in_out(Some(dir.path()), Some(dir.path())));
        assert!(
            matches!(same, PcapError::Read { .. } | PcapError::Open { .. }),
            "{same}"
        );
        write_pcap(&path, DataLink::ETHERNET, &[(frame(60), 60)]);
        let same = error(&in_out(Some(&path), Some(&path)));
        assert!(matches!(same, PcapError::SameFile { .. }), "{same}");
        let nowhere = dir.path().join("no/such/dir.pcapng");
        let create = error(&in_out(None, Some(&nowhere)));
        assert!(matches!(create, PcapError::Create { .. }), "{create}");
    }
}
