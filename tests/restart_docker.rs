//! Docker makes a workload's container anew: its API played by the test, hostile too, and a real daemon where there is one.

mod common;

use common::container::Container;
use common::docker::{DECLARED, Engine, ID, NEW, OLD, docker, good, keys};
use common::netns::Netns;
use common::process::{self, Process};
use common::restart::{failed, is_recorded, restart, start};
use common::switch::SwitchConfig;
use common::{Lab, Need, poll, wait_for};
use serde_json::{Value, json};
use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::thread;
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(60);

#[test]
fn a_container_is_made_anew_from_the_declared_image_and_trusted() {
    let Some(lab) = Lab::open(&[]) else { return };
    let (socket, asked) = docker(&lab, "docker.sock", good);
    let switch = start(&lab, &keys(&socket));
    let (code, told) = restart(&switch);
    assert_eq!(
        (code, &told["trusted"], &told["image"]),
        (Some(0), &true.into(), &DECLARED.into()),
        "{told}"
    );
    is_recorded(&lab, "done", true);
    let asked = asked.lock().expect("nobody panics");
    let heads: Vec<_> = asked.iter().map(|(head, _)| head.as_str()).collect();
    assert_eq!(
        heads[..7],
        [
            &format!("GET /images/{DECLARED}/json"),
            "GET /containers/web/json",
            &format!("POST /containers/{OLD}/stop?t=10"),
            &format!(
                "POST /containers/{OLD}/rename?name=web-before-{}",
                &OLD[..12]
            ),
            "POST /containers/create?name=web",
            &format!("DELETE /containers/{OLD}"),
            &format!("POST /containers/{NEW}/start"),
        ]
    );
    // By its id: a tag may mean something else by now.
    assert_eq!(
        asked[4].1,
        json!({
            "Image": ID, "Env": ["A=b"], "Cmd": ["serve"],
            "HostConfig": { "Binds": ["orders:/data"], "NetworkMode": "blue" },
            "NetworkingConfig": { "EndpointsConfig": { "blue": {
                "IPAMConfig": { "IPv4Address": "10.0.0.1" }, "Aliases": ["web"],
            } } },
        })
    );
}

#[test]
fn another_image_or_a_docker_that_fails_leaves_the_workload_quarantined() {
    let engines: [(&str, Engine, &str, &str); 6] = [
        (
            "other",
            |head, body| match head {
                head if head.starts_with("GET /images/") => (
                    200,
                    json!({ "Id": ID, "RepoDigests": ["reg.example/web@sha256:1"] }),
                ),
                _ => good(head, body),
            },
            "is not the declared one",
            "GET /images/",
        ),
        (
            "none",
            |head, body| match head {
                head if head.starts_with("GET /images/") => (404, json!({ "message": "no" })),
                _ => good(head, body),
            },
            "Docker has no image",
            "GET /images/",
        ),
        (
            "full",
            |head, body| match head {
                head if head.contains("/create") => (500, json!({ "message": "disk full" })),
                _ => good(head, body),
            },
            "\"disk full\"; the old container is stopped",
            // What it was called before.
            "POST /containers/aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa/rename?name=web",
        ),
        (
            "ends",
            |head, body| match head {
                head if head.starts_with("GET /containers/bbb") => (
                    200,
                    json!({ "Id": NEW, "Image": ID, "State": { "Running": false, "ExitCode": 7 } }),
                ),
                _ => good(head, body),
            },
            "the new container has ended, exit code 7",
            "GET /containers/bbb",
        ),
        (
            "swapped",
            |head, body| match head {
                head if head.starts_with("GET /containers/bbb") => (
                    200,
                    json!({ "Id": NEW, "Image": "sha256:0", "State": { "Running": true } }),
                ),
                _ => good(head, body),
            },
            "Docker made the container of another image",
            "GET /containers/bbb",
        ),
        (
            "hostile",
            |head, body| match head {
                "GET /containers/web/json" => (200, json!({ "Id": "../../images/prune" })),
                _ => good(head, body),
            },
            "Docker names the container by what is no id",
            "GET /containers/web/json",
        ),
    ];
    for (name, engine, why, last) in engines {
        let Some(lab) = Lab::open(&[]) else { return };
        let (socket, asked) = docker(&lab, name, engine);
        let switch = start(&lab, &keys(&socket));
        failed(&lab, &restart(&switch), why);
        let asked = asked.lock().expect("nobody panics");
        let (head, _) = asked.last().expect("it was asked");
        assert!(head.starts_with(last), "{name}: {head}");
    }
}

#[test]
fn a_docker_that_is_silent_talks_too_much_or_is_none_is_given_up() {
    type Play = fn(UnixStream);
    let plays: [(&str, Play, &str); 3] = [
        (
            "silence",
            |stream| std::mem::forget(stream),
            "it took longer than its 5 s",
        ),
        (
            "garbage",
            |mut s| drop(s.write_all(b"QMP? no\r\n\r\n")),
            "Docker, GET /images/",
        ),
        (
            "long",
            |mut s| {
                // An answer that comes before its question is none.
                let _ = s.read(&mut [0; 64]);
                let _ = s.write_all(b"HTTP/1.1 200 x\r\nContent-Length: 99999999999\r\n\r\n");
                while s.write_all(&[b'['; 4096]).is_ok() {}
            },
            "length limit exceeded",
        ),
    ];
    for (name, play, why) in plays {
        let Some(lab) = Lab::open(&[]) else { return };
        let path = lab.path_str(name);
        let listener = UnixListener::bind(&path).expect("the lab's directory is writable");
        // Ends with the test's process.
        thread::spawn(move || listener.incoming().flatten().for_each(play));
        let switch = start(&lab, &keys(&path));
        failed(&lab, &restart(&switch), why);
    }
}

/// Docker's own programs, on a daemon of the test's.
struct Docker {
    socket: String,
    daemon: Process,
}

impl Docker {
    /// Starts a daemon that has a namespace of its own and touches no network of the machine.
    fn start(lab: &Lab, netns: &Netns) -> Self {
        let socket = lab.path_str("docker.sock");
        let mut command = netns.command("dockerd");
        command
            .args([
                "--data-root",
                &lab.path_str("data"),
                "--exec-root",
                &lab.path_str("exec"),
            ])
            .args([
                "-p",
                &lab.path_str("docker.pid"),
                "-H",
                &format!("unix://{socket}"),
            ])
            .args(["--iptables=false", "--ip6tables=false", "--bridge=none"])
            .args(["--ip-forward=false", "--ip-masq=false"]);
        let docker = Docker {
            daemon: Process::spawn(lab, "dockerd", command),
            socket,
        };
        wait_for("Docker", LIMIT, || docker.try_run(&["version"]));
        docker
    }

    /// Makes an image with nothing but busybox, called `web:1`; its id.
    fn image(&self, lab: &Lab) -> String {
        let archive = lab.path_str("image.tar");
        let make = format!(
            "mkdir -p {root}/bin {root}/data {root}/host && cp $(command -v busybox) {root}/bin/ && tar -C {root} -cf {archive} .",
            root = lab.path_str("root")
        );
        let mut shell = process::command("sh");
        shell.args(["-c", &make]);
        process::run_ok(shell, LIMIT);
        self.run(&["import", &archive, "web:1"])
    }

    /// Starts a container of that image that does nothing.
    fn idle(&self, name: &str, args: &[&str]) -> String {
        let run = [&["run", "-d", "--name", name], args];
        let idles = ["web:1", "/bin/busybox", "sleep", "100000"];
        self.run(&[&run.concat()[..], &idles].concat())
    }

    /// A shell command in the container `web`.
    fn inside(&self, what: &str) -> Option<String> {
        self.try_run(&["exec", "web", "/bin/busybox", "sh", "-c", what])
    }

    fn try_run(&self, args: &[&str]) -> Option<String> {
        let mut command = process::command("docker");
        command
            .args(["-H", &format!("unix://{}", self.socket)])
            .args(args);
        let output = process::run(command, LIMIT);
        let text = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        output.status.success().then_some(text)
    }

    fn run(&self, args: &[&str]) -> String {
        self.try_run(args)
            .unwrap_or_else(|| panic!("docker {args:?} failed"))
    }
}

impl Drop for Docker {
    fn drop(&mut self) {
        // A container outlives the daemon that is killed.
        for container in ["web", "pod"] {
            self.try_run(&["rm", "-f", container]);
        }
        // In order, so that it leaves no mounts behind.
        if self.daemon.ended().is_none() {
            self.daemon.signal("TERM");
            poll(LIMIT, || self.daemon.ended());
        }
    }
}

#[test]
fn a_real_container_is_made_anew() {
    let needs = ["dockerd", "docker", "busybox", "tar"].map(Need::Program);
    let Some(lab) = Lab::open(&[&[Need::Netns], &needs[..]].concat()) else {
        return;
    };
    let netns = Netns::new(&lab, "docker");
    let docker = Docker::start(&lab, &netns);
    let image = docker.image(&lab);
    let args = ["--network", "none", "-e", "SIDE=buy", "-v", "orders:/data"];
    let old = docker.idle("web", &args);
    let inside = |what: &str| docker.inside(what).expect("it runs");
    inside("echo kept > /data/order; echo bad > /bin/ls");

    let keys = format!(
        "driver = \"docker\"\nsocket = \"{}\"\ncontainer = \"web\"\ndigest = \"{image}\"\n",
        docker.socket
    );
    let switch = start(&lab, &keys);
    let (code, told) = restart(&switch);
    assert_eq!(
        (code, &told["trusted"], &told["image"]),
        (Some(0), &true.into(), &image.as_str().into()),
        "{told}"
    );
    let inspect = |what: &str| docker.run(&["inspect", "-f", what, "web"]);
    assert_eq!(
        inspect("{{.Image}} {{.State.Running}}"),
        format!("{image} true")
    );
    assert_ne!(inspect("{{.Id}}"), old);
    assert_eq!(inspect("{{.HostConfig.NetworkMode}}"), "none");
    assert_eq!(
        inside("cat /data/order; echo $SIDE; ls /bin"),
        "kept\nbuy\nbusybox"
    );
    assert_eq!(
        docker.run(&["ps", "-aq"]).lines().count(),
        1,
        "the old one is gone"
    );

    // Another image under the same tag is not the declared one.
    docker.run(&["rm", "-f", "web"]);
    docker.run(&["rmi", "web:1"]);
    failed(&lab, &restart(&switch), "Docker has no image");
}

/// Whoever scans is restarted. `b` may be asked whether it is there.
const RESTARTING: &str = r#"
[[rule]]
name = "echo"
from = "any"
to = "any"
service = "icmp"
action = "allow"
[[response]]
name = "anew"
on = "port-scan"
action = "restart"
"#;

#[test]
fn a_container_that_scans_is_made_anew_by_a_response() {
    let needs = ["dockerd", "docker", "busybox", "tar", "nmap"].map(Need::Program);
    let Some(lab) = Lab::open(&[&[Need::Netns], &needs[..]].concat()) else {
        return;
    };
    let (of_docker, host) = (Netns::new(&lab, "engine"), Netns::new(&lab, "host"));
    let docker = Docker::start(&lab, &of_docker);
    let image = docker.image(&lab);
    // As pods have it: one container keeps the namespace, whatever becomes of the others.
    docker.idle("pod", &["--network", "none"]);
    let process = docker.run(&["inspect", "-f", "{{.State.Pid}}", "pod"]);
    let pod = Netns::of_process(&lab, "pod", &process);
    let old = docker.idle("web", &["--network", "container:pod", "-v", "/:/host:ro"]);
    docker.inside("echo bad > /bin/ls").expect("it runs");

    let b = Container::bare(&lab, "b", 2);
    let toml = format!(
        "policy = \"policy.toml\"\n[ledger]\npath = \"{}\"\n{}\
         [[port]]\nname = \"web\"\nkind = \"tap\"\ninterface = \"eth0\"\nnetns = \"{}\"\n\
         [[port.workload]]\nname = \"web\"\nmac = [\"52:54:00:00:00:01\"]\nip = [\"10.0.0.1\"]\nstateless = true\n\
         [port.workload.restart]\n\
         driver = \"docker\"\nsocket = \"{}\"\ncontainer = \"web\"\ndigest = \"{image}\"\n",
        lab.path_str("ledger.db"),
        b.tap_port(""),
        pod.name(),
        docker.socket
    );
    let config = SwitchConfig::new(&lab, "switch", &toml, RESTARTING);
    let switch = config.in_netns(&host).start();
    switch.wait_ports_up(2);
    b.configure();
    pod.address("eth0", "52:54:00:00:00:01", &["10.0.0.1/24"]);
    pod.ip("link set eth0 up");
    let reaches = |what: &str| {
        wait_for(what, LIMIT, || {
            docker.inside("/bin/busybox ping -c 1 -W 5 10.0.0.2")
        });
    };
    reaches("web to reach b");

    // The program is the host's, the scan is the container's; it ends with it.
    let scan = "/bin/busybox chroot /host nmap -n -Pn -T4 --max-retries 0 -sT -p 1-100 10.0.0.2";
    let info = wait_for("it to be restarted", LIMIT, || {
        let info = switch.cli_json(&["workload", "restarts"])[0].clone();
        if info.is_null() {
            docker.inside(scan);
        }
        (info["state"].is_string() && info["state"] != "under-way").then_some(info)
    });
    assert_eq!(
        (&info["state"], &info["by"], &info["trusted"]),
        (&"done".into(), &"response anew".into(), &true.into()),
        "{info}"
    );
    assert!(
        info["reason"]
            .as_str()
            .is_some_and(|why| why.starts_with("port-scan: ")),
        "{info}"
    );
    let inspect = |what: &str| docker.run(&["inspect", "-f", what, "web"]);
    assert_ne!(inspect("{{.Id}}"), old);
    assert_eq!(
        inspect("{{.Image}} {{.State.Running}}"),
        format!("{image} true")
    );
    assert_eq!(
        docker.inside("/bin/busybox ls /bin").as_deref(),
        Some("busybox")
    );
    reaches("the new one to reach b");
    assert_eq!(switch.cli_json(&["status"])["quarantined"][0], Value::Null);
    let suspected = switch.cli_json(&["suspicion", "list"]);
    assert_eq!(suspected[0]["workload"], "web", "{suspected}");
    switch.wait_conserved();
}
