//! What llama.cpp's architecture of a family computes and takes: what a GGUF file can say, and what it cannot.

/// A family in llama.cpp.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct GgufSpec {
    /// `general.architecture`.
    pub architecture: &'static str,
    /// Which rows of q and k it rotates together.
    pub pairs: RotaryPairs,
    /// Which layers have sliding windows, in models that have any.
    pub windows: Windows,
    /// Which layers rotate nothing.
    pub unrotated: Unrotated,
    /// Which projections have biases.
    pub biases: Biases,
    /// Factors on embeddings, scores, blocks and logits.
    pub scales: Scales,
    /// What is bounded smoothly.
    pub soft_caps: SoftCaps,
    /// Whether it divides rotary frequencies by a tensor of numbers.
    pub takes_frequency_divisors: bool,
    /// Whether layers with a window have a rotary base of their own.
    pub takes_base_of_windows: bool,
    /// Whether YaRN's temperature is divided by one of its own, as in DeepSeek's formula.
    pub divides_temperature: bool,
    /// The epsilon of norms behind a block, where it is none of the model's keys.
    pub post_epsilon: Option<f64>,
    /// Whether all heads together are as wide as hidden states.
    pub heads_fill_hidden: bool,
    /// Whether several query heads can share keys and values.
    pub shares_keys: bool,
    /// Whether gate and up are tensors of their own, whatever the checkpoint stacks.
    pub separates_gate_and_up: bool,
    /// Whether the weights of a token's experts add up to 1; `None`: it computes no experts.
    pub normalises_experts: Option<bool>,
    /// Keys that say what the architecture could be otherwise.
    pub fixed: &'static [(&'static str, Fixed)],
    /// Whether its vocabulary has merges beside bytes, where others have scores.
    pub merges_beside_bytes: bool,
}

/// The value of a key that a family fixes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fixed {
    /// Text.
    Text(&'static str),
    /// Yes or no.
    Flag(bool),
}

/// Layers of an architecture in llama.cpp that have a sliding window, where a model has one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Windows {
    /// It computes none.
    None,
    /// None, though a key says how long those of all layers are.
    Told,
    /// Those that a key lists.
    Listed {
        /// Whether the keys have to be there, windows or none.
        always: bool,
    },
}

/// Layers of an architecture in llama.cpp that rotate neither queries nor keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unrotated {
    /// None of them.
    None,
    /// Each of so many.
    Every(usize),
    /// Those without a window, in models with windows.
    WithoutWindow,
    /// All or none, as a key says.
    AllOrNone,
}

/// Projections of an architecture in llama.cpp that have biases.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Biases {
    /// None.
    None,
    /// Those to queries, keys and values, or none.
    Inner,
    /// Any.
    Any,
    /// All.
    All,
}

/// Factors of an architecture in llama.cpp; where none is named, they are those of Llama.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scales {
    /// Scores over √width of a head.
    Usual,
    /// As keys say.
    Keys,
    /// A key for the factor on logits.
    LogitKey,
    /// Embeddings times √hidden; in models of `wide` layers scores over √(hidden / heads).
    Gemma {
        /// Number of layers.
        wide: usize,
    },
    /// Embeddings times √hidden; scores as they are.
    Gemma4,
    /// The factor on scores in weights of a norm of queries, beside one of keys; a key for the factor on logits.
    QueryNorm,
}

/// Smooth bounds of an architecture in llama.cpp.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SoftCaps {
    /// None.
    None,
    /// On logits, or none.
    Logits,
    /// On scores and logits.
    ScoresAndLogits,
}

/// Rows of a head that are rotated together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RotaryPairs {
    /// i and i + dim / 2, as in transformers.
    Halves,
    /// 2i and 2i + 1.
    Neighbours,
}

impl GgufSpec {
    /// An architecture that computes what Qwen2 computes.
    pub const fn of(architecture: &'static str, pairs: RotaryPairs) -> Self {
        Self {
            architecture,
            pairs,
            windows: Windows::None,
            unrotated: Unrotated::None,
            biases: Biases::Inner,
            scales: Scales::Usual,
            soft_caps: SoftCaps::None,
            takes_frequency_divisors: false,
            takes_base_of_windows: false,
            divides_temperature: false,
            post_epsilon: None,
            heads_fill_hidden: false,
            shares_keys: true,
            separates_gate_and_up: false,
            normalises_experts: None,
            fixed: &[],
            merges_beside_bytes: false,
        }
    }

    /// An architecture whose heads together are as wide as hidden states.
    pub const fn filled(architecture: &'static str) -> Self {
        Self { heads_fill_hidden: true, ..Self::of(architecture, RotaryPairs::Halves) }
    }

    /// The same with experts.
    #[must_use]
    pub const fn with_experts(self, normalised: bool) -> Self {
        Self { normalises_experts: Some(normalised), ..self }
    }

    /// Llama, and the families that llama.cpp computes as Llama.
    pub const LLAMA: Self = Self {
        takes_frequency_divisors: true,
        biases: Biases::Any,
        ..Self::of("llama", RotaryPairs::Neighbours)
    };
}
