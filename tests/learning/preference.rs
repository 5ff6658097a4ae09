//! Preference tuning against TRL, and against itself. See `tests/golden/README.md`.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::Value;
use tune::adapter::lora::{DropoutStep, LoraSet};
use tune::adapter::peft::Adapter;
use tune::assets::ModelDir;
use tune::data::batch::{Batching, Cursor, StepBatch};
use tune::data::corpus::{Corpus, Language};
use tune::data::tokenize::Tokenizer;
use tune::device::Cpu;
use tune::model::{FloatDtype, family, load};
use tune::recipe::RecipeFile;
use tune::run::evaluate::{Evaluation, Subject};
use tune::run::inference::ModelChoice;
use tune::run::{self, Environment, Options};
use tune::train::backward::{Gradients, Pass, forward_backward};
use tune::train::compare::compare;
use tune::train::event::{Event, Observer};

use crate::common::{golden, metrics, relative_difference, run, series, tensors, try_run};

const CASES: [&str; 10] =
    ["sigmoid", "hinge", "ipo", "robust", "normalized", "rpo", "orpo", "simpo", "kto", "apo"];

pub(crate) fn case(name: &str) -> Value {
    serde_json::from_slice(&fs::read(golden(&format!("preference/case_{name}.json"))).unwrap()).unwrap()
}

fn numbers(value: &Value) -> Vec<f64> {
    value.as_array().unwrap().iter().map(|number| number.as_f64().unwrap()).collect()
}

/// The base of `trajectory/` with a tokenizer.
pub(crate) fn base(folder: &Path) -> PathBuf {
    let base = folder.join("base");
    fs::create_dir(&base).unwrap();
    for file in ["trajectory/base/config.json", "trajectory/base/model.safetensors"] {
        let file = golden(file);
        fs::copy(&file, base.join(file.file_name().unwrap())).unwrap();
    }
    for file in ["tokenizer.json", "tokenizer_config.json"] {
        fs::copy(golden("preference").join(file), base.join(file)).unwrap();
    }
    base
}

/// A table of a recipe as an inline table.
fn inline(keys: &Value) -> String {
    let keys: Vec<String> =
        keys.as_object().unwrap().iter().map(|(key, value)| format!("{key} = {value}")).collect();
    format!("{{ {} }}", keys.join(", "))
}

pub(crate) struct Settings<'a> {
    pub(crate) adapter: &'a str,
    pub(crate) data: &'a str,
    pub(crate) train: &'a str,
}

/// The recipe of a golden case with some settings of its own.
pub(crate) fn recipe(case: &Value, base: &Path, output_dir: &Path, settings: &Settings<'_>) -> String {
    let format = if case["data"] == "answers.jsonl" { "feedback" } else { "preference" };
    let Settings { adapter, data, train } = settings;
    format!(
        r#"
        version = 1
        output_dir = {output_dir:?}
        model = {{ base = {base:?}, compute_dtype = "f32" }}
        adapter.lora = {{ rank = 2, alpha = 4{adapter} }}
        objective.{objective} = {keys}
        data = {{ max_seq_len = 128, shuffle = false{data} }}
        dataset = [{{ path = {path:?}, format = "{format}" }}]
        [train]
        learning_rate = {learning_rate}
        lr_scheduler = "constant"
        warmup_steps = 0
        max_grad_norm = 0
        {train}
        "#,
        objective = case["objective"].as_str().unwrap(),
        keys = inline(&case["keys"]),
        path = golden("preference").join(case["data"].as_str().unwrap()),
        learning_rate = case["learning_rate"],
    )
}

pub(crate) fn golden_recipe(case: &Value, base: &Path, output_dir: &Path) -> String {
    let adapter = format!(", init_from = {:?}", golden("preference/adapter"));
    let train = format!(
        "max_steps = {}\nmicro_batch_size = {}\ngradient_accumulation_steps = {}",
        case["max_steps"], case["micro_batch_size"], case["gradient_accumulation_steps"]
    );
    recipe(case, base, output_dir, &Settings { adapter: &adapter, data: ", packing = false", train: &train })
}

#[test]
fn losses_and_norms_follow_trl() {
    let folder = tempfile::tempdir().unwrap();
    let base = base(folder.path());
    for name in CASES {
        let case = case(name);
        let output_dir = folder.path().join(name);
        run(&golden_recipe(&case, &base, &output_dir));
        let (losses, norms) = (series(&output_dir, "loss"), series(&output_dir, "grad_norm"));
        assert_eq!(losses.len(), 10);
        for (step, (ours, theirs)) in losses.iter().zip(numbers(&case["losses"])).enumerate() {
            assert!((ours - theirs).abs() < 1e-4, "{name}, step {step}: loss {ours} for {theirs}");
        }
        for (step, (ours, theirs)) in norms.iter().zip(numbers(&case["grad_norms"])).enumerate() {
            assert!((ours / theirs - 1.0).abs() < 2e-3, "{name}, step {step}: norm {ours} for {theirs}");
        }
    }
}

/// The first optimizer step of a recipe.
pub(crate) fn first_step(recipe: &str, base: &Path) -> StepBatch {
    let recipe = RecipeFile::parse("test.toml", recipe.as_bytes(), &[]).finish().unwrap();
    let language = Language {
        tokenizer: Some(Arc::new(Tokenizer::open(base).unwrap())),
        template: None,
        vocabulary_size: Some(512),
        positions: None,
        copies_prompts: false,
    };
    let corpus = Corpus::open(&recipe.data, &recipe.datasets, recipe.seed, language).unwrap();
    let batching = Batching {
        micro_batch_size: recipe.train.micro_batch_size,
        gradient_accumulation_steps: recipe.train.gradient_accumulation_steps,
        epochs: None,
        max_steps: Some(1),
    };
    corpus.steps(&batching, Cursor::default()).unwrap().next().unwrap().unwrap()
}

#[test]
fn the_first_gradients_are_those_of_trl() {
    let folder = tempfile::tempdir().unwrap();
    let base = base(folder.path());
    let device = Default::default();
    let model = ModelDir::open(&base).unwrap();
    let spec = family::decoder_spec(model.config()).unwrap();
    let decoder =
        load::load::<Cpu>(model.weights(), &spec, None, FloatDtype::F32, &device, &mut |_| {}).unwrap();
    let adapter = Adapter::open(&golden("preference/adapter")).unwrap();
    let targets = adapter.targets(&spec.modules()).unwrap();
    let set =
        || LoraSet::from_values(targets.clone(), 0.0, adapter.values(&targets).unwrap(), &device).unwrap();
    let (set, start) = (set(), set());
    let (adapters, reference) = (set.until_update(), start.until_update());
    for name in CASES {
        let case = case(name);
        let recipe = golden_recipe(&case, &base, &folder.path().join("unused"));
        let objective = RecipeFile::parse("test.toml", recipe.as_bytes(), &[]).finish().unwrap().objective;
        let step = first_step(&recipe, &base);
        let mut gradients = Gradients::new(spec.layers.len());
        for batch in &step.micro_batches {
            let pass = Pass {
                dropout: DropoutStep { seed: 1, step: 1, micro_batch: 0 },
                keep: 3,
                balance: 0.0,
                parks: false,
            };
            let comparison = compare(&decoder, &adapters, Some(&reference), &objective, batch).unwrap();
            forward_backward(&decoder, &adapters, &objective, &comparison, batch, pass, &mut gradients)
                .unwrap();
        }
        let scale = 1.0 / objective.divisor(&step.counts) as f32;
        let theirs = tensors(&golden(&format!("preference/step0_gradients_{name}.safetensors")));
        let ours: BTreeMap<String, Vec<f32>> = set
            .parameters()
            .iter()
            .zip(gradients.by_parameter(&set))
            .map(|(parameter, gradient)| {
                let values: Vec<f32> = gradient.unwrap().into_data().into_vec().unwrap();
                (parameter.name.clone(), values.into_iter().map(|value| value * scale).collect())
            })
            .collect();
        assert_eq!(ours.keys().collect::<Vec<_>>(), theirs.keys().collect::<Vec<_>>());
        for (key, ours) in &ours {
            let difference = relative_difference(ours, &theirs[key]);
            assert!(difference < 1e-3, "{name}, {key}: {difference:e}");
        }
    }
}

#[test]
fn the_first_loss_of_a_fresh_adapter_is_ln_2_and_metrics_say_what_they_promise() {
    let folder = tempfile::tempdir().unwrap();
    let base = base(folder.path());
    let output_dir = folder.path().join("run");
    let settings =
        Settings { adapter: "", data: ", val_split = 0.3", train: "epochs = 3\nmicro_batch_size = 2" };
    run(&recipe(&case("sigmoid"), &base, &output_dir, &settings));
    let first = series(&output_dir, "loss")[0];
    assert!((first - std::f64::consts::LN_2).abs() < 1e-6, "{first}");
    let keys = [
        "reward_chosen",
        "reward_rejected",
        "reward_margin",
        "preference_accuracy",
        "logp_chosen",
        "logp_rejected",
    ];
    for line in metrics(&output_dir) {
        let prefix = if line.get("loss").is_some() { "" } else { "eval_" };
        for key in keys {
            assert!(line[format!("{prefix}{key}")].is_f64(), "{key} in {line}");
        }
        let number = |key: &str| line[format!("{prefix}{key}")].as_f64().unwrap();
        let margin = number("reward_chosen") - number("reward_rejected");
        assert!((number("reward_margin") - margin).abs() < 1e-9);
    }
    let accuracies = series(&output_dir, "preference_accuracy");
    assert!(*accuracies.last().unwrap() > 0.9, "learned by heart: {accuracies:?}");
}

#[test]
fn eight_micro_batches_of_one_pair_equal_one_of_eight() {
    let folder = tempfile::tempdir().unwrap();
    let base = base(folder.path());
    for name in ["sigmoid", "ipo", "rpo", "orpo", "simpo", "apo"] {
        let [many, one] = ["many", "one"].map(|kind| folder.path().join(format!("{name}-{kind}")));
        let recipe = |output_dir: &Path, train: &str| {
            recipe(
                &case(name),
                &base,
                output_dir,
                &Settings { adapter: "", data: ", packing = false", train },
            )
        };
        run(&recipe(&many, "micro_batch_size = 1\ngradient_accumulation_steps = 8\nmax_steps = 4"));
        run(&recipe(&one, "micro_batch_size = 8\nmax_steps = 4"));
        for (a, b) in series(&many, "loss").iter().zip(series(&one, "loss")) {
            assert!((a - b).abs() < 1e-5, "{name}: {a} {b}");
        }
        let [many, one] = [many, one].map(|path| tensors(&path.join("adapter/adapter_model.safetensors")));
        for (key, values) in &many {
            let difference = relative_difference(values, &one[key]);
            assert!(difference < 2e-3, "{name}, {key}: {difference:e}");
        }
    }
}

#[test]
fn a_head_that_is_trained_too_learns_and_accumulates_alike() {
    let folder = tempfile::tempdir().unwrap();
    let base = base(folder.path());
    let [many, one] = ["many", "one"].map(|kind| folder.path().join(kind));
    let recipe = |output_dir: &Path, train: &str| {
        let adapter = ", modules_to_save = [\"lm_head\"]";
        recipe(&case("sigmoid"), &base, output_dir, &Settings { adapter, data: ", packing = false", train })
    };
    run(&recipe(&many, "micro_batch_size = 5\ngradient_accumulation_steps = 4\nmax_steps = 4"));
    run(&recipe(&one, "micro_batch_size = 20\nmax_steps = 4"));
    let losses = series(&one, "loss");
    assert!(losses.windows(2).all(|pair| pair[1] < pair[0]), "{losses:?}");
    for (a, b) in series(&many, "loss").iter().zip(losses) {
        assert!((a - b).abs() < 1e-4, "{a} {b}");
    }
}

/// Asks the run to stop after its third step.
struct StopAtThree<'a>(&'a Cell<bool>);

impl Observer for StopAtThree<'_> {
    fn observe(&mut self, event: &Event<'_>) {
        if matches!(event, Event::Step { step: 3, .. }) {
            self.0.set(true);
        }
    }
}

#[test]
fn a_resumed_run_ends_with_the_same_bytes_and_lines() {
    let folder = tempfile::tempdir().unwrap();
    let base = base(folder.path());
    for name in ["rpo", "kto"] {
        let init = format!(", init_from = {:?}", golden("preference/adapter"));
        let recipe = |output_dir: &Path| {
            // Lines every second step: sums of a line cross the interruption.
            let train = "micro_batch_size = 2\nmax_steps = 6\nlogging_steps = 2";
            recipe(
                &case(name),
                &base,
                output_dir,
                &Settings { adapter: &init, data: ", val_split = 0.2", train },
            )
        };
        let [straight, resumed] =
            ["straight", "resumed"].map(|kind| folder.path().join(format!("{name}-{kind}")));
        run(&recipe(&straight));
        let stop = Cell::new(false);
        let go = |options: Options| {
            let file = RecipeFile::parse("test.toml", recipe(&resumed).as_bytes(), &[]);
            let environment = Environment {
                hub_cache: Path::new("no-such-cache"),
                stop: &|| stop.replace(false),
                save: &|| false,
            };
            run::fine_tune(file, &environment, options, &mut StopAtThree(&stop)).unwrap()
        };
        assert!(go(Options::default()).adapter.is_none(), "it was stopped");
        assert!(go(Options { resume: true, ..Options::default() }).adapter.is_some());
        let bytes = |run: &Path| fs::read(run.join("adapter/adapter_model.safetensors")).unwrap();
        assert!(bytes(&straight) == bytes(&resumed), "{name}");
        for key in ["loss", "reward_margin", "logp_chosen", "eval_loss", "eval_reward_margin"] {
            assert_eq!(series(&straight, key), series(&resumed, key), "{name}, {key}");
        }
    }
}

#[test]
fn packed_pairs_are_whole_and_lose_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let base = base(folder.path());
    let losses = |name: &str, data: &str, train: &str| {
        let output_dir = folder.path().join(name);
        let train = format!("{train}\nepochs = 1");
        run(&recipe(&case("sigmoid"), &base, &output_dir, &Settings { adapter: "", data, train: &train }));
        series(&output_dir, "loss")
    };
    // Twenty pairs of at most 44 tokens in packs of 256.
    let packed = losses("packed", "", "micro_batch_size = 8");
    let unpacked = losses("unpacked", ", packing = false", "micro_batch_size = 20");
    assert_eq!((packed.len(), unpacked.len()), (1, 1));
    assert!((packed[0] - unpacked[0]).abs() < 1e-6, "{packed:?} {unpacked:?}");
}

/// The golden rows as a table of texts, under other names.
fn as_csv(folder: &Path, file: &str, columns: &[&str]) -> PathBuf {
    let text = fs::read_to_string(golden("preference").join(file)).unwrap();
    let mut csv = columns.iter().map(|column| column.to_uppercase()).collect::<Vec<_>>().join(",") + "\n";
    for line in text.lines() {
        let row: Value = serde_json::from_str(line).unwrap();
        let cells: Vec<String> =
            columns.iter().map(|column| row[*column].to_string().replace("\"\"", "")).collect();
        csv += &(cells.join(",") + "\n");
    }
    let path = folder.join(file).with_extension("csv");
    fs::write(&path, csv).unwrap();
    path
}

#[test]
fn a_table_of_texts_trains_as_json_does() {
    let folder = tempfile::tempdir().unwrap();
    let base = base(folder.path());
    for (name, columns) in
        [("sigmoid", ["prompt", "chosen", "rejected"]), ("kto", ["prompt", "completion", "label"])]
    {
        let case = case(name);
        let file = case["data"].as_str().unwrap();
        let csv = as_csv(folder.path(), file, &columns);
        let [json, table] = ["json", "csv"].map(|kind| folder.path().join(format!("{name}-{kind}")));
        let recipe_of = |output_dir: &Path| golden_recipe(&case, &base, output_dir);
        run(&recipe_of(&json));
        let fields: Vec<String> =
            columns.iter().map(|column| format!("{column} = \"{}\"", column.to_uppercase())).collect();
        let of_csv = recipe_of(&table)
            .replace(golden("preference").join(file).to_str().unwrap(), csv.to_str().unwrap())
            .replace("format = ", &format!("fields = {{ {} }}, format = ", fields.join(", ")));
        run(&of_csv);
        assert_eq!(series(&json, "loss"), series(&table, "loss"), "{name}");
    }
}

#[test]
fn an_evaluation_shows_base_and_adapter_side_by_side() {
    let folder = tempfile::tempdir().unwrap();
    let base = base(folder.path());
    let output_dir = folder.path().join("run");
    let train = "epochs = 3\nmicro_batch_size = 2";
    run(&recipe(
        &case("sigmoid"),
        &base,
        &output_dir,
        &Settings { adapter: "", data: ", val_split = 0.3", train },
    ));
    let environment = Environment { hub_cache: Path::new("no-such-cache"), stop: &|| false, save: &|| false };
    let subject = Subject::Run(&output_dir);
    let evaluation =
        Evaluation::open(subject, ModelChoice::default(), None, Default::default(), &environment);
    let report = evaluation.unwrap().run(&mut StopAtThree(&Cell::new(false)), &environment).unwrap();
    let adapter = report.adapter.unwrap();
    let (preferred, before) = (adapter.prefers_chosen.unwrap(), report.base.prefers_chosen.unwrap());
    assert_eq!((preferred.of, before.of), (report.rows, report.rows));
    // A fresh adapter's reference is the base, so the training's own evaluation counts the same pairs.
    let counted = *series(&output_dir, "eval_preference_accuracy").last().unwrap();
    assert!((report.reward_accuracy.unwrap().share - counted).abs() < 1e-9);
    let logp = |side: &str| -> f64 {
        let of = |line: &Value| line["adapter"][side].as_f64().unwrap();
        report.lines.iter().map(of).sum::<f64>() / report.rows as f64
    };
    let last = |key: &str| *series(&output_dir, key).last().unwrap();
    assert!((logp("logp_chosen") - last("eval_logp_chosen")).abs() < 1e-3);
    assert!((logp("logp_rejected") - last("eval_logp_rejected")).abs() < 1e-3);
}

#[test]
fn formats_and_objectives_that_do_not_belong_together_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let base = base(folder.path());
    let settings = Settings { adapter: "", data: "", train: "max_steps = 1\nmicro_batch_size = 2" };
    let message = |recipe: String| format!("{:?}", try_run(&recipe).unwrap_err());
    let sigmoid = recipe(&case("sigmoid"), &base, &folder.path().join("run"), &settings);
    let other = message(sigmoid.replace("\"preference\"", "\"text\""));
    assert!(other.contains("objective.dpo") && other.contains("\\\"text\\\""), "{other}");
    let none =
        message(sigmoid.lines().filter(|line| !line.contains("objective.")).collect::<Vec<_>>().join("\n"));
    assert!(none.contains("objective.sft") && none.contains("preference"), "{none}");
    let two = message(sigmoid.replace("objective.dpo", "objective.orpo = { }\n        objective.dpo"));
    assert!(two.contains("a run has one objective"), "{two}");
    let alone = recipe(
        &case("kto"),
        &base,
        &folder.path().join("run"),
        &Settings { adapter: "", data: ", packing = false", train: "max_steps = 1\nmicro_batch_size = 1" },
    );
    assert!(message(alone).contains("measures each answer against the others"));
}
