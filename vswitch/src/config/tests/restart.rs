//! How a workload is restarted: what is right, and every error at its line and column.

use super::*;
use crate::control::state::{Driver, Image, Method, RestartConfig};

/// A machine with one workload and these lines below it.
fn machine(lines: &str) -> String {
    format!(
        "policy = \"p\"\n[[port]]\nname = \"a\"\nkind = \"mem\"\n[[port.workload]]\nname = \"a\"\n\
         mac = [\"52:54:00:00:00:01\"]\n{lines}"
    )
}

fn read(lines: &str) -> RestartConfig {
    let desired = parse(("s", "p"), &machine(lines), "").unwrap();
    let restart = desired.ports[0].workloads[0].restart.clone();
    restart.unwrap()
}

fn errors(lines: &str) -> Vec<String> {
    parse(("s", "p"), &machine(lines), "").unwrap_err().lines()
}

#[test]
fn every_driver_is_read() {
    let command =
        read("[port.workload.restart]\ndriver = \"command\"\nargv = [\"/bin/x\", \"{y}\"]\n");
    assert_eq!(
        command,
        RestartConfig {
            driver: Driver::Command {
                argv: vec!["/bin/x".to_owned(), "{y}".to_owned()]
            },
            limit_s: 120
        }
    );
    let digest = "0123456789abcdef".repeat(4);
    let docker = read(&format!(
        "stateless = true\n[port.workload.restart]\ndriver = \"docker\"\nlimit_s = 7\nsocket = \"/run/docker.sock\"\n\
         container = \"web_1\"\ndigest = \"reg.example:5000/web/app@sha256:{digest}\"\n"
    ));
    assert_eq!(
        docker,
        RestartConfig {
            driver: Driver::Docker {
                socket: "/run/docker.sock".into(),
                container: "web_1".to_owned(),
                image: format!("reg.example:5000/web/app@sha256:{digest}")
            },
            limit_s: 7
        }
    );
    let qmp = |rest: &str| {
        let lines = format!(
            "stateless = true\n[port.workload.restart]\ndriver = \"qmp\"\nsocket = \"/run/q\"\n{rest}"
        );
        match read(&lines).driver {
            Driver::Qmp { socket, method } if socket == Path::new("/run/q") => method,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(qmp("method = \"system_reset\"\n"), Method::SystemReset);
    assert_eq!(
        qmp("method = \"loadvm\"\nsnapshot = \"s-1\"\n"),
        Method::Loadvm {
            snapshot: "s-1".to_owned()
        }
    );
    let fresh = format!(
        "method = \"fresh\"\nargv = [\"/usr/bin/qemu\", \"-kernel\", \"{{k}}\"]\n\
         [[port.workload.restart.image]]\nname = \"k\"\nfile = \"/boot/k\"\nsha256 = \"{digest}\"\n"
    );
    assert_eq!(
        qmp(&fresh),
        Method::Fresh {
            argv: ["/usr/bin/qemu", "-kernel", "{k}"]
                .map(str::to_owned)
                .to_vec(),
            images: vec![Image {
                name: "k".to_owned(),
                file: "/boot/k".into(),
                sha256: digest
            }]
        }
    );
}

#[test]
fn every_error_of_a_restart_has_its_place() {
    let head = "[port.workload.restart]\n";
    for (lines, expected) in [
        (
            "",
            &["s:8:1: error: missing key \"driver\"; say qmp, docker or command"][..],
        ),
        (
            "driver = \"qnp\"\nsocket = \"/x\"\n",
            &["s:9:10: error: \"qnp\" is not known here; did you mean \"qmp\"?"],
        ),
        (
            "driver = \"command\"\nlimit_s = 0\nsocket = \"/x\"\nargv = [\"bin/x\"]\n",
            &[
                "s:10:11: error: 0 is out of range; use 1 to 3600",
                "s:11:10: error: \"socket\" does not go with driver = \"command\"; remove it, or change the other",
                "s:12:9: error: \"bin/x\" is not a whole path; write it from the root, as in /run/...",
            ],
        ),
        (
            "driver = \"qmp\"\nsocket = \"q\"\nmethod = \"loadvm\"\nsnapshot = \"a b\"\n",
            &[
                "s:10:10: error: \"q\" is not a whole path; write it from the root, as in /run/...",
                "s:12:12: error: \"a b\" is no snapshot's name; use letters, digits, dots, dashes and underscores",
            ],
        ),
        (
            "driver = \"docker\"\nsocket = \"/d\"\ncontainer = \"a/../b\"\ndigest = \"web:latest\"\n",
            &[
                "s:9:10: error: what the workload wrote elsewhere than to its volumes would be lost; \
                 say `stateless = true` on the workload if that may be, and list what it keeps in `volumes`",
                "s:11:13: error: \"a/../b\" is no container's name; write it as `docker ps` shows it",
                "s:12:10: error: \"web:latest\" names no image by its digest; write NAME@sha256:... \
                 (`docker images --digests`), or the image's id, sha256:... (`docker images --no-trunc`)",
            ],
        ),
    ] {
        assert_eq!(errors(&format!("{head}{lines}")), expected, "{lines}");
    }
    let fresh = "stateless = true\n[port.workload.restart]\ndriver = \"qmp\"\nsocket = \"/q\"\nmethod = \"fresh\"\n\
                 argv = [\"/q\", \"{a}\"]\n";
    assert_eq!(
        errors(fresh),
        ["s:13:8: error: a fresh machine needs an image; \
          add [[port.workload.restart.image]] with `name`, `file` and `sha256`"]
    );
    let image = |name: &str| {
        format!(
            "[[port.workload.restart.image]]\nname = \"{name}\"\nfile = \"f\"\nsha256 = \"F0\"\n"
        )
    };
    assert_eq!(
        errors(&format!("{fresh}{}{}", image("a"), image("b"))),
        [
            "s:16:8: error: \"f\" is not a whole path; write it from the root, as in /run/...",
            "s:17:10: error: \"F0\" is no SHA-256; write what `sha256sum` says: 64 digits and letters a to f",
            "s:19:8: error: `argv` does not use image \"b\"; write {b} where the command line names the file",
            "s:20:8: error: \"f\" is not a whole path; write it from the root, as in /run/...",
            "s:21:10: error: \"F0\" is no SHA-256; write what `sha256sum` says: 64 digits and letters a to f",
        ]
    );
}
