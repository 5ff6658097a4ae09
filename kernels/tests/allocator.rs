//! A program whose memory is out has the last word.

use std::process::{self, Command};

use tune_kernels::allocator::Allocator;

#[global_allocator]
static ALLOCATOR: Allocator = Allocator::new(out_of_memory);

/// What the program ends with.
const EXIT: i32 = 77;

/// Set where this test runs as that program.
const FLAG: &str = "TUNE_TEST_TAKES_ALL_MEMORY";

/// More than any address space has.
const BYTES: usize = isize::MAX as usize / 2;

fn out_of_memory(bytes: usize) -> ! {
    process::exit(if bytes == BYTES { EXIT } else { 1 })
}

#[test]
fn memory_that_is_not_there_ends_the_program_as_it_wants() {
    if std::env::var_os(FLAG).is_some() {
        let all: Vec<u8> = Vec::with_capacity(BYTES);
        process::exit(all.capacity().min(1) as i32);
    }
    let mut child = Command::new(std::env::current_exe().unwrap());
    let status =
        child.env(FLAG, "1").args(["--exact", "memory_that_is_not_there_ends_the_program_as_it_wants"]);
    assert_eq!(status.output().unwrap().status.code(), Some(EXIT));
}
