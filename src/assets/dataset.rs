//! Datasets of a hub in the local cache, and the files among which a recipe chooses. Never opens the network.
//!
//! Layout of the cache, as huggingface_hub makes it: `datasets--{org}--{name}/snapshots/{commit}/…`. What belongs to which
//! configuration and split, the head of the dataset's README says; without one the names of files and folders do, as the
//! `datasets` library reads them. Loading scripts are never read.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use super::hub::{is_hub_id, snapshot_of};

/// The branch on which the hub keeps every dataset as Parquet.
pub const CONVERTED: &str = "refs/convert/parquet";
/// Files of rows, by their extension.
const DATA: [&str; 7] = [".parquet", ".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".arrow"];
/// Files that describe a dataset.
const ABOUT: [&str; 4] = ["dataset_infos.json", "dataset_info.json", "state.json", "dataset_dict.json"];
/// Words in names of files and folders that mean a split.
const SPLITS: [(&str, &[&str]); 3] = [
    ("train", &["train", "training"]),
    ("validation", &["validation", "valid", "val", "dev"]),
    ("test", &["test", "testing", "eval", "evaluation"]),
];
/// Deepest folder of a dataset.
const DEEPEST: usize = 8;
/// Longest README read, in bytes.
const LONGEST_README: u64 = 4 << 20;

/// Which files of a dataset are wanted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Choice {
    /// A configuration, also called a subset; `None`: the only one, or `default`.
    pub config: Option<String>,
    /// A split; `None`: the only one, or `train`.
    pub split: Option<String>,
}

/// Whether a path of a recipe is the name of a dataset of a hub: `organization/name`, without a file's extension.
pub fn is_dataset_id(path: &str) -> bool {
    is_hub_id(path) && path.contains('/') && !DATA.iter().any(|ending| path.to_lowercase().ends_with(ending))
}

/// Whether a file of a repository holds rows.
pub fn is_data_file(path: &str) -> bool {
    let (lower, name) = (path.to_lowercase(), path.rsplit('/').next().unwrap_or(path));
    DATA.iter().any(|ending| lower.ends_with(ending))
        && !ABOUT.contains(&name)
        && !path.split('/').any(|part| part.starts_with('.'))
}

/// The files of `choice` in a dataset of the cache, sorted.
///
/// # Errors
/// The dataset is not in the cache, or has no such files; the message names the command that downloads it.
pub fn resolve_dataset(id: &str, choice: &Choice, hub_cache: &Path) -> Result<Vec<PathBuf>, String> {
    let repository = hub_cache.join(format!("datasets--{}", id.replace('/', "--")));
    let fetch = format!("download it with `tune download {id} --dataset`");
    let missing = || {
        format!("there is no file or folder `{id}`, and no dataset of that name in the hub cache; {fetch}")
    };
    let mut reason = missing();
    for (revision, is_converted) in [("main", false), (CONVERTED, true)] {
        let Some(snapshot) = snapshot_of(&repository, revision) else { continue };
        let files = files_in(&snapshot);
        if files.is_empty() {
            continue;
        }
        match choose(&files, readme(&snapshot).as_deref(), choice, is_converted) {
            Ok(files) => return Ok(files.iter().map(|file| snapshot.join(file)).collect()),
            Err(error) => reason = format!("`{id}`: {error}; {fetch}"),
        }
    }
    Err(reason)
}

/// The files of `choice` in a folder with a dataset.
///
/// # Errors
/// It has no such files.
pub fn files_of_folder(folder: &Path, choice: &Choice) -> Result<Vec<PathBuf>, String> {
    let files = choose(&files_in(folder), readme(folder).as_deref(), choice, false)?;
    Ok(files.iter().map(|file| folder.join(file)).collect())
}

/// The files of `choice` among the paths of a repository; `is_converted`: of the branch [`CONVERTED`].
///
/// # Errors
/// There are none, or several configurations and none is chosen; the message lists what there is.
pub fn choose(
    paths: &[String],
    readme: Option<&str>,
    choice: &Choice,
    is_converted: bool,
) -> Result<Vec<String>, String> {
    let mut data: Vec<&str> = paths.iter().map(String::as_str).filter(|path| is_data_file(path)).collect();
    data.sort_unstable();
    let mut configs = readme.map(|text| declared(text, &data)).unwrap_or_default();
    if configs.is_empty() {
        for path in &data {
            let parts: Vec<&str> = path.split('/').collect();
            let (config, split) = match (is_converted, parts.as_slice()) {
                (true, [config, split, _]) => (*config, split.trim_start_matches("partial-").to_owned()),
                _ => ("default", split_of(path).unwrap_or("train").to_owned()),
            };
            configs.entry(config.to_owned()).or_default().entry(split).or_default().push((*path).to_owned());
        }
    }
    let of = |kind: &str, wanted: &Option<String>, usual: &str, names: Vec<&String>| match (
        wanted,
        names.as_slice(),
    ) {
        (Some(wanted), names) if names.contains(&wanted) => Ok(wanted.clone()),
        (None, [only]) => Ok((*only).clone()),
        (None, names) if names.iter().any(|name| *name == usual) => Ok(usual.to_owned()),
        (_, []) => Err("it has no files of rows".to_owned()),
        (wanted, names) => {
            let names: Vec<String> = names.iter().map(|name| format!("\"{name}\"")).collect();
            let missing = wanted
                .as_ref()
                .map_or_else(String::new, |wanted| format!("there is no {kind} \"{wanted}\"; "));
            Err(format!("{missing}set `hub_{kind}` to one of {}", names.join(", ")))
        }
    };
    let config = of("config", &choice.config, "default", configs.keys().collect())?;
    let splits = configs.remove(&config).unwrap_or_default();
    let split = of("split", &choice.split, "train", splits.keys().collect())?;
    Ok(splits.get(&split).cloned().unwrap_or_default())
}

/// The split that a path's words name: those of the file first, then those of its folders.
fn split_of(path: &str) -> Option<&'static str> {
    path.rsplit('/').find_map(|part| {
        let mut words =
            part.split(|character: char| !character.is_ascii_alphanumeric()).map(str::to_lowercase);
        words.find_map(|word| {
            SPLITS.iter().find(|(_, names)| names.contains(&word.as_str())).map(|(split, _)| *split)
        })
    })
}

/// Configuration, split and files that the head of a README declares under `configs`, in the layout that the hub writes.
fn declared(readme: &str, data: &[&str]) -> BTreeMap<String, BTreeMap<String, Vec<String>>> {
    let mut configs: BTreeMap<String, BTreeMap<String, Vec<String>>> = BTreeMap::new();
    let head =
        readme.strip_prefix("---").and_then(|rest| rest.split_once("\n---")).map_or("", |(head, _)| head);
    let lines = head.lines().skip_while(|line| line.trim_end() != "configs:").skip(1);
    let (mut config, mut split) = ("default".to_owned(), "train".to_owned());
    let mut in_paths = false;
    for line in lines.take_while(|line| line.is_empty() || line.starts_with([' ', '-', '#'])) {
        let line = line.trim();
        let line = line.trim_start_matches("- ").trim();
        let (key, value) = match line.split_once(':') {
            Some((key, value)) if value.is_empty() || value.starts_with(' ') => (key, value.trim()),
            _ => ("", line),
        };
        let value = value.trim_matches(['"', '\'']);
        let mut add = |pattern: &str| {
            let Ok(pattern) = glob::Pattern::new(pattern) else { return };
            let files = data.iter().filter(|path| pattern.matches(path)).map(|path| (*path).to_owned());
            configs.entry(config.clone()).or_default().entry(split.clone()).or_default().extend(files);
        };
        match (key, value) {
            ("config_name", name) => (config, split, in_paths) = (name.to_owned(), "train".to_owned(), false),
            ("split", name) => (split, in_paths) = (name.to_owned(), false),
            ("path" | "data_files", "") => in_paths = true,
            ("path" | "data_files", pattern) => add(pattern),
            ("", pattern) if in_paths && !pattern.is_empty() => add(pattern),
            _ => in_paths = false,
        }
    }
    for splits in configs.values_mut() {
        splits.retain(|_, files| !files.is_empty());
    }
    configs.retain(|_, splits| !splits.is_empty());
    configs
}

fn readme(folder: &Path) -> Option<String> {
    let path = folder.join("README.md");
    let is_small = fs::metadata(&path).is_ok_and(|about| about.len() <= LONGEST_README);
    is_small.then(|| fs::read_to_string(path).ok())?
}

/// The files under a folder, as paths with `/`; links are followed to files alone.
fn files_in(folder: &Path) -> Vec<String> {
    fn walk(folder: &Path, name: &str, depth: usize, files: &mut Vec<String>) {
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            let Ok(part) = entry.file_name().into_string() else { continue };
            let name = if name.is_empty() { part } else { format!("{name}/{part}") };
            match entry.file_type() {
                Ok(kind) if kind.is_dir() && depth < DEEPEST => walk(&entry.path(), &name, depth + 1, files),
                Ok(kind) if !kind.is_dir() && entry.path().is_file() => files.push(name),
                _ => {}
            }
        }
    }
    let mut files = Vec::new();
    walk(folder, "", 0, &mut files);
    files
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chosen(
        paths: &[&str],
        readme: Option<&str>,
        config: Option<&str>,
        split: Option<&str>,
    ) -> Result<Vec<String>, String> {
        let paths: Vec<String> = paths.iter().map(|path| (*path).to_owned()).collect();
        let choice = Choice { config: config.map(str::to_owned), split: split.map(str::to_owned) };
        choose(&paths, readme, &choice, false)
    }

    #[test]
    fn names_tell_the_split() {
        let paths = [
            "data/train-00001-of-2.parquet",
            "data/train-00000-of-2.parquet",
            "data/dev.parquet",
            "README.md",
        ];
        assert_eq!(
            chosen(&paths, None, None, None).unwrap(),
            ["data/train-00000-of-2.parquet", "data/train-00001-of-2.parquet"]
        );
        assert_eq!(chosen(&paths, None, None, Some("validation")).unwrap(), ["data/dev.parquet"]);
        assert_eq!(chosen(&["rows.jsonl"], None, None, None).unwrap(), ["rows.jsonl"]);
        assert_eq!(chosen(&["test/a.csv"], None, None, None).unwrap(), ["test/a.csv"]);
        let error = chosen(&paths, None, None, Some("tests")).unwrap_err();
        assert_eq!(error, "there is no split \"tests\"; set `hub_split` to one of \"train\", \"validation\"");
        for none in [&["load.py", "dataset_infos.json"][..], &[".cache/train.json"], &[]] {
            assert_eq!(chosen(none, None, None, None).unwrap_err(), "it has no files of rows");
        }
    }

    #[test]
    fn the_head_of_the_readme_goes_first() {
        let readme = "---\nlicense: mit\nconfigs:\n- config_name: main\n  data_files:\n  - split: train\n    path: main/a-*\n  \
                      - split: test\n    path:\n    - \"main/b.parquet\"\n- config_name: socratic\n  data_files: s/*.jsonl\n\
                      tags:\n- x\n---\n# A dataset\n";
        let paths = ["main/a-1.parquet", "main/a-2.parquet", "main/b.parquet", "s/x.jsonl"];
        assert_eq!(
            chosen(&paths, Some(readme), Some("main"), None).unwrap(),
            ["main/a-1.parquet", "main/a-2.parquet"]
        );
        assert_eq!(chosen(&paths, Some(readme), Some("main"), Some("test")).unwrap(), ["main/b.parquet"]);
        assert_eq!(chosen(&paths, Some(readme), Some("socratic"), None).unwrap(), ["s/x.jsonl"]);
        let error = chosen(&paths, Some(readme), None, None).unwrap_err();
        assert_eq!(error, "set `hub_config` to one of \"main\", \"socratic\"");
    }

    #[test]
    fn a_converted_dataset_has_its_configuration_and_split_as_folders() {
        let paths = ["en/train/0000.parquet", "en/test/0000.parquet", "de/partial-train/0000.parquet"]
            .map(String::from);
        let choice = Choice { config: Some("de".into()), split: None };
        assert_eq!(choose(&paths, None, &choice, true).unwrap(), ["de/partial-train/0000.parquet"]);
    }

    #[test]
    fn ids_are_no_files() {
        assert!(is_dataset_id("openai/gsm8k"));
        for path in ["data/train.jsonl", "train.jsonl", "gsm8k", "a/b/c", "data/*.parquet"] {
            assert!(!is_dataset_id(path), "{path}");
        }
    }
}
