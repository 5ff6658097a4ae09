//! The gated delta net: projections, a short convolution, the gated delta rule, a norm and a gate on its output.

use burn_tensor::{DType, Tensor};
use tune_kernels::KernelBackend;
use tune_kernels::attention::DocumentOffsets;
use tune_kernels::causal_conv::{CausalConv, causal_conv, causal_conv_backward};
use tune_kernels::delta_rule::{DeltaRule, delta_rule, delta_rule_backward, delta_rule_onwards};
use tune_kernels::gated::{Activation, gated, gated_backward};

use super::Adapted;
use super::adapted::{ProjectedTape, project_backward, project_backward_through, project_each};
use super::cache::{LayerCache, Recurrent};
use super::layer::{Call, Output, Upstream};
use crate::adapter::projection::LayerGradients;
use crate::model::parts::{ConstantSpec, DeltaNetSpec};

/// What the forward pass saves; the input is computed again, and so are the convolution, the norm and the gate.
#[derive(Clone, Debug)]
pub struct DeltaNetTape<B: KernelBackend> {
    /// Queries, keys and values before the convolution, the gate, and what writes and decays follow from; `None` where they
    /// follow from DoRA's unscaled output.
    projected: [Option<Tensor<B, 2>>; 4],
    /// The recurrence's output, `[tokens, values · value_dim]`.
    read: Tensor<B, 2>,
    /// Of the projections.
    inner: ProjectedTape<B>,
    /// Of the output projection.
    output: ProjectedTape<B>,
}

/// block(x), `[tokens, hidden]`, as far as it is wanted. With caches the tokens continue the sequences in them.
pub(super) fn forward<B: KernelBackend>(
    spec: &DeltaNetSpec,
    x: &Tensor<B, 2>,
    call: &mut Call<'_, B>,
    output: Output<'_, B>,
) -> (Option<Tensor<B, 2>>, DeltaNetTape<B>) {
    let ([raw, gate, write, decay], inner) = project_each(x, &inner(spec, call));
    let constants = Constants::new(spec, call);
    let documents = call.inputs.documents.clone();
    let read = match &mut call.cache {
        Some(caches) => caches.each(&documents, |cache, rows| {
            let own = |x: &Tensor<B, 2>| x.clone().narrow(0, rows.start, rows.len());
            constants.onwards(&own(&raw), [&own(&write), &own(&decay)], cache)
        }),
        None => {
            let mixed = causal_conv(&raw, constants.conv(&documents));
            delta_rule(constants.rule(&mixed, [&write, &decay], &documents))
        }
    };
    let normed = call.norm(&spec.norm).forward(&heads(spec, &read), None).reshape(read.dims());
    let (y, output) = output.of(&gated(Activation::Silu, &gate, &normed), call.adapted(&spec.output));
    let projected = [(0, raw), (1, gate), (2, write), (3, decay)].map(|(index, x)| inner.saved(index, x));
    (y, DeltaNetTape { projected, read, inner, output })
}

/// Returns dL/dx, or `None` if it is not wanted. `x` is the forward's input, computed again by the caller.
pub(super) fn backward<B: KernelBackend>(
    spec: &DeltaNetSpec,
    tape: DeltaNetTape<B>,
    x: &Tensor<B, 2>,
    call: &Call<'_, B>,
    upstream: Upstream<'_, B>,
    gradients: &mut LayerGradients<B>,
) -> Option<Tensor<B, 2>> {
    let DeltaNetTape { projected: [raw, gate, write, decay], read, inner: inner_tape, output } = tape;
    let layers = inner(spec, call);
    let [raw, gate, write, decay] = [(0, raw), (1, gate), (2, write), (3, decay)]
        .map(|(index, saved)| inner_tape.output(index, saved, &layers));
    let norm = call.norm(&spec.norm);
    let normed = norm.forward(&heads(spec, &read), None).reshape(read.dims());
    let activated = gated(Activation::Silu, &gate, &normed);
    let layer = call.adapted(&spec.output);
    let dactivated = project_backward_through(&activated, layer, output, upstream.dy, gradients);
    drop(activated);
    let (dgate, dnormed) = gated_backward(Activation::Silu, gate, normed, dactivated);
    let dread = norm.backward(&heads(spec, &read), heads(spec, &dnormed), None).reshape(read.dims());
    drop((read, dnormed));
    let constants = Constants::new(spec, call);
    let documents = &call.inputs.documents;
    let mixed = causal_conv(&raw, constants.conv(documents));
    let slopes = delta_rule_backward(constants.rule(&mixed, [&write, &decay], documents), &dread);
    drop((mixed, dread));
    let draw = causal_conv_backward(&raw, constants.conv(documents), &slopes.mixed);
    drop((raw, slopes.mixed));
    let dy = vec![draw, dgate, slopes.write, slopes.decay];
    project_backward(x, &layers, inner_tape, dy, upstream.wants_x, gradients)
}

fn inner<'a, B: KernelBackend>(spec: &DeltaNetSpec, call: &Call<'a, B>) -> [Adapted<'a, B>; 4] {
    spec.inner().map(|projection| call.adapted(projection))
}

/// One row for each head of each token.
fn heads<B: KernelBackend>(spec: &DeltaNetSpec, x: &Tensor<B, 2>) -> Tensor<B, 2> {
    let [tokens, _] = x.dims();
    x.clone().reshape([tokens * spec.heads.values, spec.heads.value_dim])
}

/// The layer's frozen tensors beside projections and norm, as the ops take them.
struct Constants<'a, B: KernelBackend> {
    spec: &'a DeltaNetSpec,
    /// `[channels, size]`.
    conv: Tensor<B, 2>,
    log_rate: Tensor<B, 1>,
    bias: Tensor<B, 1>,
}

impl<'a, B: KernelBackend> Constants<'a, B> {
    fn new(spec: &'a DeltaNetSpec, call: &Call<'_, B>) -> Self {
        let each = |constant: &ConstantSpec| call.constant(constant).clone().reshape([spec.heads.values]);
        Self {
            spec,
            conv: call.constant(&spec.conv).clone(),
            log_rate: each(&spec.log_rate),
            bias: each(&spec.bias),
        }
    }

    fn conv<'c>(&'c self, documents: &'c DocumentOffsets) -> CausalConv<'c, B> {
        CausalConv { weight: &self.conv, silu: true, documents }
    }

    fn rule<'c>(
        &'c self,
        mixed: &'c Tensor<B, 2>,
        [write, decay]: [&'c Tensor<B, 2>; 2],
        documents: &'c DocumentOffsets,
    ) -> DeltaRule<'c, B> {
        let Self { spec, log_rate, bias, .. } = self;
        DeltaRule { mixed, decay, write, log_rate, bias, heads: spec.heads, documents }
    }

    /// The recurrence's output for tokens that continue the sequence in `cache`.
    fn onwards(
        &self,
        raw: &Tensor<B, 2>,
        gates: [&Tensor<B, 2>; 2],
        cache: &mut LayerCache<B>,
    ) -> Tensor<B, 2> {
        let ([tokens, channels], before) = (raw.dims(), self.spec.conv_size() - 1);
        let heads = self.spec.heads;
        let device = raw.device();
        let (last, state) = match cache.take_recurrent() {
            Some(Recurrent { last, state }) => (Some(last), state),
            None => (None, None),
        };
        let last = last.unwrap_or_else(|| Tensor::zeros([before, channels], (&device, raw.dtype())));
        let state = state.unwrap_or_else(|| {
            Tensor::zeros([heads.values, heads.key_dim, heads.value_dim], (&device, DType::F32))
        });
        let raw = match before {
            0 => raw.clone(),
            _ => Tensor::cat(vec![last, raw.clone()], 0),
        };
        let all = DocumentOffsets::packed(&[0, (before + tokens) as u32]);
        let mixed = causal_conv(&raw, self.conv(&all)).narrow(0, before, tokens);
        let own = DocumentOffsets::packed(&[0, tokens as u32]);
        let (read, state) = delta_rule_onwards(self.rule(&mixed, gates, &own), state);
        // What the next tokens reach back to.
        let last = match before {
            0 => raw,
            _ => raw.narrow(0, tokens, before),
        };
        cache.put_recurrent(Recurrent { last, state: Some(state) }, tokens);
        read
    }
}
