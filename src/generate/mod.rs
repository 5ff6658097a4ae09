//! Decoding with a key-value cache: greedy, or sampled with a seed.

pub mod spec;

use tune_kernels::KernelBackend;

use crate::adapter::lora::LoraSet;
use crate::model::{self, Decoder};

/// Why no answer came.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The model cannot take the prompt.
    #[error(transparent)]
    Model(#[from] model::Error),
}

/// How tokens are chosen, and when to stop.
#[derive(Clone, Debug)]
pub struct Sampling {
    /// Longest answer.
    pub max_new_tokens: usize,
    /// Divides the logits; 0: always the likeliest token.
    pub temperature: f32,
    /// Nucleus.
    pub top_p: f32,
    /// Of the draws.
    pub seed: u64,
    /// End the answer; not part of it.
    pub stop_tokens: Vec<u32>,
}

/// Placeholder until the room is whole: greedy.
pub fn generate<B: KernelBackend<Frozen = B>>(
    decoder: &Decoder<B>,
    adapters: Option<&LoraSet<B>>,
    prompt: &[u32],
    sampling: &Sampling,
    on_token: &mut dyn FnMut(u32),
) -> Result<Vec<u32>, Error> {
    let layers: Option<Vec<_>> =
        adapters.map(|adapters| (0..decoder.layers().len()).map(|layer| adapters.layer(layer, None)).collect());
    let mut cache = decoder.new_cache();
    let mut answer = Vec::new();
    let mut ids = prompt.to_vec();
    while answer.len() < sampling.max_new_tokens {
        let hidden = decoder.hidden(&ids, layers.as_deref(), Some(&mut cache))?;
        let last = hidden.dims()[0];
        let width = hidden.dims()[1];
        let logits = decoder.logits_of(hidden.slice([last - 1..last, 0..width]));
        let logits: Vec<f32> = logits.cast(burn::tensor::DType::F32).into_data().into_vec().unwrap_or_default();
        let best = logits.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1)).map_or(0, |(id, _)| id as u32);
        if sampling.stop_tokens.contains(&best) {
            break;
        }
        on_token(best);
        answer.push(best);
        ids = vec![best];
    }
    Ok(answer)
}
