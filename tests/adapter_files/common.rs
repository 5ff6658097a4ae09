//! What the tests here share: PEFT's golden adapters, the recipes that would train them, and folders made to order.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use burn_flex::Flex;
use burn_tensor::Tensor;
use serde_json::{Value, json};
use tempfile::TempDir;
use tune::adapter::lora::LoraSet;
use tune::adapter::peft::{self, Adapter, CONFIG_FILE, Config, TENSORS_FILE};
use tune::adapter::projection::Module;
use tune::adapter::saved::{self, SavedKind, SavedModule};
use tune::adapter::spec::{Spec, TargetModules};
use tune::adapter::target::{Target, resolve};
use tune::assets::ModelDir;
use tune::files::Existing;
use tune::files::safetensors::{Dtype, Layout, TensorHeader};
use tune::model::family;

/// The projections of `tests/golden/peft/base`.
pub(crate) fn modules() -> Vec<Module> {
    let base = ModelDir::open(&golden("base")).unwrap();
    family::decoder_spec(base.config()).unwrap().modules()
}

pub(crate) fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/peft").join(name)
}

pub(crate) fn names(names: &[&str]) -> TargetModules {
    TargetModules::Names(names.iter().map(|&name| name.to_owned()).collect())
}

pub(crate) fn saved() -> Vec<String> {
    vec!["embed_tokens".into(), "lm_head".into()]
}

/// What `tests/golden/peft/base` has that can be trained in full.
pub(crate) fn saved_modules() -> Vec<SavedModule> {
    let saved = |kind, path: &str| SavedModule { kind, path: path.into(), shape: [64, 32] };
    vec![saved(SavedKind::Embedding, "model.embed_tokens"), saved(SavedKind::Head, "lm_head")]
}

pub(crate) fn spec(rank: usize, alpha: f64, target_modules: TargetModules) -> Spec {
    Spec { rank, alpha, target_modules, ..Spec::default() }
}

/// The recipes that would train PEFT's golden adapters.
pub(crate) fn golden_specs() -> [(&'static str, Spec); 7] {
    [
        ("plain_qv", spec(4, 8.0, names(&["q_proj", "v_proj"]))),
        ("all_linear", spec(4, 16.0, TargetModules::AllLinear)),
        (
            "regex",
            spec(3, 6.0, TargetModules::Pattern(r".*\.layers\.1\.(self_attn|mlp)\.(k|down)_proj".into())),
        ),
        (
            "rslora_patterns",
            Spec {
                use_rslora: true,
                rank_pattern: vec![
                    ("layers.0.mlp.down_proj".into(), 8),
                    (r"layers\.\d+\.self_attn\.o_proj".into(), 2),
                ],
                alpha_pattern: vec![("down_proj".into(), 32.0)],
                ..spec(4, 8.0, names(&["q_proj", "o_proj", "down_proj"]))
            },
        ),
        ("bf16", spec(4, 8.0, names(&["q_proj", "k_proj", "v_proj", "o_proj"]))),
        ("wholes", Spec { modules_to_save: saved(), ..spec(4, 8.0, names(&["q_proj", "v_proj"])) }),
        ("dora", Spec { use_dora: true, ..spec(4, 8.0, TargetModules::AllLinear) }),
    ]
}

pub(crate) fn resolved(spec: &Spec) -> Vec<Target> {
    resolve(spec, &modules()).unwrap()
}

/// Values that differ everywhere, B not zero.
pub(crate) fn filled(targets: &[Target]) -> LoraSet<Flex> {
    let fresh: LoraSet<Flex> = LoraSet::init(targets.to_vec(), 0.0, 5, &Default::default());
    let values = fresh.parameters().iter().enumerate().map(|(number, parameter)| {
        let elements = parameter.shape[0] * parameter.shape[1];
        (0..elements).map(|element| (number as f32 + 0.1) / (element as f32 - 7.3)).collect()
    });
    LoraSet::from_values(targets.to_vec(), 0.0, values.collect(), &Default::default()).unwrap()
}

pub(crate) fn provenance() -> BTreeMap<String, String> {
    BTreeMap::from([
        ("tune.seed".to_owned(), "42".to_owned()),
        ("tune.recipe".to_owned(), "ab\"cd".to_owned()),
    ])
}

/// Writes a folder of ours and returns it.
pub(crate) fn written(spec: &Spec, into: &TempDir, name: &str) -> PathBuf {
    let targets = resolved(spec);
    let config = Config::new(spec, &targets, &modules(), "org/base", Some("main"));
    let folder = into.path().join(name);
    let own = saved::resolve(&spec.modules_to_save, &saved_modules()).unwrap();
    let set = filled(&targets)
        .with_saved_modules(own, |saved| Tensor::full(saved.shape, 0.25, &Default::default()));
    peft::write(&folder, Existing::Refuse, &set, &config, &provenance(), &[], None).unwrap();
    folder
}

/// A copy of a golden folder with its configuration changed.
pub(crate) fn with_config(name: &str, change: impl FnOnce(&mut serde_json::Map<String, Value>)) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    fs::copy(golden(name).join(TENSORS_FILE), folder.path().join(TENSORS_FILE)).unwrap();
    let mut config: Value =
        serde_json::from_slice(&fs::read(golden(name).join(CONFIG_FILE)).unwrap()).unwrap();
    change(config.as_object_mut().unwrap());
    fs::write(folder.path().join(CONFIG_FILE), config.to_string()).unwrap();
    folder
}

/// Name, dtype and shape.
pub(crate) type Described<'a> = (&'a str, Dtype, &'a [usize]);

/// A folder whose file holds the given tensors, of arbitrary values.
pub(crate) fn with_tensors(config: Value, tensors: &[Described<'_>]) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join(CONFIG_FILE), config.to_string()).unwrap();
    let header = |(name, dtype, shape): &Described<'_>| TensorHeader {
        name: (*name).to_owned(),
        dtype: *dtype,
        shape: shape.to_vec(),
    };
    let layout = Layout::new(&BTreeMap::new(), tensors.iter().map(header).collect()).unwrap();
    let mut file = Vec::new();
    let ones = |tensor: &TensorHeader, out: &mut dyn std::io::Write| {
        let bytes = tensor.shape.iter().product::<usize>() * tensor.dtype.bitsize() / 8;
        out.write_all(&vec![0x3c; bytes])
    };
    layout.write(&mut file, ones).unwrap();
    fs::write(folder.path().join(TENSORS_FILE), file).unwrap();
    folder
}

pub(crate) fn plain_config() -> Value {
    json!({"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj"], "layers_to_transform": [0]})
}

pub(crate) fn open_error(folder: &TempDir) -> String {
    Adapter::open(folder.path()).unwrap_err().to_string()
}
