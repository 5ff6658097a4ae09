//! The learning rate of every optimizer step, as transformers' `get_scheduler` computes it.
//!
//! With `s` steps done before this one, `w` warm-up steps and `n` steps in all, the factor on the peak rate is
//! `s / max(1, w)` during warm-up; afterwards, with `p = (s − w) / max(1, n − w)`:
//! constant `1`, linear `max(0, 1 − p)`, cosine `max(0, (1 + cos πp) / 2)`.
//! The first step of a warm-up therefore runs at rate zero, there as here.

use super::spec::{LrScheduler, Spec, Warmup};

/// A learning-rate schedule over a known number of steps.
#[derive(Clone, Copy, Debug)]
pub struct Schedule {
    kind: LrScheduler,
    peak: f64,
    warmup_steps: u64,
    total_steps: u64,
}

impl Schedule {
    /// The schedule of a recipe whose run takes `total_steps` optimizer steps.
    pub fn new(spec: &Spec, total_steps: u64) -> Self {
        let warmup_steps = match spec.warmup {
            Warmup::Steps(steps) => steps,
            Warmup::Ratio(ratio) => (total_steps as f64 * ratio).ceil() as u64,
        };
        Self { kind: spec.lr_scheduler, peak: spec.learning_rate, warmup_steps, total_steps }
    }

    /// The learning rate of optimizer step `step`, counted from 1.
    pub fn learning_rate(&self, step: u64) -> f64 {
        let done = step.saturating_sub(1);
        if done < self.warmup_steps {
            return self.peak * done as f64 / self.warmup_steps.max(1) as f64;
        }
        let progress = (done - self.warmup_steps) as f64
            / self.total_steps.saturating_sub(self.warmup_steps).max(1) as f64;
        self.peak
            * match self.kind {
                LrScheduler::Constant => 1.0,
                LrScheduler::Linear => (1.0 - progress).max(0.0),
                LrScheduler::Cosine => (0.5 * (1.0 + (std::f64::consts::PI * progress).cos())).max(0.0),
            }
    }

    /// Steps of linear warm-up.
    pub fn warmup_steps(&self) -> u64 {
        self.warmup_steps
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Factors of `transformers.get_scheduler(name, optimizer, num_warmup_steps=3, num_training_steps=10)`,
    /// read with `get_last_lr` before each of ten steps.
    const LINEAR: [f64; 10] =
        [0.0, 1.0 / 3.0, 2.0 / 3.0, 1.0, 6.0 / 7.0, 5.0 / 7.0, 4.0 / 7.0, 3.0 / 7.0, 2.0 / 7.0, 1.0 / 7.0];
    const COSINE: [f64; 10] = [
        0.0,
        0.333_333_333_333_333_3,
        0.666_666_666_666_666_6,
        1.0,
        0.950_484_433_951_209_5,
        0.811_744_900_929_366_8,
        0.611_260_466_978_157_2,
        0.388_739_533_021_842_8,
        0.188_255_099_070_633_2,
        0.049_515_566_048_790_43,
    ];

    fn schedule(kind: LrScheduler, warmup_steps: u64) -> Schedule {
        Schedule { kind, peak: 1.0, warmup_steps, total_steps: 10 }
    }

    #[test]
    fn agrees_with_transformers() {
        for (kind, expected) in [(LrScheduler::Linear, LINEAR), (LrScheduler::Cosine, COSINE)] {
            for (index, factor) in expected.into_iter().enumerate() {
                let ours = schedule(kind, 3).learning_rate(index as u64 + 1);
                assert!((ours - factor).abs() < 1e-12, "{kind:?} step {}: {ours} for {factor}", index + 1);
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
