//! From the path or glob of a `[[dataset]]` entry to its files, sorted, each with its kind.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::problem::Error;
use crate::files::Disguise;

/// What a file is, by its extension.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// `.arrow`: Arrow IPC, file or stream.
    Ipc,
    /// `.parquet`.
    Parquet,
    /// `.jsonl`, `.json`: objects, one per line, in an array or one behind the other.
    Json,
    /// `.csv`, `.tsv`, with a header.
    Csv,
}

impl Kind {
    /// Whether files of this kind are that.
    pub(super) fn is_called(self, disguise: Disguise) -> bool {
        matches!((self, disguise), (Kind::Ipc, Disguise::Arrow) | (Kind::Parquet, Disguise::Parquet))
    }
}

const KINDS: &str = ".arrow, .parquet, .jsonl, .json, .csv, .tsv";

/// The files that `pattern` names: itself, if there is such a file, else what it matches as a glob.
pub(super) fn resolve(pattern: &str) -> Result<Vec<(Arc<Path>, Kind)>, Error> {
    let literal = Path::new(pattern);
    if literal.is_file() {
        return Ok(vec![(literal.into(), kind(literal)?)]);
    }
    if literal.is_dir() {
        let hint =
            format!(" (a folder; name the files in it: `{}/*.parquet`)", pattern.trim_end_matches('/'));
        return Err(Error::NoSuchFile { path: pattern.to_owned(), hint });
    }
    if !pattern.contains(['*', '?', '[']) {
        return Err(Error::NoSuchFile { path: pattern.to_owned(), hint: nearest(literal) });
    }
    let invalid = |problem: &str| Error::Pattern { pattern: pattern.to_owned(), problem: problem.to_owned() };
    let mut files: Vec<PathBuf> = Vec::new();
    for found in glob::glob(pattern).map_err(|error| invalid(error.msg))? {
        let file = found.map_err(|error| Error::Io {
            file: error.path().to_owned(),
            problem: error.error().to_string(),
        })?;
        if file.is_file() {
            files.push(file);
        }
    }
    if files.is_empty() {
        return Err(Error::NoMatch { pattern: pattern.to_owned() });
    }
    files.sort();
    files.into_iter().map(|file| Ok((file.as_path().into(), kind(&file)?))).collect()
}

/// "; did you mean `train.jsonl`?", if the folder holds a file of nearly that name.
fn nearest(path: &Path) -> String {
    let folder = match path.parent() {
        Some(folder) if folder != Path::new("") => folder,
        _ => Path::new("."),
    };
    let Ok(entries) = std::fs::read_dir(folder) else {
        return format!(" (nor a folder `{}`)", folder.display());
    };
    let wanted = path.file_name().unwrap_or_default().to_string_lossy();
    entries
        .flatten()
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .map(|name| (strsim::damerau_levenshtein(&wanted, &name), name))
        .filter(|(distance, _)| *distance <= 3)
        .min()
        .map(|(_, name)| format!("; did you mean `{}`?", path.with_file_name(name).display()))
        .unwrap_or_default()
}

/// The kind of a file, by its extension.
pub(super) fn kind(path: &Path) -> Result<Kind, Error> {
    let extension = path.extension().unwrap_or_default().to_string_lossy().to_lowercase();
    let problem = match extension.as_str() {
        "arrow" => return Ok(Kind::Ipc),
        "parquet" => return Ok(Kind::Parquet),
        "jsonl" | "ndjson" | "json" => return Ok(Kind::Json),
        "csv" | "tsv" => return Ok(Kind::Csv),
        "gz" | "zst" | "bz2" | "xz" | "zip" => format!("decompress it first; known files are {KINDS}"),
        "feather" | "ipc" | "arrows" => "rename it to .arrow".to_owned(),
        "" => format!("has no extension; known files are {KINDS}"),
        other => format!("`.{other}` is not known here; known files are {KINDS}"),
    };
    Err(Error::UnknownKind { file: path.to_owned(), problem })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder(files: &[&str]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for file in files {
            std::fs::write(folder.path().join(file), b"").unwrap();
        }
        folder
    }

    fn names(folder: &Path, pattern: &str) -> Result<Vec<String>, Error> {
        let files = resolve(&folder.join(pattern).to_string_lossy())?;
        Ok(files.iter().map(|(file, _)| file.file_name().unwrap().to_string_lossy().into_owned()).collect())
    }

    #[test]
    fn globs_are_sorted_and_mixed() {
        let folder = folder(&["b.jsonl", "a.parquet", "c.ARROW", "d.txt"]);
        std::fs::create_dir(folder.path().join("aa.csv")).unwrap();
        assert_eq!(names(folder.path(), "[a-c]*.*").unwrap(), ["a.parquet", "b.jsonl", "c.ARROW"]);
        assert_eq!(names(folder.path(), "b.jsonl").unwrap(), ["b.jsonl"]);
    }

    #[test]
    fn a_name_with_brackets_is_itself_first() {
        let folder = folder(&["a[1].csv", "a1.csv"]);
        assert_eq!(names(folder.path(), "a[1].csv").unwrap(), ["a[1].csv"]);
    }

    #[test]
    fn what_is_not_there_is_an_error_with_a_way_out() {
        let folder = folder(&["train.jsonl", "notes.txt", "all.jsonl.gz"]);
        let said = |pattern: &str| names(folder.path(), pattern).unwrap_err().to_string();
        assert!(said("*.parquet").contains("matches no file"));
        assert!(said("trian.jsonl").contains("train.jsonl`?"), "{}", said("trian.jsonl"));
        assert!(said("").contains("*.parquet`"));
        assert!(said("none/x.csv").contains("nor a folder"));
        assert!(said("notes.txt").contains("`.txt` is not known here"));
        assert!(said("*.gz").contains("decompress it first"));
        assert!(said("a***").contains("not a valid pattern"), "{}", said("a***"));
    }
}
