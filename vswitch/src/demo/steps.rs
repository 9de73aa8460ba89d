//! What the demo shows, each step with its evidence.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::time::{Duration, Instant};

use super::report::{Evidence, Shown, ok};
use super::scene::{BATCH, DB, LOAD, MEMBERS, Scene, WEB};
use super::speed::{self, FLOWS};
use super::stacks::{Attempt, LIMIT, Pair, Stacks, Who};
use super::{Halt, require};
use crate::control::api::{Stats, WorkerInfo};
use crate::policy::model::Policy;

/// What the database listens on, and the policy's rules name.
const POSTGRES: u16 = 5432;
const POSTGRES_SERVICE: &str = "tcp/5432";
/// What the database hands its copies out on.
const REPLICA: u16 = 5433;
/// A service that no rule names.
const SSH: u16 = 22;
/// The rule that lets `web` in, and whose removal cuts it.
pub(super) const ALLOW_RULE: &str = "web-to-db";
const DENY_RULE: &str = "no-batch-to-db";
/// Bytes sent and echoed in the transfer: some hundred windows.
const TRANSFER_BYTES: usize = 8 << 20;
/// How long a transfer may take on a slow machine.
const TRANSFER_LIMIT: Duration = Duration::from_secs(20);
/// How long is listened for bytes that must not come. A first retransmission is in it
/// (RFC 6298 section 2: at least 200 ms where not 1 s).
const SILENCE: Duration = Duration::from_millis(500);
/// How long the switch is watched idling.
const IDLE: Duration = Duration::from_secs(1);
/// Share of a core an idle switch may use.
const IDLE_LIMIT: f64 = 0.03;
/// Requests to find the usual time of one.
const REQUESTS: usize = 50;
/// Who is attached, and how.
pub(super) fn attached(scene: &Scene) -> Result<Evidence, Halt> {
    let status = scene.switch.status()?;
    let mut evidence = Evidence::new();
    for port in scene.switch.ports()? {
        let member = MEMBERS.iter().chain(&LOAD).find(|m| m.name == port.name);
        let ip = member.map(|m| m.ip().to_string()).unwrap_or_default();
        let wiring = scene.wirings.iter().find(|w| w.interface() == port.at);
        let what = match wiring {
            Some(w) => format!(
                "container: network namespace {}, veth {}",
                w.netns(),
                port.at
            ),
            None => "guest: virtio-net driver in this process".to_owned(),
        };
        evidence = evidence.line(format!(
            "{:<10} {ip:<10} {:<11} {what}",
            port.name, port.kind
        ));
    }
    Ok(evidence
        .line(format!(
            "policy: {} rules, in force at every worker as generation {}",
            status.rules, status.generation
        ))
        .fact("ports", status.ports)
        .fact("ports_up", status.ports_up)
        .fact("generation", status.generation))
}

/// `web` talks to `db`: a guest with a container, when there is one.
pub(super) fn allowed(scene: &mut Scene) -> Shown {
    transfer(scene, WEB, POSTGRES, ALLOW_RULE)
}

/// `batch` talks to `db`: two containers, when there are some.
pub(super) fn also_allowed(scene: &mut Scene) -> Shown {
    transfer(scene, BATCH, REPLICA, "batch-to-replica")
}

/// A connection to `db`, byte for byte, and the rule that admits it.
fn transfer(scene: &mut Scene, from: Who, port: u16, rule: &str) -> Shown {
    let name = from.member().name;
    let hits = scene.hits(rule)?;
    let (pair, sport) = open_known(scene, from, port)?;
    let start = Instant::now();
    echo(&mut scene.stacks, pair)?;
    let seconds = start.elapsed().as_secs_f64();
    let answer = scene.explain(from, DB, &format!("tcp/{port}"))?;
    let live = answer.live.iter().find(|c| c.sport == sport).cloned();
    let live = live.ok_or_else(|| {
        Halt::failed("`explain` does not show the connection any more".to_owned())
    })?;
    let hits = scene.hits(rule)? - hits;
    scene.stacks.close(pair)?;
    require(answer.verdict == "allow", || {
        format!("`explain` says {}: {}", answer.verdict, answer.why)
    })?;
    require(live.rule == rule, || {
        format!("the connection was admitted by {}, not {rule}", live.rule)
    })?;
    require(hits > 0, || format!("rule {rule} has no hits"))?;
    let mib = TRANSFER_BYTES >> 20;
    ok(Evidence::new()
        .line(format!(
            "{mib} MiB sent, echoed and compared in {seconds:.2} s; {name}: {}, db: {}",
            scene.stack(from),
            scene.stack(DB)
        ))
        .line(format!(
            "rule {} admitted {}:{} -> {}:{}; tracked {} bytes there, {} back",
            live.rule,
            live.src,
            live.sport,
            live.dst,
            live.dport,
            live.original_bytes,
            live.reply_bytes
        ))
        .fact("bytes_each_way", TRANSFER_BYTES)
        .fact("transfer_seconds", seconds)
        .fact("rule", live.rule)
        .fact("rule_hits", hits))
}

/// `batch` is told no by a rule.
pub(super) fn denied_by_rule(scene: &mut Scene) -> Shown {
    const REASON: &str = "policy_reject";
    let before = scene.dropped(REASON)?;
    let hits = scene.hits(DENY_RULE)?;
    let start = Instant::now();
    let why = match scene.stacks.connect(BATCH, DB, POSTGRES, LIMIT)? {
        Attempt::Refused(why) => why,
        Attempt::Open(_) => return Err(Halt::failed("batch got through to db".to_owned())),
        Attempt::Silent => {
            return Err(Halt::failed(format!(
                "the switch dropped batch's request but told nobody for {LIMIT:?}"
            )));
        }
    };
    let ms = start.elapsed().as_secs_f64() * 1e3;
    let answer = scene.explain(BATCH, DB, POSTGRES_SERVICE)?;
    let dropped = scene.wait_dropped(REASON, before)?;
    let hits = scene.hits(DENY_RULE)? - hits;
    require(answer.verdict == "reject", || {
        format!("`explain` says {}: {}", answer.verdict, answer.why)
    })?;
    require(answer.rule.as_deref() == Some(DENY_RULE), || {
        format!("`explain` names {:?} as the deciding rule", answer.rule)
    })?;
    require(hits > 0, || format!("rule {DENY_RULE} has no hits"))?;
    ok(Evidence::new()
        .line(format!(
            "batch ({}) got: {why}, after {ms:.1} ms",
            scene.stack(BATCH)
        ))
        .line(format!("explain: {}", answer.why))
        .line(format!(
            "drops: {REASON} +{dropped}; hits of {DENY_RULE} +{hits}"
        ))
        .fact("reason", REASON)
        .fact("drops", dropped)
        .fact("rule", DENY_RULE)
        .fact("rule_hits", hits)
        .fact("answer_ms", ms))
}

/// What no rule names is denied, without a word.
pub(super) fn denied_by_default(scene: &mut Scene) -> Shown {
    const REASON: &str = "policy_default_deny";
    let before = scene.dropped(REASON)?;
    let attempt = scene.stacks.connect(WEB, DB, SSH, SILENCE)?;
    require(matches!(attempt, Attempt::Silent), || match attempt {
        Attempt::Refused(why) => format!("web got an answer: {why}"),
        _ => "web got through to db's port 22".to_owned(),
    })?;
    let answer = scene.explain(WEB, DB, &format!("tcp/{SSH}"))?;
    let dropped = scene.wait_dropped(REASON, before)?;
    require(answer.verdict == "deny" && answer.rule.is_none(), || {
        format!("`explain` says {}: {}", answer.verdict, answer.why)
    })?;
    ok(Evidence::new()
        .line(format!("web got no answer in {} ms", SILENCE.as_millis()))
        .line(format!("explain: {}", answer.why))
        .line(format!("drops: {REASON} +{dropped}"))
        .fact("reason", REASON)
        .fact("drops", dropped))
}

/// `web` claims to be `batch`, and then to be `db`.
pub(super) fn spoofed(scene: &mut Scene) -> Shown {
    const ADDRESS: &str = "spoofed_ip";
    const MAC: &str = "declared_mac_moved";
    let (web, db, batch) = (WEB.member(), DB.member(), BATCH.member());
    let before = scene.dropped(ADDRESS)?;
    let frame = speed::udp_frame(web, db, batch, 64);
    scene.stacks.host(WEB)?.send_raw(&frame)?;
    let addresses = scene.wait_dropped(ADDRESS, before)?;
    let macs = {
        let before = mac_spoofs(scene)?;
        let frame = speed::udp_frame(batch, db, batch, 64);
        scene.stacks.host(WEB)?.send_raw(&frame)?;
        let start = Instant::now();
        loop {
            let now = mac_spoofs(scene)?;
            if let Some((reason, n)) = grown(&before, &now) {
                break (reason, n);
            }
            require(start.elapsed() < LIMIT, || {
                format!("neither spoofed_mac nor {MAC} moved in {LIMIT:?}")
            })?;
            scene.stacks.pump(Duration::from_millis(5))?;
        }
    };
    ok(Evidence::new()
        .line(format!(
            "a frame from web with batch's IP address: dropped, {ADDRESS} +{addresses}"
        ))
        .line(format!(
            "a frame from web with batch's MAC and IP address: dropped, {} +{}",
            macs.0, macs.1
        ))
        .fact("spoofed_ip", addresses)
        .fact("mac_reason", macs.0)
        .fact("mac_drops", macs.1))
}

/// The two reasons a frame with a neighbour's MAC can be refused for.
fn mac_spoofs(scene: &Scene) -> Result<[(&'static str, u64); 2], Halt> {
    let of = |reason| Ok::<_, Halt>((reason, scene.dropped(reason)?));
    Ok([of("spoofed_mac")?, of("declared_mac_moved")?])
}

fn grown(
    before: &[(&'static str, u64)],
    now: &[(&'static str, u64)],
) -> Option<(&'static str, u64)> {
    let pairs = before.iter().zip(now);
    pairs
        .map(|(b, n)| (n.0, n.1 - b.1))
        .find(|(_, more)| *more > 0)
}

/// A rule goes away under a connection that uses it.
pub(super) fn cut(scene: &mut Scene) -> Shown {
    const REASON: &str = "policy_default_deny";
    let (pair, sport) = open_known(scene, WEB, POSTGRES)?;
    let cuts = cuts_so_far(scene)?;
    let back = Pair {
        client: pair.server,
        server: pair.client,
    };
    scene.stacks.request(pair)?;
    scene.stacks.request(back)?;
    let before = scene.dropped(REASON)?;
    let without = Policy {
        rules: scene
            .policy
            .rules
            .iter()
            .filter(|r| r.name != ALLOW_RULE)
            .cloned()
            .collect(),
        ..scene.policy.clone()
    };
    let applied = scene.switch.apply_policy(without)?;
    // From here on not a byte may pass, in either direction.
    for (who, sock) in [pair.client, pair.server] {
        scene.stacks.host(who)?.write(sock, b"too late")?;
    }
    scene.wait_dropped(REASON, before)?;
    let leaked = scene.stacks.until(SILENCE, |s| {
        for (who, sock) in [pair.client, pair.server] {
            let mut buffer = [0; 16];
            if matches!(s.host(who)?.read(sock, &mut buffer), Ok(n) if n > 0) {
                return Ok(Some(who.member().name));
            }
        }
        Ok(None)
    })?;
    let dropped = scene.dropped(REASON)? - before;
    let cuts = cuts_so_far(scene)? - cuts;
    let live = scene.explain(WEB, DB, POSTGRES_SERVICE)?.live;
    let lives = live.iter().any(|c| c.sport == sport);
    let restored = scene.switch.apply_policy(scene.policy.clone())?;
    scene.stacks.close(pair)?;
    if let Some(name) = leaked {
        return Err(Halt::failed(format!(
            "{name} still received data after the rule was gone"
        )));
    }
    require(!lives && cuts > 0, || {
        "the connection that the policy denies is still in the table".to_owned()
    })?;
    let again = open(scene, WEB, DB, POSTGRES)?;
    scene.stacks.request(again)?;
    scene.stacks.close(again)?;
    ok(Evidence::new()
        .line(format!(
            "{ALLOW_RULE} removed: generation {} at every worker after {} µs",
            applied.generation, applied.settle_us
        ))
        .line(format!(
            "no byte passed afterwards, in either direction; conn_cut +{cuts}; drops: {REASON} +{dropped}"
        ))
        .line(format!(
            "{ALLOW_RULE} back (generation {}): web connects again",
            restored.generation
        ))
        .fact("cut", cuts)
        .fact("settle_us", applied.settle_us)
        .fact("reason", REASON)
        .fact("drops", dropped)
        .fact("generation", applied.generation))
}

/// Frames of one size, flat out.
pub(super) fn throughput(scene: &mut Scene, frame_bytes: usize) -> Shown {
    let hits = scene.hits("load")?;
    let before = scene.switch.stats()?;
    let measured = speed::measure(scene, frame_bytes)?;
    let hits = scene.hits("load")? - hits;
    let after = scene.switch.stats()?;
    require(measured.received > 0, || {
        format!(
            "{} frames sent, none arrived; {}",
            measured.sent,
            lost_to(&before, &after)
        )
    })?;
    require(measured.wrong == 0, || {
        format!(
            "{} of {} frames arrived damaged or out of order",
            measured.wrong, measured.arrived
        )
    })?;
    let (mpps, gbps) = (measured.mpps(), measured.gbps(frame_bytes));
    let lost = measured.sent.saturating_sub(measured.arrived);
    let losses = if lost == 0 {
        "none lost".to_owned()
    } else {
        format!(
            "{lost} of {} lost ({})",
            measured.sent,
            lost_to(&before, &after)
        )
    };
    ok(Evidence::new()
        .line(format!(
            "{mpps:.2} Mpps, {gbps:.2} Gbit/s received in {:.1} s; {losses}",
            measured.time.as_secs_f64()
        ))
        .line(format!(
            "every frame tracked ({FLOWS} UDP connections), delivered in order, its length checked"
        ))
        .line(format!(
            "generator, receiver and switch (one worker) share this machine's {}",
            match scene.cores.len() {
                1 => "one core".to_owned(),
                n => format!("{n} cores"),
            }
        ))
        .fact("frame_bytes", frame_bytes)
        .fact("mpps", mpps)
        .fact("gbps", gbps)
        .fact("received", measured.received)
        .fact("seconds", measured.time.as_secs_f64())
        .fact("sent", measured.sent)
        .fact("arrived", measured.arrived)
        .fact("lost", lost)
        .fact("connections_judged", hits)
        .fact("cores", scene.cores.len()))
}

/// Which drop counters of the load's ports moved, in words.
fn lost_to(before: &Stats, after: &Stats) -> String {
    let mut reasons: Vec<String> = Vec::new();
    for member in LOAD {
        let Some(now) = after.ports.get(member.name) else {
            continue;
        };
        let then = before.ports.get(member.name);
        for (reason, n) in &now.drops {
            let more = n - then.and_then(|t| t.drops.get(reason)).unwrap_or(&0);
            if more > 0 {
                reasons.push(format!("{reason} +{more} at {}", member.name));
            }
        }
    }
    if reasons.is_empty() {
        "no drop counter moved".to_owned()
    } else {
        reasons.join(", ")
    }
}

/// Nothing to do costs nothing, and the first frame afterwards is not late.
pub(super) fn idle(scene: &mut Scene) -> Shown {
    let pair = open(scene, WEB, DB, POSTGRES)?;
    let mut times = Vec::with_capacity(REQUESTS);
    for _ in 0..REQUESTS {
        times.push(scene.stacks.request(pair)?);
    }
    times.sort_unstable();
    let usual = times.get(REQUESTS / 2).copied().unwrap_or_default();
    let start = (Instant::now(), threads_cpu());
    // Not pumped: a guest that looks into its rings is not the switch's idling.
    while start.0.elapsed() < IDLE {
        scene.stop.check()?;
        std::thread::sleep(Duration::from_millis(20));
    }
    let end = (start.0.elapsed(), threads_cpu());
    let first = scene.stacks.request(pair)?;
    scene.stacks.close(pair)?;
    let us = |time: Duration| u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
    let evidence = Evidence::new();
    let evidence = match (start.1, end.1) {
        (Some(before), Some(after)) => {
            let used: Duration = after
                .iter()
                .map(|(thread, time)| {
                    time.saturating_sub(before.get(thread).copied().unwrap_or_default())
                })
                .sum();
            let share = used.as_secs_f64() / end.0.as_secs_f64();
            require(share < IDLE_LIMIT, || {
                format!(
                    "the idle process used {:.1} % of a core; it should stay under {:.0} %",
                    share * 100.0,
                    IDLE_LIMIT * 100.0
                )
            })?;
            evidence
                .line(format!(
                    "{:.2} % of a core used by the whole process, {} threads, in {:.1} s without traffic",
                    share * 100.0,
                    after.len(),
                    end.0.as_secs_f64()
                ))
                .fact("core_share", share)
                .fact("threads", after.len())
        }
        _ => evidence.line("CPU time not measured: this kernel has no /proc/self/task/*/schedstat"),
    };
    ok(evidence
        .line(format!(
            "first request after that: {} µs there and back; usual: {} µs (median of {REQUESTS})",
            us(first),
            us(usual)
        ))
        .fact("first_request_us", us(first))
        .fact("median_request_us", us(usual)))
}

/// CPU time of each thread of this process so far: the switch's workers and its control thread, and the demo's own.
fn threads_cpu() -> Option<BTreeMap<OsString, Duration>> {
    let mut times = BTreeMap::new();
    for task in std::fs::read_dir("/proc/self/task").ok()?.flatten() {
        // One that has just ended has no file any more.
        let Ok(text) = std::fs::read_to_string(task.path().join("schedstat")) else {
            continue;
        };
        // Its first number: time on a CPU, ns (Documentation/scheduler/sched-stats.rst).
        let ns = text.split_whitespace().next()?.parse().ok()?;
        times.insert(task.file_name(), Duration::from_nanos(ns));
    }
    (!times.is_empty()).then_some(times)
}

/// Every frame there was is accounted for.
pub(super) fn conserved(scene: &mut Scene) -> Shown {
    let mut sum = scene.switch.stats()?.conservation;
    let start = Instant::now();
    // A container's kernel may say something at any time; the numbers are not read in one instant.
    while sum.difference != 0 && start.elapsed() < LIMIT {
        scene.stacks.pump(Duration::from_millis(20))?;
        sum = scene.switch.stats()?.conservation;
    }
    require(sum.difference == 0, || {
        format!("{} frames are not accounted for: {sum:?}", sum.difference)
    })?;
    ok(Evidence::new()
        .line(format!(
            "received {} + made by the switch {} + copies {} + segments {}",
            sum.rx, sum.originated, sum.copies, sum.extra_segments
        ))
        .line(format!(
            "= sent {} + dropped, each with a reason, {} + consumed {}",
            sum.tx, sum.dropped, sum.consumed
        ))
        .fact("received", sum.rx)
        .fact("sent", sum.tx)
        .fact("dropped", sum.dropped)
        .fact("difference", sum.difference))
}

/// One round of what `--keep` goes on with: a request that is allowed, a connection that is not.
pub(super) fn keep_going(scene: &mut Scene, pair: &mut Option<Pair>) -> Result<(), Halt> {
    if let Some(open) = *pair {
        // A policy that was changed meanwhile may well have cut it.
        if scene.stacks.request(open).is_err() {
            scene.stop.check()?;
            scene.stacks.close(open)?;
            *pair = None;
        }
    } else if let Attempt::Open(open) = scene.stacks.connect(WEB, DB, POSTGRES, SILENCE)? {
        *pair = Some(open);
    }
    if let Attempt::Open(open) = scene.stacks.connect(BATCH, DB, POSTGRES, SILENCE)? {
        scene.stacks.close(open)?;
    }
    Ok(())
}

/// How many connections a change of policy has cut.
fn cuts_so_far(scene: &Scene) -> Result<u64, Halt> {
    let workers = scene.switch.stats()?.workers;
    let cut = |w: &WorkerInfo| w.counters.get("conn_cut").copied();
    Ok(workers.iter().filter_map(cut).sum())
}

/// Opens a connection to `db` and finds it in the switch's table: its source port. Earlier ones
/// stay there for a while after their end.
fn open_known(scene: &mut Scene, from: Who, port: u16) -> Result<(Pair, u16), Halt> {
    let service = format!("tcp/{port}");
    let sports = |scene: &Scene| -> Result<Vec<u16>, Halt> {
        let live = scene.explain(from, DB, &service)?.live;
        Ok(live.iter().map(|c| c.sport).collect())
    };
    let before = sports(scene)?;
    let pair = open(scene, from, DB, port)?;
    let after = sports(scene)?;
    let sport = after.into_iter().find(|p| !before.contains(p));
    let sport = sport.ok_or_else(|| {
        Halt::failed("`explain` shows no live connection while there is one".to_owned())
    })?;
    Ok((pair, sport))
}

/// Opens a connection to the database that must come about.
fn open(scene: &mut Scene, from: Who, to: Who, port: u16) -> Result<Pair, Halt> {
    let (a, b) = (from.member().name, to.member().name);
    let before = scene.switch.drops()?;
    let why = match scene.stacks.connect(from, to, port, LIMIT)? {
        Attempt::Open(pair) => return Ok(pair),
        Attempt::Refused(why) => why,
        Attempt::Silent => format!("no answer in {LIMIT:?}"),
    };
    let after = scene.switch.drops()?;
    let moved: Vec<_> = before
        .iter()
        .zip(&after)
        .filter(|(b, a)| a.total > b.total)
        .map(|(b, a)| format!("{} +{}", a.reason, a.total - b.total))
        .collect();
    Err(Halt::failed(format!(
        "{a} cannot connect to {b} on tcp/{port}: {why}; drops meanwhile: {}",
        if moved.is_empty() {
            "none".to_owned()
        } else {
            moved.join(", ")
        }
    )))
}

/// The byte at a position of the transfer: neither constant nor periodic in a power of two.
#[allow(clippy::cast_possible_truncation)] // the low byte is wanted
fn pattern(at: usize) -> u8 {
    (at % 251) as u8
}

/// Sends [`TRANSFER_BYTES`], has them sent back, and compares.
fn echo(stacks: &mut Stacks, pair: Pair) -> Result<(), Halt> {
    let pattern: Vec<u8> = (0..TRANSFER_BYTES).map(pattern).collect();
    let (mut sent, mut back) = (0, 0);
    // What the server has read and not sent back yet.
    let mut pending = Vec::new();
    let mut buffer = vec![0; 64 << 10];
    let done = stacks.until(TRANSFER_LIMIT, |s| {
        let rest = pattern.get(sent..).unwrap_or_default();
        if !rest.is_empty() {
            sent += s.write(pair.client, rest)?;
        }
        if pending.is_empty() {
            let n = s.read(pair.server, &mut buffer)?;
            pending.extend_from_slice(buffer.get(..n).unwrap_or_default());
        }
        if !pending.is_empty() {
            let n = s.write(pair.server, &pending)?;
            pending.drain(..n);
        }
        let n = s.read(pair.client, &mut buffer)?;
        if buffer.get(..n) != pattern.get(back..back + n) {
            return Err(Halt::failed(format!(
                "what came back differs from what was sent, after {back} bytes"
            )));
        }
        back += n;
        Ok((back == TRANSFER_BYTES).then_some(()))
    })?;
    done.ok_or_else(|| {
        Halt::failed(format!(
            "{back} of {TRANSFER_BYTES} bytes came back in {TRANSFER_LIMIT:?}"
        ))
    })
}
