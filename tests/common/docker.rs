//! A Docker played by the test.

use super::Lab;
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::{Arc, Mutex};
use std::thread;

/// The container that there is.
pub const OLD: &str = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";
/// The one that is made.
pub const NEW: &str = "bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb";
/// The image's id.
pub const ID: &str = "sha256:cccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccc";
/// What the registry calls it.
pub const DECLARED: &str =
    "reg.example/web@sha256:dddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddd";

/// A Docker: what it is asked for, with the body, and what it answers.
pub type Engine = fn(&str, &Value) -> (u16, Value);

/// What was asked, in order.
pub type Asked = Arc<Mutex<Vec<(String, Value)>>>;

/// Plays one; its socket, and what it is asked.
pub fn docker(lab: &Lab, name: &str, engine: Engine) -> (String, Asked) {
    let path = lab.path_str(name);
    let listener = UnixListener::bind(&path).expect("the lab's directory is writable");
    let asked = Asked::default();
    let log = Arc::clone(&asked);
    // Ends with the test's process.
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            serve(stream, engine, &log);
        }
    });
    (path, asked)
}

/// Answers requests until the other end is gone.
pub fn serve(stream: UnixStream, engine: Engine, log: &Asked) {
    let mut out = stream.try_clone().expect("a socket can be cloned");
    let mut from = BufReader::new(stream);
    loop {
        let mut head = String::new();
        let mut length = 0;
        loop {
            let mut line = String::new();
            if from.read_line(&mut line).unwrap_or(0) == 0 {
                return;
            }
            if line.trim().is_empty() {
                break;
            }
            if let Some(n) = line.to_lowercase().strip_prefix("content-length:") {
                length = n.trim().parse().expect("a number");
            }
            if head.is_empty() {
                head = line
                    .trim_end()
                    .trim_end_matches(" HTTP/1.1")
                    .replace("/v1.41", "");
            }
        }
        let mut body = vec![0; length];
        from.read_exact(&mut body).expect("what it promised");
        let body = serde_json::from_slice(&body).unwrap_or(Value::Null);
        let (status, answer) = engine(&head, &body);
        log.lock().expect("nobody panics").push((head, body));
        let answer = if answer.is_null() {
            String::new()
        } else {
            answer.to_string()
        };
        let text = format!(
            "HTTP/1.1 {status} x\r\nContent-Length: {}\r\n\r\n{answer}",
            answer.len()
        );
        if out.write_all(text.as_bytes()).is_err() {
            return;
        }
    }
}

/// What it says of the image.
pub fn image() -> Value {
    json!({ "Id": ID, "RepoDigests": ["reg.example/other@sha256:1", DECLARED] })
}

/// What it says of the old container.
pub fn old() -> Value {
    json!({
        "Id": OLD, "Name": "/web", "Image": "sha256:0", "State": { "Running": true },
        "Config": { "Hostname": &OLD[..12], "Env": ["A=b"], "Image": "web:latest", "Cmd": ["serve"] },
        "HostConfig": { "Binds": ["orders:/data"], "NetworkMode": "blue" },
        "NetworkSettings": { "Networks": { "blue": {
            "IPAMConfig": { "IPv4Address": "10.0.0.1" }, "Aliases": ["web", &OLD[..12]], "Links": null,
            "IPAddress": "10.0.0.1", "Gateway": "10.0.0.254",
        } } },
    })
}

/// One that does what it should.
pub fn good(head: &str, _: &Value) -> (u16, Value) {
    let new = json!({ "Id": NEW, "Image": ID, "State": { "Running": true } });
    match head.split_once(' ').expect("method and path") {
        ("GET", path) if path == format!("/images/{DECLARED}/json") => (200, image()),
        ("GET", "/containers/web/json") => (200, old()),
        ("GET", path) if path == format!("/containers/{NEW}/json") => (200, new),
        ("POST", path) if path == format!("/containers/{OLD}/stop?t=10") => (304, Value::Null),
        ("POST", "/containers/create?name=web") => (201, json!({ "Id": NEW, "Warnings": [] })),
        ("POST" | "DELETE", _) => (204, Value::Null),
        _ => (404, json!({ "message": "no such thing" })),
    }
}

/// How to restart by it.
pub fn keys(socket: &str) -> String {
    format!(
        "driver = \"docker\"\nsocket = \"{socket}\"\ncontainer = \"web\"\ndigest = \"{DECLARED}\"\nlimit_s = 5\n"
    )
}
