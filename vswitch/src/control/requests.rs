//! From a request line to a reply line.

use serde::Serialize;
use tracing::info;

use super::api::{
    ApiError, Applied, Envelope, ErrorCode, PolicyDiff, Reply, Request, VERSION, WatchFilter,
};
use super::apply::{ApplyError, Control};
use super::callers::{self, Caller};
use super::loader::Loader;
use super::readmission::Evidence;
use super::server::Answer;
use super::state::Desired;
use crate::datapath::worker::tick;
use crate::policy::model::ServiceSpec;

/// Longest probation of a policy: a day. A longer one was forgotten, not planned.
const MAX_CONFIRM_S: u64 = 86_400;

impl From<ApplyError> for ApiError {
    fn from(e: ApplyError) -> Self {
        use ApplyError as E;
        let code = match &e {
            E::NoSuchPort(_)
            | E::NoSuchWorkload(_)
            | E::WhichWorkload { .. }
            | E::NothingToConfirm => ErrorCode::Usage,
            E::Invalid(_)
            | E::Port { .. }
            | E::TooManyPorts(_)
            | E::PortExists(_)
            | E::TwoPeople(_)
            | E::NotSettled(_) => ErrorCode::Refused,
        };
        ApiError {
            code,
            errors: e.errors(),
        }
    }
}

fn refused(errors: Vec<String>) -> ApiError {
    ApiError {
        code: ErrorCode::Refused,
        errors,
    }
}

fn no_files() -> ApiError {
    ApiError::new(
        ErrorCode::Refused,
        "this switch is embedded in a program and reads no files",
    )
}

fn line<T: Serialize>(result: Result<T, ApiError>) -> String {
    let reply = match result {
        Ok(answer) => Reply::Ok(answer),
        Err(e) => Reply::Error(e),
    };
    // Plain values with string keys: serialising them cannot fail.
    serde_json::to_string(&reply).unwrap_or_default()
}

/// Answers one request.
pub(super) fn answer(
    control: &mut Control,
    loader: Option<&dyn Loader>,
    caller: &Caller,
    text: &str,
    now_ns: u64,
) -> Answer {
    let envelope: Envelope = match serde_json::from_str(text) {
        Ok(e) => e,
        Err(e) => {
            let error = ApiError::new(ErrorCode::Usage, format!("not a request: {e}"));
            return Answer::Reply(line::<()>(Err(error)));
        }
    };
    if envelope.version != VERSION {
        let error = ApiError::new(
            ErrorCode::Version,
            format!(
                "the client speaks protocol version {}, the daemon {VERSION}; use the `vswitch` the daemon was started from",
                envelope.version
            ),
        );
        return Answer::Reply(line::<()>(Err(error)));
    }
    if let Err(no) = caller.may(&envelope.request) {
        control.recorder.role_refused(&no);
        return Answer::Reply(line::<()>(Err(no.into())));
    }
    let r = match envelope.request {
        Request::Watch(filter) => return watch(control, filter),
        Request::Status => line(Ok(control.status(now_ns))),
        Request::Ports => line(Ok(control.port_infos())),
        Request::Workloads => line(Ok(control.workload_infos())),
        Request::Restarts => line(Ok(control.restart_infos(now_ns))),
        Request::WorkloadRestart {
            workload,
            reason,
            evidence,
        } => line(services(&evidence).and_then(|evidence| {
            let why = (&*reason, Evidence::Named(&evidence), &[][..]);
            control.restart(&workload, why, &caller.name, now_ns)
        })),
        Request::Segments => line(Ok(control.segment_infos())),
        Request::Conns { workload, limit } => {
            line(control.conns(workload.as_deref(), limit, tick(now_ns)))
        }
        Request::PolicyShow => line(Ok(control.policy_view(now_ns))),
        Request::Explain(q) => line(control.explain(&q, tick(now_ns))),
        Request::Reach {
            workload,
            to,
            limit,
        } => {
            let asked = control.reached_as(&workload);
            let asked = asked.and_then(|name| Ok((control.moment(now_ns)?, name)));
            return later(asked, move |(moment, name)| moment.reach(&name, to, limit));
        }
        Request::Asks => {
            let asks = control.ask_infos(now_ns);
            if asks.is_empty() {
                line(Ok([(); 0]))
            } else {
                let asked = control.moment(now_ns).map(|moment| (moment, asks));
                return later(asked, |(moment, asks)| Ok(moment.asks(asks)));
            }
        }
        Request::AskShow { id } => {
            let asked = control.ask_named(&id, now_ns);
            let asked = asked.and_then(|ask| Ok((control.moment(now_ns)?, ask)));
            return later(asked, |(moment, ask)| Ok(moment.ask(ask)));
        }
        Request::Answer(given) => line(control.answer_ask(&given, caller, now_ns)),
        Request::Walls => line(Ok(control.wall_infos())),
        Request::WallExplain { subject } => line(control.wall_explain(&subject)),
        Request::Transactions => line(Ok(control.transaction_infos())),
        Request::Suspicions => line(Ok(control.suspicion_infos())),
        Request::Responses => line(Ok(control.responses_info(now_ns))),
        Request::Drops => line(Ok(control.drops())),
        Request::Stats => line(Ok(control.stats())),
        Request::PolicyDiff { toml, source } => {
            let diff = diff(control, loader, &toml, &source);
            match control.moment(now_ns) {
                Ok(moment) => {
                    return later(diff, move |(diff, after)| Ok(moment.compare(&after, diff)));
                }
                // Where there is no policy, nobody connects to anybody.
                Err(_) => line(diff.map(|(diff, _)| diff)),
            }
        }
        Request::Proposals => line(Ok(control.proposal_infos(now_ns))),
        Request::Disapprove { id } => line(control.drop_proposal(&id, now_ns)),
        Request::Approve { id } => line(control.approve((caller, &id), |control, request| {
            enact(control, loader, request, now_ns).map_err(|e| match e {
                No::Refused(e) => e,
                No::TwoPeople(weakens) => refused(changed(weakens)),
            })
        })),
        change => line(propose(control, loader, caller, change, now_ns)),
    };
    Answer::Reply(r)
}

/// The reply to whoever wants to watch where nothing can be streamed.
#[cfg(feature = "manager")]
pub(super) fn no_stream() -> String {
    let text = "watch is for the switch's Unix socket; over HTTPS ask for what you need";
    line::<()>(Err(ApiError::new(ErrorCode::Usage, text)))
}

/// Has something worked out elsewhere, if it can be.
fn later<A: Send + 'static, T: Serialize>(
    asked: Result<A, ApiError>,
    work: impl FnOnce(A) -> Result<T, ApiError> + Send + 'static,
) -> Answer {
    match asked {
        Ok(asked) => Answer::Later(Box::new(move || line(work(asked)))),
        Err(no) => Answer::Reply(line::<()>(Err(no))),
    }
}

/// Services, as rules name them.
fn services(texts: &[String]) -> Result<Vec<ServiceSpec>, ApiError> {
    let parse = |text: &String| {
        let wrong = |e| ApiError::new(ErrorCode::Usage, format!("{text:?} is no service: {e}"));
        text.parse().map_err(wrong)
    };
    texts.iter().map(parse).collect()
}

/// Kinds of events that the control thread tells itself.
const OWN_KINDS: [&str; 10] = [
    "ask",
    "yes",
    "no",
    "wall",
    "suspicion",
    "quarantine",
    "release",
    "freeze",
    "thaw",
    "restart",
];

fn watch(control: &Control, mut filter: WatchFilter) -> Answer {
    use crate::event::ConnEventKind as K;
    let all = [
        K::Allow,
        K::Deny,
        K::Reject,
        K::Decoy,
        K::Staged,
        K::Cut,
        K::Close,
        K::Expire,
        K::Evict,
    ];
    if let Some(workload) = &mut filter.workload {
        // Once, and to what events call it: it may be gone by the time one comes.
        match control.resolve(workload) {
            Ok(name) => *workload = name,
            Err(e) => return Answer::Reply(line::<()>(Err(e.into()))),
        }
    }
    let known: Vec<_> = all.iter().map(|k| k.name()).chain(OWN_KINDS).collect();
    let unknown = |kind: &&String| !known.contains(&kind.as_str());
    match filter.kinds.iter().find(unknown) {
        None => {
            control.asks.told.watched(true);
            Answer::Stream(filter)
        }
        Some(kind) => {
            let text = format!(
                "there is no kind of event {kind}; the kinds are {}",
                known.join(", ")
            );
            Answer::Reply(line::<()>(Err(ApiError::new(ErrorCode::Usage, text))))
        }
    }
}

fn diff(
    control: &Control,
    loader: Option<&dyn Loader>,
    toml: &str,
    source: &str,
) -> Result<(PolicyDiff, Desired), ApiError> {
    let policy = loader
        .ok_or_else(no_files)?
        .policy(toml, source, &control.desired)
        .map_err(refused)?;
    let diff = crate::policy::diff(&control.desired.policy, &policy);
    let mut changes: Vec<_> = diff.0.iter().map(ToString::to_string).collect();
    let after = control.with_policy(policy);
    let weaker = control.weakenings(&after);
    changes.extend(weaker.iter().map(|line| format!("! {line}")));
    let diff = PolicyDiff {
        differs: !changes.is_empty(),
        changes,
        pairs: None,
        refused: Vec::new(),
    };
    Ok((diff, after))
}

/// Why a change was not made.
enum No {
    /// Because of this.
    Refused(ApiError),
    /// It takes this away from walls, and nobody has agreed.
    TwoPeople(Vec<String>),
}

impl From<ApiError> for No {
    fn from(e: ApiError) -> Self {
        No::Refused(e)
    }
}

impl From<ApplyError> for No {
    fn from(e: ApplyError) -> Self {
        match e {
            ApplyError::TwoPeople(weakens) => No::TwoPeople(weakens),
            other => No::Refused(other.into()),
        }
    }
}

/// What is said of a proposal that takes away other things than it did when it was made.
fn changed(weakens: Vec<String>) -> Vec<String> {
    let first = "things have changed: now it would take this away, which the proposal does not say; have it proposed again:";
    let weakens = weakens.into_iter().map(|line| format!("  {line}"));
    std::iter::once(first.to_owned()).chain(weakens).collect()
}

/// Makes a change, or a proposal of it.
fn propose(
    control: &mut Control,
    loader: Option<&dyn Loader>,
    caller: &Caller,
    request: Request,
    now_ns: u64,
) -> Result<Applied, ApiError> {
    let again = request.clone();
    let call = callers::name(&request);
    enact(control, loader, request, now_ns).map_err(|no| match no {
        No::Refused(e) => e,
        No::TwoPeople(weakens) => control.propose(caller, (again, call), weakens, now_ns),
    })
}

/// The requests that change something.
fn enact(
    control: &mut Control,
    loader: Option<&dyn Loader>,
    request: Request,
    now_ns: u64,
) -> Result<Applied, No> {
    match request {
        Request::PolicyApply {
            toml,
            source,
            confirm_s,
        } => {
            if let Some(s) = confirm_s.filter(|s| *s == 0 || *s > MAX_CONFIRM_S) {
                let text = format!("--confirm {s}s: choose a time from 1 s to a day");
                return Err(ApiError::new(ErrorCode::Usage, text).into());
            }
            let policy = loader
                .ok_or_else(no_files)?
                .policy(&toml, &source, &control.desired)
                .map_err(refused)?;
            info!(source, ?confirm_s, "policy apply");
            let confirm_ns = confirm_s.map(|s| s * 1_000_000_000);
            Ok(control.apply_policy(policy, &source, confirm_ns, now_ns)?)
        }
        Request::PolicyConfirm => Ok(control.confirm()?),
        Request::PortAdd { toml, source } => {
            let ports = loader
                .ok_or_else(no_files)?
                .ports(&toml, source.as_deref(), &control.desired)
                .map_err(refused)?;
            Ok(control.add_ports(ports)?)
        }
        Request::PortDel { name } => Ok(control.remove_port(&name)?),
        Request::WorkloadTag {
            workload,
            add,
            remove,
        } => Ok(control.tag(&workload, &add, &remove)?),
        Request::WorkloadQuarantine {
            workload,
            keep,
            reason,
        } => {
            let who = control.recorder.who().to_owned();
            Ok(control.quarantine(&workload, &keep, &reason, &who)?)
        }
        Request::WorkloadRelease { workload, reason } => {
            let who = control.recorder.who().to_owned();
            Ok(control.release(&workload, &reason, &who)?)
        }
        Request::WorkloadFreeze { workload, max_s } => {
            let who = control.recorder.who().to_owned();
            Ok(control.freeze(&workload, max_s, &who, now_ns)?)
        }
        Request::WorkloadThaw {
            workload,
            rolled_back,
        } => {
            let who = control.recorder.who().to_owned();
            Ok(control.thaw(&workload, rolled_back, &who, now_ns)?)
        }
        Request::WallReset {
            wall,
            subject,
            reason,
        } => {
            let reset = control.wall_reset(&wall, &subject)?;
            let weakens = vec![reset.takes_away];
            let Some(second) = control.second_for(&weakens) else {
                return Err(No::TwoPeople(weakens));
            };
            control.unbind(&wall, &reset.key, (&second, &reason));
            let generation = control.shared.snapshots.generation();
            Ok(Applied::at(generation, weakens))
        }
        Request::TransactionBegin {
            name,
            wall,
            workloads,
        } => Ok(control.transaction_begin(&name, &wall, &workloads)?),
        Request::TransactionEnd { name } => Ok(control.transaction_end(&name)?),
        Request::SuspicionClear { workload } => Ok(control.clear_suspicion(&workload)?),
        Request::ResponseStop { reason } => Ok(control.stop_responses(&reason)?),
        Request::ResponseStart => Ok(control.start_responses()?),
        Request::Reload => {
            let loader = loader.ok_or_else(no_files)?;
            load(control, loader, loader.load())
        }
        // Questions are answered by the caller.
        _ => Err(ApiError::new(ErrorCode::Usage, "not a change").into()),
    }
}

/// Makes true what `loader` found in the configuration files, or refuses it whole. What was refused is logged, and shown by
/// `status`.
fn load(
    control: &mut Control,
    loader: &dyn Loader,
    loaded: Result<Desired, Vec<String>>,
) -> Result<Applied, No> {
    let result = loaded.map_err(|errors| refused(errors).into());
    let result = result.and_then(|desired| {
        let source = loader.policy_source();
        control.apply(desired, &source).map_err(|e| match e {
            ApplyError::Invalid(errors) => refused(loader.located(errors)).into(),
            other => other.into(),
        })
    });
    if let Err(no) = &result {
        control.refused = match no {
            No::Refused(e) => e.errors.clone(),
            No::TwoPeople(weakens) => ApplyError::TwoPeople(weakens.clone()).errors(),
        };
        for error in &control.refused {
            tracing::error!("configuration refused: {error}");
        }
    }
    result
}

/// The files have changed.
pub(super) fn files_changed(
    control: &mut Control,
    loader: &dyn Loader,
    loaded: Result<Desired, Vec<String>>,
) {
    if control.desired.policy.walls.is_empty() {
        // Told by `load` if it cannot be.
        let _ = load(control, loader, loaded);
        return;
    }
    let text =
        "the files have changed; where there are walls they are read on command: `vswitch reload`";
    tracing::warn!("{text}");
    control.refused = vec![text.to_owned()];
}
