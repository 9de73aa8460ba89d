//! No reason to drop that nothing drops for. That each is provoked and counted is for `vswitch/src/datapath/tests/counted.rs`.

use std::fs;
use std::path::{Path, PathBuf};

use vswitch::drop_reason::DropReason;

fn rust_files(dir: &Path, out: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            rust_files(&path, out);
        } else if path.extension().is_some_and(|e| e == "rs") {
            out.push(path);
        }
    }
}

/// All product code, without comments, tests and what only asks for a reason.
fn product() -> String {
    let mut files = Vec::new();
    rust_files(
        &Path::new(env!("CARGO_MANIFEST_DIR")).join("vswitch/src"),
        &mut files,
    );
    let mut product = String::new();
    for path in files {
        if path.ends_with("drop_reason.rs") || path.to_string_lossy().contains("tests") {
            continue;
        }
        let text = fs::read_to_string(&path).unwrap();
        let code = text.split("#[cfg(test)]\nmod tests {").next().unwrap_or("");
        let asks = [("fn is_policy(", "\n}\n"), ("if reason == ", "{")];
        let mut code = code.to_owned();
        for (from, to) in asks {
            while let Some(at) = code.find(from) {
                let len = code[at..].find(to).expect("it ends");
                code.replace_range(at..at + len, "");
            }
        }
        for line in code.lines().filter(|l| !l.trim_start().starts_with("//")) {
            product.push_str(line);
            product.push('\n');
        }
    }
    product
}

/// Whether `::Name` stands in the text as a whole word.
fn names(text: &str, reason: DropReason) -> bool {
    let path = format!("::{reason:?}");
    text.match_indices(&path).any(|(at, _)| {
        !text[at + path.len()..].starts_with(|c: char| c.is_alphanumeric() || c == '_')
    })
}

#[test]
fn every_reason_is_used() {
    let product = product();
    assert!(product.contains("DropReason::Runt"), "nothing was read");
    let unused: Vec<_> = DropReason::ALL
        .iter()
        .filter(|r| !names(&product, **r))
        .collect();
    assert!(unused.is_empty(), "nothing drops for {unused:?}");
}
