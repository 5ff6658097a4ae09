//! The `[quantization.*]` tables of a recipe: their keys, and their values as a [`Spec`].

use std::fmt;
use std::ops::RangeInclusive;

use crate::document::{Key, KeyTable, Problem, TableReader, Writer, text};

/// Weights per absmax; a power of two among these.
const BLOCK_SIZES: RangeInclusive<usize> = 64..=4096;

/// `[quantization]`: how the frozen projections are stored, and which of them stay dense.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Quantization {
    /// How those are stored that are quantized.
    pub blocks: Spec,
    /// Patterns of the modules that stay dense; a decoder resolves them.
    pub keep: Vec<String>,
}

/// How quantized projections are stored.
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
    keep: Vec<String>,
}

impl Default for Nf4 {
    fn default() -> Self {
        Self { block_size: 64, double_quant: true, keep: Vec::new() }
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
        K::list("keep", text, |nf4| &mut nf4.keep)
            .means("Modules that stay dense: patterns for a module's path or its end, as [\"down_proj\", \"layers\\\\.0\\\\..*\"].")
            .also(&["llm_int8_skip_modules", "modules_to_not_convert", "skip_modules"])
            .added(),
    ],
    ..KeyTable::NEW
};

impl Quantization {
    /// What QLoRA and bitsandbytes do by default.
    pub const USUAL: Self = Self { blocks: Spec::USUAL, keep: Vec::new() };

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
            let Nf4 { block_size, double_quant, keep } = NF4.read(nf4);
            nf4.is_present().then_some(Self { blocks: Spec::Nf4 { block_size, double_quant }, keep })
        })
    }

    /// Writes the table.
    pub fn write(&self, writer: &mut Writer) {
        let Spec::Nf4 { block_size, double_quant } = self.blocks;
        NF4.write(&mut Nf4 { block_size, double_quant, keep: self.keep.clone() }, writer);
    }

    /// Reads what [`Display`](fmt::Display) writes.
    pub fn from_text(text: &str) -> Option<Self> {
        let (blocks, keep) = match text.split_once(KEEP) {
            None => (text, Vec::new()),
            Some((blocks, keep)) => (blocks, serde_json::from_str(keep).ok()?),
        };
        Some(Self { blocks: Spec::from_text(blocks)?, keep })
    }
}

/// Stands before the patterns, which follow as a JSON list.
const KEEP: &str = " keep=";

impl From<Spec> for Quantization {
    fn from(blocks: Spec) -> Self {
        Self { blocks, keep: Vec::new() }
    }
}

impl fmt::Display for Quantization {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}", self.blocks)?;
        match self.keep.is_empty() {
            true => Ok(()),
            false => write!(formatter, "{KEEP}{}", serde_json::Value::from(self.keep.clone())),
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
        let keep = vec!["down_proj".to_owned(), r"layers\.0\. keep=.*".to_owned()];
        for quantization in [Quantization { blocks: spec, keep }, Quantization::USUAL] {
            assert_eq!(Quantization::from_text(&quantization.to_string()), Some(quantization));
        }
        assert_eq!(Quantization::USUAL.to_string(), Spec::USUAL.to_string());
        assert_eq!(Quantization::from_text(&format!("{spec} keep=down_proj")), None);
    }
}
