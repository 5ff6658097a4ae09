//! JSON lines, JSON arrays and CSV: one streaming pass finds where records begin and keeps one position for
//! every 16 KiB; a block is what lies between two of these. Knows records as JSON objects of their columns;
//! what the columns mean is `schema`'s. Reads what is nearly JSON as Python's `datasets` does: an array in a file of
//! lines, objects over several lines, NaN.

use std::io::Read;
use std::ops::Range;

use memchr::memchr;
use serde_json::{Map, Value as Json};
use sha2::{Digest, Sha256};

use super::fault::Fault;
use super::read_at::Location;
use super::scan::{Malformed, Record, Scanner, Syntax};
use crate::data::json;
use crate::units::Bytes;

/// Bytes between two kept positions: 24 bytes of index for so many of the file.
const BLOCK: u64 = 16 << 10;
/// The longest record that is taken into memory.
const LONGEST_RECORD: u64 = 64 << 20;
/// Bytes read at a time while indexing.
const PIECE: usize = 256 << 10;
const BYTE_ORDER_MARK: [u8; 3] = [0xef, 0xbb, 0xbf];

/// A text file and where its blocks begin.
#[derive(Debug)]
pub(super) struct TextFile {
    location: Location,
    syntax: Syntax,
    /// First record of each block.
    blocks: Vec<Block>,
    rows: u64,
    /// Names of the columns, for CSV.
    header: Option<Vec<String>>,
    /// Over what it began with and every byte of the file.
    hash: Option<Sha256>,
}

#[derive(Clone, Copy, Debug)]
struct Block {
    row: u64,
    start: u64,
    line: u64,
}

/// The records of one block, as they stand in the file.
#[derive(Debug)]
pub(super) struct TextBlock {
    bytes: arrow_buffer::Buffer,
    start: u64,
    records: Vec<Record>,
}

/// What is wrong with one record, and in which column if in one.
pub(super) struct RecordFault {
    pub(super) column: String,
    pub(super) problem: String,
}

impl TextFile {
    /// Reads the file once, from end to end, and adds its bytes to `hash`, if there is one.
    pub(super) fn open(
        location: Location,
        syntax: Syntax,
        mut hash: Option<Sha256>,
    ) -> Result<TextFile, Fault> {
        let mut input = location.open()?;
        let mut piece = vec![0; PIECE];
        let mut filled = fill(&mut input, &mut piece)?;
        if piece.starts_with(&[0xff, 0xfe]) || piece.starts_with(&[0xfe, 0xff]) {
            return Err(Fault::new("is UTF-16 text; save it as UTF-8"));
        }
        let skip = if piece[..filled].starts_with(&BYTE_ORDER_MARK) { BYTE_ORDER_MARK.len() } else { 0 };

        let separator = match syntax {
            Syntax::Csv { separator } => Some(separator),
            _ => None,
        };
        let mut index = Index::new(separator.is_some());
        let mut scanner = Scanner::begin(syntax, skip as u64);
        let mut unread = skip;
        while filled > 0 {
            if let Some(hash) = &mut hash {
                hash.update(&piece[..filled]);
            }
            scanner.feed(&piece[unread..filled], |record| index.add(record)).map_err(malformed)?;
            if let Some(record) = index.too_long {
                return Err(Fault::new(format!(
                    "line {}: a record of {}, more than the {} that one may have; is this file what its \
                     extension says?",
                    record.line,
                    Bytes(record.end - record.start),
                    Bytes(LONGEST_RECORD)
                )));
            }
            unread = 0;
            filled = fill(&mut input, &mut piece)?;
        }
        scanner.finish(|record| index.add(record)).map_err(malformed)?;

        let (blocks, rows) = (index.blocks, index.rows);
        let mut file = TextFile { location, syntax, blocks, rows, header: None, hash };
        if let Some(record) = index.header {
            let (start, len) = (record.start, record.end - record.start);
            let bytes = file.location.read(&input, start, len)?;
            file.header = Some(header(&bytes, separator.unwrap_or(b','))?);
        }
        Ok(file)
    }

    /// The beginning of a file, which shows its syntax.
    pub(super) fn head(location: &Location) -> Result<Vec<u8>, Fault> {
        let mut head = vec![0; PIECE];
        let filled = fill(&mut location.open()?, &mut head)?;
        head.truncate(filled);
        Ok(head)
    }

    /// How the records of a JSON file are separated, by its beginning.
    pub(super) fn json_syntax(head: &[u8]) -> Syntax {
        let text = head.strip_prefix(&BYTE_ORDER_MARK).unwrap_or(head).trim_ascii_start();
        if text.starts_with(b"[") {
            return Syntax::Array;
        }
        let mut lines = text.split(|byte| *byte == b'\n').map(<[u8]>::trim_ascii);
        let (first, next) = (lines.next().unwrap_or_default(), lines.find(|line| !line.is_empty()));
        match serde_json::from_slice::<serde::de::IgnoredAny>(first) {
            Err(error) if first.starts_with(b"{") => {
                // The next line goes on with the object; a row that is merely broken is followed by the next row.
                let goes_on = error.is_eof() && next.is_some_and(|next| matches!(next[0], b'"' | b'}'));
                let is_followed = first.get(error.column().saturating_sub(1)) == Some(&b'{');
                if goes_on || is_followed { Syntax::Objects } else { Syntax::Lines }
            }
            _ => Syntax::Lines,
        }
    }

    /// The separator of a CSV file, by its first line: a comma, unless there is none.
    pub(super) fn csv_syntax(head: &[u8]) -> Syntax {
        let line = head.split(|byte| matches!(byte, b'\n' | b'\r')).next().unwrap_or_default();
        let mut is_quoted = false;
        let mut counts = [(b',', 0), (b'\t', 0), (b';', 0), (b'|', 0)];
        for byte in line {
            is_quoted ^= *byte == b'"';
            if let Some((_, count)) = counts.iter_mut().find(|(separator, _)| !is_quoted && separator == byte)
            {
                *count += 1;
            }
        }
        let other = counts[1..].iter().max_by_key(|(_, count)| *count).filter(|(_, count)| *count > 0);
        match (counts[0].1, other) {
            (0, Some((separator, _))) => Syntax::Csv { separator: *separator },
            _ => Syntax::Csv { separator: b',' },
        }
    }

    pub(super) fn location(&self) -> &Location {
        &self.location
    }

    pub(super) fn rows(&self) -> u64 {
        self.rows
    }

    /// The hash that the file was opened with, and its bytes.
    pub(super) fn hash(&self) -> Option<&Sha256> {
        self.hash.as_ref()
    }

    /// The columns: those of the header, or those of the records in the first block, whatever can be read of
    /// them. `None`: nothing could.
    pub(super) fn columns(&self) -> Result<Option<Vec<String>>, Fault> {
        if self.header.is_some() || self.rows == 0 {
            return Ok(self.header.clone());
        }
        let mut columns: Vec<String> = Vec::new();
        let first = self.block_of(0);
        let block = self.load(first.clone())?;
        for row in first {
            for column in self.record(&block, row, &[]).into_iter().flat_map(|record| record.0) {
                if !columns.contains(&column.0) {
                    columns.push(column.0);
                }
            }
        }
        Ok(Some(columns).filter(|columns| !columns.is_empty()))
    }

    /// Where the rows are, if the file is a single object around them, and how to write them alone. `is_row`: the object
    /// has the columns of a row.
    pub(super) fn rows_within(&self, is_row: bool) -> Option<String> {
        if self.rows != 1 || self.header.is_some() {
            return None;
        }
        let block = self.load(0..1).ok()?;
        let TextRecord(object) = self.record(&block, 0, &[]).ok()?;
        let is_rows = |value: &Json| value.as_array().is_some_and(|rows| rows.iter().any(Json::is_object));
        if let Some((name, _)) = object.iter().find(|(_, value)| !is_row && is_rows(value)) {
            return Some(format!(
                "is one object, whose `{name}` holds the rows; write them alone: `jq -c '.{name}[]' FILE > rows.jsonl`"
            ));
        }
        holds_columns(&object).then(|| {
            "is one object that holds whole columns, as pandas writes them by default; write rows: \
             `pandas.read_json(FILE).to_json(\"rows.jsonl\", orient=\"records\", lines=True)`"
                .to_owned()
        })
    }

    /// The rows that are loaded together with `row`.
    pub(super) fn block_of(&self, row: u64) -> Range<u64> {
        let behind = self.blocks.partition_point(|block| block.row <= row);
        let first = behind.checked_sub(1).map_or(0, |at| self.blocks[at].row);
        first..self.blocks.get(behind).map_or(self.rows, |block| block.row)
    }

    /// The block that holds `rows`, as given by [`block_of`](Self::block_of).
    pub(super) fn load(&self, rows: Range<u64>) -> Result<TextBlock, Fault> {
        let at = self.blocks.partition_point(|block| block.row < rows.start);
        let Some(block) = self.blocks.get(at) else {
            return Ok(TextBlock { bytes: Vec::<u8>::new().into(), start: 0, records: Vec::new() });
        };
        let next = self.blocks.get(at + 1);
        let end = next.map_or(self.location.len(), |next| next.start);
        let file = self.location.open()?;
        let bytes = self.location.read(&file, block.start, end - block.start)?;
        let mut records = Vec::with_capacity((rows.end - rows.start) as usize);
        let mut scanner = Scanner::resume(self.syntax, block.start, block.line);
        scanner.feed(&bytes, |record| records.push(record)).map_err(malformed)?;
        if next.is_none() {
            scanner.finish(|record| records.push(record)).map_err(malformed)?;
        }
        if records.len() as u64 != rows.end - rows.start {
            return Err(Fault::new("has changed since it was opened"));
        }
        Ok(TextBlock { bytes, start: block.start, records })
    }

    /// One record of a block as an object; in a CSV file, cells of the columns in `json_columns` are read as JSON,
    /// and empty cells are left out there.
    pub(super) fn record(
        &self,
        block: &TextBlock,
        index: u64,
        json_columns: &[&str],
    ) -> Result<TextRecord, RecordFault> {
        let whole = |problem: String| RecordFault { column: String::new(), problem };
        let Some(record) = block.records.get(index as usize) else {
            return Err(whole("no such row".to_owned()));
        };
        let bytes = &block.bytes[(record.start - block.start) as usize..(record.end - block.start) as usize];
        if let (Some(header), Syntax::Csv { separator }) = (&self.header, self.syntax) {
            return csv_record(bytes, header, separator, json_columns).map(TextRecord);
        }
        // A file that was put together of several has their byte order marks inside.
        let bytes = bytes.strip_prefix(&BYTE_ORDER_MARK).unwrap_or(bytes);
        match json::from_slice(bytes) {
            Ok(Json::Object(object)) => Ok(TextRecord(object)),
            Ok(other) => Err(whole(format!("expected an object, found {}", json_kind(&other)))),
            Err(error) => Err(whole(not_json(&error, bytes, record.line))),
        }
    }
}

/// Whether an object holds the columns of a table, each by row number, or all of them with their names apart.
fn holds_columns(object: &Map<String, Json>) -> bool {
    let is_number = |key: &String| key.bytes().all(|byte| byte.is_ascii_digit());
    let is_column = |value: &Json| {
        value.as_object().is_some_and(|cells| !cells.is_empty() && cells.keys().all(is_number))
    };
    let is_split =
        ["columns", "index", "data"].iter().all(|key| object.get(*key).is_some_and(Json::is_array));
    is_split || (!object.is_empty() && object.values().all(is_column))
}

/// One record: column to value.
pub(super) struct TextRecord(pub(super) Map<String, Json>);

impl TextBlock {
    /// The line on which a record begins, from 1.
    pub(super) fn line(&self, index: u64) -> Option<u64> {
        self.records.get(index as usize).map(|record| record.line)
    }

    /// Memory held.
    pub(super) fn size(&self) -> usize {
        self.bytes.len() + self.records.len() * size_of::<Record>()
    }
}

/// What the indexing pass keeps.
struct Index {
    blocks: Vec<Block>,
    rows: u64,
    expects_header: bool,
    header: Option<Record>,
    too_long: Option<Record>,
}

impl Index {
    fn new(expects_header: bool) -> Index {
        Index { blocks: Vec::new(), rows: 0, expects_header, header: None, too_long: None }
    }

    fn add(&mut self, record: Record) {
        if record.end - record.start > LONGEST_RECORD {
            self.too_long.get_or_insert(record);
        }
        if self.expects_header && self.header.is_none() {
            self.header = Some(record);
            return;
        }
        if self.blocks.last().is_none_or(|block| record.start - block.start >= BLOCK) {
            self.blocks.push(Block { row: self.rows, start: record.start, line: record.line });
        }
        self.rows += 1;
    }
}

fn fill(input: &mut impl Read, piece: &mut [u8]) -> Result<usize, Fault> {
    let mut filled = 0;
    while filled < piece.len() {
        match input.read(&mut piece[filled..]) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(filled)
}

fn malformed(malformed: Malformed) -> Fault {
    Fault::new(format!("line {}: {}", malformed.line, malformed.problem))
}

fn header(bytes: &[u8], separator: u8) -> Result<Vec<String>, Fault> {
    cells(bytes, separator).map_err(|fault| Fault::new(format!("line 1: the header is {}", fault.problem)))
}

fn csv_record(
    bytes: &[u8],
    header: &[String],
    separator: u8,
    json_columns: &[&str],
) -> Result<Map<String, Json>, RecordFault> {
    let mut cells = cells(bytes, separator)?;
    // Tables that were saved with empty columns at their right end.
    while cells.len() > header.len() && cells.last().is_some_and(String::is_empty) {
        cells.pop();
    }
    if cells.len() != header.len() {
        let problem = format!(
            "expected {} cells as in the header, found {}; put cells that hold a `{}` in double quotes",
            header.len(),
            cells.len(),
            char::from(separator).escape_default()
        );
        return Err(RecordFault { column: String::new(), problem });
    }
    let mut record = Map::new();
    for (name, cell) in header.iter().zip(cells) {
        if !json_columns.contains(&name.as_str()) {
            record.insert(name.clone(), Json::String(cell));
        } else if !cell.is_empty() {
            let value = json::from_slice(cell.as_bytes()).map_err(|error| RecordFault {
                column: name.clone(),
                problem: format!(
                    "a CSV cell of this column holds JSON; {}",
                    not_json(&error, cell.as_bytes(), 1)
                ),
            })?;
            record.insert(name.clone(), value);
        }
    }
    Ok(record)
}

/// The cells of one record. A quote opens a quoted cell only at its beginning; what follows the closing quote
/// is taken as it stands, as the csv crate (against which this is tested) and Python's csv do.
fn cells(record: &[u8], separator: u8) -> Result<Vec<String>, RecordFault> {
    let mut cells = Vec::new();
    let mut rest = Some(record);
    while let Some(mut bytes) = rest {
        let mut cell = Vec::new();
        if let Some(quoted) = bytes.strip_prefix(b"\"") {
            bytes = quoted;
            while let Some(quote) = memchr(b'"', bytes) {
                cell.extend_from_slice(&bytes[..quote]);
                bytes = &bytes[quote + 1..];
                match bytes.strip_prefix(b"\"") {
                    Some(doubled) => {
                        cell.push(b'"');
                        bytes = doubled;
                    }
                    None => break,
                }
            }
        }
        let end = memchr(separator, bytes);
        cell.extend_from_slice(&bytes[..end.unwrap_or(bytes.len())]);
        rest = end.map(|end| &bytes[end + 1..]);
        cells.push(String::from_utf8(cell).map_err(|_| RecordFault {
            column: String::new(),
            problem: "not valid UTF-8; save the file as UTF-8".to_owned(),
        })?);
    }
    Ok(cells)
}

/// "not valid JSON at line 7, column 12: expected value", and what to do about it where that is known.
pub(in crate::data) fn not_json(error: &serde_json::Error, bytes: &[u8], first_line: u64) -> String {
    let said = error.to_string();
    let what = said.rsplit_once(" at line ").map_or(said.as_str(), |(what, _)| what);
    let line = first_line + (error.line() as u64).saturating_sub(1);
    let text = bytes.trim_ascii();
    let way_out = if std::str::from_utf8(bytes).is_err() {
        "; the text is not UTF-8 (perhaps GBK or Latin-1): save the file as UTF-8"
    } else if bytes.contains(&0) {
        "; the record holds NUL bytes, as an interrupted copy or a full disk leaves them: write the file again"
    } else if what.contains("surrogate") || what.contains("hex escape") {
        "; an escape like \\ud83d is half a character, and its other half is missing: write the character itself"
    } else if ["{'", "[{'", "['"].iter().any(|python| text.starts_with(python.as_bytes())) {
        "; this is how Python prints a value, with single quotes: write it with `json.dumps`"
    } else if text.ends_with(b",") && error.column() >= text.len() {
        "; the record ends in a comma, which JSON lines do not have: remove it"
    } else {
        ""
    };
    format!("not valid JSON at line {line}, column {}: {what}{way_out}", error.column())
}

/// The kind of a JSON value, as errors name it.
fn json_kind(value: &Json) -> &'static str {
    match value {
        Json::Null => "null",
        Json::Bool(_) => "a boolean",
        Json::Number(_) => "a number",
        Json::String(_) => "a string",
        Json::Array(_) => "an array",
        Json::Object(_) => "an object",
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const COMMAS: Syntax = Syntax::Csv { separator: b',' };

    fn open(syntax: Syntax, text: &[u8]) -> Result<(tempfile::TempDir, TextFile), Fault> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        std::fs::write(&path, text).unwrap();
        let file = TextFile::open(Location::new(path.as_path().into())?, syntax, None)?;
        Ok((folder, file))
    }

    #[test]
    fn blocks_cover_the_rows() {
        let mut text = String::from("\u{feff}");
        for row in 0..3000_u64 {
            text += &format!("{{\"row\": {row}, \"pad\": \"{}\"}}\n", "x".repeat((row * 37 % 200) as usize));
        }
        text += &format!("{{\"pad\": \"{}\", \"row\": 3000}}\n{{\"row\": 3001}}", "y".repeat(100_000));
        let (_folder, file) = open(Syntax::Lines, text.as_bytes()).unwrap();
        assert_eq!(file.rows(), 3002);
        assert!((16..40).contains(&file.blocks.len()), "{}", file.blocks.len());
        for row in 0..file.rows() {
            let rows = file.block_of(row);
            assert!(rows.contains(&row));
            if row == rows.start {
                let block = file.load(rows.clone()).unwrap();
                for row in rows.clone() {
                    let record = file.record(&block, row - rows.start, &[]).ok().unwrap();
                    assert_eq!(record.0["row"], row);
                    assert_eq!(block.line(row - rows.start), Some(row + 1));
                }
            }
        }
        assert_eq!(file.columns().unwrap().unwrap(), ["row", "pad"]);
    }

    proptest! {
        /// Records and cells are those that the csv crate sees.
        #[test]
        fn csv_is_that_of_the_csv_crate(text in r#"[,"\r\na1]{0,60}"#) {
            let mut records = Vec::new();
            let mut scanner = Scanner::begin(COMMAS, 0);
            scanner.feed(text.as_bytes(), |record| records.push(record)).unwrap();
            if scanner.finish(|record| records.push(record)).is_err() {
                // A quote that is never closed, which the csv crate lets pass.
                return Ok(());
            }
            let cells_of = |record: &Record| cells(&text.as_bytes()[record.start as usize..record.end as usize], b',');
            let ours: Vec<Vec<String>> = records.iter().map(|record| cells_of(record).ok().unwrap()).collect();
            let reader =
                csv::ReaderBuilder::new().has_headers(false).flexible(true).from_reader(text.as_bytes());
            let theirs: Vec<Vec<String>> = reader.into_deserialize().map(Result::unwrap).collect();
            prop_assert_eq!(ours, theirs);
        }
    }

    #[test]
    fn csv_cells() {
        let (_folder, file) = open(COMMAS, b"a,ids\n\"x\ny\",\"[1, 2]\"\nz,\nonly\nw,[1\n\xff,\n").unwrap();
        let block = file.load(file.block_of(0)).unwrap();
        let record = |row| file.record(&block, row, &["ids"]).map(|record| Json::Object(record.0));
        assert_eq!(record(0).ok().unwrap(), serde_json::json!({"a": "x\ny", "ids": [1, 2]}));
        assert_eq!(record(1).ok().unwrap(), serde_json::json!({"a": "z"}));
        let said = |row| record(row).map_err(|fault| fault.column + ": " + &fault.problem).unwrap_err();
        assert_eq!(
            said(2),
            ": expected 2 cells as in the header, found 1; put cells that hold a `,` in double quotes"
        );
        assert!(said(3).starts_with("ids: a CSV cell of this column holds JSON; not valid JSON at line 1"));
        assert_eq!(said(4), ": not valid UTF-8; save the file as UTF-8");
        assert_eq!(block.line(1), Some(4));
    }

    #[test]
    fn files_that_are_not_what_they_seem() {
        let said = |syntax, text: &[u8]| open(syntax, text).unwrap_err().to_string();
        assert!(said(Syntax::Lines, b"\xff\xfe{\0").contains("UTF-16"));
        assert!(said(COMMAS, b"a,b\n1,\"2\n").contains("line 2: a quoted field"));
        assert!(said(Syntax::Array, b"{\"data\": []}").contains("expected an array of objects"));
        let long = vec![b'x'; (LONGEST_RECORD + 1) as usize];
        assert!(said(Syntax::Lines, &[&long[..], b"\n{}\n"].concat()).contains("line 1: a record of"));
    }
}
