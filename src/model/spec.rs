//! The `[model]` table of a recipe, as a typed value.

use crate::document::{TableReader, Word, Writer, text, word};

/// The base model of a run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Spec {
    /// A folder, or a hub id looked up in the local Hugging Face cache.
    pub base: String,
    /// Branch, tag or commit of a hub id.
    pub revision: Option<String>,
    /// What the matmuls run in.
    pub compute_dtype: ComputeDtype,
}

/// What the matmuls run in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ComputeDtype {
    /// The checkpoint's dtype where the device multiplies it natively, else f32.
    Auto,
    /// bfloat16 with f32 accumulation.
    Bf16,
    /// float16 with f32 accumulation.
    F16,
    /// float32.
    F32,
}

impl Word for ComputeDtype {
    const WORDS: &'static [(&'static str, Self)] =
        &[("auto", Self::Auto), ("bf16", Self::Bf16), ("f16", Self::F16), ("f32", Self::F32)];
    const ALIASES: &'static [(&'static str, &'static str)] = &[
        ("bfloat16", "bf16"),
        ("torch.bfloat16", "bf16"),
        ("float16", "f16"),
        ("torch.float16", "f16"),
        ("fp16", "f16"),
        ("half", "f16"),
        ("float32", "f32"),
        ("torch.float32", "f32"),
        ("fp32", "f32"),
        ("float", "f32"),
    ];
}

impl Spec {
    /// Reads the `[model]` table; nothing, when it names no base.
    pub fn read(table: &mut TableReader<'_, '_>) -> Option<Self> {
        let base = table.key("base", text).required("\"Qwen/Qwen3-0.6B\"");
        let revision = table.key("revision", text).optional();
        let compute_dtype = table.key("compute_dtype", word).or(ComputeDtype::Auto);
        Some(Self { base: base?, revision, compute_dtype })
    }

    /// Writes the table with every value.
    pub fn write(&self, writer: &mut Writer) {
        writer.table("model");
        writer.key("base", &self.base);
        writer.optional("revision", self.revision.as_ref());
        writer.key("compute_dtype", self.compute_dtype.word());
    }
}
