//! Causal attention over concatenated documents, with grouped queries, an optional sliding window and an optional cap of
//! scores.
//!
//! For query i and key j of one document, head h, its key-value head `h / (heads / kv_heads)`:
//!
//! ```text
//! s[i, j] = scaling · q[i] · k[j]   for visible j          L[i] = ln Σⱼ exp s[i, j]
//! p[i, j] = exp(s[i, j] − L[i])                            y[i] = Σⱼ p[i, j] v[j]
//! dv[j] = Σᵢ p[i, j] dy[i]                                 δ[i] = dy[i] · y[i]
//! ds[i, j] = p[i, j] (dy[i] · v[j] − δ[i])                 dq[i] = scaling Σⱼ ds[i, j] k[j],  dk[j] alike
//! ```
//!
//! With a cap of c the scores are `s = c · tanh(scaling · q · k / c)`, and `ds` is multiplied by `1 − (s / c)²` (Gemma 2).
//!
//! A document's queries are its last tokens (all of them in training, the new ones beside a key-value cache), so
//! query number i of n, with m keys, stands at position `m − n + i` and sees the keys up to there; with a window of
//! w only the last w of those. Keys of other documents are never seen. Forward saves `L`; backward recomputes the
//! scores. Neither holds more than a strip of them for one head.
//!
//! A document may begin with rows of another one, which are computed once for both: a *prefix*. Its keys and values are
//! copied in front of the document's own for the time of the op, and their gradients added onto those of the rows that
//! they were copied from.
//!
//! Dao, *FlashAttention-2* (<https://arxiv.org/abs/2307.08691>), for the backward by log-sum-exp.

#[cfg(target_arch = "x86_64")]
mod bf16;
#[cfg(target_arch = "x86_64")]
mod bf16_backward;
#[cfg(target_arch = "x86_64")]
mod bf16_tiles;
mod cpu;
#[cfg(feature = "cube")]
mod cube;
mod decode;
#[cfg(target_arch = "x86_64")]
mod decode_avx512;
mod head;
pub mod reference;
mod softmax;

use std::ops::Range;
use std::sync::Arc;

use burn_tensor::{Tensor, backend::Backend};

#[cfg(feature = "cube")]
use crate::cube::uploads::Uploads;
use crate::row_sum::{RowLists, RowSumOps, row_sum};

/// Attention on a backend.
pub trait AttentionOps: RowSumOps {
    /// [`attention`] without prefixes.
    fn document_attention(
        q: &Tensor<Self, 3>,
        k: &Tensor<Self, 3>,
        v: &Tensor<Self, 3>,
        options: &AttentionOptions,
    ) -> (Tensor<Self, 3>, Tensor<Self, 2>);

    /// [`attention_apart`] of several documents.
    fn document_attention_apart(
        q: &Tensor<Self, 3>,
        states: &[[Tensor<Self, 3>; 2]],
        options: &AttentionOptions,
    ) -> (Tensor<Self, 3>, Tensor<Self, 2>) {
        one_by_one(q, states, options)
    }

    /// [`write_rows`].
    fn write_rows_at(room: Tensor<Self, 3>, first: usize, rows: Tensor<Self, 3>) -> Tensor<Self, 3> {
        let [count, heads, head_dim] = rows.dims();
        room.slice_assign([first..first + count, 0..heads, 0..head_dim], rows)
    }

    /// [`attention_backward`] without prefixes.
    fn document_attention_backward(request: AttentionBackward<'_, Self>) -> [Tensor<Self, 3>; 3];
}

/// Where documents begin and end among queries and keys. Cloning is cheap.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DocumentOffsets {
    queries: Arc<[u32]>,
    keys: Arc<[u32]>,
    prefixes: Option<Arc<Prefixes>>,
    /// What kernels of all layers read of them.
    #[cfg(feature = "cube")]
    pub(crate) uploads: Uploads,
}

/// Rows that documents share, and the same documents with a copy of them for each.
#[derive(Debug, PartialEq, Eq)]
struct Prefixes {
    /// Of each document, as rows.
    rows: Vec<Range<u32>>,
    /// From rows to those with the copies, and back.
    copy: RowLists,
    add: RowLists,
    /// The documents among rows with the copies.
    documents: DocumentOffsets,
}

impl DocumentOffsets {
    fn of(queries: Arc<[u32]>, keys: Arc<[u32]>) -> Self {
        Self {
            queries,
            keys,
            prefixes: None,
            #[cfg(feature = "cube")]
            uploads: Uploads::default(),
        }
    }

    /// Training: queries and keys are the same tokens. `offsets` starts with 0, ascends, and ends with the number of
    /// tokens; document d is `offsets[d]..offsets[d + 1]`.
    ///
    /// # Panics
    /// If `offsets` is not such a list.
    pub fn packed(offsets: &[u32]) -> Self {
        check("documents", offsets);
        let queries: Arc<[u32]> = offsets.into();
        Self::of(queries.clone(), queries)
    }

    /// Training, where documents begin with rows of others: document d is the rows `prefixes[d]`, which may be none, and
    /// behind them `offsets[d]..offsets[d + 1]`, which alone are its queries.
    ///
    /// # Panics
    /// If `offsets` is no list as for [`Self::packed`], or `prefixes` are not as many ranges of rows as there are
    /// documents.
    pub fn with_prefixes(offsets: &[u32], prefixes: &[Range<u32>]) -> Self {
        let packed = Self::packed(offsets);
        assert_eq!(prefixes.len() + 1, offsets.len(), "document offsets: one prefix for each document");
        if prefixes.iter().all(Range::is_empty) {
            return packed;
        }
        let own = offsets.windows(2).map(|ends| ends[0]..ends[1]);
        let ranges: Vec<Range<u32>> =
            prefixes.iter().cloned().zip(own).flat_map(|(prefix, own)| [prefix, own]).collect();
        let mut keys = vec![0];
        let mut end = 0;
        keys.extend(ranges.chunks_exact(2).map(|both| {
            end += both.iter().map(|range| range.len() as u32).sum::<u32>();
            end
        }));
        let copy = RowLists::copies(ranges, packed.keys());
        let documents = Self::with_cache(offsets, &keys);
        let prefixes = Prefixes { rows: prefixes.to_vec(), add: copy.transposed(), copy, documents };
        Self { prefixes: Some(Arc::new(prefixes)), ..packed }
    }

    /// Generation: document d has its new tokens at `queries[d]..queries[d + 1]`, and its cached and new keys at
    /// `keys[d]..keys[d + 1]`; the last query sees the last key.
    ///
    /// # Panics
    /// If a list does not start with 0 and ascend, if they differ in length, or if a document has more queries than
    /// keys.
    pub fn with_cache(queries: &[u32], keys: &[u32]) -> Self {
        check("queries", queries);
        check("keys", keys);
        assert_eq!(queries.len(), keys.len(), "document offsets: queries and keys name as many documents");
        let offsets = Self::of(queries.into(), keys.into());
        for (queries, keys) in offsets.documents() {
            assert!(
                queries.len() <= keys.len(),
                "document offsets: {queries:?} are more queries than keys {keys:?}"
            );
        }
        offsets
    }

    /// Queries in all.
    pub fn queries(&self) -> usize {
        self.queries.last().map_or(0, |end| *end as usize)
    }

    /// Keys in all.
    pub fn keys(&self) -> usize {
        self.keys.last().map_or(0, |end| *end as usize)
    }

    /// The prefix of document `document`, as rows.
    pub(crate) fn prefix(&self, document: usize) -> Range<usize> {
        let prefix = self.prefixes.as_ref().map(|prefixes| &prefixes.rows[document]);
        prefix.map_or(0..0, |rows| rows.start as usize..rows.end as usize)
    }

    /// Queries and keys of each document, without prefixes.
    pub fn documents(&self) -> impl ExactSizeIterator<Item = (Range<usize>, Range<usize>)> {
        let range = |pair: &[u32]| pair[0] as usize..pair[1] as usize;
        self.queries
            .windows(2)
            .zip(self.keys.windows(2))
            .map(move |(queries, keys)| (range(queries), range(keys)))
    }
}

fn check(name: &str, offsets: &[u32]) {
    assert_eq!(offsets.first(), Some(&0), "document offsets: {name} start at 0");
    assert!(offsets.is_sorted(), "document offsets: {name} ascend");
}

/// Documents, scaling, window and cap of a call.
#[derive(Clone, Debug, PartialEq)]
pub struct AttentionOptions {
    /// Which tokens attend to each other.
    pub documents: DocumentOffsets,
    /// Factor of the scores, usually 1 / √head_dim; positive.
    pub scaling: f32,
    /// How many keys a query sees at most, itself included.
    pub sliding_window: Option<usize>,
    /// What scores are bounded by, smoothly; positive.
    pub soft_cap: Option<f32>,
}

impl AttentionOptions {
    /// The same among other documents.
    fn among(&self, documents: &DocumentOffsets) -> Self {
        Self { documents: documents.clone(), ..self.clone() }
    }

    /// The keys that query `query` of a document with `queries` queries and `keys` keys sees.
    pub(crate) fn visible(&self, query: usize, queries: usize, keys: usize) -> Range<usize> {
        let end = keys - queries + query + 1;
        self.sliding_window.map_or(0, |window| end.saturating_sub(window))..end
    }
}

/// Causal attention within documents: the output, and ln Σ exp of each query's scores, f32 `[heads, tokens]`, for the
/// backward.
///
/// # Shapes
/// `q` `[tokens, heads, head_dim]`, `k` and `v` `[keys, kv_heads, head_dim]`, output like `q`, dtype included.
/// `heads` is a multiple of `kv_heads`.
///
/// # Panics
/// If shapes, dtypes or document offsets do not fit, the window is 0, or scaling or cap is not positive.
pub fn attention<B: AttentionOps>(
    q: &Tensor<B, 3>,
    k: &Tensor<B, 3>,
    v: &Tensor<B, 3>,
    options: &AttentionOptions,
) -> (Tensor<B, 3>, Tensor<B, 2>) {
    check_operands(q, k, v, options);
    match &options.documents.prefixes {
        None => B::document_attention(q, k, v, options),
        Some(prefixes) => {
            let [k, v] = [k, v].map(|rows| summed(rows, &prefixes.copy));
            B::document_attention(q, &k, &v, &options.among(&prefixes.documents))
        }
    }
}

/// [`attention`] of documents whose keys and values lie in tensors of their own, `states[d]` those of document d: for
/// sequences that continue side by side, each with its cache.
///
/// # Panics
/// As [`attention`]; or `states` are not as many as there are documents.
pub fn attention_apart<B: AttentionOps>(
    q: &Tensor<B, 3>,
    states: &[[Tensor<B, 3>; 2]],
    options: &AttentionOptions,
) -> (Tensor<B, 3>, Tensor<B, 2>) {
    let documents = options.documents.documents();
    assert_eq!(documents.len(), states.len(), "attention: one set of keys and values for each document");
    assert!(
        options.documents.prefixes.is_none(),
        "attention: a prefix lies among the rows of its own tensor"
    );
    if let [[k, v]] = states {
        return attention(q, k, v, options);
    }
    for ((_, keys), [k, v]) in documents.zip(states) {
        assert_eq!(k.dims()[0], keys.len(), "attention: documents do not cover the keys");
        assert_eq!(k.dims()[1], states[0][0].dims()[1], "attention: documents differ in key-value heads");
        check_heads(q, k, v, options);
    }
    B::document_attention_apart(q, states, options)
}

/// Writes `rows` over those of `room` from `first` on, both `[_, kv_heads, head_dim]`: the keys or values of new tokens into
/// their cache. In place, where nothing else holds `room`.
///
/// # Panics
/// If `room` has no such rows, or dtypes differ.
pub fn write_rows<B: AttentionOps>(room: Tensor<B, 3>, first: usize, rows: Tensor<B, 3>) -> Tensor<B, 3> {
    let ([all, heads, head_dim], [count, ..]) = (room.dims(), rows.dims());
    assert!(first <= all && count <= all - first, "write_rows: {count} rows from {first} on, of {all}");
    assert_eq!(rows.dims(), [count, heads, head_dim], "write_rows: rows of another width");
    assert_eq!(room.dtype(), rows.dtype(), "write_rows: dtypes");
    B::write_rows_at(room, first, rows)
}

/// The options of a document among several, by itself.
fn alone(options: &AttentionOptions, queries: usize, keys: usize) -> AttentionOptions {
    options.among(&DocumentOffsets::with_cache(&[0, queries as u32], &[0, keys as u32]))
}

/// [`attention_apart`], a document at a time.
fn one_by_one<B: AttentionOps>(
    q: &Tensor<B, 3>,
    states: &[[Tensor<B, 3>; 2]],
    options: &AttentionOptions,
) -> (Tensor<B, 3>, Tensor<B, 2>) {
    let documents = options.documents.documents().zip(states);
    let (outputs, sums): (Vec<_>, Vec<_>) = documents
        .filter(|((queries, _), _)| !queries.is_empty())
        .map(|((queries, keys), [k, v])| {
            let own = q.clone().narrow(0, queries.start, queries.len());
            B::document_attention(&own, k, v, &alone(options, queries.len(), keys.len()))
        })
        .unzip();
    (Tensor::cat(outputs, 0), Tensor::cat(sums, 1))
}

/// [`row_sum`] of rows of heads.
fn summed<B: AttentionOps>(x: &Tensor<B, 3>, lists: &RowLists) -> Tensor<B, 3> {
    let [rows, heads, head_dim] = x.dims();
    let sums = row_sum(&x.clone().reshape([rows, heads * head_dim]), lists);
    sums.reshape([lists.results(), heads, head_dim])
}

fn check_operands<B: Backend>(
    q: &Tensor<B, 3>,
    k: &Tensor<B, 3>,
    v: &Tensor<B, 3>,
    options: &AttentionOptions,
) {
    check_heads(q, k, v, options);
    assert_eq!(options.documents.keys(), k.dims()[0], "attention: documents do not cover the keys");
}

fn check_heads<B: Backend>(q: &Tensor<B, 3>, k: &Tensor<B, 3>, v: &Tensor<B, 3>, options: &AttentionOptions) {
    let ([tokens, heads, head_dim], [_, kv_heads, key_dim]) = (q.dims(), k.dims());
    assert_eq!(k.dims(), v.dims(), "attention: keys and values differ in shape");
    assert_eq!(head_dim, key_dim, "attention: queries and keys differ in head dimension");
    assert!(
        kv_heads > 0 && heads.is_multiple_of(kv_heads),
        "attention: {heads} heads over {kv_heads} key-value heads"
    );
    assert!(q.dtype() == k.dtype() && k.dtype() == v.dtype(), "attention: q, k and v differ in dtype");
    assert_eq!(options.documents.queries(), tokens, "attention: documents do not cover the queries");
    assert_ne!(options.sliding_window, Some(0), "attention: a window of 0 sees nothing");
    assert!(options.scaling > 0.0, "attention: scores are scaled by {}", options.scaling);
    assert!(
        options.soft_cap.is_none_or(|cap| cap > 0.0),
        "attention: scores are capped at {:?}",
        options.soft_cap
    );
}

/// The arguments of [`attention_backward`].
#[derive(Debug)]
pub struct AttentionBackward<'a, B: Backend> {
    /// `[tokens, heads, head_dim]`.
    pub q: &'a Tensor<B, 3>,
    /// `[keys, kv_heads, head_dim]`.
    pub k: &'a Tensor<B, 3>,
    /// Like `k`.
    pub v: &'a Tensor<B, 3>,
    /// The forward's output.
    pub output: &'a Tensor<B, 3>,
    /// The forward's ln Σ exp, f32 `[heads, tokens]`.
    pub log_sum_exp: &'a Tensor<B, 2>,
    /// As in the forward.
    pub options: &'a AttentionOptions,
    /// Upstream gradient, like `output`.
    pub dy: &'a Tensor<B, 3>,
}

/// Gradients of q, k and v, in their shapes and dtype.
///
/// # Panics
/// As [`attention`].
pub fn attention_backward<B: AttentionOps>(request: AttentionBackward<'_, B>) -> [Tensor<B, 3>; 3] {
    let AttentionBackward { q, k, v, output, log_sum_exp, options, dy } = &request;
    check_operands(q, k, v, options);
    for other in [output, dy] {
        assert!(
            other.dims() == q.dims() && other.dtype() == q.dtype(),
            "attention: output and dy are like q"
        );
    }
    assert_eq!(
        log_sum_exp.dims(),
        [q.dims()[1], q.dims()[0]],
        "attention: one log-sum-exp per head and query"
    );
    let Some(prefixes) = &options.documents.prefixes else {
        return B::document_attention_backward(request);
    };
    let [k, v] = [k, v].map(|rows| summed(rows, &prefixes.copy));
    let options = options.among(&prefixes.documents);
    let [dq, dk, dv] =
        B::document_attention_backward(AttentionBackward { k: &k, v: &v, options: &options, ..request });
    drop((k, v));
    [dq, summed(&dk, &prefixes.add), summed(&dv, &prefixes.add)]
}
