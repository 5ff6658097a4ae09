//! Frozen linear layers on a GPU: one product for a layer's weight and adapter, and one for its gradient.
//!
//! The adapter's `t (scaling B)ᵀ` is the reduction of `x Wᵀ` carried on, `[x | t] · [W | scaling B]ᵀ`, and its part of
//! the input's gradient likewise, `[dy | dt] · [W; A]`: both sums are rounded once, and the adapter costs its own
//! operations and no pass over memory. Bias and residual are added as results are written.
//!
//! An NF4 weight is dequantized tile by tile inside the product, or once into a dense scratch in the compute dtype that
//! lives as long as the product; [`super::choice`] decides.

use burn_cubecl::tensor::CubeTensor;
use burn_cubecl::{BoolElement, CubeBackend, CubeRuntime, FloatElement, IntElement};
use burn_tensor::{DType, Tensor};

use super::choice::over_nf4;
use super::{
    Down, FrozenWeight, Linear, LinearBackward, LinearGradients, LinearOps, Lora, LoraGradient, Projected,
};
use crate::cube::convert::{Part, add_dropped, cast, copy_all, dropped};
use crate::cube::product::{Finish, Operand, Rows, Stored, product, product_into};
use crate::cube::tensor::{empty, float, wrap};
use crate::dropout::Dropout;
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

/// The adapter of one layer in the compute dtype, and where its `t` stands among the others'.
struct Adapter<R: CubeRuntime> {
    /// `[width, in]`, zeros behind the rank.
    a: Rows<R>,
    /// `scaling · B`, `[out, width]`, likewise.
    b: Rows<R>,
    scaling: f32,
    dropout: Option<Dropout>,
    /// First column of this layer's `t`.
    first: usize,
    /// Columns of it.
    width: usize,
    rank: usize,
}

/// Columns of the `t` of an adapter: in 16 bits whole vectors of tensor cores, as narrower ones would be those of weight
/// and input too. The files of an adapter know nothing of it.
fn padded(rank: usize, dtype: DType) -> usize {
    if dtype == DType::F32 { rank } else { rank.next_multiple_of(8) }
}

/// All adapters of a group, in one tensor: their `A` one below the other, behind them every `scaling · B`.
struct Adapters<R: CubeRuntime> {
    /// In the compute dtype.
    operands: CubeTensor<R>,
    /// `A` of all layers, `[Σ width, in]`.
    a: Rows<R>,
    /// For each layer.
    layers: Vec<Option<Adapter<R>>>,
}

/// Elements whose multiples the matrices of [`Adapters`] begin at, so that vectors divide them.
const ALIGNMENT: usize = 16;

impl<R: CubeRuntime> Adapters<R> {
    /// `None` where no layer has one. `operands` are those of the forward, in the backward.
    fn new<F, I, T>(
        layers: &[Linear<'_, CubeBackend<R, F, I, T>>],
        like: &CubeTensor<R>,
        width: usize,
        operands: Option<CubeTensor<R>>,
    ) -> Option<Self>
    where
        F: FloatElement,
        I: IntElement,
        T: BoolElement,
    {
        let wide = |layer: &Linear<'_, CubeBackend<R, F, I, T>>| padded(layer.rank(), like.dtype);
        let all: usize = layers.iter().map(wide).sum();
        if all == 0 {
            return None;
        }
        let mut length = (all * width).next_multiple_of(ALIGNMENT);
        let mut first = 0;
        let mut place = |layer: &Linear<'_, CubeBackend<R, F, I, T>>| {
            let place = layer.lora.map(|_| (first, length));
            first += wide(layer);
            length += (layer.weight.shape()[0] * wide(layer)).next_multiple_of(ALIGNMENT);
            place
        };
        let places: Vec<_> = layers.iter().map(&mut place).collect();
        let operands = operands.unwrap_or_else(|| {
            let operands = empty(like, &[length], like.dtype);
            let loras =
                layers.iter().map(|layer| layer.lora.map(|lora| (float(&lora.a), float(&lora.b), lora)));
            let loras: Vec<_> = loras.zip(&places).filter_map(|(lora, place)| lora.zip(*place)).collect();
            let parts = loras.iter().flat_map(|((a, b, lora), (first, offset))| {
                let [out, rank] = lora.b.dims();
                let columns = padded(rank, like.dtype);
                let room = |room| (columns != rank).then_some(room);
                let to = first * width;
                let a = Part { source: a, factor: 1.0, offset: to, room: room([columns, width]) };
                let room = room([out, columns]);
                [a, Part { source: b, factor: lora.scaling, offset: *offset, room }]
            });
            copy_all(&parts.collect::<Vec<_>>(), &operands);
            operands
        });
        let adapter = |lora: &Lora<CubeBackend<R, F, I, T>>, (first, offset): (usize, usize)| {
            let [out, rank] = lora.b.dims();
            let columns = padded(rank, like.dtype);
            Adapter {
                a: Rows::at(operands.clone(), first * width, [columns, width]),
                b: Rows::at(operands.clone(), offset, [out, columns]),
                scaling: lora.scaling,
                dropout: lora.dropout,
                first,
                width: columns,
                rank,
            }
        };
        let layers = layers.iter().zip(places);
        let layers = layers.map(|(layer, place)| Some(adapter(layer.lora?, place?))).collect();
        Some(Self { a: Rows::at(operands.clone(), 0, [all, width]), operands, layers })
    }

    /// `t` of all layers, `[tokens, Σ width]`.
    fn down(&self, x: &Rows<R>) -> CubeTensor<R> {
        let (like, dtype) = (&x.tensor, x.tensor.dtype);
        if self.layers.iter().flatten().all(|layer| layer.dropout.is_none()) {
            return product(like, Operand::dense(x), Operand::transposed(&self.a), Finish::default(), dtype);
        }
        let down = empty(like, &[x.rows, self.a.rows], dtype);
        for layer in self.layers.iter().flatten() {
            let dropped = layer.dropped(x);
            let target = Rows::part(down.clone(), layer.first, layer.width);
            let (lhs, rhs) = (Operand::dense(&dropped), Operand::transposed(&layer.a));
            product_into(&target, lhs, rhs, Finish::default());
        }
        down
    }
}

impl<R: CubeRuntime> Adapter<R> {
    fn dropped(&self, x: &Rows<R>) -> Rows<R> {
        match &self.dropout {
            Some(dropout) => Rows::all(dropped(&x.tensor, dropout)),
            None => x.clone(),
        }
    }

    /// This layer's part of [`Adapters::down`].
    fn part(&self, down: &CubeTensor<R>) -> Rows<R> {
        Rows::part(down.clone(), self.first, self.width)
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
        let mut dx: Option<CubeTensor<R>> = None;
        let mut gradients = Vec::with_capacity(layers.len());
        for (index, (layer, sum)) in layers.iter().zip(sums).enumerate() {
            let dy = &dy[index];
            let adapter = adapters.as_ref().and_then(|adapters| adapters.layers[index].as_ref());
            let dt = adapter.map(|adapter| {
                let (lhs, rhs) = (Operand::dense(dy), Operand::dense(&adapter.b));
                Rows::all(product(like, lhs, rhs, Finish::default(), dtype))
            });
            if wants_x {
                // A dropped part cannot share the weight's reduction: it is masked first.
                let joined = adapter.filter(|adapter| adapter.dropout.is_none());
                let tail = joined.map(|adapter| &adapter.a);
                let slope = over(layer.weight, dy.rows, dtype, false, |stored| {
                    let lhs = Operand { tail: joined.and(dt.as_ref()), ..Operand::dense(dy) };
                    let rhs = Operand { stored, transposed: false, tail };
                    let finish = Finish { residual: dx.as_ref(), ..Finish::default() };
                    product(like, lhs, rhs, finish, sum_dtype)
                });
                let dropout = adapter.and_then(|adapter| Some((adapter, adapter.dropout.as_ref()?)));
                if let (Some((adapter, dropout)), Some(dt)) = (dropout, &dt) {
                    let (lhs, rhs) = (Operand::dense(dt), Operand::dense(&adapter.a));
                    let part = product(like, lhs, rhs, Finish::default(), DType::F32);
                    add_dropped(&part, dropout, &slope);
                }
                dx = Some(slope);
            }
            let saved = x.as_ref().zip(down.as_ref());
            gradients.push(adapter.zip(dt).zip(saved).map(|((adapter, dt), (x, down))| {
                let before = sum.map(|sum| (float(&sum.a), float(&sum.b)));
                let (before_a, before_b) = before.as_ref().map_or((None, None), |(a, b)| (Some(a), Some(b)));
                let dropped = adapter.dropped(x);
                let dt = dt.first(adapter.rank);
                let (lhs, rhs) = (Operand::transposed(&dt), Operand::dense(&dropped));
                let finish = Finish { residual: before_a, ..Finish::default() };
                let a = product(like, lhs, rhs, finish, DType::F32);
                let part = adapter.part(down).first(adapter.rank);
                let (lhs, rhs) = (Operand::transposed(dy), Operand::dense(&part));
                let finish = Finish { factor: adapter.scaling, bias: None, residual: before_b };
                let b = product(like, lhs, rhs, finish, DType::F32);
                LoraGradient { a: wrap(a), b: wrap(b) }
            }));
        }
        LinearGradients { x: dx.map(|dx| wrap(cast(&dx, dtype))), adapters: gradients }
    }
}
