//! The adapters of a group of layers on a GPU: their matrices in the compute dtype, and the products of them alone, `t`, `dt`,
//! `dA` and `dB`.
//!
//! Those are skinny: a group takes one launch for each of the first two and one for both of the last. Ranks that suit tiled
//! products take one for each product.

use burn_cubecl::tensor::CubeTensor;
use burn_cubecl::{BoolElement, CubeBackend, CubeRuntime, FloatElement, IntElement};
use burn_tensor::DType;

use crate::cube::convert::{Part, copy_all, dropped};
use crate::cube::product::{Finish, Operand, Rows, product, product_into};
use crate::cube::skinny;
use crate::cube::skinny::columns::{self, Skinny, columns};
use crate::cube::skinny::rows::{self, rows};
use crate::cube::tensor::{dims, empty, float};
use crate::dropout::Dropout;
use crate::linear::{Linear, Lora};

/// The adapter of one layer in the compute dtype, and where its `t` stands among the others'.
pub(super) struct Adapter<R: CubeRuntime> {
    /// `[width, in]`, zeros behind the rank.
    pub(super) a: Rows<R>,
    /// `scaling · B`, `[out, width]`, likewise.
    pub(super) b: Rows<R>,
    scaling: f32,
    pub(super) dropout: Option<Dropout>,
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

/// `A` and `B`, or their gradients.
pub(super) type Pair<R> = [CubeTensor<R>; 2];

/// All adapters of a group, in one tensor: their `A` one below the other, behind them every `scaling · B`.
pub(super) struct Adapters<R: CubeRuntime> {
    /// In the compute dtype.
    pub(super) operands: CubeTensor<R>,
    /// `A` of all layers, `[Σ width, in]`.
    a: Rows<R>,
    /// For each layer.
    pub(super) layers: Vec<Option<Adapter<R>>>,
    /// Whether their products are skinny.
    are_skinny: bool,
}

/// Elements whose multiples the matrices of [`Adapters`] begin at, so that vectors divide them.
const ALIGNMENT: usize = 16;

impl<R: CubeRuntime> Adapters<R> {
    /// `None` where no layer has one. `operands` are those of the forward, in the backward.
    pub(super) fn new<F, I, T>(
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
        let ranks: Vec<_> = layers.iter().map(wide).collect();
        let widths = layers.iter().map(|layer| layer.weight.shape()[0]).chain([width]);
        let are_skinny = skinny::fit(&like.client, like.dtype, &ranks, dims(like)[0], widths);
        let layers = layers.iter().zip(places);
        let layers = layers.map(|(layer, place)| Some(adapter(layer.lora?, place?))).collect();
        Some(Self { a: Rows::at(operands.clone(), 0, [all, width]), operands, layers, are_skinny })
    }

    /// `t` of all layers, `[tokens, Σ width]`.
    pub(super) fn down(&self, x: &Rows<R>) -> CubeTensor<R> {
        let (like, dtype) = (&x.tensor, x.tensor.dtype);
        let drops = self.layers.iter().flatten().any(|layer| layer.dropout.is_some());
        if self.are_skinny {
            let part = |dropout, first, ranks| rows::Part {
                wide: like,
                dropout,
                offset: first * x.columns,
                first,
                ranks,
            };
            let parts: Vec<_> = if drops {
                let each = |layer: &'_ Adapter<R>| part(layer.dropout, layer.first, layer.width);
                self.layers.iter().flatten().map(each).collect()
            } else {
                vec![part(None, 0, self.a.rows)]
            };
            return rows(&parts, &self.operands, true, self.a.rows);
        }
        if !drops {
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

    /// `dt` of each layer, from its `dy`.
    pub(super) fn slopes(&self, dy: &[Rows<R>]) -> Vec<Option<Rows<R>>> {
        let pairs = self.layers.iter().zip(dy);
        if !self.are_skinny {
            let slope = |(layer, dy): (&Option<Adapter<R>>, &Rows<R>)| {
                let (lhs, rhs) = (Operand::dense(dy), Operand::dense(&layer.as_ref()?.b));
                Some(Rows::all(product(&dy.tensor, lhs, rhs, Finish::default(), dy.tensor.dtype)))
            };
            return pairs.map(slope).collect();
        }
        let pairs = pairs.filter_map(|(layer, dy)| layer.as_ref().zip(Some(&dy.tensor)));
        let parts = pairs.map(|(layer, wide)| rows::Part {
            wide,
            dropout: None,
            offset: layer.b.offset(),
            first: layer.first,
            ranks: layer.width,
        });
        let slopes = rows(&parts.collect::<Vec<_>>(), &self.operands, false, self.a.rows);
        self.layers.iter().map(|layer| Some(layer.as_ref()?.part(&slopes))).collect()
    }

    /// `dA` and `dB` of each layer, added to `sums`: from x, `t` and for each layer `dy` and `dt`.
    pub(super) fn gradients(
        &self,
        x: &Rows<R>,
        down: &CubeTensor<R>,
        dy: &[Rows<R>],
        slopes: &[Option<Rows<R>>],
        sums: Vec<Option<Pair<R>>>,
    ) -> Vec<Option<Pair<R>>> {
        let layers = self.layers.iter().zip(slopes).zip(dy).zip(sums);
        if !self.are_skinny {
            return layers
                .map(|(((layer, dt), dy), sum)| {
                    Some(layer.as_ref()?.gradient(x, down, dy, dt.as_ref()?, sum))
                })
                .collect();
        }
        let Some(all) = slopes.iter().flatten().next() else { return Vec::new() };
        let mut parts = Vec::with_capacity(2 * dy.len());
        for (((layer, _), dy), sum) in layers {
            let Some(layer) = layer else { continue };
            let [a, b] = sum.map_or([None, None], |pair| pair.map(Some));
            let (first, ranks) = (layer.first, layer.rank);
            let of = |wide, dropout, skinny, factor, before| columns::Part {
                wide,
                dropout,
                skinny,
                first,
                ranks,
                factor,
                before,
            };
            parts.push(of(&x.tensor, layer.dropout, Skinny::First, 1.0, a));
            parts.push(of(&dy.tensor, None, Skinny::Second, layer.scaling, b));
        }
        let mut results = columns(&parts, [&all.tensor, down]).into_iter();
        let mut pair = || Some([results.next()?, results.next()?]);
        self.layers.iter().map(|layer| layer.as_ref().and_then(|_| pair())).collect()
    }
}

impl<R: CubeRuntime> Adapter<R> {
    fn dropped(&self, x: &Rows<R>) -> Rows<R> {
        match &self.dropout {
            Some(dropout) => Rows::all(dropped(&x.tensor, dropout)),
            None => x.clone(),
        }
    }

    /// [`Adapters::gradients`] of this layer alone, by tiled products.
    fn gradient(
        &self,
        x: &Rows<R>,
        down: &CubeTensor<R>,
        dy: &Rows<R>,
        dt: &Rows<R>,
        sum: Option<Pair<R>>,
    ) -> Pair<R> {
        let like = &dy.tensor;
        let [before_a, before_b] = sum.as_ref().map_or([None, None], |pair| pair.each_ref().map(Some));
        let (dropped, dt) = (self.dropped(x), dt.first(self.rank));
        let (lhs, rhs) = (Operand::transposed(&dt), Operand::dense(&dropped));
        let finish = Finish { residual: before_a, ..Finish::default() };
        let a = product(like, lhs, rhs, finish, DType::F32);
        let part = self.part(down).first(self.rank);
        let (lhs, rhs) = (Operand::transposed(dy), Operand::dense(&part));
        let finish = Finish { factor: self.scaling, bias: None, residual: before_b };
        [a, product(like, lhs, rhs, finish, DType::F32)]
    }

    /// This layer's part of [`Adapters::down`].
    pub(super) fn part(&self, down: &CubeTensor<R>) -> Rows<R> {
        Rows::part(down.clone(), self.first, self.width)
    }
}
