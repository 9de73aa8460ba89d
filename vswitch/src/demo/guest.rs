//! A guest: smoltcp over our own virtio-net driver, without offloads, so that every checksum of
//! what arrives is verified in software.

use std::collections::VecDeque;
use std::io;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::path::Path;

use smoltcp::iface::{Config, Interface, PollResult, SocketHandle, SocketSet};
use smoltcp::phy::{self, DeviceCapabilities, Medium};
use smoltcp::socket::tcp;
use smoltcp::time::Instant;
use smoltcp::wire::{EthernetAddress, IpCidr, Ipv4Cidr};

use super::Halt;
use super::host::{Host, Sock, State};
use crate::guest::{Guest, GuestConfig, NetHdr, feature};
use crate::packet::Mac;
use crate::sys::time::monotonic_ns;

/// Bytes of each socket's two buffers: the largest window without scaling (RFC 9293 section 3.1).
const BUFFER_BYTES: usize = 65_535;
/// Longest frame: Ethernet header and the usual MTU.
pub(super) const FRAME_BYTES: usize = 1514;
/// First of the dynamic ports (RFC 6335 section 6).
const FIRST_PORT: u16 = 49_152;
/// Frames taken from the ring at once.
const BURST: usize = 64;

/// What the demo's guests negotiate.
pub(super) fn config(ring_size: u16) -> GuestConfig {
    GuestConfig {
        ring_size,
        features: feature::VERSION_1 | feature::MRG_RXBUF | feature::EVENT_IDX,
        ..GuestConfig::default()
    }
}

/// A guest with a TCP stack.
pub(super) struct GuestHost {
    nic: Nic,
    interface: Interface,
    sockets: SocketSet<'static>,
    socks: Vec<Option<SocketHandle>>,
    next_port: u16,
}

impl GuestHost {
    /// Attaches to the switch's socket at `path`.
    pub(super) fn connect(path: &Path, mac: Mac, ip: Ipv4Addr, seed: u64) -> Result<Self, Halt> {
        let mut nic = Nic {
            guest: Guest::connect(path, config(256))?,
            inbox: VecDeque::new(),
        };
        let mut config = Config::new(EthernetAddress(mac.0).into());
        config.random_seed = seed;
        let mut interface = Interface::new(config, &mut nic, now());
        interface.update_ip_addrs(|list| {
            // There is room for more than one.
            let _ = list.push(IpCidr::Ipv4(Ipv4Cidr::new(ip, 24)));
        });
        Ok(GuestHost {
            nic,
            interface,
            sockets: SocketSet::new(Vec::new()),
            socks: Vec::new(),
            next_port: FIRST_PORT,
        })
    }

    fn add(&mut self, socket: tcp::Socket<'static>) -> Sock {
        let handle = self.sockets.add(socket);
        self.socks.push(Some(handle));
        Sock(self.socks.len() - 1)
    }

    fn socket(&mut self, sock: Sock) -> Option<&mut tcp::Socket<'static>> {
        let handle = self.socks.get(sock.0).copied().flatten()?;
        Some(self.sockets.get_mut(handle))
    }
}

fn socket() -> tcp::Socket<'static> {
    let buffer = || tcp::SocketBuffer::new(vec![0; BUFFER_BYTES]);
    let mut socket = tcp::Socket::new(buffer(), buffer());
    // Requests are small and waited for: an answer must not wait for company.
    socket.set_nagle_enabled(false);
    socket.set_ack_delay(None);
    socket
}

fn now() -> Instant {
    Instant::from_micros(i64::try_from(monotonic_ns() / 1000).unwrap_or(i64::MAX))
}

fn not_open() -> io::Error {
    io::Error::from(io::ErrorKind::NotConnected)
}

impl Host for GuestHost {
    fn poll(&mut self) -> bool {
        let received = self.nic.receive();
        let result = self.interface.poll(now(), &mut self.nic, &mut self.sockets);
        received || result == PollResult::SocketStateChanged
    }

    fn listen(&mut self, port: u16) -> Result<Sock, Halt> {
        let mut socket = socket();
        socket
            .listen(port)
            .map_err(|e| Halt::failed(format!("guest cannot listen on port {port}: {e}")))?;
        Ok(self.add(socket))
    }

    fn dial(&mut self, to: SocketAddrV4) -> Result<Sock, Halt> {
        let mut socket = socket();
        let from = self.next_port;
        self.next_port = from.checked_add(1).unwrap_or(FIRST_PORT);
        let target = (smoltcp::wire::IpAddress::Ipv4(*to.ip()), to.port());
        socket
            .connect(self.interface.context(), target, from)
            .map_err(|e| Halt::failed(format!("guest cannot connect to {to}: {e}")))?;
        Ok(self.add(socket))
    }

    fn state(&mut self, sock: Sock) -> State {
        let Some(socket) = self.socket(sock) else {
            return State::Refused("closed".to_owned());
        };
        match socket.state() {
            tcp::State::Listen | tcp::State::SynSent | tcp::State::SynReceived => State::Waiting,
            // The stack keeps no reason; it was us neither.
            tcp::State::Closed => State::Refused("reset by the other end".to_owned()),
            _ => State::Open,
        }
    }

    fn read(&mut self, sock: Sock, to: &mut [u8]) -> io::Result<usize> {
        let socket = self.socket(sock).ok_or_else(not_open)?;
        match socket.recv_slice(to) {
            Ok(0) => Err(io::Error::from(io::ErrorKind::WouldBlock)),
            Ok(n) => Ok(n),
            Err(_) => Err(not_open()),
        }
    }

    fn write(&mut self, sock: Sock, bytes: &[u8]) -> io::Result<usize> {
        let socket = self.socket(sock).ok_or_else(not_open)?;
        match socket.send_slice(bytes) {
            Ok(0) => Err(io::Error::from(io::ErrorKind::WouldBlock)),
            Ok(n) => Ok(n),
            Err(_) => Err(not_open()),
        }
    }

    fn close(&mut self, sock: Sock) {
        if let Some(handle) = self.socks.get_mut(sock.0).and_then(Option::take) {
            self.sockets.get_mut::<tcp::Socket<'_>>(handle).abort();
            // The reset leaves with this poll; then nothing refers to the socket any more.
            self.poll();
            self.sockets.remove(handle);
        }
    }

    fn send_raw(&mut self, frame: &[u8]) -> io::Result<()> {
        self.nic.send(frame)
    }
}

/// The driver as smoltcp sees it.
struct Nic {
    guest: Guest,
    inbox: VecDeque<Vec<u8>>,
}

impl Nic {
    /// Takes what has come; says whether anything has.
    fn receive(&mut self) -> bool {
        let Nic { guest, inbox } = self;
        let Some(queue) = guest.queue(0) else {
            return false;
        };
        queue.recv(BURST, |_, frame| inbox.push_back(frame.to_vec())) > 0
    }

    fn send(&mut self, frame: &[u8]) -> io::Result<()> {
        let sent = self
            .guest
            .queue(0)
            .map_or(0, |q| q.send(&[(NetHdr::default(), frame)]));
        if sent == 1 {
            Ok(())
        } else {
            Err(io::Error::from(io::ErrorKind::WouldBlock))
        }
    }
}

impl phy::Device for Nic {
    type RxToken<'a> = Received;
    type TxToken<'a> = Sender<'a>;

    fn receive(&mut self, _: Instant) -> Option<(Received, Sender<'_>)> {
        let frame = self.inbox.pop_front()?;
        Some((Received(frame), Sender(self)))
    }

    fn transmit(&mut self, _: Instant) -> Option<Sender<'_>> {
        Some(Sender(self))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ethernet;
        capabilities.max_transmission_unit = FRAME_BYTES;
        capabilities
    }
}

struct Received(Vec<u8>);

impl phy::RxToken for Received {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(&self.0)
    }
}

struct Sender<'a>(&'a mut Nic);

impl phy::TxToken for Sender<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        let mut frame = vec![0; len];
        let result = f(&mut frame);
        // No room in the ring: lost on the wire, as far as TCP is concerned.
        let _ = self.0.send(&frame);
        result
    }
}
