//! Fine-tune an open-weight language model from one recipe, with one binary.
//!
//! # The house
//!
//! Two crates. `tune-kernels` (in `kernels/`) holds every numerical operation and all `unsafe`; this one holds the
//! rest and forbids it. A recipe flows through it like this:
//!
//! ```text
//! recipe.toml ─▶ RecipeFile (spans, problems) ─▶ Recipe ───┐   every problem at once
//!                                                          ▼
//! file ─▶ Record ─▶ Example ─▶ Tokenized ─▶ Packed ─▶ MicroBatch
//!  source    schema   template + rayon   pack    bounded channel │
//!                                                               ▼
//! ModelDir ─▶ tensor ─▶ NF4 ─▶ projection (base + adapter) ─▶ Decoder ─▶ objective
//!                                                               │  (Σ loss, tokens)
//! Observer ◀─ Event ◀─ fit: accumulate ─▶ clip ─▶ AdamW ─▶ schedule ┘
//!                    │  └▶ adapter folder, as PEFT writes it
//!                    └▶ checkpoint ─▶ fit, where it was
//! ```
//!
//! # The rooms
//!
//! Each imports only from rooms above it; `tests/layering.rs` holds them to it.
//!
//! | room | owns |
//! |---|---|
//! | [`units`] | quantities with a unit |
//! | [`document`] | TOML text as values with places, problems with a way out |
//! | [`files`] | writing to disk: whole or absent; safetensors with reproducible bytes |
//! | [`assets`] | a Hugging Face folder, proven complete; the local hub cache |
//! | [`data`] | from files of examples to micro-batches of token ids |
//! | [`quant`] | frozen weights: our own quantization, bitsandbytes checkpoints |
//! | [`adapter`] | LoRA, DoRA, whole modules beside them: targets, numbers, PEFT files |
//! | [`model`] | families, the decoder, loading |
//! | [`objective`] | what is minimised |
//! | [`checkpoint`] | named tensors and counters on disk |
//! | [`train`] | the layer loop, the optimizer, the training loop, the run folder |
//! | [`generate`] | decoding with a key-value cache |
//! | [`export`] | adapters verified, merged into their base, rewritten for other tools; GGUF files |
//! | [`hub`] | fetching a model into the Hugging Face cache: the only room that opens the network |
//! | [`recipe`] | all tables together, overrides, the canonical hash |
//! | [`import`] | configurations of other tools, as recipes |
//! | [`bundled`] | what the binary carries |
//! | [`device`] | the only place that names concrete backends |
//! | [`tensorboard`] | event files for TensorBoard |
//! | [`record`] | what a run folder says of itself: the lock of its inputs, how the run went |
//! | [`report`] | a run folder as one HTML page |
//! | [`run`] | the use-cases behind the commands |
//! | [`cli`] | arguments, printing, exit codes |
//!
//! | adding | touches |
//! |---|---|
//! | a model family | `model/family/x.rs` and a variant; a layer file only if the maths is new |
//! | a file format, a record shape | `data/source/`, `data/schema.rs` |
//! | a recipe key | one declaration in the `spec.rs` of its room |
//! | a quantization | `kernels/src/x/`, `quant/x.rs` and a variant |
//! | a loss | `objective/x.rs` |
//! | a tool to import from | `import/x.rs` and a variant |
//! | a GPU backend | a feature and an arm in `device.rs` |
//!
//! # What never happens
//!
//! - The library prints, exits, or reads the environment. Only `cli` does.
//! - `units`, `document`, `files`, `assets`, `data` and `recipe` name the tensor engine.
//! - Tokenizing runs on the training thread; device work runs on more than one.
//! - A dense copy of a frozen quantized weight outlives the loading of its tensor or its matmul.
//! - A gradient of a frozen weight is computed: the backward of every layer is written by hand, for what is trained.
//! - An objective returns a mean. It returns a sum and a count, so that accumulation cannot be wrong.
//! - A batch holds padding. Documents lie one behind the other; offsets tell them apart.
//! - The logits of a batch exist as a whole during training.
//! - A checkpoint, adapter or recipe is left half-written.
//! - What a device computed after it failed is kept: out of memory, say, on a thread of its driver that nobody waits for.
//! - Where or how often a run was interrupted shows in its adapter; where its checkpoints happen to lie changes it.
//! - A run goes on from something else than it was begun with, unless it was told to, and then the adapter says so.
//! - Two processes write to one run folder.
//! - A file is made that others can write.
//! - A file from a stranger takes more memory than its length accounts for, or ends the program in a panic.
//! - A chat template ends a run that has begun: it may cost the process, but every row that the survey covers is rendered
//!   before the first step.
//! - The same recipe, seed and device give another adapter: the bytes are the same, whatever the number of threads.
//! - Training opens the network: nothing but `hub` does, for `tune download`.
//! - A Hugging Face weight, `[out, in]` on disk, is turned round anywhere but in `model/load.rs`, `adapter/peft` and
//!   `export/mlx.rs`.
#![forbid(unsafe_code)]

pub mod adapter;
pub mod assets;
pub mod bundled;
pub mod checkpoint;
pub mod cli;
pub mod data;
pub mod device;
pub mod document;
pub mod export;
pub mod files;
pub mod generate;
pub mod hub;
pub mod import;
pub mod model;
pub mod objective;
pub mod quant;
pub mod recipe;
pub mod record;
pub mod report;
pub mod run;
pub mod tensorboard;
pub mod train;
pub mod units;
