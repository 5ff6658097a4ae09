//! The gradient of a step whose micro-batches several ranks share: what each sends, and how all of it becomes one
//! gradient, the same on every rank.
//!
//! A rank that has no gradient of a parameter sends −0, the one number that changes no sum. A GPU's numbers pass through the
//! host; a carrier between GPUs (NCCL) would replace what [`Fit::sum`] does behind the messages: slices to their ranks, a sum
//! in the order of the tree, and the sums back.

use burn_tensor::{DType, Tensor, TensorData};
use tune_kernels::KernelBackend;

use super::error::FitError;
use super::expert_load::ExpertLoad;
use super::fit::Fit;
use super::team::{framed, from_bytes, next_part, to_bytes};
use crate::adapter::parameter::Parameter;
use crate::objective::Summed;

/// What one rank computed of a step; or all ranks, their losses in the order of the micro-batches.
pub(super) struct Share<B: KernelBackend> {
    /// The loss of each of its micro-batches, in the order of [`super::lanes::Lanes::order`].
    pub losses: Vec<Summed<B>>,
    /// The sum of its lanes: one entry for each parameter, `None` where no micro-batch was added.
    pub values: Vec<Option<Tensor<B, 2>>>,
    /// How many tokens were sent to each expert.
    pub load: ExpertLoad,
}

impl<B: KernelBackend> Share<B> {
    /// The share that is the whole, with its losses at their places.
    pub(super) fn in_order(self, order: impl Iterator<Item = usize>) -> Self {
        let mut losses: Vec<(usize, Summed<B>)> = order.zip(self.losses).collect();
        losses.sort_by_key(|(index, _)| *index);
        Self { losses: losses.into_iter().map(|(_, loss)| loss).collect(), ..self }
    }
}

/// What a rank asks of the run beside its share of a step. All ask what any asks, but for the time, of which the first
/// rank has the clock.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Wishes {
    /// Stop before this step.
    pub stop: bool,
    /// Save a checkpoint after it.
    pub save: bool,
    /// `max_time` is spent: end after it.
    pub late: bool,
}

impl Wishes {
    fn to_byte(self) -> u8 {
        u8::from(self.stop) | u8::from(self.save) << 1 | u8::from(self.late) << 2
    }

    fn of_byte(byte: u8) -> Self {
        Self { stop: byte & 1 > 0, save: byte & 2 > 0, late: byte & 4 > 0 }
    }

    fn add(&mut self, Self { stop, save, late }: Self, is_first: bool) {
        self.stop |= stop;
        self.save |= save;
        self.late |= late && is_first;
    }
}

/// What the ranks exchanged.
pub(super) struct Exchanged<B: KernelBackend> {
    /// What they ask of the run.
    pub wishes: Wishes,
    /// The message of each rank.
    pub messages: Vec<Vec<u8>>,
    /// The sums of their values; `None` when one asks to stop.
    pub sums: Option<Vec<Option<Tensor<B, 2>>>>,
}

impl<B: KernelBackend> Fit<'_, B> {
    /// Exchanges the shares of a step of `count` micro-batches; the whole is `None` when a rank stops. Waits for the
    /// device.
    ///
    /// # Errors
    /// The device fails, or another rank.
    pub(super) fn exchange(
        &self,
        parameters: &[Parameter],
        count: usize,
        share: Share<B>,
        wishes: Wishes,
    ) -> Result<(Wishes, Option<Share<B>>), FitError> {
        let mut losses = Vec::new();
        for Summed { value, statistics } in share.losses {
            let numbers = std::iter::once(value).chain(statistics).collect();
            losses.extend(to_bytes(&self.read(Tensor::cat(numbers, 0))?));
        }
        let message = [framed(&losses), share.load.to_bytes()].concat();
        let shapes: Vec<[usize; 2]> = parameters.iter().map(|parameter| parameter.shape).collect();
        let Exchanged { wishes, messages, sums } = self.sum(&shapes, share.values, message, wishes)?;
        let (mut losses, mut load): (Vec<Option<Summed<B>>>, _) = (vec![None; count], ExpertLoad::default());
        for (rank, message) in messages.iter().enumerate() {
            let mut rest = &**message;
            let numbers = from_bytes(next_part(&mut rest));
            load.add(&ExpertLoad::of_bytes(rest));
            let own: Vec<usize> = self.lanes.order(rank, count).collect();
            let width = (numbers.len() / own.len().max(1)).max(1);
            for (index, numbers) in own.into_iter().zip(numbers.chunks(width)) {
                let (value, statistics) = numbers.split_at(1);
                let statistics =
                    (!statistics.is_empty()).then(|| self.upload(statistics, [statistics.len()]));
                losses[index] = Some(Summed { value: self.upload(value, [1]), statistics });
            }
        }
        let losses = losses.into_iter().flatten().collect();
        Ok((wishes, sums.map(|values| Share { losses, values, load })))
    }

    /// The sum of all ranks' `values`, which have these `shapes`; `message` and `wishes` go with them.
    ///
    /// # Errors
    /// The device fails, or another rank.
    pub(super) fn sum(
        &self,
        shapes: &[[usize; 2]],
        values: Vec<Option<Tensor<B, 2>>>,
        message: Vec<u8>,
        wishes: Wishes,
    ) -> Result<Exchanged<B>, FitError> {
        if self.team.is_alone() {
            let sums = (!wishes.stop).then_some(values);
            return Ok(Exchanged { wishes, messages: vec![message], sums });
        }
        // All is read from the device before the others rely on it.
        let elements = |shape: &[usize; 2]| shape.iter().product::<usize>();
        let mut numbers = Vec::with_capacity(shapes.iter().map(elements).sum());
        let mut sent = vec![wishes.to_byte()];
        for (shape, value) in shapes.iter().zip(values) {
            sent.push(u8::from(value.is_some()));
            match value {
                Some(value) => numbers.extend(self.read(value.flatten(0, 1))?),
                None => numbers.resize(numbers.len() + elements(shape), -0.0),
            }
        }
        sent.extend(message);
        let mut asked = Wishes::default();
        let mut is_present = vec![false; shapes.len()];
        let mut messages = Vec::with_capacity(self.team.size());
        for (rank, message) in self.team.gather(&sent)?.iter().enumerate() {
            let Some((wishes, message)) = message.split_first() else { continue };
            asked.add(Wishes::of_byte(*wishes), rank == 0);
            let (flags, message) = message.split_at(shapes.len().min(message.len()));
            is_present.iter_mut().zip(flags).for_each(|(is_present, flag)| *is_present |= *flag > 0);
            messages.push(message.to_vec());
        }
        if asked.stop {
            return Ok(Exchanged { wishes: asked, messages, sums: None });
        }
        let numbers = self.team.sum(numbers)?;
        let mut rest = numbers.as_slice();
        let mut sums = Vec::with_capacity(shapes.len());
        for (shape, is_present) in shapes.iter().zip(is_present) {
            let (value, behind) = rest.split_at(elements(shape));
            rest = behind;
            sums.push(is_present.then(|| self.upload(value, *shape)));
        }
        Ok(Exchanged { wishes: asked, messages, sums: Some(sums) })
    }

    fn read(&self, numbers: Tensor<B, 1>) -> Result<Vec<f32>, FitError> {
        B::read_later(numbers).wait().map_err(|message| FitError::device(self.device, message))
    }

    fn upload<const D: usize>(&self, numbers: &[f32], shape: [usize; D]) -> Tensor<B, D> {
        Tensor::from_data(TensorData::new(numbers.to_vec(), shape), (self.decoder.device(), DType::F32))
    }
}
