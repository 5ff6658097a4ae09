//! The `[model]` table of a recipe: its keys, and their values as a [`Spec`].

use crate::document::{Key, KeyTable, Problem, TableReader, Word, Writer, text};

/// The base model of a run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Spec {
    /// A folder, or a hub id looked up in the local Hugging Face cache.
    pub base: String,
    /// Branch, tag or commit of a hub id.
    pub revision: Option<String>,
    /// What matrix products are computed in.
    pub compute_dtype: ComputeDtype,
    /// Keys of config.json that are read as if they were absent (`rope_parameters.twist`).
    pub ignore_config_keys: Vec<String>,
    /// Where frozen layers wait that are not held on the device.
    pub offload: Offload,
    /// Layers that are held on the device although the others are fetched for each use.
    pub resident_layers: usize,
    /// Where the table of token embeddings lies.
    pub embeddings: Embeddings,
}

/// Where the table of token embeddings lies.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Embeddings {
    /// On the device, unless its memory is better used for layers.
    #[default]
    Auto,
    /// On the device.
    Device,
    /// In the checkpoint's files, unless the table is the output head too.
    Host,
}

impl Word for Embeddings {
    const WORDS: &'static [(&'static str, Self)] =
        &[("auto", Self::Auto), ("device", Self::Device), ("host", Self::Host)];
    const ALIASES: &'static [(&'static str, &'static str)] =
        &[("cpu", "host"), ("ram", "host"), ("true", "host"), ("gpu", "device"), ("false", "device")];
}

/// Where frozen layers wait that are not held on the device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Offload {
    /// Held where they fit, else in host memory, else on disk.
    #[default]
    Auto,
    /// All are held.
    None,
    /// In host memory.
    Host,
    /// In a file of packed weights.
    Disk,
}

impl Word for Offload {
    const WORDS: &'static [(&'static str, Self)] =
        &[("auto", Self::Auto), ("none", Self::None), ("host", Self::Host), ("disk", Self::Disk)];
    const ALIASES: &'static [(&'static str, &'static str)] =
        &[("cpu", "host"), ("ram", "host"), ("nvme", "disk"), ("gpu", "none"), ("false", "none")];
}

/// What matrix products are computed in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ComputeDtype {
    /// The checkpoint's dtype where the device multiplies it natively, else f32.
    #[default]
    Auto,
    /// bfloat16 with f32 accumulation.
    Bf16,
    /// float16 with f32 accumulation.
    F16,
    /// float32.
    F32,
}

impl Word for ComputeDtype {
    const WORDS: &'static [(&'static str, Self)] =
        &[("auto", Self::Auto), ("bf16", Self::Bf16), ("f16", Self::F16), ("f32", Self::F32)];
    const ALIASES: &'static [(&'static str, &'static str)] = &[
        ("bfloat16", "bf16"),
        ("torch.bfloat16", "bf16"),
        ("float16", "f16"),
        ("torch.float16", "f16"),
        ("fp16", "f16"),
        ("half", "f16"),
        ("float32", "f32"),
        ("torch.float32", "f32"),
        ("fp32", "f32"),
        ("float", "f32"),
    ];
}

/// The table while it is read: without a base there is no [`Spec`].
#[derive(Default)]
pub(crate) struct Draft {
    base: Option<String>,
    revision: Option<String>,
    compute_dtype: ComputeDtype,
    ignore_config_keys: Vec<String>,
    offload: Offload,
    resident_layers: usize,
    embeddings: Embeddings,
}

type K = Key<Draft>;

pub(crate) static TABLE: KeyTable<Draft> = KeyTable {
    path: "model",
    meaning: "The base model.",
    keys: &[
        K::text("base", |model| &mut model.base)
            .required("\"Qwen/Qwen3-0.6B\"")
            .means("A model folder, or a hub id that is looked up in the local Hugging Face cache.")
            .also(&[
                "base_model",
                "model_name_or_path",
                "model_name",
                "model_id",
                "model_path",
                "pretrained_model",
                "name_or_path",
                "base_model_name_or_path",
                "checkpoint_dir",
            ]),
        K::text("revision", |model| &mut model.revision)
            .optional("\"main\" for a hub id")
            .means("Branch, tag or commit of a hub id.")
            .also(&["model_revision", "revision_of_model", "base_model_revision"]),
        K::parsed("compute_dtype", |model| &mut model.compute_dtype)
            .means("What matrix products are computed in; auto: the checkpoint's dtype where the device has it, else f32.")
            .also(&[
                "dtype",
                "torch_dtype",
                "compute_type",
                "precision",
                "mixed_precision",
                "bf16",
                "fp16",
                "tf32",
                "pure_bf16",
                "bnb_4bit_compute_dtype",
            ]),
        K::list("ignore_config_keys", text, |model| &mut model.ignore_config_keys)
            .means("Keys of the base's config.json to read as if they were absent: [\"name\", \"rope_parameters.name\"].")
            .added(),
        // The same layers are computed with, wherever they come from.
        K::parsed("offload", |model| &mut model.offload)
            .bookkeeping()
            .means("Where frozen layers wait: none: all on the device; host or disk: fetched for each use; auto: as fits.")
            .also(&["offload_params", "cpu_offload", "fsdp_offload_params", "offload_to_cpu", "layer_offloading"]),
        K::count("resident_layers", 0..=1_000_000, |model| &mut model.resident_layers)
            .bookkeeping()
            .means("With offload \"host\" or \"disk\": layers that are held on the device all the same."),
        // The same rows, wherever they are gathered.
        K::parsed("embeddings", |model| &mut model.embeddings)
            .bookkeeping()
            .means("Where the token embeddings lie: device; host: rows are read as tokens need them; auto: as fits.")
            .also(&["offload_embedding", "offload_embeddings"]),
    ],
    checks: &[report_idle_residents],
    ..KeyTable::NEW
};

fn report_idle_residents(table: &mut TableReader<'_, '_>, draft: &Draft) {
    let is_idle = draft.resident_layers > 0 && matches!(draft.offload, Offload::Auto | Offload::None);
    if let Some(place) = table.place_of("resident_layers").filter(|_| is_idle) {
        let problem = Problem::new(
            "recipe::contradiction",
            place,
            "`resident_layers` counts only where layers are fetched",
        )
        .label("has no effect")
        .help("set `offload` to \"host\" or \"disk\", or remove this key");
        table.report(problem);
    }
}

impl Spec {
    /// Reads the `[model]` table; `None` if it names no base.
    pub fn read(table: &mut TableReader<'_, '_>) -> Option<Self> {
        let Draft { base, revision, compute_dtype, ignore_config_keys, offload, resident_layers, embeddings } =
            TABLE.read(table);
        let base = base?;
        Some(Self { base, revision, compute_dtype, ignore_config_keys, offload, resident_layers, embeddings })
    }

    /// Writes the table.
    pub fn write(&self, writer: &mut Writer) {
        let Self { base, revision, compute_dtype, ignore_config_keys, offload, resident_layers, embeddings } =
            self.clone();
        let base = Some(base);
        let mut draft =
            Draft { base, revision, compute_dtype, ignore_config_keys, offload, resident_layers, embeddings };
        TABLE.write(&mut draft, writer);
    }
}
