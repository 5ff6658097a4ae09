//! Checks across tables. Each runs although others have failed.

use crate::data::spec::{DatasetSpec, Format, Split, train_on_problem};
use crate::document::{Problem, Word};
use crate::objective::Objective;

use super::RecipeFile;

/// Reports contradictions, and moves `data.train_on` and its defaults into the datasets.
pub(super) fn across_tables(file: &mut RecipeFile) {
    nothing_trained_on(file);
    held_out_twice(file);
    gate_without_rows(file);
    objective_without_its_format(file);
    objective_without_its_batch(file);
    accuracy_without_preference(file);
    resolve_train_on(file);
}

fn nothing_trained_on(file: &mut RecipeFile) {
    let datasets = &file.parts().datasets;
    let is_held_out = |dataset: &Option<DatasetSpec>| {
        dataset.as_ref().is_some_and(|dataset| dataset.split == Split::Validation)
    };
    if !datasets.is_empty() && datasets.iter().all(is_held_out) {
        let place = file.place(&["dataset", "0", "split"]);
        file.report(
            Problem::new(
                "recipe::contradiction",
                place,
                "every `[[dataset]]` is held out: no rows are left to train on",
            )
            .label("held out")
            .help("add a `[[dataset]]` without `split = \"validation\"`"),
        );
    }
}

/// `eval_loss` would be ambiguous if two keys said which rows are held out.
fn held_out_twice(file: &mut RecipeFile) {
    let is_held_out = |dataset: &Option<DatasetSpec>| {
        dataset.as_ref().is_some_and(|dataset| dataset.split == Split::Validation)
    };
    let Some(index) = file.parts().datasets.iter().position(is_held_out) else { return };
    if file.parts().data.val_split > 0.0 {
        let split = file.place(&["dataset", &index.to_string(), "split"]);
        let share = file.place(&["data", "val_split"]);
        file.report(
            Problem::new(
                "recipe::contradiction",
                share,
                "`val_split` and a validation dataset both hold rows out",
            )
            .label("this share of the training rows")
            .also(split, "and all of this file")
            .help("remove `val_split`, or train on that dataset"),
        );
    }
}

/// A gate needs a held-out loss.
fn gate_without_rows(file: &mut RecipeFile) {
    let parts = file.parts();
    // A dataset that could not be read may be the one that is held out.
    let may_be_held_out = |dataset: &Option<DatasetSpec>| {
        dataset.as_ref().is_none_or(|dataset| dataset.split == Split::Validation)
    };
    let held_out = parts.data.val_split > 0.0 || parts.datasets.iter().any(may_be_held_out);
    if parts.gate.is_empty() || held_out || parts.datasets.is_empty() {
        return;
    }
    let place = file.place(&["gate"]);
    file.report(
        Problem::new(
            "recipe::contradiction",
            place,
            "`[gate]` limits the held-out loss, and no rows are held out",
        )
        .label("no held-out loss")
        .help("set `val_split` under `[data]`, or add a `[[dataset]]` with `split = \"validation\"`"),
    );
}

/// The rows of a format and an objective that does not read them.
fn objective_without_its_format(file: &mut RecipeFile) {
    let objective = file.parts().objective;
    let fits = |format: Format| match objective {
        Objective::Sft | Objective::Dft => !matches!(format, Format::Preference | Format::Feedback),
        Objective::Preference(_) => format == Format::Preference,
        Objective::Feedback(_) => format == Format::Feedback,
    };
    let wanted = match objective {
        Objective::Sft | Objective::Dft => "text to be learned",
        Objective::Preference(_) => "`format = \"preference\"`",
        Objective::Feedback(_) => "`format = \"feedback\"`",
    };
    let datasets = file.parts().datasets.iter().flatten().map(|dataset| dataset.format);
    let misfits: Vec<(usize, Format)> = datasets.enumerate().filter(|(_, format)| !fits(*format)).collect();
    for (index, format) in misfits {
        let place = file.place(&["dataset", &index.to_string(), "format"]);
        let (word, name) = (format.word(), objective.name());
        let message =
            format!("`[objective.{name}]` trains on {wanted}, and this dataset has `format = \"{word}\"`");
        let help = match format {
            Format::Preference => {
                "write `[objective.dpo]`, `[objective.orpo]` or `[objective.simpo]`".to_owned()
            }
            Format::Feedback => "write `[objective.kto]`".to_owned(),
            _ => format!("name a dataset of {wanted}, or leave `[objective.{name}]` out"),
        };
        file.report(Problem::new("recipe::contradiction", place, message).label("this format").help(help));
    }
}

/// KTO measures an answer against those of the other rows of its micro-batch.
fn objective_without_its_batch(file: &mut RecipeFile) {
    let parts = file.parts();
    let is_alone = parts.train.as_ref().is_some_and(|train| train.micro_batch_size == 1);
    if !parts.objective.needs_baseline() || !is_alone || parts.data.packing {
        return;
    }
    let place = file.place(&["train", "micro_batch_size"]);
    let message =
        "`[objective.kto]` measures each answer against the others of its micro-batch, which has one";
    file.report(
        Problem::new("recipe::contradiction", place, message)
            .label("one answer")
            .help("raise it to 2 or more, or set `loss = \"apo-zero-unpaired\"` under `[objective.kto]`"),
    );
}

fn accuracy_without_preference(file: &mut RecipeFile) {
    let parts = file.parts();
    if parts.gate.min_preference_accuracy.is_none()
        || !matches!(parts.objective, Objective::Sft | Objective::Dft)
    {
        return;
    }
    let place = file.place(&["gate", "min_preference_accuracy"]);
    file.report(
        Problem::new(
            "recipe::contradiction",
            place,
            "`min_preference_accuracy` has an effect only with a preference objective",
        )
        .label("has no effect here")
        .help("remove it, or add one of `[objective.dpo]`, `[objective.orpo]`, `[objective.simpo]`, `[objective.kto]`"),
    );
}

/// Sets `train_on` of every dataset: its own, that of `[data]`, or its format's default; `tokens` have labels and get
/// none.
fn resolve_train_on(file: &mut RecipeFile) {
    let general = file.parts_mut().data.train_on.take();
    let mut misfit = None;
    for (index, dataset) in file.parts_mut().datasets.iter_mut().enumerate() {
        let Some(dataset) = dataset else { continue };
        let Some(default) = dataset.format.default_train_on() else { continue };
        if let (Some(general), None) = (general, dataset.train_on)
            && !dataset.format.train_on_choices().contains(&general)
        {
            misfit = misfit.or(Some((index, dataset.format, general)));
        }
        dataset.train_on = dataset.train_on.or(general).or(Some(default));
    }
    if let (Some((index, format, train_on)), Some(value)) = (misfit, file.value(&["data", "train_on"])) {
        let format_place = file.place(&["dataset", &index.to_string(), "format"]);
        let problem = train_on_problem(value, format, train_on).also(format_place, "of this dataset");
        file.report(problem);
    }
}
