//! The gated delta rule on the CPU, chunk after chunk: forward one task per document and value head, backward one per
//! document and key head, which adds up its value heads.

mod backward;
mod chunk;
mod products;
mod task;

use burn_flex::{Flex, FlexTensor};
use burn_tensor::Tensor;

use super::{CHUNK, DeltaGradients, DeltaHeads, DeltaRule, DeltaRuleOps};
use crate::cpu::disjoint::Disjoint;
use crate::cpu::pool;
use crate::cpu::scalar::{Scalar, narrow, with_float};
use crate::cpu::{parallel, tensor};
use chunk::{Chunk, Recurrence};
use task::{Inputs, Task, chunks};

/// The call's tensors, contiguous.
struct Operands {
    mixed: FlexTensor,
    decay: FlexTensor,
    write: FlexTensor,
    log_rate: FlexTensor,
    bias: FlexTensor,
    heads: DeltaHeads,
}

impl Operands {
    fn new(call: DeltaRule<'_, Flex>) -> Self {
        let [mixed, decay, write] =
            [call.mixed, call.decay, call.write].map(|x| tensor::primitive(x.clone()));
        let [log_rate, bias] = [call.log_rate, call.bias].map(|x| tensor::primitive(x.clone()));
        Self { mixed, decay, write, log_rate, bias, heads: call.heads }
    }

    fn inputs<T: Scalar>(&self) -> Inputs<'_, T> {
        Inputs {
            mixed: self.mixed.storage::<T>(),
            decay: self.decay.storage::<T>(),
            write: self.write.storage::<T>(),
            log_rate: self.log_rate.storage::<f32>(),
            bias: self.bias.storage::<f32>(),
            heads: self.heads,
            width: self.heads.widths().iter().sum(),
        }
    }
}

/// Long documents first, so that none is left for the end.
fn tasks(call: &DeltaRule<'_, Flex>, heads: usize) -> Vec<Task> {
    let documents = call.documents.documents().filter(|(tokens, _)| !tokens.is_empty());
    let mut tasks: Vec<Task> = documents
        .flat_map(|(tokens, _)| (0..heads).map(move |head| Task { tokens: tokens.clone(), head }))
        .collect();
    tasks.sort_by_key(|task| std::cmp::Reverse(task.tokens.len()));
    tasks
}

/// Elementary operations of a forward pass.
fn work(call: &DeltaRule<'_, Flex>) -> usize {
    let DeltaHeads { values, key_dim, value_dim, .. } = call.heads;
    call.mixed.dims()[0] * values * (3 * key_dim * value_dim + CHUNK * (key_dim + value_dim)) / 16
}

impl DeltaRuleOps for Flex {
    fn delta_rule(
        call: DeltaRule<'_, Flex>,
        state: Option<Tensor<Flex, 3>>,
    ) -> (Tensor<Flex, 2>, Option<Tensor<Flex, 3>>) {
        let DeltaHeads { values, key_dim, value_dim, .. } = call.heads;
        let tokens = call.mixed.dims()[0];
        let operands = Operands::new(call);
        let mut state = state.map(tensor::owned);
        let y = with_float!(operands.mixed.dtype(), T => {
            let inputs = operands.inputs::<T>();
            let mut y = pool::take::<T>(tokens * values * value_dim);
            {
                let out = Disjoint::new(&mut y);
                let states = state.as_mut().map(|state| Disjoint::new(state.storage_mut::<f32>()));
                let size = key_dim * value_dim;
                parallel::for_each(tasks(&call, values), work(&call), |task| {
                    let mut own = None;
                    let given = states.as_ref().map(|states| {
                        // SAFETY: there is one document, and this head belongs to this task alone.
                        unsafe { states.slice(task.head * size, size) }
                    });
                    let is_zero = given.is_none();
                    let state = given.unwrap_or_else(|| own.insert(pool::zeros::<f32>(size)));
                    let mut recurrence = Recurrence::new(inputs.heads, is_zero);
                    let mut chunk = Chunk::new(inputs.heads);
                    for range in chunks(&task.tokens) {
                        chunk.load(&inputs, range.clone(), task.head);
                        recurrence.forward(&mut chunk, state);
                        for (token, row) in range.zip(recurrence.output.chunks_exact(value_dim)) {
                            let start = (token * values + task.head) * value_dim;
                            // SAFETY: this head of this token belongs to this task alone.
                            narrow(row, unsafe { out.slice(start, value_dim) });
                        }
                    }
                });
            }
            tensor::from_buffer(y, [tokens, values * value_dim])
        });
        (y, state.map(tensor::from_flex))
    }

    fn delta_rule_backward(call: DeltaRule<'_, Flex>, dy: &Tensor<Flex, 2>) -> DeltaGradients<Flex> {
        let shape = call.mixed.dims();
        let DeltaHeads { keys, values, .. } = call.heads;
        let operands = Operands::new(call);
        let dy = tensor::primitive(dy.clone());
        with_float!(operands.mixed.dtype(), T => {
            let inputs = operands.inputs::<T>();
            let mut mixed = pool::take::<T>(operands.mixed.storage::<T>().len());
            let [mut decay, mut write] = [0; 2].map(|_| pool::take::<T>(shape[0] * values));
            {
                let out = backward::Out {
                    mixed: Disjoint::new(&mut mixed),
                    decay: Disjoint::new(&mut decay),
                    write: Disjoint::new(&mut write),
                };
                parallel::for_each(tasks(&call, keys), 3 * work(&call), |task| {
                    backward::run(&inputs, dy.storage::<T>(), &task, &out);
                });
            }
            DeltaGradients {
                mixed: tensor::from_buffer(mixed, shape),
                decay: tensor::from_buffer(decay, [shape[0], values]),
                write: tensor::from_buffer(write, [shape[0], values]),
            }
        })
    }
}

/// Numbers in f32 that a backward task holds for a document of `tokens`.
pub(crate) fn task_numbers(heads: DeltaHeads, tokens: u64) -> u64 {
    let (key_dim, value_dim) = (heads.key_dim as u64, heads.value_dim as u64);
    let chunks = tokens.div_ceil(CHUNK as u64);
    let chunk = CHUNK as u64;
    let kept = chunks * (key_dim * value_dim + chunk * (chunk + value_dim)) + tokens * 2 * key_dim;
    let working = 2 * key_dim * value_dim + chunk * (10 * key_dim + 6 * value_dim + 8 * chunk);
    kept + working
}
