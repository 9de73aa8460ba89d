//! What several repetitions say together.

/// Median and interval of some repetitions.
#[derive(Clone, Copy, Debug, Default, serde::Serialize)]
pub struct Summary {
    /// The middle one.
    pub median: f64,
    /// The lowest one.
    pub low: f64,
    /// The highest one.
    pub high: f64,
}

impl Summary {
    /// Of at least one value.
    #[must_use]
    pub fn of(mut values: Vec<f64>) -> Self {
        values.sort_by(f64::total_cmp);
        let at = |i: usize| values.get(i).copied().unwrap_or(0.0);
        let n = values.len();
        Summary {
            median: f64::midpoint(at(n.saturating_sub(1) / 2), at(n / 2)),
            low: at(0),
            high: at(n.saturating_sub(1)),
        }
    }
}
