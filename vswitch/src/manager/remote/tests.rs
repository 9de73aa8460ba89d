//! Managers that say what they should not, or are not who they should be; the last ones through a whole switch.

use std::net::SocketAddr;
use std::path::Path;
use std::pin::Pin;
use std::sync::mpsc::{Sender, channel};
use std::time::Instant;

use tokio_stream::{Stream, StreamExt};
use tonic::{Request, Response, Status};

use super::super::question::{Answer, History, Party, Workload};
use super::super::server;
use super::super::trial::Authority;
use super::super::wire::v1::manager_server::Manager;
use super::*;
use crate::control::Switch;
use crate::control::state::{
    Desired, ManagerConfig, PortConfig, PortKind, SwitchConfig, TlsConfig, WorkloadConfig,
};
use crate::packet::Mac;
use crate::policy::model::{Action, Ask as Terms, Otherwise, Policy, Rule, Scope};
use crate::port::mem::MemEnd;

const LIMIT: Duration = Duration::from_secs(30);
const GOOD: i32 = 2999;
const EXPIRED: i32 = 2024;
/// What a certificate must list here.
const ALL: [&str; 2] = ["vswitch://switch/sw", "vswitch://rule/asks"];

/// Answers a question with these messages.
type Script = fn(u64, v1::Ask) -> Vec<v1::FromManager>;

/// Its second half is told which questions nobody asks any more.
struct Fake(Script, Sender<u64>);

#[tonic::async_trait]
impl Manager for Fake {
    type DecideStream = Pin<Box<dyn Stream<Item = Result<v1::FromManager, Status>> + Send>>;

    async fn decide(
        &self,
        request: Request<Streaming<v1::FromSwitch>>,
    ) -> Result<Response<Self::DecideStream>, Status> {
        let (script, cancelled) = (self.0, self.1.clone());
        let mut boot = 0;
        let answers = request.into_inner().map(move |message| {
            let said = match message?.message {
                Some(from_switch::Message::Hello(hello)) => {
                    boot = hello.boot;
                    let welcome = v1::Welcome { version: 1 };
                    vec![wire::from_manager(from_manager::Message::Welcome(welcome))]
                }
                Some(from_switch::Message::Ask(ask)) => script(boot, ask),
                Some(from_switch::Message::Cancel(cancel)) => {
                    // Few tests listen.
                    let _ = cancelled.send(cancel.id);
                    Vec::new()
                }
                None => Vec::new(),
            };
            Ok::<_, Status>(tokio_stream::iter(said.into_iter().map(Ok)))
        });
        let flat = async_flat(answers);
        Ok(Response::new(Box::pin(flat)))
    }
}

/// The items of each inner stream in turn.
fn async_flat<S, I>(
    outer: S,
) -> impl Stream<Item = Result<v1::FromManager, Status>> + Send + 'static
where
    S: Stream<Item = Result<I, Status>> + Send + 'static,
    I: Stream<Item = Result<v1::FromManager, Status>> + Send + Unpin + 'static,
{
    let (to, from) = mpsc::channel(64);
    tokio::spawn(async move {
        let mut outer = Box::pin(outer);
        while let Some(Ok(mut inner)) = outer.next().await {
            while let Some(item) = inner.next().await {
                if to.send(item).await.is_err() {
                    return;
                }
            }
        }
    });
    ReceiverStream::new(from)
}

/// Serves until the process ends; where.
fn serve(credentials: Credentials, script: Script) -> SocketAddr {
    serve_and_tell(credentials, script, channel().0)
}

fn serve_and_tell(credentials: Credentials, script: Script, cancelled: Sender<u64>) -> SocketAddr {
    let (ready, address) = channel();
    std::thread::spawn(move || {
        let any = "127.0.0.1:0".parse().expect("an address");
        let ready = |address| ready.send(address).expect("somebody waits");
        server::serve_by(any, &credentials, Fake(script, cancelled), ready)
    });
    address.recv_timeout(LIMIT).expect("it listens")
}

fn answer(boot: u64, id: u64) -> v1::Answer {
    v1::Answer {
        boot,
        id,
        verdict: v1::Verdict::Allow.into(),
        ttl_s: 60,
        scope: v1::Scope::Unspecified.into(),
        reason: "why not".to_owned(),
    }
}

fn said(answer: v1::Answer) -> v1::FromManager {
    wire::from_manager(from_manager::Message::Answer(answer))
}

fn yes(boot: u64, ask: v1::Ask) -> Vec<v1::FromManager> {
    vec![said(answer(boot, ask.id))]
}

fn wait_for<T>(what: &str, mut found: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(found) = found() {
            return found;
        }
        assert!(start.elapsed() < LIMIT, "waited for {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn connect(address: SocketAddr, credentials: Credentials) -> (Remote, Arc<Mailbox>) {
    let mailbox = Arc::new(Mailbox::new(None));
    let config = RemoteConfig {
        address: address.to_string(),
        credentials,
        switch: "sw".to_owned(),
        boot: 5,
    };
    let remote = Remote::start(config, Arc::clone(&mailbox)).expect("good files");
    (remote, mailbox)
}

fn question(id: u64, rule: &str) -> Question {
    let party = |name: &str| {
        Party::Workload(Arc::new(Workload {
            name: name.to_owned(),
            ..Workload::default()
        }))
    };
    Question {
        id,
        rule: rule.to_owned(),
        from: party("a"),
        to: party("b"),
        connection: String::new(),
        protocol: 17,
        number: 53,
        walls: [vec!["trading/buy".to_owned()], Vec::new()],
        suspicions: [Vec::new(), vec!["fan-out".to_owned()]],
        history: History::default(),
        questions_last_minute: 1,
        deadline_ms: 1000,
        ttl_s: 600,
        scope: Scope::Service,
    }
}

#[test]
fn whoever_is_not_who_he_should_be_is_not_asked() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let [ours, theirs] = [0, 1].map(|_| Authority::new().unwrap());
    let ours_for = |name: &str, uris: &[&str], year| {
        let uris: Vec<_> = uris.to_vec();
        ours.issue(dir, name, "127.0.0.1", &uris, year).unwrap()
    };
    let switch = ours_for("switch", &["vswitch://switch/sw"], GOOD);
    let stranger = theirs
        .issue(dir, "stranger", "127.0.0.1", &ALL, GOOD)
        .unwrap();
    // He trusts our authority, and we do not trust his.
    let other = Credentials {
        ca: switch.ca.clone(),
        ..stranger.clone()
    };
    let elsewhere = Credentials {
        ca: switch.ca.clone(),
        ..ours.issue(dir, "host", "10.0.0.1", &ALL, GOOD).unwrap()
    };
    for (manager, ours, trouble) in [
        (other.clone(), switch.clone(), "UnknownIssuer"),
        (ours_for("old", &ALL, EXPIRED), switch.clone(), "xpired"),
        (
            ours_for("wrong", &["vswitch://switch/sw2", "vswitch://rule/*"], GOOD),
            switch.clone(),
            "does not list vswitch://switch/sw",
        ),
        (elsewhere, switch.clone(), "not valid for name"),
        (ours_for("good", &ALL, GOOD), other, ""),
    ] {
        let (remote, _) = connect(serve(manager, yes), ours);
        let found = wait_for(trouble, || {
            let found = remote.standing().trouble;
            (!found.is_empty()).then_some(found)
        });
        assert!(found.contains(trouble), "{found}");
        assert!(!remote.standing().connected && remote.sessions() == 0);
        assert!(!remote.ask(question(1, "asks")), "nobody is there");
    }
}

#[test]
fn a_switch_that_is_another_one_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let authority = Authority::new().unwrap();
    let issue = |name: &str, uris: &[&str]| {
        authority
            .issue(dir.path(), name, "127.0.0.1", uris, GOOD)
            .unwrap()
    };
    let rules = server::Current::new(super::super::rules::Rules::parse("").unwrap());
    let manager = issue("manager", &ALL);
    let (ready, address) = channel();
    std::thread::spawn(move || {
        let any = "127.0.0.1:0".parse().expect("an address");
        server::serve(any, &manager, rules, |a| ready.send(a).expect("it waits"))
    });
    let address = address.recv_timeout(LIMIT).unwrap();
    let (remote, _) = connect(address, issue("other", &["vswitch://switch/sw2"]));
    let found = wait_for("the refusal", || {
        let found = remote.standing().trouble;
        (!found.is_empty()).then_some(found)
    });
    assert!(
        found.contains("does not list vswitch://switch/sw"),
        "{found}"
    );
    let (remote, mailbox) = connect(address, issue("right", &["vswitch://switch/sw"]));
    wait_for("the connection", || {
        remote.standing().connected.then_some(())
    });
    assert!(remote.ask(question(9, "asks")));
    let answers = wait_for("an answer", || {
        Some(mailbox.take()).filter(|answers| !answers.is_empty())
    });
    let undecided = Answer {
        boot: 5,
        id: 9,
        yes: None,
        ttl_s: None,
        once: false,
        reason: "no rule matches".to_owned(),
    };
    assert_eq!(answers, [undecided]);
}

/// A switch's and a manager's certificates.
fn pair(dir: &Path) -> (Credentials, Credentials) {
    let authority = Authority::new().unwrap();
    let issue = |name, uris: &[&str]| authority.issue(dir, name, "127.0.0.1", uris, GOOD).unwrap();
    (
        issue("switch", &["vswitch://switch/sw"]),
        issue("manager", &ALL),
    )
}

#[test]
fn what_makes_no_sense_ends_the_connection_and_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let (switch, manager) = pair(dir.path());
    let scripts: [(Script, &str); 6] = [
        (
            |boot, ask| {
                let verdict = 9;
                vec![said(v1::Answer {
                    verdict,
                    ..answer(boot, ask.id)
                })]
            },
            "verdict: 9",
        ),
        (
            |boot, ask| {
                let scope = -1;
                vec![said(v1::Answer {
                    scope,
                    ..answer(boot, ask.id)
                })]
            },
            "scope: -1",
        ),
        (
            |boot, ask| {
                let reason = "x".repeat(257);
                vec![said(v1::Answer {
                    reason,
                    ..answer(boot, ask.id)
                })]
            },
            "reason",
        ),
        (
            |boot, ask| {
                let reason = "x".repeat(LONGEST);
                vec![said(v1::Answer {
                    reason,
                    ..answer(boot, ask.id)
                })]
            },
            "too large",
        ),
        (
            |_, _| vec![v1::FromManager { message: None }],
            "not an Answer",
        ),
        (
            |_, _| {
                let welcome = v1::Welcome { version: 1 };
                vec![wire::from_manager(from_manager::Message::Welcome(welcome))]
            },
            "not an Answer",
        ),
    ];
    for (script, what) in scripts {
        let (remote, mailbox) = connect(serve(manager.clone(), script), switch.clone());
        wait_for("the connection", || {
            remote.standing().connected.then_some(())
        });
        remote.ask(question(1, "asks"));
        wait_for(what, || (remote.standing().malformed > 0).then_some(()));
        let found = wait_for(what, || {
            let found = remote.standing().trouble;
            (!found.is_empty()).then_some(found)
        });
        assert!(found.contains(what), "{found}");
        assert!(mailbox.take().is_empty());
        // And it is connected again.
        wait_for("the next connection", || {
            (remote.sessions() > 1).then_some(())
        });
    }
}

#[test]
fn rules_that_are_not_listed_are_not_put_to_a_manager() {
    let dir = tempfile::tempdir().unwrap();
    let (switch, manager) = pair(dir.path());
    let (remote, mailbox) = connect(serve(manager, yes), switch);
    wait_for("the connection", || {
        remote.standing().connected.then_some(())
    });
    remote.ask(question(1, "other"));
    remote.ask(question(2, "asks"));
    let answers = wait_for("an answer", || {
        Some(mailbox.take()).filter(|answers| !answers.is_empty())
    });
    assert_eq!(answers.iter().map(|a| a.id).collect::<Vec<_>>(), [2]);
    assert_eq!(remote.standing().unlisted, 1);
}

/// A switch with the workloads `a` and `b`, and their ends.
fn switch_with(address: SocketAddr, files: Credentials, deadline_ms: u32) -> (Switch, [MemEnd; 2]) {
    let port = |name: &str, n: u8| {
        let mut port = PortConfig::new(name, PortKind::Mem);
        port.workloads.push(WorkloadConfig {
            name: name.to_owned(),
            mac: vec![Mac([2, 0, 0, 0, 0, n])],
            ip: vec![[10, 0, 0, n].into()],
            ..WorkloadConfig::default()
        });
        port
    };
    let asks = Action::Ask(Terms {
        deadline_ms,
        ..Terms::new(Otherwise::Deny)
    });
    let desired = Desired {
        switch: SwitchConfig {
            connections: 1000,
            name: "sw".to_owned(),
            manager: Some(ManagerConfig {
                address: address.to_string(),
                tls: TlsConfig {
                    ca: files.ca,
                    certificate: files.certificate,
                    key: files.key,
                },
            }),
            ..SwitchConfig::default()
        },
        ports: vec![port("a", 1), port("b", 2)],
        policy: Policy {
            rules: vec![Rule::new("asks", &["any"], &["any"], asks)],
            ..Policy::default()
        },
        ..Desired::default()
    };
    let switch = Switch::builder().desired(desired).spawn().unwrap();
    let ends = ["a", "b"].map(|name| switch.mem_port(name).unwrap());
    wait_for("the manager", || connected(&switch).then_some(()));
    (switch, ends)
}

fn connected(switch: &Switch) -> bool {
    switch.status().unwrap().manager.unwrap().connected
}

fn datagram(dport: u16) -> Vec<u8> {
    let mut frame = Vec::new();
    let builder = etherparse::PacketBuilder::ethernet2([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2])
        .ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64)
        .udp(1000, dport);
    builder.write(&mut frame, b"judge me").unwrap();
    frame
}

#[test]
fn replayed_and_foreign_answers_open_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let (files, manager) = pair(dir.path());
    // Port 1: of another boot, and of another id. Port 2: the right one, twice.
    let script: Script = |boot, ask| {
        let number = ask.service.map_or(0, |s| s.number);
        let (right, foreign) = (answer(boot, ask.id), answer(boot ^ 1, ask.id));
        match number {
            1 => vec![said(foreign), said(answer(boot, ask.id ^ 1))],
            _ => vec![said(right.clone()), said(right)],
        }
    };
    let (switch, [mut a, mut b]) = switch_with(serve(manager, script), files, 60_000);
    let late = || switch.status().unwrap().manager.unwrap().late;
    a.send(&datagram(1)).unwrap();
    wait_for("both", || (late() == 2).then_some(()));
    assert_eq!(b.waiting(), 0);
    a.send(&datagram(2)).unwrap();
    let mut got = Vec::new();
    wait_for("the datagram", || b.recv(&mut got));
    assert_eq!(got, datagram(2));
    wait_for("the replayed one", || (late() == 3).then_some(()));
    let stats = switch.stats().unwrap();
    assert_eq!(stats.workers[0].counters["conn_asked"], 2);
}

#[test]
fn a_late_answer_opens_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let (files, manager) = pair(dir.path());
    // Nothing to the first; the next one brings an answer to that, too.
    let script: Script = |boot, ask| {
        static FIRST: AtomicU64 = AtomicU64::new(0);
        match ask.service.map_or(0, |s| s.number) {
            1 => {
                FIRST.store(ask.id, Ordering::SeqCst);
                Vec::new()
            }
            _ => vec![
                said(answer(boot, FIRST.load(Ordering::SeqCst))),
                said(answer(boot, ask.id)),
            ],
        }
    };
    let (switch, [mut a, mut b]) = switch_with(serve(manager, script), files, 200);
    a.send(&datagram(1)).unwrap();
    let denied = || {
        let drops = switch.drops().unwrap();
        let denied = drops.iter().find(|d| d.reason == "policy_ask_denied");
        denied.map_or(0, |d| d.total)
    };
    wait_for("otherwise", || (denied() == 1).then_some(()));
    // It is in time, however slow this machine: if it is not, there is no datagram, and another try.
    let mut got = Vec::new();
    for port in 2.. {
        let before = denied();
        a.send(&datagram(port)).unwrap();
        let arrived = wait_for("an end", || {
            let arrived = b.recv(&mut got).map(|_| true);
            arrived.or_else(|| (denied() > before).then_some(false))
        });
        if arrived {
            assert_eq!(got, datagram(port));
            break;
        }
    }
    assert!(switch.status().unwrap().manager.unwrap().late >= 1);
    let before = denied();
    a.send(&datagram(1)).unwrap();
    wait_for("the denial to stand", || (denied() > before).then_some(()));
}

#[test]
fn a_manager_is_told_what_nobody_asks_any_more() {
    let dir = tempfile::tempdir().unwrap();
    let (files, manager) = pair(dir.path());
    let (cancelled, told) = channel();
    let silent: Script = |_, _| Vec::new();
    let address = serve_and_tell(manager, silent, cancelled);
    let (switch, [mut a, _b]) = switch_with(address, files, 60_000);
    let asked = || switch.status().unwrap().manager.unwrap().asked;
    a.send(&datagram(1)).unwrap();
    wait_for("the question", || (asked() == 1).then_some(()));
    switch.apply_policy(Policy::default()).unwrap();
    told.recv_timeout(LIMIT).unwrap();
}
