//! Docker, by the Engine API (HTTP over its Unix socket, <https://docs.docker.com/reference/api/engine/version/v1.41/>): a
//! container is made anew from an image whose digest is declared.
//!
//! Who is believed is the Docker daemon: that an image has the id it says (the SHA-256 of the image's configuration, which holds
//! those of its layers), and that a container is made of it. The new container has the old one's configuration, and its volumes;
//! what the old one wrote elsewhere is gone with it.

use std::io;
use std::path::Path;
use std::time::Duration;

use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Bytes;
use hyper::client::conn::http1::{self, SendRequest};
use hyper::header::{CONTENT_TYPE, HOST};
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use serde_json::{Map, Value, json};
use tokio::net::UnixStream;
use tokio::time::{sleep, timeout};

use super::course::Course;
use super::job::Done;

/// The oldest version of the API that has all of this: Docker 20.10, 2020. Newer daemons speak it, too.
const VERSION: &str = "v1.41";
/// Longest answer: an inspected container is some ten thousand bytes.
const ANSWER_MAX: usize = 4 << 20;
/// How long the old container gets to end in order, seconds: it may hold data volumes. Docker's own default.
const STOP_S: u32 = 10;
/// How often a started container is looked at.
const LOOK: Duration = Duration::from_millis(50);
/// How long it must have run: one that ends at once does not run.
const RUNS: Duration = Duration::from_secs(1);

/// See the module documentation.
pub(super) fn restart(
    socket: &Path,
    (container, image): (&str, &str),
    course: &Course<'_>,
) -> Result<Done, String> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|e| format!("cannot talk to Docker: {e}"))?;
    let left = course.left()?;
    let recreated = recreate(socket, container, image, course);
    let done = runtime.block_on(async { timeout(left, recreated).await });
    done.unwrap_or_else(|_late| Err(format!("Docker: {}", course.too_long())))
}

/// Docker's end of a connection.
struct Engine {
    send: SendRequest<Full<Bytes>>,
}

impl Engine {
    async fn connect(socket: &Path) -> Result<Self, String> {
        let cannot =
            |e: &dyn std::fmt::Display| format!("cannot reach Docker at {}: {e}", socket.display());
        let stream = UnixStream::connect(socket)
            .await
            .map_err(|e: io::Error| cannot(&e))?;
        let (send, connection) = http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|e| cannot(&e))?;
        // It ends with `send`; what goes wrong is told there.
        tokio::spawn(connection);
        Ok(Engine { send })
    }

    /// Asks for something. What is not there is `None`.
    async fn ask(
        &mut self,
        method: Method,
        path: &str,
        body: Option<&Value>,
    ) -> Result<Option<Value>, String> {
        let what = format!("Docker, {method} {path}");
        let fails = |e: &dyn std::fmt::Display| format!("{what}: {e}");
        let text = body.map_or_else(Vec::new, |body| body.to_string().into_bytes());
        let request = Request::builder()
            .method(method)
            .uri(format!("/{VERSION}{path}"))
            .header(HOST, "docker")
            .header(CONTENT_TYPE, "application/json")
            .body(Full::new(Bytes::from(text)))
            .map_err(|e| fails(&e))?;
        self.send.ready().await.map_err(|e| fails(&e))?;
        let answer = self
            .send
            .send_request(request)
            .await
            .map_err(|e| fails(&e))?;
        let status = answer.status();
        let body = Limited::new(answer.into_body(), ANSWER_MAX).collect().await;
        let body = body.map_err(|e| fails(&e))?.to_bytes();
        // Some have nothing to say.
        let said: Value = serde_json::from_slice(&body).unwrap_or(Value::Null);
        match status {
            StatusCode::NOT_FOUND => Ok(None),
            // It has the state that it should have.
            StatusCode::NOT_MODIFIED => Ok(Some(Value::Null)),
            status if status.is_success() => Ok(Some(said)),
            status => {
                let why = said["message"].as_str().unwrap_or("no reason");
                Err(format!("{what}: {status}, {why:?}"))
            }
        }
    }

    /// The same of what must be there.
    async fn must(
        &mut self,
        method: Method,
        path: &str,
        body: Option<&Value>,
    ) -> Result<Value, String> {
        let what = format!("Docker, {method} {path}");
        let answer = self.ask(method, path, body).await?;
        answer.ok_or_else(|| format!("{what}: there is none"))
    }
}

/// The id of the image that is declared, if Docker has it.
async fn verified(engine: &mut Engine, image: &str) -> Result<String, String> {
    let path = format!("/images/{image}/json");
    let Some(found) = engine.ask(Method::GET, &path, None).await? else {
        return Err(format!(
            "Docker has no image {image}; pull it before it is needed"
        ));
    };
    let id = found["Id"].as_str().unwrap_or_default().to_owned();
    let is_declared = if image.starts_with("sha256:") {
        id == image
    } else {
        let digests = found["RepoDigests"].as_array();
        digests.is_some_and(|all| all.iter().any(|digest| digest == image))
    };
    if is_declared && is_id(&id) {
        return Ok(id);
    }
    Err(format!(
        "the image {image} is not the declared one: Docker says that it is {id:?}"
    ))
}

/// Whether this is an id and nothing else: it becomes part of what we ask for.
fn is_id(text: &str) -> bool {
    let digits = text.strip_prefix("sha256:").unwrap_or(text);
    digits.len() == 64 && digits.bytes().all(|b| b.is_ascii_hexdigit())
}

async fn recreate(
    socket: &Path,
    container: &str,
    image: &str,
    course: &Course<'_>,
) -> Result<Done, String> {
    let mut engine = Engine::connect(socket).await?;
    let id = verified(&mut engine, image).await?;
    course.step("the image is verified");
    let old = engine
        .must(Method::GET, &format!("/containers/{container}/json"), None)
        .await?;
    let old_id = old["Id"].as_str().unwrap_or_default().to_owned();
    if !is_id(&old_id) {
        return Err("Docker names the container by what is no id".to_owned());
    }
    let at_old = format!("/containers/{old_id}");
    engine
        .must(Method::POST, &format!("{at_old}/stop?t={STOP_S}"), None)
        .await?;
    course.step("the old container has ended");
    // Out of the way, but there should the new one not come to be.
    let aside = format!(
        "{container}-before-{}",
        old_id.get(..12).unwrap_or_default()
    );
    let rename = format!("{at_old}/rename?name={aside}");
    // One that was started with `--rm` is gone already.
    let is_there = engine.ask(Method::POST, &rename, None).await?.is_some();
    let config = configuration(&old, &old_id, &id);
    let path = format!("/containers/create?name={container}");
    let made = engine.must(Method::POST, &path, Some(&config)).await;
    let new_id = made.map(|made| made["Id"].as_str().unwrap_or_default().to_owned());
    let new_id = new_id.and_then(|new_id| {
        let text = "Docker made a container that has no id".to_owned();
        if is_id(&new_id) {
            Ok(new_id)
        } else {
            Err(text)
        }
    });
    let new_id = match new_id {
        Ok(new_id) => new_id,
        Err(why) => {
            let back = format!("{at_old}/rename?name={container}");
            // Whether that works or not, this is why.
            let _ = engine.must(Method::POST, &back, None).await;
            return Err(format!("{why}; the old container is stopped"));
        }
    };
    // Its anonymous volumes stay, for whoever wants to know what happened.
    if is_there {
        engine.must(Method::DELETE, &at_old, None).await?;
    }
    course.step("a new container was made");
    let at_new = format!("/containers/{new_id}");
    engine
        .must(Method::POST, &format!("{at_new}/start"), None)
        .await?;
    runs(&mut engine, &at_new, &id).await?;
    course.step("the container runs");
    Ok(Done {
        verified: Some(image.to_owned()),
        note: "it has the old container's configuration and volumes".to_owned(),
    })
}

/// Waits until a container of this image has run for a while.
async fn runs(engine: &mut Engine, at: &str, image: &str) -> Result<(), String> {
    let mut waited = Duration::ZERO;
    loop {
        let now = engine
            .must(Method::GET, &format!("{at}/json"), None)
            .await?;
        if now["Image"] != image {
            return Err("Docker made the container of another image".to_owned());
        }
        if now["State"]["Running"] != true {
            let code = &now["State"]["ExitCode"];
            return Err(format!("the new container has ended, exit code {code}"));
        }
        if waited >= RUNS {
            return Ok(());
        }
        sleep(LOOK).await;
        waited += LOOK;
    }
}

/// What the new container is made of: the old one's configuration, with the image by its id.
fn configuration(old: &Value, old_id: &str, image: &str) -> Value {
    let mut config = old["Config"].as_object().cloned().unwrap_or_default();
    config.insert("Image".to_owned(), image.into());
    // Which is the default, of the container that it was; or another one's, whose network it shares.
    let mode = old["HostConfig"]["NetworkMode"].as_str();
    let shares = mode.is_some_and(|mode| mode.starts_with("container:"));
    let hostname = config.get("Hostname").and_then(Value::as_str);
    if shares || hostname.is_some_and(|name| old_id.starts_with(name)) {
        config.remove("Hostname");
    }
    config.insert("HostConfig".to_owned(), old["HostConfig"].clone());
    let networks = old["NetworkSettings"]["Networks"].as_object();
    let endpoints = networks.into_iter().flatten().map(|(name, endpoint)| {
        // What somebody said of it, not what became of it.
        let said = ["IPAMConfig", "Links", "Aliases", "DriverOpts"];
        let said = said.map(|key| (key.to_owned(), endpoint[key].clone()));
        let mut said: Map<String, Value> = said.into_iter().filter(|(_, v)| !v.is_null()).collect();
        if let Some(Value::Array(aliases)) = said.get_mut("Aliases") {
            aliases.retain(|alias| alias.as_str().is_some_and(|a| !old_id.starts_with(a)));
        }
        (name.clone(), Value::Object(said))
    });
    let endpoints: Map<String, Value> = endpoints.collect();
    config.insert(
        "NetworkingConfig".to_owned(),
        json!({ "EndpointsConfig": endpoints }),
    );
    Value::Object(config)
}
