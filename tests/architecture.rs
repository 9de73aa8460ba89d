//! The rules of the house that a compiler does not check: who may import whom, where `unsafe` may stand, how long a file may
//! be, and that the documentation's links lead somewhere.
//!
//! The scanner knows Rust's comments and literals, and no more; it errs towards finding too much.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

/// Modules of `vswitch/src` by layer, lower ones first, as `ARCHITECTURE.md` has them. A module imports lower layers. In an
/// ordered layer it may also import the modules before it in the row; in the others it imports no neighbour.
const LAYERS: &[(Order, &[&str])] = &[
    (
        Order::Ordered,
        &["drop_reason", "packet", "sys", "publish", "event"],
    ),
    (Order::Ordered, &["counters", "frame", "offload"]),
    (Order::Unordered, &["port", "policy", "guest"]),
    (Order::Unordered, &["datapath"]),
    (
        Order::Ordered,
        &["manager", "restart", "control", "observe", "containers"],
    ),
    (Order::Ordered, &["config", "bench", "demo", "cli", "main"]),
];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Order {
    Ordered,
    Unordered,
}

/// Imports that the layers would allow and the house does not: the data path never needs a guest's side of anything.
const NEVER: &[(&str, &str)] = &[("datapath", "guest")];

/// Directories with Rust files of ours.
const SOURCES: &[&str] = &[
    "flowtable",
    "vswitch",
    "src",
    "tests",
    "benches",
    "examples",
    "fuzz",
];

/// A file of more lines says why it is so long.
const MAX_LINES: usize = 800;

#[test]
fn modules_import_lower_layers_only() {
    let mut wrong = String::new();
    let files = rust_files(&root().join("vswitch/src"));
    let for_tests: Vec<PathBuf> = files
        .iter()
        .flat_map(|path| test_modules(path, &read(path)))
        .collect();
    for path in files {
        let relative = path
            .strip_prefix(root().join("vswitch/src"))
            .expect("it lies there");
        let module = module_path(relative);
        // The crate's root declares everything.
        let Some(own) = module.first() else { continue };
        let text = read(&path);
        if for_tests
            .iter()
            .any(|tests| path.starts_with(tests) || path.with_extension("") == *tests)
        {
            continue;
        }
        let Some(place) = place_of(own) else {
            let _ = writeln!(
                wrong,
                "{}: module `{own}` is in no layer of this test",
                relative.display()
            );
            continue;
        };
        for (line, used) in imports(&without_tests(&code(&text)), module.len()) {
            if used == *own {
                continue;
            }
            // A name at the crate's root that is no module is a re-export, which the crate itself should not use.
            let Some(other) = place_of(&used) else {
                let _ = writeln!(
                    wrong,
                    "{}:{line}: `{used}` is in no layer of this test",
                    relative.display()
                );
                continue;
            };
            let lower = other.0 < place.0;
            let before =
                other.0 == place.0 && other.1 < place.1 && LAYERS[place.0].0 == Order::Ordered;
            if !(lower || before) || NEVER.contains(&(own.as_str(), used.as_str())) {
                let _ = writeln!(
                    wrong,
                    "{}:{line}: `{own}` imports `{used}`",
                    relative.display()
                );
            }
        }
    }
    assert!(wrong.is_empty(), "against the layers:\n{wrong}");
}

#[test]
fn flowtable_knows_nothing_of_the_switch() {
    for path in rust_files(&root().join("flowtable")) {
        assert!(
            !words(&code(&read(&path))).any(|(_, w)| w == "vswitch"),
            "{} names vswitch",
            path.display()
        );
    }
    let manifest = read(&root().join("flowtable/Cargo.toml"));
    assert!(
        !manifest.contains("vswitch"),
        "flowtable/Cargo.toml names vswitch"
    );
}

#[test]
fn unsafe_stands_in_listed_files_only() {
    let found: BTreeSet<String> = all_rust_files()
        .iter()
        .filter(|path| words(&code(&read(path))).any(|(_, word)| word == "unsafe"))
        .map(|path| relative(path))
        .collect();
    let listed: BTreeSet<String> = read(&root().join("tests/unsafe-files.txt"))
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
        .map(str::to_owned)
        .collect();
    let unlisted: Vec<_> = found.difference(&listed).collect();
    let stale: Vec<_> = listed.difference(&found).collect();
    assert!(
        unlisted.is_empty() && stale.is_empty(),
        "tests/unsafe-files.txt lists the files that may contain `unsafe`.\nwith `unsafe` and not listed: {unlisted:#?}\n\
         listed and without: {stale:#?}"
    );
}

#[test]
fn a_long_file_says_why() {
    let long: Vec<String> = all_rust_files()
        .iter()
        .filter(|path| {
            let text = read(path);
            let header = text
                .lines()
                .take_while(|l| l.trim().is_empty() || l.starts_with("//") || l.starts_with('#'));
            text.lines().count() > MAX_LINES
                && !header
                    .into_iter()
                    .any(|line| line.contains(&format!("Longer than {MAX_LINES} lines because")))
        })
        .map(|path| relative(path))
        .collect();
    assert!(
        long.is_empty(),
        "split these, or say in the header `Longer than {MAX_LINES} lines because ...`: {long:#?}"
    );
}

#[test]
fn nothing_is_left_to_do() {
    let mut wrong = Vec::new();
    for path in all_rust_files() {
        let code = code(&read(&path));
        for (at, word) in words(&code) {
            if (word == "todo" || word == "unimplemented")
                && code[at + word.len()..].starts_with('!')
            {
                wrong.push(format!("{}:{}", relative(&path), line_of(&code, at)));
            }
        }
    }
    assert!(wrong.is_empty(), "unfinished: {wrong:#?}");
}

#[test]
fn links_in_the_documentation_lead_somewhere() {
    let mut pages: Vec<PathBuf> = [
        "README.md",
        "ARCHITECTURE.md",
        "CHANGELOG.md",
        "CONTRIBUTING.md",
    ]
    .iter()
    .map(|name| root().join(name))
    .filter(|path| path.exists())
    .collect();
    pages.extend(files(&root().join("docs"), "md"));
    let mut dead = Vec::new();
    for page in pages {
        for target in links(&read(&page)) {
            let file = target.split('#').next().unwrap_or_default();
            if file.is_empty() || file.contains("://") || file.starts_with("mailto:") {
                continue;
            }
            if !page
                .parent()
                .expect("a page lies in a directory")
                .join(file)
                .exists()
            {
                dead.push(format!("{}: {target}", relative(&page)));
            }
        }
    }
    assert!(dead.is_empty(), "links to nothing: {dead:#?}");
}

/// The scanner is itself checked: one that finds nothing would let everything pass.
#[test]
fn the_scanner_finds_what_it_is_for() {
    let text = r##"
// crate::comment
/* crate::block /* crate::nested */ */
use crate::{packet::{Mac, Addr}, frame, self::x};
fn f<'a>(s: &'a str) -> char { let _ = ("crate::string", r#"crate::"raw"#, 'x', '\''); crate::port::open(); super::super::guest::g() }
#[cfg(test)]
#[allow(dead_code)]
mod tests { use crate::cli; }
"##;
    let found: Vec<String> = imports(&without_tests(&code(text)), 2)
        .into_iter()
        .map(|(_, name)| name)
        .collect();
    assert_eq!(found, ["packet", "frame", "port", "guest"]);
    assert_eq!(
        module_path(Path::new("port/vhost/rx.rs")),
        ["port", "vhost", "rx"]
    );
    assert_eq!(module_path(Path::new("port/mod.rs")), ["port"]);
    assert!(module_path(Path::new("lib.rs")).is_empty());
    assert_eq!(
        links("[a](b.md) and `[x](y)` [c](d.md#e)"),
        ["b.md", "d.md#e"]
    );
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

fn relative(path: &Path) -> String {
    path.strip_prefix(root())
        .unwrap_or(path)
        .display()
        .to_string()
}

fn all_rust_files() -> Vec<PathBuf> {
    SOURCES
        .iter()
        .flat_map(|dir| rust_files(&root().join(dir)))
        .collect()
}

fn rust_files(dir: &Path) -> Vec<PathBuf> {
    files(dir, "rs")
}

/// Files below `dir` with this extension, sorted; none when there is no such directory. Build results are passed over.
fn files(dir: &Path, extension: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() && entry.file_name() != "target" {
            found.extend(files(&path, extension));
        } else if path.extension().is_some_and(|e| e == extension) {
            found.push(path);
        }
    }
    found.sort();
    found
}

/// `port/vhost/rx.rs` is the module `port::vhost::rx`; the crate's root is empty.
fn module_path(file: &Path) -> Vec<String> {
    let mut path: Vec<String> = file
        .with_extension("")
        .iter()
        .map(|part| part.to_str().expect("file names are UTF-8").to_owned())
        .collect();
    if matches!(path.last().map(String::as_str), Some("mod" | "lib")) {
        path.pop();
    }
    path
}

/// Layer, and place in the layer's row.
fn place_of(module: &str) -> Option<(usize, usize)> {
    LAYERS.iter().enumerate().find_map(|(layer, (_, row))| {
        row.iter()
            .position(|name| *name == module)
            .map(|place| (layer, place))
    })
}

/// A line `#[cfg(test)]`, or one with `test` among other conditions.
fn is_test_attribute(line: &str) -> bool {
    line.starts_with("#[cfg(")
        && words(line).any(|(_, word)| word == "test")
        && !line.contains("not(test)")
}

/// The name that a line declares as a module, and what follows it: `;` or `{`.
fn module_declaration(line: &str) -> Option<(&str, char)> {
    let at = words(line).find(|(_, word)| *word == "mod")?.0;
    let (name, rest) = line[at + 4..].split_at(line[at + 4..].find(|c| !is_word(c))?);
    (line[..at].is_empty() || line.starts_with("pub"))
        .then_some((name, rest.trim_start().chars().next()?))
}

/// The modules that a file declares for tests only, as the paths of their files without `.rs`.
fn test_modules(file: &Path, text: &str) -> Vec<PathBuf> {
    let dir = file.parent().expect("a file lies in a directory");
    let stem = file
        .file_stem()
        .and_then(|s| s.to_str())
        .expect("file names are UTF-8");
    let below = if ["mod", "lib", "main"].contains(&stem) {
        dir.to_owned()
    } else {
        dir.join(stem)
    };
    let mut found = Vec::new();
    let mut for_tests = false;
    let mut named = None;
    for line in text.lines().map(str::trim) {
        if is_test_attribute(line) {
            for_tests = true;
        } else if let Some(path) = line.strip_prefix("#[path = \"") {
            named = path
                .split('"')
                .next()
                .map(|path| dir.join(path).with_extension(""));
        } else if !line.starts_with("#[") {
            if let (true, Some((name, ';'))) = (for_tests, module_declaration(line)) {
                found.push(named.unwrap_or_else(|| below.join(name)));
            }
            for_tests = false;
            named = None;
        }
    }
    found
}

/// The code before the first test module in the file. (Tests stand at the end of a file.)
fn without_tests(code: &str) -> String {
    let mut kept = String::new();
    let mut for_tests = false;
    for line in code.lines() {
        let trimmed = line.trim();
        if is_test_attribute(trimmed) {
            for_tests = true;
        } else if !trimmed.starts_with("#[") {
            if for_tests && matches!(module_declaration(trimmed), Some((_, '{'))) {
                break;
            }
            for_tests = false;
        }
        kept += line;
        kept.push('\n');
    }
    kept
}

/// Names that the code takes from the crate's root, with their lines: `crate::NAME`, each of `crate::{NAME, ...}`, and
/// `super::` as often as the module is deep (or once more, from a module in the file), which is the root too.
fn imports(code: &str, depth: usize) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    let mut supers = 0;
    let mut chain_end = 0;
    for (at, word) in words(code) {
        let after = code[at + word.len()..].trim_start();
        let Some(after) = after.strip_prefix("::") else {
            continue;
        };
        let rest_at = code.len() - after.len();
        if word == "super" {
            supers = if at == chain_end { supers + 1 } else { 1 };
            chain_end = rest_at;
        } else if word != "crate" || code[..at].ends_with('$') {
            continue;
        }
        let line = line_of(code, at);
        let names = first_names(after);
        if word == "crate" {
            found.extend(
                names
                    .into_iter()
                    .filter(|n| n != "self")
                    .map(|name| (line, name)),
            );
        } else if supers >= depth {
            // Relative paths also name neighbours in the file: only modules of the root count.
            found.extend(
                names
                    .into_iter()
                    .filter(|n| place_of(n).is_some())
                    .map(|name| (line, name)),
            );
        }
    }
    found
}

/// The first name of a path, or of each path in braces.
fn first_names(path: &str) -> Vec<String> {
    let path = path.trim_start();
    let Some(group) = path.strip_prefix('{') else {
        let name: String = path.chars().take_while(|c| is_word(*c)).collect();
        return if name.is_empty() || name == "super" {
            Vec::new()
        } else {
            vec![name]
        };
    };
    let mut names = Vec::new();
    let mut depth = 0;
    let mut start = true;
    for (at, c) in group.char_indices() {
        match c {
            '{' => depth += 1,
            '}' if depth == 0 => break,
            '}' => depth -= 1,
            ',' if depth == 0 => start = true,
            c if start && is_word(c) => {
                names.push(
                    group[at..]
                        .chars()
                        .take_while(|c| is_word(*c))
                        .collect::<String>(),
                );
                start = false;
            }
            _ => {}
        }
    }
    names.retain(|name| name != "self");
    names
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// Identifiers and keywords with their byte positions.
fn words(code: &str) -> impl Iterator<Item = (usize, &str)> {
    let mut from = 0;
    std::iter::from_fn(move || {
        let at = from + code[from..].find(is_word)?;
        let len = code[at..].find(|c| !is_word(c)).unwrap_or(code.len() - at);
        from = at + len;
        Some((at, &code[at..at + len]))
    })
}

fn line_of(text: &str, at: usize) -> usize {
    text[..at].matches('\n').count() + 1
}

/// The text with comments and the content of literals replaced by blanks; lines stay where they are.
fn code(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = bytes.to_vec();
    let mut at = 0;
    while at < bytes.len() {
        let rest = &text[at..];
        let word_before = at > 0 && is_word(char::from(bytes[at - 1]));
        let len = if rest.starts_with("//") {
            rest.find('\n').unwrap_or(rest.len())
        } else if rest.starts_with("/*") {
            block_comment(rest)
        } else if rest.starts_with('"') {
            quoted(rest, '"')
        } else if !word_before
            && (rest.starts_with("r\"") || rest.starts_with("r#\"") || rest.starts_with("r##"))
        {
            raw_string(rest)
        } else if rest.starts_with('\'') {
            char_literal(rest)
        } else {
            0
        };
        if len == 0 {
            at += rest.chars().next().map_or(1, char::len_utf8);
            continue;
        }
        for byte in &mut out[at..at + len] {
            if *byte != b'\n' {
                *byte = b' ';
            }
        }
        at += len;
    }
    String::from_utf8(out).expect("whole characters were replaced")
}

fn block_comment(rest: &str) -> usize {
    let mut depth = 0;
    let mut at = 0;
    while at < rest.len() {
        if rest.as_bytes()[at..].starts_with(b"/*") {
            depth += 1;
            at += 2;
        } else if rest.as_bytes()[at..].starts_with(b"*/") {
            depth -= 1;
            at += 2;
            if depth == 0 {
                return at;
            }
        } else {
            at += 1;
        }
    }
    rest.len()
}

/// Length of a literal up to the closing quote.
fn quoted(rest: &str, quote: char) -> usize {
    let mut escaped = false;
    for (at, c) in rest.char_indices().skip(1) {
        if !escaped && c == quote {
            return at + 1;
        }
        escaped = !escaped && c == '\\';
    }
    rest.len()
}

fn raw_string(rest: &str) -> usize {
    let hashes = rest[1..].chars().take_while(|c| *c == '#').count();
    let open = 1 + hashes;
    if !rest[open..].starts_with('"') {
        return 0;
    }
    let close = format!("\"{}", "#".repeat(hashes));
    rest[open + 1..]
        .find(&close)
        .map_or(rest.len(), |at| open + 1 + at + close.len())
}

/// Length of a character literal, 0 for a lifetime.
fn char_literal(rest: &str) -> usize {
    let mut chars = rest.chars().skip(1);
    match (chars.next(), chars.next()) {
        (Some('\\'), _) => quoted(rest, '\''),
        (Some(c), Some('\'')) => 2 + c.len_utf8(),
        _ => 0,
    }
}

/// Targets of the links of a Markdown page, outside of code.
fn links(page: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut in_block = false;
    for line in page.lines() {
        if line.trim_start().starts_with("```") {
            in_block = !in_block;
            continue;
        }
        if in_block {
            continue;
        }
        // Every second piece is inline code.
        for piece in line.split('`').step_by(2) {
            let mut rest = piece;
            while let Some((_, after)) = rest.split_once("](") {
                let (target, next) = after.split_once(')').unwrap_or((after, ""));
                found.push(
                    target
                        .split_whitespace()
                        .next()
                        .unwrap_or_default()
                        .to_owned(),
                );
                rest = next;
            }
        }
    }
    found
}
