//! Every recipe that is shipped, and what people see when theirs is wrong.

#![expect(clippy::unwrap_used, clippy::panic, reason = "a test whose footing gives way should stop there")]

use std::fs;
use std::path::{Path, PathBuf};

use miette::{GraphicalReportHandler, GraphicalTheme, NarratableReportHandler};
use serde_json::Value as Json;
use tune::recipe::{Error, RecipeFile};

/// The recipes in `folder` and below.
fn recipes_below(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(recipes_below(&path));
        } else if path.extension().is_some_and(|extension| extension == "toml") {
            found.push(path);
        }
    }
    found.sort();
    found
}

#[test]
fn every_shipped_recipe_is_valid_and_opens_with_its_command() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let recipes = recipes_below(&root.join("recipes"));
    for path in &recipes {
        let name = path.strip_prefix(root).unwrap().to_str().unwrap().replace('\\', "/");
        let text = fs::read_to_string(path).unwrap();
        let command = text.lines().next().unwrap().strip_prefix("# ").unwrap();
        let overrides = command
            .strip_prefix("tune run ")
            .and_then(|rest| rest.strip_prefix(name.as_str()))
            .unwrap_or_else(|| panic!("{name} must open with the command that runs it, not with: {command}"));
        let overrides: Vec<_> =
            overrides.split_whitespace().filter(|word| *word != "--set").map(str::to_owned).collect();
        for overrides in [Vec::new(), overrides] {
            match RecipeFile::parse(&name, text.as_bytes(), &overrides).finish() {
                Ok(recipe) => {
                    let resolved = recipe.to_toml();
                    let again = RecipeFile::parse(&name, resolved.as_bytes(), &[]).finish().unwrap();
                    assert_eq!(again, recipe, "{name}");
                }
                Err(problems) => panic!("{}", graphical(&problems)),
            }
        }
    }
    assert_eq!(recipes.len(), 13, "a recipe was added or lost: {recipes:#?}");
}

/// As a terminal shows it, without colour.
fn graphical(problem: &dyn miette::Diagnostic) -> String {
    let mut text = String::new();
    GraphicalReportHandler::new_themed(GraphicalTheme::unicode_nocolor())
        .with_width(100)
        .render_report(&mut text, problem)
        .unwrap();
    text.lines().map(str::trim_end).collect::<Vec<_>>().join("\n")
}

/// As a pipe or a screen reader gets it.
fn plain(problem: &dyn miette::Diagnostic) -> String {
    let mut text = String::new();
    NarratableReportHandler::new().render_report(&mut text, problem).unwrap();
    text
}

const NASTY: &str = "\
# Ärger\u{301}: ten problems, a tab, and letters wider than one column.
version = 1
output_dir = \"läufe/猫\"
sede = 7

[model]
base = \"./no-such-folder\"
dtype = \"bfloat16\"

[adapter.lora]
\tlora_r = 8
\tdropout = 1.5
\ttarget_modules = \"(q_proj|v_proj\"

[data]
train_on = \"completion\"   # 猫 before the tab\t
max_seq_len = \"2048\"
chat_template = \"none.jinja\"

[[dataset]]
path = \"no/such/*.jsonl\"
format = \"text\"
fields = { text = 3 }

[train]
warmup_ratio = 0.03
warmup_steps = 10
learning_rate = fast
";

fn nasty(overrides: &[&str]) -> tune::document::Problems {
    let overrides: Vec<_> = overrides.iter().map(|text| (*text).to_owned()).collect();
    let mut file = RecipeFile::parse("recipe.toml", NASTY.as_bytes(), &overrides);
    file.check_files();
    file.finish().unwrap_err()
}

#[test]
fn many_problems_are_told_together() {
    insta::assert_snapshot!("many_problems", graphical(&nasty(&[])));
}

#[test]
fn many_problems_without_a_terminal() {
    insta::assert_snapshot!("many_problems_plain", plain(&nasty(&[])));
}

#[test]
fn problems_of_overrides_quote_the_command_line() {
    let good = "version = 1\noutput_dir = \"x\"\n[model]\nbase = \"a/b\"\n[[dataset]]\npath = \"c\"\nformat = \"text\"\n\
        [train]\nmax_steps = 1\nlearning_rate = 1e-4\nwarmup_ratio = 0.1\n";
    let overrides =
        ["train.learning_rate=fast", "train.warmup_steps=3", "train.batch_size=3"].map(str::to_owned);
    let problems = RecipeFile::parse("recipe.toml", good.as_bytes(), &overrides).finish().unwrap_err();
    insta::assert_snapshot!("overrides", graphical(&problems));
}

#[test]
fn files_that_exist_are_found_and_others_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    fs::create_dir(at("base")).unwrap();
    fs::create_dir(at("adapter")).unwrap();
    fs::write(at("a.jsonl"), "").unwrap();
    fs::write(at("literal[1].jsonl"), "").unwrap();
    let text = format!(
        "version = 1\noutput_dir = '{}'\n[model]\nbase = '{}'\nrevision = 'main'\n[adapter.lora]\ninit_from = '{}'\n\
         [train]\nmax_steps = 1\nlearning_rate = 1e-4\n[[dataset]]\npath = '{}'\nformat = 'text'\n\
         [[dataset]]\npath = '{}'\nformat = 'text'\n[[dataset]]\npath = '{}'\nformat = 'text'\n\
         [[dataset]]\npath = '{}'\nformat = 'text'\n[[dataset]]\npath = '{}'\nformat = 'text'\n",
        at("a.jsonl"),
        at("base"),
        at("adapter"),
        at("a.jsonl"),
        at("literal[1].jsonl"),
        at("*.jsonl"),
        at("*.parquet"),
        at("base"),
    );
    let mut file = RecipeFile::parse("recipe.toml", text.as_bytes(), &[]);
    assert!(file.problems().is_empty());
    file.check_files();
    let problems = file.finish().unwrap_err();
    let told: Vec<_> = problems.iter().map(|problem| problem.to_string().replace(&at(""), "")).collect();
    assert_eq!(
        told,
        [
            "a.jsonl is a file, and the run needs a folder",
            "`revision` belongs to a hub id, and `base` is a folder",
            "adapter has no adapter_config.json",
            "no file matches *.parquet",
            "base is a folder",
        ]
    );
}

#[test]
fn a_recipe_that_cannot_be_read_says_why() {
    let folder = tempfile::tempdir().unwrap();
    let missing = folder.path().join("recipe.toml");
    let error = RecipeFile::open(&missing, &[]).unwrap_err();
    assert!(matches!(error, Error::Unreadable { .. }), "{error}");
    assert!(error.to_string().contains("recipe.toml"), "{error}");
    assert!(RecipeFile::open(folder.path(), &[]).unwrap_err().to_string().contains("it is a folder"));
    let large = folder.path().join("model.safetensors");
    fs::write(&large, vec![b'x'; (1 << 20) + 1]).unwrap();
    assert!(matches!(RecipeFile::open(&large, &[]).unwrap_err(), Error::TooLarge { .. }));
}

/// What is wrong with `value` under the few words of JSON schema that ours uses.
fn violation(schema: &Json, value: &Json, path: &str) -> Option<String> {
    let wrong = |what: &str| Some(format!("{path}: {value} against {what} {}", schema[what]));
    let number = value.as_f64();
    for (word, bound) in schema.as_object().unwrap() {
        let fits = match word.as_str() {
            "type" => match bound.as_str().unwrap() {
                "object" => value.is_object(),
                "array" => value.is_array(),
                "string" => value.is_string(),
                "boolean" => value.is_boolean(),
                "integer" => value.is_i64() || value.is_u64(),
                "number" => value.is_number(),
                other => panic!("{other}"),
            },
            "const" => value == bound,
            "enum" => bound.as_array().unwrap().contains(value),
            "minimum" => number.unwrap() >= bound.as_f64().unwrap(),
            "maximum" => number.unwrap() <= bound.as_f64().unwrap(),
            "exclusiveMinimum" => number.unwrap() > bound.as_f64().unwrap(),
            "exclusiveMaximum" => number.unwrap() < bound.as_f64().unwrap(),
            "minLength" => value.as_str().unwrap().len() as u64 >= bound.as_u64().unwrap(),
            "minItems" => value.as_array().unwrap().len() as u64 >= bound.as_u64().unwrap(),
            "pattern" => value
                .as_str()
                .is_none_or(|text| regex::Regex::new(bound.as_str().unwrap()).unwrap().is_match(text)),
            "anyOf" => bound.as_array().unwrap().iter().any(|one| violation(one, value, path).is_none()),
            "required" => {
                bound.as_array().unwrap().iter().all(|key| value.get(key.as_str().unwrap()).is_some())
            }
            "$schema"
            | "title"
            | "description"
            | "default"
            | "properties"
            | "items"
            | "additionalProperties" => true,
            other => panic!("the schema says `{other}`, which this test does not know"),
        };
        if !fits {
            return wrong(word);
        }
    }
    if let Some(entries) = value.as_object() {
        for (key, value) in entries {
            let path = format!("{path}.{key}");
            let inner = schema["properties"].get(key).or_else(|| schema.get("additionalProperties"));
            match inner {
                Some(Json::Bool(false)) | None => return Some(format!("{path}: no such key")),
                Some(inner) => {
                    if let Some(wrong) = violation(inner, value, &path) {
                        return Some(wrong);
                    }
                }
            }
        }
    }
    let items = value.as_array().into_iter().flatten().enumerate();
    items.filter_map(|(index, item)| violation(schema.get("items")?, item, &format!("{path}.{index}"))).next()
}

fn schema_violation(text: &str) -> Option<String> {
    let toml: toml::Value = toml::from_str(text).unwrap();
    violation(&tune::recipe::schema(), &serde_json::to_value(toml).unwrap(), "recipe")
}

#[test]
fn every_shipped_recipe_fits_the_schema_as_written_and_resolved() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    for path in recipes_below(&root.join("recipes")) {
        let text = fs::read_to_string(&path).unwrap();
        assert_eq!(schema_violation(&text), None, "{}", path.display());
        let resolved = RecipeFile::parse("recipe", text.as_bytes(), &[]).finish().unwrap().to_toml();
        assert_eq!(schema_violation(&resolved), None, "{}", path.display());
    }
}

#[test]
fn the_schema_refuses_what_the_reader_refuses() {
    let good = "version = 1\noutput_dir = \"x\"\n[model]\nbase = \"a/b\"\n[[dataset]]\npath = \"c\"\nformat = \"text\"\n\
        [train]\nmax_steps = 1\nlearning_rate = 1e-4\nmax_time = \"1h30m\"\nmemory_budget = \"12 GiB\"\n";
    assert_eq!(schema_violation(good), None);
    for (from, to) in [
        ("version = 1", "version = 2"),
        ("version = 1", "version = 1\nsede = 1"),
        ("version = 1", "version = 1\ndevice = \"gpu\""),
        ("\"text\"", "\"chat\""),
        ("max_steps = 1", "max_steps = 0"),
        ("max_steps = 1", "max_steps = \"1\""),
        ("1e-4", "1.5"),
        ("learning_rate = 1e-4\n", ""),
        ("\"1h30m\"", "\"90\""),
        ("\"12 GiB\"", "\"12\""),
        ("[train]", "[adapter.lora]\ndropout = 1.0\n[train]"),
        ("[train]", "[adapter.lora]\ntarget_modules = []\n[train]"),
        ("[train]", "[adapter.lora]\nrank_pattern = { q_proj = 0 }\n[train]"),
        ("[train]", "[quantization.nf4]\nblock_size = 96\n[train]"),
        ("[train]", "[quantization.nf5]\n[train]"),
    ] {
        let changed = good.replace(from, to);
        assert_ne!(changed, good);
        assert!(schema_violation(&changed).is_some(), "{to}");
        assert!(RecipeFile::parse("recipe", changed.as_bytes(), &[]).finish().is_err(), "{to}");
    }
}

#[test]
fn every_key_has_a_meaning_and_says_what_its_absence_means() {
    let mut count = 0;
    for table in tune::recipe::tables() {
        assert!(table.meaning.ends_with('.'), "`{}`: {}", table.path, table.meaning);
        for key in &table.keys {
            let sentence = |text: &str| {
                text.len() > 8 && text.ends_with('.') && text.len() < 140 && !text.contains('\n')
            };
            assert!(sentence(key.meaning), "`{}`: {}", key.path, key.meaning);
            assert_ne!(key.absence, tune::document::Absence::Means(""), "`{}`", key.path);
            count += 1;
        }
    }
    assert!(count >= 58, "{count}");
}

#[test]
fn the_page_of_keys_is_as_tune_prints_it() {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("recipes/KEYS.md");
    let printed =
        std::process::Command::new(env!("CARGO_BIN_EXE_tune")).args(["keys", "--markdown"]).output().unwrap();
    assert!(printed.status.success());
    let printed = String::from_utf8(printed.stdout).unwrap();
    let is_current = fs::read_to_string(&page).unwrap_or_default().replace("\r\n", "\n") == printed;
    assert!(is_current, "recipes/KEYS.md is not current: tune keys --markdown > recipes/KEYS.md");
}
