//! Threads that share tasks of some microseconds: those of decoding, where a product is over before a sleeping thread has
//! been woken.
//!
//! Helpers spin for a moment after each job, then sleep. A job is a closure and a number of tasks; a free thread claims
//! the next one:
//!
//! ```text
//! state = job number, tasks claimed      publish: state = (job + 1, closed), the job's fields, state = (job + 1, 0)
//!                                        claim:   state = (job, n) → (job, n + 1), if n is a task of it
//! done  = tasks that have ended          the leader returns when all have
//! ```
//!
//! Fields are read between reading the state and claiming. Who reads one of a later job, has its claim refused, since the
//! state changed before the field did. So a claim that succeeds is one of the job that the fields are of, and the closure
//! is alive until the claimed task has ended.

use std::any::Any;
use std::hint::spin_loop;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::ptr::null_mut;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::{self, Thread};

/// Turns of a helper without a task before it sleeps: some hundred microseconds.
const TURNS: u32 = 1 << 13;
/// Turns of the leader before it lets other threads have its core.
const PATIENCE: u32 = 1 << 10;

/// As the number of claimed tasks: none may be claimed.
const CLOSED: u64 = u32::MAX as u64;

/// The helpers, and the job that they share.
struct Team {
    helpers: Vec<Helper>,
    /// Held by the leader of the current job.
    leader: Mutex<()>,
    /// The job's number, and how many of its tasks are claimed.
    state: AtomicU64,
    /// Tasks of the job.
    count: AtomicU32,
    /// The closure, and the function that calls it.
    body: AtomicPtr<()>,
    call: AtomicPtr<()>,
    done: AtomicUsize,
    /// The first panic of a task.
    panic: Mutex<Option<Box<dyn Any + Send>>>,
}

struct Helper {
    sleeps: AtomicBool,
    thread: OnceLock<Thread>,
}

static TEAM: OnceLock<Team> = OnceLock::new();

/// Runs `body` with `0..count`, shared with the helpers. Returns false, and runs nothing, where another thread leads a
/// job.
pub(super) fn run<F: Fn(usize) + Sync>(count: usize, body: &F) -> bool {
    let (team, Ok(tasks)) = (team(), u32::try_from(count)) else { return false };
    let Ok(lead) = team.leader.try_lock() else { return false };
    let job = (team.state.load(Ordering::SeqCst) >> 32).wrapping_add(1) << 32;
    team.state.store(job | CLOSED, Ordering::SeqCst);
    team.done.store(0, Ordering::Release);
    team.count.store(tasks, Ordering::Release);
    team.body.store(std::ptr::from_ref(body).cast_mut().cast(), Ordering::Release);
    let call: unsafe fn(*mut (), usize) = call::<F>;
    team.call.store(call as *mut (), Ordering::Release);
    team.state.store(job, Ordering::SeqCst);
    for helper in &team.helpers {
        if helper.sleeps.swap(false, Ordering::SeqCst)
            && let Some(thread) = helper.thread.get()
        {
            thread.unpark();
        }
    }
    while team.work() {}
    let mut turns = 0;
    while team.done.load(Ordering::Acquire) < count {
        turns += 1;
        if turns % PATIENCE == 0 { thread::yield_now() } else { spin_loop() }
    }
    let panic = team.panic().take();
    // A panic that unwound past the lock would poison it, and the team would serve no later job.
    drop(lead);
    if let Some(panic) = panic {
        resume_unwind(panic);
    }
    true
}

/// Calls the closure behind `body`.
///
/// # Safety
/// `body` points to an `F` that is alive.
unsafe fn call<F: Fn(usize)>(body: *mut (), task: usize) {
    // SAFETY: as the caller promises.
    unsafe { (*body.cast::<F>().cast_const())(task) }
}

/// The team; its first use starts a helper for each thread of the pool but one.
fn team() -> &'static Team {
    let team = TEAM.get_or_init(|| {
        let helper = |_| Helper { sleeps: AtomicBool::new(false), thread: OnceLock::new() };
        Team {
            helpers: (1..rayon::current_num_threads()).map(helper).collect(),
            leader: Mutex::new(()),
            state: AtomicU64::new(0),
            count: AtomicU32::new(0),
            body: AtomicPtr::new(null_mut()),
            call: AtomicPtr::new(null_mut()),
            done: AtomicUsize::new(0),
            panic: Mutex::new(None),
        }
    });
    static STARTED: OnceLock<()> = OnceLock::new();
    STARTED.get_or_init(|| {
        for (number, helper) in team.helpers.iter().enumerate() {
            let name = format!("decode-{}", number + 1);
            // Without a helper its tasks are done by the others.
            let started = thread::Builder::new().name(name).spawn(move || team.help(helper));
            if let Ok(started) = started {
                let _first = helper.thread.set(started.thread().clone());
            }
        }
    });
    team
}

impl Team {
    /// Claims and runs one task; false if none is left.
    fn work(&self) -> bool {
        let state = self.state.load(Ordering::SeqCst);
        let task = state as u32;
        let (count, body, call) = (
            self.count.load(Ordering::Acquire),
            self.body.load(Ordering::Acquire),
            self.call.load(Ordering::Acquire),
        );
        if task >= count || call.is_null() {
            return false;
        }
        if self.state.compare_exchange(state, state + 1, Ordering::SeqCst, Ordering::Relaxed).is_err() {
            // Another thread was faster.
            return true;
        }
        // SAFETY: the claim succeeded, so that the fields are those of the job (see the module's page), `call` is the
        // function for its closure, and the closure is borrowed by `run` until `done` has counted this task.
        let result = catch_unwind(AssertUnwindSafe(|| unsafe {
            let call = std::mem::transmute::<*mut (), unsafe fn(*mut (), usize)>(call);
            call(body, task as usize);
        }));
        if let Err(panic) = result {
            self.panic().get_or_insert(panic);
        }
        self.done.fetch_add(1, Ordering::Release);
        true
    }

    fn help(&self, helper: &Helper) {
        let mut turns = 0;
        loop {
            if self.work() {
                turns = 0;
            } else if turns < TURNS {
                turns += 1;
                spin_loop();
            } else {
                helper.sleeps.store(true, Ordering::SeqCst);
                // A job that was published before the leader could see that this thread sleeps.
                let is_idle = self.state.load(Ordering::SeqCst) as u32 >= self.count.load(Ordering::SeqCst);
                if is_idle && helper.sleeps.load(Ordering::SeqCst) {
                    thread::park();
                }
                helper.sleeps.store(false, Ordering::SeqCst);
                turns = 0;
            }
        }
    }

    fn panic(&self) -> MutexGuard<'_, Option<Box<dyn Any + Send>>> {
        self.panic.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_task_is_done_once_however_short_the_jobs_are() {
        for job in 0..3000 {
            let count = 1 + job % 37;
            let seen: Vec<AtomicU32> = (0..count).map(|_| AtomicU32::new(0)).collect();
            let body = |task: usize| _ = seen[task].fetch_add(1, Ordering::Relaxed);
            if !run(count, &body) {
                // Another test leads.
                continue;
            }
            assert!(seen.iter().all(|times| times.load(Ordering::Relaxed) == 1), "job {job}");
            if job % 500 == 0 {
                // Long enough for the helpers to fall asleep.
                thread::sleep(std::time::Duration::from_millis(5));
            }
        }
    }

    #[test]
    fn a_panic_reaches_the_leader_and_the_team_goes_on() {
        let panics = |task: usize| assert_ne!(task, 5, "on purpose");
        let run_until_led = |body: &(dyn Fn(usize) + Sync)| while !run(9, &body) {};
        let result = catch_unwind(AssertUnwindSafe(|| run_until_led(&panics)));
        assert!(result.is_err());
        let done = AtomicU32::new(0);
        run_until_led(&|_| _ = done.fetch_add(1, Ordering::Relaxed));
        assert_eq!(done.into_inner(), 9);
    }
}
