//! Reading, resolving, hashing; hostile text. Messages are tested in `diagnostics`.

use proptest::prelude::*;

use super::*;
use crate::data::spec::{Format, Split, TrainOn};
use crate::document::Problems;
use crate::train::spec::Warmup;

mod diagnostics;

const SMALL: &str = r#"
version = 1
output_dir = "runs/x"
[model]
base = "Qwen/Qwen3-0.6B"
[[dataset]]
path = "train.jsonl"
format = "messages"
[train]
epochs = 1
learning_rate = 2e-4
"#;

/// Everything at once, nothing at its default.
const LARGE: &str = r#"
version = 1
output_dir = "runs/ünï \"x\""
seed = 9223372036854775807
device = "cpu"
[model]
base = "a/b"
revision = "main"
compute_dtype = "bf16"
[quantization.nf4]
block_size = 4096
double_quant = false
[adapter.lora]
rank = 3
alpha = 0.1
dropout = 0.05
target_modules = '.*\.[0-3]\..*(q|v)_proj'
use_rslora = true
use_dora = true
learning_rate_ratio = 16.0
rank_pattern = { '.*\.0\..*' = 8, "q_proj" = 4 }
alpha_pattern = { "v_proj" = 1e-3 }
modules_to_save = ["lm_head", "embed_tokens"]
init_from = "some\\where"
[data]
max_seq_len = 128
packing = false
on_overflow = "truncate"
on_empty = "drop"
train_on = "all"
val_split = 0.125
shuffle = false
chat_template = "chatml"
[[dataset]]
path = "a\tb*.parquet"
format = "prompt-completion"
weight = 0.3333333333333333
train_on = "completion"
fields = { prompt = "question", completion = "a \"b\"" }
[[dataset]]
path = "c"
format = "tokens"
[[dataset]]
path = "d"
format = "text"
[train]
epochs = 0.5
max_steps = 7
micro_batch_size = 1
gradient_accumulation_steps = 2
learning_rate = 1e-7
lr_scheduler = "linear"
warmup_steps = 0
weight_decay = 0.1
max_grad_norm = 0
max_time = "1d2h3m4s"
max_tokens = 1000000
on_divergence = "rollback"
divergence_patience = 0
rollback_steps = 9
logging_steps = 2
eval_steps = 3
save_steps = 4
save_total_limit = 5
[gate]
max_eval_loss = 1.75
max_eval_loss_ratio = 0.5
[sample]
prompts = ["one\ntwo", "\u0001 🐈"]
max_new_tokens = 1
temperature = 0.7
seed = 1
"#;

fn read(text: &str, overrides: &[&str]) -> Result<Recipe, Problems> {
    let overrides: Vec<_> = overrides.iter().map(|text| (*text).to_owned()).collect();
    RecipeFile::parse("recipe.toml", text.as_bytes(), &overrides).finish()
}

#[track_caller]
fn good(text: &str, overrides: &[&str]) -> Recipe {
    match read(text, overrides) {
        Ok(recipe) => recipe,
        Err(problems) => panic!("{:#?}", problems.iter().collect::<Vec<_>>()),
    }
}

/// Each problem as `line: message | help`, for recipes made of SMALL with something added or changed.
fn problems(text: &str, overrides: &[&str]) -> Vec<String> {
    let Err(problems) = read(text, overrides) else { return Vec::new() };
    problems
        .iter()
        .map(|problem| {
            let place = problem.place();
            format!("{}: {problem} | {}", place.text(), problem.way_out().unwrap_or_default())
        })
        .collect()
}

#[test]
fn defaults_are_those_of_the_format() {
    let recipe = good(SMALL, &[]);
    assert_eq!(recipe.seed, 42);
    assert_eq!(recipe.device, DeviceSpec::Auto);
    assert_eq!(recipe.quantization, None);
    assert_eq!(recipe.adapter, adapter::spec::Spec::default());
    assert_eq!((recipe.adapter.rank, recipe.adapter.alpha, recipe.adapter.dropout), (16, 32.0, 0.0));
    assert_eq!(recipe.data, data::spec::Spec::default());
    assert_eq!((recipe.data.max_seq_len, recipe.data.packing, recipe.data.shuffle), (2048, true, true));
    assert_eq!(recipe.datasets[0].train_on, Some(TrainOn::Assistant));
    assert_eq!(recipe.datasets[0].weight, 1.0);
    assert_eq!(recipe.datasets[0].split, Split::Train);
    assert_eq!(recipe.train.warmup, Warmup::Ratio(0.03));
    assert_eq!((recipe.train.micro_batch_size, recipe.train.gradient_accumulation_steps), (4, 1));
    assert_eq!((recipe.train.max_grad_norm, recipe.train.weight_decay), (1.0, 0.0));
    assert_eq!((recipe.train.logging_steps, recipe.train.eval_steps), (1, 200));
    assert_eq!((recipe.train.save_steps, recipe.train.save_total_limit), (200, 3));
    let nf4 = good(&format!("{SMALL}\n[quantization.nf4]\n"), &[]).quantization;
    assert_eq!(nf4, Some(quant::spec::Quantization::USUAL));
}

#[test]
fn the_resolved_text_reads_back_as_the_same_recipe() {
    for text in [SMALL, LARGE] {
        let recipe = good(text, &[]);
        let resolved = recipe.to_toml();
        assert!(resolved.starts_with("# Resolved by tune "), "{resolved}");
        assert_eq!(good(&resolved, &[]), recipe, "{resolved}");
        assert_eq!(good(&resolved, &[]).sha256(), recipe.sha256());
        assert_eq!(good(&resolved, &[]).to_toml(), resolved);
    }
    insta::assert_snapshot!("resolved", good(LARGE, &[]).to_toml().split_once('\n').unwrap().1);
}

#[test]
fn train_on_comes_from_the_dataset_the_data_table_or_the_format() {
    let recipe = good(LARGE, &[]);
    let chosen: Vec<_> = recipe.datasets.iter().map(|dataset| dataset.train_on).collect();
    assert_eq!(chosen, [Some(TrainOn::Completion), None, Some(TrainOn::All)]);
    assert_eq!(recipe.data.train_on, None);
    assert_eq!(recipe.datasets[1].format, Format::Tokens);
}

#[test]
fn template_variables_are_read_and_written_back() {
    let kwargs =
        "data.chat_template_kwargs={ enable_thinking = false, n = [1, 2.5], more = { \"a b\" = \"c\" } }";
    let recipe = good(SMALL, &[kwargs]);
    let read = recipe.data.chat_template_kwargs.clone().unwrap().0;
    let expected = serde_json::json!({"enable_thinking": false, "n": [1, 2.5], "more": {"a b": "c"}});
    assert_eq!(serde_json::Value::Object(read), expected);
    assert_eq!(good(&recipe.to_toml(), &[]), recipe, "{}", recipe.to_toml());
    let base = good(SMALL, &[]);
    for changing in
        [kwargs, "data.on_marked=learn", "data.on_hidden_thoughts=skip", "data.on_beyond_positions=drop"]
    {
        assert_ne!(good(SMALL, &[changing]).sha256(), base.sha256(), "{changing}");
    }
    for stated in ["data.on_marked=skip", "data.on_hidden_thoughts=learn", "data.on_beyond_positions=error"] {
        assert_eq!(good(SMALL, &[stated]).sha256(), base.sha256(), "{stated}");
    }
    let said = problems(SMALL, &["data.chat_template_kwargs={ messages = [] }"]);
    assert!(said[0].contains("every template is given `messages`"), "{said:?}");
    let said = problems(SMALL, &["data.chat_template_kwargs={ day = 2024-01-01 }"]);
    assert!(said[0].contains("expected a value that JSON has"), "{said:?}");
}

#[test]
fn the_hash_knows_what_can_change_the_weights_and_nothing_else() {
    let base = good(SMALL, &[]).sha256();
    assert_eq!(base.len(), 64);
    for same in [
        "output_dir=elsewhere",
        "train.logging_steps=7",
        "train.eval_steps=7",
        "train.save_steps=7",
        "train.save_total_limit=7",
        "train.max_time=45m",
        "train.on_divergence=stop",
        "train.epochs=1.0",
        "train.learning_rate=0.0002",
        "data.train_on=assistant",
        "adapter.lora.rank=16",
        "sample.prompts=['x']",
    ] {
        assert_eq!(good(SMALL, &[same]).sha256(), base, "{same}");
    }
    for other in [
        "seed=43",
        "model.base=Qwen/Qwen3-1.7B",
        "model.revision=main",
        "model.compute_dtype=f32",
        "quantization.nf4={}",
        "adapter.lora.rank=17",
        "adapter.lora.init_from=x",
        "adapter.lora.rank_pattern={q_proj=2}",
        "data.packing=false",
        "data.val_split=0.1",
        "data.shuffle=false",
        "dataset.0.weight=2",
        "dataset.0.train_on=all",
        "train.epochs=2",
        "train.max_steps=10",
        "train.micro_batch_size=1",
        "train.warmup_steps=0",
        "train.max_tokens=1000",
        "train.on_divergence=skip",
        "train={ on_divergence = 'rollback', rollback_steps = 7, epochs = 1, learning_rate = 2e-4 }",
    ] {
        assert_ne!(good(SMALL, &[other]).sha256(), base, "{other}");
    }
    // Keys that came later are in the canonical text only where they differ from their defaults.
    let alpaca = |more: &[&str]| good(SMALL, &[&["dataset.0.format=alpaca"], more].concat()).sha256();
    assert_eq!(alpaca(&["dataset.0.chat=false"]), alpaca(&[]));
    assert_ne!(alpaca(&["dataset.0.chat=true"]), alpaca(&[]));
    assert_ne!(alpaca(&["dataset.0.prompt='{instruction}'"]), alpaca(&[]));
    let reordered = "version=1\noutput_dir='y'\n[train] # c\nlearning_rate=2e-4\nepochs=1\n\
        [[dataset]]\nformat='messages'\npath='train.jsonl'\n[model]\nbase='Qwen/Qwen3-0.6B'\r\n";
    assert_eq!(good(reordered, &[]).sha256(), base);
    // Hashes stand in adapters that people keep: they must not change from one release to the next.
    insta::assert_snapshot!("hash", base);
}

#[test]
fn differences_are_named_by_key_and_value() {
    let essentials = |changes: &[&str]| good(SMALL, changes).essentials();
    let named = |was: &[&str], is: &[&str]| -> Vec<String> {
        differences(&essentials(was), &essentials(is)).iter().map(ToString::to_string).collect()
    };
    assert!(named(&[], &["output_dir=elsewhere", "train.save_steps=1", "train.epochs=1.0"]).is_empty());
    assert_eq!(
        named(&[], &["train.learning_rate=1e-3", "quantization.nf4={}", "seed=7", "train.max_steps=9"]),
        [
            "`seed` was 42 and is 7",
            "`train.learning_rate` was 0.0002 and is 0.001",
            "`quantization.nf4` was left out and is there",
            "`quantization.nf4.block_size` was left out and is 64",
            "`quantization.nf4.double_quant` was left out and is true",
            "`train.max_steps` was left out and is 9",
        ]
    );
    assert_eq!(
        named(&["dataset.1={path='b',format='text'}", "dataset.0.weight=2"], &[]),
        [
            "`dataset.0.weight` was 2.0 and is 1.0",
            "`dataset.1.format` was \"text\" and is left out",
            "`dataset.1.path` was \"b\" and is left out",
            "`dataset.1.split` was \"train\" and is left out",
            "`dataset.1.train_on` was \"all\" and is left out",
            "`dataset.1.weight` was 1.0 and is left out",
        ]
    );
}

#[test]
fn overrides_have_toml_values_and_plain_words() {
    let recipe = good(
        SMALL,
        &[
            "train.learning_rate=3e-4",
            "train.lr_scheduler=linear",
            "train.lr_scheduler = constant",
            "output_dir=/a=b c",
            "adapter.lora.target_modules=[\"q_proj\", \"v_proj\"]",
            "adapter.lora.rank_pattern.\"a=b\"=3",
            "dataset.0.path=Ünï.jsonl",
            "dataset.1.path=held.jsonl",
            "dataset.1.format=text",
            "dataset.1.split=validation",
            "quantization.nf4.block_size=128",
            "data={ packing = false }",
        ],
    );
    assert_eq!(recipe.train.learning_rate, 3e-4);
    assert_eq!(recipe.train.lr_scheduler, train::spec::LrScheduler::Constant);
    assert_eq!(recipe.output_dir, PathBuf::from("/a=b c"));
    assert_eq!(recipe.adapter.rank_pattern, [("a=b".to_owned(), 3)]);
    assert_eq!(recipe.datasets[0].path, "Ünï.jsonl");
    assert_eq!(
        (recipe.datasets[1].path.as_str(), recipe.datasets[1].split),
        ("held.jsonl", Split::Validation)
    );
    assert_eq!(
        recipe.quantization,
        Some(quant::spec::Spec::Nf4 { block_size: 128, double_quant: true }.into())
    );
    assert!(!recipe.data.packing);
}

#[test]
fn a_recipe_can_be_made_of_overrides_alone() {
    let recipe = good(
        "",
        &[
            "version=1",
            "output_dir=x",
            "model.base=a/b",
            "dataset.0.path=c",
            "dataset.0.format=tokens",
            "train.max_steps=1",
            "train.learning_rate=1e-4",
        ],
    );
    assert_eq!(recipe.datasets[0].format, Format::Tokens);
}

#[test]
fn places_lead_to_values_headers_or_the_end() {
    let overrides = ["adapter.lora.rank_pattern={'a.b'=3}".to_owned()];
    let file = RecipeFile::parse("recipe.toml", SMALL.as_bytes(), &overrides);
    assert_eq!(file.place(&["model", "base"]).text(), "\"Qwen/Qwen3-0.6B\"");
    assert_eq!(file.place(&["model", "revision"]).text(), "[model]");
    assert_eq!(file.place(&["dataset", "0", "path"]).text(), "\"train.jsonl\"");
    assert_eq!(file.place(&["adapter", "lora", "rank_pattern", "a.b"]).text(), "3");
    assert_eq!(file.place(&["adapter", "lora", "rank_pattern", "a.b"]).source().name(), "--set");
    assert_eq!(file.place(&["data", "packing"]).span(), SMALL.len() - 1..SMALL.len() - 1);
    assert_eq!(file.place(&["data", "packing"]).line(), 11);
}

#[test]
fn parts_outlive_problems_elsewhere() {
    let text = SMALL.replace("epochs = 1", "epochs = 0\nnonsense = 1");
    let file = RecipeFile::parse("recipe.toml", text.as_bytes(), &["adapter.lora.dropout=5".to_owned()]);
    assert_eq!(file.problems().len(), 3);
    assert_eq!(file.parts().model.as_ref().unwrap().base, "Qwen/Qwen3-0.6B");
    assert_eq!(file.parts().adapter.rank, 16);
    assert_eq!(file.parts().train.as_ref().unwrap().learning_rate, 2e-4);
    assert!(file.finish().is_err());
}

#[test]
fn hub_ids_differ_from_folders() {
    for id in ["gpt2", "Qwen/Qwen3-0.6B", "meta-llama/Llama-3.2-1B", "01-ai/Yi-6B"] {
        assert!(files::is_hub_id(id), "{id}");
    }
    for path in ["./x", "../x/y", "/x", "~/x", "a/b/c", "a\\b", "x/", "a b", "", "."] {
        assert!(!files::is_hub_id(path), "{path}");
    }
}

#[test]
fn hostile_text_is_refused_without_a_panic() {
    let deep =
        |open: &str, close: &str, count: usize| format!("a = {}1{}", open.repeat(count), close.repeat(count));
    let dots = vec!["a"; 79].join(".");
    let texts = [
        deep("[", "]", 70),
        deep("[", "]", 100_000),
        deep("{a=", "}", 70),
        deep(&format!("{{{dots}="), "}", 40),
        format!("{} = 1", vec!["a"; 50_000].join(".")),
        format!("[{dots}]\n{dots} = 1"),
        "[".repeat(100_000),
        "\"".repeat(1001),
        "a = 1\n".repeat(5000),
        "a = [\n[b]\n".repeat(2000),
        "=\n".repeat(5000),
        "\u{feff}".to_owned(),
        "\u{feff}\u{feff}".to_owned(),
        "\0\0\0".to_owned(),
        "a = 1e99999999\nb = -nan\nc = 0x".to_owned(),
        "dataset = 1\nmodel = []\ntrain = [[1]]\nadapter = { lora = [] }".to_owned(),
        "[[dataset]]\n[[model]]\n[[train]]\n[[adapter.lora]]\n[[quantization.nf4]]".to_owned(),
        "[dataset]\npath = 1".to_owned(),
        "dataset = [1, {}, [], 'x']".to_owned(),
    ];
    for text in texts {
        assert!(!problems(&text, &[]).is_empty());
        assert!(!problems(SMALL, &[&text]).is_empty());
        assert!(!problems(SMALL, &[&format!("a={text}")]).is_empty());
    }
    let file = RecipeFile::parse("x", b"version = 1\nseed = \xff\xfe 3\n", &[]);
    let problems = file.finish().unwrap_err();
    let first = problems.iter().next().unwrap();
    assert_eq!(first.to_string(), "the recipe is not UTF-8 text");
    assert_eq!(first.place().line(), 2);
}

#[test]
fn windows_line_ends_and_a_byte_order_mark_are_welcome() {
    let text = format!("\u{feff}{}", SMALL.trim_start().replace('\n', "\r\n"));
    assert_eq!(good(&text, &[]), good(SMALL, &[]));
}

proptest! {
    #[test]
    fn any_text_is_read_without_a_panic(text in ".{0,200}", change in ".{0,40}") {
        let _any = read(&text, &[&change]);
    }

    #[test]
    fn any_damage_is_read_without_a_panic(at in 0..LARGE.len(), length in 0..40_usize, with in "[\\[\\]{}=\"'.,#a1\\n\\\\é]{0,6}") {
        let bytes = LARGE.as_bytes();
        let end = (at + length).min(bytes.len());
        let damaged = [&bytes[..at], with.as_bytes(), &bytes[end..]].concat();
        let mut file = RecipeFile::parse("recipe.toml", &damaged, &[]);
        file.check_files();
        if let Ok(recipe) = file.finish() {
            prop_assert_eq!(good(&recipe.to_toml(), &[]), recipe);
        }
    }
}
