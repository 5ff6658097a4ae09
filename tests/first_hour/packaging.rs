//! Packaging: completions, man pages, the install script, the notebook; and the commands of the pages.

use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::Value;

use super::{HOME, chats, error, out, tune, typed};

#[test]
fn shells_and_man_are_served() {
    let folder = tempfile::tempdir().unwrap();
    for shell in ["bash", "zsh", "fish", "powershell"] {
        let script = tune(folder.path(), &["completions", shell]);
        assert!(script.status.success() && out(&script).contains("validate"), "{shell}");
    }
    assert!(tune(folder.path(), &["man", "man"]).status.success());
    for page in ["tune.1", "tune-run.1", "tune-init.1"] {
        let page = fs::read_to_string(folder.path().join("man").join(page)).unwrap();
        assert!(page.contains(".TH"), "{page}");
    }
}

#[cfg(unix)]
#[test]
fn the_install_script_checks_what_it_installs() {
    use std::io::{Read, Write};
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let system = if cfg!(target_os = "macos") { "macos" } else { "linux" };
    let archive = format!("tune-{}-{system}.tar.gz", std::env::consts::ARCH);
    fs::create_dir(folder.join("served")).unwrap();
    fs::write(folder.join("tune"), "#!/bin/sh\necho tune 9.9.9\n").unwrap();
    let done = typed(
        folder,
        &format!(
            "chmod +x tune && tar -czf served/{archive} tune && cd served && (sha256sum {archive} || shasum -a 256 {archive}) > {archive}.sha256"
        ),
    );
    assert!(done.status.success(), "{}", error(&done));
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    let served = folder.join("served");
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut request = [0; 4096];
            let length = stream.read(&mut request).unwrap();
            let request = String::from_utf8_lossy(&request[..length]).into_owned();
            let name = request.split(' ').nth(1).unwrap_or("").rsplit('/').next().unwrap_or("").to_owned();
            let (status, body) = match fs::read(served.join(&name)) {
                Ok(body) => ("200 OK", body),
                Err(_) => ("404 Not Found", Vec::new()),
            };
            let head =
                format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", body.len());
            let _ = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(&body));
        }
    });
    let install = || {
        Command::new("sh")
            .arg(Path::new(HOME).join("packaging/install.sh"))
            .env("TUNE_RELEASES", &address)
            .env("TUNE_BIN", folder.join("bin dir"))
            .env("HOME", folder)
            .env_remove("http_proxy")
            .env("no_proxy", "*")
            .output()
            .unwrap()
    };
    let installed = install();
    assert!(installed.status.success(), "{}", error(&installed));
    assert!(out(&installed).contains("installed tune 9.9.9 as"), "{}", out(&installed));
    assert!(out(&installed).contains("is not on PATH"), "{}", out(&installed));
    fs::write(
        folder.join("served").join(format!("{archive}.sha256")),
        format!("{}  {archive}\n", "0".repeat(64)),
    )
    .unwrap();
    fs::remove_file(folder.join("bin dir/tune")).unwrap();
    let refused = install();
    assert!(
        !refused.status.success() && error(&refused).contains("nothing was installed"),
        "{}",
        error(&refused)
    );
    assert!(!folder.join("bin dir/tune").exists());
}

/// The commands of the notebook's cells, but for those that need the network.
#[test]
fn the_notebook_runs() {
    let notebook = fs::read_to_string(Path::new(HOME).join("packaging/colab.ipynb")).unwrap();
    let notebook: Value = serde_json::from_str(&notebook).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let mut ran = 0;
    for cell in notebook["cells"].as_array().unwrap() {
        let needs_network =
            cell["metadata"]["tags"].as_array().is_some_and(|tags| tags.iter().any(|tag| tag == "network"));
        if cell["cell_type"] != "code" || needs_network {
            continue;
        }
        for line in cell["source"].as_array().unwrap() {
            let command = line.as_str().unwrap().trim().strip_prefix('!').unwrap();
            if command.starts_with("pip ") {
                continue;
            }
            let command = command
                .replace("tune run quickstart.toml", "tune run quickstart.toml --set train.max_steps=2");
            let done = typed(folder.path(), &command);
            assert!(done.status.success(), "{command}\n{}", error(&done));
            ran += 1;
        }
    }
    assert_eq!(ran, 7);
}

/// The lines of the pages' blocks that need no network, no GPU and no other program, in the order in which they stand.
#[test]
fn the_commands_of_the_pages_work() {
    const PAGES: [&str; 6] = [
        "README.md",
        "recipes/README.md",
        "src/generate/talking.md",
        "src/export/after.md",
        "src/data/reading.md",
        "src/device/devices.md",
    ];
    const ELSEWHERE: [&str; 8] =
        ["cargo ", "tune download", "ollama create", "llama-cli", "gsm8k", "config.yml", "git ", "pip "];
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    assert!(tune(folder, &["cp", "quickstart", "."]).status.success());
    fs::write(folder.join("chats.jsonl"), chats(12)).unwrap();
    let mut ran = 0;
    for page in PAGES {
        let text = fs::read_to_string(Path::new(HOME).join(page)).unwrap().replace("\\\n", " ");
        for block in text.split("```sh\n").skip(1) {
            let lines = block.split("```").next().unwrap().lines();
            // Of a line that goes on with another program, the part that is ours.
            let lines: Vec<String> = lines
                .map(|line| line.split(" && ollama create").next().unwrap())
                .filter(|line| !ELSEWHERE.iter().any(|word| line.contains(word)))
                .map(|line| {
                    line.replace(
                        "run quickstart.toml",
                        "run quickstart.toml --overwrite --set train.max_steps=2",
                    )
                    .replace("run chats.toml", "run chats.toml --set train.max_steps=2")
                    .replace("Qwen/Qwen3-0.6B", "data/quickstart/base")
                })
                .collect();
            ran += lines.len();
            let done = typed(folder, &format!("set -e\n{}", lines.join("\n")));
            assert!(done.status.success(), "{page}:\n{}\n{}{}", lines.join("\n"), out(&done), error(&done));
            // What the other pages work on.
            if folder.join("demo/runs/quickstart").is_dir() && !folder.join("runs/quickstart").is_dir() {
                let copied = typed(folder, "mkdir -p runs && cp -r demo/runs/quickstart runs/");
                assert!(copied.status.success());
            }
        }
    }
    assert!(ran >= 10, "{ran} lines ran");
}
