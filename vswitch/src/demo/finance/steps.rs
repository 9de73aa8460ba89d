//! What is shown, each step with the commands that show it.

use std::time::Instant;

use serde_json::Value;

use super::super::floor::{Cast, Floor, each, text};
use super::super::report::{Evidence, Shown, ok};
use super::super::stacks::{Attempt, LIMIT};
use super::super::{Halt, require};
use super::POLICY;

/// Services that the policy's rules name.
const POSTGRES: u16 = 5432;
const REDIS: u16 = 6379;
const DNS: u16 = 53;
const HAND_OVER: u16 = 8443;
pub(super) const HTTPS: u16 = 443;
/// The two walls between the signals: by desk, and by volume.
const BY_VOLUME: &str = "trading-copies";
const ORDER_BOOK: &str = "order-book";
const PAYMENTS: &str = "payments";
/// The payment that is played.
const PAYMENT: &str = "pay-4711";

/// The files are valid, and everybody is there.
pub(super) fn attached(floor: &Floor) -> Result<Evidence, Halt> {
    let check = floor.may("otto", &["check", "switch.toml"])?;
    let status = floor.json(&["status"])?;
    let walls = floor.json(&["wall", "list"])?;
    let walls: Vec<_> = each(&walls).map(|wall| text(&wall["name"])).collect();
    let people = match &floor.cast {
        Cast::Each(people) => {
            let names: Vec<_> = people.iter().map(|(name, _)| name.as_str()).collect();
            format!("people, each a user of his own: {}", names.join(", "))
        }
        Cast::Alone => "one person, who may do everything but agree with himself".to_owned(),
    };
    Ok(Evidence::new()
        .all(&check)
        .line(format!("walls: {}", walls.join(", ")))
        .line(people)
        .fact("ports_up", status["ports_up"].clone())
        .fact("walls", walls.len()))
}

/// What the ledger says of an answer, as a line.
fn verdict_line(record: &Value) -> String {
    let body = &record["body"];
    format!(
        "ledger: record {}, by {}: {}, because {}",
        record["seq"],
        text(&record["who"]),
        text(&body["verdict"]),
        text(&body["reason"])
    )
}

/// An answer to the workload's question was by that rule, alone or with others: by day, `office-hours` permits what `cleared`
/// does.
fn verdict_of(floor: &mut Floor, workload: &str, reason: &str) -> Result<Value, Halt> {
    floor.record("verdict", |r| {
        r["workload"] == workload && text(&r["body"]["reason"]).split(", ").next() == Some(reason)
    })
}

pub(super) fn rule_says_yes(floor: &mut Floor) -> Shown {
    let start = Instant::now();
    floor.reaches("analyst", "payments-db", POSTGRES)?;
    let ms = start.elapsed().as_secs_f64() * 1e3;
    let verdict = verdict_of(floor, "analyst", "permit cleared")?;
    ok(Evidence::new()
        .line(format!(
            "analyst read payments-db, asked about, after {ms:.1} ms"
        ))
        .line(verdict_line(&verdict))
        .line("$ vswitch ledger show --kind verdict")
        .fact("by", verdict["who"].clone())
        .fact("reason", verdict["body"]["reason"].clone()))
}

pub(super) fn rule_says_no(floor: &mut Floor) -> Shown {
    floor.is_refused("trainee", "payments-db", POSTGRES)?;
    let verdict = verdict_of(floor, "trainee", "forbid in-training")?;
    let status = floor.ask(&["status"])?.with_code(0)?;
    ok(Evidence::new()
        .line("trainee was refused at payments-db")
        .line(verdict_line(&verdict))
        .said(&status, |line| line.starts_with("questions"))
        .fact("by", verdict["who"].clone())
        .fact("reason", verdict["body"]["reason"].clone()))
}

/// `settle` asks to pay; what waits, its id, and the connection's outcome once `answer` has been given.
fn wire(
    floor: &mut Floor,
    answer: impl FnOnce(&mut Floor, &str) -> Result<Evidence, Halt>,
) -> Result<(Evidence, Attempt), Halt> {
    let pair = floor.dial("settle", "bank", HTTPS)?;
    let start = Instant::now();
    let id = loop {
        let asks = floor.json(&["ask", "list"])?;
        if let Some(ask) = each(&asks).find(|ask| ask["from"] == "settle") {
            break text(&ask["id"]).to_owned();
        }
        floor.in_time(start, "the question whether settle may pay")?;
    };
    let waits = floor.may("ann", &["ask", "list"])?;
    let evidence = answer(floor, &id)?;
    let outcome = floor.stacks.wait(pair, LIMIT)?;
    let held = start.elapsed().as_millis();
    let shown = Evidence::new()
        .line(format!(
            "settle asked to reach bank on tcp/443 and was held for {held} ms"
        ))
        .all(&waits);
    Ok((shown.and(evidence), outcome))
}

pub(super) fn person_says_yes(floor: &mut Floor) -> Shown {
    let (evidence, outcome) = wire(floor, |floor, id| {
        let mut evidence = Evidence::new();
        if let Cast::Each(_) = floor.cast {
            let own = floor.by("ben", &["ask", "allow", id])?;
            let own = own.with_code(1)?.with_text("settle is ben's own")?;
            evidence = evidence.all(&own);
        }
        Ok(evidence.all(&floor.may("ann", &["ask", "allow", id])?))
    })?;
    let Attempt::Open(pair) = outcome else {
        return Err(Halt::failed(
            "settle did not reach bank after the yes".to_owned(),
        ));
    };
    // Recorded before the first packet passed, so it is there.
    let verdict = floor.record("verdict", |r| r["workload"] == "settle")?;
    floor.stacks.request(pair)?;
    floor.stacks.close(pair)?;
    require(verdict["body"]["verdict"] == "allow", || {
        format!("the ledger says {verdict}")
    })?;
    ok(evidence
        .line(verdict_line(&verdict))
        .fact("by", verdict["who"].clone())
        .fact("scope", verdict["body"]["scope"].clone()))
}

pub(super) fn person_says_no(floor: &mut Floor) -> Shown {
    let (evidence, outcome) = wire(floor, |floor, id| {
        Ok(Evidence::new().all(&floor.may("ann", &["ask", "deny", id])?))
    })?;
    require(matches!(outcome, Attempt::Refused(_)), || {
        "settle was not refused after the no".to_owned()
    })?;
    let verdict = floor.record("verdict", |r| {
        r["workload"] == "settle" && r["body"]["verdict"] == "deny"
    })?;
    ok(evidence
        .line(verdict_line(&verdict))
        .fact("by", verdict["who"].clone()))
}

/// Connections of the monitor, without a byte.
pub(super) fn health_check(floor: &mut Floor) -> Shown {
    let sides = ["buy-signals", "sell-signals"];
    for side in sides {
        let pair = floor.opens("monitor", side, POSTGRES)?;
        floor.stacks.close(pair)?;
        floor.record("wall_released", |r| {
            r["body"]["subject"] == "workload monitor" && r["body"]["side"] == side
        })?;
    }
    let bound = bindings(floor)?;
    require(bound.is_empty(), || format!("bound is {bound:?}"))?;
    let explain = floor.ask(&["wall", "explain", "monitor"])?.with_code(0)?;
    ok(Evidence::new()
        .line("monitor connected to buy-signals, and to sell-signals, and said nothing")
        .all(&explain)
        .fact("released", sides.len()))
}

/// Who is bound to what, as `wall list` has it.
fn bindings(floor: &Floor) -> Result<Vec<String>, Halt> {
    let walls = floor.json(&["wall", "list"])?;
    let all = each(&walls).flat_map(|wall| {
        let of = text(&wall["name"]);
        each(&wall["bindings"]).map(move |b| {
            let [who, side] = ["subject", "side"].map(|key| text(&b[key]));
            let state = if b["committed"] == true {
                "bound"
            } else {
                "reserved"
            };
            format!("{of}: {who} {state} to {side}")
        })
    });
    let mut all: Vec<_> = all.collect();
    all.sort();
    Ok(all)
}

/// Who is refused, and the wall that `explain` names for that.
fn kept_out(
    floor: &mut Floor,
    (from, to, port): (&str, &str, u16),
    wall: &str,
) -> Result<Evidence, Halt> {
    floor.is_refused(from, to, port)?;
    let service = format!("tcp/{port}");
    let explain = ["explain", "--from", from, "--to", to, "--service", &service];
    let said = floor.ask(&explain)?.with_code(1)?.with_text(wall)?;
    Ok(Evidence::new()
        .line(format!("{from} was refused at {to}"))
        .said(&said, |line| line.contains("wall "))
        .fact("refused", from)
        .fact("wall", wall))
}

pub(super) fn bound(floor: &mut Floor) -> Shown {
    floor.reaches("trader-a1", "buy-signals", POSTGRES)?;
    let kept = kept_out(
        floor,
        ("trader-a1", "sell-signals", POSTGRES),
        "wall trading",
    )?;
    let explain = floor.ask(&["wall", "explain", "trader-a1"])?.with_code(0)?;
    ok(Evidence::new()
        .line("trader-a1 read buy-signals")
        .and(kept)
        .all(&explain))
}

pub(super) fn replica(floor: &mut Floor) -> Shown {
    let kept = kept_out(
        floor,
        ("trader-a2", "sell-signals", POSTGRES),
        "wall trading",
    )?;
    floor.reaches("trader-a2", "buy-signals", POSTGRES)?;
    ok(kept.line("trader-a2 read buy-signals: that side is the desk's"))
}

pub(super) fn clone(floor: &mut Floor) -> Shown {
    let to = ("trader-a1-copy", "sell-signals", POSTGRES);
    let kept = kept_out(floor, to, &format!("wall {BY_VOLUME}"))?;
    let explain = ["wall", "explain", "trader-a1-copy"];
    let explain = floor.ask(&explain)?.with_text("volume book-a")?;
    ok(kept.said(&explain, |line| line.contains("book-a")))
}

pub(super) fn other_desk(floor: &mut Floor) -> Shown {
    floor.reaches("trader-b1", "sell-signals", POSTGRES)?;
    let kept = kept_out(
        floor,
        ("trader-b1", "buy-signals", POSTGRES),
        "wall trading",
    )?;
    let list = floor.ask(&["wall", "list"])?.with_code(0)?;
    ok(Evidence::new()
        .line("trader-b1 read sell-signals")
        .and(kept)
        .said(&list, |line| {
            line.contains("desk:") && !line.contains("binds")
        }))
}

pub(super) fn laundering(floor: &mut Floor) -> Shown {
    floor.reaches("trader-a1", "cache", REDIS)?;
    let kept = kept_out(floor, ("trader-b1", "cache", REDIS), "wall trading")?;
    let explain = floor.ask(&["wall", "explain", "cache"])?.with_code(0)?;
    ok(Evidence::new()
        .line("trader-a1, who has read buy-signals, used the cache: now it has them, too")
        .and(kept)
        .all(&explain))
}

pub(super) fn sanitised(floor: &mut Floor) -> Shown {
    for from in ["trader-a1", "trader-b1", "buyer", "seller"] {
        floor.reaches(from, "dns", DNS)?;
    }
    let bound = bindings(floor)?;
    require(!bound.iter().any(|b| b.contains("workload dns")), || {
        format!("bound is {bound:?}")
    })?;
    let explain = floor.ask(&["wall", "explain", "dns"])?.with_code(0)?;
    ok(Evidence::new()
        .line("trader-a1, trader-b1, buyer and seller asked dns")
        .all(&explain))
}

pub(super) fn database(floor: &mut Floor) -> Shown {
    floor.reaches("buyer", "orders", POSTGRES)?;
    let wall = format!("wall {ORDER_BOOK}");
    let kept = kept_out(floor, ("seller", "orders", POSTGRES), &wall)?;
    let list = floor.ask(&["wall", "list"])?.with_code(0)?;
    ok(Evidence::new()
        .line("buyer used orders first")
        .and(kept)
        .said(&list, |line| line.contains("workload orders")))
}

pub(super) fn payment(floor: &mut Floor) -> Shown {
    let stages = ["--workload", "authorise", "--workload", "settle"];
    let begin = ["transaction", "begin", PAYMENT, "--wall", PAYMENTS];
    let begun = floor.may("payments", &[&begin[..], &stages].concat())?;
    floor.reaches("authorise", "payments-db", POSTGRES)?;
    floor.reaches("authorise", "settle", HAND_OVER)?;
    let wall = format!("wall {PAYMENTS} {PAYMENT}");
    let kept = kept_out(floor, ("settle", "payments-db", POSTGRES), &wall)?;
    let open = floor.ask(&["transaction", "list"])?.with_text(PAYMENT)?;
    let ended = floor.may("payments", &["transaction", "end", PAYMENT])?;
    floor.reaches("settle", "payments-db", POSTGRES)?;
    ok(Evidence::new()
        .said(&begun, |_| false)
        .line("authorise used payments-db, and handed over to settle")
        .and(kept)
        .said(&open, |line| line.contains(PAYMENT))
        .said(&ended, |_| false)
        .line("settle used payments-db"))
}

pub(super) fn around(floor: &mut Floor) -> Shown {
    const SHORT_CUT: &str = r#"
[[rule]]
name = "fill-cache"
from = ["buy-signals", "sell-signals"]
to = "cache"
action = "allow"
"#;
    floor.write("short-cut.toml", &(POLICY.to_owned() + SHORT_CUT))?;
    let before = floor.json(&["status"])?["generation"].clone();
    let apply = floor.by("otto", &["policy", "apply", "short-cut.toml"])?;
    let path = "buy-signals - (rule fill-cache) - cache - (rule fill-cache) - sell-signals";
    let apply = apply.with_code(1)?.with_text(path)?;
    let after = floor.json(&["status"])?["generation"].clone();
    require(before == after, || {
        "the policy in force has changed".to_owned()
    })?;
    // Both walls between the signals say so.
    let mut told = false;
    ok(Evidence::new()
        .line("a rule more: buy-signals and sell-signals may fill the cache")
        .said(&apply, |line| {
            let first = line.contains("meet past the wall") && !told;
            told |= first;
            first
        })
        .fact("path", path))
}

pub(super) fn killed(floor: &mut Floor) -> Shown {
    let before = bindings(floor)?;
    floor.kill_and_restart()?;
    let started = floor.record("started", |r| r["body"]["after"] == "died")?;
    let after = bindings(floor)?;
    require(before == after, || {
        format!("bound was {before:?}, and is {after:?}")
    })?;
    let kept = kept_out(
        floor,
        ("trader-a1", "sell-signals", POSTGRES),
        "wall trading",
    )?;
    floor.reaches("trader-a1", "buy-signals", POSTGRES)?;
    ok(Evidence::new()
        .line("SIGKILL, and another daemon on the same ledger")
        .line(format!("bound before and after, {} bindings:", after.len()))
        .lines(after.iter().map(|b| format!("  {b}")))
        .and(kept)
        .line("trader-a1 read buy-signals")
        .fact("bindings", after.len())
        .fact("record", started["seq"].clone()))
}

/// The id of the only proposal.
fn proposed(floor: &Floor) -> Result<String, Halt> {
    let list = floor.json(&["approval", "list"])?;
    let first = each(&list).next().map(|p| text(&p["id"]).to_owned());
    first.ok_or_else(|| Halt::failed("nothing waits for a second person".to_owned()))
}

pub(super) fn two_people(floor: &mut Floor) -> Shown {
    let retag = ["workload", "tag", "trader-a1", "--remove", "role:trader"];
    let retag = floor.by("otto", &retag)?.with_code(1)?;
    let retag = retag.with_text("two people must want")?;
    let id = proposed(floor)?;
    floor.may("sam", &["approval", "deny", &id])?;
    let reset = [
        "wall",
        "reset",
        ORDER_BOOK,
        "orders",
        "--reason",
        "wiped for sellers",
    ];
    let reset = floor.by("sam", &reset)?.with_code(1)?;
    let reset = reset.with_text("workload orders is free of buyer")?;
    let id = proposed(floor)?;
    let own = floor.by("sam", &["approval", "allow", &id])?.with_code(1)?;
    let own = own.with_text("another person must approve it")?;
    floor.is_refused("seller", "orders", POSTGRES)?;
    let said = |line: &str| !line.contains("approval allow");
    let evidence = Evidence::new()
        .said(&retag, said)
        .said(&reset, said)
        .all(&own)
        .line("seller was refused at orders");
    let Cast::Each(_) = floor.cast else {
        return ok(evidence
            .line("a second person would have to agree; as root you see it happen")
            .fact("approved", false));
    };
    let agreed = floor.may("sue", &["approval", "allow", &id])?;
    floor.reaches("seller", "orders", POSTGRES)?;
    let kept = kept_out(
        floor,
        ("buyer", "orders", POSTGRES),
        &format!("wall {ORDER_BOOK}"),
    )?;
    let record = floor.record("wall_reset", |_| true)?;
    ok(evidence
        .said(&agreed, said)
        .line("seller used orders")
        .and(kept)
        .line(format!(
            "ledger: record {}, by {} and {}, because {}",
            record["seq"],
            text(&record["who"]),
            text(&record["body"]["second"]),
            text(&record["body"]["reason"])
        ))
        .fact("approved", true))
}

pub(super) fn ledger(floor: &mut Floor) -> Shown {
    let file = ["--file", "ledger.db"];
    let show = [&["ledger", "show"], &file[..], &["--kind", "wall_denied"]].concat();
    let denied = floor.json(&show)?;
    let verify = ["--anchor", "floor-1.anchor"];
    let verify = [&["ledger", "verify"], &file[..], &verify].concat();
    let whole = floor.json(&verify)?;
    require(whole["intact"] == true, || format!("the ledger: {whole}"))?;
    let verify = floor.ask(&verify)?.with_code(0)?;
    ok(Evidence::new()
        .all(&verify)
        .fact("intact", true)
        .fact("walls_denied", each(&denied).count()))
}
