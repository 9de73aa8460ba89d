//! A lock-free, sharded, bounded connection table.
