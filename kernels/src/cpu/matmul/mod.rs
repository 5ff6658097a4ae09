//! The blocked product `C = Σ A · B`: packed rows against panels of columns that are made in a cache, tile by tile.
//!
//! `A` ([`PackedRows`]) is packed once. `B` ([`Columns`]) is a stored matrix, dense or NF4; its panels are unpacked
//! as they are needed, so no dense copy of a quantized weight exists. Several terms may add into one output (a
//! weight and its adapter, three projections of one input), and several products may share one fork. A finished
//! tile is handed to the product's `finish` in f32, to be rounded, added to or kept.
//!
//! Every output sums its terms and the blocks of each in one fixed order, whatever the number of threads.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "x86_64")]
mod avx512_bf16;
mod blocks;
mod columns;
#[cfg(target_arch = "x86_64")]
mod fill_avx2;
#[cfg(target_arch = "x86_64")]
mod fill_avx512;
mod kernel;
#[cfg(target_arch = "aarch64")]
mod neon;
mod portable;
mod product;
mod rows;
mod select;
mod split;
mod stored;

pub(crate) use blocks::Tile;
pub(crate) use columns::{Columns, PackedColumns, Side};
pub(crate) use product::{Place, Product, Term, multiply, multiply_packed, spin, task_bytes};
pub(crate) use rows::{PackedRows, RowSource};
pub(crate) use select::Kernels;
pub(crate) use stored::Stored;
