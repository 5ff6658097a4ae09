//! Grouped linear layers on the CPU: the products of `linear`, read and written where the rows of each range lie.

use burn_flex::Flex;
use burn_tensor::Tensor;

use super::{Group, Grouped, GroupedBackward, GroupedGradients, GroupedLinearOps};
use crate::cpu::pool::{self, Buffer};
use crate::cpu::scalar::with_float;
use crate::cpu::tensor;
use crate::linear::{Down, Linear, cpu};

impl GroupedLinearOps for Flex {
    fn grouped_linear(x: &Tensor<Self, 2>, groups: &[Group<'_, Self>]) -> Grouped<Self> {
        let [rows, width] = x.dims();
        let x = tensor::primitive(x.clone());
        let outs: Vec<usize> = groups[0].layers.iter().map(|layer| layer.weight.shape()[0]).collect();
        with_float!(x.dtype(), T => {
            let x = x.storage::<T>();
            let mut outputs: Vec<Buffer<T>> = outs.iter().map(|out| pool::take::<T>(rows * out)).collect();
            let mut rests: Vec<&mut [T]> = outputs.iter_mut().map(|out| &mut **out).collect();
            let mut down = Vec::with_capacity(groups.len());
            for Group { rows, layers } in groups {
                let mut places = Vec::with_capacity(outs.len());
                for (rest, out) in rests.iter_mut().zip(&outs) {
                    let (here, behind) = std::mem::take(rest).split_at_mut(rows.len() * out);
                    places.push(here);
                    *rest = behind;
                }
                if rows.is_empty() {
                    down.push(None);
                    continue;
                }
                let t = cpu::forward(&x[rows.start * width..rows.end * width], layers, None, &mut places);
                let ranks: usize = layers.iter().map(Linear::rank).sum();
                down.push(t.map(|t| Down { t: tensor::from_buffer(t, [rows.len(), ranks]), operands: None }));
            }
            let outputs = outputs.into_iter().zip(outs);
            let outputs = outputs.map(|(values, out)| tensor::from_buffer(values, [rows, out])).collect();
            Grouped { outputs, down }
        })
    }

    fn grouped_linear_backward(request: GroupedBackward<'_, Self>) -> GroupedGradients<Self> {
        let GroupedBackward { x, groups, down, dy, wants_x, sums } = request;
        let rows = dy[0].dims()[0];
        let [_, width] = groups[0].layers[0].weight.shape();
        let outs: Vec<usize> = groups[0].layers.iter().map(|layer| layer.weight.shape()[0]).collect();
        let dy: Vec<_> = dy.iter().map(|dy| tensor::primitive(dy.clone())).collect();
        let x = x.map(|x| tensor::primitive(x.clone()));
        let downs: Vec<_> =
            down.iter().map(|down| down.as_ref().map(|down| tensor::primitive(down.t.clone()))).collect();
        with_float!(dy[0].dtype(), T => {
            let dy: Vec<&[T]> = dy.iter().map(|dy| dy.storage::<T>()).collect();
            let x = x.as_ref().map(|x| x.storage::<T>());
            let mut dx = wants_x.then(|| pool::take::<T>(rows * width));
            let mut rest: &mut [T] = dx.as_deref_mut().unwrap_or_default();
            let mut adapters = Vec::with_capacity(groups.len());
            for ((Group { rows, layers }, down), sums) in groups.iter().zip(&downs).zip(sums) {
                let here = if wants_x {
                    let (here, behind) = std::mem::take(&mut rest).split_at_mut(rows.len() * width);
                    rest = behind;
                    Some(here)
                } else {
                    None
                };
                if rows.is_empty() {
                    adapters.push(sums);
                    continue;
                }
                let saved = x.zip(down.as_ref());
                let saved =
                    saved.map(|(x, down)| (&x[rows.start * width..rows.end * width], down.storage::<T>()));
                let dy: Vec<&[T]> =
                    dy.iter().zip(&outs).map(|(dy, out)| &dy[rows.start * out..rows.end * out]).collect();
                adapters.push(cpu::backward(layers, saved, &dy, here, sums));
            }
            GroupedGradients { x: dx.map(|dx| tensor::from_buffer(dx, [rows, width])), adapters }
        })
    }
}
