//! One pass over every row before training: which rows cannot be used, are left out or cut, how long the others are, and
//! from the lengths the exact number of optimizer steps. Keeps four bytes a row.

mod note;
mod schedule;
mod statistics;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use rayon::prelude::*;

use crate::data::batch::Batching;
use crate::data::corpus::{Corpus, Inner, Part};
use crate::data::error::Error;
use crate::data::example::RowId;
use crate::data::sequence::{FitOutcome, Limits};
use crate::data::source::{BadRows, Place, SHOWN_BAD_ROWS};
use crate::data::spec::{Format, OnOverflow};
use crate::data::template::{EndOfTurn, SpanMethod};
use crate::data::token_store::TokenStore;
use crate::data::tokenize::{Supervision, Tokenized};
pub use note::Note;
pub use schedule::Schedule;
pub use statistics::{LengthBin, Shape, Side, Statistics};

/// Rows per task of the thread pool.
const CHUNK: u64 = 256;

/// The rows of a recipe in numbers.
#[derive(Clone, Debug, Default)]
pub struct Survey {
    /// Rows that are trained on.
    pub train: Tally,
    /// Rows that are held out.
    pub validation: Tally,
    /// Rows that cannot be used. The run must not start while there are any.
    pub bad: BadRows,
    /// Rows longer than the sequence length: cut or left out, as `on_overflow` says.
    pub overflow: NamedRows,
    /// Rows longer than the model's positions: left out or trained on, as `on_beyond_positions` says.
    pub beyond_positions: NamedRows,
    /// Rows left out because nothing in them is supervised.
    pub empty: NamedRows,
    /// The shape of the run; absent while there are bad rows.
    pub schedule: Option<Schedule>,
    /// What is not an error but should be known.
    pub notes: Vec<Note>,
}

impl Survey {
    /// Refuses bad rows.
    ///
    /// # Errors
    /// [`Error::Rows`].
    pub fn accept(self) -> Result<Survey, Error> {
        if self.bad.is_empty() { Ok(self) } else { Err(Error::Rows(self.bad)) }
    }
}

/// Some rows, counted. Each row counts once, whatever the weight of its dataset.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Tally {
    /// All rows, the unusable included.
    pub rows: u64,
    /// Rows that are used.
    pub used: u64,
    /// Tokens in the used rows, after cutting.
    pub tokens: u64,
    /// Supervised tokens in the used rows.
    pub supervised_tokens: u64,
    /// The longest used row, in tokens.
    pub longest: Option<(u32, RowId)>,
    /// How many used rows have a length in tokens in `[2^k, 2^(k+1))`, for each k.
    pub histogram: [u64; 32],
}

impl Tally {
    fn add(&mut self, row: RowId, tokens: u32, supervised: u64) {
        self.used += 1;
        self.tokens += u64::from(tokens);
        self.supervised_tokens += supervised;
        self.histogram[tokens.max(1).ilog2() as usize] += 1;
        self.longest = longer(self.longest, Some((tokens, row)));
    }

    fn merge(&mut self, other: &Tally) {
        self.rows += other.rows;
        self.used += other.used;
        self.tokens += other.tokens;
        self.supervised_tokens += other.supervised_tokens;
        self.longest = longer(self.longest, other.longest);
        for (count, more) in self.histogram.iter_mut().zip(other.histogram) {
            *count += more;
        }
    }
}

/// The longer of two; of equals, the earlier row.
fn longer(left: Option<(u32, RowId)>, right: Option<(u32, RowId)>) -> Option<(u32, RowId)> {
    [left, right].into_iter().flatten().min_by_key(|(tokens, row)| (u32::MAX - tokens, *row))
}

/// Rows of one kind: the first ones by place, all of them counted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NamedRows {
    /// The first twenty by row number, each with its place and its length in tokens.
    pub first: Vec<(RowId, Place, usize)>,
    /// Number of rows.
    pub count: u64,
}

impl NamedRows {
    fn add(&mut self, row: RowId, place: impl FnOnce() -> Place, tokens: usize) {
        self.count += 1;
        let at = self.first.partition_point(|(kept, ..)| *kept < row);
        if at < SHOWN_BAD_ROWS {
            self.first.insert(at, (row, place(), tokens));
            self.first.truncate(SHOWN_BAD_ROWS);
        }
    }

    fn merge(&mut self, other: NamedRows) {
        let named = other.first.len() as u64;
        for (row, place, tokens) in other.first {
            self.add(row, || place, tokens);
        }
        self.count += other.count - named;
    }
}

/// The results of one thread.
#[derive(Debug, Default)]
struct Seen {
    survey: Survey,
    lacks_bos: bool,
    end_of_turn: Option<EndOfTurn>,
    differential: u64,
    dropped_thoughts: u64,
    marked: u64,
    silent: u64,
    not_spelled: NamedRows,
    /// Rows that have a column or a key of messages that is not used, by dataset and name.
    unread: BTreeMap<(u32, String), u64>,
}

impl Corpus {
    /// Reads, renders and tokenizes every row once, in parallel, and computes the shape of the run.
    ///
    /// `progress` is called from any thread with the rows done and the rows in total. Setting `cancel` ends the survey
    /// soon.
    ///
    /// # Errors
    /// [`Error::Cancelled`], [`Error::Endless`], [`Error::NothingLeft`]. Bad rows are reported in the survey: see
    /// [`Survey::accept`].
    pub fn survey(
        &self,
        batching: &Batching,
        progress: &(dyn Fn(u64, u64) + Sync),
        cancel: &AtomicBool,
    ) -> Result<Survey, Error> {
        if batching.epochs.is_none() && batching.max_steps.is_none() {
            return Err(Error::Endless);
        }
        let inner = self.inner();
        let store = inner.new_token_store();
        let total = inner.datasets.iter().map(|part| part.dataset.rows()).sum();
        let done = AtomicU64::new(0);
        let mut all = Seen::default();
        let mut lengths = Vec::with_capacity(inner.datasets.len());
        for (dataset, part) in (0_u32..).zip(&inner.datasets) {
            let mut of_dataset = vec![0_u32; part.dataset.rows() as usize];
            let work = |(chunk, lengths): (usize, &mut [u32])| {
                let mut seen = Seen::default();
                if cancel.load(Ordering::Relaxed) {
                    return seen;
                }
                for (row, length) in (chunk as u64 * CHUNK..).zip(lengths.iter_mut()) {
                    *length = seen.look(inner, part, RowId { dataset, row }, store.as_ref());
                }
                let rows = lengths.len() as u64;
                progress(done.fetch_add(rows, Ordering::Relaxed) + rows, total);
                seen
            };
            let seen = inner.pool.install(|| {
                of_dataset
                    .par_chunks_mut(CHUNK as usize)
                    .enumerate()
                    .map(work)
                    .reduce(Seen::default, Seen::merged)
            });
            if cancel.load(Ordering::Relaxed) {
                return Err(Error::Cancelled);
            }
            all = all.merged(seen);
            lengths.push(of_dataset);
        }
        let mut survey = all.finish(inner);
        if survey.bad.is_empty() {
            inner.keep_tokens(store);
            survey.schedule = Some(schedule::schedule(inner, batching, &lengths, cancel)?);
        }
        Ok(survey)
    }
}

impl Seen {
    /// Looks at one row, and keeps its sequence where there is a `store`. Returns its length in tokens as it will be used,
    /// 0 if it will not be.
    fn look(&mut self, inner: &Inner, part: &Part, id: RowId, store: Option<&TokenStore>) -> u32 {
        let held = inner.is_held_out(id);
        if held {
            self.survey.validation.rows += 1
        } else {
            self.survey.train.rows += 1
        }
        let mut unread = BTreeSet::new();
        let documents = inner.tokenize_and_report(id, &mut |name| _ = unread.insert(name.to_owned()));
        for name in unread {
            *self.unread.entry((id.dataset, name)).or_default() += 1;
        }
        let mut longest = 0;
        let fate = documents.and_then(|documents| {
            self.remark(inner, part, id, &documents);
            longest = documents.iter().map(|document| document.input_ids.len()).max().unwrap_or(0);
            inner.fit(id, documents)
        });
        let Limits { max_seq_len, on_overflow, .. } = inner.limits;
        let fate = match fate {
            Ok(fate) => fate,
            Err(error) if longest > max_seq_len && on_overflow == OnOverflow::Error => {
                self.survey.bad.too_long(id, error, longest, max_seq_len);
                return 0;
            }
            Err(error) => {
                self.survey.bad.bad(id, error);
                return 0;
            }
        };
        self.survey.bad.good();
        let place = || part.dataset.place(id.row);
        match &fate {
            FitOutcome::Whole(_) => {}
            FitOutcome::Truncated { tokens, .. } | FitOutcome::TooLong { tokens } => {
                self.survey.overflow.add(id, place, *tokens);
            }
            FitOutcome::BeyondPositions { tokens } => self.survey.beyond_positions.add(id, place, *tokens),
            FitOutcome::Empty { tokens } => self.survey.empty.add(id, place, *tokens),
        }
        let group = fate.group();
        let longest = group.as_ref().map_or(0, |group| group.longest());
        if inner.limits.is_beyond_positions(longest) {
            self.survey.beyond_positions.add(id, place, longest);
        }
        let tokens = group.as_ref().map_or(0, |group| group.tokens() as u32);
        if let Some(group) = &group {
            let tally = if held { &mut self.survey.validation } else { &mut self.survey.train };
            tally.add(id, tokens, group.supervised_tokens() as u64);
        }
        if let Some(store) = store {
            store.keep(id, group);
        }
        tokens
    }

    fn remark(&mut self, inner: &Inner, part: &Part, id: RowId, documents: &[Tokenized]) {
        for traits in documents.iter().filter_map(|document| document.rendered) {
            self.lacks_bos |= traits.lacks_bos;
            self.end_of_turn = self.end_of_turn.max(traits.end_of_turn);
            self.dropped_thoughts += u64::from(traits.dropped_thoughts);
            self.marked += u64::from(traits.marked);
            self.silent += u64::from(traits.silent);
        }
        let differential = Supervision::Template(SpanMethod::Differential);
        self.differential += u64::from(documents.iter().any(|document| document.supervision == differential));
        if let Some(document) = documents.iter().find(|document| !inner.examples.round_trips(document)) {
            self.not_spelled.add(id, || part.dataset.place(id.row), document.input_ids.len());
        }
    }

    fn merged(mut self, other: Seen) -> Seen {
        self.survey.train.merge(&other.survey.train);
        self.survey.validation.merge(&other.survey.validation);
        self.survey.bad.merge(other.survey.bad);
        self.survey.overflow.merge(other.survey.overflow);
        self.survey.beyond_positions.merge(other.survey.beyond_positions);
        self.survey.empty.merge(other.survey.empty);
        self.lacks_bos |= other.lacks_bos;
        self.end_of_turn = self.end_of_turn.max(other.end_of_turn);
        self.differential += other.differential;
        self.dropped_thoughts += other.dropped_thoughts;
        self.marked += other.marked;
        self.silent += other.silent;
        self.not_spelled.merge(other.not_spelled);
        for (name, rows) in other.unread {
            *self.unread.entry(name).or_default() += rows;
        }
        self
    }

    fn finish(self, inner: &Inner) -> Survey {
        let mut survey = self.survey;
        let mut notes = Vec::new();
        for (dataset, part) in (0_u32..).zip(&inner.datasets) {
            let columns = part.dataset.unread_columns().into_iter().map(|column| (column.to_owned(), None));
            let counted = self.unread.range((dataset, String::new())..(dataset + 1, String::new()));
            let names: Vec<_> =
                columns.chain(counted.map(|((_, name), rows)| (name.clone(), Some(*rows)))).collect();
            if !names.is_empty() {
                notes.push(Note::Unread { path: part.path.clone(), names });
            }
        }
        let has_pairs = inner.datasets.iter().any(|part| part.format == Format::Preference);
        if has_pairs && inner.limits.copies_prompts {
            notes.push(Note::CopiedPrompts);
        }
        if let Some(template) = &inner.examples.template {
            let origin = template.origin().to_owned();
            if template.asked_the_date() {
                notes.push(Note::Clock { origin: origin.clone() });
            }
            if self.lacks_bos {
                notes.push(Note::LacksBos { origin: origin.clone() });
            }
            match self.end_of_turn {
                Some(EndOfTurn::Text) => {
                    notes.push(Note::EndIsText { end: template.end_of_turn().unwrap_or_default() });
                }
                Some(EndOfTurn::Nothing) => notes.push(Note::NoEnd { origin }),
                Some(EndOfTurn::Special) | None => {}
            }
        }
        if self.differential > 0 {
            notes.push(Note::Differential { rows: self.differential });
        }
        if self.dropped_thoughts > 0 {
            notes.push(Note::DroppedThoughts { rows: self.dropped_thoughts });
        }
        if self.marked > 0 {
            notes.push(Note::Marked { rows: self.marked });
        }
        if self.silent > 0 {
            notes.push(Note::Silent { rows: self.silent });
        }
        if let Some((_, first, _)) = self.not_spelled.first.first() {
            notes.push(Note::NotSpelled { rows: self.not_spelled.count, first: first.clone() });
        }
        survey.notes = notes;
        survey
    }
}
