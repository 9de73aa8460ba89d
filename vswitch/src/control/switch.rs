//! The switch as a value: what an embedding program holds.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Sender, channel};
use std::thread::JoinHandle;

use super::api::{
    ApiError, Applied, ConnList, DropInfo, ExplainQuery, Explanation, PolicyView, PortInfo,
    RestartInfo, Stats, Status,
};
use super::apply::{ApplyError, Control};
use super::deciding::ManagerError;
use super::http::{HttpError, HttpServer};
use super::loader::Loader;
use super::reactor::{Command, Reactor};
use super::readmission::Evidence;
use super::recorder::{Recorder, RecorderError};
use super::restart::Restarts;
use super::server::{Server, ServerError};
use super::state::{
    Decisions, Desired, LedgerConfig, ManagerConfig, Poll, PortConfig, SwitchConfig,
};
use crate::datapath::worker::{self, PollMode, Shared, WorkerConfig, tick};
use crate::policy::model::Policy;
use crate::port::mem::MemEnd;
use crate::sys::affinity::KeptOff;
use crate::sys::eventfd::EventFd;
use crate::sys::time::monotonic_ns;

/// Why a switch could not start, or do what it was told.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SwitchError {
    /// The connection table could not be made.
    #[error("connection table: {0}; lower `connections`")]
    Table(#[from] flowtable::TableError),
    /// A worker could not start.
    #[error("worker {index}{}: {source}", core.map(|c| format!(" on core {c}")).unwrap_or_default())]
    Worker {
        /// Its number.
        index: usize,
        /// Its core.
        core: Option<usize>,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The control thread could not start.
    #[error("control thread: {0}")]
    Control(#[source] io::Error),
    /// The ledger could not be opened.
    #[error(transparent)]
    Ledger(#[from] RecorderError),
    /// The API cannot be served over HTTPS.
    #[error("[api]: {0}")]
    Http(#[from] HttpError),
    /// The manager cannot be asked.
    #[error("[manager]: {0}")]
    Manager(#[from] ManagerError),
    /// The API socket could not be opened.
    #[error(transparent)]
    Server(#[from] ServerError),
    /// The desired state was refused; nothing was touched.
    #[error(transparent)]
    Apply(#[from] ApplyError),
    /// A question could not be answered.
    #[error(transparent)]
    Question(#[from] ApiError),
    /// The control thread has ended.
    #[error("the switch has shut down")]
    Down,
}

/// What a switch starts with.
#[derive(Default)]
pub struct SwitchBuilder {
    desired: Desired,
    source: Option<String>,
    api: Option<PathBuf>,
    loader: Option<Box<dyn Loader>>,
    restarter: Option<PathBuf>,
}

impl std::fmt::Debug for SwitchBuilder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SwitchBuilder")
            .field("desired", &self.desired)
            .field("api", &self.api)
            .finish_non_exhaustive()
    }
}

impl SwitchBuilder {
    /// One worker pinned to each of these cores. Without this: one worker, not pinned.
    #[must_use]
    pub fn workers(mut self, cores: impl IntoIterator<Item = usize>) -> Self {
        self.desired.switch.workers = cores.into_iter().collect();
        self
    }

    /// How workers wait; adaptive unless said.
    #[must_use]
    pub fn poll(mut self, poll: Poll) -> Self {
        self.desired.switch.poll = poll;
        self
    }

    /// Connections there is room for: 144 bytes each, taken at the start. A million
    /// unless said.
    #[must_use]
    pub fn connections(mut self, connections: usize) -> Self {
        self.desired.switch.connections = connections;
        self
    }

    /// Ports the switch can hold at once; 256 unless said.
    #[must_use]
    pub fn max_ports(mut self, ports: usize) -> Self {
        self.desired.switch.max_ports = ports;
        self
    }

    /// The policy. Without one everything is denied.
    #[must_use]
    pub fn policy(mut self, policy: Policy) -> Self {
        self.desired.policy = policy;
        self
    }

    /// A port, in addition to those so far.
    #[must_use]
    pub fn port(mut self, port: PortConfig) -> Self {
        self.desired.ports.push(port);
        self
    }

    /// Everything at once, instead of the methods above.
    #[must_use]
    pub fn desired(mut self, desired: Desired) -> Self {
        self.desired = desired;
        self
    }

    /// Serves the API on a Unix socket, as the daemon does, for the `vswitch` command.
    #[must_use]
    pub fn api(mut self, socket: impl AsRef<Path>) -> Self {
        self.api = Some(socket.as_ref().to_owned());
        self
    }

    /// Records what is decided and changed in a ledger.
    #[must_use]
    pub fn ledger(mut self, ledger: LedgerConfig) -> Self {
        self.desired.switch.ledger = Some(ledger);
        self
    }

    /// Has questions of `ask` rules answered by these.
    #[must_use]
    pub fn decisions(mut self, decisions: Decisions) -> Self {
        self.desired.decisions = Some(decisions);
        self
    }

    /// Has questions of `ask` rules answered by a manager elsewhere.
    #[must_use]
    pub fn manager(mut self, manager: ManagerConfig) -> Self {
        self.desired.switch.manager = Some(manager);
        self
    }

    /// Restarts workloads that say how, by the drivers of this program: a `vswitch` of this version. It is started as
    /// `vswitch restarter`, and runs beside the switch.
    #[must_use]
    pub fn restarter(mut self, program: impl AsRef<Path>) -> Self {
        self.restarter = Some(program.as_ref().to_owned());
        self
    }

    /// Takes later changes from files: what the daemon does. The desired state itself is the
    /// caller's to load first.
    #[must_use]
    pub fn loader(mut self, loader: Box<dyn Loader>) -> Self {
        self.source = Some(loader.policy_source());
        self.loader = Some(loader);
        self
    }

    /// Starts the workers and the control thread and makes the desired state true. When this
    /// returns an error, nothing was started that still runs, and nothing was forwarded.
    ///
    /// # Errors
    /// [`SwitchError`]: what, where, what to do.
    pub fn spawn(self) -> Result<Switch, SwitchError> {
        // First, so that a second daemon on the same socket fails before it touches a port.
        let server = self.api.as_deref();
        let everybody = !self.desired.switch.people.is_empty();
        let server = server.map(|path| Server::bind(path, everybody));
        let server = server.transpose()?;
        // All threads but the workers, which pin themselves.
        let _off = KeptOff::cores(&self.desired.switch.workers).map_err(SwitchError::Control)?;
        let wake = Arc::new(EventFd::new().map_err(SwitchError::Control)?);
        // Before there is anything to be recorded.
        let recorder = Recorder::open(self.desired.switch.ledger.as_ref(), &wake)?;
        let http = self.desired.switch.api.clone();
        let mut control = start(&self.desired.switch, &wake)?.recorded_by(recorder);
        control.deciding.connect(&self.desired.switch, &wake)?;
        control.restarts = Restarts::by(self.restarter);
        let (commands, inbox) = channel();
        let reactor = Reactor::new(control, Arc::clone(&wake), inbox, server, self.loader)
            .map_err(SwitchError::Control)?;
        let source = self.source.unwrap_or_else(|| "program".to_owned());
        let desired = self.desired;
        let (done, applied) = channel();
        let first = Command::Call(Box::new(move |c: &mut Control| {
            // Whoever waits for it is there until it comes.
            let _ = done.send(c.apply(desired, &source));
        }));
        // Before the thread starts: it is the first thing that it does, and nobody is answered by a switch without its ports.
        commands.send(first).map_err(|_gone| SwitchError::Down)?;
        let thread = std::thread::Builder::new()
            .name("control".to_owned())
            .spawn(move || reactor.run())
            .map_err(SwitchError::Control)?;
        let mut switch = Switch {
            commands: Some(commands),
            wake,
            thread: Some(thread),
            http: None,
        };
        applied.recv().map_err(|_gone| SwitchError::Down)??;
        // From the handle: it ends the control thread when it is dropped here, which nobody else may then hold a sender to.
        if let (Some(config), Some(commands)) = (http, switch.commands.clone()) {
            let server = HttpServer::start(&config, commands, Arc::clone(&switch.wake))?;
            switch.http = Some(server);
        }
        Ok(switch)
    }
}

/// Starts the data path, empty and without policy.
fn start(config: &SwitchConfig, wake: &Arc<EventFd>) -> Result<Control, SwitchError> {
    let cores: Vec<Option<usize>> = if config.workers.is_empty() {
        vec![None]
    } else {
        config.workers.iter().copied().map(Some).collect()
    };
    let table = flowtable::Config {
        capacity: config.connections,
        // No worker ever waits for a page, and that there is not enough shows now.
        huge_pages: true,
        ..flowtable::Config::default()
    };
    let shared = Shared::new(cores.len(), config.max_ports, table)?;
    // Once: it was made a line above.
    let _ = shared.control.set(Arc::clone(wake));
    let poll = match config.poll {
        Poll::Adaptive => PollMode::Adaptive,
        Poll::Busy => PollMode::Busy,
    };
    let mut workers = Vec::with_capacity(cores.len());
    for (index, core) in cores.into_iter().enumerate() {
        match worker::spawn(Arc::clone(&shared), WorkerConfig { index, core, poll }) {
            Ok(handle) => workers.push(handle),
            Err(source) => {
                shared.stop();
                for w in workers {
                    w.wake();
                    w.join();
                }
                return Err(SwitchError::Worker {
                    index,
                    core,
                    source,
                });
            }
        }
    }
    Ok(Control::new(
        shared,
        workers,
        config.clone(),
        monotonic_ns(),
    ))
}

/// A running switch. Any number of them can live in one process. Dropping it shuts it down.
///
/// ```
/// use vswitch::control::state::{PortConfig, PortKind, WorkloadConfig};
/// use vswitch::control::Switch;
/// use vswitch::policy::model::{Action, Policy, Rule};
///
/// let port = |name: &str, n: u8| {
///     let mut port = PortConfig::new(name, PortKind::Mem);
///     port.workloads.push(WorkloadConfig {
///         name: name.to_owned(),
///         mac: vec![vswitch::packet::Mac([2, 0, 0, 0, 0, n])],
///         ip: vec![[10, 0, 0, n].into()],
///         ..WorkloadConfig::default()
///     });
///     port
/// };
/// let switch = Switch::builder()
///     .connections(1000)
///     .port(port("a", 1))
///     .port(port("b", 2))
///     .policy(Policy {
///         rules: vec![Rule::new("all", &["any"], &["any"], Action::Allow)],
///         ..Policy::default()
///     })
///     .spawn()?;
/// let mut a = switch.mem_port("a").expect("a mem port, taken once");
/// a.send(&[0; 14]).expect("room in the ring");
/// assert_eq!(switch.status()?.ports, 2);
/// switch.shutdown();
/// # Ok::<(), vswitch::control::SwitchError>(())
/// ```
#[derive(Debug)]
pub struct Switch {
    /// Gone when the switch shall end.
    commands: Option<Sender<Command>>,
    wake: Arc<EventFd>,
    thread: Option<JoinHandle<()>>,
    http: Option<HttpServer>,
}

impl Switch {
    /// Describes a switch.
    #[must_use]
    pub fn builder() -> SwitchBuilder {
        SwitchBuilder::default()
    }

    /// Runs `f` on the control thread and waits for what it returns.
    pub(super) fn call<R: Send + 'static>(
        &self,
        f: impl FnOnce(&mut Control) -> R + Send + 'static,
    ) -> Result<R, SwitchError> {
        let (reply, answer) = channel();
        self.send(Command::Call(Box::new(move |control| {
            // The caller waits for exactly this message.
            let _ = reply.send(f(control));
        })))?;
        answer.recv().map_err(|_gone| SwitchError::Down)
    }

    fn send(&self, command: Command) -> Result<(), SwitchError> {
        let sent = self.commands.as_ref().map(|c| c.send(command));
        let Some(Ok(())) = sent else {
            return Err(SwitchError::Down);
        };
        self.wake.signal();
        Ok(())
    }

    /// Makes a whole desired state true: ports are opened, changed and closed, the policy is
    /// replaced. Returns when every worker enforces it.
    ///
    /// # Errors
    /// Refused: nothing was touched.
    pub fn apply(&self, desired: Desired) -> Result<Applied, SwitchError> {
        Ok(self.call(move |c| c.apply(desired, "program"))??)
    }

    /// Replaces the policy. Returns when every worker enforces it; established connections are
    /// judged again on their next packet.
    ///
    /// # Errors
    /// Refused: nothing was touched.
    pub fn apply_policy(&self, policy: Policy) -> Result<Applied, SwitchError> {
        let now_ns = monotonic_ns();
        Ok(self.call(move |c| c.apply_policy(policy, "program", None, now_ns))??)
    }

    /// Adds a port.
    ///
    /// # Errors
    /// It cannot be opened, or does not go with the others: nothing was touched.
    pub fn add_port(&self, port: PortConfig) -> Result<Applied, SwitchError> {
        Ok(self.call(move |c| c.add_ports(vec![port]))??)
    }

    /// Removes a port; it is closed when no worker knows it any more.
    ///
    /// # Errors
    /// There is none of that name.
    pub fn remove_port(&self, name: &str) -> Result<Applied, SwitchError> {
        let name = name.to_owned();
        Ok(self.call(move |c| c.remove_port(&name))??)
    }

    /// Quarantines a workload and has it restarted; returns while that is under way.
    ///
    /// # Errors
    /// It says nowhere how, is being restarted already, or nobody can do it: see
    /// [`SwitchBuilder::restarter`].
    pub fn restart(&self, workload: &str, reason: &str) -> Result<RestartInfo, SwitchError> {
        let (workload, reason) = (workload.to_owned(), reason.to_owned());
        let now_ns = monotonic_ns();
        let restart = move |c: &mut Control| {
            let why = (&*reason, Evidence::Named(&[]), &[][..]);
            c.restart(&workload, why, "program", now_ns)
        };
        Ok(self.call(restart)??)
    }

    /// Quarantines a workload, but for what `keep` names.
    pub(crate) fn quarantine(
        &self,
        workload: &str,
        keep: &[String],
    ) -> Result<Applied, SwitchError> {
        let (workload, keep) = (workload.to_owned(), keep.to_vec());
        Ok(self.call(move |c| c.quarantine(&workload, &keep, "", "program"))??)
    }

    /// Freezes what is kept of a workload in quarantine.
    pub(crate) fn freeze(&self, workload: &str, max_s: u32) -> Result<Applied, SwitchError> {
        let (workload, now_ns) = (workload.to_owned(), monotonic_ns());
        Ok(self.call(move |c| c.freeze(&workload, max_s, "program", now_ns))??)
    }

    /// Ends a freeze.
    pub(crate) fn thaw(&self, workload: &str) -> Result<Applied, SwitchError> {
        let (workload, now_ns) = (workload.to_owned(), monotonic_ns());
        Ok(self.call(move |c| c.thaw(&workload, false, "program", now_ns))??)
    }

    /// Restarts under way, and the last ones.
    ///
    /// # Errors
    /// The switch has shut down.
    pub fn restarts(&self) -> Result<Vec<RestartInfo>, SwitchError> {
        self.call(|c| c.restart_infos(monotonic_ns()))
    }

    /// The application's end of a mem port. `None` when there is none of that name, it is of
    /// another kind, or its end was taken before.
    #[must_use]
    pub fn mem_port(&self, name: &str) -> Option<MemEnd> {
        let name = name.to_owned();
        self.call(move |c| c.mem_port(&name)).ok()?
    }

    /// The switch as a whole.
    ///
    /// # Errors
    /// The switch has shut down.
    pub fn status(&self) -> Result<Status, SwitchError> {
        self.call(|c| c.status(monotonic_ns()))
    }

    /// Ports with their counters.
    ///
    /// # Errors
    /// The switch has shut down.
    pub fn ports(&self) -> Result<Vec<PortInfo>, SwitchError> {
        self.call(|c| c.port_infos())
    }

    /// The policy in force.
    ///
    /// # Errors
    /// The switch has shut down.
    pub fn policy(&self) -> Result<PolicyView, SwitchError> {
        self.call(|c| c.policy_view(monotonic_ns()))
    }

    /// Live connections, at most `limit`.
    ///
    /// # Errors
    /// The switch has shut down.
    pub fn connections(&self, limit: usize) -> Result<ConnList, SwitchError> {
        Ok(self.call(move |c| c.conns(None, limit, tick(monotonic_ns())))??)
    }

    /// Counters, and whether every frame is accounted for.
    ///
    /// # Errors
    /// The switch has shut down.
    pub fn stats(&self) -> Result<Stats, SwitchError> {
        self.call(|c| c.stats())
    }

    /// Has the workers charge their cycles to the steps of the data path (`step_*_cycles` in
    /// [`Switch::stats`]), or no longer. Costs some 200 cycles a burst.
    ///
    /// # Errors
    /// The switch has shut down.
    pub fn profile(&self, on: bool) -> Result<(), SwitchError> {
        self.call(move |c| c.profile(on))
    }

    /// Every drop reason with its count.
    ///
    /// # Errors
    /// The switch has shut down.
    pub fn drops(&self) -> Result<Vec<DropInfo>, SwitchError> {
        self.call(|c| c.drops())
    }

    /// What would happen to a connection now.
    ///
    /// # Errors
    /// An end that does not exist, a service that cannot be read.
    pub fn explain(&self, query: ExplainQuery) -> Result<Explanation, SwitchError> {
        Ok(self.call(move |c| c.explain(&query, tick(monotonic_ns())))??)
    }

    /// Reads the loader's files again, as if they had changed.
    ///
    /// # Errors
    /// The switch has shut down. Refused files are logged and shown by [`Switch::status`].
    pub fn reload(&self) -> Result<(), SwitchError> {
        self.send(Command::Reload)
    }

    /// Ends workers and control thread and closes every port; returns when all that is done.
    pub fn shutdown(mut self) {
        self.stop();
    }

    fn stop(&mut self) {
        // The control thread ends when nobody can send it anything.
        self.http = None;
        self.commands = None;
        self.wake.signal();
        if let Some(thread) = self.thread.take() {
            // A panic of the control thread was reported by itself.
            let _ = thread.join();
        }
    }
}

impl Drop for Switch {
    fn drop(&mut self) {
        self.stop();
    }
}
