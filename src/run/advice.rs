//! What a person should know about the plan of a run before it begins: settings that are allowed, and rarely meant.

use crate::recipe::Recipe;
use crate::train::schedule::Schedule;
use crate::units::Grouped;

/// Held-out rows below which their loss tells little.
const FEW_HELD_OUT: u64 = 10;
/// Passes over the rows above which a model usually learns them by heart.
const MANY_EPOCHS: f64 = 10.0;
/// Share of the steps above which a warm-up leaves little of the run.
const LONG_WARMUP: f64 = 0.3;
/// Runs of at most in steps get a note when the first one has rate zero.
const SHORT_RUN: u64 = 20;

/// Notes on a run of `steps` optimizer steps over `epochs` passes, with so many held-out rows.
pub(super) fn advice(recipe: &Recipe, steps: u64, epochs: f64, held_out: u64) -> Vec<String> {
    let mut notes = Vec::new();
    if (1..FEW_HELD_OUT).contains(&held_out) {
        notes.push(format!(
            "{held_out} held-out rows are few: their loss varies by chance; raise `data.val_split`, or hold out a \
             `[[dataset]]` of its own"
        ));
    }
    if epochs > MANY_EPOCHS {
        notes.push(format!(
            "every row is seen {epochs:.0} times: the model may learn the rows by heart; watch the held-out loss, or lower \
             `train.epochs`"
        ));
    }
    let schedule = Schedule::new(&recipe.train, steps);
    let warmup = schedule.warmup_steps();
    if steps > 0 && (1..=steps).all(|step| schedule.learning_rate(step) == 0.0) {
        notes.push(
            "every step has learning rate 0, so nothing is learned: set `train.warmup_steps = 0`".to_owned(),
        );
    } else if warmup as f64 > LONG_WARMUP * steps as f64 && warmup > 1 {
        notes.push(format!(
            "the warm-up takes {} of {} steps; lower `train.warmup_steps` or `train.warmup_ratio`",
            Grouped(warmup.min(steps)),
            Grouped(steps)
        ));
    } else if steps <= SHORT_RUN && schedule.learning_rate(1) == 0.0 {
        notes.push("step 1 changes nothing: the warm-up begins at learning rate 0".to_owned());
    }
    notes
}
