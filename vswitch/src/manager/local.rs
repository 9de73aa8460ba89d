//! A manager on a thread of this process. Whoever asks never waits: questions that find no room in its queue are not taken.

use std::io;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::SystemTime;

use super::question::{Answer, Mailbox, Question};
use super::rules::{Common, Rules};

/// Questions that wait for the thread: some 100 ms of its work, which is as late as an answer should be.
const CAPACITY: usize = 4096;

/// See the module documentation. Dropping it ends the thread.
#[derive(Debug)]
pub struct Local {
    questions: Option<SyncSender<Question>>,
    rules: Arc<Mutex<Arc<Rules>>>,
    thread: Option<JoinHandle<()>>,
}

impl Local {
    /// Starts the thread. `boot` is the run of the switch that every answer names.
    ///
    /// # Errors
    /// There can be no other thread.
    pub fn start(rules: Arc<Rules>, mailbox: Arc<Mailbox>, boot: u64) -> io::Result<Self> {
        let (questions, inbox) = sync_channel(CAPACITY);
        let rules = Arc::new(Mutex::new(rules));
        let shared = Arc::clone(&rules);
        let thread = std::thread::Builder::new()
            .name("manager".to_owned())
            .spawn(move || run(&inbox, &shared, &mailbox, boot))?;
        Ok(Local {
            questions: Some(questions),
            rules,
            thread: Some(thread),
        })
    }

    /// Takes a question, if there is room.
    pub fn ask(&self, question: Question) -> bool {
        let to = self.questions.as_ref();
        to.is_some_and(|to| to.try_send(question).is_ok())
    }

    /// Answers by these rules from now on.
    pub fn follow(&self, rules: Arc<Rules>) {
        *self.rules.lock().unwrap_or_else(PoisonError::into_inner) = rules;
    }
}

impl Drop for Local {
    fn drop(&mut self) {
        self.questions = None;
        if let Some(thread) = self.thread.take() {
            // A panic of that thread was reported by itself.
            let _ = thread.join();
        }
    }
}

fn run(inbox: &Receiver<Question>, rules: &Mutex<Arc<Rules>>, mailbox: &Mailbox, boot: u64) {
    let mut common = Common::at(SystemTime::now());
    while let Ok(question) = inbox.recv() {
        common.advance(SystemTime::now());
        let rules = Arc::clone(&rules.lock().unwrap_or_else(PoisonError::into_inner));
        let verdict = rules.decide(&question, &mut common);
        mailbox.put(Answer {
            boot,
            id: question.id,
            yes: verdict.yes,
            ttl_s: verdict.ttl_s,
            once: verdict.once,
            reason: verdict.reason,
        });
    }
}
