//! A lock-free, sharded, bounded connection table for packet processing.
//!
//! It maps a [`FlowKey`] (zone, protocol, both addresses and ports, and where each end is attached) to
//! a connection, once for both directions. Any number of threads look up, insert, remove and sweep at
//! the same time; no operation takes a lock, waits for another thread or allocates. It knows no packets,
//! no policy and no time: the caller gives it ticks, and words whose meaning is the caller's.
//!
//! * [Usage](#usage)
//! * [Consistency](#consistency): what a concurrent caller may assume
//! * [Memory](#memory), [Limits](#limits), [Thread-safety](#thread-safety), [Hashing](#hashing)
//!
//! # Usage
//!
//! ```
//! use flowtable::{Addr, Config, Endpoint, FlowKey, New, Side, Table};
//! use std::sync::Arc;
//!
//! let table = Arc::new(Table::new(Config { capacity: 1000, ..Config::default() })?);
//! // One participant per thread.
//! let mut flows = table.participant();
//!
//! let client = Endpoint { addr: Addr::from_v4_bytes([10, 0, 0, 1]), port: 40000, attachment: 1 };
//! let server = Endpoint { addr: Addr::from_v4_bytes([10, 0, 0, 2]), port: 443, attachment: 2 };
//!
//! // The first packet, from the client: no connection yet, so it is judged and remembered.
//! let (key, side) = FlowKey::new(0, 6, &client, &server);
//! assert!(flows.lookup(&key).is_none());
//! let generation = 1 << 16;
//! let allow = 1;
//! let new = New { initiator: side, word: generation | allow, tick: 0, user: [0; 3], far: None };
//! let inserted = flows.insert_or_get(&key, new)?;
//! assert!(!inserted.existed);
//!
//! // The answer, from the server: the same connection, seen from its other side.
//! let (answer, side) = FlowKey::new(0, 6, &server, &client);
//! let conn = flows.lookup(&answer).expect("the connection inserted above");
//! assert_eq!(side, conn.initiator().other());
//! conn.touch(5);
//!
//! // Expiry, a few buckets at a time; here all of them.
//! let (now, timeout) = (100, 60);
//! assert_eq!(flows.sweep(table.buckets(), |conn| now - conn.last_seen() > timeout), 1);
//! assert_eq!(table.len(), 0);
//!
//! // Once per iteration of a poll loop: no connection is in hand (the compiler checks), and the
//! // memory of removed ones comes back.
//! flows.quiesce();
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # Consistency
//!
//! **Per key, the table is linearizable**: insertions, removals and lookups of one key take effect one after
//! another, each at a moment between its call and its return.
//!
//! * Of several insertions of one key exactly one makes the connection; the others return it, `existed`.
//! * Of several removals of one connection exactly one returns true. A removal removes *that* connection,
//!   never a later one with the same key.
//! * A connection's key, initiator, first word, tick and those user words it was given are complete in every hand that
//!   gets it.
//! * A lookup may return a connection that is removed a moment later; see [`ConnRef::is_live`]. It
//!   never returns one that was removed before the lookup began, or not yet inserted.
//! * Inserting may return [`InsertError`] for lack of room although a removal has returned: the removed one's memory
//!   comes back when every online participant has quiesced. `BucketFull` also counts slots that other
//!   threads are filling or clearing at that moment.
//!
//! **Until its participant quiesces or goes offline, a [`ConnRef`] is that connection**, removed or not: its memory
//! is not used for another. Both take `&mut Participant`, so code that keeps one longer does not compile:
//!
//! ```compile_fail,E0502
//! # use flowtable::{Config, FlowKey, Participant};
//! fn too_long(flows: &mut Participant, key: &FlowKey) {
//!     let conn = flows.lookup(key);
//!     flows.quiesce();
//!     println!("{conn:?}");
//! }
//! ```
//!
//! **Between keys** nothing is promised but this: [`Participant::for_each`] and a round of [`Participant::sweep`]
//! see every connection that is there throughout exactly once, and one that comes or goes meanwhile at most
//! once. [`Table::len`] lags by the operations under way.
//!
//! **The word** ([`ConnRef::word`]) changes by compare-and-swap only and its generation never goes back. What a
//! thread wrote before it advanced the word is seen by whoever reads the new word. The user words are plain atomics with
//! the orderings the caller chooses; `last_seen` is relaxed.
//!
//! How it is checked: loom explores two and three threads on one bucket (`src/loom_tests.rs` says what that
//! covers), miri and the stress tests run all of it, and a model test compares it with a `HashMap`.
//!
//! # Memory
//!
//! A connection is an entry of 64 bytes (an IPv4 key 24, verdict word 8, last-seen and link 8, three user words), 16 for
//! its share of a bucket, and a second line of 64 bytes elsewhere (what IPv6 addresses add to a key, five further user
//! words). 144 bytes are mapped for each by [`Table::new`]; nothing is allocated later but 2 KiB and 24 bytes per shard
//! for each participant beyond the first 16. The second line is touched only for IPv6 and when [`New::far`] is given: an IPv4
//! connection without far words costs 80 bytes of memory that comes on first touch. [`Config::huge_pages`] says
//! whether all is backed by memory from the start.
//!
//! A lookup reads two cache lines in a row, the bucket's and the entry's (one when it misses), and a third for IPv6 or when the
//! caller reads far user words; [`Participant::lookup_burst`] overlaps 32 of them.
//!
//! # Limits
//!
//! * [`Config::capacity`] is never exceeded. One shard, the default up to 131,072 connections, fills to
//!   the last entry. With more, each has its share, and the first [`InsertError::TableFull`] comes when
//!   one share is used up: at about 99 % of the capacity.
//! * A bucket has 14 slots, and 4 connections on average in a full table. A new key finds its bucket full
//!   once in 13,000 in a full table, once in 290,000 at three quarters, once in 34 million at half.
//! * Versions that make a value unique have 44 bits and more; they don't wrap in the life of a machine.
//!
//! # Thread-safety
//!
//! [`Table`] is shared (`Arc`); each thread has its own [`Participant`], which is `Send` and not `Sync`. A participant is
//! online from its first operation; while it is, it must quiesce now and then, or go offline before it blocks. One that
//! does neither stops memory from coming back, and nothing else. Nobody ever waits: operations are
//! lock-free, and a thread stopped anywhere in one keeps at most one entry and one slot from use.
//!
//! # Hashing
//!
//! The hash is NH, a universal hash with a proof, keyed by [`Config::seed`] or at random: who doesn't know
//! the secret can't choose keys that meet in one bucket. The table never reveals it.

mod bucket;
mod conn;
mod entry;
mod hash;
mod key;
#[cfg(all(test, loom))]
mod loom_tests;
mod mem;
#[cfg(all(test, not(loom)))]
mod model_tests;
mod participant;
mod reclaim;
mod shard;
mod sync;
mod table;
mod tags;

pub use conn::ConnRef;
pub use entry::{FAR_WORDS, NEAR_WORDS, USER_WORDS};
pub use key::{Addr, Endpoint, FlowKey, Side};
pub use participant::{Inserted, Participant};
pub use table::{Config, InsertError, New, Table, TableError};
