//! Guests of our own as stations: each sends the frames it is told to, says nothing by itself, and sees whatever reaches it.

use super::{Lab, wait_for};
use std::time::Duration;
use vswitch::guest::{Guest, GuestConfig};
use vswitch::sys::virtio::NetHdr;

/// Bound on what must happen.
const LIMIT: Duration = Duration::from_secs(20);

/// A MAC.
pub type Mac = [u8; 6];
/// An IPv4 address.
pub type Ip = [u8; 4];

/// 52:54:00:00:00:`last`.
pub const fn mac(last: u8) -> Mac {
    [0x52, 0x54, 0, 0, 0, last]
}

/// A UDP frame with this payload.
pub fn udp(macs: (Mac, Mac), ips: (Ip, Ip), ports: (u16, u16), payload: &[u8]) -> Vec<u8> {
    let mut frame = Vec::new();
    etherparse::PacketBuilder::ethernet2(macs.0, macs.1)
        .ipv4(ips.0, ips.1, 64)
        .udp(ports.0, ports.1)
        .write(&mut frame, payload)
        .expect("a vector takes every frame");
    frame
}

/// An ARP request by `sender` for `target` (RFC 826), padded to the shortest frame.
pub fn arp_request(sender: (Mac, Ip), target: Ip) -> Vec<u8> {
    let mut frame = [[0xff; 6], sender.0].concat();
    // EtherType; Ethernet, IPv4, address lengths, request.
    frame.extend([0x08, 0x06, 0, 1, 8, 0, 6, 4, 0, 1]);
    frame.extend([&sender.0[..], &sender.1, &[0; 6], &target].concat());
    frame.resize(60, 0);
    frame
}

/// The same frame with an 802.1Q tag.
pub fn tagged(frame: &[u8], vlan: u16) -> Vec<u8> {
    let mut out = frame[..12].to_vec();
    out.extend([0x81, 0]);
    out.extend(vlan.to_be_bytes());
    out.extend(&frame[12..]);
    out
}

/// The head of a vhost-user `[[port]]` table whose socket is NAME.sock in the lab; `keys` are further lines of it.
pub fn port(lab: &Lab, name: &str, keys: &str) -> String {
    let socket = lab.path_str(format!("{name}.sock"));
    format!("[[port]]\nname = \"{name}\"\nkind = \"vhost-user\"\nsocket = \"{socket}\"\n{keys}\n")
}

/// A `[[port.workload]]` table with the MAC 52:54:00:00:00:`last`; `keys` are further lines of it.
pub fn workload(name: &str, last: u8, ip: &str, keys: &str) -> String {
    format!(
        "[[port.workload]]\nname = \"{name}\"\nmac = [\"52:54:00:00:00:{last:02x}\"]\nip = [\"{ip}\"]\n{keys}\n"
    )
}

/// A guest on the port of that name.
#[derive(Debug)]
pub struct Station {
    name: String,
    guest: Guest,
}

impl Station {
    /// Attaches a guest to the port `name` of [`port`]; the switch must be running.
    pub fn attach(lab: &Lab, name: &str) -> Self {
        let guest = Guest::connect(
            &lab.path(format!("{name}.sock")),
            GuestConfig {
                // A 64 KiB frame with its headers: what is sent whole fits whatever is offloaded.
                buf_bytes: 66 << 10,
                ring_size: 128,
                ..GuestConfig::default()
            },
        );
        Self {
            name: name.to_owned(),
            guest: guest.unwrap_or_else(|e| panic!("{name}: {e}")),
        }
    }

    /// Sends one frame.
    pub fn send(&mut self, frame: &[u8]) {
        self.send_with(NetHdr::default(), frame);
    }

    /// Sends one frame with an offload request.
    pub fn send_with(&mut self, hdr: NetHdr, frame: &[u8]) {
        let queue = self.guest.queue(0).expect("a guest has a queue");
        wait_for("room in the ring", LIMIT, || {
            (queue.send(&[(hdr, frame)]) == 1).then_some(())
        });
    }

    /// Takes out what has come, so that there is room for more.
    pub fn drain(&mut self) {
        let queue = self.guest.queue(0).expect("a guest has a queue");
        while queue.recv(1, |_, _| {}) == 1 {}
    }

    /// Waits for `last`, byte for byte; the frames that came before it.
    pub fn recv_until(&mut self, last: &[u8]) -> Vec<Vec<u8>> {
        let mut before = Vec::new();
        let queue = self.guest.queue(0).expect("a guest has a queue");
        let name = &self.name;
        let found = super::poll(LIMIT, || {
            let mut frame = Vec::new();
            while queue.recv(1, |_, bytes| frame = bytes.to_vec()) == 1 {
                if frame == last {
                    return Some(());
                }
                before.push(std::mem::take(&mut frame));
            }
            None
        });
        assert!(
            found.is_some(),
            "{name} did not get its frame, but {before:x?}"
        );
        before
    }

    /// Waits for `frame`, which must be the next one.
    pub fn recv(&mut self, frame: &[u8]) {
        let before = self.recv_until(frame);
        assert!(before.is_empty(), "{} got more: {before:x?}", self.name);
    }

    /// Waits for one frame, whatever it is.
    pub fn recv_any(&mut self) -> Vec<u8> {
        let queue = self.guest.queue(0).expect("a guest has a queue");
        wait_for(&format!("a frame at {}", self.name), LIMIT, || {
            let mut frame = Vec::new();
            (queue.recv(1, |_, bytes| frame = bytes.to_vec()) == 1).then_some(frame)
        })
    }
}
