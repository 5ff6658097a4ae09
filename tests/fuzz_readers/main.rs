//! Every reader of files that strangers make, fed with damaged ones: never a panic, and never more memory than the
//! file justifies.
//!
//! Damage is seeded, so a failure names what repeats it. `TUNE_FUZZ_ROUNDS` sets the damaged files per reader (100 by
//! default), for longer hunts. One test alone, since memory is measured for the whole process.

#![expect(
    clippy::panic,
    clippy::unwrap_used,
    reason = "a helper outside the test functions may fail the test"
)]

#[path = "../data_sources/files.rs"]
#[expect(dead_code, reason = "not every helper of those tests is used here")]
mod files;
mod mutation;

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::Instant;

use mutation::{Chance, damaged, extremes};
use peak_alloc::PeakAlloc;
use tune::adapter::peft;
use tune::assets::{ModelDir, SafetensorsFile, WeightFiles};
use tune::data::example::Context;
use tune::data::source::Dataset;
use tune::data::spec::{DatasetSpec, Format};
use tune::data::template::ChatTemplate;
use tune::data::tokenize::Tokenizer;
use tune::model::family;
use tune::recipe::RecipeFile;

#[global_allocator]
static MEMORY: PeakAlloc = PeakAlloc;

/// Memory that reading a file may take: so many times its length, and what readers take for any file at all
/// (buffers of decompressors, of which that of an LZ4 frame holds several blocks of 8 MiB; tables of a tokenizer; stacks of
/// JSON).
const PER_BYTE: usize = 64;
const ANY_FILE: usize = 48 << 20;

/// One reader, and a folder of good files for it, some of which are damaged in turn.
struct Reader {
    name: String,
    files: Vec<(String, Vec<u8>)>,
    damage: Vec<usize>,
    read: fn(&Path),
}

fn golden(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// The files of a folder, and the numbers of those to damage.
fn folder(path: &str, damage: &[&str]) -> (Vec<(String, Vec<u8>)>, Vec<usize>) {
    let mut files = Vec::new();
    for entry in fs::read_dir(golden(path)).unwrap() {
        let path = entry.unwrap().path();
        if path.is_file() {
            files.push((path.file_name().unwrap().to_str().unwrap().to_owned(), fs::read(&path).unwrap()));
        }
    }
    files.sort();
    let number =
        |name: &&str| files.iter().position(|(file, _)| file == name).unwrap_or_else(|| panic!("no {name}"));
    let damage = damage.iter().map(number).collect();
    (files, damage)
}

fn reader(name: &str, path: &str, damage: &[&str], read: fn(&Path)) -> Reader {
    let (files, damage) = folder(path, damage);
    Reader { name: name.to_owned(), files, damage, read }
}

fn read_model(folder: &Path) {
    let Ok(model) = ModelDir::open(folder) else { return };
    if let Ok(spec) = family::decoder_spec(model.config()) {
        let _ = spec.parameters();
        let _ = tune::model::tensors::check(&spec, model.weights(), None);
    }
    let _ = model.chat_template();
    let names: Vec<String> = model.weights().names().map(str::to_owned).collect();
    for name in names {
        let _ = model.weights().read(&name);
    }
}

fn read_shards(folder: &Path) {
    if let Ok(weights) = WeightFiles::open(folder) {
        for path in weights.paths() {
            assert_eq!(path.parent(), Some(folder), "{} lies outside", path.display());
        }
    }
    read_model(folder);
}

fn read_tokenizer(folder: &Path) {
    let Ok(tokenizer) = Tokenizer::open(folder) else { return };
    if let Ok(encoding) = tokenizer.encode("The baker sails at 7. <|im_end|>\u{1f980}") {
        let _ = tokenizer.decode(&encoding.ids);
    }
    let _ = tokenizer.decode(&[0, 1, u32::MAX]);
    let template = tokenizer.config().get("chat_template").and_then(|template| template.as_str());
    if let Some(template) = template {
        read_template_text(template);
    }
}

fn read_template_text(template: &str) {
    if let Ok(template) = ChatTemplate::new(template.to_owned(), "test", [], []) {
        let message = serde_json::json!({"role": "user", "content": "Hello."});
        let _ = template.render_json(&[message], &Context::default(), true);
    }
}

fn read_template(folder: &Path) {
    read_template_text(&String::from_utf8_lossy(&fs::read(folder.join("chatml.jinja")).unwrap()));
}

fn read_adapter(folder: &Path) {
    let Ok(adapter) = peft::Adapter::open(folder) else { return };
    let base = ModelDir::open(&golden("tests/golden/peft/base")).unwrap();
    let modules = family::decoder_spec(base.config()).unwrap().modules();
    if let Ok(targets) = adapter.targets(&modules) {
        let _ = adapter.values(&targets);
    }
}

fn read_dataset(folder: &Path) {
    let path = fs::read_dir(folder).unwrap().next().unwrap().unwrap().path().to_str().unwrap().to_owned();
    let spec = DatasetSpec::new(path, Format::PromptCompletion);
    let Ok(dataset) = Dataset::open(&spec) else { return };
    let rows = dataset.rows();
    for row in (0..rows.min(20)).chain(rows.saturating_sub(3)..rows) {
        let _ = dataset.example(row);
        let _ = dataset.place(row).to_string();
    }
}

fn read_checkpoint(folder: &Path) {
    let _ = tune::checkpoint::read(folder);
}

fn read_recipe(folder: &Path) {
    let bytes = fs::read(folder.join("recipe.toml")).unwrap();
    if let Err(problems) = RecipeFile::parse("recipe.toml", &bytes, &[]).finish() {
        for problem in problems.iter() {
            let _ = (problem.to_string(), problem.place().column(), problem.place().end());
        }
    }
}

fn read_run(folder: &Path) {
    let _ = tune::record::Lock::read(folder);
    let _ = tune::record::Record::read(folder);
    if let Ok(page) = tune::report::page(folder) {
        assert!(page.ends_with("</html>\n"));
        assert!(!page.contains("<script"), "markup from a file");
    }
}

fn read_safetensors(folder: &Path) {
    let path = fs::read_dir(folder).unwrap().next().unwrap().unwrap().path();
    let Ok(file) = SafetensorsFile::open(&path) else { return };
    let names: Vec<String> = file.names().map(str::to_owned).collect();
    for name in names {
        let _ = file.read(&name);
    }
}

fn readers() -> Vec<Reader> {
    let base = "data/quickstart/base";
    let mut all = vec![
        reader("config.json", "tests/golden/families/llama3", &["config.json"], read_model),
        reader("model.safetensors", "tests/golden/families/bnb_nf4", &["model.safetensors"], read_model),
        reader(
            "index.json",
            "tests/golden/families/llama_sharded",
            &["model.safetensors.index.json"],
            read_shards,
        ),
        reader("tokenizer.json", base, &["tokenizer.json"], read_tokenizer),
        reader("tokenizer_config.json", base, &["tokenizer_config.json"], read_tokenizer),
        reader("chat template", "tests/golden/templates", &["chatml.jinja"], read_template),
        reader(
            "adapter",
            "tests/golden/peft/plain_qv",
            &["adapter_config.json", "adapter_model.safetensors"],
            read_adapter,
        ),
    ];
    let mut alone = |name: &str, file: &str, bytes: Vec<u8>, read| {
        all.push(Reader {
            name: name.to_owned(),
            files: vec![(file.to_owned(), bytes)],
            damage: vec![0],
            read,
        });
    };
    alone("recipe.toml", "recipe.toml", fs::read(golden("recipes/quickstart.toml")).unwrap(), read_recipe);
    alone("safetensors", "a.safetensors", small_safetensors(), read_safetensors);
    for (name, bytes) in files::every_kind(5) {
        alone(&format!("dataset {name}"), name, bytes, read_dataset);
    }
    let (checkpoint, run) = (checkpoint(), run());
    all.push(Reader {
        name: "checkpoint".into(),
        files: checkpoint,
        damage: vec![0, 1, 2],
        read: read_checkpoint,
    });
    all.push(Reader { name: "run folder".into(), files: run, damage: vec![0, 1, 2, 3], read: read_run });
    all
}

fn small_safetensors() -> Vec<u8> {
    let header = r#"{"__metadata__":{"format":"pt"},"a":{"dtype":"F32","shape":[2,2],"data_offsets":[0,16]},"b":{"dtype":"BF16","shape":[3],"data_offsets":[16,22]}}"#;
    [&(header.len() as u64).to_le_bytes(), header.as_bytes(), &[1; 22]].concat()
}

fn checkpoint() -> Vec<(String, Vec<u8>)> {
    let outer = tempfile::tempdir().unwrap();
    let folder = outer.path().join("step-1");
    let tensor =
        tune::checkpoint::NamedTensor { name: "adapter.a".into(), shape: vec![2, 2], values: vec![1.0; 4] };
    tune::checkpoint::write(&folder, &[tensor], &serde_json::json!({"step": 1})).unwrap();
    let mut files: Vec<(String, Vec<u8>)> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .map(|path| (path.file_name().unwrap().to_str().unwrap().to_owned(), fs::read(&path).unwrap()))
        .collect();
    files.sort();
    files
}

fn run() -> Vec<(String, Vec<u8>)> {
    let step = r#"{"step":1,"epoch":0.1,"loss":2.5,"grad_norm":1.0,"learning_rate":0.001,"tokens":9,"tokens_per_second":5.0,"peak_memory_bytes":99}"#;
    let evaluation = r#"{"step":1,"epoch":0.1,"eval_loss":2.5,"eval_tokens":9}"#;
    let record = tune::record::Record {
        version: 1,
        samples: vec![Default::default()],
        sessions: vec![Default::default()],
        data: Some(Default::default()),
        ..Default::default()
    };
    let lock = "version = 1\ntune = \"0\"\nrecipe_sha256 = \"a\"\nbase_file = []\ndataset = []\n\n[compute]\n\
                device = \"cpu\"\ndtype = \"f32\"\narchitecture = \"x\"\nprocessor_features = []\n\n[base]\nname = \"b\"\n";
    let plan = r#"{"terms":[{"name":"weights","bytes":7}]}"#;
    let files = [
        ("memory_plan.json", plan.to_owned()),
        ("metrics.jsonl", format!("{evaluation}\n{step}\n{step}\n")),
        ("recipe.lock", lock.to_owned()),
        ("run.json", serde_json::to_string(&record).unwrap()),
    ];
    files.into_iter().map(|(name, text)| (name.to_owned(), text.into_bytes())).collect()
}

/// What went wrong inside a reader, said where the panic was caught.
static SAID: Mutex<String> = Mutex::new(String::new());

#[test]
fn damaged_files_neither_panic_nor_take_more_memory_than_they_justify() {
    let rounds: u64 = std::env::var("TUNE_FUZZ_ROUNDS")
        .ok()
        .map_or(100, |text| text.parse().expect("TUNE_FUZZ_ROUNDS is a number"));
    // Panics that a reader catches itself are its own business; those that leave it are told below.
    std::panic::set_hook(Box::new(|info| *SAID.lock().unwrap() = info.to_string()));
    let outer = tempfile::tempdir().unwrap();
    let mut faults = Vec::new();
    let mut largest = (0, String::new());
    for (number, reader) in readers().into_iter().enumerate() {
        let began = Instant::now();
        let place = outer.path().join(number.to_string());
        fs::create_dir(&place).unwrap();
        for (name, bytes) in &reader.files {
            fs::write(place.join(name), bytes).unwrap();
        }
        // Unharmed once, which also builds whatever is built once.
        (reader.read)(&place);
        let extremes = reader.damage.iter().flat_map(|file| {
            let extreme = |(number, bytes)| (*file, format!("extreme {number}"), bytes);
            extremes().into_iter().enumerate().map(extreme)
        });
        let random = (0..rounds).map(|round| {
            let seed = (number as u64) << 32 | round;
            let mut chance = Chance::new(seed);
            let file = reader.damage[chance.below(reader.damage.len())];
            (file, format!("seed {seed}"), damaged(&reader.files[file].1, &mut chance))
        });
        for (file, seed, bytes) in extremes.chain(random) {
            let (name, original) = &reader.files[file];
            let path = place.join(name);
            fs::write(&path, bytes).unwrap();
            let size: usize = fs::read_dir(&place)
                .unwrap()
                .map(|entry| entry.unwrap().metadata().unwrap().len() as usize)
                .sum();
            MEMORY.reset_peak_usage();
            let before = MEMORY.current_usage();
            let survived = catch_unwind(AssertUnwindSafe(|| (reader.read)(&place))).is_ok();
            let taken = MEMORY.peak_usage().saturating_sub(before);
            if !survived {
                faults.push(format!("{}: {seed} in {name}: {}", reader.name, SAID.lock().unwrap()));
            }
            if taken > ANY_FILE + PER_BYTE * size {
                faults.push(format!("{}: {seed} in {name}: {taken} bytes for files of {size}", reader.name));
            }
            if taken > largest.0 {
                largest = (taken, format!("{} (files of {size} bytes)", reader.name));
            }
            fs::write(&path, original).unwrap();
        }
        println!("{:28} {rounds} rounds in {:?}", reader.name, began.elapsed());
    }
    drop(std::panic::take_hook());
    println!("most memory: {} bytes, {}", largest.0, largest.1);
    assert!(faults.is_empty(), "{} faults:\n{}", faults.len(), faults.join("\n"));
}
