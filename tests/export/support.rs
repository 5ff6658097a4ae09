//! Golden folders, adapters made to order, merging with the defaults, and logits of a folder.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use burn_flex::Flex;
use tune::adapter::lora::LoraSet;
use tune::adapter::peft::{self, Adapter, Config, Numbers};
use tune::adapter::projection::Module;
use tune::adapter::spec::{Spec, TargetModules};
use tune::adapter::target::{Target, resolve, tensors};
use tune::assets::{ModelDir, SafetensorsFile};
use tune::export::merge::{Options, Outcome};
use tune::files::Existing;
use tune::model::{Decoder, DecoderSpec, FloatDtype, family, load};
use tune::run::adapters::{BaseChoice, Merge};
use tune::run::held_out::Source;
use tune::run::{Environment, Error};

/// The adapters that PEFT made for `golden("peft/base")`.
pub(crate) const ADAPTERS: [&str; 7] =
    ["plain_qv", "all_linear", "regex", "rslora_patterns", "bf16", "dora", "wholes"];

/// Those of them that are plain LoRAs.
pub(crate) const PLAIN: [&str; 5] = ["plain_qv", "all_linear", "regex", "rslora_patterns", "bf16"];

pub(crate) fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name)
}

pub(crate) fn environment() -> Environment<'static> {
    Environment { hub_cache: Path::new("no-cache"), stop: &|| false, save: &|| false }
}

pub(crate) fn f32_options() -> Options {
    Options { dtype: Some(FloatDtype::F32), ..Options::default() }
}

/// Merges `adapter` into `base`.
pub(crate) fn merge(adapter: &Path, base: &Path, options: Options, out: &Path) -> Result<Outcome, Error> {
    let choice = BaseChoice { base: Some(base.to_str().unwrap()), revision: None };
    let merge = Merge::open(adapter, choice, options, &Source::Any, &environment())?;
    merge.run(out, &mut |_| {}, tune::recipe::DeviceSpec::Auto, &environment())
}

pub(crate) fn spec_of(folder: &Path) -> DecoderSpec {
    family::decoder_spec(ModelDir::open(folder).unwrap().config()).unwrap()
}

pub(crate) fn decoder(folder: &Path) -> Decoder<Flex> {
    let model = ModelDir::open(folder).unwrap();
    let spec = family::decoder_spec(model.config()).unwrap();
    load::load(model.weights(), &spec, None, FloatDtype::F32, &Default::default(), &mut |_| {}).unwrap()
}

/// Logits of a base with an adapter folder on it.
pub(crate) fn adapted_logits(base: &Path, adapter: &Path, ids: &[u32]) -> Vec<f32> {
    let decoder = decoder(base);
    let adapter = Adapter::open_with_saved_modules(adapter).unwrap();
    let targets = adapter.targets(&decoder.spec().modules()).unwrap();
    let values = adapter.values(&targets).unwrap();
    let set = LoraSet::from_values(targets, 0.0, values, decoder.device()).unwrap();
    let saved_modules = adapter.saved_modules(&decoder.spec().saved_modules()).unwrap();
    let set = adapter.with_own_saved_modules(set, saved_modules, decoder.device()).unwrap();
    let decoder = decoder.adopting(&set);
    let layers: Vec<_> = (0..decoder.layers().len()).map(|layer| set.layer(layer, None)).collect();
    decoder.logits(ids, Some(&layers)).unwrap().into_data().into_vec().unwrap()
}

pub(crate) fn logits(folder: &Path, ids: &[u32]) -> Vec<f32> {
    decoder(folder).logits(ids, None).unwrap().into_data().into_vec().unwrap()
}

/// Ids and logits that PEFT computed.
pub(crate) fn reference(file: &Path, ids: &str, logits: &str) -> (Vec<u32>, Vec<f32>) {
    let file = SafetensorsFile::open(file).unwrap();
    let bytes = file.read(ids).unwrap();
    let ids = bytes.as_chunks().0.iter().map(|id| i64::from_le_bytes(*id) as u32).collect();
    (ids, file.read_floats(logits).unwrap())
}

pub(crate) fn largest_difference(left: &[f32], right: &[f32]) -> f32 {
    assert_eq!(left.len(), right.len());
    left.iter().zip(right).map(|(left, right)| (left - right).abs()).fold(0.0, f32::max)
}

/// An adapter of rank 4 on every projection of a base, with values of a given size, and metadata.
pub(crate) fn write_adapter(folder: &Path, base: &Path, size: f32, metadata: &[(&str, &str)]) -> Vec<Target> {
    let modules: Vec<Module> = spec_of(base).modules();
    let spec = Spec { rank: 4, alpha: 8.0, target_modules: TargetModules::AllLinear, ..Spec::default() };
    let targets = resolve(&spec, &modules).unwrap();
    let parameters = tensors(&targets);
    let values = |index: usize| {
        let [rows, columns] = parameters[index].shape;
        let value = |at: usize| (((at * 37 + index * 11) % 101) as f32 / 50.0 - 1.0) * size;
        Ok((0..rows * columns).map(value).collect())
    };
    let metadata: BTreeMap<String, String> =
        metadata.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
    let config = Config::new(&spec, &targets, &modules, "tune-golden/base", None);
    let numbers = Numbers { parameters: &parameters, values: &values };
    peft::write_folder(folder, Existing::Refuse, &numbers, &config, &metadata, &[], None).unwrap();
    targets
}

/// What lies in a folder, hidden files included.
pub(crate) fn entries(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    names
}
