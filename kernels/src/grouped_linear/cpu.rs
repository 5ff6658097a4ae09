//! Grouped linear layers on the CPU: the products of `linear`, read and written where the rows of each range lie.
//!
//! A range may have few rows, too few for all threads; so some ranges are computed side by side.

use std::mem;

use burn_flex::Flex;
use burn_tensor::Tensor;

use super::{Group, Grouped, GroupedBackward, GroupedGradients, GroupedLinearOps};
use crate::cpu::pool::{self, Buffer};
use crate::cpu::scalar::with_float;
use crate::cpu::tensor;
use crate::linear::cpu::{Backward, Forward, backward, forward};
use crate::linear::{Down, Linear};

/// Rows of ranges that are computed side by side: their packed copies are held together.
const TOGETHER: usize = 1024;

impl GroupedLinearOps for Flex {
    fn grouped_linear(x: &Tensor<Self, 2>, groups: &[Group<'_, Self>]) -> Grouped<Self> {
        let [rows, width] = x.dims();
        let x = tensor::primitive(x.clone());
        let outs: Vec<usize> = groups[0].layers.iter().map(|layer| layer.weight.shape()[0]).collect();
        with_float!(x.dtype(), T => {
            let x = x.storage::<T>();
            let mut written: Vec<Buffer<T>> = outs.iter().map(|out| pool::take::<T>(rows * out)).collect();
            let mut rests: Vec<&mut [T]> = written.iter_mut().map(|out| &mut **out).collect();
            let mut down: Vec<Option<Down<Self>>> = groups.iter().map(|_| None).collect();
            for batch in batches(groups) {
                let part = |index: &usize| {
                    let Group { rows, layers } = &groups[*index];
                    let outputs = rests.iter_mut().zip(&outs);
                    let outputs = outputs.map(|(rest, out)| split_off(rest, rows.len() * out)).collect();
                    let x = &x[rows.start * width..rows.end * width];
                    Forward { x, layers, residual: None, outputs }
                };
                let ts = forward(batch.iter().map(part).collect());
                for (index, t) in batch.into_iter().zip(ts) {
                    let Group { rows, layers } = &groups[index];
                    let ranks: usize = layers.iter().map(Linear::rank).sum();
                    down[index] =
                        t.map(|t| Down { t: tensor::from_buffer(t, [rows.len(), ranks]), operands: None });
                }
            }
            let outputs = written.into_iter().zip(outs);
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
            let mut adapters = sums;
            for batch in batches(groups) {
                let part = |index: &usize| {
                    let Group { rows, layers } = &groups[*index];
                    let saved = x.zip(downs[*index].as_ref());
                    let saved =
                        saved.map(|(x, down)| (&x[rows.start * width..rows.end * width], down.storage::<T>()));
                    let dy = dy.iter().zip(&outs).map(|(dy, out)| &dy[rows.start * out..rows.end * out]);
                    let dx = wants_x.then(|| split_off(&mut rest, rows.len() * width));
                    Backward { layers, saved, dy: dy.collect(), dx, sums: mem::take(&mut adapters[*index]) }
                };
                let found = backward(batch.iter().map(part).collect());
                batch.into_iter().zip(found).for_each(|(index, found)| adapters[index] = found);
            }
            GroupedGradients { x: dx.map(|dx| tensor::from_buffer(dx, [rows, width])), adapters }
        })
    }
}

/// Numbers of the groups that have rows, those together that are computed side by side.
fn batches(groups: &[Group<'_, Flex>]) -> Vec<Vec<usize>> {
    let mut batches: Vec<Vec<usize>> = Vec::new();
    let mut held = 0;
    for (index, Group { rows, .. }) in groups.iter().enumerate().filter(|(_, group)| !group.rows.is_empty()) {
        held += rows.len();
        match batches.last_mut() {
            Some(batch) if held <= TOGETHER => batch.push(index),
            _ => {
                held = rows.len();
                batches.push(vec![index]);
            }
        }
    }
    batches
}

/// The first values of a slice, which it then begins behind.
fn split_off<'a, T>(values: &mut &'a mut [T], count: usize) -> &'a mut [T] {
    let (here, behind) = mem::take(values).split_at_mut(count);
    *values = behind;
    here
}
