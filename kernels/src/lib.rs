//! The numerical operations that tune owns: one op, one folder, one scalar oracle.
//!
//! Hidden states are `[tokens, hidden]`, always flat: a micro-batch is the concatenation of its documents without
//! padding; [`attention::DocumentOffsets`] separates them. The compute dtype is that of `x` (f32, bf16 or f16);
//! every sum is accumulated in f32. Each op is a function over a [`KernelBackend`], and so is its backward: the
//! trainer calls both itself, there is no graph.
//!
//! | folder | op |
//! |---|---|
//! | [`linear`] | frozen weights (dense or [`nf4`]) over one input, bias, LoRA with dropout |
//! | [`grouped_linear`], [`router`] | experts over ranges of rows, and which tokens each computes |
//! | [`rms_norm`], [`layer_norm`], [`rope`], [`gated`], [`activation`] | the rest of a decoder layer's arithmetic |
//! | [`attention`] | causal, grouped-query, per document, sliding window, capped scores |
//! | [`causal_conv`], [`delta_rule`] | short convolutions and recurrent states, per document |
//! | [`column_scale`] | a factor for each column: DoRA's magnitudes |
//! | [`linear_cross_entropy`] | output head and loss, never all logits |
//! | [`segment_sum`], [`row_scale`] | losses by document, and rows that are weighed |
//! | [`row_sum`] | rows that are copied or added up: the keys of a prompt that two answers read, the tokens of experts |
//! | [`adamw`] | the optimizer's update, and the norm for clipping |
//! | [`ggml`] | weights coded in the block formats of GGUF files |
//!
//! In each, `mod.rs` states formula and shapes and owns the op's trait, `reference.rs` is the slow oracle that judges the
//! others, and `cpu.rs` and `cube.rs` implement the trait on the CPU and on GPUs (the formats of [`ggml`] are judged by
//! ggml's own bytes). A [`KernelBackend`] has all of these traits. On one machine results are the same, bit for bit, for any
//! number of threads. All unsafe code of the project is in this crate.

pub mod activation;
pub mod adamw;
pub mod allocator;
pub mod attention;
pub mod backend;
pub mod causal_conv;
pub mod ceiling;
pub mod check;
pub mod column_scale;
#[cfg(any(feature = "cuda", test))]
mod copier;
mod cpu;
#[cfg(feature = "cube")]
mod cube;
pub mod delta_rule;
pub mod device;
pub mod dropout;
pub mod fault;
pub mod gated;
pub mod ggml;
#[cfg(feature = "cube")]
pub mod gpu;
pub mod grouped_linear;
pub mod layer_norm;
pub mod linear;
pub mod linear_cross_entropy;
pub mod memory;
pub mod nf4;
pub mod rms_norm;
pub mod rope;
pub mod router;
pub mod row_scale;
pub mod row_sum;
pub mod segment_sum;
pub mod sum;

pub use backend::KernelBackend;
pub use cpu::isa;
pub use cpu::pool;
pub use device::{Fence, Parked, Reading};
