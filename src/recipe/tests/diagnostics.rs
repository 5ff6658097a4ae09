//! Each problem's place, message and remedy.

use super::super::foreign::NOTES;
use super::super::tables;
use super::{SMALL, problems};

#[test]
fn wrong_overrides_point_at_what_was_typed() {
    assert_eq!(
        problems(
            SMALL,
            &[
                "train.learning_rate=fast",
                "train.lr=1",
                "seed",
                "=3",
                "a b=1",
                "model.base.x=1",
                "dataset.4.path=x",
                "dataset.first.path=x",
                "output_dir=2024"
            ]
        ),
        [
            "fast: `train.learning_rate`: expected a number, found a string | ",
            "lr: unknown key `lr` in `[train]` | tune calls it `learning_rate`",
            "seed: `--set seed` has no `=` | write `--set key.path=VALUE`, for example `--set train.learning_rate=1e-4`",
            ": `` is not a key | write `--set key.path=VALUE`, for example `--set train.learning_rate=1e-4`",
            "a b: `a b` is not a key | write `--set key.path=VALUE`, for example `--set train.learning_rate=1e-4`",
            "x: `model.base` is a string and has no keys | ",
            "4: `dataset` is a list | it has one entry, `dataset.0`; `dataset.1` adds another",
            "first: `dataset` is a list | it has one entry, `dataset.0`; `dataset.1` adds another",
            "2024: `output_dir`: expected a string, found an integer | put it in quotes: \"2024\"",
        ]
    );
}

/// Checks the problems of `changes` to the small recipe.
#[track_caller]
fn reports(changes: &[&str], expected: &[&str]) {
    assert_eq!(problems(SMALL, changes), expected);
}

#[test]
fn names_of_other_tools_are_translated() {
    reports(&["adapter.lora.r=8"], &["r: unknown key `r` in `[adapter.lora]` | tune calls it `rank`"]);
    reports(&["lora_r=8"], &["lora_r: unknown key `lora_r` | tune calls it `rank` in `[adapter.lora]`"]);
    reports(
        &["train.per_device_train_batch_size=1"],
        &[
            "per_device_train_batch_size: unknown key `per_device_train_batch_size` in `[train]` | tune calls it `micro_batch_size`",
        ],
    );
    reports(
        &["sequence_len=8"],
        &["sequence_len: unknown key `sequence_len` | tune calls it `max_seq_len` in `[data]`"],
    );
    reports(
        &["train.load_in_4bit=true"],
        &["load_in_4bit: unknown key `load_in_4bit` in `[train]` | tune calls it `[quantization.nf4]`"],
    );
    reports(&["lora.r=8"], &["lora: unknown table `[lora]` | write `[adapter.lora]`"]);
    reports(
        &["train.bf16=true"],
        &["bf16: unknown key `bf16` in `[train]` | tune calls it `compute_dtype` in `[model]`"],
    );
    reports(
        &["dataset.0.type=chat"],
        &["type: unknown key `type` in `[[dataset]]` | tune calls it `format`"],
    );
}

#[test]
fn misplaced_keys_are_named_with_their_table() {
    reports(
        &["train.max_seq_len=8"],
        &["max_seq_len: unknown key `max_seq_len` in `[train]` | `max_seq_len` belongs in `[data]`"],
    );
    reports(
        &["adapter.rank=8"],
        &["rank: unknown key `rank` in `[adapter]` | `rank` belongs in `[adapter.lora]`"],
    );
    reports(
        &["quantization.block_size=64"],
        &[
            "block_size: unknown key `block_size` in `[quantization]` | `block_size` belongs in `[quantization.nf4]`",
        ],
    );
    reports(
        &["data.output_dir=x"],
        &[
            "output_dir: unknown key `output_dir` in `[data]` | `output_dir` belongs at the top, above the first table",
        ],
    );
    reports(&["nf4={}"], &["nf4: unknown key `nf4` | write `[quantization.nf4]`"]);
}

#[test]
fn typing_errors_get_a_suggestion() {
    reports(
        &["train.learning_rat=1"],
        &["learning_rat: unknown key `learning_rat` in `[train]` | did you mean `learning_rate`?"],
    );
    reports(
        &["train.paking=true"],
        &["paking: unknown key `paking` in `[train]` | did you mean `packing` in `[data]`?"],
    );
    reports(
        &["quantization.nf5={}"],
        &["nf5: unknown key `nf5` in `[quantization]` | did you mean `[quantization.nf4]`?"],
    );
    reports(
        &["model.zzzzzzzz=1"],
        &[
            "zzzzzzzz: unknown key `zzzzzzzz` in `[model]` | the keys of `[model]` are `base`, `revision`, `compute_dtype`, `ignore_config_keys`, `offload`, `resident_layers`, `embeddings`",
        ],
    );
    reports(
        &[
            "train.lr_scheduler=cosin",
            "device=gpu",
            "model.compute_dtype=bfloat16",
            "dataset.0.format=prompt_completion",
        ],
        &[
            "cosin: `train.lr_scheduler`: unknown value \"cosin\" | did you mean \"cosine\"? The choices are \"constant\", \"constant_with_warmup\", \
             \"linear\", \"cosine\", \"cosine_with_min_lr\", \"warmup_stable_decay\", \"wsd\", \"inverse_sqrt\"",
            "gpu: `device`: `gpu` is not a device: an NVIDIA GPU is `cuda`, or `vulkan` without the CUDA toolkit | the choices are auto, cpu, cuda, cuda:N, vulkan, vulkan:N, metal",
            "bfloat16: `model.compute_dtype`: unknown value \"bfloat16\" | tune calls it \"bf16\"; the choices are \"auto\", \"bf16\", \"f16\", \"f32\"",
            "prompt_completion: `dataset.0.format`: unknown value \"prompt_completion\" | tune calls it \"prompt-completion\"; the choices are \"messages\", \"alpaca\", \"prompt-completion\", \"preference\", \"feedback\", \"text\", \"tokens\"",
        ],
    );
}

#[test]
fn types_and_ranges() {
    reports(
        &[
            "train.epochs='1'",
            "train.max_steps=1e3",
            "train.micro_batch_size=0",
            "adapter.lora.dropout=1",
            "adapter.lora.alpha=0",
            "data.packing='yes'",
            "data.packing='true'",
            "train.learning_rate=nan",
            "train.max_grad_norm=inf",
            "train.save_total_limit=0",
            "seed=-1",
            "data.max_seq_len=99999999999999999999999999999999999999999999",
            "quantization.nf4.block_size=96",
            "model=3",
            "version=2",
            "dataset.0.weight=0",
        ][..],
        &[
            "'1': `train.epochs`: expected a number, found a string | remove the quotes: 1",
            "1e3: `train.max_steps`: expected an integer, found a float | write it as one: 1000",
            "0: `train.micro_batch_size`: 0 is out of range | allowed: at least 1 and at most 65536",
            "1: `adapter.lora.dropout`: 1 is out of range | allowed: at least 0 and below 1",
            "0: `adapter.lora.alpha`: 0 is out of range | allowed: above 0",
            "'true': `data.packing`: expected `true` or `false`, found a string | remove the quotes: true",
            "nan: `train.learning_rate`: NaN is out of range | allowed: above 0 and at most 1",
            "inf: `train.max_grad_norm`: inf is out of range | allowed: at least 0",
            "0: `train.save_total_limit`: 0 is out of range | allowed: at least 1 and at most 1000000",
            "-1: `seed`: -1 is out of range | allowed: at least 0 and at most 9223372036854775807",
            "99999999999999999999999999999999999999999999: this integer is too large | ",
            "96: `quantization.nf4.block_size`: 96 is not a power of two | one of 64, 128, 256, 512, 1024, 2048, 4096",
            "3: `model`: expected a table, found an integer | write `[model]` on a line of its own, and its keys below",
            "2: `version`: this program reads version 1, and the recipe says 2 | use a newer release of tune",
            "0: `dataset.0.weight`: 0 is out of range | allowed: above 0 and at most 1000000",
        ],
    );
}

#[test]
fn budgets_gates_and_divergence_say_what_they_take() {
    reports(
        &[
            "train.max_time=90",
            "train.max_tokens=0",
            "train.on_divergence=ignore",
            "train.rollback_steps=5",
            "gate.max_eval_loss=0",
            "gate.eval_loss=1",
        ],
        &[
            "90: `train.max_time`: expected a time with a unit, as a string | write it as \"90s\", \"45m\", \"2h\" or \"1h30m\"",
            "0: `train.max_tokens`: 0 is out of range | allowed: at least 1 and at most 1000000000000000",
            "ignore: `train.on_divergence`: unknown value \"ignore\" | tune calls it \"skip\"; the choices are \"stop\", \"skip\", \"rollback\"",
            "rollback_steps: `train.rollback_steps` has an effect only when `on_divergence` is \"rollback\" | remove it, or set `on_divergence`",
            "0: `gate.max_eval_loss`: 0 is out of range | allowed: above 0 and at most 1000000",
            "eval_loss: unknown key `eval_loss` in `[gate]` | tune calls it `max_eval_loss`",
        ],
    );
    reports(
        &[
            "train.on_divergence=skip",
            "train.divergence_patience=2",
            "train.rollback_steps=5",
            "gate.max_eval_loss=2",
        ],
        &[
            "rollback_steps: `train.rollback_steps` has an effect only when `on_divergence` is \"rollback\" | remove it, or set `on_divergence`",
            "gate: `[gate]` limits the held-out loss, and no rows are held out | set `val_split` under `[data]`, or add a `[[dataset]]` with `split = \"validation\"`",
        ],
    );
    reports(
        &[
            "train.on_divergence=rollback",
            "train.rollback_steps=5",
            "gate.max_eval_loss=2",
            "data.val_split=0.1",
        ],
        &[],
    );
}

#[test]
fn target_modules_are_names_or_a_pattern() {
    let reports = |value: &str, expected: &str| {
        let change = format!("adapter.lora.target_modules={value}");
        let expected: Vec<_> = if expected.is_empty() { Vec::new() } else { vec![expected.to_owned()] };
        let found: Vec<_> = problems(SMALL, &[&change])
            .iter()
            .map(|problem| problem.replace("`adapter.lora.target_modules`: ", ""))
            .collect();
        assert_eq!(found, expected);
    };
    reports("all-linear", "");
    reports("['q_proj', 'model.layers.0.mlp.up_proj']", "");
    reports(r"'.*\.(q|v)_proj'", "");
    reports("all_linear", "all_linear: unknown word | did you mean \"all-linear\"?");
    reports(
        "q_proj",
        "q_proj: a string is a regular expression for whole module paths, and this one matches none | to name modules, write a list: [\"q_proj\"]",
    );
    reports(
        "'q_proj,v_proj'",
        "'q_proj,v_proj': a string is a regular expression for whole module paths, and this one matches none | to name modules, write a list: [\"q_proj\", \"v_proj\"]",
    );
    reports("[]", "[]: must not be empty | name modules, or write \"all-linear\"");
    reports(
        "['.*_proj']",
        "'.*_proj': `*` cannot be part of a module name | entries of a list are names; for a regular expression write a single string, no list",
    );
    reports(
        "'(q_proj'",
        r"'(q_proj': not a regular expression: unclosed group | the syntax is that of the regex crate; a literal dot is written \. inside '…'",
    );
    reports(
        "'a)|(b'",
        r"'a)|(b': not a regular expression: unopened group | the syntax is that of the regex crate; a literal dot is written \. inside '…'",
    );
    reports(
        "'(?!lm_head).*'",
        "'(?!lm_head).*': not a regular expression: look-around, including look-ahead and look-behind, is not supported | list the modules by name instead",
    );
    reports(
        "7",
        "7: expected \"all-linear\", a list of module names, or a regular expression, found an integer | ",
    );
}

#[test]
fn contradictions() {
    reports(
        &["train.warmup_ratio=0.1", "train.warmup_steps=3"],
        &["warmup_steps: `warmup_steps` and `warmup_ratio` both set the warm-up | keep one of them"],
    );
    reports(
        &["dataset.0.split=validation"],
        &[
            "validation: every `[[dataset]]` is held out: no rows are left to train on | add a `[[dataset]]` without `split = \"validation\"`",
        ],
    );
    reports(
        &["data.val_split=0.5", "dataset.1={path='x', format='text', split='validation'}"],
        &[
            "0.5: `val_split` and a validation dataset both hold rows out | remove `val_split`, or train on that dataset",
        ],
    );
    reports(
        &["dataset.1={path='x', format='text', split='validation', weight=2}"],
        &[
            "weight: `weight` says how often a row is trained on, and these rows are held out | remove it, or `split = \"validation\"`",
        ],
    );
    reports(
        &["dataset.0.format=tokens", "dataset.0.train_on=all"],
        &[
            "all: `train_on = \"all\"` does not apply to the format `tokens` | leave it out: the `labels` column says which tokens are supervised",
        ],
    );
    reports(
        &["dataset.0.format=alpaca", "data.train_on=assistant"],
        &[
            "assistant: `train_on = \"assistant\"` does not apply to the format `alpaca` | for `alpaca` it is \"completion\" or \"all\"; left out, each format has its own default",
        ],
    );
    reports(&["dataset.0.format=tokens", "data.train_on=assistant"], &[]);
    reports(
        &["dataset.0.fields={question='prompt', messages='conversations', instruction='x'}"],
        &[
            "question: the format `messages` has no field `question` | its fields are messages, role, content, train, system, tools, documents, chat_template_kwargs",
            "instruction: the format `messages` has no field `instruction` | its fields are messages, role, content, train, system, tools, documents, chat_template_kwargs",
        ],
    );
    reports(
        &["dataset.0.format=prompt-completion", "dataset.0.fields={question='prompt'}"],
        &[
            "question: the format `prompt-completion` has no field `question` | our name comes first: { prompt = \"question\" }",
        ],
    );
    reports(
        &["quantization={}"],
        &[
            "{}: `[quantization]` does not say which kind | write `[quantization.nf4]`, or leave the table out to train a plain LoRA on the dense base",
        ],
    );
}

#[test]
fn prompts_are_made_of_the_fields_of_their_format() {
    reports(&["dataset.0.chat=true"], &["true: `chat` does not apply to the format `messages` | remove it"]);
    reports(
        &["dataset.0.format=alpaca", "dataset.0.prompt='{question} {input} {}'"],
        &[
            "'{question} {input} {}': the format `alpaca` has no field `question` for a prompt | its fields are instruction, input",
        ],
    );
    reports(
        &["dataset.0.format=prompt-completion", "dataset.0.prompt_without_input='x'"],
        &["'x': `prompt_without_input` does not apply to the format `prompt-completion` | remove it"],
    );
    reports(
        &["dataset.0.format=prompt-completion", "dataset.0.prompt='Q: {prompt}'", "dataset.0.chat=true"],
        &[],
    );
}

#[test]
fn missing_keys_are_reported_at_their_tables() {
    assert_eq!(
        problems("[train]\n[[dataset]]\n[model]\n", &[]),
        [
            "[train]: missing key `train.learning_rate` | write `learning_rate = 2e-4` under `[train]`",
            "[train]: nothing says when training ends: missing key `train.epochs` or `train.max_steps` | write `epochs = 1` or `max_steps = 1000` under `[train]`",
            "[[dataset]]: missing key `dataset.path` | write `path = \"data/train.jsonl\"` under `[[dataset]]`",
            "[[dataset]]: missing key `dataset.format` | write `format = \"messages\"` under `[[dataset]]`",
            "[model]: missing key `model.base` | write `base = \"Qwen/Qwen3-0.6B\"` under `[model]`",
            ": missing key `version` | write `version = 1` at the top, above the first table",
            ": missing key `output_dir` | write `output_dir = \"runs/my-first-run\"` at the top, above the first table",
        ]
    );
    let nothing = problems("", &[]);
    assert_eq!(nothing.len(), 6);
    assert!(
        nothing.contains(
            &": the recipe has no dataset | add a `[[dataset]]` with `path` and `format`".to_owned()
        )
    );
}

#[test]
fn a_syntax_error_is_reported_once_and_hides_no_other_problem() {
    let slip = |from: &str, to: &str| problems(&SMALL.replace(from, to), &["adapter.lora.rank=0"]);
    let rank = "0: `adapter.lora.rank`: 0 is out of range | allowed: at least 1 and at most 65536";
    let one = |from: &str, to: &str, expected: &str| assert_eq!(slip(from, to), [expected, rank], "{to}");
    one("2e-4", "", ": a value is missing | leave the key out to get its default");
    one("2e-4", "2e-4x", "x: not a number | numbers are written like 10, 0.5 or 2e-4");
    one("epochs = 1", "epochs = None", "None: TOML has no `None` | leave the key out to get its default");
    one("epochs = 1", "epochs = True", "True: `True` is not TOML | write `true`");
    one("epochs = 1", "epochs: 1", ":: a key and its value are separated by `=` | write `key = value`");
    one("\"messages\"", "messages", "messages: a string needs quotes | write `\"messages\"`");
    one("\"train.jsonl\"", r"C:\data\x", r"C:\data\x: a string needs quotes | write `'C:\data\x'`");
    one(
        "\"train.jsonl\"",
        r#""C:\data\x""#,
        ": a backslash in \"…\" begins an escape | put a string with backslashes in single quotes: '…'",
    );
    one("\"train.jsonl\"", "[\"train.jsonl\"", "[: this array is never closed | add the missing `]`");
    one("\"train.jsonl\"", "{ a = 1", "{: this inline table is never closed | add the missing `}`");
    one("epochs = 1", "epochs = 1\nepochs = 2", "epochs: `epochs` is written twice | keep one of them");
    one("[train]", "[model]\n[train]", "model: `model` is written twice | keep one of them");
    one("[train]", "[train", ": unclosed table, expected `]` | ");
}

#[test]
fn every_foreign_name_has_one_meaning() {
    let tables = tables();
    let declared =
        tables.iter().flat_map(|table| table.keys.iter().flat_map(|key| key.also).chain(table.also));
    let mut names: Vec<_> = declared.chain(NOTES.iter().flat_map(|(names, _)| *names)).copied().collect();
    let count = names.len();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), count, "a name stands in two places");
    assert!(count > 200, "{count}");
}
