//! CUDA without a GPU: the kernels that a card would run, as CUDA C++ by CubeCL's compiler, kept for NVIDIA's compilers
//! (`sources`) and run on the CPU beside the oracles (`emulated`). `TUNE_CUDA_ARCH` names the card's architecture (75, 80, 86,
//! 89, 90, 120): it is 80 without. By it shared memory, and so tiles, and instructions are chosen.
#![expect(clippy::expect_used, clippy::panic, reason = "helpers of tests stop where they fail")]

mod card;
mod emulated;
mod emulator;
mod runtime;
mod sources;
