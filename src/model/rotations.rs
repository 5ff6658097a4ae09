//! Rotary tables on a device: those kept from batch to batch, and those of documents with frequencies of their own.

use std::iter::repeat_n;
use std::sync::{Arc, Mutex, PoisonError};

use burn_tensor::{DType, Tensor, TensorData};
use tune_kernels::KernelBackend;
use tune_kernels::attention::DocumentOffsets;
use tune_kernels::rope::{Direction, Positions, RotaryTable, rope, rope_all};

use super::rotary::RotarySpec;

/// The rotation of a batch's queries and keys.
#[derive(Clone, Debug)]
pub struct Rotation<B: KernelBackend> {
    table: RotaryTable<B>,
    /// The table of queries, where it differs from that of keys.
    query: Option<RotaryTable<B>>,
    /// Each token's row.
    rows: Positions<B>,
}

impl<B: KernelBackend> Rotation<B> {
    /// Every head of queries and keys, `[tokens, heads, dim]`, rotated by its token's position, or their gradients back.
    pub fn apply(&self, [query, key]: [Tensor<B, 3>; 2], direction: Direction) -> [Tensor<B, 3>; 2] {
        match &self.query {
            None => rope_all([query, key], &self.table, &self.rows, direction),
            Some(table) => {
                let query = rope(query, table, &self.rows, direction);
                [query, rope(key, &self.table, &self.rows, direction)]
            }
        }
    }

    /// Queries alone, or their gradients back.
    pub fn queries(&self, query: Tensor<B, 3>, direction: Direction) -> Tensor<B, 3> {
        rope(query, self.query.as_ref().unwrap_or(&self.table), &self.rows, direction)
    }

    /// Keys alone, forward.
    pub fn keys(&self, key: Tensor<B, 3>) -> Tensor<B, 3> {
        rope(key, &self.table, &self.rows, Direction::Forward)
    }
}

/// The tables of a decoder's rotary positions, kept from one batch to the next and shared by clones.
#[derive(Clone, Debug)]
pub(super) struct Rotations<B: KernelBackend> {
    /// By place in the decoder's list.
    kept: Arc<Mutex<Vec<Option<Kept<B>>>>>,
}

/// How many positions there are, and their tables.
type Kept<B> = (usize, Tables<B>);

/// The tables of keys, and of queries where they differ.
type Tables<B> = (RotaryTable<B>, Option<RotaryTable<B>>);

impl<B: KernelBackend> Rotations<B> {
    pub(super) fn new() -> Self {
        Self { kept: Arc::new(Mutex::new(Vec::new())) }
    }

    /// The rotation by each of `specs` of tokens at `positions` in their documents.
    pub(super) fn of(
        &self,
        specs: &[RotarySpec],
        positions: &[u32],
        documents: &DocumentOffsets,
        device: &B::Device,
    ) -> Vec<Rotation<B>> {
        let shared = Positions::new(positions, device);
        let count = positions.iter().max().map_or(0, |last| *last as usize + 1);
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.resize(specs.len(), None);
        let rotation = |(spec, kept): (&RotarySpec, &mut Option<(usize, Tables<B>)>)| {
            if documents.documents().any(|(_, keys)| spec.depends_on_length(keys.len())) {
                return by_document(spec, positions, documents, device);
            }
            let (table, query) = match kept {
                Some((rows, tables)) if *rows >= count => tables.clone(),
                _ => {
                    let rows = count.next_power_of_two().max(64);
                    let tables = Rows::default().with(spec, 0..rows as u32, 0).upload(spec, device);
                    *kept = Some((rows, tables.clone()));
                    tables
                }
            };
            Rotation { table, query, rows: shared.clone() }
        };
        specs.iter().zip(kept.iter_mut()).map(rotation).collect()
    }
}

/// A table with the rows that short documents share, and a row for each token of every document with frequencies of its
/// own.
fn by_document<B: KernelBackend>(
    spec: &RotarySpec,
    positions: &[u32],
    documents: &DocumentOffsets,
    device: &B::Device,
) -> Rotation<B> {
    let short = documents.documents().filter(|(_, keys)| !spec.depends_on_length(keys.len()));
    let count = short.flat_map(|(queries, _)| &positions[queries]).max().map_or(0, |last| last + 1);
    let mut table = Rows::default().with(spec, 0..count, 0);
    let mut rows = Vec::with_capacity(positions.len());
    for (queries, keys) in documents.documents() {
        let own = &positions[queries];
        match spec.depends_on_length(keys.len()) {
            false => rows.extend_from_slice(own),
            true => {
                let first = table.count;
                table = table.with(spec, own.iter().copied(), keys.len());
                rows.extend(first..table.count);
            }
        }
    }
    let (table, query) = table.upload(spec, device);
    Rotation { table, query, rows: Positions::new(&rows, device) }
}

/// Rows of a table on the host.
#[derive(Default)]
struct Rows {
    cosines: Vec<f32>,
    sines: Vec<f32>,
    /// The factor on queries of each row.
    query_factors: Vec<f32>,
    count: u32,
}

impl Rows {
    /// The rows of some positions of a document of `length` tokens added.
    fn with(
        mut self,
        spec: &RotarySpec,
        positions: impl Iterator<Item = u32> + Clone,
        length: usize,
    ) -> Self {
        let (cosines, sines) = spec.tables(positions.clone(), length);
        self.cosines.extend(cosines);
        self.sines.extend(sines);
        self.query_factors.extend(positions.map(|position| spec.query_factor(position)));
        self.count = self.query_factors.len() as u32;
        self
    }

    fn upload<B: KernelBackend>(self, spec: &RotarySpec, device: &B::Device) -> Tables<B> {
        let shape = [self.count as usize, spec.dimensions / 2];
        let upload =
            |values: Vec<f32>| Tensor::from_data(TensorData::new(values, shape), (device, DType::F32));
        let scaled = |values: &[f32]| -> Vec<f32> {
            let factors = self.query_factors.iter().flat_map(|factor| repeat_n(factor, shape[1]));
            values.iter().zip(factors).map(|(value, factor)| value * factor).collect()
        };
        let table = |cos, sin| RotaryTable { cos: upload(cos), sin: upload(sin), pairs: spec.pairs };
        let query = self.query_factors.iter().any(|factor| *factor != 1.0);
        let query = query.then(|| table(scaled(&self.cosines), scaled(&self.sines)));
        (table(self.cosines, self.sines), query)
    }
}
