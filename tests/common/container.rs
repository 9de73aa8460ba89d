//! Containers: network namespaces whose one interface is on a switch, and checked traffic between them.
//!
//! Traffic is made by threads of the test itself, each in its container's namespace, so that every byte that arrives is
//! compared and every error has a kind.

use super::netns::Netns;
use super::switch::Switch;
use super::{Lab, wait_for};
use std::collections::BTreeMap;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::thread::{self, JoinHandle};
use std::time::Duration;
use vswitch::sys::netns::NetNs;

/// Bound on what must happen.
pub const LIMIT: Duration = Duration::from_secs(20);
/// How long an attempt that is to fail may try; what it proves is told by counters, so it need not be long.
pub const ATTEMPT: Duration = Duration::from_millis(300);
/// How often threads look whether they shall end.
const TICK: Duration = Duration::from_millis(20);

/// A container: 52:54:00:00:00:0N, 10.0.0.N/24 and fd00::N/64 on its `eth0`.
#[derive(Debug)]
pub struct Container {
    /// Its namespace.
    pub ns: Netns,
    name: String,
    number: u8,
}

impl Container {
    /// A namespace without an interface: a tap port brings one.
    pub fn bare(lab: &Lab, name: &str, number: u8) -> Self {
        Self {
            ns: Netns::new(lab, name),
            name: name.to_owned(),
            number,
        }
    }

    /// A namespace at one end of a veth pair whose other end is in `host`; offloads as the kernel makes them.
    pub fn veth(lab: &Lab, host: &Netns, name: &str, number: u8) -> Self {
        let container = Self::bare(lab, name, number);
        host.veth(&container.interface(), &container.ns, "eth0");
        container.configure();
        container
    }

    /// The same with this many queues at both ends, and this MTU.
    pub fn veth_wide(
        lab: &Lab,
        host: &Netns,
        name: &str,
        number: u8,
        queues: u8,
        mtu: u16,
    ) -> Self {
        let container = Self::bare(lab, name, number);
        let width = format!("mtu {mtu} numrxqueues {queues} numtxqueues {queues}");
        let interface = container.interface();
        host.ip(&format!(
            "link add {interface} {width} type veth peer name eth0 {width} netns {}",
            container.ns.name()
        ));
        host.ip(&format!("link set {interface} up"));
        container.ns.ip("link set eth0 up");
        container.configure();
        container
    }

    /// Gives `eth0` its addresses, and sets it up.
    pub fn configure(&self) {
        let (v4, v6) = (format!("{}/24", self.v4()), format!("{}/64", self.v6()));
        self.ns.address("eth0", &self.mac(), &[&v4, &v6]);
        self.ns.ip("link set eth0 up");
    }

    /// The switch's end of its veth pair.
    pub fn interface(&self) -> String {
        format!("vs-{}", self.name)
    }

    /// Its name: the namespace's, the port's, the workload's, and in its tag `is:NAME`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its MAC.
    pub fn mac(&self) -> String {
        format!("52:54:00:00:00:{:02x}", self.number)
    }

    /// Its IPv4 address.
    pub fn v4(&self) -> IpAddr {
        Ipv4Addr::new(10, 0, 0, self.number).into()
    }

    /// Its IPv6 address.
    pub fn v6(&self) -> IpAddr {
        Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, self.number.into()).into()
    }

    /// Its `[[port]]` table; `keys` are further lines of it, such as `mtu = 9000`.
    pub fn veth_port(&self, keys: &str) -> String {
        self.port(&format!(
            "kind = \"af-xdp\"\ninterface = \"{}\"\n{keys}",
            self.interface()
        ))
    }

    /// The same for a tap in its namespace.
    pub fn tap_port(&self, keys: &str) -> String {
        self.port(&format!(
            "kind = \"tap\"\ninterface = \"eth0\"\nnetns = \"{}\"\n{keys}",
            self.ns.name()
        ))
    }

    fn port(&self, keys: &str) -> String {
        format!(
            "[[port]]\nname = \"{name}\"\n{keys}\n[[port.workload]]\nname = \"{name}\"\nmac = [\"{}\"]\n\
             ip = [\"{}\", \"{}\"]\ntags = [\"is:{name}\"]\n",
            self.mac(),
            self.v4(),
            self.v6(),
            name = self.name
        )
    }

    /// Runs `f` in the namespace; sockets opened there belong to it.
    pub fn within<T: Send>(&self, f: impl FnOnce() -> T + Send) -> T {
        within(&self.ns, f)
    }

    /// Serves TCP and UDP on `port`, both address families: what arrives is sent back.
    pub fn echo(&self, port: u16) -> Echo {
        Echo::start(&self.ns, port)
    }

    /// Opens a TCP connection.
    pub fn connect(&self, to: (IpAddr, u16), limit: Duration) -> io::Result<TcpStream> {
        self.within(|| TcpStream::connect_timeout(&to.into(), limit))
    }

    /// Sends one datagram of `len` bytes and waits for it to come back.
    pub fn ask(&self, to: (IpAddr, u16), len: usize, limit: Duration) -> io::Result<()> {
        let any: IpAddr = match to.0 {
            IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
            IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
        };
        let socket = self.within(|| UdpSocket::bind((any, 0)))?;
        socket.connect(to)?;
        socket.set_read_timeout(Some(limit))?;
        let question = &pattern()[..len];
        socket.send(question)?;
        let mut answer = vec![0; 65536];
        let n = socket.recv(&mut answer)?;
        assert!(answer[..n] == *question, "the datagram came back changed");
        Ok(())
    }

    /// TCP and UDP to an [`Echo`] at `to`, every byte compared, `len` of them over TCP and each way.
    pub fn talk(&self, to: (IpAddr, u16), len: usize) {
        let udp = self.ask(to, 1000, LIMIT);
        udp.unwrap_or_else(|e| panic!("UDP from {} to {to:?}: {e}", self.name));
        let tcp = self.connect(to, LIMIT).and_then(|s| exchange(&s, len));
        tcp.unwrap_or_else(|e| panic!("TCP from {} to {to:?}: {e}", self.name));
    }
}

/// Runs `f` in a namespace; sockets opened there belong to it.
pub fn within<T: Send>(ns: &Netns, f: impl FnOnce() -> T + Send) -> T {
    let path = ns.path();
    let path = path.to_str().expect("the name is ours");
    NetNs::open(path)
        .and_then(|ns| ns.run(f))
        .unwrap_or_else(|e| panic!("{path}: {e}"))
}

/// Bytes to compare with: the block repeats after a prime number of bytes, so that whatever is lost, repeated or swapped
/// shifts it.
fn pattern() -> &'static [u8] {
    const PERIOD: usize = 65521;
    static BLOCK: OnceLock<Vec<u8>> = OnceLock::new();
    BLOCK.get_or_init(|| {
        let one: Vec<u8> = (0..PERIOD)
            .map(|i| (i ^ (i >> 8)).to_le_bytes()[0])
            .collect();
        one.repeat(2)
    })
}

/// The part of an endless stream that starts at `offset`; at least half of the block.
fn stream_at(offset: u64) -> &'static [u8] {
    let block = pattern();
    let period = block.len() as u64 / 2;
    &block[usize::try_from(offset % period).expect("below the period")..]
}

/// Sends `len` bytes to an [`Echo`] and compares what comes back.
pub fn exchange(stream: &TcpStream, len: usize) -> io::Result<()> {
    stream.set_read_timeout(Some(LIMIT))?;
    stream.set_write_timeout(Some(LIMIT))?;
    let len = len as u64;
    thread::scope(|s| {
        let sender = s.spawn(|| {
            let mut sent = 0;
            let mut stream = stream;
            while sent < len {
                let bytes = stream_at(sent);
                let left = usize::try_from(len - sent).unwrap_or(usize::MAX);
                sent += stream.write(&bytes[..bytes.len().min(left)])? as u64;
            }
            io::Result::Ok(())
        });
        let mut received = 0;
        let mut buffer = vec![0; 32 << 10];
        let mut from = stream;
        while received < len {
            let n = from.read(&mut buffer)?;
            if n == 0 {
                return Err(ErrorKind::UnexpectedEof.into());
            }
            compare(&buffer[..n], received);
            received += n as u64;
        }
        sender.join().expect("the sender does not panic")
    })
}

fn compare(bytes: &[u8], offset: u64) {
    // Buffers are shorter than the block's period.
    assert!(
        *bytes == stream_at(offset)[..bytes.len()],
        "the stream is damaged near byte {offset}"
    );
}

/// Whether an error is a wait that was too short.
fn is_timeout(e: &io::Error) -> bool {
    matches!(
        e.kind(),
        ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted
    )
}

/// Threads that end when this is dropped.
#[derive(Debug, Default)]
struct Crew {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Crew {
    fn spawn(&mut self, f: impl FnOnce(&AtomicBool) + Send + 'static) {
        let stop = Arc::clone(&self.stop);
        self.threads.push(thread::spawn(move || f(&stop)));
    }
}

impl Drop for Crew {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            // A panic there has been printed; panicking twice would abort.
            let failed = thread.join().is_err();
            assert!(!failed || thread::panicking(), "a traffic thread panicked");
        }
    }
}

/// A TCP and UDP echo service; ends when dropped.
#[derive(Debug)]
pub struct Echo {
    accepted: Arc<AtomicU64>,
    datagrams: Arc<AtomicU64>,
    _crew: Crew,
}

impl Echo {
    /// Serves TCP and UDP on `port` in a namespace, both address families.
    pub fn start(ns: &Netns, port: u16) -> Self {
        let any = SocketAddr::from((Ipv6Addr::UNSPECIFIED, port));
        let (tcp, udp) = within(ns, || {
            let tcp = TcpListener::bind(any).expect("the port is free");
            (tcp, UdpSocket::bind(any).expect("the port is free"))
        });
        let (accepted, datagrams) = (Arc::<AtomicU64>::default(), Arc::<AtomicU64>::default());
        let mut crew = Crew::default();
        let count = Arc::clone(&accepted);
        tcp.set_nonblocking(true).expect("a socket can be");
        crew.spawn(move |stop| {
            thread::scope(|s| {
                while !stop.load(Ordering::Relaxed) {
                    match tcp.accept() {
                        Ok((stream, _)) => {
                            count.fetch_add(1, Ordering::SeqCst);
                            s.spawn(|| echo_stream(stream, stop));
                        }
                        Err(_) => thread::sleep(Duration::from_millis(2)),
                    }
                }
            });
        });
        let count = Arc::clone(&datagrams);
        udp.set_read_timeout(Some(TICK)).expect("a socket can be");
        crew.spawn(move |stop| {
            let mut buffer = vec![0; 65536];
            while !stop.load(Ordering::Relaxed) {
                if let Ok((n, from)) = udp.recv_from(&mut buffer) {
                    count.fetch_add(1, Ordering::SeqCst);
                    // Not answered: whoever asked will say so.
                    let _ = udp.send_to(&buffer[..n], from);
                }
            }
        });
        Self {
            accepted,
            datagrams,
            _crew: crew,
        }
    }

    /// Connections accepted and datagrams received so far.
    pub fn reached(&self) -> (u64, u64) {
        (
            self.accepted.load(Ordering::SeqCst),
            self.datagrams.load(Ordering::SeqCst),
        )
    }
}

fn echo_stream(mut stream: TcpStream, stop: &AtomicBool) {
    let set = stream.set_nonblocking(false);
    set.and_then(|()| stream.set_read_timeout(Some(TICK)))
        .and_then(|()| stream.set_write_timeout(Some(TICK)))
        .expect("a socket can be");
    let mut buffer = vec![0; 32 << 10];
    while !stop.load(Ordering::Relaxed) {
        match stream.read(&mut buffer) {
            Ok(0) => return,
            Ok(n) => {
                let mut rest = &buffer[..n];
                while !rest.is_empty() && !stop.load(Ordering::Relaxed) {
                    match stream.write(rest) {
                        Ok(n) => rest = &rest[n..],
                        Err(e) if is_timeout(&e) => {}
                        Err(_) => return,
                    }
                }
            }
            Err(e) if is_timeout(&e) => {}
            Err(_) => return,
        }
    }
}

/// A TCP connection to an [`Echo`] that carries data both ways for as long as it can.
#[derive(Debug)]
pub struct Transfer {
    received: Arc<AtomicU64>,
    ended: Arc<Mutex<Option<String>>>,
    _crew: Crew,
}

impl Transfer {
    /// Connects and starts.
    pub fn start(from: &Container, to: (IpAddr, u16)) -> Self {
        let stream = from
            .connect(to, LIMIT)
            .unwrap_or_else(|e| panic!("{} to {to:?}: {e}", from.name));
        stream
            .set_read_timeout(Some(TICK))
            .and_then(|()| stream.set_write_timeout(Some(TICK)))
            .expect("a socket can be");
        let (received, ended) = (Arc::<AtomicU64>::default(), Arc::<Mutex<_>>::default());
        let mut crew = Crew::default();
        let mut writer = stream.try_clone().expect("a socket can be cloned");
        let end = Arc::clone(&ended);
        crew.spawn(move |stop| {
            let mut sent = 0;
            while !stop.load(Ordering::Relaxed) {
                match writer.write(stream_at(sent)) {
                    Ok(n) => sent += n as u64,
                    Err(e) if is_timeout(&e) => {}
                    Err(e) => return note(&end, &e.to_string()),
                }
            }
        });
        let mut reader = stream;
        let (count, end) = (Arc::clone(&received), Arc::clone(&ended));
        crew.spawn(move |stop| {
            let mut buffer = vec![0; 32 << 10];
            while !stop.load(Ordering::Relaxed) {
                match reader.read(&mut buffer) {
                    Ok(0) => return note(&end, "closed by the other end"),
                    Ok(n) => {
                        compare(&buffer[..n], count.load(Ordering::Relaxed));
                        count.fetch_add(n as u64, Ordering::Relaxed);
                    }
                    Err(e) if is_timeout(&e) => {}
                    Err(e) => return note(&end, &e.to_string()),
                }
            }
        });
        Self {
            received,
            ended,
            _crew: crew,
        }
    }

    /// Bytes that have come back so far.
    pub fn received(&self) -> u64 {
        self.received.load(Ordering::Relaxed)
    }

    /// Waits until another MiB has come back.
    ///
    /// # Panics
    ///
    /// When the connection has ended, or stands still.
    pub fn moves_on(&self) {
        let goal = self.received() + (1 << 20);
        wait_for("the transfer to go on", LIMIT, || {
            if let Some(why) = &*self.ended.lock().expect("no holder panics") {
                panic!("the transfer ended: {why}");
            }
            (self.received() >= goal).then_some(())
        });
    }
}

fn note(end: &Mutex<Option<String>>, why: &str) {
    end.lock()
        .expect("no holder panics")
        .get_or_insert(why.to_owned());
}

/// What the switch has dropped: frames by port and reason.
pub type Drops = BTreeMap<(String, String), u64>;

/// What the switch has dropped so far, by port and reason.
pub fn drops(switch: &Switch<'_>) -> Drops {
    let mut drops = Drops::new();
    let list = switch.cli_json(&["drops"]);
    for entry in list.as_array().expect("a list of reasons") {
        let reason = entry["reason"].as_str().expect("a reason has a name");
        for (port, count) in entry["ports"].as_object().expect("counts by port") {
            let count = count.as_u64().expect("a count");
            drops.insert((port.clone(), reason.to_owned()), count);
        }
    }
    drops
}

/// Frames from `port` dropped for `reason` so far.
pub fn dropped(switch: &Switch<'_>, port: &str, reason: &str) -> u64 {
    let key = (port.to_owned(), reason.to_owned());
    drops(switch).get(&key).copied().unwrap_or(0)
}

/// Waits until more than `before` frames from `port` have been dropped for `reason`.
pub fn wait_dropped(switch: &Switch<'_>, port: &str, reason: &str, before: u64) {
    wait_for(&format!("{reason} at {port}"), LIMIT, || {
        (dropped(switch, port, reason) > before).then_some(())
    });
}

/// Waits until every frame the switch received is accounted for (4.6 of the design: at rest both sides are equal).
pub fn conserves(switch: &Switch<'_>) {
    let mut last = serde_json::Value::Null;
    let equal = super::poll(LIMIT, || {
        last = switch.cli_json(&["stats"])["conservation"].clone();
        (last["difference"].as_i64() == Some(0)).then_some(())
    });
    assert!(equal.is_some(), "frames are not accounted for: {last}");
    assert!(
        last["rx"].as_u64() > Some(0),
        "nothing was received: {last}"
    );
}
