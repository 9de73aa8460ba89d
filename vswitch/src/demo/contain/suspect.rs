//! `web-1`, which turns bad: a real VM, or a guest in this process.

use super::super::Halt;
use super::super::floor::Floor;
use super::super::host::{Sock, State};
use super::super::stacks::{LIMIT, Who};
use super::WEB;
use super::machine::Machine;
use crate::packet::{Mac, checksum};

/// What it and the other end say to each other.
const WORD: &[u8] = b"as before\n";

/// See the module documentation.
pub(super) enum Suspect {
    Machine(Machine),
    Guest,
}

/// A connection of its to a guest.
pub(super) struct Conn {
    client: Client,
    server: (Who, Sock),
}

enum Client {
    /// In the VM: what is written to and read from these files.
    File(String),
    Guest((Who, Sock)),
}

/// What stands for a restart where there is nothing to be restarted.
pub(super) fn nothing() -> toml::Table {
    let mut table = toml::Table::new();
    table.insert("driver".to_owned(), "command".into());
    table.insert("argv".to_owned(), vec!["/bin/true"].into());
    table
}

impl Suspect {
    /// Starts to connect.
    pub(super) fn dial(&mut self, floor: &mut Floor, to: &str, port: u16) -> Result<Conn, Halt> {
        match self {
            Suspect::Guest => {
                let pair = floor.dial(WEB, to, port)?;
                Ok(Conn {
                    client: Client::Guest(pair.client),
                    server: pair.server,
                })
            }
            Suspect::Machine(machine) => {
                let server = floor.who(to)?;
                let sock = floor.stacks.host(server)?.listen(port)?;
                let ip = floor.address(to)?.1;
                let file = format!("/tmp/{to}");
                // It is given what is appended to a file, and leaves what it hears in another one.
                let connect = format!(
                    ": > {file}.in; (tail -f {file}.in | nc {ip} {port} > {file}.out 2>&1) & sleep 0"
                );
                machine.run(floor, &connect)?;
                Ok(Conn {
                    client: Client::File(file),
                    server: (server, sock),
                })
            }
        }
    }

    /// Says something, and is answered.
    pub(super) fn talks(&mut self, floor: &mut Floor, conn: &Conn) -> Result<(), Halt> {
        match (self, &conn.client) {
            (Suspect::Machine(machine), Client::File(file)) => {
                machine.run(
                    floor,
                    &format!(": > {file}.out; echo as before >> {file}.in"),
                )?;
                hears(floor, conn.server)?;
                floor.stacks.write(conn.server, WORD)?;
                let wait = format!(
                    "n=0; until grep -q 'as before' {file}.out; do n=$((n + 1)); [ $n -lt 200 ] || exit 1; usleep 50000; done"
                );
                machine.run(floor, &wait).map(|_said| ())
            }
            (_, Client::Guest(client)) => {
                floor.stacks.write(*client, WORD)?;
                hears(floor, conn.server)?;
                floor.stacks.write(conn.server, WORD)?;
                hears(floor, *client)
            }
            _ => Ok(()),
        }
    }

    /// Forgets a connection, as whoever is restarted does.
    pub(super) fn forget(floor: &mut Floor, conn: &Conn) -> Result<(), Halt> {
        if let Client::Guest((who, sock)) = conn.client {
            floor.stacks.host(who)?.close(sock);
        }
        Ok(())
    }

    /// Looks for six addresses that nobody has.
    pub(super) fn scans_addresses(&mut self, floor: &mut Floor) -> Result<(), Halt> {
        if let Suspect::Machine(machine) = self {
            // Its kernel asks three times for each, and is done with it before anything else is shown.
            let ping = "for n in 41 42 43 44 45 46; do ping -c 1 -W 1 10.1.0.$n & done; wait; \
                        while ip neigh | grep -q INCOMPLETE; do usleep 100000; done";
            return machine.tries(floor, ping);
        }
        let (mac, ip) = floor.address(WEB)?;
        for n in 41..47 {
            // ARP (RFC 826): Ethernet, IPv4, a request.
            let head = [0x08, 0x06, 0, 1, 8, 0, 6, 4, 0, 1];
            let mut frame = [&[0xff; 6], &mac.0[..], &head, &mac.0, &ip.octets()].concat();
            frame.extend([0, 0, 0, 0, 0, 0, 10, 1, 0, n]);
            frame.resize(60, 0);
            send(floor, &frame)?;
        }
        Ok(())
    }

    /// Tries six ports of the database's machine.
    pub(super) fn scans_ports(&mut self, floor: &mut Floor) -> Result<(), Halt> {
        let (to_mac, to) = floor.address("db-1")?;
        if let Suspect::Machine(machine) = self {
            let scan = format!("for p in 1 2 3 4 5 6; do nc -w 1 {to} $p & done; wait");
            return machine.tries(floor, &scan);
        }
        let (mac, ip) = floor.address(WEB)?;
        for port in 1..7 {
            // IPv4 and UDP (RFC 768) without a checksum and payload.
            let mut head = vec![0x45, 0, 0, 28, 0, 0, 0x40, 0, 64, 17, 0, 0];
            head.extend([ip.octets(), to.octets()].concat());
            let [high, low] = (!checksum::fold(checksum::sum(&head, 0))).to_be_bytes();
            head.splice(10..12, [high, low]);
            let udp = [0xea, 0x60, 0, port, 0, 8, 0, 0];
            let mut frame = [&to_mac.0[..], &mac.0, &[0x08, 0], &head, &udp].concat();
            frame.resize(60, 0);
            send(floor, &frame)?;
        }
        Ok(())
    }
}

impl Floor {
    /// MAC and address of a workload.
    fn address(&self, name: &str) -> Result<(Mac, std::net::Ipv4Addr), Halt> {
        let workloads = self.desired.ports.iter().flat_map(|port| &port.workloads);
        let mut found = workloads.filter(|w| w.name == name);
        let found = found
            .next()
            .and_then(|w| match (w.mac.first(), w.ip.first()) {
                (Some(mac), Some(std::net::IpAddr::V4(ip))) => Some((*mac, *ip)),
                _ => None,
            });
        found.ok_or_else(|| Halt::failed(format!("no workload is called {name}")))
    }
}

impl Conn {
    /// Whether the other end has it.
    pub(super) fn is_open(&self, floor: &mut Floor) -> Result<bool, Halt> {
        Ok(floor.stacks.state(self.server)? == State::Open)
    }

    /// The other end has it within moments.
    pub(super) fn opens(&self, floor: &mut Floor) -> Result<(), Halt> {
        let server = self.server;
        let open = floor.stacks.until(LIMIT * 2, |s| {
            Ok((s.state(server)? == State::Open).then_some(()))
        })?;
        let name = floor.stacks.name(server.0).to_owned();
        open.ok_or_else(|| Halt::failed(format!("nobody connected to {name}")))
    }

    /// The other end says something, and is told that it is over: why.
    pub(super) fn is_over(&self, floor: &mut Floor) -> Result<(), Halt> {
        let server = self.server;
        floor.stacks.write(server, WORD)?;
        let over = floor.stacks.until(LIMIT, |s| {
            Ok(matches!(s.state(server)?, State::Refused(_)).then_some(()))
        })?;
        let name = floor.stacks.name(server.0).to_owned();
        over.ok_or_else(|| Halt::failed(format!("{name}'s connection should have ended")))?;
        floor.stacks.host(server.0)?.close(server.1);
        Ok(())
    }
}

fn send(floor: &mut Floor, frame: &[u8]) -> Result<(), Halt> {
    let who = floor.who(WEB)?;
    Ok(floor.stacks.host(who)?.send_raw(frame)?)
}

/// One end reads what was said.
fn hears(floor: &mut Floor, end: (Who, Sock)) -> Result<(), Halt> {
    let mut heard = Vec::new();
    let all = floor.stacks.until(LIMIT, |s| {
        let mut piece = [0; 64];
        let n = s.read(end, &mut piece)?;
        heard.extend_from_slice(piece.get(..n).unwrap_or_default());
        Ok((heard.len() >= WORD.len()).then_some(()))
    })?;
    let name = floor.stacks.name(end.0).to_owned();
    let as_said = all.is_some() && heard == WORD;
    super::super::require(as_said, || {
        format!("{name} did not hear what was said, but {heard:?}")
    })
}
