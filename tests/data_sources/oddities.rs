//! Files that are nearly right, as people have them: read where Python's `datasets` reads them, else an error that says what
//! they are and the way out.

use std::path::Path;

use parquet::basic::Compression;
use tune::data::spec::Format;

use super::files::{parquet, table};
use super::{examples, open};

/// What reading all rows of a file comes to: how many there are, or the first error.
fn read(folder: &Path, name: &str, text: impl AsRef<[u8]>, format: Format) -> Result<usize, String> {
    let path = folder.join(name);
    std::fs::write(&path, text).unwrap();
    let dataset = open(&path, format).map_err(|error| error.to_string())?;
    for row in 0..dataset.rows() {
        dataset.example(row).map_err(|error| error.to_string())?;
    }
    Ok(dataset.rows() as usize)
}

const ROW: &str = r#"{"prompt": "Hi", "completion": "Hello {\"a\": NaN}"}"#;
const PRETTY: &str = "{\n  \"prompt\": \"Hi\",\n  \"completion\": \"Hello\"\n}\n";

#[test]
fn d9_json_that_is_nearly_right() {
    let outer = tempfile::tempdir().unwrap();
    let read = |name: &str, text: &str| read(outer.path(), name, text, Format::PromptCompletion);
    for (what, text, rows) in [
        ("an array", format!("[\n{ROW},\n {ROW}]"), 2),
        ("objects over several lines", PRETTY.repeat(3), 3),
        ("objects on one line", format!("{ROW}{ROW} {ROW}\n"), 3),
        ("one object over several lines", PRETTY.to_owned(), 1),
        ("byte order marks of several files", format!("\u{feff}{ROW}\n\u{feff}{ROW}\n"), 2),
        ("a byte order mark", format!("\u{feff}{ROW}\r\n\r\n{ROW}\r\n"), 2),
        (
            "NaN where nothing is read",
            ROW.replace("{\"prompt", "{\"score\": -Infinity, \"x\": [NaN], \"prompt"),
            1,
        ),
    ] {
        for name in ["a.jsonl", "a.json", "a.ndjson"] {
            assert_eq!(read(name, &text), Ok(rows), "{what} in {name}");
        }
    }
    let gbk = b"{\"prompt\": \"\xc4\xe3\xba\xc3\", \"completion\": \"a\"}\n";
    let error = self::read(outer.path(), "gbk.jsonl", gbk, Format::PromptCompletion).unwrap_err();
    assert!(error.contains("gbk.jsonl:1") && error.contains("not UTF-8"), "{error}");
    // The texts of a row with NaN are its own.
    let dataset = open(&outer.path().join("a.json"), Format::PromptCompletion).unwrap();
    assert!(format!("{:?}", examples(&dataset)[0]).contains("NaN"));
    for (text, parts) in [
        (format!("{ROW},\n{ROW},\n"), &["a.jsonl:1", "ends in a comma"][..]),
        (format!("[{ROW},\n]"), &["line 2", "a `,` before the `]`"]),
        ("{'prompt': 'Hi', 'completion': 'Hello'}\n".to_owned(), &["a.jsonl:1", "json.dumps"]),
        (format!("{{\"version\": 1,\n \"data\": [{ROW}]}}"), &["`data` holds the rows", "jq -c '.data[]'"]),
        (
            r#"{"prompt": {"0": "Hi", "1": "Ho"}, "completion": {"0": "a", "1": "b"}}"#.to_owned(),
            &["pandas", "orient="],
        ),
        (
            r#"{"columns": ["prompt", "completion"], "index": [0], "data": [["Hi", "Ho"]]}"#.to_owned(),
            &["pandas", "orient="],
        ),
        (
            "{\"prompt\": \"a \\ud83d b\", \"completion\": \"c\"}".to_owned(),
            &["a.jsonl:1", "half a character"],
        ),
        (format!("{ROW}\n\0\0\0\n"), &["a.jsonl:2", "NUL bytes"]),
        // The first row is broken, and only that.
        (format!("{}\n{ROW}\n", &ROW[..30]), &["a.jsonl:1", "not valid JSON"]),
        (format!("{{\"prompt\": NaN, {}\n", &ROW[17..]), &["/prompt", "found null"]),
    ] {
        let error = read("a.jsonl", &text).unwrap_err();
        assert!(parts.iter().all(|part| error.contains(part)), "{error}");
    }
}

#[test]
fn d14_csv_with_other_separators_and_columns_nobody_reads() {
    let outer = tempfile::tempdir().unwrap();
    let read = |name: &str, text: &str| read(outer.path(), name, text, Format::PromptCompletion);
    for (what, text) in [
        ("semicolons", "prompt;completion\nHi, you;\"See; you\"\n"),
        ("tabs", "prompt\tcompletion\nHi, you\tHello; \"you\"\n"),
        ("bars", "\u{feff}prompt|completion\r\nHi, you|Hello\r\n"),
        ("empty columns at the end", "prompt,completion,,\nHi,Hello,,\n"),
        ("empty cells at the end", "prompt,completion\nHi,Hello,,\n"),
        ("a doubled column that is not read", "id,prompt,completion,id\n1,Hi,Hello,1\n"),
    ] {
        for name in ["a.csv", "a.tsv"] {
            assert_eq!(read(name, text), Ok(1), "{what} in {name}");
        }
    }
    for (text, part) in [
        ("prompt,completion,prompt\nHi,Hello,Ho\n", "two columns are called `prompt`"),
        ("prompt,completion\nHi,Hello, friend\n", "found 3; put cells that hold a `,` in double quotes"),
        ("prompt;completion\nHi;Hello; friend\n", "a `;` in double quotes"),
    ] {
        let error = read("a.csv", text).unwrap_err();
        assert!(error.contains(part), "{error}");
    }
    let path = outer.path().join("latin.csv");
    std::fs::write(&path, b"prompt,completion\nCaf\xe9,Bar\n").unwrap();
    let error = open(&path, Format::PromptCompletion).unwrap().example(0).unwrap_err().to_string();
    assert!(error.contains("latin.csv:2") && error.contains("save the file as UTF-8"), "{error}");
}

#[test]
fn m1_files_that_are_not_what_they_seem() {
    let outer = tempfile::tempdir().unwrap();
    let pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n";
    for name in ["a.jsonl", "a.json", "a.csv", "a.parquet", "a.arrow"] {
        for (bytes, part) in [
            (&pointer[..], "is a Git LFS pointer, not the file itself; fetch the file with `git lfs pull`"),
            (b"<!DOCTYPE html>\n<html><head>", "is a web page"),
            (b"\x1f\x8b\x08\0\0\0\0\0", "decompress it with `gzip -d`"),
            (b"\x80\x04\x95\x10\0\0\0\0", "is a Python pickle"),
        ] {
            let error = read(outer.path(), name, bytes, Format::Text).unwrap_err();
            assert!(error.contains(name) && error.contains(part), "{error}");
        }
    }
    let parquet = parquet(&[table(0..3)], Compression::SNAPPY, 3);
    let error = read(outer.path(), "b.jsonl", parquet, Format::PromptCompletion).unwrap_err();
    assert!(error.contains("rename it to .parquet"), "{error}");
}

#[test]
fn m1_models_that_are_not_what_they_seem() {
    use tune::assets::{ModelDir, SafetensorsFile};
    let outer = tempfile::tempdir().unwrap();
    let pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n";
    let weights = outer.path().join("model.safetensors");
    std::fs::write(&weights, pointer).unwrap();
    let error = SafetensorsFile::open(&weights).unwrap_err().to_string();
    assert!(error.contains("model.safetensors is a Git LFS pointer"), "{error}");
    std::fs::write(outer.path().join("config.json"), b"<html>Not found</html>").unwrap();
    let error = ModelDir::open(outer.path()).unwrap_err().to_string();
    assert!(error.contains("config.json is a web page") && error.contains("tune download"), "{error}");
}

/// Columns of files with a schema are named by it; what shapes training elsewhere is looked for in the rows.
#[test]
fn d1_unused_columns_of_files_with_a_schema() {
    let outer = tempfile::tempdir().unwrap();
    let column = |values: Vec<Option<&str>>| -> arrow_array::ArrayRef {
        std::sync::Arc::new(arrow_array::StringArray::from(values))
    };
    let batch = |images| {
        arrow_array::RecordBatch::try_from_iter([
            ("text", column(vec![Some("a"), Some("b")])),
            ("source", column(vec![Some("web"), None])),
            ("images", column(images)),
        ])
        .unwrap()
    };
    for (images, expected) in
        [(vec![None, Some("")], ""), (vec![None, Some("cat.png")], "/images: this column is not used")]
    {
        let table = batch(images);
        let files = [
            ("a.parquet", parquet(std::slice::from_ref(&table), Compression::SNAPPY, 10)),
            ("a.arrow", super::ipc(std::slice::from_ref(&table), false, None)),
        ];
        for (name, bytes) in files {
            std::fs::write(outer.path().join(name), bytes).unwrap();
            let dataset = open(&outer.path().join(name), Format::Text).unwrap();
            assert_eq!(dataset.unread_columns(), ["source", "images"], "{name}");
            assert!(dataset.example(0).is_ok(), "{name}");
            let said = dataset.example(1).map_or_else(|error| error.to_string(), |_| String::new());
            assert!(said.contains(expected) && said.is_empty() == expected.is_empty(), "{name}: {said}");
        }
    }
}

/// Conversations and token ids that a text column holds as JSON.
#[test]
fn d9_json_text_in_columns_of_text() {
    let outer = tempfile::tempdir().unwrap();
    let list = r#"[{"role": "user", "content": "Hi"}]"#;
    let column = |text: &str| -> arrow_array::ArrayRef {
        std::sync::Arc::new(arrow_array::StringArray::from(vec![text]))
    };
    for (name, text, format) in
        [("messages", list, Format::Messages), ("input_ids", "[1, 2]", Format::Tokens)]
    {
        let table = arrow_array::RecordBatch::try_from_iter([(name, column(text))]).unwrap();
        let files = [
            ("a.parquet", parquet(std::slice::from_ref(&table), Compression::SNAPPY, 10)),
            ("a.arrow", super::ipc(std::slice::from_ref(&table), false, None)),
            ("a.csv", format!("{name}\n\"{}\"\n", text.replace('"', "\"\"")).into_bytes()),
            ("a.jsonl", serde_json::json!({name: text}).to_string().into_bytes()),
        ];
        for (file, bytes) in files {
            assert_eq!(read(outer.path(), file, bytes, format), Ok(1), "{name} in {file}");
        }
    }
}
