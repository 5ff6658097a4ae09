//! The trait a backend implements to run the ops of this crate: one method per op, and one per backward.

use std::sync::atomic::{AtomicU64, Ordering};

use burn::tensor::backend::Backend;
use burn::tensor::{Int, Tensor};

use crate::adamw::{AdamWConfig, Guard, Moments, Update};
use crate::attention::{AttentionBackward, AttentionOptions};
use crate::column_scale;
use crate::linear::{FrozenWeight, Linear, LinearBackward, LinearGradients, Projected};
use crate::linear_cross_entropy::{LossAndGradient, Supervised};
use crate::memory::DeviceMemory;
use crate::nf4::Nf4Weight;
use crate::rope::{Direction, RotaryTable};

/// Numbers that are on their way from the device.
pub struct Reading(Box<dyn FnOnce() -> Result<Vec<f32>, String>>);

/// [`Reading`]s made by this process.
static READINGS: AtomicU64 = AtomicU64::new(0);

/// How often this process asked a device for numbers, with [`KernelBackend::read_later`].
pub fn readings() -> u64 {
    READINGS.load(Ordering::Relaxed)
}

impl Reading {
    pub(crate) fn new(read: impl FnOnce() -> Result<Vec<f32>, String> + 'static) -> Self {
        READINGS.fetch_add(1, Ordering::Relaxed);
        Self(Box::new(read))
    }

    /// Waits for them.
    ///
    /// # Errors
    /// What went wrong on the device, in its own words.
    pub fn wait(self) -> Result<Vec<f32>, String> {
        (self.0)()
    }
}

impl std::fmt::Debug for Reading {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("Reading")
    }
}

/// A backend the ops run on. Callers use the functions of the op modules, which check shapes; the methods here rely
/// on that.
///
/// A method that takes a tensor by value may write its result into that tensor's memory when nobody else holds it.
pub trait KernelBackend: Backend {
    /// [`crate::linear::linear`].
    fn frozen_linear(
        x: &Tensor<Self, 2>,
        layers: &[Linear<'_, Self>],
        residual: Option<&Tensor<Self, 2>>,
    ) -> Projected<Self>;

    /// [`crate::linear::linear_backward`].
    fn frozen_linear_backward(request: LinearBackward<'_, Self>) -> LinearGradients<Self>;

    /// [`crate::column_scale::column_scale`]; composed of the backend's own operations unless it has a faster way.
    fn column_scale(
        u: &Tensor<Self, 2>,
        factors: &Tensor<Self, 2>,
        bias: Option<&Tensor<Self, 1>>,
        residual: Option<&Tensor<Self, 2>>,
    ) -> Tensor<Self, 2> {
        column_scale::composed(u, factors, bias, residual)
    }

    /// [`crate::column_scale::column_scale_backward`]; composed likewise.
    fn column_scale_backward(
        u: &Tensor<Self, 2>,
        factors: &Tensor<Self, 2>,
        dy: &Tensor<Self, 2>,
    ) -> (Tensor<Self, 2>, Tensor<Self, 2>) {
        column_scale::composed_backward(u, factors, dy)
    }

    /// [`crate::rms_norm::rms_norm`].
    fn rms_norm(x: &Tensor<Self, 2>, weight: &Tensor<Self, 1>, epsilon: f64) -> Tensor<Self, 2>;

    /// [`crate::rms_norm::rms_norm_backward`].
    fn rms_norm_backward(
        x: &Tensor<Self, 2>,
        weight: &Tensor<Self, 1>,
        epsilon: f64,
        dy: Tensor<Self, 2>,
        residual: Option<&Tensor<Self, 2>>,
    ) -> Tensor<Self, 2>;

    /// [`crate::rope::rope_all`]; every position is inside the table.
    fn rope<const N: usize>(
        x: [Tensor<Self, 3>; N],
        table: &RotaryTable<Self>,
        position_ids: &Tensor<Self, 1, Int>,
        direction: Direction,
    ) -> [Tensor<Self, 3>; N];

    /// [`crate::swiglu::swiglu`].
    fn swiglu(gate: &Tensor<Self, 2>, up: &Tensor<Self, 2>) -> Tensor<Self, 2>;

    /// [`crate::swiglu::swiglu_backward`].
    fn swiglu_backward(
        gate: Tensor<Self, 2>,
        up: Tensor<Self, 2>,
        dy: Tensor<Self, 2>,
    ) -> (Tensor<Self, 2>, Tensor<Self, 2>);

    /// [`crate::attention::attention`].
    fn document_attention(
        q: &Tensor<Self, 3>,
        k: &Tensor<Self, 3>,
        v: &Tensor<Self, 3>,
        options: &AttentionOptions,
    ) -> (Tensor<Self, 3>, Tensor<Self, 2>);

    /// [`crate::attention::attention_backward`].
    fn document_attention_backward(request: AttentionBackward<'_, Self>) -> [Tensor<Self, 3>; 3];

    /// [`crate::linear_cross_entropy::linear_cross_entropy`].
    fn linear_cross_entropy(
        hidden: &Tensor<Self, 2>,
        head: &FrozenWeight<Self>,
        supervised: &[Supervised],
        wants_gradient: bool,
    ) -> LossAndGradient<Self>;

    /// [`crate::adamw::adamw`].
    fn adamw(
        updates: Vec<Update<Self>>,
        guard: &Guard<Self>,
        config: &AdamWConfig,
        learning_rate: f64,
        step: u64,
    ) -> Vec<(Tensor<Self, 2>, Moments<Self>)>;

    /// [`crate::adamw::norm`] of one tensor at least.
    fn norm(tensors: &[&Tensor<Self, 2>]) -> Tensor<Self, 1>;

    /// Has the device hand out a few f32 numbers when it comes to them, and waits for none of its work. Whatever is
    /// launched after this call runs behind it.
    fn read_later(numbers: Tensor<Self, 1>) -> Reading {
        let data = numbers.try_into_data().map_err(|error| format!("{error:?}"));
        let numbers = data.and_then(|data| data.into_vec::<f32>().map_err(|error| format!("{error:?}")));
        Reading::new(move || numbers)
    }

    /// [`Nf4Weight::dequantize`]: f32 `[out, in]`.
    fn nf4_dequantize(weight: &Nf4Weight<Self>) -> Tensor<Self, 2>;

    /// Runs work of many small ops, such as one step of decoding, where they fork at the least cost.
    fn on_workers<R: Send>(work: impl FnOnce() -> R + Send) -> R {
        work()
    }

    /// What the calling thread's tensors take on `device`; `None` where they lie in the process's own memory.
    fn device_memory(_device: &Self::Device) -> Option<DeviceMemory> {
        None
    }

    /// Does `work` and tells the most that [`Self::device_memory`] was in it. Slower than the work alone: every buffer that
    /// an op takes is counted.
    fn peak_memory<T>(work: impl FnOnce() -> T) -> (T, Option<DeviceMemory>) {
        (work(), None)
    }
}
