//! What the demo says: steps with their evidence, as text while it runs or as one JSON document.

use std::io::{self, IsTerminal, Write};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Map, Value, json};

use super::Halt;

/// What a step showed.
#[derive(Debug, Default)]
pub(super) struct Evidence {
    lines: Vec<String>,
    facts: Map<String, Value>,
}

impl Evidence {
    pub(super) fn new() -> Self {
        Evidence::default()
    }

    /// A line for people.
    pub(super) fn line(mut self, text: impl Into<String>) -> Self {
        self.lines.push(text.into());
        self
    }

    /// Lines for people.
    #[cfg(feature = "manager")]
    pub(super) fn lines(mut self, lines: impl IntoIterator<Item = String>) -> Self {
        self.lines.extend(lines);
        self
    }

    /// And what something else showed.
    #[cfg(feature = "manager")]
    pub(super) fn and(mut self, more: Evidence) -> Self {
        self.lines.extend(more.lines);
        self.facts.extend(more.facts);
        self
    }

    /// A fact for programs.
    pub(super) fn fact(mut self, name: &str, value: impl Into<Value>) -> Self {
        self.facts.insert(name.to_owned(), value.into());
        self
    }
}

/// What a step comes to.
pub(super) type Shown = Result<(Evidence, ()), Halt>;

/// A step that held.
pub(super) fn ok(evidence: Evidence) -> Shown {
    Ok((evidence, ()))
}

/// The report as it grows.
pub(super) struct Report {
    json: bool,
    colour: bool,
    start: Instant,
    steps: Vec<Value>,
    notes: Vec<String>,
    failed: Vec<String>,
    /// Nobody reads any more.
    broken: bool,
}

impl Report {
    pub(super) fn new(json: bool) -> Self {
        let colour = io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none();
        Report {
            json,
            colour,
            start: Instant::now(),
            steps: Vec::new(),
            notes: Vec::new(),
            failed: Vec::new(),
            broken: false,
        }
    }

    /// A line of text; nothing with `--json`.
    pub(super) fn say(&mut self, line: &str) {
        if !self.json {
            self.write(line);
        }
    }

    /// What the reader should know beside the steps.
    pub(super) fn note(&mut self, text: String) {
        self.say(&format!("   ! {text}"));
        self.notes.push(text);
    }

    /// Runs a step and reports it; `None` when it did not hold.
    pub(super) fn step<T>(
        &mut self,
        id: &str,
        title: &str,
        run: impl FnOnce() -> Result<(Evidence, T), Halt>,
    ) -> Result<Option<T>, Halt> {
        self.check()?;
        let number = self.steps.len() + 1;
        let start = Instant::now();
        let bar = spinner(number, title);
        let result = run();
        bar.finish_and_clear();
        let (evidence, value) = match result {
            Ok((evidence, value)) => (evidence, Some(value)),
            Err(Halt::Failed { text, .. }) => (Evidence::new().line(text), None),
            Err(Halt::Stopped) => return Err(Halt::Stopped),
        };
        let held = value.is_some();
        if !held {
            self.failed.push(title.to_owned());
        }
        let mark = match (held, self.colour) {
            (true, false) => "✓",
            (true, true) => "\x1b[32m✓\x1b[0m",
            (false, false) => "✗",
            (false, true) => "\x1b[31m✗\x1b[0m",
        };
        self.say(&format!("{number:2} {mark} {title}"));
        for line in &evidence.lines {
            self.say(&format!("       {line}"));
        }
        self.steps.push(json!({
            "id": id,
            "title": title,
            "held": held,
            "seconds": round(start.elapsed()),
            "evidence": evidence.lines,
            "facts": evidence.facts,
        }));
        Ok(value)
    }

    /// Whether everything shown so far held.
    pub(super) fn held(&self) -> bool {
        self.failed.is_empty()
    }

    /// The end: what held, and what to do next. `extra` are members of the JSON document.
    pub(super) fn finish(&mut self, next: &[(&str, String)], extra: &[(&str, Value)]) {
        let seconds = round(self.start.elapsed());
        let outcome = if self.held() {
            format!("Everything shown held ({seconds} s).")
        } else {
            format!("Did not hold ({seconds} s): {}.", self.failed.join("; "))
        };
        self.say("");
        self.say(&outcome);
        self.say("");
        self.say("Next:");
        for (what, how) in next {
            self.say(&format!("   {what:<24} {how}"));
        }
        if self.json {
            let next: Map<_, _> = next
                .iter()
                .map(|(what, how)| ((*what).to_owned(), Value::from(how.as_str())))
                .collect();
            let mut document = json!({
                "version": env!("CARGO_PKG_VERSION"),
                "held": self.held(),
                "failed": self.failed,
                "seconds": seconds,
                "steps": self.steps,
                "notes": self.notes,
                "next": next,
            });
            if let Some(object) = document.as_object_mut() {
                object.extend(extra.iter().map(|(k, v)| ((*k).to_owned(), v.clone())));
            }
            self.write(&format!("{document:#}"));
        }
    }

    fn write(&mut self, line: &str) {
        // A reader that went away (`| head`) must not end the process before it has cleaned up.
        let mut out = io::stdout().lock();
        self.broken |= writeln!(out, "{line}").and_then(|()| out.flush()).is_err();
    }

    /// [`Halt::Stopped`] when nobody reads any more.
    pub(super) fn check(&self) -> Result<(), Halt> {
        if self.broken {
            return Err(Halt::Stopped);
        }
        Ok(())
    }
}

/// Tenths of seconds.
fn round(time: Duration) -> f64 {
    (time.as_secs_f64() * 10.0).round() / 10.0
}

/// A spinner on standard error while a step runs; nothing where that is no terminal.
fn spinner(number: usize, title: &str) -> ProgressBar {
    let bar = ProgressBar::new_spinner();
    if let Ok(style) = ProgressStyle::with_template("{prefix:2} {spinner} {msg} {elapsed:.dim}") {
        bar.set_style(style);
    }
    bar.set_prefix(format!("{number:2}"));
    bar.set_message(title.to_owned());
    bar.enable_steady_tick(Duration::from_millis(100));
    bar
}
