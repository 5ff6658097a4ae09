//! The gated short convolution: output(c · convolution(b · x)).

use burn_tensor::Tensor;
use tune_kernels::KernelBackend;
use tune_kernels::attention::DocumentOffsets;
use tune_kernels::causal_conv::{CausalConv, causal_conv, causal_conv_backward};

use super::adapted::{ProjectedTape, project_backward, project_backward_through, project_each};
use super::cache::{LayerCache, Recurrent};
use super::layer::{Call, Output, Upstream};
use crate::adapter::projection::LayerGradients;
use crate::model::parts::ShortConvSpec;

/// What the forward pass saves; the input and the convolution are computed again.
#[derive(Clone, Debug)]
pub struct ShortConvTape<B: KernelBackend> {
    /// b, c and x side by side, `[tokens, 3 · channels]`; `None` where they follow from DoRA's unscaled output.
    thirds: Option<Tensor<B, 2>>,
    /// Of the input projection.
    input: ProjectedTape<B>,
    /// Of the output projection.
    output: ProjectedTape<B>,
}

/// block(x), `[tokens, hidden]`, as far as it is wanted. With caches the tokens continue the sequences in them.
pub(super) fn forward<B: KernelBackend>(
    spec: &ShortConvSpec,
    x: &Tensor<B, 2>,
    call: &mut Call<'_, B>,
    output: Output<'_, B>,
) -> (Option<Tensor<B, 2>>, ShortConvTape<B>) {
    let ([thirds], input) = project_each(x, &[call.adapted(&spec.input)]);
    let [before, behind, value] = split(spec, &thirds);
    let product = before * value;
    let weight = call.constant(&spec.conv);
    let documents = call.inputs.documents.clone();
    let convolved = match &mut call.cache {
        Some(caches) => caches.each(&documents, |cache, rows| {
            onwards(spec, &product.clone().narrow(0, rows.start, rows.len()), weight, cache)
        }),
        None => causal_conv(&product, CausalConv { weight, silu: false, documents: &documents }),
    };
    let (y, output) = output.of(&(behind * convolved), call.adapted(&spec.output));
    (y, ShortConvTape { thirds: input.saved(0, thirds), input, output })
}

/// Returns dL/dx, or `None` if it is not wanted. `x` is the forward's input, computed again by the caller.
pub(super) fn backward<B: KernelBackend>(
    spec: &ShortConvSpec,
    tape: ShortConvTape<B>,
    x: &Tensor<B, 2>,
    call: &Call<'_, B>,
    upstream: Upstream<'_, B>,
    gradients: &mut LayerGradients<B>,
) -> Option<Tensor<B, 2>> {
    let ShortConvTape { thirds, input: input_tape, output } = tape;
    let layer = [call.adapted(&spec.input)];
    let thirds = input_tape.output(0, thirds, &layer);
    let [before, behind, value] = split(spec, &thirds);
    let documents = &call.inputs.documents;
    let conv = CausalConv { weight: call.constant(&spec.conv), silu: false, documents };
    let product = before.clone() * value.clone();
    let convolved = causal_conv(&product, conv);
    let mixed = behind.clone() * convolved.clone();
    let outer = call.adapted(&spec.output);
    let dmixed = project_backward_through(&mixed, outer, output, upstream.dy, gradients);
    drop(mixed);
    let dbehind = dmixed.clone() * convolved;
    let dproduct = causal_conv_backward(&product, conv, &(dmixed * behind));
    let dthirds = vec![dproduct.clone() * value, dbehind, dproduct * before];
    project_backward(x, &layer, input_tape, vec![Tensor::cat(dthirds, 1)], upstream.wants_x, gradients)
}

/// b, c and x, each `[tokens, channels]`.
fn split<B: KernelBackend>(spec: &ShortConvSpec, thirds: &Tensor<B, 2>) -> [Tensor<B, 2>; 3] {
    let channels = spec.channels();
    [0, 1, 2].map(|third| thirds.clone().narrow(1, third * channels, channels))
}

/// The convolution of tokens that continue the sequence in `cache`.
fn onwards<B: KernelBackend>(
    spec: &ShortConvSpec,
    product: &Tensor<B, 2>,
    weight: &Tensor<B, 2>,
    cache: &mut LayerCache<B>,
) -> Tensor<B, 2> {
    let ([tokens, channels], before) = (product.dims(), spec.conv_size() - 1);
    let zeros = || Tensor::zeros([before, channels], (&product.device(), product.dtype()));
    let last = cache.take_recurrent().map_or_else(zeros, |recurrent| recurrent.last);
    let all = match before {
        0 => product.clone(),
        _ => Tensor::cat(vec![last, product.clone()], 0),
    };
    let documents = DocumentOffsets::packed(&[0, (before + tokens) as u32]);
    let conv = CausalConv { weight, silu: false, documents: &documents };
    let convolved = causal_conv(&all, conv).narrow(0, before, tokens);
    let last = match before {
        0 => all,
        _ => all.narrow(0, tokens, before),
    };
    cache.put_recurrent(Recurrent { last, state: None }, tokens);
    convolved
}
