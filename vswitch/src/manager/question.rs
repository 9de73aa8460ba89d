//! What a manager is asked, and what it says. Plain values: a question carries all that rules may look at.

use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::packet::proto;
use crate::policy::model::Scope;
use crate::sys::eventfd::EventFd;

/// A workload, as rules see it.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
pub struct Workload {
    /// Its qualified name.
    pub id: String,
    /// Its name.
    pub name: String,
    /// Who owns it.
    pub tenant: String,
    /// Its tags.
    pub tags: Vec<String>,
    /// How sure the switch is of who it is.
    pub assurance: String,
    /// Qualified names of the segments it is in.
    pub segments: Vec<String>,
}

/// One end of a connection.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Party {
    /// A workload of this switch.
    Workload(Arc<Workload>),
    /// Behind an uplink.
    Outside {
        /// Its address.
        address: IpAddr,
        /// The port.
        uplink: String,
        /// Qualified names of the segments it is in.
        segments: Arc<[String]>,
    },
}

impl Party {
    /// Qualified names of the segments it is in.
    #[must_use]
    pub fn segments(&self) -> &[String] {
        match self {
            Party::Workload(workload) => &workload.segments,
            Party::Outside { segments, .. } => segments,
        }
    }
}

/// Answers to the same question within the last hour.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct History {
    /// Yes.
    pub allowed: u32,
    /// No.
    pub denied: u32,
    /// None in time.
    pub unanswered: u32,
}

/// May this one connect to that one?
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Question {
    /// What an answer must name.
    pub id: u64,
    /// Qualified name of the rule that asks.
    pub rule: String,
    /// Who wants to connect.
    pub from: Party,
    /// To whom.
    pub to: Party,
    /// The addresses and ports of the connection that was asked about first, to be read.
    pub connection: String,
    /// IP protocol.
    pub protocol: u8,
    /// Destination port; for ICMP `type << 8 | code`.
    pub number: u16,
    /// Sides of walls that the one is bound to, and the other: `wall/side`.
    pub walls: [Vec<String>; 2],
    /// Detectors that suspected the one within the last hour, and the other.
    pub suspicions: [Vec<String>; 2],
    /// What was answered before.
    pub history: History,
    /// Questions of the same workload, or from behind the same uplink, in the last minute.
    pub questions_last_minute: u32,
    /// Nobody waits for an answer after so long.
    pub deadline_ms: u32,
    /// The longest that an answer may hold, seconds.
    pub ttl_s: u32,
    /// The widest that it may be.
    pub scope: Scope,
}

/// `tcp`, `udp`, ... or the number.
#[must_use]
pub fn protocol_name(protocol: u8) -> String {
    match protocol {
        proto::TCP => "tcp".to_owned(),
        proto::UDP => "udp".to_owned(),
        proto::ICMP => "icmp".to_owned(),
        proto::ICMPV6 => "icmpv6".to_owned(),
        n => n.to_string(),
    }
}

/// What a manager says to a question.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Answer {
    /// The run of the switch that asked.
    pub boot: u64,
    /// The question.
    pub id: u64,
    /// Yes or no; `None`: a person may say, until the deadline.
    pub yes: Option<bool>,
    /// How long it holds at most, if the manager wants less than the rule admits.
    pub ttl_s: Option<u32>,
    /// It holds for one connection.
    pub once: bool,
    /// Why, for the ledger.
    pub reason: String,
}

/// Answers on their way to whoever asked.
///
/// # Thread-safety
/// Managers put, the asker takes when the eventfd was signalled. No more are in it than questions were asked.
#[derive(Debug)]
pub struct Mailbox {
    answers: Mutex<Vec<Answer>>,
    wake: Option<Arc<EventFd>>,
}

impl Mailbox {
    /// Empty. `wake` is signalled when there is something to be taken.
    #[must_use]
    pub fn new(wake: Option<Arc<EventFd>>) -> Self {
        Mailbox {
            answers: Mutex::default(),
            wake,
        }
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Answer>> {
        // Nothing under the lock panics half way.
        self.answers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Leaves an answer there.
    pub fn put(&self, answer: Answer) {
        let mut answers = self.lock();
        answers.push(answer);
        let first = answers.len() == 1;
        drop(answers);
        if first {
            self.nudge();
        }
    }

    /// Has whoever takes answers look at other things.
    pub fn nudge(&self) {
        if let Some(wake) = &self.wake {
            wake.signal();
        }
    }

    /// All there are.
    pub fn take(&self) -> Vec<Answer> {
        std::mem::take(&mut *self.lock())
    }
}
