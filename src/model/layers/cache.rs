//! What layers keep of the tokens already seen, for decoding sequences token by token: keys and values, or a recurrent
//! state.
//!
//! Capacity is doubled when it is used up, and new tokens are written in place: the cost of a step does not depend on the
//! tokens before it.

use std::ops::Range;

use burn_tensor::Tensor;
use tune_kernels::KernelBackend;
use tune_kernels::attention::{DocumentOffsets, write_rows};

/// The first capacity, in tokens.
const ROOM: usize = 64;

/// Capacity in tokens of a cache that holds `tokens`.
pub fn cache_room(tokens: usize) -> usize {
    tokens.next_power_of_two().max(ROOM)
}

/// Keys and values of one sequence, layer by layer.
#[derive(Clone, Debug)]
pub struct KeyValueCache<B: KernelBackend> {
    layers: Vec<LayerCache<B>>,
}

impl<B: KernelBackend> KeyValueCache<B> {
    /// An empty cache for a model of so many layers.
    pub fn new(layers: usize) -> Self {
        Self { layers: vec![LayerCache { room: None, recurrent: None, tokens: 0 }; layers] }
    }

    /// Tokens seen so far.
    pub fn tokens(&self) -> usize {
        self.layers.first().map_or(0, LayerCache::tokens)
    }

    /// Forgets all but the first `tokens`, and returns how many are left: none where a recurrent state, which cannot go
    /// back, has seen more.
    pub fn truncate(&mut self, tokens: usize) -> usize {
        let kept = match tokens < self.tokens() && self.layers.iter().any(|layer| layer.recurrent.is_some()) {
            true => 0,
            false => tokens.min(self.tokens()),
        };
        for layer in &mut self.layers {
            layer.tokens = kept;
            if kept == 0 {
                layer.recurrent = None;
            }
        }
        kept
    }

    /// The cache of one layer.
    pub(crate) fn layer(&mut self, layer: usize) -> Option<&mut LayerCache<B>> {
        self.layers.get_mut(layer)
    }
}

/// What one layer keeps.
#[derive(Clone, Debug)]
pub struct LayerCache<B: KernelBackend> {
    /// Rotated keys and values, each `[room, key_value_heads, head_dim]`, the first `tokens` rows filled.
    room: Option<(Tensor<B, 3>, Tensor<B, 3>)>,
    recurrent: Option<Recurrent<B>>,
    tokens: usize,
}

/// What a recurrent layer keeps, whatever the number of tokens.
#[derive(Clone, Debug)]
pub struct Recurrent<B: KernelBackend> {
    /// The last inputs of its convolution, `[size − 1, channels]`.
    pub last: Tensor<B, 2>,
    /// The state of each head, f32 `[values, key_dim, value_dim]`; `None` for a convolution alone.
    pub state: Option<Tensor<B, 3>>,
}

impl<B: KernelBackend> LayerCache<B> {
    /// Tokens seen so far.
    pub fn tokens(&self) -> usize {
        self.tokens
    }

    /// The recurrent state, if any token was seen; [`Self::put_recurrent`] puts the next one in its place.
    pub fn take_recurrent(&mut self) -> Option<Recurrent<B>> {
        self.recurrent.take()
    }

    /// The state behind `new` more tokens.
    pub fn put_recurrent(&mut self, recurrent: Recurrent<B>, new: usize) {
        self.recurrent = Some(recurrent);
        self.tokens += new;
    }

    /// Adds new tokens; returns keys and values of all.
    pub fn append(&mut self, keys: Tensor<B, 3>, values: Tensor<B, 3>) -> (Tensor<B, 3>, Tensor<B, 3>) {
        let [new, heads, head_dim] = keys.dims();
        let (start, end) = (self.tokens, self.tokens + new);
        let room = match self.room.take() {
            Some(room) if room.0.dims()[0] >= end => room,
            room => {
                let rows = cache_room(end);
                let larger = |like: &Tensor<B, 3>, filled: Option<Tensor<B, 3>>| {
                    let empty = Tensor::zeros([rows, heads, head_dim], (&like.device(), like.dtype()));
                    match filled {
                        Some(filled) if start > 0 => {
                            empty.slice_assign([0..start, 0..heads, 0..head_dim], filled.narrow(0, 0, start))
                        }
                        _ => empty,
                    }
                };
                let (old_keys, old_values) = room.unzip();
                (larger(&keys, old_keys), larger(&values, old_values))
            }
        };
        // The cache is the only holder, so the write is in place.
        let room = (write_rows(room.0, start, keys), write_rows(room.1, start, values));
        self.tokens = end;
        let all = (room.0.clone().narrow(0, 0, end), room.1.clone().narrow(0, 0, end));
        self.room = Some(room);
        all
    }
}

/// The caches of one layer, one for each sequence that a pass continues, in the order of its documents.
pub struct LayerCaches<'a, B: KernelBackend>(pub(crate) Vec<&'a mut LayerCache<B>>);

impl<B: KernelBackend> LayerCaches<'_, B> {
    /// Adds the new tokens of every sequence to its cache; returns keys and values of all, by sequence.
    pub(super) fn append(
        &mut self,
        documents: &DocumentOffsets,
        keys: &Tensor<B, 3>,
        values: &Tensor<B, 3>,
    ) -> Vec<[Tensor<B, 3>; 2]> {
        let [tokens, ..] = keys.dims();
        let own = |all: &Tensor<B, 3>, rows: &Range<usize>| match rows.len() == tokens {
            true => all.clone(),
            false => all.clone().narrow(0, rows.start, rows.len()),
        };
        let appended = documents.documents().zip(&mut self.0).map(|((rows, _), cache)| {
            let (keys, values) = cache.append(own(keys, &rows), own(values, &rows));
            [keys, values]
        });
        appended.collect()
    }

    /// The rows of a pass, `[tokens, width]`, that `next` computes for the rows of each sequence.
    pub(super) fn each(
        &mut self,
        documents: &DocumentOffsets,
        mut next: impl FnMut(&mut LayerCache<B>, Range<usize>) -> Tensor<B, 2>,
    ) -> Tensor<B, 2> {
        let rows = documents.documents().zip(&mut self.0);
        let mut rows: Vec<_> = rows.map(|((rows, _), cache)| next(cache, rows)).collect();
        match rows.len() {
            1 => rows.remove(0),
            _ => Tensor::cat(rows, 0),
        }
    }
}
