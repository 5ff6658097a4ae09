//! The `tune` binary: all it does is hand the command line to the library.
#![forbid(unsafe_code)]

use std::process::ExitCode;

fn main() -> ExitCode {
    tune::cli::main()
}
