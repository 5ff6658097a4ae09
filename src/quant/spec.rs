//! The `[quantization.*]` table of a recipe, as a typed value.

use std::fmt;

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

impl fmt::Display for Spec {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Nf4 { block_size, double_quant } => {
                write!(formatter, "nf4 block_size={block_size} double_quant={double_quant}")
            }
        }
    }
}

impl Spec {
    /// What QLoRA and bitsandbytes do where nothing else is said.
    pub const USUAL: Self = Self::Nf4 { block_size: 64, double_quant: true };

    /// Reads what [`Display`](fmt::Display) writes.
    pub fn from_text(text: &str) -> Option<Self> {
        let mut words = text.strip_prefix("nf4 ")?.split(' ');
        let block_size: usize = words.next()?.strip_prefix("block_size=")?.parse().ok()?;
        let double_quant = words.next()?.strip_prefix("double_quant=")?.parse().ok()?;
        let plausible = block_size.is_power_of_two() && (64..=4096).contains(&block_size);
        (plausible && words.next().is_none()).then_some(Self::Nf4 { block_size, double_quant })
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_read_back() {
        let spec = Spec::Nf4 { block_size: 128, double_quant: false };
        assert_eq!(Spec::from_text(&spec.to_string()), Some(spec));
        assert_eq!(Spec::from_text("none"), None);
        assert_eq!(Spec::from_text("nf4 block_size=3 double_quant=true"), None);
    }
}
