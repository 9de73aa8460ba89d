//! Links and addresses over rtnetlink(7), synchronously: what `ip link` and `ip address` do.

use std::io;
use std::net::IpAddr;
use std::os::fd::{AsRawFd, RawFd};

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage,
    NetlinkPayload,
};
use netlink_packet_route::AddressFamily;
use netlink_packet_route::RouteNetlinkMessage as Message;
use netlink_packet_route::address::{AddressAttribute, AddressMessage};
use netlink_packet_route::link::{
    InfoData, InfoKind, InfoVeth, LinkAttribute, LinkFlags, LinkInfo as Info, LinkMessage, LinkXdp,
};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};

use super::netns::{NetNs, NetNsError};
use crate::packet::Mac;

/// The multicast group of link changes (linux/rtnetlink.h `RTNLGRP_LINK`).
const RTNLGRP_LINK: u32 = 1;

/// Attach only when there is no program yet (linux/if_link.h `XDP_FLAGS_UPDATE_IF_NOEXIST`).
const XDP_IF_NOEXIST: u32 = 1 << 0;
/// Attach only in place of the named program (`XDP_FLAGS_REPLACE`).
const XDP_REPLACE: u32 = 1 << 4;

/// Why a request failed.
#[derive(Debug, thiserror::Error)]
pub enum NetlinkError {
    /// No netlink socket.
    #[error("cannot open a netlink socket")]
    Socket(#[source] io::Error),
    /// The kernel refused.
    #[error("cannot {what}{hint}")]
    Refused {
        /// What was asked.
        what: String,
        /// What to do, when that is known.
        hint: &'static str,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// No such interface.
    #[error("no network interface {0} in this network namespace; `ip link` lists them")]
    NoLink(String),
    /// The answer was not understood.
    #[error("cannot {what}: the kernel's answer was not understood ({detail})")]
    Answer {
        /// What was asked.
        what: String,
        /// What was wrong.
        detail: String,
    },
    /// The namespace cannot be entered.
    #[error(transparent)]
    NetNs(#[from] NetNsError),
}

impl NetlinkError {
    /// The kernel's error number, when it was the kernel that refused.
    #[must_use]
    pub fn errno(&self) -> Option<i32> {
        match self {
            NetlinkError::Refused { source, .. } | NetlinkError::Socket(source) => {
                source.raw_os_error()
            }
            NetlinkError::NoLink(_) => Some(libc::ENODEV),
            NetlinkError::Answer { .. } | NetlinkError::NetNs(_) => None,
        }
    }
}

/// What is known about an interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// Index: names the interface within its namespace until it is removed, whatever it is called.
    pub index: u32,
    /// Name.
    pub name: String,
    /// Address.
    pub mac: Mac,
    /// Longest L3 packet, bytes.
    pub mtu: u32,
    /// Whether it is set up by its administrator.
    pub up: bool,
    /// Whether it is up and its carrier (for veth: its peer) is there.
    pub running: bool,
    /// Kind: `veth`, `tun`, …; empty for hardware.
    pub kind: String,
    /// Ids of the XDP programs attached.
    pub xdp: Vec<u32>,
}

/// How an XDP program is attached.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum XdpMode {
    /// In the driver, before a packet buffer exists.
    Native,
    /// In the kernel's generic receive path: works with every driver, slower.
    Generic,
}

impl XdpMode {
    /// `XDP_FLAGS_DRV_MODE` or `XDP_FLAGS_SKB_MODE` (linux/if_link.h).
    #[must_use]
    pub fn flag(self) -> u32 {
        match self {
            XdpMode::Native => 1 << 2,
            XdpMode::Generic => 1 << 1,
        }
    }
}

/// A netlink socket; it stays in the namespace it was opened in, whoever uses it.
#[derive(Debug)]
pub struct Netlink {
    socket: Socket,
    sequence: u32,
}

impl Netlink {
    /// A socket in the calling thread's namespace.
    ///
    /// # Errors
    /// Out of descriptors.
    pub fn new() -> Result<Netlink, NetlinkError> {
        let mut socket = Socket::new(NETLINK_ROUTE).map_err(NetlinkError::Socket)?;
        socket.bind_auto().map_err(NetlinkError::Socket)?;
        socket
            .connect(&SocketAddr::new(0, 0))
            .map_err(NetlinkError::Socket)?;
        Ok(Netlink {
            socket,
            sequence: 0,
        })
    }

    /// A socket in `netns`.
    ///
    /// # Errors
    /// The namespace cannot be entered (CAP_SYS_ADMIN).
    pub fn in_netns(netns: &NetNs) -> Result<Netlink, NetlinkError> {
        netns.run(Netlink::new)?
    }

    /// The interface called `name`.
    ///
    /// # Errors
    /// There is none.
    pub fn link(&mut self, name: &str) -> Result<Link, NetlinkError> {
        let mut m = LinkMessage::default();
        m.attributes.push(LinkAttribute::IfName(name.to_owned()));
        self.get_link(m, name)
    }

    /// The interface numbered `index`.
    ///
    /// # Errors
    /// There is none.
    pub fn link_by_index(&mut self, index: u32) -> Result<Link, NetlinkError> {
        self.get_link(by_index(index), &format!("number {index}"))
    }

    fn get_link(&mut self, m: LinkMessage, name: &str) -> Result<Link, NetlinkError> {
        let what = format!("read interface {name}");
        match self.ask(Message::GetLink(m), 0, &what) {
            Ok(Some(Message::NewLink(m))) => Ok(describe(&m)),
            Ok(_) => Err(NetlinkError::Answer {
                what,
                detail: "no link in it".to_owned(),
            }),
            Err(e) if e.errno() == Some(libc::ENODEV) => Err(NetlinkError::NoLink(name.to_owned())),
            Err(e) => Err(e),
        }
    }

    /// Creates a veth pair with `queues` queues each way; the peer appears in `peer_netns`, or
    /// here. Both ends are down.
    ///
    /// # Errors
    /// A name is taken, or the process lacks CAP_NET_ADMIN.
    pub fn create_veth(
        &mut self,
        name: &str,
        peer: &str,
        peer_netns: Option<&NetNs>,
        queues: u32,
    ) -> Result<(), NetlinkError> {
        let end = |name: &str| {
            let mut m = LinkMessage::default();
            m.attributes = vec![
                LinkAttribute::IfName(name.to_owned()),
                LinkAttribute::NumRxQueues(queues),
                LinkAttribute::NumTxQueues(queues),
            ];
            m
        };
        let mut other = end(peer);
        if let Some(ns) = peer_netns {
            other
                .attributes
                .push(LinkAttribute::NetNsFd(ns.as_raw_fd()));
        }
        let mut m = end(name);
        m.attributes.push(LinkAttribute::LinkInfo(vec![
            Info::Kind(InfoKind::Veth),
            Info::Data(InfoData::Veth(InfoVeth::Peer(other))),
        ]));
        let what = format!("create the veth pair {name} and {peer}");
        self.tell(Message::NewLink(m), NLM_F_CREATE | NLM_F_EXCL, &what)
    }

    /// Deletes an interface (and, for veth, its peer).
    ///
    /// # Errors
    /// There is none, or the process lacks CAP_NET_ADMIN.
    pub fn delete_link(&mut self, index: u32) -> Result<(), NetlinkError> {
        let what = format!("delete interface {index}");
        self.tell(Message::DelLink(by_index(index)), 0, &what)
    }

    /// Sets an interface up or down.
    ///
    /// # Errors
    /// There is none, or the process lacks CAP_NET_ADMIN.
    pub fn set_up(&mut self, index: u32, up: bool) -> Result<(), NetlinkError> {
        let mut m = by_index(index);
        m.header.change_mask = LinkFlags::Up;
        if up {
            m.header.flags = LinkFlags::Up;
        }
        let what = format!("set interface {index} {}", if up { "up" } else { "down" });
        self.tell(Message::SetLink(m), 0, &what)
    }

    /// Sets the longest L3 packet, bytes.
    ///
    /// # Errors
    /// The driver refuses the value, there is no such interface, or no CAP_NET_ADMIN.
    pub fn set_mtu(&mut self, index: u32, mtu: u32) -> Result<(), NetlinkError> {
        let what = format!("set the MTU of interface {index} to {mtu}");
        self.set(index, LinkAttribute::Mtu(mtu), &what)
    }

    /// Sets the MAC address.
    ///
    /// # Errors
    /// The driver refuses, there is no such interface, or no CAP_NET_ADMIN.
    pub fn set_mac(&mut self, index: u32, mac: Mac) -> Result<(), NetlinkError> {
        let what = format!("set the MAC of interface {index} to {mac}");
        self.set(index, LinkAttribute::Address(mac.0.to_vec()), &what)
    }

    /// Moves an interface to another namespace. Its index there may differ, and it arrives down.
    ///
    /// # Errors
    /// The name is taken there, there is no such interface, or no CAP_NET_ADMIN.
    pub fn move_link(&mut self, index: u32, to: &NetNs) -> Result<(), NetlinkError> {
        let what = format!("move interface {index} to another network namespace");
        self.set(index, LinkAttribute::NetNsFd(to.as_raw_fd()), &what)
    }

    fn set(&mut self, index: u32, a: LinkAttribute, what: &str) -> Result<(), NetlinkError> {
        let mut m = by_index(index);
        m.attributes.push(a);
        self.tell(Message::SetLink(m), 0, what)
    }

    /// Attaches the XDP program `program` in such a way that it outlives this process; `instead`
    /// is the program it replaces, and must be the one attached. `None`: must be none.
    ///
    /// # Errors
    /// `EBUSY` or `EEXIST` when another program is attached, `EOPNOTSUPP` when the driver cannot
    /// do `mode`, or no CAP_NET_ADMIN.
    pub fn attach_xdp(
        &mut self,
        index: u32,
        program: RawFd,
        mode: XdpMode,
        instead: Option<RawFd>,
    ) -> Result<(), NetlinkError> {
        let mut xdp = vec![LinkXdp::Fd(program)];
        match instead.and_then(|fd| u32::try_from(fd).ok()) {
            Some(old) => xdp.extend([
                LinkXdp::Flags(mode.flag() | XDP_REPLACE),
                LinkXdp::ExpectedFd(old),
            ]),
            None => xdp.push(LinkXdp::Flags(mode.flag() | XDP_IF_NOEXIST)),
        }
        let what = format!("attach the XDP program to interface {index}");
        self.set(index, LinkAttribute::Xdp(xdp), &what)
    }

    /// Removes the XDP program attached by [`Netlink::attach_xdp`], if it still is `program`.
    ///
    /// # Errors
    /// Another program is attached, or no CAP_NET_ADMIN.
    pub fn detach_xdp(
        &mut self,
        index: u32,
        program: RawFd,
        mode: XdpMode,
    ) -> Result<(), NetlinkError> {
        let xdp = vec![
            LinkXdp::Fd(-1),
            LinkXdp::Flags(mode.flag() | XDP_REPLACE),
            LinkXdp::ExpectedFd(u32::try_from(program).unwrap_or(u32::MAX)),
        ];
        let what = format!("detach the XDP program from interface {index}");
        self.set(index, LinkAttribute::Xdp(xdp), &what)
    }

    /// Adds an address. An IPv6 address is usable at once (no duplicate address detection).
    ///
    /// # Errors
    /// It is there already, there is no such interface, or no CAP_NET_ADMIN.
    pub fn add_address(
        &mut self,
        index: u32,
        address: IpAddr,
        prefix_len: u8,
    ) -> Result<(), NetlinkError> {
        let mut m = AddressMessage::default();
        m.header.prefix_len = prefix_len;
        m.header.index = index;
        match address {
            IpAddr::V4(_) => {
                m.header.family = AddressFamily::Inet;
                m.attributes.push(AddressAttribute::Local(address));
            }
            IpAddr::V6(_) => {
                m.header.family = AddressFamily::Inet6;
                m.header.flags = netlink_packet_route::address::AddressHeaderFlags::Nodad;
            }
        }
        m.attributes.push(AddressAttribute::Address(address));
        let what = format!("add the address {address}/{prefix_len} to interface {index}");
        self.tell(Message::NewAddress(m), NLM_F_CREATE | NLM_F_EXCL, &what)
    }

    /// Sends a request whose answer is only yes or no.
    fn tell(&mut self, m: Message, flags: u16, what: &str) -> Result<(), NetlinkError> {
        self.ask(m, flags | NLM_F_ACK, what).map(|_| ())
    }

    /// Sends a request and returns the message in the answer, if it has one.
    fn ask(&mut self, m: Message, flags: u16, what: &str) -> Result<Option<Message>, NetlinkError> {
        self.sequence = self.sequence.wrapping_add(1);
        let mut header = NetlinkHeader::default();
        header.flags = NLM_F_REQUEST | flags;
        header.sequence_number = self.sequence;
        let mut packet = NetlinkMessage::new(header, NetlinkPayload::from(m));
        packet.finalize();
        let mut bytes = vec![0; packet.buffer_len()];
        packet.serialize(&mut bytes);
        let refused = |source: io::Error| NetlinkError::Refused {
            what: what.to_owned(),
            hint: match source.raw_os_error() {
                Some(libc::EPERM) => " (needs CAP_NET_ADMIN)",
                Some(libc::EEXIST) => " (it exists already)",
                _ => "",
            },
            source,
        };
        self.socket.send(&bytes, 0).map_err(refused)?;
        loop {
            let (answer, _) = self.socket.recv_from_full().map_err(refused)?;
            let mut rest = answer.as_slice();
            while !rest.is_empty() {
                let message = NetlinkMessage::<Message>::deserialize(rest).map_err(|e| {
                    NetlinkError::Answer {
                        what: what.to_owned(),
                        detail: e.to_string(),
                    }
                })?;
                // Messages are padded to four bytes (netlink(7)).
                let step = usize::try_from(message.header.length)
                    .unwrap_or(rest.len())
                    .next_multiple_of(4)
                    .max(16);
                rest = rest.get(step..).unwrap_or(&[]);
                if message.header.sequence_number != self.sequence {
                    continue;
                }
                match message.payload {
                    NetlinkPayload::Error(e) if e.code.is_none() => return Ok(None),
                    NetlinkPayload::Error(e) => return Err(refused(e.to_io())),
                    NetlinkPayload::InnerMessage(m) => return Ok(Some(m)),
                    NetlinkPayload::Done(_) => return Ok(None),
                    _ => {}
                }
            }
        }
    }
}

/// Says when some link in a namespace changed: created, deleted, renamed, moved, up or down.
#[derive(Debug)]
pub struct LinkEvents(Socket);

impl LinkEvents {
    /// For the calling thread's namespace.
    ///
    /// # Errors
    /// Out of descriptors.
    pub fn new() -> Result<LinkEvents, NetlinkError> {
        let open = || {
            let mut socket = Socket::new(NETLINK_ROUTE)?;
            socket.bind_auto()?;
            socket.add_membership(RTNLGRP_LINK)?;
            socket.set_non_blocking(true)?;
            Ok(socket)
        };
        open().map(LinkEvents).map_err(NetlinkError::Socket)
    }

    /// Readable when something changed.
    #[must_use]
    pub fn fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }

    /// Forgets what is waiting; `true` when there was something (also when some was lost).
    pub fn drain(&self) -> bool {
        let mut any = false;
        let mut scratch = [0u8; 8];
        loop {
            // Truncated on purpose: the content does not matter, the links are read afresh.
            match self.0.recv(&mut &mut scratch[..], libc::MSG_DONTWAIT) {
                Ok(_) => any = true,
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return any,
                // ENOBUFS: the queue overflowed, so something happened.
                Err(e) if e.raw_os_error() == Some(libc::ENOBUFS) => any = true,
                Err(_) => return true,
            }
        }
    }
}

fn by_index(index: u32) -> LinkMessage {
    let mut m = LinkMessage::default();
    m.header.index = index;
    m
}

fn describe(m: &LinkMessage) -> Link {
    let mut link = Link {
        index: m.header.index,
        name: String::new(),
        mac: Mac::default(),
        mtu: 0,
        up: m.header.flags.contains(LinkFlags::Up),
        running: m
            .header
            .flags
            .contains(LinkFlags::Running | LinkFlags::LowerUp),
        kind: String::new(),
        xdp: Vec::new(),
    };
    for a in &m.attributes {
        match a {
            LinkAttribute::IfName(name) => link.name.clone_from(name),
            LinkAttribute::Mtu(mtu) => link.mtu = *mtu,
            LinkAttribute::Address(bytes) => {
                if let Some(mac) = bytes.first_chunk() {
                    link.mac = Mac(*mac);
                }
            }
            LinkAttribute::LinkInfo(infos) => {
                for info in infos {
                    if let Info::Kind(kind) = info {
                        link.kind = kind.to_string();
                    }
                }
            }
            LinkAttribute::Xdp(xdp) => {
                for x in xdp {
                    if let LinkXdp::ProgId(id)
                    | LinkXdp::DrvProgId(id)
                    | LinkXdp::SkbProgId(id)
                    | LinkXdp::HwProgId(id) = x
                        && *id != 0
                        && !link.xdp.contains(id)
                    {
                        link.xdp.push(*id);
                    }
                }
            }
            _ => {}
        }
    }
    link
}
