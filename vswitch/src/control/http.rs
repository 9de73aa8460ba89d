//! The API over HTTPS, for tools elsewhere: `POST /v1` takes a request as the Unix socket does, and returns its reply.
//!
//! Runs on a thread of its own, which decides who is there and hands each request to the control thread. Who calls is what his
//! certificate says (`vswitch://person/NAME`), and what he may do is decided like for everybody (`callers`). Connections,
//! handshakes and requests are bounded in number, length and time, so that nobody keeps others out.

use std::collections::HashMap;
use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use http_body_util::{BodyExt, Full, Limited};
use hyper::body::{Body, Bytes, Incoming};
use hyper::header::{ALLOW, CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use serde::de::IgnoredAny;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, oneshot};
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::server::TlsStream;
use tracing::{debug, info, warn};

use super::api::{ApiError, ErrorCode, MAX_REQUEST_BYTES, Reply};
use super::reactor::Command;
use super::state::ApiConfig;
use crate::manager::certificate::{Credentials, CredentialsError, Listed};
use crate::sys::eventfd::EventFd;

/// Connections at once, and of one person, as at the Unix socket (`server`).
const MAX_CLIENTS: usize = 64;
const MAX_OF_ONE: usize = 16;
/// How long a handshake may take, a request may take to arrive, and a client may say nothing.
const PATIENCE: Duration = Duration::from_secs(30);

/// Why it cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum HttpError {
    /// Its files.
    #[error(transparent)]
    Credentials(#[from] CredentialsError),
    /// Its place.
    #[error("cannot listen on {address}: {source}; choose another `listen` under `[api]`")]
    Listen {
        /// Where.
        address: SocketAddr,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// There can be no other thread.
    #[error("cannot start a thread: {0}")]
    Thread(#[source] io::Error),
}

/// See the module documentation. Dropping it ends the thread.
#[derive(Debug)]
pub(super) struct HttpServer {
    end: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl HttpServer {
    /// Serves from now on.
    pub(super) fn start(
        config: &ApiConfig,
        commands: Sender<Command>,
        wake: Arc<EventFd>,
    ) -> Result<Self, HttpError> {
        let address = config.listen;
        let listen = |source| HttpError::Listen { address, source };
        let tls = Credentials::from(&config.tls).server()?;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(HttpError::Thread)?;
        let listener = runtime
            .block_on(TcpListener::bind(address))
            .map_err(listen)?;
        info!(%address, "the API is served over HTTPS");
        let (end, ended) = oneshot::channel();
        let host = Arc::new(Host {
            tls,
            commands,
            wake,
            handshakes: Arc::new(Semaphore::new(MAX_CLIENTS)),
            clients: Mutex::new(HashMap::new()),
        });
        let serve = move || {
            runtime.block_on(async {
                tokio::select! {
                    () = accept(&listener, &host) => {}
                    // Sent, or the switch is gone.
                    _ = ended => {}
                }
            });
        };
        let thread = std::thread::Builder::new()
            .name("http".to_owned())
            .spawn(serve)
            .map_err(HttpError::Thread)?;
        Ok(HttpServer {
            end: Some(end),
            thread: Some(thread),
        })
    }
}

impl Drop for HttpServer {
    fn drop(&mut self) {
        self.end = None;
        if let Some(thread) = self.thread.take() {
            // A panic of that thread was reported by itself.
            let _ = thread.join();
        }
    }
}

/// What all connections share.
#[derive(Debug)]
struct Host {
    tls: Arc<ServerConfig>,
    commands: Sender<Command>,
    wake: Arc<EventFd>,
    /// Places of those whom nobody knows yet.
    handshakes: Arc<Semaphore>,
    /// Connections, by person.
    clients: Mutex<HashMap<String, usize>>,
}

async fn accept(listener: &TcpListener, host: &Arc<Host>) {
    loop {
        let Ok(place) = Arc::clone(&host.handshakes).acquire_owned().await else {
            return;
        };
        let (tcp, from) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(e) => {
                // The connection's trouble, or there are no more descriptors: those who are there go on, and end.
                warn!("HTTPS: {e}");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let host = Arc::clone(host);
        tokio::spawn(async move {
            let tls = TlsAcceptor::from(Arc::clone(&host.tls));
            let stream = timeout(PATIENCE, tls.accept(tcp)).await;
            drop(place);
            match stream {
                Ok(Ok(stream)) => host.serve(stream, from).await,
                Ok(Err(e)) => debug!(%from, "HTTPS client refused: {e}"),
                Err(_late) => debug!(%from, "HTTPS client refused: no handshake in time"),
            }
        });
    }
}

/// A person's place among the connections.
struct Place<'a> {
    host: &'a Host,
    person: String,
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let clients = self.host.clients.lock();
        let mut clients = clients.unwrap_or_else(PoisonError::into_inner);
        if let Some(his) = clients.get_mut(&self.person) {
            *his -= 1;
            if *his == 0 {
                clients.remove(&self.person);
            }
        }
    }
}

impl Host {
    fn place(&self, person: &str) -> Option<Place<'_>> {
        let clients = self.clients.lock();
        let mut clients = clients.unwrap_or_else(PoisonError::into_inner);
        let all: usize = clients.values().sum();
        let his = clients.get(person).copied().unwrap_or_default();
        if all >= MAX_CLIENTS || his >= MAX_OF_ONE {
            warn!(
                person,
                "HTTPS client refused: {all} are connected, {his} of this person"
            );
            return None;
        }
        clients.insert(person.to_owned(), his + 1);
        Some(Place {
            host: self,
            person: person.to_owned(),
        })
    }

    /// Answers what comes, until the client goes away.
    async fn serve(&self, stream: TlsStream<TcpStream>, from: SocketAddr) {
        let shown = stream.get_ref().1.peer_certificates();
        let listed = shown.and_then(|shown| shown.first()).map(Listed::of);
        let Some(person) = listed.and_then(|listed| listed.person().map(str::to_owned)) else {
            warn!(%from, "HTTPS client refused: its certificate does not list exactly one vswitch://person/NAME");
            return;
        };
        let Some(place) = self.place(&person) else {
            return;
        };
        let service = service_fn(|request| async {
            Ok::<_, Infallible>(self.answer(&place.person, request).await)
        });
        let served = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(PATIENCE)
            .serve_connection(TokioIo::new(stream), service)
            .await;
        if let Err(e) = served {
            debug!(%from, person, "HTTPS client: {e}");
        }
    }

    async fn answer(&self, person: &str, request: Request<Incoming>) -> Response<Full<Bytes>> {
        if request.uri().path() != "/v1" {
            return said(StatusCode::NOT_FOUND, "there is /v1 only");
        }
        if request.method() != Method::POST {
            let mut no = said(StatusCode::METHOD_NOT_ALLOWED, "POST a request to /v1");
            let post = HeaderValue::from_static("POST");
            no.headers_mut().insert(ALLOW, post);
            return no;
        }
        let body = request.into_body();
        let too_long = || {
            let text = format!("a request has at most {MAX_REQUEST_BYTES} bytes");
            said(StatusCode::PAYLOAD_TOO_LARGE, &text)
        };
        if body.size_hint().lower() > MAX_REQUEST_BYTES as u64 {
            return too_long();
        }
        let body = Limited::new(body, MAX_REQUEST_BYTES).collect();
        let body = match timeout(PATIENCE, body).await {
            Ok(Ok(body)) => body.to_bytes(),
            // Too long, or the client is gone.
            Ok(Err(_)) => return too_long(),
            Err(_late) => return said(StatusCode::REQUEST_TIMEOUT, "the request took too long"),
        };
        let Ok(text) = String::from_utf8(body.into()) else {
            return said(StatusCode::BAD_REQUEST, "not a request: it is not UTF-8");
        };
        let (to, reply) = oneshot::channel();
        let command = Command::Request {
            person: person.to_owned(),
            text,
            reply: to,
        };
        if self.commands.send(command).is_ok() {
            self.wake.signal();
            if let Ok(line) = reply.await {
                return replied(status(&line), line);
            }
        }
        said(StatusCode::SERVICE_UNAVAILABLE, "the switch shuts down")
    }
}

/// The status code of a reply.
fn status(line: &str) -> StatusCode {
    match serde_json::from_str::<Reply<IgnoredAny>>(line) {
        Ok(Reply::Ok(_)) => StatusCode::OK,
        Ok(Reply::Error(e)) => match e.code {
            ErrorCode::Usage | ErrorCode::Version => StatusCode::BAD_REQUEST,
            ErrorCode::Forbidden => StatusCode::FORBIDDEN,
            ErrorCode::Refused => StatusCode::CONFLICT,
        },
        Err(_) => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

fn replied(status: StatusCode, mut line: String) -> Response<Full<Bytes>> {
    line.push('\n');
    let mut response = Response::new(Full::new(line.into()));
    *response.status_mut() = status;
    let json = HeaderValue::from_static("application/json");
    response.headers_mut().insert(CONTENT_TYPE, json);
    response
}

/// A reply that no request led to.
fn said(status: StatusCode, text: &str) -> Response<Full<Bytes>> {
    let error = Reply::<()>::Error(ApiError::new(ErrorCode::Usage, text.to_owned()));
    // Plain values with string keys: serialising them cannot fail.
    replied(status, serde_json::to_string(&error).unwrap_or_default())
}
