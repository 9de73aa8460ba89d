//! No counter that nothing increments, and no reason to drop that no test provokes.

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

/// All product code, and all test code, of the workspace.
fn sources() -> (String, String) {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let (mut product, mut tests) = (String::new(), String::new());
    let mut files = Vec::new();
    rust_files(&root.join("vswitch/src"), &mut files);
    for path in files {
        if path.ends_with("drop_reason.rs") {
            continue;
        }
        let text = fs::read_to_string(&path).unwrap();
        if path.to_string_lossy().contains("tests") {
            tests.push_str(&text);
        } else {
            let (code, test) = text
                .split_once("#[cfg(test)]\nmod tests {")
                .unwrap_or((&text, ""));
            product.push_str(code);
            tests.push_str(test);
        }
    }
    let mut files = Vec::new();
    rust_files(&root.join("tests"), &mut files);
    rust_files(&root.join("vswitch/tests"), &mut files);
    for path in files {
        if !path.ends_with("drop_reasons.rs") {
            tests.push_str(&fs::read_to_string(&path).unwrap());
        }
    }
    (product, tests)
}

/// Whether `::Name` stands in the text as a whole word.
fn names(text: &str, reason: DropReason) -> bool {
    let path = format!("::{reason:?}");
    text.match_indices(&path).any(|(at, _)| {
        !text[at + path.len()..].starts_with(|c: char| c.is_alphanumeric() || c == '_')
    })
}

#[test]
fn every_reason_is_used_and_tested() {
    let (product, tests) = sources();
    let unused: Vec<_> = DropReason::ALL
        .iter()
        .filter(|r| !names(&product, **r))
        .collect();
    assert!(unused.is_empty(), "nothing drops for {unused:?}");
    let untested: Vec<_> = DropReason::ALL
        .iter()
        .filter(|r| !names(&tests, **r) && !tests.contains(&format!("\"{}\"", r.name())))
        .collect();
    assert!(untested.is_empty(), "no test provokes {untested:?}");
}
