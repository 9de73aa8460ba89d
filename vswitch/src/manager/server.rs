//! `vswitch manager`: answers the questions of many switches by one set of rules.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::server::TcpIncoming;
use tonic::transport::{Certificate, Identity, Server, ServerTlsConfig};
use tonic::{Request, Response, Status, Streaming};
use tracing::{info, warn};

use super::certificate::{Credentials, CredentialsError, Listed};
use super::question::Answer;
use super::rules::{Common, Rules};
use super::wire::v1::manager_server::{Manager, ManagerServer};
use super::wire::v1::{self, from_manager, from_switch};
use super::wire::{self, ALIVE, LONGEST, PATIENCE, VERSION};

/// Answers that wait for a switch to read them; then its questions wait.
const CAPACITY: usize = 1024;

/// Rules that can be exchanged while they are followed.
#[derive(Clone, Debug)]
pub struct Current(Arc<Mutex<Arc<Rules>>>);

impl Current {
    /// These, for now.
    #[must_use]
    pub fn new(rules: Rules) -> Self {
        Current(Arc::new(Mutex::new(Arc::new(rules))))
    }

    /// Others from now on.
    pub fn replace(&self, rules: Rules) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Arc::new(rules);
    }

    /// Those of now.
    #[must_use]
    pub fn get(&self) -> Arc<Rules> {
        Arc::clone(&self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Why it does not serve.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// The files cannot be used.
    #[error(transparent)]
    Credentials(#[from] CredentialsError),
    /// Nobody can be served there.
    #[error("cannot listen on {address}: {source}; choose another address with --listen")]
    Listen {
        /// Where.
        address: SocketAddr,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The system refused something.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// Serving ended.
    #[error("serving ended: {0}")]
    Transport(#[from] tonic::transport::Error),
}

fn read(path: &std::path::Path) -> Result<Vec<u8>, CredentialsError> {
    std::fs::read(path).map_err(|e| CredentialsError::File {
        path: path.to_owned(),
        what: e.to_string(),
    })
}

/// Serves until the process ends. `ready` hears where.
///
/// # Errors
/// [`ServerError`]: what, where, what to do.
pub fn serve(
    address: SocketAddr,
    credentials: &Credentials,
    rules: Current,
    ready: impl FnOnce(SocketAddr),
) -> Result<(), ServerError> {
    serve_by(address, credentials, Decider { rules }, ready)
}

/// Serves with this manager.
pub(super) fn serve_by(
    address: SocketAddr,
    credentials: &Credentials,
    manager: impl Manager,
    ready: impl FnOnce(SocketAddr),
) -> Result<(), ServerError> {
    // What a client could not use, a server can't either, and this says what is wrong.
    credentials.client()?;
    let identity = Identity::from_pem(read(&credentials.certificate)?, read(&credentials.key)?);
    let tls = ServerTlsConfig::new()
        .identity(identity)
        .client_ca_root(Certificate::from_pem(read(&credentials.ca)?))
        .timeout(PATIENCE);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let listen = |source| ServerError::Listen { address, source };
        let incoming = TcpIncoming::bind(address)
            .map_err(listen)?
            .with_nodelay(Some(true));
        ready(incoming.local_addr()?);
        let service = ManagerServer::new(manager).max_decoding_message_size(LONGEST);
        let server = Server::builder()
            .tls_config(tls)?
            .http2_keepalive_interval(Some(ALIVE))
            .http2_keepalive_timeout(Some(ALIVE))
            // A switch has one.
            .max_concurrent_streams(4)
            .add_service(service);
        Ok(server.serve_with_incoming(incoming).await?)
    })
}

#[derive(Debug)]
struct Decider {
    rules: Current,
}

#[tonic::async_trait]
impl Manager for Decider {
    type DecideStream = Pin<Box<dyn Stream<Item = Result<v1::FromManager, Status>> + Send>>;

    async fn decide(
        &self,
        request: Request<Streaming<v1::FromSwitch>>,
    ) -> Result<Response<Self::DecideStream>, Status> {
        let certificates = request.peer_certs();
        let shown = certificates.as_ref().and_then(|all| all.first());
        let session = Session {
            listed: shown.map(Listed::of).unwrap_or_default(),
            rules: self.rules.clone(),
            boot: 0,
        };
        let (to, answers) = mpsc::channel(CAPACITY);
        let questions = request.into_inner();
        tokio::spawn(session.run(questions, to));
        Ok(Response::new(Box::pin(ReceiverStream::new(answers))))
    }
}

struct Session {
    listed: Listed,
    rules: Current,
    boot: u64,
}

type Answers = mpsc::Sender<Result<v1::FromManager, Status>>;

impl Session {
    async fn run(mut self, mut questions: Streaming<v1::FromSwitch>, to: Answers) {
        let Err(status) = self.answer(&mut questions, &to).await else {
            return;
        };
        warn!("a switch was refused: {}", status.message());
        // It may be gone.
        let _ = to.send(Err(status)).await;
    }

    async fn answer(
        &mut self,
        questions: &mut Streaming<v1::FromSwitch>,
        to: &Answers,
    ) -> Result<(), Status> {
        let hello = timeout(PATIENCE, questions.message()).await;
        let hello = hello.map_err(|_late| Status::deadline_exceeded("no Hello in ten seconds"))?;
        let switch = self.hello(hello?)?;
        let welcome = v1::Welcome { version: VERSION };
        let welcome = wire::from_manager(from_manager::Message::Welcome(welcome));
        if to.send(Ok(welcome)).await.is_err() {
            return Ok(());
        }
        info!(switch, "a switch asks");
        let mut common = Common::at(SystemTime::now());
        while let Some(message) = questions.message().await? {
            let ask = match message.message {
                Some(from_switch::Message::Ask(ask)) => ask,
                // It is answered before this arrives.
                Some(from_switch::Message::Cancel(_)) => continue,
                _ => return Err(Status::invalid_argument("neither an Ask nor a Cancel")),
            };
            let question = wire::question(ask).map_err(Status::invalid_argument)?;
            common.advance(SystemTime::now());
            let verdict = self.rules.get().decide(&question, &mut common);
            let answer = Answer {
                boot: self.boot,
                id: question.id,
                yes: verdict.yes,
                ttl_s: verdict.ttl_s,
                once: verdict.once,
                reason: verdict.reason,
            };
            if to.send(Ok(wire::reply(&answer))).await.is_err() {
                break;
            }
        }
        info!(switch, "a switch has gone");
        Ok(())
    }

    /// The name of a switch that may be served.
    fn hello(&mut self, first: Option<v1::FromSwitch>) -> Result<String, Status> {
        let first = first.and_then(|first| first.message);
        let Some(from_switch::Message::Hello(hello)) = first else {
            return Err(Status::invalid_argument("the first message is no Hello"));
        };
        if !hello.versions.contains(&VERSION) {
            return Err(Status::failed_precondition(format!(
                "the switch speaks versions {:?} of the protocol, this manager {VERSION}",
                hello.versions
            )));
        }
        if !self.listed.has_switch(&hello.switch) {
            return Err(Status::permission_denied(format!(
                "its certificate does not list vswitch://switch/{}",
                hello.switch
            )));
        }
        self.boot = hello.boot;
        Ok(hello.switch)
    }
}
