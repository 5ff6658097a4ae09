//! Frozen linear layers on a GPU: one product for a layer's weight and adapter, and one for its gradient.
//!
//! The adapter's `t (scaling B)ᵀ` is the reduction of `x Wᵀ` carried on, `[x | t] · [W | scaling B]ᵀ`, and its part of
//! the input's gradient likewise, `[dy | dt] · [W; A]`: both sums are rounded once, and the adapter costs its own
//! operations and no pass over memory. Bias and residual are added as results are written.
//!
//! An NF4 weight is dequantized tile by tile inside the product, or once into a dense scratch in the compute dtype that
//! lives as long as the product; [`super::choice`] decides. The products of adapters alone are [`adapters`].

mod adapters;

use burn_cubecl::tensor::CubeTensor;
use burn_cubecl::{BoolElement, CubeBackend, CubeRuntime, FloatElement, IntElement};
use burn_tensor::{DType, Tensor};

use self::adapters::Adapters;
use super::choice::over_nf4;
use super::{
    Down, FrozenWeight, Linear, LinearBackward, LinearGradients, LinearOps, LoraGradient, Projected,
};
use crate::cube::convert::{add_dropped, cast};
use crate::cube::product::{Finish, Operand, Rows, Stored, product};
use crate::cube::tensor::{float, wrap};
use crate::nf4::cube::{Nf4Tensors, dequantize};

/// A frozen weight, dense in the compute dtype: for a caller all of whose products read it.
pub(crate) fn dense<R, F, I, T>(weight: &FrozenWeight<CubeBackend<R, F, I, T>>, dtype: DType) -> Rows<R>
where
    R: CubeRuntime,
    F: FloatElement,
    I: IntElement,
    T: BoolElement,
{
    Rows::all(match weight {
        FrozenWeight::Dense(weight) => cast(&float(weight), dtype),
        FrozenWeight::Nf4(weight) => dequantize(&Nf4Tensors::new(weight), dtype),
    })
}

/// `product` of `rows` rows over a weight, which is made an operand in `dtype`.
pub(crate) fn over<R, F, I, T>(
    weight: &FrozenWeight<CubeBackend<R, F, I, T>>,
    rows: usize,
    dtype: DType,
    transposed: bool,
    product: impl Fn(Stored<'_, R>) -> CubeTensor<R>,
) -> CubeTensor<R>
where
    R: CubeRuntime,
    F: FloatElement,
    I: IntElement,
    T: BoolElement,
{
    match weight {
        FrozenWeight::Dense(_) => product(Stored::Dense(&dense(weight, dtype))),
        FrozenWeight::Nf4(weight) => over_nf4(&Nf4Tensors::new(weight), rows, dtype, transposed, product),
    }
}

impl<R, F, I, T> LinearOps for CubeBackend<R, F, I, T>
where
    R: CubeRuntime,
    F: FloatElement,
    I: IntElement,
    T: BoolElement,
{
    fn frozen_linear(
        x: &Tensor<Self, 2>,
        layers: &[Linear<'_, Self>],
        residual: Option<&Tensor<Self, 2>>,
    ) -> Projected<Self> {
        let x = Rows::all(float(x));
        let dtype = x.tensor.dtype;
        let residual = residual.map(float);
        let adapters = Adapters::new(layers, &x.tensor, x.columns, None);
        let down = adapters.as_ref().map(|adapters| adapters.down(&x));
        let output = |(index, layer): (usize, &Linear<'_, Self>)| {
            let bias = layer.bias.map(|bias| cast(&float(bias), dtype));
            let adapter = adapters.as_ref().and_then(|adapters| adapters.layers[index].as_ref());
            let part = adapter.zip(down.as_ref()).map(|(adapter, down)| adapter.part(down));
            let tail = adapter.map(|adapter| &adapter.b);
            wrap(over(layer.weight, x.rows, dtype, true, |stored| {
                let lhs = Operand { tail: part.as_ref(), ..Operand::dense(&x) };
                let rhs = Operand { stored, transposed: true, tail };
                let finish = Finish { factor: 1.0, bias: bias.as_ref(), residual: residual.as_ref() };
                product(&x.tensor, lhs, rhs, finish, dtype)
            }))
        };
        let outputs = layers.iter().enumerate().map(output).collect();
        let down = down.zip(adapters);
        let down = down.map(|(t, adapters)| Down { t: wrap(t), operands: Some(wrap(adapters.operands)) });
        Projected { outputs, down }
    }

    fn frozen_linear_down(x: &Tensor<Self, 2>, layers: &[Linear<'_, Self>]) -> Option<Down<Self>> {
        let x = Rows::all(float(x));
        let adapters = Adapters::new(layers, &x.tensor, x.columns, None)?;
        Some(Down { t: wrap(adapters.down(&x)), operands: Some(wrap(adapters.operands)) })
    }

    fn frozen_linear_backward(request: LinearBackward<'_, Self>) -> LinearGradients<Self> {
        let LinearBackward { x, layers, down, dy, wants_x, sums } = request;
        let x = x.map(|x| Rows::all(float(x)));
        let operands = down.and_then(|down| down.operands.as_ref()).map(float);
        let down = down.map(|down| float(&down.t));
        let dy: Vec<_> = dy.iter().map(|dy| Rows::all(float(dy))).collect();
        let (like, dtype) = (&dy[0].tensor, dy[0].tensor.dtype);
        let width = layers[0].weight.shape()[1];
        let adapters = Adapters::new(layers, like, width, operands);
        // One layer's gradient is rounded as it is written; several are added up in f32 first.
        let is_sum = layers.len() > 1 || layers[0].lora.is_some_and(|lora| lora.dropout.is_some());
        let sum_dtype = if is_sum { DType::F32 } else { dtype };
        let slopes = adapters.as_ref().map(|adapters| adapters.slopes(&dy)).unwrap_or_default();
        let mut dx: Option<CubeTensor<R>> = None;
        for (index, (layer, dy)) in layers.iter().zip(&dy).enumerate().filter(|_| wants_x) {
            let adapter = adapters.as_ref().and_then(|adapters| adapters.layers[index].as_ref());
            let dt = slopes.get(index).and_then(Option::as_ref);
            // A dropped part cannot share the weight's reduction: it is masked first.
            let joined = adapter.filter(|adapter| adapter.dropout.is_none());
            let tail = joined.map(|adapter| &adapter.a);
            let slope = over(layer.weight, dy.rows, dtype, false, |stored| {
                let lhs = Operand { tail: joined.and(dt), ..Operand::dense(dy) };
                let rhs = Operand { stored, transposed: false, tail };
                let finish = Finish { residual: dx.as_ref(), ..Finish::default() };
                product(like, lhs, rhs, finish, sum_dtype)
            });
            let dropout = adapter.and_then(|adapter| Some((adapter, adapter.dropout.as_ref()?)));
            if let (Some((adapter, dropout)), Some(dt)) = (dropout, dt) {
                let (lhs, rhs) = (Operand::dense(dt), Operand::dense(&adapter.a));
                let part = product(like, lhs, rhs, Finish::default(), DType::F32);
                add_dropped(&part, dropout, &slope);
            }
            dx = Some(slope);
        }
        let sums = sums.into_iter().map(|sum| sum.map(|sum| [float(&sum.a), float(&sum.b)]));
        let saved = adapters.as_ref().zip(x.as_ref()).zip(down.as_ref());
        let gradients = match saved {
            Some(((adapters, x), down)) => adapters.gradients(x, down, &dy, &slopes, sums.collect()),
            None => layers.iter().map(|_| None).collect(),
        };
        let gradient = |[a, b]: [CubeTensor<R>; 2]| LoraGradient { a: wrap(a), b: wrap(b) };
        let adapters = gradients.into_iter().map(|pair| pair.map(gradient)).collect();
        LinearGradients { x: dx.map(|dx| wrap(cast(&dx, dtype))), adapters }
    }
}
