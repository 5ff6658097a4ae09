//! Datasets of a hub: fetched into the cache, and trained on by their names.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use tune::assets::dataset::{Choice, resolve_dataset};
use tune::hub::{Content, Error, download};

use super::server::{COMMIT, CONVERTED, File, Hub, Trouble};
use super::{names, request};

const ROW: &str = "{\"messages\": [{\"role\": \"user\", \"content\": \"Hi.\"}, {\"role\": \"assistant\", \"content\": \"Ho.\"}]}\n";

fn rows() -> Vec<File> {
    vec![
        File::text("README.md", "# Rows"),
        File::text("rows.py", "import os"),
        File::text("data/train.jsonl", &ROW.repeat(3)),
        File::text("data/test.jsonl", ROW),
        File::text("dataset_infos.json", "{}"),
    ]
}

fn fetch(hub: &Hub, cache: &Path, split: Option<&str>) -> Result<tune::hub::Downloaded, Error> {
    let mut request = request(hub, "org/rows");
    request.content = Content::Dataset { config: None, split: split.map(str::to_owned) };
    download(&request, cache, &mut |_| {}, &|| false)
}

fn found(cache: &Path, split: Option<&str>) -> Result<Vec<String>, String> {
    let choice = Choice { config: None, split: split.map(str::to_owned) };
    let files = resolve_dataset("org/rows", &choice, cache)?;
    Ok(files.iter().map(|file| file.file_name().unwrap().to_string_lossy().into_owned()).collect())
}

fn tune(folder: &Path, cache: &Path, hub: Option<&Hub>, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tune"));
    command.args(arguments).current_dir(folder).env("HF_HUB_CACHE", cache).env("NO_COLOR", "1");
    if let Some(hub) = hub {
        command.env("HF_ENDPOINT", hub.address());
    }
    command.output().unwrap()
}

#[test]
fn rows_arrive_in_the_layout_of_the_cache_and_scripts_do_not() {
    let (hub, cache) = (Hub::new(rows()), tempfile::tempdir().unwrap());
    let downloaded = fetch(&hub, cache.path(), None).unwrap();
    let repository = cache.path().join("datasets--org--rows");
    assert_eq!(downloaded.folder, repository.join("snapshots").join(COMMIT));
    assert_eq!(names(&downloaded.folder), ["README.md", "data"]);
    assert_eq!(fs::read_to_string(repository.join("refs/main")).unwrap(), COMMIT);
    assert_eq!(found(cache.path(), None).unwrap(), ["train.jsonl"]);
    assert_eq!(found(cache.path(), Some("test")).unwrap(), ["test.jsonl"]);
}

#[test]
fn one_split_is_fetched_alone_and_goes_on_where_it_was_broken_off() {
    let files = vec![File::lfs("data/train-0.parquet", 300_000), File::lfs("data/test-0.parquet", 10)];
    let (hub, cache) = (Hub::new(files), tempfile::tempdir().unwrap());
    hub.trouble("data/train-0.parquet", Trouble::BreakAfter(100_000));
    fetch(&hub, cache.path(), Some("train")).unwrap();
    let starts = hub.starts("data/train-0.parquet");
    assert!(starts.len() > 1 && starts.iter().skip(1).all(|start| *start > 0), "{starts:?}");
    assert!(hub.starts("data/test-0.parquet").is_empty());
}

#[test]
fn other_content_is_refused() {
    let (hub, cache) = (Hub::new(rows()), tempfile::tempdir().unwrap());
    hub.trouble("data/train.jsonl", Trouble::OtherContent);
    assert!(matches!(fetch(&hub, cache.path(), None), Err(Error::Content { .. })));
    assert!(found(cache.path(), None).unwrap_err().contains("tune download org/rows --dataset"));
}

#[test]
fn a_dataset_of_scripts_is_fetched_as_the_hub_converted_it() {
    let converted =
        vec![File::lfs("default/train/0000.parquet", 2000), File::lfs("default/test/0000.parquet", 10)];
    let hub = Hub::of_dataset(vec![File::text("rows.py", "import os"), File::text("x.zip", "PK")], converted);
    let cache = tempfile::tempdir().unwrap();
    let downloaded = fetch(&hub, cache.path(), None).unwrap();
    assert_eq!(downloaded.commit, CONVERTED);
    assert_eq!(found(cache.path(), Some("test")).unwrap(), ["0000.parquet"]);
    // Where the hub has not converted it either, that is said.
    let hub = Hub::new(vec![File::text("rows.py", "import os")]);
    let error = fetch(&hub, tempfile::tempdir().unwrap().path(), None).unwrap_err();
    assert!(error.to_string().contains("no files of rows"), "{error}");
}

#[test]
fn a_recipe_names_a_dataset_of_the_hub() {
    let (hub, cache, folder) = (Hub::new(rows()), tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    assert!(tune(folder.path(), cache.path(), None, &["cp", "quickstart", "."]).status.success());
    let validate = |changes: &[&str]| {
        let mut arguments = vec!["validate", "quickstart.toml", "--json", "--set", "dataset.0.path=org/rows"];
        arguments.extend(changes.iter().flat_map(|change| ["--set", change]));
        let done = tune(folder.path(), cache.path(), None, &arguments);
        (
            done.status.code(),
            String::from_utf8(done.stdout).unwrap() + &String::from_utf8(done.stderr).unwrap(),
        )
    };
    let (code, said) = validate(&[]);
    assert_eq!(code, Some(2));
    assert!(said.contains("tune download org/rows --dataset"), "{said}");
    let done = tune(folder.path(), cache.path(), Some(&hub), &["download", "org/rows", "--dataset"]);
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    assert!(String::from_utf8_lossy(&done.stdout).contains("path = \"org/rows\""));
    let (code, said) = validate(&[]);
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("\"rows\":3"), "{said}");
    let (code, said) = validate(&["dataset.0.hub_split=test"]);
    assert_eq!((code, said.contains("\"rows\":1")), (Some(0), true), "{said}");
    let (code, said) = validate(&["dataset.0.hub_split=dev"]);
    assert_eq!((code, said.contains("there is no split")), (Some(2), true), "{said}");
    // A file of that name goes first.
    fs::create_dir(folder.path().join("org")).unwrap();
    fs::write(folder.path().join("org/rows.jsonl"), ROW).unwrap();
    let (code, said) = validate(&["dataset.0.path=org/rows.jsonl"]);
    assert_eq!((code, said.contains("\"rows\":1")), (Some(0), true), "{said}");
}
