//! The learning rate of every optimizer step, as transformers' `get_scheduler` computes it.
//!
//! With `s` steps done before this one, `w` warm-up steps and `n` steps in all, the factor on the peak rate is
//! `s / max(1, w)` during warm-up. Afterwards, with `p = (s − w) / max(1, n − w)`, `m` the `min_lr_rate` and `d` the
//! `decay_steps`:
//!
//! | schedule | factor |
//! |---|---|
//! | constant | 1 |
//! | linear | max(0, 1 − p) |
//! | cosine | max(0, (1 + cos πp) / 2) |
//! | cosine_with_min_lr | m + (1 − m) · (1 + cos πp) / 2 |
//! | warmup_stable_decay | 1 up to step n − d, then m + (1 − m) · (1 + cos π(s − n + d)/d) / 2; warm-up from m |
//! | inverse_sqrt | √(t / (s − w + t)) with t = w, or 10,000 without a warm-up |
//!
//! The first step of a warm-up from zero therefore runs at rate zero, there as here.

use super::spec::{LrScheduler, Spec, Warmup};

/// The time scale of `inverse_sqrt` without a warm-up.
const TIMESCALE: u64 = 10_000;

/// A learning-rate schedule over a known number of steps.
#[derive(Clone, Copy, Debug)]
pub struct Schedule {
    kind: LrScheduler,
    peak: f64,
    /// Share of the peak that a decay ends at.
    floor: f64,
    warmup_steps: u64,
    decay_steps: u64,
    total_steps: u64,
}

impl Schedule {
    /// The schedule of a recipe whose run takes `total_steps` optimizer steps.
    pub fn new(spec: &Spec, total_steps: u64) -> Self {
        let warmup_steps = match spec.warmup {
            Warmup::Steps(steps) => steps,
            Warmup::Ratio(ratio) => (total_steps as f64 * ratio).ceil() as u64,
        };
        Self {
            kind: spec.lr_scheduler,
            peak: spec.learning_rate,
            floor: spec.min_lr_rate,
            warmup_steps,
            decay_steps: spec.decay_steps.unwrap_or(total_steps.div_ceil(10)),
            total_steps,
        }
    }

    /// The learning rate of optimizer step `step`, counted from 1.
    pub fn learning_rate(&self, step: u64) -> f64 {
        let done = step.saturating_sub(1);
        if done < self.warmup_steps {
            let risen = done as f64 / self.warmup_steps.max(1) as f64;
            return match self.kind {
                LrScheduler::WarmupStableDecay => self.peak * self.above_floor(risen),
                _ => self.peak * risen,
            };
        }
        let since_warmup = done - self.warmup_steps;
        let progress = since_warmup as f64 / self.total_steps.saturating_sub(self.warmup_steps).max(1) as f64;
        self.peak
            * match self.kind {
                LrScheduler::Constant => 1.0,
                LrScheduler::Linear => (1.0 - progress).max(0.0),
                LrScheduler::Cosine => half_cosine(progress).max(0.0),
                LrScheduler::CosineWithMinLr => self.above_floor(half_cosine(progress)).max(0.0),
                LrScheduler::WarmupStableDecay => self.stable_then_decayed(done),
                LrScheduler::InverseSqrt => {
                    let scale = if self.warmup_steps == 0 { TIMESCALE } else { self.warmup_steps } as f64;
                    1.0 / ((since_warmup as f64 + scale) / scale).sqrt()
                }
            }
    }

    /// The factor of `warmup_stable_decay` behind its warm-up.
    fn stable_then_decayed(&self, done: u64) -> f64 {
        let begin = self.total_steps as f64 - self.decay_steps as f64;
        match done as f64 {
            done if done < begin => 1.0,
            _ if done >= self.total_steps => self.floor,
            done => self.above_floor(half_cosine((done - begin) / self.decay_steps.max(1) as f64)).max(0.0),
        }
    }

    /// A factor from 0 to 1 as one from the floor to 1.
    fn above_floor(&self, factor: f64) -> f64 {
        factor * (1.0 - self.floor) + self.floor
    }

    /// Steps of linear warm-up.
    pub fn warmup_steps(&self) -> u64 {
        self.warmup_steps
    }
}

/// Half a cosine from 1 to 0 over `progress` from 0 to 1.
fn half_cosine(progress: f64) -> f64 {
    0.5 * (1.0 + (std::f64::consts::PI * progress).cos())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::document::Word;

    fn schedule(kind: LrScheduler, warmup_steps: u64) -> Schedule {
        Schedule { kind, peak: 1.0, floor: 0.0, warmup_steps, decay_steps: 1, total_steps: 10 }
    }

    #[test]
    fn agrees_with_transformers() {
        let cases: Vec<serde_json::Value> =
            serde_json::from_str(include_str!("../../tests/golden/schedules.json")).unwrap();
        assert_eq!(cases.len(), 9);
        for case in &cases {
            let name = case["name"].as_str().unwrap();
            let (_, kind) = LrScheduler::WORDS.iter().find(|(word, _)| *word == name).unwrap();
            let floor = case["min_lr_rate"].as_f64().or(case["min_lr_ratio"].as_f64()).unwrap_or(0.0);
            let decay_steps = case["num_decay_steps"].as_u64().unwrap_or(1);
            let schedule =
                Schedule { floor, decay_steps, ..schedule(*kind, case["warmup_steps"].as_u64().unwrap()) };
            for (index, factor) in case["rates"].as_array().unwrap().iter().enumerate() {
                let (ours, factor) = (schedule.learning_rate(index as u64 + 1), factor.as_f64().unwrap());
                assert!((ours - factor).abs() < 1e-12, "{case} step {}: {ours} for {factor}", index + 1);
            }
        }
    }

    #[test]
    fn constant_holds_its_peak_after_warmup() {
        let schedule = schedule(LrScheduler::Constant, 2);
        assert_eq!(
            (1..=5).map(|step| schedule.learning_rate(step)).collect::<Vec<_>>(),
            [0.0, 0.5, 1.0, 1.0, 1.0]
        );
    }

    #[test]
    fn a_run_of_warmup_alone_does_not_divide_by_zero() {
        let schedule = schedule(LrScheduler::Cosine, 10);
        assert_eq!(schedule.learning_rate(10), 0.9);
        assert_eq!(schedule.learning_rate(11), 1.0);
    }
}
