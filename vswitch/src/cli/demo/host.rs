//! A host in a virtual machine's place: smoltcp's TCP/IP stack on our own virtio-net driver.

use std::collections::VecDeque;
use std::net::Ipv4Addr;
use std::path::Path;
use std::time::Instant;

use smoltcp::iface::{Config, Interface, SocketHandle, SocketSet};
use smoltcp::phy::{self, DeviceCapabilities, Medium};
use smoltcp::socket::tcp;
use smoltcp::wire::{EthernetAddress, HardwareAddress, IpAddress, IpCidr};

use crate::guest::{Guest, GuestConfig, GuestError};
use crate::packet::Mac;
use crate::sys::virtio::{NetHdr, feature};

/// Bytes each socket can hold each way.
const BUFFER_BYTES: usize = 16 * 1024;
/// Ethernet header and an MTU of 1500.
const FRAME_BYTES: usize = 1514;

/// A guest's network card, as smoltcp wants it.
struct Card {
    guest: Guest,
    received: VecDeque<Vec<u8>>,
    to_send: VecDeque<Vec<u8>>,
}

impl Card {
    /// Moves frames between the rings and the queues.
    fn turn(&mut self) {
        let received = &mut self.received;
        let Some(queue) = self.guest.queue(0) else {
            return;
        };
        queue.recv(64, |_, frame| received.push_back(frame.to_vec()));
        while let Some(frame) = self.to_send.front() {
            if queue.send(&[(NetHdr::default(), frame)]) == 0 {
                return;
            }
            self.to_send.pop_front();
        }
    }
}

struct RxToken(Vec<u8>);
struct TxToken<'a>(&'a mut VecDeque<Vec<u8>>);

impl phy::RxToken for RxToken {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(&self.0)
    }
}

impl phy::TxToken for TxToken<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        let mut frame = vec![0; len];
        let result = f(&mut frame);
        self.0.push_back(frame);
        result
    }
}

impl phy::Device for Card {
    type RxToken<'a> = RxToken;
    type TxToken<'a> = TxToken<'a>;

    fn receive(
        &mut self,
        _now: smoltcp::time::Instant,
    ) -> Option<(Self::RxToken<'_>, Self::TxToken<'_>)> {
        let frame = self.received.pop_front()?;
        Some((RxToken(frame), TxToken(&mut self.to_send)))
    }

    fn transmit(&mut self, _now: smoltcp::time::Instant) -> Option<Self::TxToken<'_>> {
        Some(TxToken(&mut self.to_send))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut caps = DeviceCapabilities::default();
        caps.medium = Medium::Ethernet;
        caps.max_transmission_unit = FRAME_BYTES;
        caps
    }
}

/// See the module documentation.
pub(super) struct Host {
    card: Card,
    stack: Interface,
    sockets: SocketSet<'static>,
    servers: Vec<(SocketHandle, u16)>,
    started: Instant,
    next_port: u16,
}

impl Host {
    /// Attaches to the switch's port at `socket`.
    pub(super) fn attach(socket: &Path, mac: Mac, ip: Ipv4Addr) -> Result<Self, GuestError> {
        // Without offloads every checksum is the stack's to verify.
        let config = GuestConfig {
            features: feature::VERSION_1 | feature::MRG_RXBUF | feature::EVENT_IDX,
            ..GuestConfig::default()
        };
        let mut card = Card {
            guest: Guest::connect(socket, config)?,
            received: VecDeque::new(),
            to_send: VecDeque::new(),
        };
        let mut config = Config::new(HardwareAddress::Ethernet(EthernetAddress(mac.0)));
        config.random_seed = u64::from(std::process::id()) << 16 | mac.as_u64() & 0xffff;
        let mut stack = Interface::new(config, &mut card, smoltcp::time::Instant::ZERO);
        stack.update_ip_addrs(|addrs| {
            // A fresh interface has room for the first one.
            let _ = addrs.push(IpCidr::new(IpAddress::from(ip), 24));
        });
        Ok(Host {
            card,
            stack,
            sockets: SocketSet::new(Vec::new()),
            servers: Vec::new(),
            started: Instant::now(),
            next_port: 49152,
        })
    }

    fn socket(&mut self) -> SocketHandle {
        let buffer = || tcp::SocketBuffer::new(vec![0; BUFFER_BYTES]);
        self.sockets.add(tcp::Socket::new(buffer(), buffer()))
    }

    /// Serves echo at `port`; again and again, one connection at a time for each call.
    pub(super) fn serve(&mut self, port: u16) {
        let handle = self.socket();
        self.servers.push((handle, port));
    }

    /// Starts to open a connection.
    pub(super) fn dial(&mut self, ip: Ipv4Addr, port: u16) -> SocketHandle {
        let handle = self.socket();
        self.next_port += 1;
        let socket = self.sockets.get_mut::<tcp::Socket<'_>>(handle);
        // A fresh socket, a given address: nothing that could be wrong.
        let _ = socket.connect(
            self.stack.context(),
            (IpAddress::from(ip), port),
            self.next_port,
        );
        handle
    }

    pub(super) fn is_established(&mut self, handle: SocketHandle) -> bool {
        self.tcp(handle).state() == tcp::State::Established
    }

    /// The source port of the connection dialled last.
    pub(super) fn last_port(&self) -> u16 {
        self.next_port
    }

    pub(super) fn tcp(&mut self, handle: SocketHandle) -> &mut tcp::Socket<'static> {
        self.sockets.get_mut(handle)
    }

    /// Does whatever there is to do.
    pub(super) fn poll(&mut self) {
        self.card.turn();
        let micros = i64::try_from(self.started.elapsed().as_micros()).unwrap_or(i64::MAX);
        let now = smoltcp::time::Instant::from_micros(micros);
        self.stack.poll(now, &mut self.card, &mut self.sockets);
        for (handle, port) in &self.servers {
            let socket = self.sockets.get_mut::<tcp::Socket<'_>>(*handle);
            if !socket.is_open() {
                // Closed, so it can listen again.
                let _ = socket.listen(*port);
            }
            if socket.can_recv() && socket.can_send() {
                let got = socket.recv(|bytes| (bytes.len(), bytes.to_vec()));
                // Both buffers are of one size, and the sender waits for the echo.
                let _ = socket.send_slice(&got.unwrap_or_default());
            }
            if !socket.may_recv() && socket.may_send() {
                socket.close();
            }
        }
        self.stack.poll(now, &mut self.card, &mut self.sockets);
        self.card.turn();
    }
}
