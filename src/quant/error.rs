//! Errors of quantized tensors. Every message names the tensor.

use crate::assets;

/// A quantized tensor that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file it lies in is at fault.
    #[error(transparent)]
    Assets(#[from] assets::Error),
    /// A tensor of a 4-bit weight is missing or misshapen, or its quantization state contradicts it.
    #[error("4-bit weight `{weight}`: {message}")]
    FourBit {
        /// The weight.
        weight: String,
        /// What is wrong.
        message: String,
    },
    /// An 8-bit weight.
    #[error(
        "tensor `{weight}` was quantized to 8 bits (LLM.int8); only 4-bit bitsandbytes checkpoints can be read: \
         take the unquantized model and let `[quantization.nf4]` quantize it"
    )]
    EightBit {
        /// The weight.
        weight: String,
    },
    /// The recipe has another quantization than the checkpoint.
    #[error(
        "the recipe asks for NF4 with block_size = {asked_block_size} and double_quant = {asked_double_quant}, but \
         tensor `{weight}` is stored as {found}, and requantizing would lose precision: {way_out}"
    )]
    Disagrees {
        /// The weight.
        weight: String,
        /// What the recipe says.
        asked_block_size: usize,
        /// What the recipe says.
        asked_double_quant: bool,
        /// What the checkpoint holds.
        found: String,
        /// How to write the recipe.
        way_out: String,
    },
}
