//! tune: fine-tune an open-weight language model from one binary.

pub mod adapter;
pub mod assets;
pub mod data;
pub mod document;
pub mod files;
pub mod generate;
pub mod model;
pub mod quant;
pub mod recipe;
pub mod train;
pub mod units;
