//! What must hold of how a workload is restarted.

use std::path::Path;

use super::MAX_SOCKET_LEN;
use crate::control::state::{Driver, Image, Method, RestartConfig, WorkloadConfig};
use crate::policy::{FieldError, FieldPath};

/// Why who is made anew must say that he may be.
const LOST: &str = "what the workload wrote elsewhere than to its volumes would be lost";
const LOST_TODO: &str =
    "say `stateless = true` on the workload if that may be, and list what it keeps in `volumes`";

/// Everything wrong with it; `at` is where the workload stands.
pub(super) fn check(at: &FieldPath, workload: &WorkloadConfig) -> Vec<FieldError> {
    let Some(RestartConfig { driver, limit_s }) = &workload.restart else {
        return Vec::new();
    };
    let at = at.key("restart");
    let mut errors = Vec::new();
    let mut error = |at: FieldPath, what: String, todo: &str| {
        errors.push(FieldError::new(at, what, todo));
    };
    if !(1..=RestartConfig::LIMIT_MAX_S).contains(limit_s) {
        let todo = format!("use 1 to {}", RestartConfig::LIMIT_MAX_S);
        error(
            at.key("limit_s"),
            format!("{limit_s} s is out of range"),
            &todo,
        );
    }
    match driver {
        Driver::Command { argv } => command_line(&at, argv, &mut error),
        Driver::Docker {
            socket: path,
            container,
            image,
        } => {
            socket(&at, path, &mut error);
            docker(&at, (container, image), workload.stateless, &mut error);
        }
        Driver::Qmp {
            socket: path,
            method,
        } => {
            socket(&at, path, &mut error);
            match method {
                Method::SystemReset => {}
                Method::Loadvm { snapshot } => {
                    // It stands in a line that QEMU takes apart at spaces, quotes and the like.
                    let plain = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
                    if snapshot.is_empty()
                        || snapshot.starts_with('-')
                        || !snapshot.chars().all(plain)
                    {
                        let todo = "use letters, digits, dots, dashes and underscores";
                        error(
                            at.key("snapshot"),
                            format!("{snapshot:?} is no snapshot's name"),
                            todo,
                        );
                    }
                }
                Method::Fresh { argv, images } => {
                    command_line(&at, argv, &mut error);
                    fresh(&at, (argv, images), workload.stateless, &mut error);
                }
            }
        }
    }
    errors
}

fn socket(at: &FieldPath, path: &Path, error: &mut impl FnMut(FieldPath, String, &str)) {
    whole_path(at.key("socket"), path, error);
    if path.as_os_str().len() > MAX_SOCKET_LEN {
        let what = format!("socket path has more than {MAX_SOCKET_LEN} bytes");
        error(at.key("socket"), what, "use a shorter path");
    }
}

/// What becomes part of what Docker is asked for must be a name and nothing else.
fn docker(
    at: &FieldPath,
    (container, image): (&str, &str),
    stateless: bool,
    error: &mut impl FnMut(FieldPath, String, &str),
) {
    if !stateless {
        error(at.key("driver"), LOST.to_owned(), LOST_TODO);
    }
    let plain = |c: char| c.is_ascii_alphanumeric() || "_.-".contains(c);
    if !container.starts_with(|c: char| c.is_ascii_alphanumeric()) || !container.chars().all(plain)
    {
        let what = format!("{container:?} is no container's name");
        error(
            at.key("container"),
            what,
            "write it as `docker ps` shows it",
        );
    }
    let (name, digest) = image.split_once("sha256:").unwrap_or_default();
    let of_name = name.strip_suffix('@').unwrap_or("-");
    let part = |c: char| plain(c) || "/:".contains(c);
    let is_named =
        of_name.starts_with(|c: char| c.is_ascii_alphanumeric()) && of_name.chars().all(part);
    if !(name.is_empty() || is_named) || !is_sha256(digest) {
        let what = format!("{image:?} names no image by its digest");
        let todo = "write NAME@sha256:... (`docker images --digests`), or the image's id, sha256:... (`docker images --no-trunc`)";
        error(at.key("digest"), what, todo);
    }
}

/// Whether this is a SHA-256 in lower-case hexadecimal digits.
fn is_sha256(text: &str) -> bool {
    text.len() == 64 && text.chars().all(|c| matches!(c, '0'..='9' | 'a'..='f'))
}

fn whole_path(at: FieldPath, path: &Path, error: &mut impl FnMut(FieldPath, String, &str)) {
    if !path.is_absolute() {
        let what = format!("{path:?} is not a whole path");
        error(at, what, "write it from the root, as in /run/...");
    }
}

fn command_line(at: &FieldPath, argv: &[String], error: &mut impl FnMut(FieldPath, String, &str)) {
    match argv.first() {
        None => error(
            at.key("argv"),
            "there is no command".to_owned(),
            "write the program and its arguments, such as [\"/usr/bin/virsh\", \"reset\", \"web-1\"]",
        ),
        Some(program) => whole_path(at.item("argv", 0, ""), Path::new(program), error),
    }
    for (n, argument) in argv.iter().enumerate() {
        if argument.contains('\0') {
            let what = "an argument cannot contain NUL".to_owned();
            error(at.item("argv", n, ""), what, "remove it");
        }
    }
}

fn fresh(
    at: &FieldPath,
    (argv, images): (&[String], &[Image]),
    stateless: bool,
    error: &mut impl FnMut(FieldPath, String, &str),
) {
    if !stateless {
        error(at.key("method"), LOST.to_owned(), LOST_TODO);
    }
    if images.is_empty() {
        error(
            at.key("argv"),
            "a fresh machine needs an image".to_owned(),
            "add [[port.workload.restart.image]] with `name`, `file` and `sha256`",
        );
    }
    for (n, image) in images.iter().enumerate() {
        let at = at.item("image", n, &image.name);
        let plain = |c: char| c.is_ascii_alphanumeric() || "_-".contains(c);
        if image.name.is_empty() || !image.name.chars().all(plain) {
            let todo = "use letters, digits, dashes and underscores";
            error(
                at.key("name"),
                format!("{:?} is no image's name", image.name),
                todo,
            );
        } else if images.iter().take(n).any(|other| other.name == image.name) {
            error(
                at.key("name"),
                format!("duplicate image {:?}", image.name),
                "rename one",
            );
        } else if !argv
            .iter()
            .any(|a| a.contains(&format!("{{{}}}", image.name)))
        {
            let todo = format!(
                "write {{{}}} where the command line names the file",
                image.name
            );
            error(
                at.key("name"),
                format!("`argv` does not use image {:?}", image.name),
                &todo,
            );
        }
        whole_path(at.key("file"), &image.file, error);
        if !is_sha256(&image.sha256) {
            let what = format!("{:?} is no SHA-256", image.sha256);
            error(
                at.key("sha256"),
                what,
                "write what `sha256sum` says: 64 digits and letters a to f",
            );
        }
    }
}
