//! The search for the highest load that is carried, in the manner of MLRsearch (draft-ietf-bmwg-mlrsearch-15): trials
//! at chosen loads until the loads around the answer are classified and close to each other.
//!
//! Of the draft's means these are used: a goal with loss ratio, trial duration, duration sum, exceed ratio and width;
//! classification as upper or lower bound by the sums of good and bad trials (its appendix A, without short trials:
//! all have the goal's duration); conditional throughput (appendix B); preceding targets that are coarser and faster,
//! whose trials count for the next ones too.

/// What is searched for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Goal {
    /// A trial with more loss is bad.
    pub(super) loss: f64,
    /// Trials at a load, until it is classified whatever more trials would show.
    pub(super) trials: u32,
    /// Bad trials of all that still make a lower bound.
    pub(super) exceed: f64,
    /// Relative distance of the bounds.
    pub(super) width: f64,
}

/// What a load is, for a goal.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Class {
    Lower,
    Upper,
    Undecided,
}

/// Trials at one load: the loss of each.
#[derive(Clone, Debug)]
struct AtLoad {
    load: f64,
    losses: Vec<f64>,
}

impl AtLoad {
    fn class(&self, goal: &Goal) -> Class {
        let bad = self.losses.iter().filter(|&&loss| loss > goal.loss).count();
        let bad = u32::try_from(bad).unwrap_or(u32::MAX);
        let done = u32::try_from(self.losses.len()).unwrap_or(u32::MAX);
        let whole = done.max(goal.trials);
        let share = |n: u32| f64::from(n) / f64::from(whole.max(1));
        // Were all that are missing good; were all bad.
        if share(bad) > goal.exceed {
            Class::Upper
        } else if share(bad + (whole - done)) <= goal.exceed {
            Class::Lower
        } else {
            Class::Undecided
        }
    }

    /// What can be expected to arrive when this load is offered: the load less the loss of the trial at the quantile
    /// that the exceed ratio leaves.
    fn conditional(&self, goal: &Goal) -> f64 {
        let mut losses = self.losses.clone();
        losses.sort_by(f64::total_cmp);
        let whole = losses.len().max(goal.trials as usize);
        #[allow(clippy::cast_precision_loss)] // few
        let wanted = whole as f64 * (1.0 - goal.exceed);
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // few, not negative
        let at = (wanted.ceil().max(1.0) as usize) - 1;
        self.load * (1.0 - losses.get(at).copied().unwrap_or(1.0))
    }
}

/// The answer to a goal.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Found {
    /// The highest load that is a lower bound; 0: none is.
    pub(super) lower: f64,
    /// The lowest load that is an upper bound. `None`: the highest load there is was carried.
    pub(super) upper: Option<f64>,
    /// What arrives when the lower bound is offered.
    pub(super) conditional: f64,
    /// The bounds are as close as the goal asks.
    pub(super) converged: bool,
}

/// All trials so far.
#[derive(Debug)]
pub(super) struct Search<T> {
    loads: Vec<AtLoad>,
    /// The highest load there is.
    most: f64,
    /// Makes a trial at a load; its loss. `None`: there is no time for more.
    trial: T,
}

/// Loads below this share of the most are nobody's answer.
const LEAST: f64 = 0.001;

impl<T: FnMut(f64) -> Option<f64>> Search<T> {
    pub(super) fn new(most: f64, trial: T) -> Self {
        Search {
            loads: Vec::new(),
            most,
            trial,
        }
    }

    /// Searches, first roughly, in the neighbourhood of `guess`.
    pub(super) fn find(&mut self, goal: &Goal, guess: f64) -> Found {
        let rough = |trials, width| Goal {
            trials: goal.trials.min(trials),
            width: goal.width.max(width),
            ..*goal
        };
        let mut start = [guess; 2];
        for target in [rough(1, 0.04), rough(5, 0.015), *goal] {
            if !self.narrow(&target, start) {
                break;
            }
            let (lower, upper) = self.bounds(&target);
            start = [lower.unwrap_or(guess), upper.unwrap_or(guess)];
        }
        let (lower, upper) = self.bounds(goal);
        let at = self.loads.iter().find(|l| Some(l.load) == lower);
        Found {
            lower: lower.unwrap_or(0.0),
            upper,
            conditional: at.map_or(0.0, |l| l.conditional(goal)),
            converged: self.is_narrow(goal),
        }
    }

    /// Brings the bounds together; `false` when there is no time for it.
    fn narrow(&mut self, goal: &Goal, start: [f64; 2]) -> bool {
        // The bounds of the target before, as long as they are in doubt.
        for load in start {
            if !self.decide(load, goal) {
                return false;
            }
        }
        let mut step = goal.width;
        while !self.is_narrow(goal) {
            let next = match self.bounds(goal) {
                (Some(lower), Some(upper)) => f64::midpoint(lower, upper),
                (None, Some(upper)) => upper * (1.0 - step.min(0.5)),
                (Some(lower), None) => (lower * (1.0 + step)).min(self.most),
                (None, None) => self.most,
            };
            step *= 2.0;
            if !self.decide(next, goal) {
                return false;
            }
        }
        true
    }

    /// Makes trials at a load until it is classified; `false` when there is no time for it.
    fn decide(&mut self, load: f64, goal: &Goal) -> bool {
        let found = self
            .loads
            .iter()
            .position(|l| l.load.total_cmp(&load).is_eq());
        let at = found.unwrap_or_else(|| {
            self.loads.push(AtLoad {
                load,
                losses: Vec::new(),
            });
            self.loads.len() - 1
        });
        loop {
            let Some(here) = self.loads.get_mut(at) else {
                return false;
            };
            if here.class(goal) != Class::Undecided {
                return true;
            }
            let Some(loss) = (self.trial)(load) else {
                return false;
            };
            here.losses.push(loss);
        }
    }

    /// The lowest upper bound, and the highest lower bound below it.
    fn bounds(&self, goal: &Goal) -> (Option<f64>, Option<f64>) {
        let of = |class| {
            let all = self.loads.iter().filter(move |l| l.class(goal) == class);
            all.map(|l| l.load)
        };
        let upper = of(Class::Upper).min_by(f64::total_cmp);
        let below = of(Class::Lower).filter(|&l| upper.is_none_or(|u| l < u));
        (below.max_by(f64::total_cmp), upper)
    }

    fn is_narrow(&self, goal: &Goal) -> bool {
        match self.bounds(goal) {
            (Some(lower), Some(upper)) => upper - lower <= goal.width * upper,
            (Some(lower), None) => lower >= self.most,
            (None, Some(upper)) => upper <= LEAST * self.most,
            (None, None) => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{AtLoad, Class, Goal, Search};

    const NDR: Goal = Goal {
        loss: 0.0,
        trials: 21,
        exceed: 0.5,
        width: 0.005,
    };

    fn after(good: usize, bad: usize) -> Class {
        let mut losses = vec![0.0; good];
        losses.resize(good + bad, 0.01);
        AtLoad { load: 1.0, losses }.class(&NDR)
    }

    /// 21 trials, more than half of them bad make an upper bound: 11 decide.
    #[test]
    fn a_load_is_classified_when_no_trial_could_change_it() {
        assert_eq!(after(0, 10), Class::Undecided);
        assert_eq!(after(0, 11), Class::Upper);
        assert_eq!(after(10, 0), Class::Undecided);
        assert_eq!(after(11, 0), Class::Lower);
        assert_eq!(after(10, 10), Class::Undecided);
        assert_eq!(after(11, 10), Class::Lower);
        assert_eq!(after(10, 11), Class::Upper);
        // More trials than are asked for count too.
        assert_eq!(after(20, 20), Class::Lower);
    }

    #[test]
    fn the_edge_is_found_whatever_the_guess() {
        for edge in [0.31, 7.5, 9.99] {
            for guess in [0.5, 5.0, 10.0] {
                let mut trials = 0;
                let mut search = Search::new(10.0, |load| {
                    trials += 1;
                    Some(if load > edge { 0.1 } else { 0.0 })
                });
                let found = search.find(&NDR, guess);
                assert!(found.converged, "{edge} {guess}: {found:?}");
                let upper = found.upper.unwrap();
                assert!(
                    found.lower <= edge && edge < upper,
                    "{edge} {guess}: {found:?}"
                );
                assert!(upper - found.lower <= 0.005 * upper);
                assert!((found.conditional - found.lower).abs() < 1e-9);
                assert!(trials < 400, "{edge} {guess}: {trials}");
            }
        }
    }

    #[test]
    fn what_is_carried_whole_has_no_upper_bound_and_what_is_never_no_lower_one() {
        let found = Search::new(10.0, |_| Some(0.0)).find(&NDR, 4.0);
        assert!(
            found.converged && found.upper.is_none() && found.lower >= 10.0,
            "{found:?}"
        );
        let found = Search::new(10.0, |_| Some(0.5)).find(&NDR, 4.0);
        assert!(found.converged && found.lower == 0.0, "{found:?}");
        assert!(found.upper.unwrap() < 0.02);
    }

    /// One trial in three loses a frame: not more than half, so that the load is carried; what arrives is
    /// the whole load still, for the median trial loses nothing.
    #[test]
    fn a_trial_may_be_bad_when_most_are_good() {
        let mut n = 0;
        let mut search = Search::new(10.0, |load| {
            n += 1;
            Some(if load > 6.0 || n % 3 == 0 { 0.02 } else { 0.0 })
        });
        let found = search.find(&NDR, 6.5);
        assert!(found.converged, "{found:?}");
        assert!(found.lower > 5.0 && found.lower <= 6.0, "{found:?}");
        assert!((found.conditional - found.lower).abs() < 1e-9);
    }

    #[test]
    fn without_time_it_says_so() {
        let mut left = 30;
        let mut search = Search::new(10.0, |load| {
            left -= 1;
            (left > 0).then_some(if load > 7.0 { 0.1 } else { 0.0 })
        });
        let found = search.find(&NDR, 9.0);
        assert!(!found.converged, "{found:?}");
    }
}
