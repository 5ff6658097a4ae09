//! Fine-tune an open-weight language model from one recipe, with one binary.
//!
//! # The house
//!
//! Three crates. `tune-kernels` (in `kernels/`) holds every numerical operation, and `tune-ranks` (in `kernels/ranks/`) the
//! exchange between processes, both with all `unsafe`; this one holds the rest and forbids it. A recipe flows through it
//! like this:
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
//! Each imports only from rooms above it; `tests/layering.rs` checks it.
//!
//! | room | owns |
//! |---|---|
//! | [`units`] | quantities with a unit |
//! | [`document`] | TOML text as values with places; problems with remedies |
//! | [`files`] | atomic writing to disk; safetensors with reproducible bytes |
//! | [`assets`] | Hugging Face model folders, checked for completeness; the local hub cache |
//! | [`data`] | from files of examples to micro-batches of token ids |
//! | [`quant`] | frozen weights: our own quantization, bitsandbytes checkpoints |
//! | [`adapter`] | LoRA, DoRA and modules to save: targets, values, PEFT files |
//! | [`model`] | families, the decoder, loading |
//! | [`checkpoint`] | named tensors and counters on disk |
//! | [`objective`] | what is minimised: supervised fine-tuning, preferences between answers, feedback on them |
//! | [`train`] | the layer loop, the optimizer, the training loop, the run folder |
//! | [`generate`] | decoding with a key-value cache |
//! | [`export`] | adapters verified, merged into their base, converted for other tools; GGUF files |
//! | [`hub`] | downloading a model into the Hugging Face cache; the only room that opens the network itself |
//! | [`recipe`] | all tables together, overrides, the canonical hash |
//! | [`import`] | configurations of other tools, converted to recipes |
//! | [`bundled`] | recipes, model and data embedded in the binary |
//! | [`device`] | devices; the only room that names concrete backends |
//! | [`tensorboard`] | event files for TensorBoard |
//! | [`record`] | the metadata of a run folder: the lock of its inputs, the record of the run |
//! | [`report`] | a run folder as one HTML page |
//! | [`run`] | the use cases behind the commands |
//! | [`cli`] | arguments, printing, exit codes |
//!
//! | adding | touches |
//! |---|---|
//! | a model family | `model/family/x.rs` and its line in `FAMILIES`; a file in `model/parts` and `model/layers` only if the maths is new |
//! | a file format, a record shape | `data/source/`, `data/schema.rs` |
//! | a recipe key | one declaration in the `spec.rs` of its room |
//! | a quantization | `kernels/src/x/`, `quant/x.rs` and a variant |
//! | a loss | `objective/x.rs` and a variant; its table in `objective/spec.rs` |
//! | a tool to import from | `import/x.rs` and a variant |
//! | a GPU backend | a feature and an arm in `device.rs` |
//!
//! # Invariants
//!
//! - Only `cli` prints, exits and reads the environment.
//! - `units`, `document`, `files`, `assets`, `data` and `recipe` are independent of the tensor engine.
//! - Tokenizing runs beside the training thread; device work is launched by one thread, and what layers that are fetched bring
//!   to a GPU is copied by another.
//! - A dense copy of a frozen quantized weight lives only while its tensor is loaded or multiplied.
//! - Computation walks the layers and holds one at a time: wherever they lie (device, host memory, disk), the adapter is the
//!   same.
//! - Only trained weights have gradients: the backward pass of every layer is written by hand.
//! - An objective returns a sum and a count, so that accumulation cannot be wrong.
//! - A batch has no padding: documents are concatenated, and offsets separate them.
//! - Training computes logits in slices of a batch.
//! - A checkpoint, adapter or recipe on disk is complete or absent.
//! - Results computed after a device error are discarded, even if the error (say, out of memory) was raised on a driver
//!   thread.
//! - The same recipe, seed and device give the same adapter, byte for byte: with any number of threads, wherever and
//!   however often the run was interrupted, and wherever its checkpoints are.
//! - A resumed run uses the inputs that it was started with; changes need the user's consent, and the adapter records
//!   them.
//! - One process at a time writes to a run folder.
//! - Created files have the permissions that the umask leaves, as the user set it.
//! - A file may cost memory in proportion to its length and never a panic. Code that comes with a model (a chat template)
//!   may cost the process, never a finished run: every row that the survey covers is rendered before the first step.
//! - Only `hub` opens the network, for `tune download`, and the MPI that `--ranks` opens, between the ranks of one run.
//! - The adapter is the same, byte for byte, for every number of ranks that `train.lanes` can be shared by.
//! - A Hugging Face weight, `[out, in]` on disk, is transposed only in `model/load.rs`, `adapter/peft` and
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
