//! What a record says: the one list of kinds. A kind is a name, a class, and a body of named fields
//! that is kept as JSON, written in the order of the list, so that there is one way to write it.
//!
//! No field holds what a packet carried: addresses and services, never payload.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize, Serializer};

/// Who gives way when there is no room.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Class {
    /// What must be recorded also when the disk is full: it has space of its own and no quota.
    Reserved,
    /// What workloads can cause in any number: within quotas, and refused when there is no space.
    Ordinary,
}

macro_rules! kinds {
    ($(
        $(#[doc = $says:literal])+
        $Kind:ident = $name:literal, $class:ident {
            $($(#[$what:meta])+ $field:ident: $type:ty,)*
        }
    )+) => {
        $(
            $(#[doc = $says])+
            #[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
            #[serde(deny_unknown_fields)]
            pub struct $Kind {
                $($(#[$what])+ pub $field: $type,)*
            }

            impl From<$Kind> for Body {
                fn from(body: $Kind) -> Body {
                    Body::$Kind(body)
                }
            }
        )+

        /// What a record says, by kind.
        #[derive(Clone, PartialEq, Eq, Debug)]
        pub enum Body {
            $($(#[doc = $says])+ $Kind($Kind),)+
        }

        impl Body {
            /// The names of all kinds.
            pub const KINDS: &'static [&'static str] = &[$($name,)+];

            /// The kind's name, in `snake_case`, as it is stored and shown.
            #[must_use]
            pub const fn kind(&self) -> &'static str {
                match self { $(Body::$Kind(_) => $name,)+ }
            }

            /// The kind's class.
            #[must_use]
            pub const fn class(&self) -> Class {
                match self { $(Body::$Kind(_) => Class::$class,)+ }
            }

            /// The class of a kind by its name.
            pub(super) fn class_of(kind: &str) -> Option<Class> {
                match kind {
                    $($name => Some(Class::$class),)+
                    _ => None,
                }
            }

            /// The text that is stored.
            pub(super) fn to_json(&self) -> String {
                let text = match self { $(Body::$Kind(body) => serde_json::to_string(body),)+ };
                // Plain values with string keys: serialising them cannot fail.
                text.unwrap_or_default()
            }

            /// The body that was stored as `text`.
            ///
            /// # Errors
            /// Nothing of ours wrote that.
            pub(super) fn from_json(kind: &str, text: &str) -> Result<Body, String> {
                match kind {
                    $($name => serde_json::from_str(text).map(Body::$Kind).map_err(|e| e.to_string()),)+
                    _ => Err(format!("{kind:?} is no kind of record")),
                }
            }
        }

        impl Serialize for Body {
            fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
                match self { $(Body::$Kind(body) => body.serialize(to),)+ }
            }
        }
    };
}

/// What a connection was held and asked about for.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Question {
    /// The initiator: workload, or address outside.
    pub from: String,
    /// The other end.
    pub to: String,
    /// What for, such as tcp/5432.
    pub service: String,
    /// The connection's addresses and ports.
    pub connection: String,
    /// The rule that asks.
    pub rule: String,
}

kinds! {
    /// The first record of every ledger.
    Genesis = "genesis", Reserved {
        /// The ledger's id, random.
        ledger: String,
        /// Version of the format.
        format: u32,
        /// The software that made it.
        version: String,
    }
    /// The switch started.
    Started = "started", Reserved {
        /// The software.
        version: String,
        /// Its process.
        pid: u32,
        /// How the run before ended: "first", "stopped", or "died" (it recorded no end).
        after: String,
    }
    /// The switch ended in order.
    Stopped = "stopped", Reserved {
        /// Why.
        reason: String,
    }
    /// The wall clock moved against the monotonic one.
    ClockStep = "clock_step", Reserved {
        /// Where the wall clock should have been.
        expected_ns: i64,
        /// Where it was.
        found_ns: i64,
    }
    /// A policy came into force; the record's generation is its own.
    PolicyApplied = "policy_applied", Reserved {
        /// Where it came from.
        source: String,
        /// SHA-256 of the policy.
        digest: String,
        /// What changed, a line each.
        changes: Vec<String>,
        /// Changes that are not listed.
        more_changes: u64,
        /// It goes back by itself after so many seconds unless confirmed.
        confirm_s: Option<u64>,
    }
    /// A policy that would have gone back by itself was confirmed.
    PolicyConfirmed = "policy_confirmed", Reserved {
        /// Where it came from.
        source: String,
    }
    /// A port was opened.
    PortAdded = "port_added", Reserved {
        /// Its kind.
        kind: String,
        /// Who owns it.
        tenant: String,
        /// Who lives there.
        workloads: Vec<String>,
    }
    /// A port was closed.
    PortRemoved = "port_removed", Reserved {
        /// Who lived there.
        workloads: Vec<String>,
    }
    /// An address was bound to the record's workload.
    AddressBound = "address_bound", Ordinary {
        /// The address.
        address: String,
        /// The MAC it is bound to.
        mac: String,
        /// By what it is known: declared, dhcp, ...
        by: String,
    }
    /// A connection is held and asked about, and was not answered at once.
    Ask = "ask", Ordinary {
        /// The ask's id.
        ask: String,
        /// The initiator: workload, or address outside.
        from: String,
        /// The other end.
        to: String,
        /// What for, such as tcp/5432.
        service: String,
        /// The connection's addresses and ports.
        connection: String,
        /// The rule that asks.
        rule: String,
    }
    /// An ask was decided; the record's `who` decided it.
    Verdict = "verdict", Ordinary {
        /// The ask's id.
        ask: String,
        /// allow or deny.
        verdict: String,
        /// Why: the condition, the person's words, or what happened instead of an answer.
        reason: String,
        /// What it holds for: this connection, or this pair and service.
        scope: String,
        /// For how long, seconds.
        ttl_s: u64,
        /// What was asked, if the answer came at once: no record of kind `ask` comes before.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        question: Option<Question>,
    }
    /// A connection under a rule that admits nothing unrecorded; the record came first.
    Admitted = "admitted", Ordinary {
        /// The initiator: workload, or address outside.
        from: String,
        /// The other end.
        to: String,
        /// What for, such as tcp/5432.
        service: String,
        /// The connection's addresses and ports.
        connection: String,
        /// The rule.
        rule: String,
    }
    /// Asks over budget, all denied, as one: those of the record's port in the second before.
    Excess = "excess", Ordinary {
        /// How many.
        count: u64,
    }
    /// A side of a wall was reserved for a subject.
    WallReserved = "wall_reserved", Reserved {
        /// The wall.
        wall: String,
        /// Who is bound.
        subject: String,
        /// To which side.
        side: String,
        /// The connection that would be its first.
        connection: String,
    }
    /// Payload passed: the reservation holds.
    WallCommitted = "wall_committed", Reserved {
        /// The wall.
        wall: String,
        /// Who is bound.
        subject: String,
        /// To which side.
        side: String,
    }
    /// The handshake failed before any payload: the reservation is gone.
    WallReleased = "wall_released", Reserved {
        /// The wall.
        wall: String,
        /// Who is free again.
        subject: String,
        /// Of which side.
        side: String,
        /// Why.
        reason: String,
    }
    /// Somebody who carries one side of a wall was kept from another.
    WallDenied = "wall_denied", Ordinary {
        /// The wall.
        wall: String,
        /// Who would have carried both.
        subject: String,
        /// The sides that do not go together.
        sides: Vec<String>,
        /// The connection that would have done it.
        connection: String,
    }
    /// Somebody was found to carry both sides of a wall, and is kept from both.
    WallBreached = "wall_breached", Reserved {
        /// The wall.
        wall: String,
        /// Who.
        subject: String,
        /// The sides.
        sides: Vec<String>,
    }
    /// Two people loosened a wall.
    WallReset = "wall_reset", Reserved {
        /// The wall.
        wall: String,
        /// Whose binding is gone; nobody's in particular when the wall itself was changed.
        subject: Option<String>,
        /// What was done.
        change: String,
        /// The second person; the first one is the record's `who`.
        second: String,
        /// Why.
        reason: String,
    }
    /// A transaction was opened.
    TransactionBegun = "transaction_begun", Reserved {
        /// Its name.
        transaction: String,
        /// The wall that it is a transaction of.
        wall: String,
        /// Whose connections are part of it.
        workloads: Vec<String>,
    }
    /// A transaction was closed.
    TransactionEnded = "transaction_ended", Reserved {
        /// Its name.
        transaction: String,
        /// The wall that it was a transaction of.
        wall: String,
    }
    /// The record's workload was quarantined.
    Quarantine = "quarantine", Reserved {
        /// Why.
        reason: String,
        /// Connections kept.
        keep: Vec<String>,
        /// All that are in it: the workload, and those of its VM.
        workloads: Vec<String>,
        /// MACs and addresses by which they are known, too.
        addresses: Vec<String>,
    }
    /// It was released.
    Release = "release", Reserved {
        /// Why.
        reason: String,
        /// Connections that were kept, with what they carried; as many as fit.
        kept: Vec<String>,
    }
    /// The record's workload was frozen.
    Freeze = "freeze", Reserved {
        /// How many of its connections.
        connections: u64,
        /// For so many seconds at most.
        max_s: u64,
    }
    /// It was thawed.
    Thaw = "thaw", Reserved {
        /// It went back to a snapshot, and was asked what it remembers.
        rolled_back: bool,
        /// What became of its connections; as many as fit.
        outcomes: Vec<String>,
    }
    /// It is being restarted, or this came of it.
    Restart = "restart", Reserved {
        /// The driver that did it.
        driver: String,
        /// Digest of the image it runs now.
        image: Option<String>,
        /// The driver verified that digest.
        trusted: bool,
        /// "begun", or what came of it.
        outcome: String,
        /// Why it was wanted.
        reason: String,
    }
    /// The record's workload did as much as a threshold says.
    Suspicion = "suspicion", Ordinary {
        /// The detector.
        detector: String,
        /// How many there were.
        count: u64,
        /// Within so many seconds.
        seconds: u64,
        /// What the last one was for.
        last: String,
        /// What followed, or why it did not: each response with its action.
        responses: Vec<String>,
    }
    /// Somebody met a decoy: had a connection with it, or sent what needs none.
    Decoy = "decoy", Ordinary {
        /// Who: a workload.
        from: String,
        /// Whom it meant.
        to: String,
        /// What for, such as tcp/5432.
        service: String,
        /// Addresses and ports.
        connection: String,
        /// The rule.
        rule: String,
        /// Payload that came with it.
        bytes: u64,
    }
    /// Somebody has seen to what the record's workload was suspected of.
    SuspicionCleared = "suspicion_cleared", Reserved {
    }
    /// No response to suspicion is carried out any more, or they are again.
    ResponsesSwitched = "responses_switched", Reserved {
        /// They are stopped.
        stopped: bool,
        /// Why.
        reason: String,
    }
    /// Somebody wants what takes something away from a wall; it waits for a second person.
    Proposed = "proposed", Reserved {
        /// Its id.
        proposal: String,
        /// The call it was, such as policy-apply.
        call: String,
        /// What it takes away, a line each.
        weakens: Vec<String>,
    }
    /// A second person agreed; the first one is the record's `who`. What comes of it is recorded after this.
    Approved = "approved", Reserved {
        /// Its id.
        proposal: String,
        /// The second person.
        second: String,
        /// What it takes away.
        weakens: Vec<String>,
    }
    /// A proposal was dropped.
    ProposalDropped = "proposal_dropped", Reserved {
        /// Its id.
        proposal: String,
    }
    /// A caller lacked the role for what it asked.
    RoleRefused = "role_refused", Ordinary {
        /// What it asked.
        call: String,
        /// The role it would have needed.
        needs: String,
    }
    /// Ordinary records that could not be taken.
    Lost = "lost", Reserved {
        /// How many.
        count: u64,
        /// Why, each with its count.
        reasons: BTreeMap<String, u64>,
        /// Whose: the ports or workloads that lost most, each with its count.
        owners: BTreeMap<String, u64>,
        /// When the first one was, wall clock.
        from_ns: i64,
        /// When the last one was.
        to_ns: i64,
    }
    /// The disk takes records again.
    Repaired = "repaired", Reserved {
        /// What was wrong.
        trouble: String,
        /// Since when, wall clock.
        since_ns: i64,
    }
    /// Records were moved into an archive.
    Archived = "archived", Reserved {
        /// The ledger's id.
        ledger: String,
        /// The first of them.
        first: u64,
        /// The last one.
        last: u64,
        /// Its hash.
        last_hash: String,
        /// The archive.
        file: String,
    }
    /// The anchor: heads are written there, no longer, or again, or it knows another past.
    Anchored = "anchored", Reserved {
        /// Where.
        file: String,
        /// "begun", "failed", "resumed" or "contradicts".
        event: String,
        /// What happened.
        reason: Option<String>,
    }
}

#[cfg(test)]
mod tests {
    use super::{Body, Class, Stopped};

    #[test]
    fn a_body_is_read_as_it_was_written_and_otherwise_not_at_all() {
        let body = Body::from(Stopped {
            reason: "SIGTERM \"now\"\n".to_owned(),
        });
        let text = body.to_json();
        assert_eq!(Body::from_json("stopped", &text), Ok(body.clone()));
        assert_eq!(body.class(), Class::Reserved);
        for (kind, text) in [
            ("stopped", "{}"),
            ("stopped", r#"{"reason":"a","more":1}"#),
            ("stop", text.as_str()),
            ("stopped", ""),
        ] {
            assert!(Body::from_json(kind, text).is_err(), "{kind} {text}");
        }
    }

    #[test]
    fn kinds_have_names_of_their_own() {
        let mut names = Body::KINDS.to_vec();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), Body::KINDS.len());
    }
}
