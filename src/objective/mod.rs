//! What is minimised.
//!
//! An objective returns a **sum** and the number of tokens it was taken over, never a mean: whoever accumulates
//! divides once, by the tokens of the whole optimizer step, so gradient accumulation cannot be wrong.

pub mod sft;
