//! From files to micro-batches: what reaches the model, in which order, with which mask, and after any resume.
#![expect(clippy::unwrap_used, reason = "helpers of tests stop where they fail")]

mod fixture;

use std::collections::BTreeMap;
use std::fs;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use fixture::{Folder, conversation_row, rows_of, tokens_row};
use proptest::prelude::*;
use tune::data::batch::{Batching, Cursor, MicroBatch, StepBatch};
use tune::data::corpus::Corpus;
use tune::data::error::Error;
use tune::data::example::RowId;
use tune::data::inspect::Verdict;
use tune::data::spec::{
    Format, OnBeyondPositions, OnEmpty, OnHiddenThoughts, OnMarked, OnOverflow, Spec, Split, TrainOn,
};
use tune::data::survey::Note;
use tune::data::tokenize::Supervision;

fn spec() -> Spec {
    Spec {
        max_seq_len: 64,
        packing: true,
        on_overflow: OnOverflow::Error,
        on_empty: OnEmpty::Error,
        train_on: None,
        val_split: 0.0,
        shuffle: true,
        chat_template: None,
        chat_template_kwargs: None,
        on_marked: OnMarked::Skip,
        on_hidden_thoughts: OnHiddenThoughts::Learn,
        on_beyond_positions: OnBeyondPositions::Error,
    }
}

fn batching(micro_batch_size: usize, gradient_accumulation_steps: usize) -> Batching {
    Batching { micro_batch_size, gradient_accumulation_steps, epochs: Some(1.0), max_steps: None }
}

fn steps(corpus: &Corpus, batching: &Batching, from: Cursor) -> Vec<StepBatch> {
    corpus.steps(batching, from).unwrap().map(Result::unwrap).collect()
}

fn survey(corpus: &Corpus, batching: &Batching) -> tune::data::survey::Survey {
    corpus.survey(batching, &|_, _| {}, &AtomicBool::new(false)).unwrap()
}

/// The documents of micro-batches: row, ids, targets.
fn documents<'a>(batches: impl IntoIterator<Item = &'a MicroBatch>) -> Vec<(RowId, &'a [u32], &'a [i32])> {
    let mut documents = Vec::new();
    for batch in batches {
        assert_eq!(batch.document_offsets.len(), batch.rows.len() + 1);
        assert_eq!(batch.document_offsets.last().map(|end| *end as usize), Some(batch.input_ids.len()));
        assert_eq!(batch.targets.len(), batch.input_ids.len());
        for (row, bounds) in batch.rows.iter().zip(batch.document_offsets.windows(2)) {
            let range = bounds[0] as usize..bounds[1] as usize;
            let positions: Vec<u32> = (0..range.len() as u32).collect();
            assert_eq!(batch.position_ids[range.clone()], positions, "positions restart with each document");
            assert_eq!(batch.targets[range.end - 1], -100, "no target reaches into the next document");
            documents.push((*row, &batch.input_ids[range.clone()], &batch.targets[range]));
        }
        let supervised = batch.targets.iter().filter(|target| **target != -100).count() as u64;
        assert_eq!(batch.supervised_tokens, supervised);
    }
    documents
}

fn micro_batches(steps: &[StepBatch]) -> impl Iterator<Item = &MicroBatch> {
    steps.iter().flat_map(|step| &step.micro_batches)
}

#[test]
fn unshuffled_and_unpacked_micro_batch_k_is_rows_k_times_m_on() {
    let folder = Folder::new();
    folder.write("a.jsonl", &(0..7).map(|row| tokens_row(row, 3 + row as usize, None)).collect::<Vec<_>>());
    let corpus =
        folder.corpus(&Spec { packing: false, shuffle: false, ..spec() }, &[("a.jsonl", Format::Tokens)]);
    let batching = Batching { epochs: Some(2.0), ..batching(2, 2) };
    let all = steps(&corpus, &batching, Cursor::default());
    let rows: Vec<Vec<Vec<u64>>> = all
        .iter()
        .map(|step| step.micro_batches.iter().map(|b| b.rows.iter().map(|id| id.row).collect()).collect())
        .collect();
    let epoch = [vec![vec![0, 1], vec![2, 3]], vec![vec![4, 5], vec![6]]];
    assert_eq!(rows, [epoch.clone(), epoch].concat());
    assert_eq!(all.iter().map(|step| step.step).collect::<Vec<_>>(), [1, 2, 3, 4]);
    let epochs: Vec<f64> = all.iter().map(|step| step.epoch).collect();
    assert_eq!(epochs, [4.0 / 7.0, 1.0, 1.0 + 4.0 / 7.0, 2.0]);
    assert_eq!(survey(&corpus, &batching).schedule.unwrap().steps, 4);
}

#[test]
fn given_labels_are_shifted_onto_the_position_that_predicts_them() {
    let folder = Folder::new();
    let rows = [tokens_row(0, 4, Some(&[7, -100, 9, 11])), tokens_row(1, 3, None)];
    folder.write("a.jsonl", &rows);
    let corpus = folder.corpus(&Spec { shuffle: false, ..spec() }, &[("a.jsonl", Format::Tokens)]);
    let all = steps(&corpus, &batching(1, 1), Cursor::default());
    assert_eq!(all.len(), 1, "both fit into one pack");
    let documents = documents(micro_batches(&all));
    assert_eq!(documents[0].2, [-100, 9, 11, -100]);
    let ids = documents[1].1;
    assert_eq!(documents[1].2, [ids[1] as i32, ids[2] as i32, -100]);
    assert_eq!(all[0].counts.tokens, 4);
}

fn any_conversation() -> impl Strategy<Value = Vec<(String, String)>> {
    let text = "[ a-zé<|>/\n🎉]{0,12}";
    let exchange = (text, text).prop_map(|(user, assistant)| [("user", user), ("assistant", assistant)]);
    (prop::option::of(text), prop::collection::vec(exchange, 1..4)).prop_map(|(system, exchanges)| {
        let system = system.map(|text| ("system", text));
        let turns = system.into_iter().chain(exchanges.into_iter().flatten());
        turns.map(|(role, content)| (role.to_owned(), content)).collect()
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// Decoding the supervised targets gives the assistant's words with their end token, turn by turn, and nothing
    /// else; every token that the template writes is there.
    #[test]
    fn masks_cover_exactly_what_the_assistant_said(
        conversations in prop::collection::vec(any_conversation(), 1..6),
    ) {
        let folder = Folder::new();
        let rows: Vec<String> = conversations.iter().map(|turns| conversation_row(turns)).collect();
        folder.write("a.jsonl", &rows);
        // Blank answers are not learned.
        let is_said =
            |(role, content): &&(String, String)| role == "assistant" && !content.trim().is_empty();
        let spoken: Vec<_> =
            conversations.iter().filter(|turns| turns.iter().filter(is_said).count() > 0).collect();
        prop_assume!(!spoken.is_empty());
        let spec = Spec { max_seq_len: 4096, shuffle: false, on_empty: OnEmpty::Drop, ..spec() };
        let corpus = folder.corpus(&spec, &[("a.jsonl", Format::Messages)]);
        let all = steps(&corpus, &batching(1, 1), Cursor::default());
        let documents = documents(micro_batches(&all));
        prop_assert_eq!(documents.len(), spoken.len());
        let tokenizer = corpus.examples().tokenizer.clone().unwrap();
        for ((row, ids, targets), turns) in documents.into_iter().zip(spoken) {
            let supervised: Vec<u32> =
                targets.iter().filter(|target| **target >= 0).map(|target| *target as u32).collect();
            let said: String = turns
                .iter()
                .filter(is_said)
                .map(|(_, content)| format!("{content}<|im_end|>"))
                .collect();
            prop_assert_eq!(tokenizer.decode(&supervised).unwrap(), said, "row {:?}", row);
            let whole: String =
                turns.iter().map(|(role, text)| format!("<|im_start|>{role}\n{text}<|im_end|>\n")).collect();
            prop_assert_eq!(tokenizer.decode(ids).unwrap(), whole);
        }
    }

    /// Whatever is packed comes out again: each row once, its tokens in order, the rows in the order of the epoch.
    #[test]
    fn packing_conserves_tokens_and_order(
        lengths in prop::collection::vec(2_usize..=64, 1..60),
        micro in 1_usize..3, accumulation in 1_usize..3, shuffle: bool,
    ) {
        let folder = Folder::new();
        let rows: Vec<String> =
            lengths.iter().enumerate().map(|(row, length)| tokens_row(row as u32, *length, None)).collect();
        folder.write("a.jsonl", &rows);
        let packed = folder.corpus(&Spec { shuffle, ..spec() }, &[("a.jsonl", Format::Tokens)]);
        let unpacked = folder.corpus(&Spec { shuffle, packing: false, ..spec() }, &[("a.jsonl", Format::Tokens)]);
        let batching = batching(micro, accumulation);
        let (packed, unpacked) =
            (steps(&packed, &batching, Cursor::default()), steps(&unpacked, &batching, Cursor::default()));
        prop_assert_eq!(documents(micro_batches(&packed)), documents(micro_batches(&unpacked)));
        let mut seen: Vec<u64> = documents(micro_batches(&packed)).iter().map(|(row, ..)| row.row).collect();
        seen.sort_unstable();
        prop_assert_eq!(seen, (0..lengths.len() as u64).collect::<Vec<_>>());
        for batch in micro_batches(&packed) {
            prop_assert!(batch.tokens() <= micro * 64);
        }
        prop_assert!(packed.iter().all(|step| step.micro_batches.len() <= accumulation));
    }

    /// Stopped after any step and taken up again, the stream goes on with the very same steps, and the survey knew
    /// how many there would be and how large.
    #[test]
    fn a_cursor_resumes_the_same_stream(
        lengths in prop::collection::vec(1_usize..90, 3..40),
        micro in 1_usize..3, accumulation in 1_usize..3,
        shuffle: bool, packing: bool, epochs in prop::option::of(0.3_f64..3.2), max_steps in 1_u64..20,
    ) {
        let folder = Folder::new();
        let rows: Vec<String> =
            lengths.iter().enumerate().map(|(row, length)| tokens_row(row as u32, *length, None)).collect();
        folder.write("a.jsonl", &rows);
        let spec = Spec {
            shuffle, packing, on_overflow: OnOverflow::Drop, on_empty: OnEmpty::Drop, ..spec()
        };
        // Some rows of one token and some of more than 64 are left out; at least these three are not.
        folder.write("b.jsonl", &[tokens_row(1, 9, None), tokens_row(2, 64, None), tokens_row(3, 2, None)]);
        let datasets = [("a.jsonl", Format::Tokens), ("b.jsonl", Format::Tokens)];
        let corpus = folder.corpus_weighted(&spec, &datasets, &[0.7, 1.5]);
        let batching = Batching { epochs, max_steps: Some(max_steps), ..batching(micro, accumulation) };
        let all: Result<Vec<StepBatch>, Error> =
            corpus.steps(&batching, Cursor::default()).unwrap().collect();
        let surveyed = corpus.survey(&batching, &|_, _| {}, &AtomicBool::new(false));
        let all = match (all, surveyed) {
            (Ok(all), Ok(surveyed)) => {
                let schedule = surveyed.schedule.unwrap();
                prop_assert_eq!(schedule.steps, all.len() as u64);
                prop_assert_eq!(schedule.tokens, all.iter().map(|step| step.tokens() as u64).sum::<u64>());
                prop_assert_eq!(schedule.examples, documents(micro_batches(&all)).len() as u64);
                let largest = micro_batches(&all).map(|batch| batch.tokens() as u64).max().unwrap();
                prop_assert_eq!(schedule.largest_micro_batch, largest);
                all
            }
            // A fraction of an epoch may hold nothing but rows that are left out.
            (Err(Error::NothingLeft { .. }), Err(Error::NothingLeft { .. })) => return Ok(()),
            (all, surveyed) => panic!("{all:?} but {surveyed:?}"),
        };
        for (done, step) in all.iter().enumerate() {
            let json = serde_json::to_string(&step.cursor).unwrap();
            let cursor: Cursor = serde_json::from_str(&json).unwrap();
            prop_assert_eq!(cursor.step, done as u64 + 1);
            prop_assert_eq!(&steps(&corpus, &batching, cursor), &all[done + 1..]);
        }
    }
}

/// Rows that were read before the cursor are not read again: they may be anything by then.
#[test]
fn going_on_from_a_cursor_does_not_read_what_lies_before_it() {
    let rows: Vec<String> = (0..300).map(|row| tokens_row(row, 3 + row as usize % 20, None)).collect();
    for shuffle in [false, true] {
        let folder = Folder::new();
        folder.write("a.jsonl", &rows);
        let spec = Spec { shuffle, packing: false, ..spec() };
        let open = || folder.corpus(&spec, &[("a.jsonl", Format::Tokens)]);
        let all = steps(&open(), &batching(2, 2), Cursor::default());
        let half = all.len() / 2;
        let mut poisoned = rows.clone();
        for (row, ..) in documents(micro_batches(&all[..half])) {
            poisoned[row.row as usize] = "{\"input_ids\": \"no tokens\"}".to_owned();
        }
        folder.write("a.jsonl", &poisoned);
        let corpus = open();
        assert!(corpus.steps(&batching(2, 2), Cursor::default()).unwrap().any(|step| step.is_err()));
        assert_eq!(steps(&corpus, &batching(2, 2), all[half - 1].cursor), all[half..]);
    }
}

#[test]
fn held_out_rows_are_evaluated_exactly_once_and_never_trained_on() {
    let folder = Folder::new();
    folder.write("train.jsonl", &(0..200).map(|row| tokens_row(row, 5, None)).collect::<Vec<_>>());
    folder.write("held.jsonl", &(0..9).map(|row| tokens_row(row, 5, None)).collect::<Vec<_>>());
    let spec = Spec { val_split: 0.2, ..spec() };
    let datasets = [("train.jsonl", Format::Tokens), ("held.jsonl", Format::Tokens)];
    let corpus = folder.corpus_split(&spec, &datasets, &[Split::Train, Split::Validation]);
    let trained: Vec<RowId> = {
        let all = steps(&corpus, &batching(2, 2), Cursor::default());
        documents(micro_batches(&all)).iter().map(|(row, ..)| *row).collect()
    };
    let batches: Vec<MicroBatch> = corpus.validation(2).unwrap().map(Result::unwrap).collect();
    let held: Vec<RowId> = documents(&batches).iter().map(|(row, ..)| *row).collect();
    assert!(held.is_sorted(), "in file order");
    assert_eq!(held.iter().filter(|row| row.dataset == 1).count(), 9);
    assert!((20..60).contains(&(held.len() - 9)), "{} of 200 held out", held.len() - 9);
    assert_eq!(corpus.validation_rows(), held.len() as u64);
    let mut all: Vec<RowId> = trained.iter().chain(&held).copied().collect();
    all.sort_unstable();
    assert_eq!(all.len(), 209);
    all.dedup();
    assert_eq!(all.len(), 209, "no row is on both sides");
    let survey = survey(&corpus, &batching(2, 2));
    assert_eq!((survey.train.rows, survey.validation.rows), (trained.len() as u64, held.len() as u64));
    // A second pass sees the same.
    let again: Vec<MicroBatch> = corpus.validation(2).unwrap().map(Result::unwrap).collect();
    assert_eq!(again, batches);
}

#[test]
fn what_is_too_long_or_empty_is_counted_and_named() {
    let folder = Folder::new();
    let unsupervised = [-100_i64; 70];
    folder.write(
        "a.jsonl",
        &[
            tokens_row(0, 70, None),
            tokens_row(1, 10, None),
            tokens_row(2, 10, Some(&unsupervised[..10])),
            tokens_row(3, 64, None),
        ],
    );
    let open = |on_overflow, on_empty| {
        folder.corpus(&Spec { on_overflow, on_empty, ..spec() }, &[("a.jsonl", Format::Tokens)])
    };
    let dropped = survey(&open(OnOverflow::Drop, OnEmpty::Drop), &batching(1, 1));
    assert_eq!((dropped.overflow.count, dropped.empty.count, dropped.bad.count()), (1, 1, 0));
    assert_eq!(dropped.overflow.first[0].1.to_string(), format!("{}:1", folder.path("a.jsonl")));
    assert_eq!(dropped.overflow.first[0].2, 70);
    assert_eq!(dropped.empty.first[0].1.to_string(), format!("{}:3", folder.path("a.jsonl")));
    assert_eq!((dropped.train.rows, dropped.train.used, dropped.train.tokens), (4, 2, 74));
    assert_eq!(dropped.train.supervised_tokens, 72);
    assert_eq!(dropped.train.longest.unwrap(), (64, RowId { dataset: 0, row: 3 }));
    assert_eq!((dropped.train.histogram[3], dropped.train.histogram[6]), (1, 1));

    let cut = survey(&open(OnOverflow::Truncate, OnEmpty::Drop), &batching(1, 1));
    assert_eq!((cut.overflow.count, cut.train.used, cut.train.tokens), (1, 3, 138));

    let refused = survey(&open(OnOverflow::Error, OnEmpty::Error), &batching(1, 1));
    assert!(refused.schedule.is_none());
    let Err(Error::Rows(bad)) = refused.accept() else { panic!("bad rows are accepted") };
    let message = bad.to_string();
    assert!(message.contains("2 of 4 rows cannot be used"), "{message}");
    assert!(
        message.contains("1 row has more than max_seq_len = 64 tokens; 70 would fit all. Raise"),
        "{message}"
    );
    assert!(message.contains("a.jsonl:1: 70 tokens\n"), "{message}");
    assert!(message.contains("a.jsonl:3: nothing is supervised"), "{message}");
    // The stream, asked without a survey, stops there too.
    let corpus = open(OnOverflow::Error, OnEmpty::Error);
    let error = corpus.steps(&batching(4, 1), Cursor::default()).unwrap().find_map(Result::err).unwrap();
    assert!(matches!(error, Error::Row(_)), "{error}");
}

#[test]
fn a_run_of_left_out_rows_ends_with_an_error_not_never() {
    let folder = Folder::new();
    folder.write("a.jsonl", &[tokens_row(0, 70, None), tokens_row(1, 80, None)]);
    let spec = Spec { on_overflow: OnOverflow::Drop, ..spec() };
    let corpus = folder.corpus(&spec, &[("a.jsonl", Format::Tokens)]);
    let batching = Batching { epochs: None, max_steps: Some(10), ..batching(1, 1) };
    let mut stream = corpus.steps(&batching, Cursor::default()).unwrap();
    assert!(matches!(stream.next(), Some(Err(Error::NothingLeft { rows: 2 }))));
    assert!(stream.next().is_none());
    let surveyed = corpus.survey(&batching, &|_, _| {}, &AtomicBool::new(false));
    assert!(matches!(surveyed, Err(Error::NothingLeft { rows: 2 })));
    let endless = Batching { epochs: None, max_steps: None, ..batching };
    assert!(matches!(corpus.steps(&endless, Cursor::default()), Err(Error::Endless)));
}

#[test]
fn max_steps_alone_passes_over_the_data_as_often_as_needed() {
    let folder = Folder::new();
    folder.write("a.jsonl", &(0..3).map(|row| tokens_row(row, 5, None)).collect::<Vec<_>>());
    let corpus = folder.corpus(&Spec { packing: false, ..spec() }, &[("a.jsonl", Format::Tokens)]);
    let batching = Batching { epochs: None, max_steps: Some(7), ..batching(1, 2) };
    let all = steps(&corpus, &batching, Cursor::default());
    assert_eq!(all.len(), 7);
    assert_eq!(all.last().unwrap().cursor, Cursor { epoch: 3, position: 2, step: 7 });
    assert_eq!(survey(&corpus, &batching).schedule.unwrap().steps, 7);
}

#[test]
fn a_malformed_row_is_named_by_file_line_and_field() {
    let folder = Folder::new();
    let good = tokens_row(0, 5, None);
    folder.write("a.jsonl", &[good.clone(), "{\"input_ids\": [1, -5]}".to_owned(), good]);
    let corpus = folder.corpus(&spec(), &[("a.jsonl", Format::Tokens)]);
    let survey = survey(&corpus, &batching(1, 1));
    assert_eq!((survey.bad.count(), survey.bad.seen()), (1, 3));
    let message = survey.bad.to_string();
    assert!(message.contains("a.jsonl:2: /input_ids/1"), "{message}");
}

#[test]
fn an_inspected_row_is_what_training_sees() {
    let folder = Folder::new();
    let turns = [("user", "Grüße?"), ("assistant", "🎉 ok"), ("user", "again"), ("assistant", "no")]
        .map(|(role, text)| (role.to_owned(), text.to_owned()));
    folder.write("a.jsonl", &[conversation_row(&turns)]);
    folder.write("b.jsonl", &[serde_json::json!({"prompt": "a b", "completion": " c"}).to_string()]);
    folder.write("c.jsonl", &[tokens_row(0, 5, Some(&[-100, 104, -100, 7, -100]))]);
    let datasets =
        [("a.jsonl", Format::Messages), ("b.jsonl", Format::PromptCompletion), ("c.jsonl", Format::Tokens)];
    let corpus = folder.corpus(&Spec { shuffle: false, max_seq_len: 256, ..spec() }, &datasets);
    let all = steps(&corpus, &batching(1, 1), Cursor::default());
    let documents = documents(micro_batches(&all));
    assert_eq!(corpus.rows(), 3);
    for (number, (row, ids, targets)) in documents.iter().enumerate() {
        let inspected = corpus.row(number as u64).unwrap().remove(0);
        assert_eq!((inspected.id, &inspected.verdict), (*row, &Verdict::Whole));
        assert_eq!(inspected.pieces.iter().map(|piece| piece.id).collect::<Vec<_>>(), *ids);
        let labels: Vec<i32> = inspected.pieces[1..].iter().map(|piece| piece.label).collect();
        assert_eq!(labels, targets[..targets.len() - 1]);
        assert_eq!(
            inspected.supervised_tokens,
            inspected.pieces.iter().filter(|piece| piece.supervised).count()
        );
    }
    let text = |number: u64, supervised: bool| -> String {
        let pieces = corpus.row(number).unwrap().remove(0).pieces;
        pieces
            .iter()
            .filter(|piece| piece.supervised == supervised)
            .filter_map(|piece| piece.text.clone())
            .collect()
    };
    assert_eq!(text(0, true), "🎉 ok<|im_end|>no<|im_end|>");
    assert_eq!(
        text(0, false),
        "<|im_start|>user\nGrüße?<|im_end|>\n<|im_start|>assistant\n\n<|im_start|>user\nagain<|im_end|>\n\
         <|im_start|>assistant\n\n"
    );
    assert_eq!((text(1, false), text(1, true)), ("<s>a b".to_owned(), " c</s>".to_owned()));
    let given = corpus.row(2).unwrap().remove(0);
    assert_eq!(given.supervision, Supervision::Labels);
    assert_eq!(
        given.pieces.iter().map(|piece| piece.supervised).collect::<Vec<_>>(),
        [false, true, false, true, false]
    );
    assert_eq!(given.place.to_string(), format!("{}:1", folder.path("c.jsonl")));
    assert!(matches!(corpus.row(3), Err(Error::NoSuchRow { row: 3, rows: 3 })));
}

#[test]
fn what_a_dataset_needs_is_asked_for_by_name() {
    let folder = Folder::new();
    folder.write("a.jsonl", &["{\"text\": \"hi\"}".to_owned()]);
    let without = |format, tokenizer, template| {
        folder.try_corpus(&spec(), "a.jsonl", format, None, tokenizer, template)
    };
    let message = without(Format::Text, false, false).unwrap_err().to_string();
    assert!(message.contains("needs a tokenizer") && message.contains("`text`"), "{message}");
    let message = without(Format::Messages, true, false).unwrap_err().to_string();
    assert!(message.contains("data.chat_template"), "{message}");
    let pointless = folder.try_corpus(&spec(), "a.jsonl", Format::Text, Some(TrainOn::Assistant), true, true);
    assert!(matches!(pointless, Err(Error::TrainOn { .. })));
    assert!(without(Format::Text, true, false).is_ok());
}

#[test]
fn notes_tell_what_is_worth_knowing() {
    let folder = Folder::new();
    let turns =
        [("user", "Hi"), ("assistant", "Hello")].map(|(role, text)| (role.to_owned(), text.to_owned()));
    folder.write("a.jsonl", &[conversation_row(&turns)]);
    let corpus = folder.corpus(&spec(), &[("a.jsonl", Format::Messages)]);
    let notes = survey(&corpus, &batching(1, 1)).notes;
    // The fixture's tokenizer adds a BOS to plain text, its ChatML writes none.
    assert!(matches!(notes.as_slice(), [Note::LacksBos { .. }]), "{notes:?}");
}

#[test]
fn a_survey_reports_progress_and_can_be_stopped() {
    let folder = Folder::new();
    folder.write("a.jsonl", &(0..1000).map(|row| tokens_row(row, 5, None)).collect::<Vec<_>>());
    let corpus = folder.corpus(&spec(), &[("a.jsonl", Format::Tokens)]);
    let most = AtomicU64::new(0);
    let progress = |done: u64, total: u64| {
        assert!(done <= total && total == 1000);
        most.fetch_max(done, Ordering::SeqCst);
    };
    corpus.survey(&batching(1, 1), &progress, &AtomicBool::new(false)).unwrap();
    assert_eq!(most.load(Ordering::SeqCst), 1000);
    let stopped = corpus.survey(&batching(1, 1), &progress, &AtomicBool::new(true));
    assert!(matches!(stopped, Err(Error::Cancelled)));
}

#[test]
fn dropping_a_stream_ends_its_threads() {
    let folder = Folder::new();
    folder.write("a.jsonl", &(0..2000).map(|row| tokens_row(row, 5, None)).collect::<Vec<_>>());
    let corpus = folder.corpus(&spec(), &[("a.jsonl", Format::Tokens)]);
    let batching = Batching { epochs: None, max_steps: Some(u64::MAX), ..batching(1, 1) };
    let mut stream = corpus.steps(&batching, Cursor::default()).unwrap();
    assert!(stream.next().unwrap().is_ok());
    // Joins the producer: returns at all only if that stops.
    drop(stream);
}

#[test]
fn rows_beyond_the_vocabulary_are_named() {
    let folder = Folder::new();
    folder.write("a.jsonl", &[r#"{"input_ids": [1, 2, 300]}"#.to_owned()]);
    let corpus = folder.corpus(&spec(), &[("a.jsonl", Format::Tokens)]);
    let message = survey(&corpus, &batching(1, 1)).bad.to_string();
    assert!(
        message.contains("a.jsonl:1: /input_ids/2: id 300 is outside the model's vocabulary"),
        "{message}"
    );
}

#[test]
fn weights_and_globs_make_one_epoch() {
    let folder = Folder::new();
    folder.write("x-1.jsonl", &[tokens_row(0, 5, None), tokens_row(1, 5, None)]);
    folder.write("x-2.jsonl", &[tokens_row(2, 5, None)]);
    let corpus = folder.corpus_weighted(&spec(), &[("x-*.jsonl", Format::Tokens)], &[2.0]);
    assert_eq!(corpus.examples_per_epoch(), 6);
    let all = steps(&corpus, &batching(1, 1), Cursor::default());
    let mut times = BTreeMap::new();
    for row in rows_of(&all) {
        *times.entry(row.row).or_insert(0) += 1;
    }
    assert_eq!(times, BTreeMap::from([(0, 2), (1, 2), (2, 2)]));
    assert!(fs::exists(folder.path("x-1.jsonl")).unwrap());
}

#[test]
fn rows_are_read_and_tokenized_once_where_their_tokens_are_kept() {
    let folder = Folder::new();
    let turns = |row: usize| {
        let say = |role: &str, times| (role.to_owned(), format!("{row} ").repeat(times));
        let row = conversation_row(&[say("user", 1), say("assistant", 1 + row % 5)]);
        // More than the reader keeps in memory.
        format!("{},\"filler\":\"{}\"}}", row.strip_suffix('}').unwrap(), "x".repeat(20_000))
    };
    folder.write("a.jsonl", &(0..200).map(turns).collect::<Vec<_>>());
    let spec = Spec { val_split: 0.1, on_overflow: OnOverflow::Truncate, ..spec() };
    let corpus = || folder.corpus(&spec, &[("a.jsonl", Format::Messages)]);
    let batching = Batching { epochs: Some(2.5), ..batching(2, 2) };
    let held_out =
        |corpus: &Corpus| -> Vec<MicroBatch> { corpus.validation(2).unwrap().map(Result::unwrap).collect() };
    let again = corpus();
    survey(&again, &batching);
    let expected = (steps(&again, &batching, Cursor::default()), held_out(&again));
    let kept = corpus();
    kept.keep_tokens(1 << 20);
    survey(&kept, &batching);
    let too_small = corpus();
    too_small.keep_tokens(10_000);
    survey(&too_small, &batching);
    assert!(!too_small.forget_tokens(), "all tokens are kept, or none");
    fs::remove_file(folder.path("a.jsonl")).unwrap();
    // Without the file: every row was read and tokenized by the survey, and never since.
    assert_eq!((steps(&kept, &batching, Cursor::default()), held_out(&kept)), expected);
    assert!(kept.forget_tokens());
    assert!(kept.steps(&batching, Cursor::default()).unwrap().any(|step| step.is_err()));
}

#[test]
fn steps_an_epoch_are_those_of_a_whole_epoch() {
    let folder = Folder::new();
    folder.write("a.jsonl", &(0..100).map(|row| tokens_row(row, 5, None)).collect::<Vec<_>>());
    let corpus = folder.corpus(&Spec { packing: false, ..spec() }, &[("a.jsonl", Format::Tokens)]);
    for (epochs, max_steps, steps) in
        [(Some(1.0), None, 50), (None, Some(7), 7), (Some(3.0), Some(60), 60), (Some(0.5), None, 25)]
    {
        let schedule = survey(&corpus, &Batching { epochs, max_steps, ..batching(2, 1) }).schedule.unwrap();
        assert_eq!((schedule.steps, schedule.steps_per_epoch), (steps, 50), "{epochs:?} {max_steps:?}");
    }
}

#[test]
fn d1_what_is_not_used_is_named_once_a_dataset() {
    let folder = Folder::new();
    let row = |id: u32, more: &str| {
        format!(
            "{{\"id\": {id}, \"messages\": [{{\"role\": \"user\", \"content\": \"a\"}}, \
                 {{\"role\": \"assistant\", \"content\": \"b\"{more}}}]}}"
        )
    };
    folder.write("a.jsonl", &[row(1, ", \"rating\": 5"), row(2, "")]);
    let corpus = folder.corpus(&spec(), &[("a.jsonl", Format::Messages)]);
    let notes: Vec<String> = survey(&corpus, &batching(1, 1)).notes.iter().map(ToString::to_string).collect();
    let unused: Vec<&String> = notes.iter().filter(|note| note.contains("not used")).collect();
    assert_eq!(unused.len(), 1, "{notes:?}");
    assert!(
        unused[0].ends_with("a.jsonl: not used: `id` (2 rows), `messages[].rating` (1 row)"),
        "{unused:?}"
    );
    // A call that the template does not show.
    folder.write("b.jsonl", &[row(1, ", \"tool_calls\": [{\"function\": {\"name\": \"f\"}}]")]);
    let corpus = folder.corpus(&spec(), &[("b.jsonl", Format::Messages)]);
    let bad = survey(&corpus, &batching(1, 1)).bad.to_string();
    assert!(bad.contains("b.jsonl:1: /messages/1/tool_calls: ") && bad.contains("does not show"), "{bad}");
}
