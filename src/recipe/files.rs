//! Checks that the files and folders of the recipe exist. Looks at names only; opens nothing.

use crate::assets::dataset::{Choice, is_dataset_id};
use std::path::Path;

use crate::data::spec::ChatTemplateSource;
use crate::document::Problem;
use crate::files::shell;

use super::RecipeFile;

/// A problem for each missing file or folder.
pub(super) fn missing(file: &RecipeFile) -> Vec<Problem> {
    let mut problems = Vec::new();
    problems.extend(base(file));
    problems.extend(output_dir(file));
    for (index, dataset) in file.parts().datasets.iter().enumerate() {
        if let Some(dataset) = dataset {
            // A dataset of the hub is looked up where the cache is known.
            let is_elsewhere = is_dataset_id(&dataset.path) && !Path::new(&dataset.path).exists();
            if !is_elsewhere && dataset.hub == Choice::default() {
                problems.extend(dataset_path(file, index, &dataset.path));
            }
        }
    }
    if let Some(ChatTemplateSource::File(template)) = &file.parts().data.chat_template
        && !template.is_file()
    {
        let message = format!("there is no file {}", template.display());
        problems.push(
            Problem::new("recipe::missing_file", file.place(&["data", "chat_template"]), message)
                .label("no such file")
                .help("name a Jinja file, or the built-in \"chatml\""),
        );
    }
    if let Some(folder) = &file.parts().adapter.init_from {
        let place = || file.place(&["adapter", "lora", "init_from"]);
        if !folder.is_dir() {
            let message = format!("there is no folder {}", folder.display());
            problems.push(
                Problem::new("recipe::missing_file", place(), message)
                    .label("no such folder")
                    .help("name a PEFT adapter folder, such as the `adapter` folder of an earlier run"),
            );
        } else if !folder.join("adapter_config.json").is_file() {
            let message = format!("{} has no adapter_config.json", folder.display());
            problems.push(
                Problem::new("recipe::missing_file", place(), message)
                    .label("not a PEFT adapter")
                    .help("name the folder that holds adapter_config.json and adapter_model.safetensors"),
            );
        }
    }
    problems
}

fn base(file: &RecipeFile) -> Option<Problem> {
    let model = file.parts().model.as_ref()?;
    let (base, folder) = (model.base.as_str(), Path::new(&model.base));
    let place = || file.place(&["model", "base"]);
    if folder.is_dir() {
        model.revision.as_ref()?;
        return Some(
            Problem::new(
                "recipe::contradiction",
                file.place(&["model", "revision"]),
                "`revision` belongs to a hub id, and `base` is a folder",
            )
            .label("has no effect here")
            .also(place(), "a folder")
            .help("remove `revision`"),
        );
    }
    if folder.exists() {
        return Some(
            Problem::new("recipe::missing_file", place(), format!("{base} is a file, not a folder"))
                .label("not a folder")
                .help("name the folder that holds config.json and the weights"),
        );
    }
    if is_hub_id(base) {
        return None;
    }
    let problem = Problem::new("recipe::missing_file", place(), format!("there is no folder {base}"));
    Some(problem.label("no such folder").help(match base.starts_with('~') {
        true => "tune does not expand `~`; write the whole path".to_owned(),
        false => beside(file, base).unwrap_or_else(|| {
            "name a folder, relative to the working directory, or a hub id such as \"Qwen/Qwen3-0.6B\""
                .to_owned()
        }),
    }))
}

/// Whether `base` can be a name on the Hugging Face hub: `name` or `organisation/name`.
pub(super) fn is_hub_id(base: &str) -> bool {
    let parts: Vec<_> = base.split('/').collect();
    let is_name = |part: &&str| {
        part.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '_')
            && part.len() <= 96
            && part.chars().all(|c| c.is_ascii_alphanumeric() || "._-".contains(c))
    };
    parts.len() <= 2 && parts.iter().all(is_name)
}

/// The remedy for a path that is right where the recipe is.
fn beside(file: &RecipeFile, path: &str) -> Option<String> {
    let folder = file.folder_with(path)?.to_string_lossy();
    Some(format!(
        "paths are relative to the working directory, and this one is right beside the recipe; go there first:\n  {}",
        shell::command(["cd", &folder])
    ))
}

fn output_dir(file: &RecipeFile) -> Option<Problem> {
    let folder = file.parts().output_dir.as_ref()?;
    if !folder.exists() || folder.is_dir() {
        return None;
    }
    let message = format!("{} is a file, and the run needs a folder", folder.display());
    let problem = Problem::new("recipe::missing_file", file.place(&["output_dir"]), message);
    Some(problem.label("not a folder").help("name another folder"))
}

fn dataset_path(file: &RecipeFile, index: usize, path: &str) -> Option<Problem> {
    let place = || file.place(&["dataset", &index.to_string(), "path"]);
    let problem = |message: String| Problem::new("recipe::missing_file", place(), message);
    if Path::new(path).is_file() {
        return None;
    }
    if Path::new(path).is_dir() {
        let help = format!("name its files, for example \"{}/*.jsonl\"", path.trim_end_matches('/'));
        return Some(problem(format!("{path} is a folder")).label("not a file").help(help));
    }
    if !path.contains(['*', '?', '[']) {
        let help = match path.starts_with('~') {
            true => "tune does not expand `~`; write the whole path".to_owned(),
            false => {
                beside(file, path).unwrap_or_else(|| "paths are relative to the working directory".to_owned())
            }
        };
        return Some(problem(format!("there is no file {path}")).label("no such file").help(help));
    }
    match glob::glob(path) {
        Err(error) => {
            let message = format!("{path} is not a pattern for files: {}", error.msg);
            Some(
                problem(message)
                    .label("not a pattern")
                    .help("`*` is any text without `/`, `**` any folders, `?` one character"),
            )
        }
        Ok(mut matches) => {
            let is_file = |found: Result<std::path::PathBuf, _>| found.is_ok_and(|found| found.is_file());
            if matches.any(is_file) {
                return None;
            }
            let message = format!("no file matches {path}");
            Some(
                problem(message).label("matches nothing").help("paths are relative to the working directory"),
            )
        }
    }
}
