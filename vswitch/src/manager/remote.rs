//! A manager elsewhere: the switch's end of `manager.proto`, on a thread of its own that connects, and connects again.
//!
//! Whoever asks never waits. While nobody is connected no question is taken: the deadline answers, and what still waits is asked
//! when somebody is ([`Remote::sessions`] counts that).

use std::collections::HashSet;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::pki_types::ServerName;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;
use tonic::transport::{Endpoint, Uri};
use tracing::{info, warn};

use super::certificate::{Credentials, CredentialsError, Listed};
use super::question::{Mailbox, Question};
use super::wire::v1::{self, from_manager, from_switch, manager_client::ManagerClient};
use super::wire::{self, ALIVE, LONGEST, PATIENCE, VERSION};

/// Questions on their way to the manager at once: as many as a thread of our own takes (`local`).
const CAPACITY: usize = 4096;
/// How long it is left alone after it was not there: the first time, and at most.
const PAUSE: Duration = Duration::from_millis(100);
const PAUSE_MAX: Duration = Duration::from_secs(30);

/// Which manager, and who asks.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RemoteConfig {
    /// `HOST:PORT`.
    pub address: String,
    /// Ours.
    pub credentials: Credentials,
    /// The name of this switch.
    pub switch: String,
    /// Its run.
    pub boot: u64,
}

enum Out {
    Ask(Box<Question>),
    Cancel(u64),
}

#[derive(Debug, Default)]
struct State {
    connected: AtomicBool,
    sessions: AtomicU64,
    unlisted: AtomicU64,
    malformed: AtomicU64,
    trouble: Mutex<String>,
}

/// How the connection is doing.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Standing {
    /// Somebody is there.
    pub connected: bool,
    /// Why not, or why not before.
    pub trouble: String,
    /// Questions of rules that the manager's certificate does not list.
    pub unlisted: u64,
    /// Messages that made no sense; each ended a connection.
    pub malformed: u64,
}

/// See the module documentation. Dropping it ends the thread.
#[derive(Debug)]
pub struct Remote {
    to: Option<mpsc::Sender<Out>>,
    state: Arc<State>,
    thread: Option<JoinHandle<()>>,
}

impl std::fmt::Debug for Out {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Out::Ask(_) => "Ask",
            Out::Cancel(_) => "Cancel",
        })
    }
}

/// Why nobody is connected.
#[derive(Debug, thiserror::Error)]
enum Trouble {
    #[error(transparent)]
    Credentials(#[from] CredentialsError),
    #[error("{0:?} is no HOST:PORT")]
    Address(String),
    #[error("cannot connect: {0}")]
    Connect(#[source] io::Error),
    #[error("TLS: {0}")]
    Tls(#[source] io::Error),
    #[error(
        "its certificate does not list vswitch://switch/{0}: it may not answer for this switch"
    )]
    Unlisted(String),
    #[error("no answer within ten seconds")]
    Late,
    #[error("{}", chain(.0))]
    Transport(#[from] tonic::transport::Error),
    #[error("it ended the connection: {}", .0.message())]
    Status(#[from] tonic::Status),
    #[error("it closed the connection")]
    Closed,
    #[error("a message that makes no sense: {0}")]
    Malformed(String),
    #[error("it speaks version {0} of the protocol, this switch {VERSION}")]
    Version(u32),
}

/// An error with all that caused it: the outermost says little.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

impl Remote {
    /// Starts the thread, which connects.
    ///
    /// # Errors
    /// The files cannot be used, or there can be no other thread.
    pub fn start(config: RemoteConfig, mailbox: Arc<Mailbox>) -> Result<Self, CredentialsError> {
        // Read again at each connection, as certificates are renewed; here, so that a mistake is found at once.
        config.credentials.client()?;
        let (to, inbox) = mpsc::channel(CAPACITY);
        let state = Arc::new(State::default());
        let shared = Arc::clone(&state);
        let failed = config.credentials.certificate.clone();
        let thread = std::thread::Builder::new()
            .name("manager".to_owned())
            .spawn(move || run(&config, inbox, &mailbox, &shared))
            .map_err(|e| CredentialsError::File {
                path: failed,
                what: format!("there can be no other thread: {e}"),
            })?;
        Ok(Remote {
            to: Some(to),
            state,
            thread: Some(thread),
        })
    }

    /// Takes a question, if somebody is there.
    pub fn ask(&self, question: Question) -> bool {
        self.state.connected.load(Ordering::Relaxed) && self.send(Out::Ask(Box::new(question)))
    }

    /// Nobody waits for an answer to this one any more.
    pub fn cancel(&self, id: u64) {
        if self.state.connected.load(Ordering::Relaxed) {
            // One that finds no room is found out at the deadline.
            self.send(Out::Cancel(id));
        }
    }

    fn send(&self, out: Out) -> bool {
        let to = self.to.as_ref();
        to.is_some_and(|to| to.try_send(out).is_ok())
    }

    /// How often somebody was connected.
    #[must_use]
    pub fn sessions(&self) -> u64 {
        self.state.sessions.load(Ordering::Acquire)
    }

    /// How it is doing.
    #[must_use]
    pub fn standing(&self) -> Standing {
        let state = &self.state;
        let trouble = state.trouble.lock().unwrap_or_else(PoisonError::into_inner);
        Standing {
            connected: state.connected.load(Ordering::Relaxed),
            trouble: trouble.clone(),
            unlisted: state.unlisted.load(Ordering::Relaxed),
            malformed: state.malformed.load(Ordering::Relaxed),
        }
    }
}

impl Drop for Remote {
    fn drop(&mut self) {
        self.to = None;
        if let Some(thread) = self.thread.take() {
            // A panic of that thread was reported by itself.
            let _ = thread.join();
        }
    }
}

fn run(config: &RemoteConfig, mut inbox: mpsc::Receiver<Out>, mailbox: &Mailbox, state: &State) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    match runtime {
        Ok(runtime) => runtime.block_on(keep(config, &mut inbox, mailbox, state)),
        Err(e) => warn!("no manager: {e}"),
    }
}

/// Connects until nobody asks any more.
async fn keep(
    config: &RemoteConfig,
    inbox: &mut mpsc::Receiver<Out>,
    mailbox: &Mailbox,
    state: &State,
) {
    let mut pause = PAUSE;
    loop {
        let opened = tokio::select! {
            opened = timeout(PATIENCE, open(config)) => opened.unwrap_or(Err(Trouble::Late)),
            () = closed(inbox) => return,
        };
        let trouble = match opened {
            Ok(session) => {
                info!(address = config.address, "the manager is connected");
                pause = PAUSE;
                state.connected.store(true, Ordering::Relaxed);
                state.sessions.fetch_add(1, Ordering::Release);
                // There may be something to be asked again.
                mailbox.nudge();
                let end = session.talk(inbox, mailbox, state).await;
                state.connected.store(false, Ordering::Relaxed);
                match end {
                    Ok(()) => return,
                    Err(trouble) => trouble,
                }
            }
            Err(trouble) => trouble,
        };
        if matches!(trouble, Trouble::Malformed(_)) {
            state.malformed.fetch_add(1, Ordering::Relaxed);
        }
        let text = trouble.to_string();
        warn!(address = config.address, "no manager: {text}");
        *state.trouble.lock().unwrap_or_else(PoisonError::into_inner) = text;
        tokio::select! {
            () = sleep(pause) => {}
            () = closed(inbox) => return,
        }
        pause = (pause * 2).min(PAUSE_MAX);
    }
}

/// Comes back when nobody can ask any more. What was asked meanwhile is asked again.
async fn closed(inbox: &mut mpsc::Receiver<Out>) {
    while inbox.recv().await.is_some() {}
}

struct Session {
    to: mpsc::Sender<v1::FromSwitch>,
    from: Streaming<v1::FromManager>,
    listed: Listed,
}

/// A connection with somebody who may answer for this switch.
async fn open(config: &RemoteConfig) -> Result<Session, Trouble> {
    let no_address = || Trouble::Address(config.address.clone());
    let (host, _) = config.address.rsplit_once(':').ok_or_else(no_address)?;
    let name = host.trim_matches(['[', ']']).to_owned();
    let name = ServerName::try_from(name).map_err(|_e| no_address())?;
    let tls = TlsConnector::from(config.credentials.client()?);
    let tcp = TcpStream::connect(&config.address).await;
    let tcp = tcp.map_err(Trouble::Connect)?;
    tcp.set_nodelay(true).map_err(Trouble::Connect)?;
    let stream = tls.connect(name, tcp).await.map_err(Trouble::Tls)?;
    let shown = stream.get_ref().1.peer_certificates();
    let listed = shown.and_then(|shown| shown.first()).map(Listed::of);
    let listed = listed.unwrap_or_default();
    if !listed.has_switch(&config.switch) {
        return Err(Trouble::Unlisted(config.switch.clone()));
    }
    // The connection is there: whoever wants another one is told so.
    let mut stream = Some(TokioIo::new(stream));
    let connector = tower::service_fn(move |_: Uri| {
        let stream = stream
            .take()
            .ok_or_else(|| io::Error::other("the connection ended"));
        async move { stream }
    });
    let origin: Uri = format!("https://{}", config.address)
        .parse()
        .map_err(|_e| no_address())?;
    let channel = Endpoint::from(Uri::from_static("http://manager"))
        .origin(origin)
        .http2_keep_alive_interval(ALIVE)
        .keep_alive_timeout(ALIVE)
        .keep_alive_while_idle(true)
        .connect_with_connector(connector)
        .await?;
    let (to, messages) = mpsc::channel(CAPACITY);
    let hello = v1::Hello {
        versions: vec![VERSION],
        switch: config.switch.clone(),
        boot: config.boot,
    };
    // The channel is new and has room.
    let _ = to.try_send(wire::from_switch(from_switch::Message::Hello(hello)));
    let mut client = ManagerClient::new(channel).max_decoding_message_size(LONGEST);
    let mut from = client
        .decide(ReceiverStream::new(messages))
        .await?
        .into_inner();
    let first = from.message().await?.ok_or(Trouble::Closed)?;
    match first.message {
        Some(from_manager::Message::Welcome(welcome)) if welcome.version == VERSION => {
            Ok(Session { to, from, listed })
        }
        Some(from_manager::Message::Welcome(welcome)) => Err(Trouble::Version(welcome.version)),
        _ => Err(Trouble::Malformed("not a Welcome".to_owned())),
    }
}

impl Session {
    /// Asks and is answered, until nobody asks any more, or the connection ends.
    async fn talk(
        mut self,
        inbox: &mut mpsc::Receiver<Out>,
        mailbox: &Mailbox,
        state: &State,
    ) -> Result<(), Trouble> {
        let mut said = HashSet::new();
        loop {
            tokio::select! {
                out = inbox.recv() => match out {
                    None => return Ok(()),
                    Some(Out::Ask(question)) if !self.listed.has_rule(&question.rule) => {
                        state.unlisted.fetch_add(1, Ordering::Relaxed);
                        // Once: there are no more rules than the policy has.
                        if said.insert(question.rule.clone()) {
                            warn!(
                                rule = question.rule,
                                "the manager is not asked: its certificate does not list vswitch://rule/{}",
                                question.rule
                            );
                        }
                    }
                    Some(Out::Ask(question)) => self.send(wire::ask(&question)),
                    Some(Out::Cancel(id)) => {
                        let cancel = from_switch::Message::Cancel(v1::Cancel { id });
                        self.send(wire::from_switch(cancel));
                    }
                },
                message = self.from.message() => {
                    let message = message.map_err(refused)?.ok_or(Trouble::Closed)?;
                    let Some(from_manager::Message::Answer(answer)) = message.message else {
                        return Err(Trouble::Malformed("not an Answer".to_owned()));
                    };
                    mailbox.put(wire::answer(answer).map_err(Trouble::Malformed)?);
                }
            }
        }
    }

    /// Never waits: a manager that does not take questions is late with its answers.
    fn send(&self, message: v1::FromSwitch) {
        let _ = self.to.try_send(message);
    }
}

/// What cannot be decoded, or is too long, is the manager's mistake; all else is the connection's end.
fn refused(status: tonic::Status) -> Trouble {
    match status.code() {
        tonic::Code::OutOfRange | tonic::Code::Internal | tonic::Code::InvalidArgument => {
            Trouble::Malformed(status.message().to_owned())
        }
        _ => Trouble::Status(status),
    }
}

#[cfg(test)]
mod tests;
