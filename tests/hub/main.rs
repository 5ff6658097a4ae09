//! `tune download` against a hub on loopback that answers as the real one does, and as it should not: it stalls,
//! breaks off, lies about length and content, and sends the token's bearer elsewhere.

#![expect(clippy::unwrap_used, reason = "helpers of tests stop where they fail")]

mod datasets;
mod server;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use server::{File, Hub, Trouble};
use tempfile::TempDir;
use tune::assets::resolve_base;
use tune::hub::{Downloaded, Error, Patience, Request, Token, download};

fn request(hub: &Hub, model: &str) -> Request {
    let mut request = Request::new(model, &hub.address(), Token::new("hf_secret")).unwrap();
    request.patience =
        Patience { silence: Duration::from_millis(400), attempts: 3, pause: Duration::from_millis(5) };
    request
}

fn fetch(hub: &Hub, cache: &Path) -> Result<Downloaded, Error> {
    download(&request(hub, "org/model"), cache, &mut |_| {}, &|| false)
}

fn model() -> Vec<File> {
    vec![
        File::text("config.json", "{\"model_type\": \"llama\"}"),
        File::text("README.md", ""),
        File::lfs("model.safetensors", 300_000),
        File::lfs("consolidated.safetensors", 10),
        File::lfs("pytorch_model.bin", 10),
        File::text("modeling_x.py", "import os"),
    ]
}

fn repository(cache: &TempDir) -> PathBuf {
    cache.path().join("models--org--model")
}

fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[test]
fn a_model_arrives_in_the_layout_of_the_cache() {
    let (hub, cache) = (Hub::new(model()), tempfile::tempdir().unwrap());
    let mut seen = Vec::new();
    let found = download(&request(&hub, "org/model"), cache.path(), &mut |event| seen.push(event), &|| false)
        .unwrap();
    assert_eq!(found.commit, server::COMMIT);
    assert_eq!(names(&found.folder), ["README.md", "config.json", "model.safetensors"]);
    assert_eq!(fs::read_to_string(repository(&cache).join("refs/main")).unwrap(), server::COMMIT);
    assert_eq!(fs::read(found.folder.join("model.safetensors")).unwrap(), hub.content("model.safetensors"));
    assert!(names(&repository(&cache).join("blobs")).iter().all(|name| !name.ends_with(".incomplete")));
    let last = seen.last().unwrap();
    assert!(last.weights && last.done == last.total && last.total == 300_000, "{last:?}");
    #[cfg(unix)]
    {
        let link = fs::read_link(found.folder.join("config.json")).unwrap();
        assert!(link.starts_with("../../blobs"), "{}", link.display());
    }
    // What training will look for is what lies there.
    let base = resolve_base("org/model", None, cache.path()).unwrap();
    assert_eq!(base.folder, found.folder);

    // A second time nothing but the listing and the checksums is asked for.
    let asked = hub.bodies();
    fetch(&hub, cache.path()).unwrap();
    assert_eq!(hub.bodies(), asked + 1);
}

#[test]
fn a_connection_that_breaks_or_stalls_is_taken_up_where_it_was() {
    for trouble in [Trouble::BreakAfter(70_000), Trouble::StallAfter(70_000)] {
        let (hub, cache) = (Hub::new(model()), tempfile::tempdir().unwrap());
        hub.trouble("model.safetensors", trouble);
        let found = fetch(&hub, cache.path()).unwrap();
        assert_eq!(
            fs::read(found.folder.join("model.safetensors")).unwrap(),
            hub.content("model.safetensors")
        );
        let starts = hub.starts("model.safetensors");
        assert_eq!(starts[0], 0, "{starts:?}");
        assert!(starts.len() >= 4 && starts.is_sorted() && starts[1] > 0, "{trouble:?}: {starts:?}");
    }
}

#[test]
fn what_an_earlier_process_left_is_gone_on_with() {
    let (hub, cache) = (Hub::new(model()), tempfile::tempdir().unwrap());
    let blobs = repository(&cache).join("blobs");
    fs::create_dir_all(&blobs).unwrap();
    let partial = blobs.join(format!("{}.incomplete", hub.etag("model.safetensors")));
    fs::write(&partial, &hub.content("model.safetensors")[..200_000]).unwrap();
    fetch(&hub, cache.path()).unwrap();
    assert_eq!(hub.starts("model.safetensors"), [200_000]);
    assert!(!partial.exists());
}

#[test]
fn a_server_without_ranges_is_read_from_the_beginning() {
    let (hub, cache) = (Hub::new(model()), tempfile::tempdir().unwrap());
    let blobs = repository(&cache).join("blobs");
    fs::create_dir_all(&blobs).unwrap();
    let partial = blobs.join(format!("{}.incomplete", hub.etag("model.safetensors")));
    fs::write(&partial, [7; 1000]).unwrap();
    hub.trouble("model.safetensors", Trouble::IgnoreRange);
    let found = fetch(&hub, cache.path()).unwrap();
    assert_eq!(fs::read(found.folder.join("model.safetensors")).unwrap(), hub.content("model.safetensors"));
}

#[test]
fn a_wrong_range_never_ends_up_in_a_file() {
    let (hub, cache) = (Hub::new(model()), tempfile::tempdir().unwrap());
    let blobs = repository(&cache).join("blobs");
    fs::create_dir_all(&blobs).unwrap();
    let partial = blobs.join(format!("{}.incomplete", hub.etag("model.safetensors")));
    fs::write(&partial, &hub.content("model.safetensors")[..1000]).unwrap();
    hub.trouble("model.safetensors", Trouble::ShiftRange);
    let found = fetch(&hub, cache.path()).unwrap();
    assert_eq!(fs::read(found.folder.join("model.safetensors")).unwrap(), hub.content("model.safetensors"));
}

#[test]
fn lies_about_content_and_length_are_found_out() {
    for (file, trouble, expected) in [
        ("model.safetensors", Trouble::OtherContent, "SHA-256"),
        ("config.json", Trouble::OtherContent, "Git SHA-1"),
        ("model.safetensors", Trouble::Longer, "more than the announced 300000 bytes"),
        ("model.safetensors", Trouble::Shorter, "attempts without progress"),
        ("model.safetensors", Trouble::NoChecksum, "no checksum"),
        ("model.safetensors", Trouble::Status(500), "attempts without progress"),
        ("model.safetensors", Trouble::Status(403), "the token does not give access"),
    ] {
        let (hub, cache) = (Hub::new(model()), tempfile::tempdir().unwrap());
        hub.trouble(file, trouble);
        let error = fetch(&hub, cache.path()).unwrap_err().to_string();
        assert!(error.contains(expected), "{trouble:?}: {error}");
        assert!(!error.contains("hf_secret") && !error.contains("blobs=true"), "{error}");
        assert!(!repository(&cache).join("refs/main").exists(), "{trouble:?}: a revision that is not whole");
        assert!(resolve_base("org/model", None, cache.path()).is_err());
        // Once the hub is honest again, the same command comes through.
        hub.honest();
        let found = fetch(&hub, cache.path()).unwrap();
        assert_eq!(fs::read(found.folder.join(file)).unwrap(), hub.content(file));
    }
}

#[test]
fn the_token_goes_to_the_hub_and_to_nobody_else() {
    let (elsewhere, cache) = (Hub::new(model()), tempfile::tempdir().unwrap());
    let hub = Hub::new(model());
    hub.redirect("model.safetensors", &format!("{}/cdn/model.safetensors?signature=x", elsewhere.address()));
    let found = fetch(&hub, cache.path()).unwrap();
    assert_eq!(fs::read(found.folder.join("model.safetensors")).unwrap(), hub.content("model.safetensors"));
    assert!(hub.authorizations().iter().all(|header| header.as_deref() == Some("Bearer hf_secret")));
    assert!(!elsewhere.authorizations().is_empty());
    assert!(elsewhere.authorizations().iter().all(Option::is_none), "the token left the hub");
}

#[test]
fn a_listing_that_leads_out_of_the_folder_is_refused() {
    for path in ["../../evil.json", "/tmp/evil.json", "a/../../../evil.safetensors"] {
        let mut files = model();
        files.push(File::text(path, "{}"));
        let (hub, cache) = (Hub::new(files), tempfile::tempdir().unwrap());
        let error = fetch(&hub, cache.path()).unwrap_err().to_string();
        assert!(error.contains("leads out of the model's folder"), "{error}");
        assert_eq!(names(cache.path()), Vec::<String>::new());
    }
}

#[test]
fn a_request_to_stop_keeps_what_arrived() {
    let (hub, cache) = (Hub::new(model()), tempfile::tempdir().unwrap());
    hub.trouble("model.safetensors", Trouble::StallAfter(100_000));
    let arrived = std::cell::Cell::new(0);
    let mut watch = |event: tune::hub::Progress| arrived.set(if event.weights { event.done } else { 0 });
    let error = download(&request(&hub, "org/model"), cache.path(), &mut watch, &|| arrived.get() >= 100_000)
        .unwrap_err();
    assert!(matches!(error, Error::Stopped), "{error}");
    let partial =
        repository(&cache).join("blobs").join(format!("{}.incomplete", hub.etag("model.safetensors")));
    assert!(fs::metadata(partial).unwrap().len() >= 100_000);
}

#[test]
fn shards_named_by_the_index_are_fetched_and_a_revision_is_remembered() {
    let index = "{\"weight_map\": {\"a\": \"model-1.safetensors\", \"b\": \"model-2.safetensors\"}}";
    let hub = Hub::new(vec![
        File::text("config.json", "{}"),
        File::text("model.safetensors.index.json", index),
        File::lfs("model-1.safetensors", 5_000),
        File::lfs("model-2.safetensors", 6_000),
        File::lfs("consolidated.safetensors", 11_000),
    ]);
    let cache = tempfile::tempdir().unwrap();
    let found = download(&request(&hub, "org/model@v1.0"), cache.path(), &mut |_| {}, &|| false).unwrap();
    assert_eq!(
        names(&found.folder),
        ["config.json", "model-1.safetensors", "model-2.safetensors", "model.safetensors.index.json"]
    );
    assert_eq!(fs::read_to_string(repository(&cache).join("refs/v1.0")).unwrap(), server::COMMIT);
}

#[test]
fn the_command_reads_its_surroundings_and_never_shows_the_token() {
    let (hub, home) = (Hub::new(model()), tempfile::tempdir().unwrap());
    let command = |model: &str| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_tune"));
        command.args(["download", model]).env("HF_ENDPOINT", hub.address()).env("HF_HOME", home.path());
        for name in ["HF_HUB_CACHE", "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_TOKEN_PATH", "HF_HUB_OFFLINE"]
        {
            command.env_remove(name);
        }
        command
    };
    fs::write(home.path().join("token"), "hf_fromfile\n").unwrap();
    let run = command("org/model").output().unwrap();
    let all = String::from_utf8([run.stdout, run.stderr].concat()).unwrap();
    assert_eq!(run.status.code(), Some(0), "{all}");
    assert!(all.contains(server::COMMIT) && all.contains("base = \"org/model\""), "{all}");
    assert!(!all.contains("hf_fromfile"));
    assert!(hub.authorizations().iter().all(|header| header.as_deref() == Some("Bearer hf_fromfile")));
    assert!(home.path().join("hub/models--org--model/refs/main").is_file());

    for (model, code) in [("org/other", 1), ("../x", 2)] {
        let run = command(model).output().unwrap();
        let error = String::from_utf8(run.stderr).unwrap();
        assert_eq!(run.status.code(), Some(code), "{error}");
        assert!(error.starts_with("error: ") && !error.contains("hf_fromfile"), "{error}");
    }
    let run = command("org/model").env("HF_HUB_OFFLINE", "1").output().unwrap();
    assert_eq!(run.status.code(), Some(2));
}
