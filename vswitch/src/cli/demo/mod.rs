//! `vswitch demo`: the main job on real traffic, without configuration, in a place of its own.
//!
//! Guests are our own virtio-net driver with smoltcp's TCP/IP stack behind vhost-user sockets; as
//! root there are also containers, that is network namespaces behind AF_XDP, with the kernel's.
//! Everything shown is checked; the exit code says whether all of it held.

mod flood;
mod host;
mod place;

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use signal_hook::consts::{SIGINT, SIGTERM};

use super::Answer;
use super::client::Failure;
use crate::control::Switch;
use crate::control::api::{ExplainQuery, Explanation};
use crate::control::state::{PortConfig, PortKind, WorkloadConfig};
use crate::guest::GuestError;
use crate::packet::Mac;
use crate::policy::model::{Action, Policy, Rule, Segment, ServiceSpec};
use crate::sys::peer::euid;
use flood::{End, Pair};
use host::Host;
use place::{Container, Place};

/// How long anything may take that takes milliseconds when it works.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long a container's connection attempt that must fail is left to fail: a second SYN is sent after one second
/// (RFC 6298 section 2.1), so this sees a drop of it, too.
const DENIED_AFTER: Duration = Duration::from_millis(1500);
/// Each throughput figure.
const FLOOD: Duration = Duration::from_secs(1);
/// The database's service.
const POSTGRES: u16 = 5432;
/// A service that nobody may use.
const SSH: u16 = 22;
/// What is sent to and fro.
const HELLO: &[u8] = b"select 'hello';";

/// Why the demo could not go on.
enum Stop {
    /// Ctrl-C.
    Interrupted,
    /// Something that should work did not.
    Broken(String),
}

impl<E: std::error::Error> From<E> for Stop {
    fn from(e: E) -> Self {
        let mut text = e.to_string();
        let mut cause = e.source();
        while let Some(c) = cause {
            text = format!("{text}: {c}");
            cause = c.source();
        }
        Stop::Broken(text)
    }
}

/// One attached workload.
struct Cast {
    name: &'static str,
    tag: &'static str,
    number: u8,
}

impl Cast {
    fn mac(&self) -> Mac {
        Mac([0x52, 0x54, 0, 0, 0, self.number])
    }

    fn ip(&self) -> Ipv4Addr {
        Ipv4Addr::new(10, 99, 0, self.number)
    }

    fn port(&self, kind: PortKind) -> PortConfig {
        let mut port = PortConfig::new(self.name, kind);
        port.workloads.push(WorkloadConfig {
            name: self.name.to_owned(),
            mac: vec![self.mac()],
            ip: vec![self.ip().into()],
            tags: vec![self.tag.to_owned()],
            vlan: None,
        });
        port
    }
}

const fn cast(name: &'static str, tag: &'static str, number: u8) -> Cast {
    Cast { name, tag, number }
}

const VM_WEB: Cast = cast("vm-web", "tier:web", 1);
const VM_DB: Cast = cast("vm-db", "tier:db", 2);
const CT_WEB: Cast = cast("ct-web", "tier:web", 3);
const CT_DB: Cast = cast("ct-db", "tier:db", 4);
const LOAD_A: Cast = cast("load-a", "tier:load", 11);
const LOAD_B: Cast = cast("load-b", "tier:load", 12);

fn policy(web_to_db: bool) -> Policy {
    let segment = |name: &str, tag: &str| {
        let mut s = Segment::new(name);
        s.tags = vec![tag.to_owned()];
        s
    };
    let mut web = Rule::new("web-to-db", &["web"], &["db"], Action::Allow);
    web.service = vec![ServiceSpec::tcp(POSTGRES)];
    let load = Rule::new("load", &["load"], &["load"], Action::Allow);
    let mut rules = vec![load];
    if web_to_db {
        rules.insert(0, web);
    }
    Policy {
        segments: vec![
            segment("web", "tier:web"),
            segment("db", "tier:db"),
            segment("load", "tier:load"),
        ],
        rules,
        ..Policy::default()
    }
}

/// Runs the demo.
pub(super) fn run(keep: bool) -> Result<Answer, Failure> {
    let interrupted = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM] {
        signal_hook::flag::register(signal, Arc::clone(&interrupted)).map_err(|source| {
            Failure::System {
                what: "catch signals",
                source,
            }
        })?;
    }
    println!("vswitch demo: a stateful firewall between any two workloads\n");
    for what in place::sweep() {
        println!("  swept up what an earlier demo left: {what}");
    }
    let mut show = Show {
        interrupted,
        held: true,
    };
    match show.run(keep) {
        Ok(()) if show.held => {
            println!("\nEverything shown held.");
            Ok(Answer::Done)
        }
        Ok(()) => {
            println!("\nNot everything shown held: see the lines marked FAILED.");
            Ok(Answer::No)
        }
        Err(Stop::Interrupted) => {
            println!("\nInterrupted; everything was cleaned up.");
            Ok(Answer::No)
        }
        Err(Stop::Broken(why)) => {
            println!("\nThe demo cannot go on: {why}");
            Ok(Answer::No)
        }
    }
}

struct Show {
    interrupted: Arc<AtomicBool>,
    held: bool,
}

impl Show {
    fn line(&mut self, held: bool, what: &str, detail: &str) {
        self.held &= held;
        let mark = if held { "ok    " } else { "FAILED" };
        println!("  {mark}  {what:<22} {detail}");
    }

    fn go_on(&self) -> Result<(), Stop> {
        if self.interrupted.load(Ordering::Relaxed) {
            Err(Stop::Interrupted)
        } else {
            Ok(())
        }
    }

    /// Lets the hosts work until `done`, or time is over; says whether it was done.
    fn drive<const N: usize>(
        &self,
        hosts: &mut [&mut Host; N],
        limit: Duration,
        mut done: impl FnMut(&mut [&mut Host; N]) -> bool,
    ) -> Result<bool, Stop> {
        let start = Instant::now();
        loop {
            self.go_on()?;
            hosts.iter_mut().for_each(|h| h.poll());
            if done(hosts) {
                return Ok(true);
            }
            if start.elapsed() > limit {
                return Ok(false);
            }
            // The hosts poll; half a millisecond is a short round trip for a person's eyes.
            std::thread::sleep(Duration::from_micros(500));
        }
    }

    fn run(&mut self, keep: bool) -> Result<(), Stop> {
        let place = Place::new()?;
        let socket = |c: &Cast| place.dir.join(format!("{}.sock", c.name));
        let vhost = |c: &Cast| {
            c.port(PortKind::VhostUser {
                socket: socket(c),
                client: false,
                owner: None,
            })
        };
        let containers = self.containers();
        self.go_on()?;
        let mut ports: Vec<_> = [VM_WEB, VM_DB, LOAD_A, LOAD_B].iter().map(vhost).collect();
        for (c, container) in [CT_WEB, CT_DB].iter().zip(containers.iter().flatten()) {
            ports.push(c.port(PortKind::AfXdp {
                interface: container.interface.clone(),
            }));
        }
        let api = place.dir.join("api.sock");
        let builder = Switch::builder()
            .connections(100_000)
            .policy(policy(true))
            .api(&api);
        let switch = ports.into_iter().fold(builder, |b, p| b.port(p)).spawn()?;

        let mut web = Host::attach(&socket(&VM_WEB), VM_WEB.mac(), VM_WEB.ip())?;
        let mut db = Host::attach(&socket(&VM_DB), VM_DB.mac(), VM_DB.ip())?;
        // One connection at a time each: two from guests, one from a container.
        for _ in 0..3 {
            db.serve(POSTGRES);
        }
        db.serve(SSH);
        let who = if containers.is_some() {
            "guests vm-web, vm-db over vhost-user; containers ct-web, ct-db over AF_XDP"
        } else {
            "guests vm-web, vm-db over vhost-user"
        };
        self.line(true, "one switch", who);

        self.guests(&switch, &mut web, &mut db)?;
        if let Some([ct_web, ct_db]) = &containers {
            self.with_containers(&switch, &mut db, ct_web, ct_db)?;
        }
        self.cut(&switch, &mut web, &mut db)?;
        self.throughput([&socket(&LOAD_A), &socket(&LOAD_B)])?;
        self.conservation(&switch, &mut [&mut web, &mut db])?;
        self.next(&api, keep, containers.as_ref());
        if keep {
            // Until Ctrl-C, which here is how it is meant to end.
            let forever = self.drive(&mut [&mut web, &mut db], Duration::MAX, |_| false);
            if !matches!(forever, Err(Stop::Interrupted)) {
                forever?;
            }
        }
        switch.shutdown();
        Ok(())
    }

    /// Two containers, as root; else says why not.
    fn containers(&mut self) -> Option<[Container; 2]> {
        if euid() != 0 {
            println!("  skip    containers             need root (network namespaces, AF_XDP)");
            return None;
        }
        let new = |c: &Cast| Container::new(c.name, c.number, c.mac(), IpAddr::V4(c.ip()));
        match new(&CT_WEB).and_then(|web| Ok([web, new(&CT_DB)?])) {
            Ok(both) => Some(both),
            Err(e) => {
                println!("  skip    containers             {e}");
                None
            }
        }
    }

    /// An allowed and a denied connection between guests.
    fn guests(&mut self, switch: &Switch, web: &mut Host, db: &mut Host) -> Result<(), Stop> {
        let conn = web.dial(VM_DB.ip(), POSTGRES);
        let open = self.drive(&mut [web, db], PATIENCE, |[w, _]| w.is_established(conn))?;
        let echoed = open && self.echo(web, db, conn)?;
        let detail = format!(
            "vm-web > vm-db tcp/{POSTGRES}: {}; {}",
            if echoed { "answered" } else { "no answer" },
            explain(switch, &VM_WEB, &VM_DB, POSTGRES, Some(web.last_port()))?.why
        );
        self.line(echoed, "allowed", &detail);
        web.tcp(conn).abort();

        let before = denied(switch, VM_WEB.name)?;
        let conn = web.dial(VM_DB.ip(), SSH);
        let decided = self.drive(&mut [web, db], PATIENCE, |[w, _]| {
            w.is_established(conn) || denied(switch, VM_WEB.name).is_ok_and(|n| n > before)
        })?;
        let refused = decided && !web.is_established(conn);
        web.tcp(conn).abort();
        let detail = format!(
            "vm-web > vm-db tcp/{SSH}: dropped as policy_default_deny; {}",
            explain(switch, &VM_WEB, &VM_DB, SSH, None)?.why
        );
        self.line(refused, "denied", &detail);
        Ok(())
    }

    /// Sends a few bytes and waits for the same to come back.
    fn echo(
        &self,
        web: &mut Host,
        db: &mut Host,
        conn: smoltcp::iface::SocketHandle,
    ) -> Result<bool, Stop> {
        let sent = web
            .tcp(conn)
            .send_slice(HELLO)
            .is_ok_and(|n| n == HELLO.len());
        let mut got = Vec::new();
        let came = self.drive(&mut [web, db], PATIENCE, |[w, _]| {
            let part = w.tcp(conn).recv(|bytes| (bytes.len(), bytes.to_vec()));
            got.extend(part.unwrap_or_default());
            got.len() >= HELLO.len()
        })?;
        Ok(sent && came && got == HELLO)
    }

    /// A container to a guest, and between containers.
    fn with_containers(
        &mut self,
        switch: &Switch,
        db: &mut Host,
        ct_web: &Container,
        ct_db: &Container,
    ) -> Result<(), Stop> {
        let to = |c: &Cast, port| SocketAddr::new(c.ip().into(), port);
        let asked = std::thread::scope(|s| {
            let t = s.spawn(|| ct_web.netns.run(|| ask(to(&VM_DB, POSTGRES), PATIENCE)));
            let limit = PATIENCE + Duration::from_secs(1);
            self.drive(&mut [db], limit, |_| t.is_finished())?;
            t.join()
                .map_err(|_panic| Stop::Broken("a container's client ended early".to_owned()))
        })??;
        let detail = format!(
            "ct-web > vm-db tcp/{POSTGRES}: {}",
            asked
                .as_ref()
                .map_or_else(ToString::to_string, |()| "answered".to_owned())
        );
        self.line(asked.is_ok(), "container to guest", &detail);

        let server = ct_db
            .netns
            .run(|| TcpListener::bind(to(&CT_DB, POSTGRES)))??;
        let asked = std::thread::scope(|s| {
            s.spawn(|| serve_once(&server));
            ct_web.netns.run(|| ask(to(&CT_DB, POSTGRES), PATIENCE))
        })?;
        let detail = format!(
            "ct-web > ct-db tcp/{POSTGRES}: {}",
            asked
                .as_ref()
                .map_or_else(ToString::to_string, |()| "answered".to_owned())
        );
        self.line(asked.is_ok(), "container to container", &detail);

        let before = denied(switch, CT_WEB.name)?;
        let listener = ct_db.netns.run(|| TcpListener::bind(to(&CT_DB, SSH)))??;
        let asked = ct_web
            .netns
            .run(|| TcpStream::connect_timeout(&to(&CT_DB, SSH), DENIED_AFTER))?;
        drop(listener);
        let dropped = denied(switch, CT_WEB.name)? > before;
        let detail = format!("ct-web > ct-db tcp/{SSH}: dropped as policy_default_deny");
        self.line(asked.is_err() && dropped, "container denied", &detail);
        Ok(())
    }

    /// A change of policy cuts an established connection.
    fn cut(&mut self, switch: &Switch, web: &mut Host, db: &mut Host) -> Result<(), Stop> {
        let conn = web.dial(VM_DB.ip(), POSTGRES);
        let open = self.drive(&mut [web, db], PATIENCE, |[w, _]| w.is_established(conn))?;
        let works = open && self.echo(web, db, conn)?;
        let before = cut_count(switch)?;
        let applied = switch.apply_policy(policy(false))?;
        let _ = web.tcp(conn).send_slice(HELLO);
        let cut = self.drive(&mut [web, db], PATIENCE, |_| {
            cut_count(switch).is_ok_and(|n| n > before)
        })?;
        let silent = !web.tcp(conn).can_recv();
        web.tcp(conn).abort();
        let detail = format!(
            "rule web-to-db removed: enforced by every worker after {} us; the open connection is cut at its next packet",
            applied.settle_us
        );
        self.line(works && cut && silent, "policy change", &detail);

        switch.apply_policy(policy(true))?;
        let conn = web.dial(VM_DB.ip(), POSTGRES);
        let open = self.drive(&mut [web, db], PATIENCE, |[w, _]| w.is_established(conn))?;
        web.tcp(conn).abort();
        self.line(open, "policy restored", "a new connection is allowed again");
        Ok(())
    }

    /// How fast it goes through the firewall.
    fn throughput(&mut self, sockets: [&PathBuf; 2]) -> Result<(), Stop> {
        let end = |c: &Cast, socket| End {
            socket,
            mac: c.mac(),
            ip: c.ip(),
            port: 1000,
        };
        let attach = || -> Result<_, GuestError> {
            Pair::attach([end(&LOAD_A, sockets[0]), end(&LOAD_B, sockets[1])])
        };
        let mut pair = attach()?;
        let bar = ProgressBar::new_spinner().with_style(
            ProgressStyle::with_template("  {spinner}       {msg}")
                .unwrap_or_else(|_bad| ProgressStyle::default_spinner()),
        );
        bar.enable_steady_tick(Duration::from_millis(100));
        // Without the frame check sequence: 64 and 1518 bytes on a wire.
        for (name, len) in [("1500-byte packets", 1514), ("64-byte frames", 60)] {
            bar.set_message(format!("measuring {name} for {} s", FLOOD.as_secs()));
            let go_on = Arc::clone(&self.interrupted);
            let rate = pair.flood(len, FLOOD, || !go_on.load(Ordering::Relaxed));
            bar.suspend(|| match &rate {
                Some(r) => self.line(
                    true,
                    name,
                    &format!(
                        "{:.2} Mpps, {:.1} Gbit/s, guest to guest, both directions together",
                        r.mpps(),
                        r.gbps()
                    ),
                ),
                None => self.line(false, name, "nothing arrived"),
            });
            self.go_on()?;
        }
        bar.finish_and_clear();
        if cfg!(debug_assertions) {
            println!(
                "          (a debug build: `cargo run --release -- demo` is the one to measure)"
            );
        }
        Ok(())
    }

    /// Every frame is accounted for.
    fn conservation<const N: usize>(
        &mut self,
        switch: &Switch,
        hosts: &mut [&mut Host; N],
    ) -> Result<(), Stop> {
        // At rest both sides are read at the same state.
        let holds = self.drive(hosts, PATIENCE, |_| {
            switch.stats().is_ok_and(|s| s.conservation.difference == 0)
        })?;
        let c = switch.stats()?.conservation;
        let detail = format!(
            "{} frames in, {} out, {} dropped with a reason, {} answered by the switch",
            c.rx, c.tx, c.dropped, c.consumed
        );
        self.line(holds, "every frame counted", &detail);
        Ok(())
    }

    fn next(&self, api: &std::path::Path, keep: bool, containers: Option<&[Container; 2]>) {
        println!("\nWhat to do next:");
        if keep {
            println!("  the switch goes on until Ctrl-C; in another terminal:");
            let s = format!("vswitch --socket {}", api.display());
            println!("    {s} status");
            println!("    {s} explain --from vm-web --to vm-db --service tcp/{POSTGRES}");
            println!("    {s} watch");
            if let Some([web, _]) = containers {
                println!(
                    "    ip netns exec {} nc {} {POSTGRES}    # from the container, through the firewall",
                    web.name,
                    VM_DB.ip()
                );
            }
        } else {
            println!(
                "  vswitch demo --keep              leaves the switch running to look around in"
            );
        }
        println!("  write a switch.toml and a policy.toml (README), then");
        println!(
            "  vswitch check switch.toml        says what is wrong with them, without touching anything"
        );
        println!(
            "  vswitch run -c switch.toml       runs the switch; attach VMs and containers to it"
        );
    }
}

/// One question and its answer, by the kernel's TCP.
fn ask(to: SocketAddr, limit: Duration) -> std::io::Result<()> {
    let mut stream = TcpStream::connect_timeout(&to, limit)?;
    stream.set_read_timeout(Some(limit))?;
    stream.write_all(HELLO)?;
    let mut got = vec![0; HELLO.len()];
    stream.read_exact(&mut got)?;
    if got == HELLO {
        Ok(())
    } else {
        Err(std::io::Error::other("the answer is another"))
    }
}

/// Echoes to one client, or gives up when none comes.
fn serve_once(server: &TcpListener) {
    let start = Instant::now();
    let serve = || -> std::io::Result<()> {
        server.set_nonblocking(true)?;
        let mut stream = loop {
            match server.accept() {
                Ok((stream, _)) => break stream,
                Err(e) if start.elapsed() > PATIENCE => return Err(e),
                Err(_) => std::thread::sleep(Duration::from_millis(5)),
            }
        };
        stream.set_nonblocking(false)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let mut got = vec![0; HELLO.len()];
        stream.read_exact(&mut got)?;
        stream.write_all(&got)
    };
    // The client reports what went wrong, from its side.
    let _ = serve();
}

fn explain(
    switch: &Switch,
    from: &Cast,
    to: &Cast,
    port: u16,
    src_port: Option<u16>,
) -> Result<Explanation, Stop> {
    Ok(switch.explain(ExplainQuery {
        from: from.name.to_owned(),
        to: to.name.to_owned(),
        service: format!("tcp/{port}"),
        src_port,
    })?)
}

/// Frames from `port` that no rule allowed.
fn denied(switch: &Switch, port: &str) -> Result<u64, Stop> {
    let drops = switch.drops()?;
    let deny = drops.iter().find(|d| d.reason == "policy_default_deny");
    Ok(deny.and_then(|d| d.ports.get(port)).copied().unwrap_or(0))
}

/// Connections cut by policy so far.
fn cut_count(switch: &Switch) -> Result<u64, Stop> {
    let workers = switch.stats()?.workers;
    let of = |w: &crate::control::api::WorkerInfo| w.counters.get("conn_cut").copied();
    Ok(workers.iter().filter_map(of).sum())
}
