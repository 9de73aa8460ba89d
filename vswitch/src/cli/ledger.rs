//! `vswitch ledger …`: reads the ledger's file; the daemon is not asked.

use std::io::{self, BufWriter, Write};
use std::path::PathBuf;
use std::time::Duration;

use clap::{Subcommand, ValueEnum};
use serde_json::Value;

use super::client::Failure;
use super::{Answer, Out, duration, progress, show};
use crate::control::api::{ApiError, ErrorCode};
use crate::manager::ledger::archive::{Before, archive};
use crate::manager::ledger::case::{self, Case, case};
use crate::manager::ledger::clock::{Clock as _, SystemClock, date, parse_date};
use crate::manager::ledger::reader::{Filter, Reader};
use crate::manager::ledger::verify::{Report, verify};
use crate::manager::ledger::{Body, Record};
use crate::sys::peer;

/// Where the ledger is unless said: as in docs/ledger.md.
const FILE: &str = "/var/lib/vswitch/ledger.db";

#[derive(Debug, Subcommand)]
pub(super) enum LedgerCommand {
    /// The newest records.
    Show {
        /// The ledger, or an archive of it.
        #[arg(long, value_name = "FILE", default_value = FILE)]
        file: PathBuf,
        /// Only of this kind, such as policy_applied.
        #[arg(long)]
        kind: Option<String>,
        /// Only about this workload.
        #[arg(long)]
        workload: Option<String>,
        /// Only from then on: 2026-11-26, 2026-11-26T12:00:00Z, or 10m for the last ten minutes.
        #[arg(long, value_name = "DATE|TIME", value_parser = moment)]
        since: Option<i64>,
        /// Show at most this many.
        #[arg(long, default_value_t = 100)]
        limit: usize,
    },
    /// Whether the ledger is whole. Exit code 0: every record is as it was written; 1: not.
    Verify {
        /// The ledger.
        #[arg(long, value_name = "FILE", default_value = FILE)]
        file: PathBuf,
        /// The file to which heads were written: proves that nothing was cut off.
        #[arg(long, value_name = "FILE")]
        anchor: Option<PathBuf>,
        /// Archives of it, to be checked with it.
        #[arg(long, value_name = "FILE", num_args = 1..)]
        archive: Vec<PathBuf>,
    },
    /// Every record, on standard output.
    Export {
        /// The ledger, or an archive of it.
        #[arg(long, value_name = "FILE", default_value = FILE)]
        file: PathBuf,
        /// One object per line, or comma-separated values with a header.
        #[arg(long, value_enum, default_value_t = Format::Jsonl)]
        format: Format,
    },
    /// All that is recorded of one question or connection, as one document (JSON) that can be checked without the ledger.
    Case {
        /// A question's id, or the beginning of it; or a connection as it is recorded, "10.0.0.1:40000 > 10.0.0.2:5432".
        #[arg(required_unless_present = "verify", conflicts_with = "verify")]
        what: Option<String>,
        /// The ledger, or an archive of it.
        #[arg(long, value_name = "FILE", default_value = FILE)]
        file: PathBuf,
        /// The file to which heads were written: shows that the records stood in the ledger.
        #[arg(long, value_name = "FILE")]
        anchor: Option<PathBuf>,
        /// Sign it with this key: Ed25519, PKCS #8 in PEM.
        #[arg(long, value_name = "FILE", conflicts_with = "verify")]
        key: Option<PathBuf>,
        /// Check this one instead. Exit code 0: it is as it was written; 1: not.
        #[arg(long, value_name = "CASE")]
        verify: Option<PathBuf>,
        /// Who must have signed it: a public key in PEM.
        #[arg(long, value_name = "FILE", requires = "verify")]
        public_key: Option<PathBuf>,
    },
    /// Move the oldest records into a file of their own; the daemon may go on writing.
    Archive {
        /// The ledger.
        #[arg(long, value_name = "FILE", default_value = FILE)]
        file: PathBuf,
        /// Records with a smaller number, or up to the first one made at that date.
        #[arg(long, value_name = "SEQ|DATE", value_parser = border)]
        before: Before,
        /// The archive, a new file.
        #[arg(long, value_name = "FILE")]
        to: PathBuf,
    },
}

/// What is exported.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub(super) enum Format {
    Jsonl,
    Csv,
}

/// A date, or how long ago.
fn moment(text: &str) -> Result<i64, String> {
    match duration(text) {
        Ok(ago) => Ok(before(SystemClock::new().now().wall_ns, ago)),
        Err(_) => parse_date(text).map_err(|e| format!("{e}; or a time like 10m")),
    }
}

/// A record's number, or a date.
fn border(text: &str) -> Result<Before, String> {
    match text.parse() {
        Ok(seq) => Ok(Before::Seq(seq)),
        Err(_) => parse_date(text)
            .map(Before::Wall)
            .map_err(|e| format!("{e}; or the number of a record")),
    }
}

fn before(now_ns: i64, ago: Duration) -> i64 {
    let ago = i64::try_from(ago.as_nanos()).unwrap_or(i64::MAX);
    now_ns.saturating_sub(ago)
}

pub(super) fn ledger(command: LedgerCommand, out: Out) -> Result<Answer, Failure> {
    match command {
        LedgerCommand::Show {
            file,
            kind,
            workload,
            since,
            limit,
        } => {
            if let Some(kind) = kind.as_deref().filter(|k| !Body::KINDS.contains(k)) {
                let all = Body::KINDS.join(", ");
                let text = format!("there is no kind of record {kind}; the kinds are {all}");
                return Err(ApiError::new(ErrorCode::Usage, text).into());
            }
            let filter = Filter {
                kind,
                workload,
                since_ns: since,
            };
            let records = Reader::open(&file)?.newest(&filter, limit)?;
            out.print(&records, |r| records_table(r))
        }
        LedgerCommand::Verify {
            file,
            anchor,
            archive,
        } => {
            let checking = format!("checking {}", file.display());
            let report =
                progress::during(&checking, || verify(&file, &archive, anchor.as_deref()))?;
            let answer = if report.intact {
                Answer::Done
            } else {
                Answer::No
            };
            out.print(&report, verdict)?;
            Ok(answer)
        }
        LedgerCommand::Export { file, format } => {
            let reader = Reader::open(&file)?;
            let mut to = BufWriter::new(io::stdout().lock());
            if format == Format::Csv {
                to.write_all(CSV_HEADER.as_bytes())
                    .map_err(Failure::Output)?;
            }
            reader.each(|record| -> Result<(), Failure> {
                let line = match format {
                    // Plain values with string keys: serialising them cannot fail.
                    Format::Jsonl => serde_json::to_string(&record).unwrap_or_default() + "\n",
                    Format::Csv => csv(&record),
                };
                to.write_all(line.as_bytes()).map_err(Failure::Output)
            })?;
            to.flush().map_err(Failure::Output)?;
            Ok(Answer::Done)
        }
        LedgerCommand::Case {
            verify: Some(path),
            anchor,
            public_key,
            ..
        } => {
            let case = Case::read(&path)?;
            let verdict = case.verify(anchor.as_deref(), public_key.as_deref())?;
            let answer = if verdict.intact {
                Answer::Done
            } else {
                Answer::No
            };
            out.print(&verdict, case_verdict)?;
            Ok(answer)
        }
        LedgerCommand::Case {
            what,
            file,
            anchor,
            key,
            ..
        } => {
            let mut case = case(&file, &what.unwrap_or_default(), anchor.as_deref())?;
            if let Some(key) = key {
                case.sign(&key)?;
            }
            let out = Out { json: true, ..out };
            out.print(&case, |_| String::new())
        }
        LedgerCommand::Archive { file, before, to } => {
            let who = format!("uid {}", peer::euid());
            let now = SystemClock::new().now();
            // The ledger remembers where it went, from wherever that is read.
            let to = std::path::absolute(&to).unwrap_or(to);
            let moving = format!("moving records into {}", to.display());
            let moved = progress::during(&moving, || archive(&file, before, &to, &who, now))?;
            out.print(&moved, |m| {
                format!(
                    "records {} to {} are in {}; record {} says so. Keep it: `vswitch ledger verify --archive` needs it",
                    m.first,
                    m.last,
                    m.file.display(),
                    m.record
                )
            })
        }
    }
}

fn records_table(records: &[Record]) -> String {
    let mut t = show::table(&["SEQ", "TIME", "KIND", "WHO", "WORKLOAD", "PORT", "WHAT"]);
    for r in records {
        t.add_row([
            r.seq.to_string(),
            date(r.stamp.wall_ns),
            r.body.kind().to_owned(),
            printable(&r.who),
            printable(r.workload.as_deref().unwrap_or("-")),
            printable(r.port.as_deref().unwrap_or("-")),
            what(&r.body),
        ]);
    }
    show::text(&t, "no records")
}

/// The body, as `name=value …`.
fn what(body: &Body) -> String {
    let Ok(Value::Object(fields)) = serde_json::to_value(body) else {
        return String::new();
    };
    let shown = fields.iter().filter(|(_, value)| !value.is_null());
    let shown = shown.map(|(name, value)| match value {
        Value::String(text) if !text.is_empty() && !text.contains([' ', '"']) => {
            format!("{name}={text}")
        }
        value => format!("{name}={value}"),
    });
    printable(&shown.collect::<Vec<_>>().join(" "))
}

/// A text from a file, without what a terminal would obey.
fn printable(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if c.is_control() {
            out.extend(c.escape_default());
        } else {
            out.push(c);
        }
    }
    out
}

fn case_verdict(v: &case::Verdict) -> String {
    let mut lines = vec![format!(
        "case of {} in ledger {}",
        printable(&v.about),
        v.ledger
    )];
    lines.push(records_table(&v.records));
    lines.extend(v.problems.iter().map(|what| printable(what)));
    lines.push(match v.anchored {
        Some(n) => format!(
            "{n} of {} are in the ledger by heads that the anchor has",
            show::n(v.records.len(), "record")
        ),
        None => "whether these records stood in a ledger cannot be said without an anchor: give it with --anchor".to_owned(),
    });
    lines.push(match &v.signed {
        Some((key, Some(true))) => format!("signed by the key that was given, {key}"),
        Some((key, _)) => format!("signed by {key}: whose key that is, --public-key says"),
        None => "not signed".to_owned(),
    });
    lines.push(if v.intact {
        "intact: every record is as it was written".to_owned()
    } else {
        "NOT intact".to_owned()
    });
    lines.join("\n")
}

fn verdict(r: &Report) -> String {
    let mut lines = Vec::new();
    let range = match (r.first, r.last) {
        (Some(first), Some(last)) => format!("records {first} to {last}"),
        _ => "no records".to_owned(),
    };
    lines.push(format!("ledger {}: {range}", r.ledger));
    for p in &r.problems {
        let record = p.seq.map_or(String::new(), |seq| format!("record {seq}: "));
        lines.push(format!(
            "{}: {record}{}",
            p.file.display(),
            printable(&p.what)
        ));
    }
    if r.more_problems > 0 {
        lines.push(format!("and {} more", r.more_problems));
    }
    match &r.anchor {
        Some(proof) => {
            let file = proof.file.display();
            lines.push(match proof.up_to {
                Some(seq) => format!(
                    "{} of the anchor {file} are in it: nothing up to record {seq} was cut off",
                    show::n(usize::try_from(proof.heads).unwrap_or(usize::MAX), "head")
                ),
                None => format!("no head of the anchor {file} is in it: it proves nothing"),
            });
            if proof.before > 0 {
                lines.push(format!(
                    "{} earlier heads could not be checked: give the archives with --archive",
                    proof.before
                ));
            }
        }
        None => lines.push(
            "whether records were cut off at its end cannot be said without an anchor: give it with --anchor".to_owned(),
        ),
    }
    if r.begins_in_archive {
        lines.push("what was before is in archives that were not given (--archive)".to_owned());
    }
    lines.push(if r.intact {
        match r.head {
            Some(head) => {
                format!("intact: every record is as it was written; the last one's hash is {head}")
            }
            None => "intact".to_owned(),
        }
    } else {
        "NOT intact".to_owned()
    });
    lines.join("\n")
}

const CSV_HEADER: &str =
    "seq,time,kind,who,workload,port,generation,body,wall_ns,mono_ns,boot,hash\r\n";

/// A record as RFC 4180 has it.
fn csv(record: &Record) -> String {
    let Ok(Value::Object(fields)) = serde_json::to_value(record) else {
        return String::new();
    };
    let columns = CSV_HEADER
        .trim_end()
        .split(',')
        .map(|name| match fields.get(name) {
            None | Some(Value::Null) => String::new(),
            Some(Value::String(text)) => quoted(text),
            Some(value) => quoted(&value.to_string()),
        });
    columns.collect::<Vec<_>>().join(",") + "\r\n"
}

fn quoted(text: &str) -> String {
    if text.contains([',', '"', '\r', '\n']) {
        format!("\"{}\"", text.replace('"', "\"\""))
    } else {
        text.to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::{moment, printable, quoted};

    #[test]
    fn dates_and_times_ago_are_moments() {
        assert_eq!(moment("1970-01-02"), Ok(86_400_000_000_000));
        assert!(moment("10m").unwrap() < moment("0s").unwrap());
        assert!(moment("soon").is_err());
    }

    #[test]
    fn text_from_a_file_is_shown_and_not_obeyed() {
        assert_eq!(printable("a\x1b[2Jb\u{9b}"), "a\\u{1b}[2Jb\\u{9b}");
        assert_eq!(quoted("a,\"b\""), "\"a,\"\"b\"\"\"");
    }
}
