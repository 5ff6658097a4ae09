//! Keys and values of the tokens already seen, for decoding one sequence token by token.

use burn::tensor::Tensor;
use tune_kernels::KernelBackend;

/// Keys and values of one sequence, layer by layer.
#[derive(Clone, Debug)]
pub struct KeyValueCache<B: KernelBackend> {
    layers: Vec<LayerCache<B>>,
}

impl<B: KernelBackend> KeyValueCache<B> {
    /// An empty cache for a model of so many layers.
    pub fn new(layers: usize) -> Self {
        Self { layers: vec![LayerCache { entries: None }; layers] }
    }

    /// Tokens seen so far.
    pub fn tokens(&self) -> usize {
        self.layers.first().map_or(0, LayerCache::tokens)
    }

    /// The cache of one layer.
    pub(crate) fn layer(&mut self, layer: usize) -> Option<&mut LayerCache<B>> {
        self.layers.get_mut(layer)
    }
}

/// Rotated keys and values of one layer, each `[tokens, key_value_heads, head_dim]`.
#[derive(Clone, Debug)]
pub struct LayerCache<B: KernelBackend> {
    entries: Option<(Tensor<B, 3>, Tensor<B, 3>)>,
}

impl<B: KernelBackend> LayerCache<B> {
    /// Tokens seen so far.
    pub fn tokens(&self) -> usize {
        self.entries.as_ref().map_or(0, |(keys, _)| keys.dims()[0])
    }

    /// Adds new tokens; returns keys and values of all.
    pub fn append(&mut self, keys: Tensor<B, 3>, values: Tensor<B, 3>) -> (Tensor<B, 3>, Tensor<B, 3>) {
        let entries = match self.entries.take() {
            None => (keys, values),
            Some((old_keys, old_values)) => {
                (Tensor::cat(vec![old_keys, keys], 0), Tensor::cat(vec![old_values, values], 0))
            }
        };
        self.entries.insert(entries).clone()
    }
}
