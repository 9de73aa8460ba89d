//! A thread that works out what takes its time, one answer after the other, so that nobody waits but those who asked.

use std::io;
use std::sync::mpsc::{Sender, channel};
use std::thread;

/// Something to be worked out, and told to whoever asked.
pub(super) type Job = Box<dyn FnOnce() + Send>;

/// See the module documentation. Started when it is first needed; ends with its last handle.
#[derive(Debug, Default)]
pub(super) struct Elsewhere(Option<Sender<Job>>);

impl Elsewhere {
    /// Does this after all that it was given before. How much that is, is bounded by how many may ask.
    pub(super) fn take(&mut self, job: Job) -> io::Result<()> {
        let jobs = match self.0.take() {
            Some(jobs) => jobs,
            None => start()?,
        };
        let sent = jobs.send(job);
        self.0 = Some(jobs);
        sent.map_err(|_gone| io::ErrorKind::BrokenPipe.into())
    }
}

fn start() -> io::Result<Sender<Job>> {
    let (jobs, todo) = channel::<Job>();
    let thread = thread::Builder::new().name("answers".to_owned());
    thread.spawn(move || todo.into_iter().for_each(|job| job()))?;
    Ok(jobs)
}
