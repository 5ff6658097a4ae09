//! The `[model]` table of a recipe, as a typed value.

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
