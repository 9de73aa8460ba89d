//! Empty on purpose: this package carries the workspace's `tests/`, `benches/` and `examples/`,
//! which use the public surface of `flowtable` and `vswitch` only.
