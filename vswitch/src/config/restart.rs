//! `[port.workload.restart]`.

use super::policy::texts;
use super::read::Section;
use crate::restart::{Driver, Image, Method, RestartConfig};

/// The drivers, and the keys only they have.
const DRIVERS: [(&str, &[&str]); 3] = [
    ("qmp", &["socket", "method", "snapshot", "argv", "image"]),
    ("docker", &["socket", "container", "digest"]),
    ("command", &["argv"]),
];

/// What QEMU can be told, and the keys that go with it.
const METHODS: [(&str, &[&str]); 3] = [
    ("system_reset", &[]),
    ("loadvm", &["snapshot"]),
    ("fresh", &["argv", "image"]),
];

/// How a workload is restarted; `None` (and errors) when that is wrong.
pub(super) fn restart(mut table: Section<'_>) -> Option<RestartConfig> {
    let limit_s = table.integer("limit_s", 1, RestartConfig::LIMIT_MAX_S.into());
    let limit_s = limit_s.unwrap_or(RestartConfig::LIMIT_S);
    let driver = driver(&mut table);
    table.finish();
    Some(RestartConfig {
        driver: driver?,
        limit_s,
    })
}

fn driver(table: &mut Section<'_>) -> Option<Driver> {
    if cfg!(not(feature = "manager")) {
        let todo = "build it with the feature \"manager\", or remove the table";
        table.error(
            "driver",
            "this program was built without restart drivers",
            todo,
        );
    }
    let driver = one_of(table, "driver", &DRIVERS, "say qmp, docker or command")?;
    Some(match driver {
        "qmp" => Driver::Qmp {
            socket: table
                .required("socket", "name the socket of QEMU's -qmp")
                .into(),
            method: method(table)?,
        },
        "docker" => Driver::Docker {
            socket: table
                .required("socket", "name Docker's, such as \"/run/docker.sock\"")
                .into(),
            container: table.required("container", "name the container"),
            image: table.required(
                "digest",
                "write NAME@sha256:..., or the image's id, sha256:...",
            ),
        },
        _ => Driver::Command {
            argv: texts(table.strings("argv")),
        },
    })
}

fn method(table: &mut Section<'_>) -> Option<Method> {
    let method = one_of(
        table,
        "method",
        &METHODS,
        "say system_reset, loadvm or fresh",
    )?;
    Some(match method {
        "system_reset" => Method::SystemReset,
        "loadvm" => Method::Loadvm {
            snapshot: table.required("snapshot", "name the snapshot"),
        },
        _ => Method::Fresh {
            argv: texts(table.strings("argv")),
            images: table.tables("image").into_iter().map(image).collect(),
        },
    })
}

/// One of a few words; keys that go with another one are errors.
fn one_of<'w>(
    table: &mut Section<'_>,
    key: &'static str,
    words: &[(&'w str, &'static [&'static str])],
    todo: &str,
) -> Option<&'w str> {
    table.required(key, todo);
    let known: Vec<_> = words.iter().map(|word| (word.0, *word)).collect();
    let word = table.string(key).and_then(|text| text.word(&known));
    let Some((word, keys)) = word else {
        // Not known which keys belong, so none of them is unknown.
        words.iter().for_each(|(_, keys)| table.allow(keys));
        return None;
    };
    let all = words.iter().flat_map(|(_, keys)| keys.iter().copied());
    for other in all.filter(|other| !keys.contains(other)) {
        let what = format!("{other:?} does not go with {key} = {word:?}");
        table.refuse(other, &what, "remove it, or change the other");
    }
    Some(word)
}

fn image(mut table: Section<'_>) -> Image {
    let image = Image {
        name: table.required("name", "give it the name that `argv` has in braces"),
        file: table.required("file", "name the image's file").into(),
        sha256: table.required("sha256", "write what `sha256sum` says of it"),
    };
    table.finish();
    image
}
