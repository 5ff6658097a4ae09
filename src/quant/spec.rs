//! The `[quantization.*]` table of a recipe, as a typed value.

use crate::document::{Kind, Misfit, Problem, TableReader, Value, Writer, integer, truth};

/// How the frozen projections are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Spec {
    /// 4-bit NormalFloat.
    Nf4 {
        /// Weights per absmax: a power of two, 64 to 4096.
        block_size: usize,
        /// Quantize the absmax values too.
        double_quant: bool,
    },
}

impl Spec {
    /// Reads the `[quantization]` table, in which the table's name is the kind; nothing, when it is left out:
    /// the base stays as dense as it is.
    pub fn read(quantization: &mut TableReader<'_, '_>) -> Option<Self> {
        if quantization.is_present() && quantization.is_empty() {
            let problem = Problem::new(
                "recipe::missing_table",
                quantization.header(),
                "`[quantization]` does not say which kind",
            );
            quantization.report(problem.label("no kind").help(
                "write `[quantization.nf4]`, or leave the table out to train a plain LoRA on the dense base",
            ));
        }
        quantization.table("nf4", |nf4| {
            let block_size = nf4.key("block_size", block_size).or(64);
            let double_quant = nf4.key("double_quant", truth).or(true);
            nf4.is_present().then_some(Self::Nf4 { block_size, double_quant })
        })
    }

    /// Writes the table with every value.
    pub fn write(&self, writer: &mut Writer) {
        match self {
            Self::Nf4 { block_size, double_quant } => {
                writer.table("quantization.nf4");
                writer.key("block_size", *block_size);
                writer.key("double_quant", *double_quant);
            }
        }
    }
}

/// A power of two, 64 to 4096.
fn block_size(value: &Value) -> Result<usize, Vec<Misfit>> {
    let size = integer(64..=4096)(value)?;
    match value.kind {
        Kind::Integer(_) if !usize::is_power_of_two(size) => Err(vec![
            Misfit::new(value, format!("{size} is not a power of two"), "not a power of two")
                .help("one of 64, 128, 256, 512, 1024, 2048, 4096"),
        ]),
        _ => Ok(size),
    }
}
