//! Files of examples, opened and indexed: any row by its number, in bounded memory. Knows file formats and
//! where rows lie in them; what a record means is `schema`'s, and in which order rows are visited is `order`'s.

mod cache;
mod fault;
mod ipc;
mod parquet;
mod path;
mod problem;
mod read_at;
mod scan;
mod text;
pub(super) mod value;

use std::fs::File;
use std::io::Read;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow_array::{Array, StructArray};
use arrow_schema::Schema;
use rayon::prelude::*;
use sha2::{Digest, Sha256};

use super::example::{Example, RowProblem};
use super::schema::Fields;
use super::spec::DatasetSpec;
use crate::files::Disguise;
use cache::Cache;
use fault::{Fault, guard};
use ipc::IpcFile;
use parquet::ParquetFile;
use path::Kind;
use read_at::Location;
use text::{TextBlock, TextFile};
use value::Object;

pub(super) use text::not_json;

pub use problem::{BadRows, Error, Place, Position, RowError, SHOWN_BAD_ROWS};

/// Rows of a unit made of files that need none, beside files that do.
const UNIT_ROWS: u64 = 4096;

/// All files of one `[[dataset]]` entry, as one sequence of rows.
///
/// Reading takes `&self`: share it in an [`Arc`] and ask from as many threads as there are. Of the files'
/// content it holds an index (text: 24 bytes for every 16 KiB; Arrow: about 60 bytes for each record batch,
/// and the dictionaries; Parquet: the footers) and the blocks used last (64 MiB, or four if they are larger).
#[derive(Debug)]
pub struct Dataset {
    fields: Fields,
    files: Vec<SourceFile>,
    paths: Vec<Arc<Path>>,
    /// First row of each file, ending with the number of rows.
    starts: Vec<u64>,
    cache: Cache<Block>,
}

/// One file, opened.
#[derive(Debug)]
enum SourceFile {
    Text(TextFile),
    Ipc(IpcFile),
    Parquet(ParquetFile),
}

/// Rows that were read together.
#[derive(Debug)]
enum Block {
    Text(TextBlock),
    Columns(Columns),
}

/// Consecutive rows as arrays of columns.
#[derive(Debug)]
struct Columns {
    batches: Vec<StructArray>,
    /// First row of each batch.
    starts: Vec<u64>,
    /// Memory held.
    bytes: usize,
}

impl Columns {
    fn new(batches: Vec<StructArray>, bytes: usize) -> Columns {
        let rows_before = |rows: &mut u64, batch: &StructArray| {
            let start = *rows;
            *rows += batch.len() as u64;
            Some(start)
        };
        let starts = batches.iter().scan(0, rows_before).collect();
        Columns { batches, starts, bytes }
    }

    fn row(&self, index: u64) -> Option<Object<'_>> {
        let at = self.starts.partition_point(|&start| start <= index).checked_sub(1)?;
        let (array, row) = (&self.batches[at], (index - self.starts[at]) as usize);
        (row < array.len()).then_some(Object::Struct { array, row })
    }
}

/// The names of the columns of the first file that a path or glob names; of JSON the keys of its first row.
///
/// # Errors
/// A path that matches nothing, a file that is unreadable, corrupt or empty.
pub fn columns(path: &str) -> Result<Vec<String>, Error> {
    let paths = path::resolve(path)?;
    let Some((path, kind)) = paths.first() else { return Ok(Vec::new()) };
    let corrupt = |problem: String| Error::Corrupt { file: path.to_path_buf(), problem };
    let file = SourceFile::opened(path, *kind, false)?;
    if let Some(schema) = file.schema() {
        return Ok(schema.fields().iter().map(|field| field.name().clone()).collect());
    }
    let SourceFile::Text(text) = &file else { return Ok(Vec::new()) };
    if let Some(columns) = text.columns().map_err(|fault| corrupt(fault.to_string()))? {
        return Ok(columns);
    }
    let block = text.load(text.block_of(0)).map_err(|fault| corrupt(fault.to_string()))?;
    let record = text.record(&block, 0, &[]).map_err(|fault| corrupt(fault.problem))?;
    Ok(record.0.keys().cloned().collect())
}

impl Dataset {
    /// Opens and indexes every file that the entry's path or glob names, in sorted order, and checks that
    /// the columns its format needs are there. Reads text files once; keeps no rows.
    ///
    /// # Errors
    /// A path that matches nothing, a file that is unreadable, corrupt or empty, a `fields` mapping or a
    /// column that does not fit the format.
    pub fn open(spec: &DatasetSpec) -> Result<Dataset, Error> {
        Self::of_files(spec, path::resolve(&spec.path)?)
    }

    /// [`open`](Self::open) of files that were found elsewhere than at the entry's path, in this order.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn open_files(spec: &DatasetSpec, files: &[PathBuf]) -> Result<Dataset, Error> {
        let known = |file: &PathBuf| Ok((file.as_path().into(), path::kind(file)?));
        Self::of_files(spec, files.iter().map(known).collect::<Result<_, Error>>()?)
    }

    fn of_files(spec: &DatasetSpec, paths: Vec<(Arc<Path>, Kind)>) -> Result<Dataset, Error> {
        let fields = Fields::new(spec)?;
        let files: Vec<Result<SourceFile, Error>> = paths
            .par_iter()
            .map(|(path, kind)| SourceFile::open(path, *kind, &fields, paths.len() == 1))
            .collect();
        let files = files.into_iter().collect::<Result<Vec<_>, _>>()?;
        let mut starts = vec![0];
        let mut rows = 0_u64;
        for file in &files {
            // Each file has fewer than 2^62 rows, and a sum of saturated counts is only ever too small.
            rows = rows.saturating_add(file.rows());
            starts.push(rows);
        }
        let paths = paths.into_iter().map(|(path, _)| path).collect();
        Ok(Dataset { fields, files, paths, starts, cache: Cache::new() })
    }

    /// How many rows the files hold together; at least one.
    pub fn rows(&self) -> u64 {
        self.starts[self.starts.len() - 1]
    }

    /// The example in `row`, from 0. May read the row's block from its file, and keeps it for neighbours.
    ///
    /// # Errors
    /// The row is malformed, lies behind the end, or its file can no longer be read.
    pub fn example(&self, row: u64) -> Result<Example, RowError> {
        self.example_and_unread(row, &mut |_| {})
    }

    /// [`example`](Self::example); `report` gets the name of each column that holds something in the row and is not used.
    /// Of files with a schema [`unread_columns`](Self::unread_columns) names them.
    ///
    /// # Errors
    /// As [`example`](Self::example).
    pub fn example_and_unread(&self, row: u64, report: &mut dyn FnMut(&str)) -> Result<Example, RowError> {
        let Some((file, row_in_file)) = self.locate(row) else {
            return Err(self.error(row, format!("no such row: there are {}", self.rows())));
        };
        let source = &self.files[file];
        let rows = source.block_of(row_in_file);
        let index = row_in_file - rows.start;
        let most = source.location().largest_block();
        let block = self.block(file, rows).map_err(|fault| self.error(row, fault.to_string()))?;
        let example = match (source, &*block) {
            (SourceFile::Text(text), Block::Text(block)) => {
                match text.record(block, index, &self.fields.json_columns()) {
                    Ok(record) => self.fields.example(Object::Json(&record.0), most, report),
                    Err(fault) if fault.column.is_empty() => Err(RowProblem::whole(fault.problem)),
                    Err(fault) => Err(RowProblem::at(format!("/{}", fault.column), fault.problem)),
                }
            }
            (_, Block::Columns(columns)) => {
                // Arrays were checked when they were built; this wall stands behind that check.
                let read = || {
                    let object = columns.row(index).ok_or_else(|| Fault::new("no such row"))?;
                    Ok(self.fields.example(object, most, report))
                };
                guard("Arrow", read).map_err(|fault| self.error(row, fault.to_string()))?
            }
            (_, Block::Text(_)) => Err(RowProblem::whole("no such row")),
        };
        example.map_err(|problem| RowError::new(self.place(row), problem))
    }

    /// Where `row` stands: its file, and the line or row in that file.
    pub fn place(&self, row: u64) -> Place {
        let (file, row_in_file) = self.locate(row).unwrap_or((self.files.len() - 1, row));
        let position = self.line(file, row_in_file).map_or(Position::Row(row_in_file), Position::Line);
        Place { file: self.paths[file].clone(), position }
    }

    /// Columns of the files with a schema that are not used, each once.
    pub fn unread_columns(&self) -> Vec<&str> {
        let mut unread: Vec<&str> = Vec::new();
        for column in self.files.iter().filter_map(SourceFile::schema).flat_map(Schema::fields) {
            if self.fields.is_unread(column.name()) && !unread.contains(&column.name().as_str()) {
                unread.push(column.name());
            }
        }
        unread
    }

    /// The files, in the order in which their rows are numbered.
    pub fn files(&self) -> &[Arc<Path>] {
        &self.paths
    }

    /// First row of each run of rows that are best read together, ending with [`rows`](Self::rows): `[0, rows]`
    /// where any row is as cheap to read as any other, which is so unless there are Parquet files (a row group
    /// or part of one each) or compressed Arrow files (a record batch each).
    pub fn units(&self) -> Arc<[u64]> {
        let units_of: Vec<_> = self.files.iter().map(SourceFile::units).collect();
        let mut units = Vec::new();
        if units_of.iter().any(Option::is_some) {
            for ((file, units_of), start) in self.files.iter().zip(units_of).zip(&self.starts) {
                match units_of {
                    Some(firsts) => units.extend(firsts.iter().map(|first| start + first)),
                    None => {
                        units.extend((0..file.rows()).step_by(UNIT_ROWS as usize).map(|first| start + first))
                    }
                }
            }
        } else {
            units.push(0);
        }
        units.push(self.rows());
        units.into()
    }

    /// SHA-256 (hex) of the files in order: of each its name (without folder) and its bytes, both preceded by
    /// their lengths as 64-bit little-endian integers. Reads every byte, in pieces; of a single text file, opening it did.
    ///
    /// # Errors
    /// A file can no longer be read.
    pub fn sha256(&self) -> Result<String, Error> {
        match &self.files[..] {
            [SourceFile::Text(file)] if let Some(hash) = file.hash() => Ok(hex(hash.clone())),
            _ => self.digest(Location::open),
        }
    }

    /// [`sha256`](Self::sha256) of the files that lie under these names now, whether they have changed or not.
    ///
    /// # Errors
    /// A file can no longer be read.
    pub fn sha256_now(&self) -> Result<String, Error> {
        self.digest(Location::open_as_it_is)
    }

    fn digest(&self, open: impl Fn(&Location) -> Result<File, Fault>) -> Result<String, Error> {
        let mut hash = Sha256::new();
        let mut piece = vec![0; 1 << 20];
        for (path, file) in self.paths.iter().zip(&self.files) {
            let io = |problem: String| Error::Io { file: path.to_path_buf(), problem };
            let mut input = open(file.location()).map_err(|fault| io(fault.to_string()))?;
            let length = input.metadata().map_err(|error| io(error.to_string()))?.len();
            begin_file(&mut hash, path, length);
            loop {
                match input.read(&mut piece) {
                    Ok(0) => break,
                    Ok(count) => hash.update(&piece[..count]),
                    Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                    Err(error) => return Err(io(error.to_string())),
                }
            }
        }
        Ok(hex(hash))
    }

    /// The file that holds `row`, and the row in it.
    fn locate(&self, row: u64) -> Option<(usize, u64)> {
        let file = self.starts.partition_point(|&start| start <= row) - 1;
        (file < self.files.len()).then(|| (file, row - self.starts[file]))
    }

    fn block(&self, file: usize, rows: Range<u64>) -> Result<Arc<Block>, Fault> {
        let source = &self.files[file];
        self.cache.get((file, rows.start), || source.load(rows), Block::size)
    }

    fn line(&self, file: usize, row: u64) -> Option<u64> {
        let SourceFile::Text(text) = &self.files[file] else { return None };
        let rows = text.block_of(row);
        match &*self.block(file, rows.clone()).ok()? {
            Block::Text(block) => block.line(row - rows.start),
            Block::Columns(_) => None,
        }
    }

    fn error(&self, row: u64, problem: String) -> RowError {
        RowError::new(self.place(row), RowProblem::whole(problem))
    }
}

impl SourceFile {
    /// Opens a file, whatever its columns are. `is_alone`: it is the dataset's only file, so that a pass over all of it gives
    /// the dataset's hash.
    fn opened(path: &Arc<Path>, kind: Kind, is_alone: bool) -> Result<SourceFile, Error> {
        let corrupt = |fault: Fault| Error::Corrupt { file: path.to_path_buf(), problem: fault.to_string() };
        let location = Location::new(path.clone()).map_err(corrupt)?;
        let empty = || Error::Empty { file: path.to_path_buf() };
        if location.len() == 0 {
            return Err(empty());
        }
        let hash = is_alone.then(|| {
            let mut hash = Sha256::new();
            begin_file(&mut hash, path, location.len());
            hash
        });
        let head = TextFile::head(&location).map_err(corrupt)?;
        if let Some(disguise) = Disguise::of(&head).filter(|disguise| !kind.is_called(*disguise)) {
            return Err(corrupt(Fault::new(disguise.to_string())));
        }
        let file = match kind {
            Kind::Ipc => guard("Arrow", || IpcFile::open(location).map(SourceFile::Ipc)),
            Kind::Parquet => guard("Parquet", || ParquetFile::open(location).map(SourceFile::Parquet)),
            Kind::Json => TextFile::open(location, TextFile::json_syntax(&head), hash).map(SourceFile::Text),
            Kind::Csv => TextFile::open(location, TextFile::csv_syntax(&head), hash).map(SourceFile::Text),
        }
        .map_err(corrupt)?;
        if file.rows() == 0 {
            return Err(empty());
        }
        Ok(file)
    }

    /// [`opened`](Self::opened), with the columns of `fields`.
    fn open(path: &Arc<Path>, kind: Kind, fields: &Fields, is_alone: bool) -> Result<SourceFile, Error> {
        let corrupt = |fault: Fault| Error::Corrupt { file: path.to_path_buf(), problem: fault.to_string() };
        let mut file = Self::opened(path, kind, is_alone)?;
        match &mut file {
            SourceFile::Text(text) => {
                if let Some(columns) = text.columns().map_err(corrupt)? {
                    let columns: Vec<_> = columns.iter().map(|name| (name.as_str(), None)).collect();
                    let chosen = fields.choose(path, &columns);
                    if let Some(problem) = text.rows_within(chosen.is_ok()) {
                        return Err(corrupt(Fault::new(problem)));
                    }
                    chosen?;
                }
            }
            SourceFile::Ipc(ipc) => {
                let chosen = fields.choose(path, &typed_columns(ipc.schema()))?;
                ipc.project(chosen);
            }
            SourceFile::Parquet(parquet) => {
                let chosen = fields.choose(path, &typed_columns(parquet.schema()))?;
                parquet.project(chosen).map_err(corrupt)?;
            }
        }
        Ok(file)
    }

    fn location(&self) -> &Location {
        match self {
            SourceFile::Text(text) => text.location(),
            SourceFile::Ipc(ipc) => ipc.location(),
            SourceFile::Parquet(parquet) => parquet.location(),
        }
    }

    fn schema(&self) -> Option<&Schema> {
        match self {
            SourceFile::Text(_) => None,
            SourceFile::Ipc(ipc) => Some(ipc.schema()),
            SourceFile::Parquet(parquet) => Some(parquet.schema()),
        }
    }

    fn rows(&self) -> u64 {
        match self {
            SourceFile::Text(text) => text.rows(),
            SourceFile::Ipc(ipc) => ipc.rows(),
            SourceFile::Parquet(parquet) => parquet.rows(),
        }
    }

    fn units(&self) -> Option<&[u64]> {
        match self {
            SourceFile::Text(_) => None,
            SourceFile::Ipc(ipc) => ipc.units(),
            SourceFile::Parquet(parquet) => Some(parquet.units()),
        }
    }

    fn block_of(&self, row: u64) -> Range<u64> {
        match self {
            SourceFile::Text(text) => text.block_of(row),
            SourceFile::Ipc(ipc) => ipc.block_of(row),
            SourceFile::Parquet(parquet) => parquet.block_of(row),
        }
    }

    fn load(&self, rows: Range<u64>) -> Result<Block, Fault> {
        let columns = |(batches, bytes)| Block::Columns(Columns::new(batches, bytes));
        match self {
            SourceFile::Text(text) => text.load(rows).map(Block::Text),
            SourceFile::Ipc(ipc) => guard("Arrow", || {
                let batch = StructArray::from(ipc.load(rows)?);
                let bytes = batch.get_array_memory_size();
                Ok(columns((vec![batch], bytes)))
            }),
            SourceFile::Parquet(parquet) => guard("Parquet", || parquet.load(rows).map(columns)),
        }
    }
}

impl Block {
    fn size(&self) -> usize {
        match self {
            Block::Text(text) => text.size(),
            Block::Columns(columns) => columns.bytes,
        }
    }
}

/// Adds a file's name and length to the hash of its dataset, before its bytes.
fn begin_file(hash: &mut Sha256, path: &Path, length: u64) {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    hash.update((name.len() as u64).to_le_bytes());
    hash.update(name.as_bytes());
    hash.update(length.to_le_bytes());
}

fn hex(hash: Sha256) -> String {
    hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

fn typed_columns(schema: &Schema) -> Vec<(&str, Option<&arrow_schema::DataType>)> {
    schema.fields().iter().map(|field| (field.name().as_str(), Some(field.data_type()))).collect()
}
