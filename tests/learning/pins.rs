//! The tensors of finished adapters, as hashes: what a change of structure must not change.
//!
//! Computed in f32 on [`InstructionSet::Portable`], whose arithmetic is the same on every machine. Names, shapes and
//! data are hashed, the metadata is not: it names the release. A change of portable arithmetic that is meant pins them
//! anew, in a commit that says so. The hashes of recipes are pinned apart, for run folders are found by them.

use std::fmt::Write;
use std::path::Path;

use serde_json::json;
use sha2::{Digest, Sha256};
use tune::recipe::RecipeFile;
use tune_kernels::isa::InstructionSet;

use crate::common::{golden, run};
use crate::tensors::read_tensors;

/// One run: its name, its base, what its recipe says beside the rest, and the hash of its adapter's tensors.
struct Pin {
    name: &'static str,
    base: &'static str,
    quantized: bool,
    adapter: &'static str,
    data: &'static str,
    sha256: &'static str,
}

const PLAIN: Pin = Pin {
    name: "nf4",
    base: "trajectory/base",
    quantized: true,
    adapter: "",
    data: "packing = false",
    sha256: "1cefff1b6de72fefcc8b8238ab2456a74e356fb7b7247aca07a91a0015e9861a",
};

const PINS: [Pin; 10] = [
    PLAIN,
    Pin {
        name: "dense",
        quantized: false,
        sha256: "2fc7d2ac9593ebcd4f49e6c474abb0835a3b6868d2702d853b02571f9b6a9916",
        ..PLAIN
    },
    Pin {
        name: "dora",
        adapter: "use_dora = true, dropout = 0.1",
        sha256: "c06e35dc0a2027d6731ffd1243c1c8541fc45b573420296d6c6e0eb90ef2d3ff",
        ..PLAIN
    },
    Pin {
        name: "loraplus",
        adapter: "learning_rate_ratio = 16",
        sha256: "52750c8453536e014d0d35c1ae7a4de3ad334699ed4bec58de023b34f66b7768",
        ..PLAIN
    },
    Pin {
        name: "modules_to_save",
        adapter: "modules_to_save = [\"lm_head\", \"embed_tokens\"], use_rslora = true",
        sha256: "067b89403e8fd49f2a0df081c4e667f47b6714384010566f0189786a1b0d5a3d",
        ..PLAIN
    },
    Pin {
        name: "dropout",
        adapter: "dropout = 0.25",
        sha256: "404e2dcb0e5f792dabf649935e5084e4cbe244f67a3712c0e86ef3c627b5f63e",
        ..PLAIN
    },
    Pin {
        name: "packing",
        adapter: "dropout = 0.1",
        data: "packing = true",
        sha256: "c2feac9c4ef4c94e3dd2f96d7710a3df69ebeeb03f6335b0cf5c828097d7294d",
        ..PLAIN
    },
    Pin {
        name: "some_targets",
        adapter: "target_modules = [\"q_proj\", \"v_proj\", \"down_proj\"], dropout = 0.1",
        sha256: "9b45e24175f18551bbc6125db911888e80bca42ef4e9faef7ec31fed22fb1dff",
        ..PLAIN
    },
    Pin {
        name: "qwen2",
        base: "families/qwen2_sliding",
        quantized: false,
        sha256: "0c22456e588251248abaf1100a7b7ac980895fab520d35f8a9759b36d3631feb",
        ..PLAIN
    },
    Pin {
        name: "qwen3",
        base: "families/qwen3",
        quantized: false,
        adapter: "use_dora = true",
        sha256: "7613b7571100fdb5297bdd44f866a406ee91e5312a640ac15c07f087cdf1ba3b",
        ..PLAIN
    },
];

/// A recipe of six steps of two micro-batches of two sequences.
fn recipe(pin: &Pin, output_dir: &Path) -> String {
    let quantization = match pin.quantized {
        true => "quantization.nf4 = { block_size = 64, double_quant = true }",
        false => "",
    };
    format!(
        r#"
        version = 1
        output_dir = {output_dir:?}
        model = {{ base = {base:?}, compute_dtype = "f32" }}
        {quantization}
        adapter.lora = {{ rank = 8, alpha = 16, {adapter} }}
        data = {{ max_seq_len = 128, {data} }}
        dataset = [{{ path = {rows:?}, format = "tokens" }}]
        train = {{ max_steps = 6, micro_batch_size = 2, gradient_accumulation_steps = 2, learning_rate = 2e-3 }}
        "#,
        base = golden(pin.base),
        adapter = pin.adapter,
        data = pin.data,
        rows = output_dir.with_extension("jsonl"),
    )
}

/// Rows of token ids that every golden base has.
fn rows() -> String {
    (0..40_u32).fold(String::new(), |mut text, row| {
        let ids: Vec<u32> =
            (0..12 + row * 7 % 50).map(|at| 3 + (row * 31 + at * 17 + at * at % 13) % 60).collect();
        let _infallible = writeln!(text, "{}", json!({ "input_ids": ids }));
        text
    })
}

/// Of names, shapes and data, in the order of the names.
fn tensors_sha256(path: &Path) -> String {
    let mut tensors = read_tensors(path);
    tensors.sort_by(|a, b| a.name.cmp(&b.name));
    let mut digest = Sha256::new();
    for tensor in tensors {
        digest.update(format!("{} {} {:?}\n", tensor.name, tensor.dtype, tensor.shape));
        digest.update(&tensor.data);
    }
    hex(&digest.finalize())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _infallible = write!(text, "{byte:02x}");
        text
    })
}

#[test]
fn adapters_have_the_tensors_that_they_had() {
    let folder = tempfile::tempdir().unwrap();
    let mut differ = String::new();
    for pin in &PINS {
        let output_dir = folder.path().join(pin.name);
        std::fs::write(output_dir.with_extension("jsonl"), rows()).unwrap();
        InstructionSet::Portable.run(|| run(&recipe(pin, &output_dir))).unwrap();
        let found = tensors_sha256(&output_dir.join("adapter/adapter_model.safetensors"));
        if found != pin.sha256 {
            let _infallible = writeln!(differ, "{}: {found}", pin.name);
        }
    }
    assert!(differ.is_empty(), "other tensors than pinned:\n{differ}");
}

/// A recipe's text without the paths of a machine, and its hash.
const RECIPES: [(&str, &str); 4] = [
    ("adapter.lora = {}", "8b1d454b0696cbe42f78ce3fa6eaa25228f47534e66fb996da6890a80a7d218b"),
    (
        "quantization.nf4 = {}\nadapter.lora = { rank = 8, use_dora = true, dropout = 0.05, learning_rate_ratio = 16 }",
        "d7148e482c5a4bb8b81e6cc2f8cc69db96a6587b0855162cfbf4772cd6523fbe",
    ),
    (
        "seed = 7\ndata = { packing = false, val_split = 0.1, on_overflow = \"drop\", train_on = \"all\" }\n\
         adapter.lora = { target_modules = [\"q_proj\"], rank_pattern = { \"layers.1\" = 4 }, init_from = \"a\" }",
        "405cb735c83144b0b920f040e2abf97a1167e89d14ace76cb63e8fd402779157",
    ),
    (
        "device = \"cpu\"\nquantization.nf4 = { block_size = 128, double_quant = false }\n\
         adapter.lora = { modules_to_save = [\"lm_head\"] }\nsample = { prompts = [\"Hello\"] }\n\
         data = { val_split = 0.25 }\ngate = { max_eval_loss = 1.0 }",
        "c600863069c3572f9eb0bf9b3b6bff145797a7e8237532284f0490f74225a8e6",
    ),
];

#[test]
fn recipes_have_the_hashes_that_they_had() {
    let mut differ = String::new();
    for (text, pinned) in RECIPES {
        let whole = format!(
            "version = 1\noutput_dir = \"run\"\nmodel.base = \"org/model\"\n{text}\n\
             dataset = [{{ path = \"rows.jsonl\", format = \"messages\" }}]\n\
             train = {{ epochs = 2, learning_rate = 1e-4, on_divergence = \"skip\" }}"
        );
        let recipe = RecipeFile::parse("pinned.toml", whole.as_bytes(), &[]).finish();
        let found = recipe.unwrap_or_else(|problems| panic!("{problems:?}")).sha256();
        if found != pinned {
            let _infallible = writeln!(differ, "{text}: {found}");
        }
    }
    assert!(differ.is_empty(), "other hashes than pinned:\n{differ}");
}
