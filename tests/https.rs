//! The API over HTTPS, as a tool on another machine uses it: whom a certificate names may do what his roles say, and nobody else
//! anything.

mod common;

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use common::station::{Station, mac, port, udp, workload};
use common::switch::{Switch, SwitchConfig};
use common::{Lab, free_address, wait_for};
use rustls::pki_types::ServerName;
use rustls::{ClientConnection, StreamOwned};
use serde_json::{Value, json};
use vswitch::manager::certificate::Credentials;
use vswitch::manager::trial::Authority;

/// Bound on what must happen.
const LIMIT: Duration = Duration::from_secs(20);

const POLICY: &str = "[[rule]]\nname = \"asks\"\nfrom = \"any\"\nto = \"any\"\naction = \"ask\"\notherwise = \"deny\"\ndeadline_ms = 300000\n";

/// Somebody with a certificate.
struct Tool {
    address: String,
    credentials: Credentials,
}

type Stream = StreamOwned<ClientConnection, TcpStream>;

impl Tool {
    fn connect(&self) -> Stream {
        let mut config = (*self.credentials.client().expect("good files")).clone();
        // It speaks HTTP/1.1, and says so by saying nothing.
        config.alpn_protocols.clear();
        let name = ServerName::try_from("127.0.0.1").expect("a name");
        let tls = ClientConnection::new(Arc::new(config), name).expect("a good configuration");
        let tcp = TcpStream::connect(&self.address).expect("it listens");
        tcp.set_read_timeout(Some(LIMIT)).expect("a limit");
        StreamOwned::new(tls, tcp)
    }

    /// Status code and body of the answer; `None`: the connection was closed instead.
    fn send(&self, stream: &mut Stream, request: &str) -> Option<(u16, Value)> {
        // It may be closed before all is written; what it said is read all the same.
        let _ = stream.write_all(request.as_bytes());
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            match stream.read(&mut byte) {
                Ok(1) => head.extend(byte),
                _ => return None,
            }
        }
        let head = String::from_utf8(head).expect("ASCII");
        let status = head.split(' ').nth(1)?.parse().expect("a number");
        let length = head.lines().find_map(|line| {
            let (key, value) = line.split_once(": ")?;
            key.eq_ignore_ascii_case("content-length").then_some(value)
        });
        let length = length.expect("it is told").parse().expect("a number");
        let mut body = vec![0; length];
        stream.read_exact(&mut body).expect("as much as was told");
        Some((status, serde_json::from_slice(&body).expect("JSON")))
    }

    fn post(&self, body: &str) -> Option<(u16, Value)> {
        let head = format!(
            "POST /v1 HTTP/1.1\r\nHost: switch\r\nContent-Length: {}\r\n\r\n",
            body.len()
        );
        self.send(&mut self.connect(), &(head + body))
    }

    fn ask(&self, request: &Value) -> (u16, Value) {
        let answer = self.post(&request.to_string());
        answer.unwrap_or_else(|| panic!("no answer to {request}"))
    }
}

struct World<'a> {
    switch: Switch<'a>,
    stations: [Station; 2],
    authority: Authority,
    address: String,
    lab: &'a Lab,
}

impl World<'_> {
    fn tool(&self, file: &str, uris: &[&str]) -> Tool {
        let issued = self
            .authority
            .issue(&self.lab.path(""), file, "127.0.0.1", uris, 2999);
        Tool {
            address: self.address.clone(),
            credentials: issued.expect("the lab's directory is writable"),
        }
    }
}

fn start(lab: &Lab) -> World<'_> {
    let address = free_address();
    let (authority, toml) = configured(lab, &address);
    let switch = SwitchConfig::new(lab, "switch", &toml, POLICY).start();
    let stations = ["a", "b"].map(|name| Station::attach(lab, name));
    switch.wait_ports_up(2);
    World {
        switch,
        stations,
        authority,
        address,
        lab,
    }
}

/// Who issues certificates, and the configuration of a switch that has one.
fn configured(lab: &Lab, address: &str) -> (Authority, String) {
    let authority = Authority::new().expect("there is randomness");
    let files = authority.issue(
        &lab.path(""),
        "sw",
        "127.0.0.1",
        &["vswitch://switch/sw"],
        2999,
    );
    let files = files.expect("the lab's directory is writable");
    let toml = [
        "policy = \"policy.toml\"\n[switch]\nconnections = 10000\n".to_owned(),
        format!("[ledger]\npath = \"{}\"\n", lab.path_str("ledger.db")),
        format!(
            "[api]\nlisten = \"{address}\"\nca = {:?}\ncertificate = {:?}\nkey = {:?}\n",
            files.ca, files.certificate, files.key
        ),
        "[[person]]\nname = \"ann\"\nroles = [\"approver\"]\n".to_owned(),
        "[[person]]\nname = \"vera\"\nroles = [\"viewer\"]\n".to_owned(),
        port(lab, "a", ""),
        workload("a", 1, "10.0.0.1", ""),
        port(lab, "b", ""),
        workload("b", 2, "10.0.0.2", ""),
    ];
    (authority, toml.concat())
}

#[test]
fn an_address_that_is_taken_stops_the_start_with_advice() {
    let Some(lab) = Lab::open(&[]) else { return };
    let other = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = other.local_addr().expect("bound").to_string();
    let (_, toml) = configured(&lab, &address);
    let mut s = SwitchConfig::new(&lab, "switch", &toml, POLICY).spawn();
    assert_eq!(s.process().wait(LIMIT).code(), Some(1));
    let said = s.process().log();
    for what in [address.as_str(), "in use", "under `[api]`"] {
        assert!(said.contains(what), "{what} is not said: {said}");
    }
    let left = [s.socket(), lab.path("a.sock").as_path()].map(Path::exists);
    assert_eq!(left, [false; 2], "nothing is left behind");
}

#[test]
fn whom_a_certificate_names_may_what_his_roles_say() {
    let Some(lab) = Lab::open(&[]) else { return };
    let mut world = start(&lab);
    let ann = world.tool("ann", &["vswitch://person/ann"]);
    let vera = world.tool("vera", &["vswitch://person/vera"]);
    let ips = ([10, 0, 0, 1], [10, 0, 0, 2]);
    let datagram = udp((mac(1), mac(2)), ips, (1000, 53), b"may I");
    world.stations[0].send(&datagram);
    let id = wait_for("the question", LIMIT, || {
        let (status, asks) = vera.ask(&json!({"version": 1, "request": "asks"}));
        assert_eq!(status, 200, "{asks}");
        Some(asks["ok"][0]["id"].as_str()?.to_owned())
    });
    let allow = json!({"version": 1, "request": "answer", "id": id, "yes": true});
    let (status, no) = vera.ask(&allow);
    assert_eq!(status, 403, "{no}");
    let why = no["error"]["errors"][0].as_str().expect("a reason");
    assert!(
        why.contains("answer needs the role approver; vera is viewer"),
        "{why}"
    );
    let (status, yes) = ann.ask(&allow);
    assert_eq!((status, &yes["ok"]["id"]), (200, &json!(id)), "{yes}");
    world.stations[1].recv(&datagram);
    // It is used once.
    assert_eq!(ann.ask(&allow).0, 400);
    let path = lab.path_str("ledger.db");
    for (kind, who) in [("role_refused", "vera"), ("verdict", "ann")] {
        wait_for(kind, LIMIT, || {
            let shown = world
                .switch
                .cli_json(&["ledger", "show", "--file", &path, "--kind", kind]);
            let found = shown
                .as_array()
                .is_some_and(|all| all.iter().any(|r| r["who"] == who));
            found.then_some(())
        });
    }
}

#[test]
fn whoever_is_nobody_here_is_not_answered() {
    let Some(lab) = Lab::open(&[]) else { return };
    let world = start(&lab);
    let status = json!({"version": 1, "request": "status"}).to_string();
    // Of another authority.
    let theirs = Authority::new().expect("there is randomness");
    let issued = theirs.issue(
        &lab.path(""),
        "stranger",
        "127.0.0.1",
        &["vswitch://person/ann"],
        2999,
    );
    let stranger = Tool {
        address: world.address.clone(),
        credentials: Credentials {
            ca: lab.path("sw-ca.pem"),
            ..issued.expect("the lab's directory is writable")
        },
    };
    assert_eq!(stranger.post(&status), None);
    // Of ours, and of nobody, of two people, of a switch, or no longer good.
    let both = ["vswitch://person/ann", "vswitch://person/vera"];
    for (file, uris) in [
        ("none", &[] as &[&str]),
        ("both", &both),
        ("sw2", &["vswitch://switch/sw"]),
    ] {
        assert_eq!(world.tool(file, uris).post(&status), None, "{file}");
    }
    let old = world.authority.issue(
        &lab.path(""),
        "old",
        "127.0.0.1",
        &["vswitch://person/ann"],
        2024,
    );
    let old = Tool {
        address: world.address.clone(),
        credentials: old.expect("the lab's directory is writable"),
    };
    assert_eq!(old.post(&status), None);
    // A person whom the switch does not know.
    let (code, no) = world
        .tool("eve", &["vswitch://person/eve"])
        .post(&status)
        .expect("an answer");
    assert_eq!(code, 403, "{no}");
    let ann = world.tool("ann", &["vswitch://person/ann"]);
    assert_eq!(ann.post(&status).expect("an answer").0, 200);
}

#[test]
fn what_is_no_request_is_refused_and_one_client_keeps_no_other_out() {
    let Some(lab) = Lab::open(&[]) else { return };
    let world = start(&lab);
    let ann = world.tool("ann", &["vswitch://person/ann"]);
    for (request, status) in [
        ("GET /v1 HTTP/1.1\r\nHost: s\r\n\r\n", 405),
        (
            "POST /v2 HTTP/1.1\r\nHost: s\r\nContent-Length: 0\r\n\r\n",
            404,
        ),
        (
            "POST /v1 HTTP/1.1\r\nHost: s\r\nContent-Length: 2\r\n\r\nno",
            400,
        ),
        (
            "POST /v1 HTTP/1.1\r\nHost: s\r\nContent-Length: 1\r\n\r\n\u{7f}",
            400,
        ),
        (
            "POST /v1 HTTP/1.1\r\nHost: s\r\nContent-Length: 99999999\r\n\r\n",
            413,
        ),
    ] {
        let answer = ann.send(&mut ann.connect(), request);
        assert_eq!(answer.map(|(status, _)| status), Some(status), "{request}");
    }
    assert_eq!(ann.ask(&json!({"version": 1, "request": "watch"})).0, 400);
    assert_eq!(ann.ask(&json!({"version": 9, "request": "status"})).0, 400);
    // One connection, several requests.
    let status = "POST /v1 HTTP/1.1\r\nHost: s\r\nContent-Length: 35\r\n\r\n{\"version\": 1, \"request\": \"status\"}";
    let mut stream = ann.connect();
    for _ in 0..3 {
        assert_eq!(
            ann.send(&mut stream, status).map(|(status, _)| status),
            Some(200)
        );
    }
    // All that one person may have, and then some; and handshakes that never end.
    let _silent: Vec<_> = (0..8)
        .map(|_| TcpStream::connect(&world.address).expect("it listens"))
        .collect();
    let mut his: Vec<_> = (0..16).map(|_| ann.connect()).collect();
    let answered = his
        .iter_mut()
        .filter_map(|stream| ann.send(stream, status))
        .count();
    assert_eq!(answered, 15, "one of 16 is open already");
    let vera = world.tool("vera", &["vswitch://person/vera"]);
    assert_eq!(vera.ask(&json!({"version": 1, "request": "status"})).0, 200);
}
