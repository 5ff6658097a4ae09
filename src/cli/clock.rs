//! How long a run has taken since it began or was resumed, and about how long it will still take: the steps that are left
//! at the pace of the newest ones, and the evaluations that are left at the mean of those so far.

use std::collections::VecDeque;
use std::fmt;
use std::time::{Duration, Instant};

/// Newest steps whose pace counts, at least.
const RECENT: usize = 20;
/// Time of the newest steps whose pace counts, at least.
const RECENT_TIME: Duration = Duration::from_secs(20);

/// The times of one run.
#[derive(Debug)]
pub(super) struct Clock {
    began: Instant,
    done: u64,
    total: u64,
    /// Steps between two evaluations; `None` without held-out rows.
    eval_steps: Option<u64>,
    /// Training time, without evaluations, at the newest steps.
    recent: VecDeque<(u64, Duration)>,
    training: Duration,
    evaluations: (u32, Duration),
    evaluating: bool,
    /// The moment up to which time is accounted for.
    since: Instant,
}

impl Clock {
    /// A run of `total` steps that begins, or goes on, behind step `done`.
    pub(super) fn new(done: u64, total: u64, eval_steps: Option<u64>, now: Instant) -> Self {
        Self {
            began: now,
            done,
            total,
            eval_steps,
            recent: VecDeque::from([(done, Duration::ZERO)]),
            training: Duration::ZERO,
            evaluations: (0, Duration::ZERO),
            evaluating: false,
            since: now,
        }
    }

    /// A step is done.
    pub(super) fn step(&mut self, step: u64, now: Instant) {
        self.account(now);
        self.done = step;
        self.recent.push_back((step, self.training));
        let is_old = |recent: &VecDeque<(u64, Duration)>| {
            recent.len() > RECENT
                && recent.get(1).is_some_and(|(_, then)| self.training - *then >= RECENT_TIME)
        };
        while is_old(&self.recent) {
            self.recent.pop_front();
        }
    }

    /// An evaluation is under way.
    pub(super) fn evaluating(&mut self, now: Instant) {
        self.account(now);
        self.evaluating = true;
    }

    /// An evaluation is done.
    pub(super) fn evaluated(&mut self, now: Instant) {
        self.account(now);
        if self.evaluating {
            self.evaluations.0 += 1;
        }
        self.evaluating = false;
    }

    fn account(&mut self, now: Instant) {
        let time = now.duration_since(std::mem::replace(&mut self.since, now));
        match self.evaluating {
            true => self.evaluations.1 += time,
            false => self.training += time,
        }
    }

    /// Time since the run began or was resumed.
    pub(super) fn elapsed(&self, now: Instant) -> Duration {
        now.duration_since(self.began)
    }

    /// About the time that is left; `None` before the first step.
    pub(super) fn left(&self, now: Instant) -> Option<Duration> {
        let ((first, before), (last, after)) = (self.recent.front()?, self.recent.back()?);
        let steps = last.checked_sub(*first).filter(|steps| *steps > 0)?;
        let per_step = (*after - *before).as_secs_f64() / steps as f64;
        let per_evaluation = match self.evaluations {
            (0, _) => 0.0,
            (count, time) => time.as_secs_f64() / f64::from(count),
        };
        let left = (self.total - self.done.min(self.total)) as f64 * per_step
            + self.evaluations_left() as f64 * per_evaluation;
        Some(Duration::from_secs_f64(left.max(0.0)).saturating_sub(now.duration_since(self.since)))
    }

    /// Evaluations behind the present step, the last one at the end.
    fn evaluations_left(&self) -> u64 {
        let Some(every) = self.eval_steps.map(|every| every.max(1)) else { return 0 };
        let at_intervals = (self.total / every).saturating_sub(self.done / every);
        let at_end = u64::from(self.done < self.total && !self.total.is_multiple_of(every));
        at_intervals + at_end
    }

    /// Both, in words.
    pub(super) fn words(&self, now: Instant) -> String {
        match self.left(now) {
            Some(left) => format!("{} elapsed, about {} left", Span(self.elapsed(now)), Span(left)),
            None => format!("{} elapsed", Span(self.elapsed(now))),
        }
    }
}

/// A span of time, as `0:09`, `12:34` or `1:02:03`.
pub(super) struct Span(pub(super) Duration);

impl fmt::Display for Span {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = self.0.as_secs_f64().round() as u64;
        let (hours, minutes, seconds) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
        match hours {
            0 => write!(formatter, "{minutes}:{seconds:02}"),
            _ => write!(formatter, "{hours}:{minutes:02}:{seconds:02}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A run of 40 steps of a second, evaluated for four seconds before the first and every ten.
    #[test]
    fn evaluations_are_counted_and_do_not_slow_the_steps() {
        let begin = Instant::now();
        let at = |seconds: u64| begin + Duration::from_secs(seconds);
        let mut clock = Clock::new(0, 40, Some(10), begin);
        clock.evaluating(begin);
        clock.evaluating(at(2));
        clock.evaluated(at(4));
        assert_eq!((clock.left(at(4)), clock.words(at(4)).as_str()), (None, "0:04 elapsed"));
        for step in 1..=10 {
            clock.step(step, at(4 + step));
        }
        // 30 steps, and evaluations at 20, 30 and 40; the one at 10 is accounted for when it is over.
        assert_eq!(clock.words(at(14)), "0:14 elapsed, about 0:42 left");
        clock.evaluating(at(14));
        clock.evaluated(at(18));
        clock.step(11, at(19));
        assert_eq!(clock.words(at(19)), "0:19 elapsed, about 0:41 left");
        // Between two steps it counts down.
        assert_eq!(clock.left(at(20)), Some(Duration::from_secs(40)));
    }

    #[test]
    fn a_resumed_run_counts_its_own_steps() {
        let begin = Instant::now();
        let at = |seconds: u64| begin + Duration::from_secs(seconds);
        let mut clock = Clock::new(49, 120, None, begin);
        clock.step(50, at(2));
        clock.step(51, at(4));
        assert_eq!(clock.words(at(4)), "0:04 elapsed, about 2:18 left");
        assert_eq!(Span(Duration::from_secs(3723)).to_string(), "1:02:03");
    }
}
