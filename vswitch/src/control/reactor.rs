//! The control thread: one epoll over commands, API clients, ports' control sockets and watched
//! files, and the timers between them. Everything that changes the switch happens here, one thing
//! at a time.

use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, TryRecvError, channel};

use tracing::{error, info, warn};

use super::api::Reply;
use super::apply::Control;
use super::callers::Caller;
use super::elsewhere::Elsewhere;
use super::events;
use super::loader::Loader;
use super::requests;
#[cfg(feature = "manager")]
use super::server::Answer;
use super::server::Server;
use crate::port::PortId;
use crate::sys::epoll::{Epoll, Event, Interest};
use crate::sys::eventfd::EventFd;
use crate::sys::inotify::{FileWatch, Seen};
use crate::sys::time::monotonic_ns;

/// Something to be done on the control thread.
pub(super) enum Command {
    /// This.
    Call(Box<dyn FnOnce(&mut Control) + Send>),
    /// Read the files again.
    Reload,
    /// A person's request, which came over HTTPS.
    #[cfg(feature = "manager")]
    Request {
        /// As his certificate names him.
        person: String,
        /// The request line.
        text: String,
        /// Where the reply line goes.
        reply: tokio::sync::oneshot::Sender<String>,
    },
}

/// A client's number, and its answer.
type Done = (u64, String);

/// Tokens: what a descriptor is, in the high half; which one, in the low half.
const WAKE: u64 = 0;
const LISTENER: u64 = 1 << 32;
const CLIENT: u64 = 2 << 32;
const FILES: u64 = 3 << 32;
const PORT: u64 = 4 << 32;
const KIND: u64 = !0 << 32;

/// How often events are taken while somebody watches: what a person notices.
const WATCHED_NS: u64 = 50_000_000;
/// How often otherwise: rings must not overflow with what should be logged, and idle must be cheap.
const UNWATCHED_NS: u64 = 500_000_000;
/// A file is read this long after its last change, so that two files saved together are one change.
const SAVED_NS: u64 = 100_000_000;

/// See the module documentation.
pub(super) struct Reactor {
    control: Control,
    epoll: Epoll,
    wake: Arc<EventFd>,
    commands: Receiver<Command>,
    server: Option<Server>,
    loader: Option<Box<dyn Loader>>,
    files: Option<FileWatch>,
    /// What `files` watches.
    watched: Vec<PathBuf>,
    /// When the changed files are read.
    reload_at_ns: Option<u64>,
    events_at_ns: u64,
    /// A port may have been opened, closed or renewed since their descriptors were registered: questions and answers do not,
    /// and there may be many.
    ports_changed: bool,
    elsewhere: Elsewhere,
    /// What was worked out for which client.
    done: (Sender<Done>, Receiver<Done>),
}

impl Reactor {
    /// Joins the parts. `loader` is watched when it is there.
    pub(super) fn new(
        control: Control,
        wake: Arc<EventFd>,
        commands: Receiver<Command>,
        server: Option<Server>,
        loader: Option<Box<dyn Loader>>,
    ) -> std::io::Result<Self> {
        let epoll = Epoll::new()?;
        epoll.add(wake.fd(), WAKE, Interest::READ)?;
        if let Some(server) = &server {
            epoll.add(server.fd(), LISTENER, Interest::READ)?;
        }
        let watched = loader.as_ref().map_or_else(Vec::new, |l| l.files());
        let files = match &loader {
            Some(_) => Some(watch(&watched, &epoll)?),
            None => None,
        };
        Ok(Reactor {
            control,
            epoll,
            wake,
            commands,
            server,
            loader,
            files,
            watched,
            reload_at_ns: None,
            events_at_ns: 0,
            ports_changed: false,
            elsewhere: Elsewhere::default(),
            done: channel(),
        })
    }

    /// Runs until every [`super::switch::Switch`] handle is gone; first what was sent already.
    pub(super) fn run(mut self) {
        let mut ready = [Event::EMPTY; 64];
        let mut runs = self.run_commands();
        self.register_ports();
        while runs {
            let timeout = self.timeout_ms(monotonic_ns());
            let n = match self.epoll.wait(&mut ready, timeout) {
                Ok(n) => n,
                Err(e) => {
                    error!("control thread: epoll: {e}");
                    break;
                }
            };
            let now_ns = monotonic_ns();
            for event in ready.iter().take(n) {
                self.handle(event, now_ns);
            }
            self.ports_changed |= ready.iter().take(n).any(|e| e.token() != WAKE);
            runs = self.run_commands();
            if runs {
                self.timers(monotonic_ns());
            }
            if std::mem::take(&mut self.ports_changed) {
                self.register_ports();
            }
        }
        self.control.shutdown();
    }

    fn timeout_ms(&self, now_ns: u64) -> i32 {
        let deadlines = [
            Some(self.events_at_ns),
            self.reload_at_ns,
            self.control.next_deadline_ns(),
        ];
        let next = deadlines.into_iter().flatten().min().unwrap_or(now_ns);
        i32::try_from(next.saturating_sub(now_ns).div_ceil(1_000_000)).unwrap_or(i32::MAX)
    }

    fn handle(&mut self, event: &Event, now_ns: u64) {
        let token = event.token();
        match token & KIND {
            WAKE => {
                self.wake.drain();
                while let Ok((id, line)) = self.done.1.try_recv() {
                    if let Some(server) = &mut self.server {
                        server.done(id, &line);
                    }
                    self.serve(id, now_ns);
                }
            }
            LISTENER => {
                if let Some(server) = &mut self.server {
                    server.accept(&self.epoll, |id| CLIENT | (id & !KIND), now_ns);
                }
            }
            CLIENT => self.serve(token & !KIND, now_ns),
            FILES => {
                self.look_at_files(now_ns);
            }
            _ => {
                let id = u16::try_from(token & !KIND).map(PortId);
                self.control
                    .port_ready(id.unwrap_or(PortId(u16::MAX)), now_ns);
            }
        }
    }

    /// Serves a client that has something to say, or can be told something.
    fn serve(&mut self, id: u64, now_ns: u64) {
        let (control, loader) = (&mut self.control, self.loader.as_deref());
        let Some(server) = &mut self.server else {
            return;
        };
        // It may ask for a change.
        self.ports_changed = true;
        let work = server.ready(id, now_ns, &self.epoll, CLIENT | id, |who, line| {
            let caller = Caller::of(who.uid, &control.desired.switch.people);
            control.recorder.by(&caller.name);
            requests::answer(control, loader, &caller, line, now_ns)
        });
        let Some(work) = work else { return };
        let (done, wake) = (self.done.0.clone(), Arc::clone(&self.wake));
        let job = move || {
            // Nobody is there to take it when the switch ends.
            let _ = done.send((id, work()));
            wake.signal();
        };
        if let Err(e) = self.elsewhere.take(Box::new(job)) {
            warn!("API client dropped: nobody works out its answer: {e}");
            server.give_up(id);
        }
    }

    /// Runs what was sent to us; `false` when nobody can send any more.
    fn run_commands(&mut self) -> bool {
        loop {
            match self.commands.try_recv() {
                Ok(Command::Call(f)) => {
                    self.ports_changed = true;
                    self.control.recorder.by("program");
                    f(&mut self.control);
                }
                Ok(Command::Reload) => self.reload_at_ns = Some(0),
                #[cfg(feature = "manager")]
                Ok(Command::Request {
                    person,
                    text,
                    reply,
                }) => {
                    let caller = Caller::named(&person, &self.control.desired.switch.people);
                    let reply = move |line| {
                        // Whoever is gone needs none.
                        let _ = reply.send(line);
                    };
                    self.request(&caller, &text, reply);
                }
                Err(TryRecvError::Empty) => return true,
                Err(TryRecvError::Disconnected) => return false,
            }
        }
    }

    /// Says whether nothing happened to the files since the last look; else they are read when they
    /// are whole.
    fn look_at_files(&mut self, now_ns: u64) -> bool {
        let seen = self.files.as_mut().map_or(Seen::Nothing, FileWatch::look);
        match seen {
            Seen::Nothing => return true,
            Seen::Saved => self.reload_at_ns = Some(now_ns + SAVED_NS),
            // Its end will be seen, too.
            Seen::Writing => self.reload_at_ns = None,
        }
        false
    }

    /// Replies to a request that came over HTTPS.
    #[cfg(feature = "manager")]
    fn request(
        &mut self,
        caller: &Caller,
        text: &str,
        reply: impl FnOnce(String) + Send + 'static,
    ) {
        self.ports_changed = true;
        let control = &mut self.control;
        control.recorder.by(&caller.name);
        let loader = self.loader.as_deref();
        match requests::answer(control, loader, caller, text, monotonic_ns()) {
            Answer::Reply(line) => reply(line),
            Answer::Stream(_) => reply(requests::no_stream()),
            Answer::Later(work) => {
                let job = Box::new(move || reply(work()));
                if let Err(e) = self.elsewhere.take(job) {
                    warn!("a request is not answered: nobody works it out: {e}");
                }
            }
        }
    }

    fn timers(&mut self, now_ns: u64) {
        self.control.recorder.by("timer");
        let due = self.control.ports_deadline_ns();
        self.ports_changed |= due.is_some_and(|at| at <= now_ns);
        self.control.tick(now_ns);
        if self.reload_at_ns.is_some_and(|at| at <= now_ns) {
            self.reload_at_ns = None;
            let loaded = self.loader.as_ref().map(|loader| loader.load());
            self.ports_changed = true;
            // What was read while somebody wrote may be half of a policy, or an empty one.
            if let Some(loaded) = loaded
                && self.look_at_files(now_ns)
                && let Some(loader) = &self.loader
            {
                info!("configuration files changed");
                self.control.recorder.by("files");
                requests::files_changed(&mut self.control, loader.as_ref(), loaded);
                if self.watched != loader.files() {
                    self.watched = loader.files();
                    // Dropping the old watch takes it out of the epoll set.
                    match watch(&self.watched, &self.epoll) {
                        Ok(files) => self.files = Some(files),
                        Err(e) => warn!("cannot watch the configuration files: {e}"),
                    }
                    // Once more, should one have changed before it was watched.
                    self.reload_at_ns = Some(now_ns + SAVED_NS);
                }
            }
        }
        if self.events_at_ns <= now_ns {
            self.take_events();
            let watched = self.server.as_ref().is_some_and(Server::watched);
            let pause = if watched { WATCHED_NS } else { UNWATCHED_NS };
            self.events_at_ns = now_ns + pause;
            if let Some(server) = &mut self.server {
                server.expire(now_ns);
            }
        }
    }

    fn take_events(&mut self) {
        let watched = self.server.as_ref().is_some_and(Server::watched);
        let (server, epoll) = (&mut self.server, &self.epoll);
        self.control.take_events(watched, |event| {
            let Some(server) = server else { return };
            // Plain values with string keys: serialising them cannot fail.
            let line = serde_json::to_string(&Reply::Ok(&event)).unwrap_or_default();
            server.publish(
                |filter| events::matches(filter, &event),
                &line,
                epoll,
                |id| CLIENT | (id & !KIND),
            );
        });
    }

    /// Sees to it that every control descriptor of every port is waited for.
    fn register_ports(&mut self) {
        for (fd, id) in self.control.port_fds() {
            let token = PORT | u64::from(id.0);
            // A descriptor may have been closed and its number used again since we last looked, so
            // the set itself is asked.
            let known = self.epoll.modify(fd, token, Interest::READ);
            if let Err(e) = known.or_else(|_new| self.epoll.add(fd, token, Interest::READ)) {
                warn!("control descriptor {fd}: {e}");
            }
        }
    }
}

fn watch(files: &[PathBuf], epoll: &Epoll) -> std::io::Result<FileWatch> {
    let files = FileWatch::new(files)?;
    epoll.add(files.as_raw_fd(), FILES, Interest::READ)?;
    Ok(files)
}
