//! When to fork: rayon for work that pays for it, the calling thread for the rest.

use rayon::prelude::*;

use super::{isa, team};

/// Elementary operations below which forking costs more than it saves (a fork-join is about 5 to 10 µs).
const WORTH_A_FORK: usize = 1 << 17;

/// Elementary operations below which sharing with threads that are awake costs more than it saves.
const WORTH_SHARING: usize = 1 << 14;

/// Runs `body` with `0..count`, as [`for_range`], for jobs of some microseconds that follow one upon another: threads stay
/// awake between them.
pub(crate) fn share(count: usize, work: usize, body: impl Fn(usize) + Sync + Send) {
    if count < 2 || work < WORTH_SHARING || threads() < 2 {
        return (0..count).for_each(body);
    }
    let set = isa::forced();
    let body = |index: usize| isa::scoped(set, || body(index));
    if !team::run(count, &body) {
        (0..count).into_par_iter().with_max_len(1).for_each(body);
    }
}

/// Runs `body` on every task; in parallel if the whole is worth it. `work` is the total of elementary operations
/// (a multiply-add, a byte moved). Tasks run in any order and must not depend on one another.
pub(crate) fn for_each<T: Send>(tasks: Vec<T>, work: usize, body: impl Fn(T) + Sync + Send) {
    if tasks.len() < 2 || work < WORTH_A_FORK {
        tasks.into_iter().for_each(body);
    } else {
        let set = isa::forced();
        tasks.into_par_iter().with_max_len(1).for_each(|task| isa::scoped(set, || body(task)));
    }
}

/// [`for_each`], with what `body` returns of each task, in their order.
pub(crate) fn map<T: Send, R: Send>(
    tasks: Vec<T>,
    work: usize,
    body: impl Fn(T) -> R + Sync + Send,
) -> Vec<R> {
    if tasks.len() < 2 || work < WORTH_A_FORK {
        tasks.into_iter().map(body).collect()
    } else {
        let set = isa::forced();
        tasks.into_par_iter().with_max_len(1).map(|task| isa::scoped(set, || body(task))).collect()
    }
}

/// [`for_each`] over `0..count`.
pub(crate) fn for_range(count: usize, work: usize, body: impl Fn(usize) + Sync + Send) {
    if count < 2 || work < WORTH_A_FORK {
        (0..count).for_each(body);
    } else {
        let set = isa::forced();
        (0..count).into_par_iter().with_max_len(1).for_each(|index| isa::scoped(set, || body(index)));
    }
}

/// Runs `work` on a thread of the pool, from which its forks need not be handed over and waited for.
pub(crate) fn on_workers<R: Send>(work: impl FnOnce() -> R + Send) -> R {
    let set = isa::forced();
    rayon::scope(|_| isa::scoped(set, work))
}

/// Threads that tasks are spread over.
pub(crate) fn threads() -> usize {
    rayon::current_num_threads()
}

/// Rows per task for row-wise work on `[rows, width]`, so that a task holds some 16 Ki elements.
pub(crate) fn rows_per_task(width: usize) -> usize {
    ((1usize << 14) / width.max(1)).max(1)
}
