//! A backend that runs every op of this crate: the sum of the ops' traits.

use crate::activation::ActivationOps;
use crate::adamw::AdamWOps;
use crate::attention::AttentionOps;
use crate::causal_conv::CausalConvOps;
use crate::column_scale::ColumnScaleOps;
use crate::delta_rule::DeltaRuleOps;
use crate::device::DeviceOps;
use crate::gated::GatedOps;
use crate::grouped_linear::GroupedLinearOps;
use crate::layer_norm::LayerNormOps;
use crate::linear::LinearOps;
use crate::linear_cross_entropy::LossOps;
use crate::nf4::Nf4Ops;
use crate::rms_norm::RmsNormOps;
use crate::rope::RopeOps;
use crate::router::RouterOps;
use crate::row_scale::RowScaleOps;
use crate::row_sum::RowSumOps;
use crate::segment_sum::SegmentOps;

/// A backend with every op. Callers use the functions of the op modules, which check shapes; the methods of the ops'
/// traits rely on that.
///
/// A method that takes a tensor by value may write its result into that tensor's memory where it is the only holder.
pub trait KernelBackend:
    DeviceOps
    + LinearOps
    + GroupedLinearOps
    + RouterOps
    + Nf4Ops
    + ColumnScaleOps
    + RmsNormOps
    + LayerNormOps
    + RopeOps
    + GatedOps
    + ActivationOps
    + AttentionOps
    + CausalConvOps
    + DeltaRuleOps
    + LossOps
    + SegmentOps
    + RowScaleOps
    + RowSumOps
    + AdamWOps
{
}

impl<B> KernelBackend for B where
    B: DeviceOps
        + LinearOps
        + GroupedLinearOps
        + RouterOps
        + Nf4Ops
        + ColumnScaleOps
        + RmsNormOps
        + LayerNormOps
        + RopeOps
        + GatedOps
        + ActivationOps
        + AttentionOps
        + CausalConvOps
        + DeltaRuleOps
        + LossOps
        + SegmentOps
        + RowScaleOps
        + RowSumOps
        + AdamWOps
{
}
