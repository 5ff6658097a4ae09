//! The arithmetic that a step of training cannot do without: what its speed is measured against.
//!
//! Two operations for each multiply-add of one forward and one backward pass: 4 for each frozen weight that a token is
//! multiplied by and 6 for each of its adapters, the head for supervised tokens alone, and 14 for each score that is
//! visible and each number of its head (two products forward, five backward). What is recomputed, norms, activations and
//! the states of recurrent mixers are not counted, nor is a pass of a reference model.

use crate::adapter::projection::Role;
use crate::adapter::target::Target;
use crate::data::batch::MicroBatch;
use crate::model::DecoderSpec;
use crate::model::parts::BodySpec;

/// Operations of one micro-batch.
pub(super) fn operations(spec: &DecoderSpec, targets: &[Target], batch: &MicroBatch) -> f64 {
    let tokens = batch.tokens() as f64;
    let weights: u64 = spec.layers.iter().map(|layer| layer.projection_elements()).sum();
    let adapters: f64 = targets.iter().map(|target| adapter(spec, target)).sum();
    let head = (spec.vocab_size * spec.hidden_size) as f64 * batch.supervised_tokens as f64;
    let bodies = spec.layers.iter().flat_map(|layer| layer.bodies());
    let scores = bodies.filter_map(|body| match body {
        BodySpec::Attention(attention) => Some((attention.heads, attention.window)),
        BodySpec::Reading(reading) => Some((reading.heads, reading.window)),
        _ => None,
    });
    let scores = scores.map(|(heads, window)| (heads.queries * heads.dim) as f64 * visible(batch, window));
    tokens * (4.0 * weights as f64 + 6.0 * adapters) + 4.0 * head + 14.0 * scores.sum::<f64>()
}

/// Elements of an adapter that a token is multiplied by, on average: of an expert's the share of tokens that pass it.
fn adapter(spec: &DecoderSpec, target: &Target) -> f64 {
    let module = &target.module;
    let mixture = spec.layers.get(module.layer).and_then(|layer| layer.mixture());
    let share = match (module.role, mixture) {
        (Role::ExpertGate | Role::ExpertUp | Role::ExpertDown, Some(mixture)) => {
            mixture.router.used as f64 / mixture.experts.len().max(1) as f64
        }
        _ => 1.0,
    };
    share * (target.rank * (module.in_features + module.out_features)) as f64
}

/// Pairs of a query and a key that it sees.
fn visible(batch: &MicroBatch, window: Option<usize>) -> f64 {
    let documents = batch.documents().enumerate().map(|(number, own)| {
        let before = batch.prefixes.get(number).map_or(0, |prefix| prefix.len());
        own.zip(before + 1..).map(|(_, end)| end.min(window.unwrap_or(end)) as f64).sum::<f64>()
    });
    documents.sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::adapter::spec::Spec;
    use crate::adapter::target;
    use crate::data::example::RowId;
    use crate::data::sequence::{Group, Sequence, Side};
    use crate::data::tokenize::IGNORED;
    use crate::model::shapes;

    /// Two documents of 3 and 2 tokens, of which 2 are supervised.
    fn batch() -> MicroBatch {
        let mut batch = MicroBatch::default();
        for labels in [vec![IGNORED, 5, 6], vec![IGNORED, IGNORED]] {
            let row = RowId { dataset: 0, row: 0 };
            let ids = vec![1; labels.len()];
            batch.push(Group(vec![Sequence::new(row, Side::Plain, ids, labels)]));
        }
        batch
    }

    #[test]
    fn weights_adapters_scores_and_supervised_rows_are_counted() {
        let spec = shapes::spec("smollm2-135m").expect("a named shape").expect("it is right");
        let targets =
            target::resolve(&Spec { rank: 16, ..Spec::default() }, &spec.modules()).expect("targets");
        // 30 layers: q and o 576 × 576, k and v 192 × 576, three of 1536 × 576; 9 heads of 64.
        let weights = 30_u64 * (2 * 576 * 576 + 2 * 192 * 576 + 3 * 1536 * 576);
        let adapters = 30 * 16 * (2 * 1152 + 2 * 768 + 3 * 2112);
        let scores = 30 * 576 * (6 + 3);
        let expected = 5 * (4 * weights + 6 * adapters) + 2 * 4 * 49_152 * 576 + 14 * scores;
        assert_eq!(operations(&spec, &targets, &batch()), expected as f64);
    }

    #[test]
    fn a_window_hides_what_lies_before_it() {
        assert_eq!((visible(&batch(), None), visible(&batch(), Some(2))), (9.0, 8.0));
    }
}
