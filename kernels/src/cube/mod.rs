//! What the ops share on every GPU, generic over CubeCL's runtimes (CUDA, Vulkan, Metal). Knows no op.
//!
//! Kernels are launched in the order of their calls and run later; no op waits for the device. Sums are taken in an order
//! that depends on shapes alone: the same call on the same device gives the same bits.

pub(crate) mod convert;
mod device;
mod in_step;
mod mask;
mod operand;
mod order;
mod passes;
mod plain;
pub(crate) mod product;
pub(crate) mod read;
pub(crate) mod reduce;
mod sink;
pub(crate) mod skinny;
pub(crate) mod special;
pub(crate) mod tensor;
pub(crate) mod uploads;
mod watch;
