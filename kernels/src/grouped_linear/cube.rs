//! Grouped linear layers on a GPU: the products of `linear`, range by range. Frozen layers alone read and write where the
//! rows of each range lie; with adapters the parts are joined.

use burn_cubecl::{BoolElement, CubeBackend, CubeRuntime, FloatElement, IntElement};
use burn_tensor::{DType, Tensor};

use super::{
    Group, Grouped, GroupedBackward, GroupedGradients, GroupedLinearOps, composed, composed_backward,
};
use crate::cube::convert::{Part, cast, copy_all};
use crate::cube::product::{Finish, Operand, Rows, product, product_into};
use crate::cube::tensor::{dims, empty, float, wrap};
use crate::linear::cube::over;

impl<R, F, I, T> GroupedLinearOps for CubeBackend<R, F, I, T>
where
    R: CubeRuntime,
    F: FloatElement,
    I: IntElement,
    T: BoolElement,
{
    fn grouped_linear(x: &Tensor<Self, 2>, groups: &[Group<'_, Self>]) -> Grouped<Self> {
        if !is_plain(groups) {
            return composed(x, groups);
        }
        let x = float(x);
        let [rows, width] = [dims(&x)[0], dims(&x)[1]];
        let widths: Vec<usize> = groups[0].layers.iter().map(|layer| layer.weight.shape()[0]).collect();
        let outputs: Vec<_> = widths.iter().map(|width| empty(&x, &[rows, *width], x.dtype)).collect();
        for Group { rows, layers } in groups.iter().filter(|group| !group.rows.is_empty()) {
            let part = Rows::at(x.clone(), rows.start * width, [rows.len(), width]);
            for ((layer, out), width) in layers.iter().zip(&outputs).zip(&widths) {
                let target = Rows::at(out.clone(), rows.start * width, [rows.len(), *width]);
                let bias = layer.bias.map(|bias| cast(&float(bias), x.dtype));
                over(layer.weight, rows.len(), x.dtype, true, |stored| {
                    let rhs = Operand { stored, transposed: true, tail: None };
                    let finish = Finish { bias: bias.as_ref(), ..Finish::default() };
                    product_into(&target, Operand::dense(&part), rhs, finish);
                    out.clone()
                });
            }
        }
        Grouped { outputs: outputs.into_iter().map(wrap).collect(), down: vec![None; groups.len()] }
    }

    fn grouped_linear_backward(request: GroupedBackward<'_, Self>) -> GroupedGradients<Self> {
        if !is_plain(request.groups) || !request.wants_x {
            return composed_backward(request);
        }
        let GroupedBackward { groups, dy, sums, .. } = request;
        let dy: Vec<_> = dy.iter().map(float).collect();
        let (like, dtype) = (&dy[0], dy[0].dtype);
        let [_, width] = groups[0].layers[0].weight.shape();
        let dx = empty(like, &[dims(like)[0], width], dtype);
        for Group { rows, layers } in groups.iter().filter(|group| !group.rows.is_empty()) {
            let offset = rows.start * width;
            let parts = layers.iter().zip(&dy).map(|(layer, dy)| {
                let [out, _] = layer.weight.shape();
                (layer, Rows::at(dy.clone(), rows.start * out, [rows.len(), out]))
            });
            if let [layer] = layers.as_slice() {
                let target = Rows::at(dx.clone(), offset, [rows.len(), width]);
                for (_, part) in parts {
                    over(layer.weight, rows.len(), dtype, false, |stored| {
                        let rhs = Operand { stored, transposed: false, tail: None };
                        product_into(&target, Operand::dense(&part), rhs, Finish::default());
                        dx.clone()
                    });
                }
                continue;
            }
            // Several layers are added up in f32, and rounded once.
            let mut sum = None;
            for (layer, part) in parts {
                sum = Some(over(layer.weight, rows.len(), dtype, false, |stored| {
                    let rhs = Operand { stored, transposed: false, tail: None };
                    let finish = Finish { residual: sum.as_ref(), ..Finish::default() };
                    product(like, Operand::dense(&part), rhs, finish, DType::F32)
                }));
            }
            if let Some(sum) = &sum {
                copy_all(&[Part { source: sum, factor: 1.0, offset, room: None }], &dx);
            }
        }
        GroupedGradients { x: Some(wrap(dx)), adapters: sums }
    }
}

/// Whether no layer has an adapter.
fn is_plain<R, F, I, T>(groups: &[Group<'_, CubeBackend<R, F, I, T>>]) -> bool
where
    R: CubeRuntime,
    F: FloatElement,
    I: IntElement,
    T: BoolElement,
{
    groups.iter().flat_map(|group| &group.layers).all(|layer| layer.lora.is_none())
}
