//! The carriers of layers that are fetched for each use: a thread that reads them ahead from files, and host memory that
//! keeps them.

use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;

use serde::Serialize;
use tune_kernels::KernelBackend;

use super::absent::{Absent, Failure, Waiting};
use super::decoder_spec::DecoderSpec;
use super::dtype::FloatDtype;
use super::error::Error;
use super::layers::Layer;
use super::layers::slots::Carrier;
use super::load::Shelf;
use super::parts::{LayerSpec, MixtureSpec};
use super::stored::{Squares, StoredLayer};

/// Where layers wait that are not held on the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Home {
    /// In host memory, as they will be on the device.
    Host,
    /// In files, which are read ahead.
    Disk,
}

/// Brings layers to a device.
pub(super) struct Fetcher<B: KernelBackend> {
    source: Source<B>,
    waiting: Waiting,
    device: B::Device,
    dtype: FloatDtype,
    /// By layer.
    squares: Vec<Squares<B>>,
    /// Up to so many tokens, layers come without their experts, which come when they are used.
    few: usize,
    /// The tokens of the walk that is under way.
    tokens: usize,
}

/// A slot, and the layer that came into it, or why none did.
type Arrival<B> = (usize, Result<Arc<Layer<B>>, Error>);

enum Source<B: KernelBackend> {
    /// Requests to a thread, and its answers in the same order, each for the next of the slots and layers asked for.
    Files {
        requests: Sender<(usize, bool)>,
        answers: Receiver<Result<StoredLayer, Error>>,
        asked: VecDeque<(usize, usize)>,
    },
    /// Layers on their way to the device, with their slots.
    Memory { sent: VecDeque<Arrival<B>> },
}

impl<B: KernelBackend> fmt::Debug for Fetcher<B> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self.source {
            Source::Files { .. } => "Fetcher(Files)",
            Source::Memory { .. } => "Fetcher(Memory)",
        })
    }
}

impl<B: KernelBackend> Fetcher<B> {
    /// From files, read by a thread of its own, which ends with the fetcher.
    ///
    /// # Errors
    /// The system starts no thread.
    pub(super) fn files(shelf: Shelf, device: &B::Device) -> Result<Self, Error> {
        Self::read_by(shelf, device, Shelf::layer)
    }

    /// The same with another way to read a layer.
    fn read_by(
        shelf: Shelf,
        device: &B::Device,
        mut read: impl FnMut(&Shelf, usize, bool) -> Result<StoredLayer, Error> + Send + 'static,
    ) -> Result<Self, Error> {
        let (dtype, squares) = (shelf.dtype(), shelf.squares());
        let (requests, asked) = channel::<(usize, bool)>();
        let (tell, answers) = channel();
        let shelf = Arc::new(shelf);
        let waiting = Waiting::Files(Arc::clone(&shelf));
        let read = move || {
            for (layer, with_experts) in asked {
                // Whoever asked may be gone.
                if tell.send(read(&shelf, layer, with_experts)).is_err() {
                    break;
                }
            }
        };
        let started = thread::Builder::new().name("layers".into()).spawn(read);
        started.map_err(|source| Error::LayerReader { message: source.to_string() })?;
        let source = Source::Files { requests, answers, asked: VecDeque::new() };
        Ok(Self { source, waiting, device: device.clone(), dtype, squares, few: 0, tokens: 0 })
    }

    /// From host memory.
    pub(super) fn memory(layers: Vec<StoredLayer>, shelf: &Shelf, device: &B::Device) -> Self {
        let source = Source::Memory { sent: VecDeque::new() };
        let waiting = Waiting::Memory(Arc::new(layers));
        let (dtype, squares) = (shelf.dtype(), shelf.squares());
        Self { source, waiting, device: device.clone(), dtype, squares, few: 0, tokens: 0 }
    }

    /// The same, that brings experts by use where a walk's tokens reach less than half of them: a layer's experts cannot be
    /// read ahead then, since its router has to have chosen.
    pub(super) fn by_use(self, spec: &DecoderSpec) -> Self {
        let few = |layer: &Arc<LayerSpec>| layer.mixture().map(MixtureSpec::few_tokens);
        // Of a decoder without mixtures, and of layers without, every layer comes whole.
        Self { few: spec.layers.iter().filter_map(few).min().unwrap_or(0), ..self }
    }

    /// Says how many tokens the next walk has.
    pub(super) fn prepare(&mut self, tokens: usize) {
        self.tokens = tokens;
    }

    /// A layer on the device.
    fn placed(&self, layer: usize, stored: Result<StoredLayer, Error>) -> Result<Arc<Layer<B>>, Error> {
        let stored = stored?;
        let lacks = stored.projections.iter().any(Option::is_none);
        let placed = stored.place(self.dtype, &self.device, self.squares.get(layer))?;
        let absent = || Absent {
            waiting: self.waiting.clone(),
            layer,
            dtype: self.dtype,
            device: self.device.clone(),
            squares: self.squares.get(layer).cloned().unwrap_or_default(),
            failure: Failure::default(),
        };
        Ok(Arc::new(if lacks { placed.bringing(absent()) } else { placed }))
    }
}

impl<B: KernelBackend> Carrier for Fetcher<B> {
    type Cargo = Arc<Layer<B>>;

    fn begin(&mut self, slot: usize, layer: usize, old: Option<Self::Cargo>) {
        // Its memory serves the new one. A device frees it behind the work that was launched with it.
        drop(old);
        let with_experts = self.tokens > self.few;
        if let Source::Files { requests, asked, .. } = &mut self.source {
            asked.push_back((slot, layer));
            // A thread that is gone is noticed when its answer is missing.
            _ = requests.send((layer, with_experts));
            return;
        }
        // The copy is launched before the work with the layer in use, and so runs beside it.
        let placed = self.placed(layer, self.waiting.layer(layer, with_experts));
        if let Source::Memory { sent } = &mut self.source {
            sent.push_back((slot, placed));
        }
    }

    fn next(&mut self) -> (usize, Result<Self::Cargo, Error>) {
        match &mut self.source {
            Source::Files { answers, asked, .. } => {
                let stored = answers.recv().unwrap_or_else(|_| Err(ended()));
                let (slot, layer) = asked.pop_front().unwrap_or((usize::MAX, usize::MAX));
                (slot, self.placed(layer, stored))
            }
            Source::Memory { sent } => sent.pop_front().unwrap_or_else(|| (usize::MAX, Err(ended()))),
        }
    }
}

fn ended() -> Error {
    Error::LayerReader { message: "its thread has ended".to_owned() }
}

#[cfg(test)]
mod tests;
