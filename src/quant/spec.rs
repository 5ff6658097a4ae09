//! The `[quantization.*]` tables of a recipe: their keys, and their values as a [`Spec`].

use std::fmt;
use std::ops::RangeInclusive;

use crate::document::{Key, KeyTable, Problem, TableReader, Writer};

/// Weights per absmax; a power of two among these.
const BLOCK_SIZES: RangeInclusive<usize> = 64..=4096;

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

/// `[quantization.nf4]`.
pub(crate) struct Nf4 {
    block_size: usize,
    double_quant: bool,
}

impl Default for Nf4 {
    fn default() -> Self {
        Self { block_size: 64, double_quant: true }
    }
}

type K = Key<Nf4>;

pub(crate) static NF4: KeyTable<Nf4> = KeyTable {
    path: "quantization.nf4",
    meaning: "Stores the frozen projections in 4 bits (NF4); without this table they keep the checkpoint's dtype.",
    also: &[
        "load_in_4bit",
        "quantize",
        "quantization_bit",
        "bnb_4bit_quant_type",
        "bnb_config",
        "bnb",
        "quantization_config",
        "qlora",
        "nf4",
    ],
    keys: &[
        K::power_of_two("block_size", BLOCK_SIZES, |nf4| &mut nf4.block_size)
            .means("Weights that share one absmax.")
            .also(&["blocksize", "bnb_4bit_blocksize"]),
        K::flag("double_quant", |nf4| &mut nf4.double_quant)
            .means("Quantize the absmax values too, to 8 bits.")
            .also(&["bnb_4bit_use_double_quant", "double_quantization", "use_double_quant"]),
    ],
    ..KeyTable::NEW
};

impl Spec {
    /// Reads the `[quantization]` table, in which the table's name is the kind; `None` if it is absent: the base stays
    /// dense.
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
            let Nf4 { block_size, double_quant } = NF4.read(nf4);
            nf4.is_present().then_some(Self::Nf4 { block_size, double_quant })
        })
    }

    /// Writes the table.
    pub fn write(&self, writer: &mut Writer) {
        match *self {
            Self::Nf4 { block_size, double_quant } => {
                NF4.write(&mut Nf4 { block_size, double_quant }, writer);
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
    /// What QLoRA and bitsandbytes use by default.
    pub const USUAL: Self = Self::Nf4 { block_size: 64, double_quant: true };

    /// Reads what [`Display`](fmt::Display) writes.
    pub fn from_text(text: &str) -> Option<Self> {
        let mut words = text.strip_prefix("nf4 ")?.split(' ');
        let block_size: usize = words.next()?.strip_prefix("block_size=")?.parse().ok()?;
        let double_quant = words.next()?.strip_prefix("double_quant=")?.parse().ok()?;
        let plausible = block_size.is_power_of_two() && BLOCK_SIZES.contains(&block_size);
        (plausible && words.next().is_none()).then_some(Self::Nf4 { block_size, double_quant })
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
