//! A container: a network namespace of its own behind a veth pair, with the kernel's TCP in it and
//! the kernel's default offloads, so that partial checksums cross the switch.

use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddrV4, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, TryRecvError, channel};
use std::time::Duration;

use super::Halt;
use super::host::{Host, Sock, State};
use super::place::Place;
use crate::packet::Mac;
use crate::sys::netlink::Netlink;
use crate::sys::netns::NetNs;

/// How long the kernel may try to connect. A denied SYN is repeated after one second; the demo
/// itself waits shorter.
const CONNECT_LIMIT: Duration = Duration::from_secs(3);

/// The network part: gone with this value.
#[derive(Debug)]
pub(super) struct Wiring {
    netns: String,
    interface: String,
}

impl Wiring {
    /// The namespace's name, as `ip netns` shows it.
    pub(super) fn netns(&self) -> &str {
        &self.netns
    }

    /// The switch's end of the pair.
    pub(super) fn interface(&self) -> &str {
        &self.interface
    }
}

impl Drop for Wiring {
    fn drop(&mut self) {
        // The pair first: a namespace's interfaces go only some time after it. What cannot be
        // deleted here is what the next run sweeps.
        let _ = Netlink::new().and_then(|mut host| {
            let index = host.link(&self.interface)?.index;
            host.delete_link(index)
        });
        let _ = NetNs::delete(&self.netns);
    }
}

/// A container with TCP.
pub(super) struct Container {
    ns: Arc<NetNs>,
    socks: Vec<Kernel>,
}

enum Kernel {
    Listener(TcpListener),
    Dialing(Receiver<io::Result<TcpStream>>),
    Stream(TcpStream),
    Refused(String),
}

impl Container {
    /// Makes namespace and pair; the peer inside is `eth0`.
    pub(super) fn new(
        place: &Place,
        name: &str,
        mac: Mac,
        ip: Ipv4Addr,
    ) -> Result<(Self, Wiring), Halt> {
        let netns = place.netns(name);
        let ns = NetNs::create(&netns)?;
        // From here on what was made is taken down again, also on an error.
        let wiring = Wiring {
            netns,
            interface: place.interface(name),
        };
        let mut host = Netlink::new()?;
        host.create_veth(wiring.interface(), "eth0", Some(&ns), 1)?;
        let index = host.link(wiring.interface())?.index;
        let mut inside = Netlink::in_netns(&ns)?;
        let lo = inside.link("lo")?.index;
        inside.set_up(lo, true)?;
        let eth0 = inside.link("eth0")?.index;
        inside.set_mac(eth0, mac)?;
        inside.add_address(eth0, IpAddr::V4(ip), 24)?;
        inside.set_up(eth0, true)?;
        host.set_up(index, true)?;
        let container = Container {
            ns: Arc::new(ns),
            socks: Vec::new(),
        };
        Ok((container, wiring))
    }

    fn add(&mut self, socket: Kernel) -> Sock {
        self.socks.push(socket);
        Sock(self.socks.len() - 1)
    }

    fn stream(&mut self, sock: Sock) -> io::Result<&mut TcpStream> {
        match self.socks.get_mut(sock.0) {
            Some(Kernel::Stream(stream)) => Ok(stream),
            _ => Err(io::Error::from(io::ErrorKind::NotConnected)),
        }
    }
}

/// A connected socket, set for what the demo does with it.
fn ready(stream: TcpStream) -> Kernel {
    let set = || {
        stream.set_nonblocking(true)?;
        stream.set_nodelay(true)
    };
    match set() {
        Ok(()) => Kernel::Stream(stream),
        Err(e) => Kernel::Refused(e.to_string()),
    }
}

impl Host for Container {
    fn poll(&mut self) -> bool {
        // The kernel works by itself.
        false
    }

    fn listen(&mut self, port: u16) -> Result<Sock, Halt> {
        let listener = self
            .ns
            .run(|| TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)))??;
        listener.set_nonblocking(true)?;
        Ok(self.add(Kernel::Listener(listener)))
    }

    fn dial(&mut self, to: SocketAddrV4) -> Result<Sock, Halt> {
        let (answer, result) = channel();
        let ns = Arc::clone(&self.ns);
        // std cannot connect without blocking.
        std::thread::Builder::new()
            .name("demo-connect".to_owned())
            .spawn(move || {
                let connected = ns
                    .run(|| TcpStream::connect_timeout(&to.into(), CONNECT_LIMIT))
                    .map_err(io::Error::other)
                    .and_then(|inner| inner);
                // Nobody waits any more when the demo was stopped.
                let _ = answer.send(connected);
            })?;
        Ok(self.add(Kernel::Dialing(result)))
    }

    fn state(&mut self, sock: Sock) -> State {
        let Some(kernel) = self.socks.get_mut(sock.0) else {
            return State::Refused("closed".to_owned());
        };
        let next = match kernel {
            Kernel::Listener(listener) => match listener.accept() {
                Ok((stream, _)) => Some(ready(stream)),
                Err(_) => None,
            },
            Kernel::Dialing(result) => match result.try_recv() {
                Ok(Ok(stream)) => Some(ready(stream)),
                Ok(Err(e)) => Some(Kernel::Refused(match e.raw_os_error() {
                    Some(libc::ECONNREFUSED) => "connection refused".to_owned(),
                    _ => e.to_string(),
                })),
                Err(TryRecvError::Empty) => None,
                Err(TryRecvError::Disconnected) => {
                    Some(Kernel::Refused("the connecting thread died".to_owned()))
                }
            },
            Kernel::Stream(_) | Kernel::Refused(_) => None,
        };
        if let Some(next) = next {
            *kernel = next;
        }
        match kernel {
            Kernel::Stream(_) => State::Open,
            Kernel::Refused(why) => State::Refused(why.clone()),
            Kernel::Listener(_) | Kernel::Dialing(_) => State::Waiting,
        }
    }

    fn read(&mut self, sock: Sock, to: &mut [u8]) -> io::Result<usize> {
        match self.stream(sock)?.read(to)? {
            0 => Err(io::Error::from(io::ErrorKind::UnexpectedEof)),
            n => Ok(n),
        }
    }

    fn write(&mut self, sock: Sock, bytes: &[u8]) -> io::Result<usize> {
        self.stream(sock)?.write(bytes)
    }

    fn close(&mut self, sock: Sock) {
        if let Some(kernel) = self.socks.get_mut(sock.0) {
            *kernel = Kernel::Refused("closed".to_owned());
        }
    }

    fn send_raw(&mut self, _: &[u8]) -> io::Result<()> {
        Err(io::Error::from(io::ErrorKind::Unsupported))
    }
}
