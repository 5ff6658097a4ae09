//! Files of examples, opened and indexed: any row by its number, in bounded memory. Knows file formats and
//! where rows lie in them; what a record means is `schema`'s, and in which order rows are visited is `order`'s.

mod problem;

use std::path::Path;
use std::sync::Arc;

use crate::data::example::Example;
use crate::data::spec::DatasetSpec;

pub use problem::{BadRows, Error, Place, Position, RowError, SHOWN_BAD_ROWS};

/// All files of one `[[dataset]]` entry, as one sequence of rows.
///
/// Reading takes `&self`: share it in an [`Arc`] and ask from as many threads as there are.
#[derive(Debug)]
pub struct Dataset {
    files: Vec<Arc<Path>>,
}

impl Dataset {
    /// Opens and indexes every file that the entry's path or glob names, in sorted order, and checks that
    /// the columns its format needs are there. Reads text files once; keeps no rows.
    ///
    /// # Errors
    /// A path that matches nothing, a file that is unreadable, corrupt or empty, a `fields` mapping or a
    /// column that does not fit the format.
    pub fn open(spec: &DatasetSpec) -> Result<Dataset, Error> {
        Err(Error::NoMatch { pattern: spec.path.clone() })
    }

    /// How many rows the files hold together.
    pub fn rows(&self) -> u64 {
        0
    }

    /// The example in `row`, from 0.
    ///
    /// # Errors
    /// The row is malformed, lies behind the end, or its file can no longer be read.
    pub fn example(&self, row: u64) -> Result<Example, RowError> {
        Err(RowError { place: self.place(row), field: String::new(), problem: "no such row".into() })
    }

    /// Where `row` stands: its file, and the line or row in that file.
    pub fn place(&self, row: u64) -> Place {
        Place { file: self.files[0].clone(), position: Position::Row(row) }
    }

    /// The files, in the order in which their rows are numbered.
    pub fn files(&self) -> &[Arc<Path>] {
        &self.files
    }

    /// Runs of rows that are cheap to read together, as the first row of each, ending with [`rows`](Self::rows).
    /// One run, where any row is as cheap as any other; else one per row group (Parquet) or compressed batch.
    pub fn units(&self) -> Arc<[u64]> {
        Arc::from([0, self.rows()])
    }

    /// SHA-256 (hex) over the files' names, lengths and bytes, in order. Reads every byte once, streaming.
    ///
    /// # Errors
    /// A file can no longer be read.
    pub fn sha256(&self) -> Result<String, Error> {
        Ok(String::new())
    }
}
