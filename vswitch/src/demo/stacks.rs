//! The workloads of a demo with TCP, all on one thread: who connects to whom, and what they tell each other.

use std::io;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::{Duration, Instant};

use super::host::{Host, Sock, State};
use super::{Halt, Stop};

/// How long a condition that normally takes milliseconds is waited for.
pub(super) const LIMIT: Duration = Duration::from_secs(5);
/// With nothing to do for so long, pumping starts to sleep between looks.
const SPIN: Duration = Duration::from_micros(200);
/// A request, and its answer.
const REQUEST_BYTES: usize = 64;

/// Index of a host.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Who(pub(super) usize);

/// A host, and what it is called.
pub(super) struct Resident {
    pub(super) name: String,
    pub(super) ip: Ipv4Addr,
    pub(super) host: Box<dyn Host>,
}

/// See the module documentation.
pub(super) struct Stacks {
    residents: Vec<Resident>,
    stop: Stop,
}

/// The connection of an initiator and an acceptor, both ends in hand.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pair {
    pub(super) client: (Who, Sock),
    pub(super) server: (Who, Sock),
}

/// What became of an attempt to connect.
pub(super) enum Attempt {
    Open(Pair),
    Refused(String),
    /// Nobody answered in time.
    Silent,
}

impl Stacks {
    pub(super) fn new(residents: Vec<Resident>, stop: &Stop) -> Self {
        Stacks {
            residents,
            stop: stop.clone(),
        }
    }

    fn resident(&mut self, who: Who) -> Result<&mut Resident, Halt> {
        let resident = self.residents.get_mut(who.0);
        resident.ok_or_else(|| Halt::failed("no such host".to_owned()))
    }

    pub(super) fn host(&mut self, who: Who) -> Result<&mut dyn Host, Halt> {
        Ok(self.resident(who)?.host.as_mut())
    }

    /// Who is called so.
    #[cfg(feature = "manager")]
    pub(super) fn called(&self, name: &str) -> Option<Who> {
        self.residents.iter().position(|r| r.name == name).map(Who)
    }

    /// What the host is called.
    pub(super) fn name(&self, who: Who) -> &str {
        self.residents.get(who.0).map_or("nobody", |r| &r.name)
    }

    /// Lets every stack work until `probe` yields a value or `limit` is over.
    pub(super) fn until<T>(
        &mut self,
        limit: Duration,
        mut probe: impl FnMut(&mut Self) -> Result<Option<T>, Halt>,
    ) -> Result<Option<T>, Halt> {
        let start = Instant::now();
        let mut last_work = start;
        loop {
            self.stop.check()?;
            let mut busy = false;
            for resident in &mut self.residents {
                busy |= resident.host.poll();
            }
            if let Some(value) = probe(self)? {
                return Ok(Some(value));
            }
            let now = Instant::now();
            if now - start > limit {
                return Ok(None);
            }
            if busy {
                last_work = now;
            } else if now - last_work > SPIN {
                std::thread::sleep(Duration::from_micros(50));
            } else {
                std::thread::yield_now();
            }
        }
    }

    /// Lets every stack work for that long.
    pub(super) fn pump(&mut self, time: Duration) -> Result<(), Halt> {
        self.until(time, |_| Ok(None::<()>)).map(|_| ())
    }

    /// Starts to open a TCP connection.
    pub(super) fn dial(&mut self, from: Who, to: Who, port: u16) -> Result<Pair, Halt> {
        let target = SocketAddrV4::new(self.resident(to)?.ip, port);
        let server = self.host(to)?.listen(port)?;
        let client = self.host(from)?.dial(target)?;
        Ok(Pair {
            client: (from, client),
            server: (to, server),
        })
    }

    /// What has become of it by now.
    pub(super) fn outcome(&mut self, pair: Pair) -> Result<Option<Attempt>, Halt> {
        let (here, there) = (self.state(pair.client)?, self.state(pair.server)?);
        Ok(match (here, there) {
            (State::Open, State::Open) => Some(Attempt::Open(pair)),
            (State::Refused(why), _) => Some(Attempt::Refused(why)),
            _ => None,
        })
    }

    /// Waits for it. Of a connection that did not come about nothing is left.
    pub(super) fn wait(&mut self, pair: Pair, limit: Duration) -> Result<Attempt, Halt> {
        let outcome = self.until(limit, |s| s.outcome(pair))?;
        let outcome = outcome.unwrap_or(Attempt::Silent);
        if !matches!(outcome, Attempt::Open(_)) {
            self.close(pair)?;
        }
        Ok(outcome)
    }

    /// Tries to open a TCP connection and waits for the outcome.
    pub(super) fn connect(
        &mut self,
        from: Who,
        to: Who,
        port: u16,
        limit: Duration,
    ) -> Result<Attempt, Halt> {
        let pair = self.dial(from, to, port)?;
        self.wait(pair, limit)
    }

    /// Forgets both ends.
    pub(super) fn close(&mut self, pair: Pair) -> Result<(), Halt> {
        for (who, sock) in [pair.client, pair.server] {
            self.host(who)?.close(sock);
        }
        Ok(())
    }

    pub(super) fn state(&mut self, (who, sock): (Who, Sock)) -> Result<State, Halt> {
        Ok(self.host(who)?.state(sock))
    }

    /// Writes without waiting; nothing taken is no error.
    pub(super) fn write(&mut self, end: (Who, Sock), bytes: &[u8]) -> Result<usize, Halt> {
        let done = self.host(end.0)?.write(end.1, bytes);
        self.moved(end, done)
    }

    /// Reads without waiting; nothing there is no error.
    pub(super) fn read(&mut self, end: (Who, Sock), to: &mut [u8]) -> Result<usize, Halt> {
        let done = self.host(end.0)?.read(end.1, to);
        self.moved(end, done)
    }

    fn moved(&mut self, end: (Who, Sock), done: io::Result<usize>) -> Result<usize, Halt> {
        let e = match done {
            Ok(n) => return Ok(n),
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(0),
            Err(e) => e,
        };
        let why = match self.state(end) {
            Ok(State::Refused(why)) => why,
            _ => e.to_string(),
        };
        let name = self.name(end.0);
        Err(Halt::failed(format!("{name}'s connection broke: {why}")))
    }

    /// One request and its answer; how long both took.
    pub(super) fn request(&mut self, pair: Pair) -> Result<Duration, Halt> {
        let start = Instant::now();
        for (from, to) in [(pair.client, pair.server), (pair.server, pair.client)] {
            self.write(from, &[0x55; REQUEST_BYTES])?;
            let mut got = 0;
            let arrived = self.until(LIMIT, |s| {
                let mut buffer = [0; REQUEST_BYTES];
                got += s.read(to, &mut buffer)?;
                Ok((got >= REQUEST_BYTES).then_some(()))
            })?;
            if arrived.is_none() {
                return Err(Halt::failed(format!(
                    "{got} of {REQUEST_BYTES} bytes reached {} in {LIMIT:?}",
                    self.name(to.0)
                )));
            }
        }
        Ok(start.elapsed())
    }
}
