//! Every op of a backend against its oracle, as measurements: what is computed here is judged by `tune doctor` on the
//! machine where it runs, and by this crate's tests.
//!
//! A [`Check`] runs one op, forward and backward, on random numbers of a few odd shapes, and returns how far each
//! result is from the oracle's ([`Deviation`]). Nothing here decides what is too far, but for
//! [`Deviation::tolerance`]: what rounding to the compute dtype may cost where f32 sums are exact to their last digits.

pub mod adamw;
pub mod attention;
pub mod elementwise;
pub mod linear;
pub mod linear_cross_entropy;
mod measure;
pub mod mixture;
pub mod nf4;
pub mod recurrent;
pub mod rows;

use burn_tensor::backend::Backend;

pub use measure::{Deviation, On, panic_message, random, random_in, rounded, tolerance, values};

use crate::KernelBackend;

/// One op's check on a backend.
pub struct Check<B: Backend> {
    /// The op.
    pub op: &'static str,
    /// Whether it computes in f32 alone, whatever the compute dtype.
    pub f32_only: bool,
    run: fn(On<'_, B>) -> Vec<Deviation>,
}

impl<B: Backend> Check<B> {
    /// Runs it, on the calling thread.
    ///
    /// # Panics
    /// What the device's runtime panics of, when it does not work.
    pub fn run(&self, on: On<'_, B>) -> Vec<Deviation> {
        (self.run)(on)
    }
}

/// The check of every op: small cases, which take a moment on any device.
pub fn all<B: KernelBackend>() -> Vec<Check<B>> {
    let check = |op, run| Check { op, f32_only: false, run };
    let single = |op, run| Check { op, f32_only: true, run };
    vec![
        single("nf4", nf4::all::<B>),
        check("linear", linear::all::<B>),
        check("grouped_linear", mixture::all_grouped_linear::<B>),
        check("router", mixture::all_router::<B>),
        check("rms_norm", elementwise::all_rms_norm::<B>),
        check("layer_norm", elementwise::all_layer_norm::<B>),
        check("rope", elementwise::all_rope::<B>),
        check("swiglu", elementwise::all_silu::<B>),
        check("geglu", elementwise::all_gelu::<B>),
        check("clamped_swiglu", elementwise::all_clamped::<B>),
        check("activation", elementwise::all_activation::<B>),
        check("output_gate", elementwise::all_sigmoid::<B>),
        check("attention", attention::all::<B>),
        check("causal_conv", recurrent::all_causal_conv::<B>),
        check("delta_rule", recurrent::all_delta_rule::<B>),
        check("linear_cross_entropy", linear_cross_entropy::all::<B>),
        single("segment_sum", rows::all_segment_sum::<B>),
        check("row_scale", rows::all_row_scale::<B>),
        check("column_scale", rows::all_column_scale::<B>),
        check("row_sum", rows::all_row_sum::<B>),
        single("adamw", adamw::all::<B>),
    ]
}

#[cfg(test)]
mod tests {
    use burn_tensor::DType;

    use super::*;

    #[test]
    fn every_check_passes_on_the_processor() {
        let device = Default::default();
        for check in all::<burn_flex::Flex>() {
            for dtype in [DType::F32, DType::BF16, DType::F16] {
                if check.f32_only && dtype != DType::F32 {
                    continue;
                }
                let found = check.run(On { device: &device, dtype });
                assert!(!found.is_empty(), "{}", check.op);
                for deviation in found {
                    assert!(deviation.is_within_tolerance(), "{} in {dtype:?}: {deviation}", check.op);
                }
            }
        }
    }
}
