//! Every op on every backend and dtype against its oracle, forward and backward, over odd shapes; the oracles
//! themselves against finite differences; and the same bytes from any number of threads.
#![expect(clippy::expect_used, reason = "helpers of tests stop where they fail")]

#[path = "parity/adamw.rs"]
mod adamw;
#[path = "parity/attention.rs"]
mod attention;
#[path = "parity/device.rs"]
mod device;
#[path = "parity/elementwise.rs"]
mod elementwise;
#[path = "parity/finite_differences.rs"]
mod finite_differences;
#[path = "parity/linear.rs"]
mod linear;
#[path = "parity/linear_cross_entropy.rs"]
mod linear_cross_entropy;
#[path = "parity/mixture.rs"]
mod mixture;
#[path = "parity/nf4.rs"]
mod nf4;
#[path = "parity/recurrent.rs"]
mod recurrent;
#[path = "parity/support.rs"]
mod support;
#[path = "parity/threads.rs"]
mod threads;
