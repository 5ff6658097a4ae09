//! The carriers of layers that are fetched for each use: a thread that reads them ahead from files, and host memory that
//! keeps them.

use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;

use serde::Serialize;
use tune_kernels::KernelBackend;

use super::Error;
use super::dtype::FloatDtype;
use super::layers::Layer;
use super::layers::slots::Carrier;
use super::load::Shelf;
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
    device: B::Device,
    dtype: FloatDtype,
    /// By layer.
    squares: Vec<Squares<B>>,
}

/// A slot, and the layer that came into it, or why none did.
type Arrival<B> = (usize, Result<Arc<Layer<B>>, Error>);

enum Source<B: KernelBackend> {
    /// Requests to a thread, and its answers in the same order, each for the next of the slots and layers asked for.
    Files {
        requests: Sender<usize>,
        answers: Receiver<Result<StoredLayer, Error>>,
        asked: VecDeque<(usize, usize)>,
    },
    /// All layers, and those on their way to the device, with their slots.
    Memory { layers: Vec<StoredLayer>, sent: VecDeque<Arrival<B>> },
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
        let (dtype, squares) = (shelf.dtype(), shelf.squares());
        let (requests, asked) = channel::<usize>();
        let (tell, answers) = channel();
        let read = move || {
            for layer in asked {
                // Whoever asked may be gone.
                if tell.send(shelf.layer(layer)).is_err() {
                    break;
                }
            }
        };
        let started = thread::Builder::new().name("layers".into()).spawn(read);
        started.map_err(|source| Error::LayerReader { message: source.to_string() })?;
        let source = Source::Files { requests, answers, asked: VecDeque::new() };
        Ok(Self { source, device: device.clone(), dtype, squares })
    }

    /// From host memory.
    pub(super) fn memory(layers: Vec<StoredLayer>, shelf: &Shelf, device: &B::Device) -> Self {
        let source = Source::Memory { layers, sent: VecDeque::new() };
        Self { source, device: device.clone(), dtype: shelf.dtype(), squares: shelf.squares() }
    }
}

impl<B: KernelBackend> Carrier for Fetcher<B> {
    type Cargo = Arc<Layer<B>>;

    fn begin(&mut self, slot: usize, layer: usize, old: Option<Self::Cargo>) {
        // Its memory serves the new one. A device frees it behind the work that was launched with it.
        drop(old);
        match &mut self.source {
            Source::Files { requests, asked, .. } => {
                asked.push_back((slot, layer));
                // A thread that is gone is noticed when its answer is missing.
                _ = requests.send(layer);
            }
            // The copy is launched before the work with the layer in use, and so runs beside it.
            Source::Memory { layers, sent } => {
                let stored = layers.get(layer).cloned().ok_or_else(ended);
                let squares = self.squares.get(layer);
                let placed = stored.and_then(|stored| stored.place(self.dtype, &self.device, squares));
                sent.push_back((slot, placed.map(Arc::new)));
            }
        }
    }

    fn next(&mut self) -> (usize, Result<Self::Cargo, Error>) {
        match &mut self.source {
            Source::Files { answers, asked, .. } => {
                let stored = answers.recv().unwrap_or_else(|_| Err(ended()));
                let (slot, layer) = asked.pop_front().unwrap_or((usize::MAX, usize::MAX));
                let squares = self.squares.get(layer);
                let placed = stored.and_then(|stored| stored.place(self.dtype, &self.device, squares));
                (slot, placed.map(Arc::new))
            }
            Source::Memory { sent, .. } => sent.pop_front().unwrap_or_else(|| (usize::MAX, Err(ended()))),
        }
    }
}

fn ended() -> Error {
    Error::LayerReader { message: "its thread has ended".to_owned() }
}
