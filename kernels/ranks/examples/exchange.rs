//! Seconds of a sum over ranks, for the gradients of adapters of three sizes, or of those named in megabytes:
//!
//!     cargo build --release -p tune-ranks --example exchange
//!     mpirun -n 2 target/release/examples/exchange [LIBRARY [MEGABYTES…]]
#![expect(clippy::print_stdout, reason = "the figures are its output")]

use std::time::{Duration, Instant};

use tune_ranks::{Error, Ranks};

const ROUNDS: usize = 7;

fn main() -> Result<(), Error> {
    let mut arguments = std::env::args().skip(1);
    let library = arguments.next();
    let named: Vec<f64> = arguments.filter_map(|size| size.parse().ok()).collect();
    let sizes = if named.is_empty() { vec![1.3, 20.0, 168.0] } else { named };
    let ranks = Ranks::mpi(library.as_ref().map(std::path::Path::new), None, Duration::from_secs(60))?;
    if ranks.rank() == 0 {
        println!("{} ranks, {}", ranks.size(), ranks.library().unwrap_or("no library"));
    }
    for megabytes in sizes {
        let values = (megabytes * 1e6 / 4.0) as usize;
        let mine = |rank: usize| (0..values).map(move |at| (at % 1000 + rank) as f32);
        let expected: Vec<f32> =
            (0..values).map(|at| (0..ranks.size()).map(|rank| (at % 1000 + rank) as f32).sum()).collect();
        let mut seconds = Vec::with_capacity(ROUNDS);
        for _ in 0..ROUNDS {
            let given: Vec<f32> = mine(ranks.rank()).collect();
            ranks.gather(&[])?;
            let began = Instant::now();
            let sum = ranks.sum(given)?;
            seconds.push(began.elapsed().as_secs_f64());
            assert!(sum == expected, "a wrong sum");
        }
        seconds.sort_by(f64::total_cmp);
        if ranks.rank() == 0 {
            let all: Vec<String> = seconds.iter().map(|seconds| format!("{seconds:.4}")).collect();
            println!("{megabytes:>6} MB  {} s", all.join(", "));
        }
    }
    Ok(())
}
