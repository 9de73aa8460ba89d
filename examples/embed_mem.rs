//! A switch inside a program: two TCP/IP stacks (smoltcp) talk through it, and a third connection is refused by policy.
//!
//! Run it with `cargo run --example embed_mem`.

use std::error::Error;
use std::time::{Duration, Instant};

use smoltcp::iface::{Config, Interface, SocketSet};
use smoltcp::phy::{self, DeviceCapabilities, Medium};
use smoltcp::socket::tcp;
use smoltcp::wire::{EthernetAddress, IpAddress, IpCidr};
use vswitch::config;
use vswitch::control::Switch;
use vswitch::control::api::ExplainQuery;
use vswitch::control::state::{PortConfig, PortKind, WorkloadConfig};
use vswitch::packet::Mac;
use vswitch::port::mem::MemEnd;

/// The policy, as it would stand in a file.
const POLICY: &str = r#"
[[segment]]
name = "client"
names = ["client"]
[[segment]]
name = "server"
names = ["server"]
[[rule]]
name = "client-to-server"
from = "client"
to = "server"
service = ["tcp/7"]
action = "allow"
"#;

/// A mem port is a network device.
struct Device(MemEnd);

struct RxToken(Vec<u8>);
struct TxToken<'a>(&'a mut MemEnd);

impl phy::RxToken for RxToken {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(&self.0)
    }
}

impl phy::TxToken for TxToken<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        let mut frame = vec![0; len];
        let result = f(&mut frame);
        // A full ring loses the frame, as a wire does; TCP sends it again.
        let _ = self.0.send(&frame);
        result
    }
}

impl phy::Device for Device {
    type RxToken<'a> = RxToken;
    type TxToken<'a> = TxToken<'a>;

    fn receive(&mut self, _now: smoltcp::time::Instant) -> Option<(RxToken, TxToken<'_>)> {
        let mut frame = Vec::new();
        self.0.recv(&mut frame)?;
        Some((RxToken(frame), TxToken(&mut self.0)))
    }

    fn transmit(&mut self, _now: smoltcp::time::Instant) -> Option<TxToken<'_>> {
        Some(TxToken(&mut self.0))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut caps = DeviceCapabilities::default();
        caps.medium = Medium::Ethernet;
        caps.max_transmission_unit = 1514;
        caps
    }
}

/// One stack.
struct Stack {
    device: Device,
    interface: Interface,
    sockets: SocketSet<'static>,
    started: Instant,
}

impl Stack {
    fn new(end: MemEnd, n: u8) -> Self {
        let mut device = Device(end);
        let mut config = Config::new(EthernetAddress(mac(n).0).into());
        config.random_seed = u64::from(n);
        let now = smoltcp::time::Instant::ZERO;
        let mut interface = Interface::new(config, &mut device, now);
        interface.update_ip_addrs(|addrs| {
            // A fresh interface has room for the first one.
            let _ = addrs.push(IpCidr::new(IpAddress::v4(10, 0, 0, n), 24));
        });
        Stack {
            device,
            interface,
            sockets: SocketSet::new(Vec::new()),
            started: Instant::now(),
        }
    }

    fn tcp(&mut self) -> smoltcp::iface::SocketHandle {
        let buffer = || tcp::SocketBuffer::new(vec![0; 4096]);
        self.sockets.add(tcp::Socket::new(buffer(), buffer()))
    }

    fn poll(&mut self) {
        let micros = i64::try_from(self.started.elapsed().as_micros()).unwrap_or(i64::MAX);
        let now = smoltcp::time::Instant::from_micros(micros);
        self.interface
            .poll(now, &mut self.device, &mut self.sockets);
    }
}

fn mac(n: u8) -> Mac {
    Mac([0x52, 0x54, 0, 0, 0, n])
}

fn port(name: &str, n: u8) -> PortConfig {
    let mut port = PortConfig::new(name, PortKind::Mem);
    port.workloads.push(WorkloadConfig {
        name: name.to_owned(),
        mac: vec![mac(n)],
        ip: vec![[10, 0, 0, n].into()],
        ..WorkloadConfig::default()
    });
    port
}

fn main() -> Result<(), Box<dyn Error>> {
    let switch = Switch::builder()
        .connections(1000)
        .port(port("client", 1))
        .port(port("server", 2))
        .policy(config::parse_policy("built in", POLICY)?)
        .spawn()?;
    let end = |name| switch.mem_port(name).ok_or("the port's end was taken");
    let mut client = Stack::new(end("client")?, 1);
    let mut server = Stack::new(end("server")?, 2);

    let listening = server.tcp();
    server
        .sockets
        .get_mut::<tcp::Socket<'_>>(listening)
        .listen(7)?;
    let calling = client.tcp();
    let to = (IpAddress::v4(10, 0, 0, 2), 7);
    let socket = client.sockets.get_mut::<tcp::Socket<'_>>(calling);
    socket.connect(client.interface.context(), to, 49152)?;

    let start = Instant::now();
    let mut answer = Vec::new();
    while answer.is_empty() {
        if start.elapsed() > Duration::from_secs(30) {
            return Err("no answer".into());
        }
        client.poll();
        server.poll();
        let socket = server.sockets.get_mut::<tcp::Socket<'_>>(listening);
        if socket.can_recv() {
            let asked = socket.recv(|bytes| (bytes.len(), bytes.to_ascii_uppercase()))?;
            socket.send_slice(&asked)?;
        }
        let socket = client.sockets.get_mut::<tcp::Socket<'_>>(calling);
        if socket.may_send() && socket.send_queue() == 0 && !socket.can_recv() {
            socket.send_slice(b"hello, switch")?;
        }
        if socket.can_recv() {
            answer = socket.recv(|bytes| (bytes.len(), bytes.to_vec()))?;
        }
        std::thread::yield_now();
    }
    println!("the server answered: {}", String::from_utf8_lossy(&answer));

    for conn in switch.connections(10)?.connections {
        println!(
            "{} > {} {}/{}: {}, admitted by rule {}",
            conn.from, conn.to, conn.protocol, conn.dport, conn.state, conn.rule
        );
    }
    let back = switch.explain(ExplainQuery {
        from: "server".to_owned(),
        to: "client".to_owned(),
        service: "tcp/7".to_owned(),
        src_port: None,
    })?;
    println!("the other way: {}, {}", back.verdict, back.why);
    switch.shutdown();
    Ok(())
}
