//! What fetches layers for each use: a thread that reads them ahead, from files or from host memory, and on a GPU also
//! places them, so that the thread that launches work neither copies nor waits.
//!
//! Each thread has a stream and pools of its own on a GPU. The work that uses a placed layer waits for its copies. What runs
//! the other way is up to us, for a pool hands out a buffer again as soon as no tensor holds it, and knows nothing of work
//! that still reads it on another stream: a layer that goes is held until a mark behind that work has been passed
//! ([`tune_kernels::Fence`]). Then its buffers, which have the sizes of its tensors, are those of the layer that comes.

use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;

use serde::Serialize;
use tune_kernels::{Fence, KernelBackend, fault};

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

/// Seconds of a forward and a backward pass whose layers are fetched on the way up and again on the way down, `copying`
/// seconds each way, while they are computed with: on each way the slower of both decides.
pub fn pass_seconds(copying: f64, computing: [f64; 2]) -> f64 {
    computing.into_iter().map(|seconds| seconds.max(copying)).sum()
}

/// Brings layers to a device.
pub(super) struct Fetcher<B: KernelBackend> {
    /// To the reading thread, which answers in the same order.
    requests: Sender<Request<B>>,
    answers: Receiver<Result<Brought<B>, Error>>,
    /// The slots and layers that were asked for.
    asked: VecDeque<(usize, usize)>,
    placer: Placer<B>,
    /// Up to so many tokens, layers come without their experts, which come when they are used.
    few: usize,
    /// The tokens of the walk that is under way.
    tokens: usize,
}

/// A layer that is to be read.
struct Request<B: KernelBackend> {
    layer: usize,
    with_experts: bool,
    /// What lay in its slot, and a mark behind the work launched with it.
    old: Option<(Arc<Layer<B>>, Fence)>,
}

/// A layer that was read.
enum Brought<B: KernelBackend> {
    Stored(StoredLayer),
    Placed(Arc<Layer<B>>),
}

/// Moves layers to a device.
#[derive(Clone)]
struct Placer<B: KernelBackend> {
    waiting: Waiting,
    device: B::Device,
    dtype: FloatDtype,
    /// By layer.
    squares: Vec<Squares<B>>,
}

impl<B: KernelBackend> Placer<B> {
    fn new(waiting: Waiting, shelf: &Shelf, device: &B::Device) -> Self {
        Self { waiting, device: device.clone(), dtype: shelf.dtype(), squares: shelf.squares() }
    }

    fn placed(&self, layer: usize, stored: StoredLayer) -> Result<Arc<Layer<B>>, Error> {
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

impl<B: KernelBackend> fmt::Debug for Fetcher<B> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self.placer.waiting {
            Waiting::Files(_) => "Fetcher(Files)",
            Waiting::Memory(_) => "Fetcher(Memory)",
        })
    }
}

impl<B: KernelBackend> Fetcher<B> {
    /// From files.
    ///
    /// # Errors
    /// The system starts no thread.
    pub(super) fn files(shelf: Shelf, device: &B::Device) -> Result<Self, Error> {
        let shelf = Arc::new(shelf);
        let placer = Placer::new(Waiting::Files(Arc::clone(&shelf)), &shelf, device);
        Self::start(placer, move |layer, with_experts| shelf.layer(layer, with_experts))
    }

    /// From host memory.
    ///
    /// # Errors
    /// The system starts no thread.
    pub(super) fn memory(layers: Vec<StoredLayer>, shelf: &Shelf, device: &B::Device) -> Result<Self, Error> {
        let waiting = Waiting::Memory(Arc::new(layers));
        let placer = Placer::new(waiting.clone(), shelf, device);
        Self::start(placer, move |layer, with_experts| waiting.layer(layer, with_experts))
    }

    /// With a thread that reads, which ends with the fetcher.
    fn start(
        placer: Placer<B>,
        mut read: impl FnMut(usize, bool) -> Result<StoredLayer, Error> + Send + 'static,
    ) -> Result<Self, Error> {
        let (requests, asked) = channel::<Request<B>>();
        let (tell, answers) = channel();
        let own = placer.clone();
        let mut bring = move |Request { layer, with_experts, old }: Request<B>| {
            let stored = read(layer, with_experts);
            if let Some((old, fence)) = old {
                fence.wait().map_err(|message| Error::Device { layer, message })?;
                drop(old);
            }
            if !B::PLACES_BESIDE {
                return stored.map(Brought::Stored);
            }
            let placed = own.placed(layer, stored?)?;
            match fault::raised() {
                Some(message) => Err(Error::Device { layer, message }),
                None => Ok(Brought::Placed(placed)),
            }
        };
        let bring_all = move || {
            B::place_for_others();
            for request in asked {
                // Whoever asked may be gone.
                if tell.send(bring(request)).is_err() {
                    break;
                }
            }
        };
        let started = thread::Builder::new().name("layers".into()).spawn(bring_all);
        started.map_err(|source| Error::LayerReader { message: source.to_string() })?;
        Ok(Self { requests, answers, asked: VecDeque::new(), placer, few: 0, tokens: 0 })
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
}

impl<B: KernelBackend> Carrier for Fetcher<B> {
    type Cargo = Arc<Layer<B>>;

    fn begin(&mut self, slot: usize, layer: usize, old: Option<Self::Cargo>) {
        // Its memory serves the new one. Where the thread that launched its work frees it, that is behind this work anyway.
        let old = old.filter(|_| B::PLACES_BESIDE).map(|old| (old, B::fence(&self.placer.device)));
        self.asked.push_back((slot, layer));
        // A thread that is gone is noticed when its answer is missing.
        _ = self.requests.send(Request { layer, with_experts: self.tokens > self.few, old });
    }

    fn next(&mut self) -> (usize, Result<Self::Cargo, Error>) {
        let brought = self.answers.recv().unwrap_or_else(|_| Err(ended()));
        let Some((slot, layer)) = self.asked.pop_front() else { return (usize::MAX, Err(ended())) };
        let placed = brought.and_then(|brought| match brought {
            Brought::Stored(stored) => self.placer.placed(layer, stored),
            Brought::Placed(placed) => Ok(placed),
        });
        (slot, placed)
    }
}

fn ended() -> Error {
    Error::LayerReader { message: "its thread has ended".to_owned() }
}

#[cfg(test)]
mod tests;
