//! A lock-free, sharded, bounded connection table.

mod bucket;
mod conn;
mod entry;
mod hash;
mod key;
mod mem;
mod participant;
mod reclaim;
mod shard;
mod sync;
mod table;

pub use conn::ConnRef;
pub use entry::USER_WORDS;
pub use key::{Addr, Endpoint, FlowKey, Side};
pub use participant::{Inserted, Participant};
pub use table::{Config, InsertError, New, Table, TableError};
