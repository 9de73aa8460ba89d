//! The operator's model of a policy: segments, rules, tiers.

/// A whole policy, as written in `policy.toml`.
#[derive(Clone, Debug, Default)]
pub struct Policy {}
