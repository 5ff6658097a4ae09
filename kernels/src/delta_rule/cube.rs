//! The gated delta rule on a GPU, token by token: a unit owns a column of the state, or a row, in its registers.
//!
//! Every column of the state goes its own way through a document, and so does every column of its gradient on the way back.
//! What is summed over columns (the gradients of queries and keys) is taken from a state held by rows, once the columns'
//! results are known:
//!
//! ```text
//! forward, columns   S                              y, Δ
//! back, columns      E from dy                      dΔ′ = Eᵀ k̂ behind E += q̂ dyᵀ; dv = β dΔ′; E ← exp(g) (E − β k̂ dΔ′ᵀ)
//! forward, rows      S from Δ                       dq̂ = S dy; row = −β exp(g) S_before dΔ′
//! back, rows         E from dy and dΔ′              col = E Δ
//! ```
//!
//! The gradient of a decay is a running sum from the document's end. Between the chunks it begins anew, with the product of
//! state and gradient there, lest rounding pile up: the forward sweep leaves its rows for the one back.

mod gradients;
mod inputs;
mod sizes;
mod sweeps;

use burn_cubecl::tensor::CubeTensor;
use burn_cubecl::{BoolElement, CubeBackend, CubeRuntime, FloatElement, IntElement};
use burn_tensor::{DType, Tensor};
use cubecl::prelude::*;
use cubecl::server::Handle;

use super::{CHUNK, DeltaGradients, DeltaHeads, DeltaRule, DeltaRuleOps};
use crate::cube::tensor::{array, cubes, elements, empty, empty_like, float, into_float, units, wrap};
use crate::cube::uploads;
use sizes::{SPAN, Sizes, UNITS};

/// What all kernels of a call read.
struct Inputs<R: CubeRuntime> {
    mixed: CubeTensor<R>,
    decay: CubeTensor<R>,
    write: CubeTensor<R>,
    log_rate: CubeTensor<R>,
    bias: CubeTensor<R>,
    /// Normalised keys, then scaled queries, f32 `[tokens, keys, 2 · key_dim]`.
    unit: CubeTensor<R>,
    /// exp(g) and β, f32 `[tokens, values, 2]`.
    gates: CubeTensor<R>,
    /// Where documents begin, and the last one ends.
    offsets: (Handle, usize),
    sizes: Sizes,
    tokens: usize,
}

impl<R: CubeRuntime> Inputs<R> {
    fn new<F, I, T>(call: DeltaRule<'_, CubeBackend<R, F, I, T>>) -> Self
    where
        F: FloatElement,
        I: IntElement,
        T: BoolElement,
    {
        let [mixed, decay, write] = [call.mixed, call.decay, call.write].map(float);
        let [log_rate, bias] = [call.log_rate, call.bias].map(float);
        let tokens = call.mixed.dims()[0];
        let DeltaHeads { keys, values, key_dim, .. } = call.heads;
        let unit = empty(&mixed, &[tokens, keys * 2 * key_dim], DType::F32);
        let gates = empty(&mixed, &[tokens, values * 2], DType::F32);
        let ends = || call.documents.documents().map(|(tokens, _)| tokens.end as u32);
        let offsets = || [0].into_iter().chain(ends()).collect();
        let offsets = call.documents.uploads.list(&mixed, ("offsets", [0; 3]), offsets);
        let inputs = Self {
            mixed,
            decay,
            write,
            log_rate,
            bias,
            unit,
            gates,
            offsets,
            sizes: call.heads.into(),
            tokens,
        };
        inputs.prepare();
        inputs
    }

    fn prepare(&self) {
        let count = (self.tokens * self.sizes.values as usize) as u32;
        let rows = (self.tokens * self.sizes.keys as usize) as u32;
        let (grid, dim) = units(count as usize);
        // SAFETY: cubes and units beyond the counts do nothing.
        unsafe {
            inputs::unit_kernel::launch_unchecked::<R>(
                &self.mixed.client,
                cubes(rows),
                CubeDim::new_1d(UNITS),
                array(&self.mixed),
                array(&self.unit),
                rows,
                self.sizes,
                self.mixed.dtype.into(),
            );
            inputs::gates_kernel::launch_unchecked::<R>(
                &self.mixed.client,
                grid,
                dim,
                array(&self.decay),
                array(&self.write),
                array(&self.log_rate),
                array(&self.bias),
                array(&self.gates),
                count,
                self.sizes,
                self.mixed.dtype.into(),
            );
        }
    }

    fn offsets(&self) -> ArrayArg<R> {
        uploads::argument(&self.offsets)
    }

    fn documents(&self) -> u32 {
        self.offsets.1 as u32 - 1
    }

    /// A cube for each document, value head and [`UNITS`] columns or rows of `dim`.
    fn grid(&self, dim: u32) -> CubeCount {
        cubes(self.documents() * self.sizes.values * dim.div_ceil(UNITS))
    }

    /// f32 `[tokens, values · dim]`.
    fn scratch(&self, dim: u32) -> CubeTensor<R> {
        empty(&self.mixed, &[self.tokens, (self.sizes.values * dim) as usize], DType::F32)
    }

    /// f32 `[tokens / SPAN, values · dim]`: no two chunks begin within [`SPAN`] tokens but at the beginning of documents.
    fn chunk_scratch(&self, dim: u32) -> CubeTensor<R> {
        let chunks = self.tokens.div_ceil(CHUNK).max(1);
        empty(&self.mixed, &[chunks, (self.sizes.values * dim) as usize], DType::F32)
    }

    /// The outputs, and Δ where that is wanted.
    fn forward(&self, state: Option<&CubeTensor<R>>, delta: Option<&CubeTensor<R>>) -> CubeTensor<R> {
        let width = (self.sizes.values * self.sizes.value_dim) as usize;
        let y = empty(&self.mixed, &[self.tokens, width], self.mixed.dtype);
        let unread = empty(&self.mixed, &[1], DType::F32);
        // SAFETY: cubes and units beyond the counts touch nothing; what is absent is neither read nor written.
        unsafe {
            sweeps::forward_kernel::launch_unchecked::<R>(
                &self.mixed.client,
                self.grid(self.sizes.value_dim),
                CubeDim::new_1d(UNITS),
                array(&self.mixed),
                array(&self.unit),
                array(&self.gates),
                self.offsets(),
                array(state.unwrap_or(&unread)),
                array(&y),
                array(delta.unwrap_or(&unread)),
                self.documents(),
                self.sizes,
                state.is_some(),
                delta.is_some(),
                self.mixed.dtype.into(),
            );
        }
        y
    }

    fn backward(&self, dy: &CubeTensor<R>) -> [CubeTensor<R>; 3] {
        let Sizes { key_dim, value_dim, .. } = self.sizes;
        let [delta, ddelta] = [0; 2].map(|_| self.scratch(value_dim));
        self.forward(None, Some(&delta));
        let [dq, row, col] = [0; 3].map(|_| self.scratch(key_dim));
        let (states, anchors) = (self.chunk_scratch(key_dim * value_dim), self.chunk_scratch(key_dim));
        let dmixed = empty_like(&self.mixed);
        let dtype = self.mixed.dtype;
        // SAFETY: cubes and units beyond the counts touch nothing.
        unsafe {
            sweeps::back_by_columns_kernel::launch_unchecked::<R>(
                &self.mixed.client,
                self.grid(value_dim),
                CubeDim::new_1d(UNITS),
                array(&self.unit),
                array(&self.gates),
                self.offsets(),
                array(dy),
                array(&ddelta),
                array(&dmixed),
                self.documents(),
                self.sizes,
                dtype.into(),
            );
            sweeps::forward_by_rows_kernel::launch_unchecked::<R>(
                &self.mixed.client,
                self.grid(key_dim),
                CubeDim::new_1d(UNITS),
                array(&self.unit),
                array(&self.gates),
                self.offsets(),
                array(dy),
                array(&delta),
                array(&ddelta),
                array(&dq),
                array(&row),
                array(&states),
                self.documents(),
                self.sizes,
                dtype.into(),
            );
            sweeps::back_by_rows_kernel::launch_unchecked::<R>(
                &self.mixed.client,
                self.grid(key_dim),
                CubeDim::new_1d(UNITS),
                array(&self.unit),
                array(&self.gates),
                self.offsets(),
                array(dy),
                array(&delta),
                array(&ddelta),
                array(&states),
                array(&col),
                array(&anchors),
                self.documents(),
                self.sizes,
                dtype.into(),
            );
        }
        let (ddecay, dwrite) = self.gate_gradients([&delta, &ddelta], [&dq, &row, &col], &anchors);
        let rows = (self.tokens * self.sizes.keys as usize) as u32;
        // SAFETY: as above.
        unsafe {
            gradients::queries_and_keys_kernel::launch_unchecked::<R>(
                &self.mixed.client,
                cubes(rows),
                CubeDim::new_1d(UNITS),
                array(&self.mixed),
                array(&dq),
                array(&row),
                array(&col),
                array(&dmixed),
                rows,
                self.sizes,
                dtype.into(),
            );
        }
        [dmixed, ddecay, dwrite]
    }

    /// Of `decay` and `write`.
    fn gate_gradients(
        &self,
        [delta, ddelta]: [&CubeTensor<R>; 2],
        [dq, row, col]: [&CubeTensor<R>; 3],
        anchors: &CubeTensor<R>,
    ) -> (CubeTensor<R>, CubeTensor<R>) {
        let (ddecay, dwrite) = (empty_like(&self.decay), empty_like(&self.write));
        let slopes = self.scratch(1);
        let count = elements(&slopes) as u32;
        let heads = self.documents() * self.sizes.values;
        // SAFETY: cubes and units beyond the counts touch nothing.
        unsafe {
            gradients::gates_kernel::launch_unchecked::<R>(
                &self.mixed.client,
                cubes(count),
                CubeDim::new_1d(UNITS),
                array(&self.unit),
                array(&self.gates),
                array(delta),
                array(ddelta),
                array(dq),
                array(row),
                array(col),
                array(&slopes),
                array(&dwrite),
                count,
                self.sizes,
                self.mixed.dtype.into(),
            );
            gradients::decay_kernel::launch_unchecked::<R>(
                &self.mixed.client,
                cubes(heads),
                CubeDim::new_1d(SPAN),
                array(&slopes),
                array(anchors),
                array(&self.decay),
                array(&self.log_rate),
                array(&self.bias),
                self.offsets(),
                array(&ddecay),
                heads,
                self.sizes,
                self.mixed.dtype.into(),
            );
        }
        (ddecay, dwrite)
    }
}

impl<R, F, I, T> DeltaRuleOps for CubeBackend<R, F, I, T>
where
    R: CubeRuntime,
    F: FloatElement,
    I: IntElement,
    T: BoolElement,
{
    fn delta_rule(
        call: DeltaRule<'_, Self>,
        state: Option<Tensor<Self, 3>>,
    ) -> (Tensor<Self, 2>, Option<Tensor<Self, 3>>) {
        // A state that others hold is not written to.
        let state = state.map(|state| match into_float(state) {
            state if state.can_mut() => state,
            held => held.copy(),
        });
        let y = Inputs::new(call).forward(state.as_ref(), None);
        (wrap(y), state.map(wrap))
    }

    fn delta_rule_backward(call: DeltaRule<'_, Self>, dy: &Tensor<Self, 2>) -> DeltaGradients<Self> {
        let [mixed, decay, write] = Inputs::new(call).backward(&float(dy)).map(wrap);
        DeltaGradients { mixed, decay, write }
    }
}
