//! The `tune` binary: it sets up the allocator and hands the command line to the library.
#![forbid(unsafe_code)]

use std::process::ExitCode;

use tune_kernels::allocator::{self, Allocator};

/// Says that memory is out, where Rust would crash.
#[global_allocator]
static ALLOCATOR: Allocator = Allocator::new(tune::cli::out_of_memory);

fn main() -> ExitCode {
    allocator::keep_little();
    tune::cli::main()
}
