//! A run that goes on ends as one that never stopped; what has changed meanwhile is named.

use std::cell::Cell;
use std::fs;

use tune::run::{Error, Options};
use tune::train::event::Event;

use crate::common::{Bench, GO_ON, RESUME, Silent, Watch};

/// Stops a run at the `call`-th time it asks, from its first event on, and goes on with it to its end. How often it asked.
fn interrupt(bench: &Bench, name: &str, call: u64) -> u64 {
    let (begun, calls) = (Cell::new(false), Cell::new(0));
    let stop = || {
        if begun.get() {
            calls.set(calls.get() + 1);
        }
        calls.get() >= call
    };
    let mut watch = Watch(|event: &Event<'_>| {
        if matches!(event, Event::Start(_)) {
            begun.set(true);
        }
    });
    let outcome = bench.try_run(name, Options::default(), &stop, &mut watch).unwrap();
    if outcome.adapter.is_none() {
        assert!(bench.checkpoint(name, &format!("step-{}", outcome.steps)).is_dir());
        bench.resume(name);
    }
    calls.get()
}

#[test]
fn a_run_stopped_wherever_it_asks_ends_with_the_same_bytes() {
    let bench = Bench::in_memory();
    let calls = interrupt(&bench, "whole", u64::MAX);
    assert!(calls > 30, "{calls}");
    assert!(bench.metrics("whole").iter().filter(|line| line.get("loss").is_some()).count() > 3);
    for call in 1..=calls {
        let name = format!("stopped-{call}");
        interrupt(&bench, &name, call);
        bench.assert_same("whole", &name);
        fs::remove_dir_all(bench.run_dir(&name)).unwrap();
    }
}

#[test]
fn every_kind_of_adapter_goes_on_where_it_stopped() {
    for (adapter, has_magnitudes) in [
        ("use_dora = true\nlearning_rate_ratio = 4\ndropout = 0.1\n", true),
        ("learning_rate_ratio = 4\nmodules_to_save = [\"lm_head\", \"embed_tokens\"]\n", false),
    ] {
        let mut bench = Bench::in_memory();
        bench.adapter = adapter.into();
        bench.more = "on_divergence = \"rollback\"\n".into();
        bench.run("whole");
        bench.stop_after("stopped", 5);
        bench.resume("stopped");
        bench.assert_same("whole", "stopped");
        let bytes = bench.adapter("whole");
        let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        let found = tensors.names().iter().any(|name| name.ends_with("lora_magnitude_vector"));
        assert_eq!(found, has_magnitudes, "{adapter}");
    }
}

#[test]
fn a_run_stopped_at_every_step_ends_with_the_same_bytes() {
    let bench = Bench::new();
    bench.run("whole");
    let mut options = Options::default();
    for _ in 0..100 {
        // Each command makes one step and is then told to stop.
        let stepped = Cell::new(false);
        let mut watch = Watch(|event: &Event<'_>| {
            if matches!(event, Event::Step { .. }) {
                stepped.set(true);
            }
        });
        let outcome = bench.try_run("pieces", options, &|| stepped.get(), &mut watch).unwrap();
        if outcome.adapter.is_some() {
            bench.assert_same("whole", "pieces");
            return;
        }
        options = RESUME;
    }
    panic!("no end");
}

#[test]
fn going_on_reads_no_row_that_was_read_before() {
    let bench = Bench::new();
    bench.stop_after("run", 4);
    let mut surveyed = false;
    let mut first_step = None;
    let mut watch = Watch(|event: &Event<'_>| match event {
        Event::Surveying { .. } => surveyed = true,
        Event::Step { step, .. } => first_step = first_step.or(Some(*step)),
        _ => {}
    });
    bench.try_run("run", RESUME, GO_ON, &mut watch).unwrap();
    assert!(!surveyed, "the rows were read again");
    assert_eq!(first_step, Some(5));
}

#[test]
fn a_finished_run_is_left_alone() {
    let bench = Bench::new();
    bench.run("run");
    let (adapter, metrics) = (bench.adapter("run"), bench.metrics("run"));
    let outcome = bench.resume("run");
    assert!(outcome.was_finished && outcome.adapter.is_some() && outcome.evaluations.is_some());
    assert_eq!((bench.adapter("run"), bench.metrics("run")), (adapter, metrics));
}

#[test]
fn there_need_be_nothing_to_go_on_with() {
    let bench = Bench::new();
    bench.run("whole");
    let mut notes = Vec::new();
    let mut watch = Watch(|event: &Event<'_>| {
        if let Event::Note(text) = event {
            notes.push(text.clone());
        }
    });
    bench.try_run("new", RESUME, GO_ON, &mut watch).unwrap();
    assert!(notes.iter().any(|note| note.contains("starting at the first step")), "{notes:?}");
    bench.assert_same("whole", "new");
    // Killed before its first checkpoint: a recipe, some metrics, and nothing else.
    let run = bench.run_dir("early");
    fs::create_dir_all(&run).unwrap();
    fs::copy(bench.run_dir("whole").join("recipe.toml"), run.join("recipe.toml")).unwrap();
    fs::write(run.join("metrics.jsonl"), "{\"step\":1,\"loss\":1.0}\n{\"ste").unwrap();
    bench.resume("early");
    bench.assert_same("whole", "early");
}

#[test]
fn a_run_without_a_checkpoint_is_not_begun_again_from_something_else() {
    let mut bench = Bench::new();
    bench.own_base();
    bench.train = bench
        .train
        .replace("save_steps = 3", "save_steps = 100")
        .replace("eval_steps = 2", "eval_steps = 100");
    // Killed before its first checkpoint: what was written for its first step, and some metrics.
    let early = |bench: &Bench| {
        bench.stop_after("early", 2);
        fs::remove_dir_all(bench.run_dir("early").join("checkpoints")).unwrap();
    };
    early(&bench);
    let train = bench.train.clone();
    bench.train = train.replace("epochs = 3", "epochs = 2") + "max_tokens = 100000\n";
    let text = fs::read_to_string(bench.rows()).unwrap();
    fs::write(bench.rows(), text.replacen("131", "132", 1)).unwrap();
    let told = refused(&bench, "early");
    assert_eq!(told.len(), 2, "{told:?}");
    assert_eq!(told[0], "`train.epochs` was 3.0 and is 2.0");
    assert!(told[1].starts_with("dataset 0 (") && told[1].ends_with("has another content"), "{told:?}");
    let (code, error) = bench.output("early", &["--resume"]);
    assert!(
        code == 2 && error.contains("`train.epochs` was") && error.contains("--accept-changes"),
        "{code}: {error}"
    );

    // Who means it gets what a new run would be.
    let mut warnings = Vec::new();
    let mut watch = Watch(|event: &Event<'_>| {
        if let Event::Warning(text) = event {
            warnings.push(text.clone());
        }
    });
    let accept = Options { accept_changes: true, ..RESUME };
    bench.try_run("early", accept, GO_ON, &mut watch).unwrap();
    assert!(warnings.iter().any(|text| text.contains("`train.epochs` was 3.0")), "{warnings:?}");
    bench.run("new");
    bench.assert_same("new", "early");

    // A lock that cannot be read proves nothing; one that was never written has nothing to prove.
    for (lock, is_refused) in [(Some("version = 7"), true), (None, false)] {
        fs::remove_dir_all(bench.run_dir("early")).unwrap();
        early(&bench);
        let path = bench.run_dir("early").join("recipe.lock");
        match lock {
            Some(text) => fs::write(path, text).unwrap(),
            None => fs::remove_file(path).unwrap(),
        }
        let outcome = bench.try_run("early", RESUME, GO_ON, &mut Silent);
        assert_eq!(outcome.is_err(), is_refused, "{outcome:?}");
    }
}

#[test]
fn damaged_checkpoints_are_passed_over_and_named() {
    let mut bench = Bench::new();
    bench.train = bench
        .train
        .replace("save_total_limit = 2", "save_total_limit = 1000")
        .replace("eval_steps = 2", "eval_steps = 100");
    bench.run("whole");
    bench.stop_after("run", 9);
    for (step, file) in [("step-9", "state.safetensors"), ("step-6", "counters.json")] {
        let path = bench.checkpoint("run", step).join(file);
        let mut bytes = fs::read(&path).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 0x10;
        fs::write(&path, bytes).unwrap();
    }
    let (mut warnings, mut begun) = (Vec::new(), None);
    let mut watch = Watch(|event: &Event<'_>| match event {
        Event::Warning(text) => warnings.push(text.clone()),
        Event::Start(start) => begun = Some(start.done_steps),
        _ => {}
    });
    bench.try_run("run", RESUME, GO_ON, &mut watch).unwrap();
    assert_eq!(begun, Some(3));
    for step in ["step-9", "step-6"] {
        assert!(warnings.iter().any(|text| text.contains(step) && text.contains("damaged")), "{warnings:?}");
        // Set aside, for whoever wants to know why.
        let aside = bench.checkpoint("run", &format!("damaged-{step}"));
        fs::remove_dir_all(aside).unwrap();
    }
    bench.assert_same("whole", "run");
}

/// The newer ones are damaged, and no more than one is to be kept: the only good one stays until there is a newer that is
/// whole, and so does the best.
#[test]
fn the_only_good_checkpoint_is_not_pruned_for_damaged_ones() {
    let mut bench = Bench::new();
    bench.train = bench.train.replace("save_total_limit = 2", "save_total_limit = 1000");
    bench.run("whole");
    bench.stop_after("run", 9);
    let damage = |step: &str| {
        let path = bench.checkpoint("run", step).join("state.safetensors");
        let cut = fs::read(&path).unwrap().len() as u64 / 2;
        fs::File::options().write(true).open(&path).unwrap().set_len(cut).unwrap();
    };
    ["step-9", "step-6", "best"].into_iter().for_each(damage);
    bench.train = bench.train.replace("save_total_limit = 1000", "save_total_limit = 1");
    // Until the next one is written, the good one is there; whenever it is looked for, one is whole.
    let mut seen = Vec::new();
    let mut watch = Watch(|event: &Event<'_>| {
        if let Event::Step { step, .. } = event {
            let whole = |step: &u64| {
                tune::checkpoint::read(&bench.checkpoint("run", &format!("step-{step}"))).is_ok()
            };
            seen.push((*step, (1..=*step).filter(whole).collect::<Vec<_>>()));
        }
    });
    bench.try_run("run", RESUME, GO_ON, &mut watch).unwrap();
    assert_eq!(seen[0], (4, vec![3]));
    assert!(seen.iter().all(|(_, whole)| whole.len() == 1), "{seen:?}");
    assert!(bench.adapter("whole") == bench.adapter("run"), "another adapter");
    assert_eq!(bench.metrics("whole"), bench.metrics("run"));
    let best = tune::checkpoint::read(&bench.checkpoint("run", "best"));
    assert!(best.is_ok(), "the best one is another by now, or written anew");
}

#[test]
fn without_a_checkpoint_that_is_whole_nothing_is_thrown_away() {
    let bench = Bench::new();
    bench.stop_after("run", 3);
    for step in bench.checkpoints("run") {
        fs::remove_file(bench.checkpoint("run", &step).join("manifest.json")).unwrap();
    }
    let error = bench.try_run("run", RESUME, GO_ON, &mut Silent).unwrap_err();
    let text = error.to_string();
    assert!(text.contains("no checkpoint in") && text.contains("manifest.json"), "{text}");
    assert!(bench.checkpoint("run", "step-3").is_dir());
}

/// What a changed run is told, and that nothing was done.
#[track_caller]
fn refused(bench: &Bench, name: &str) -> Vec<String> {
    let before = bench.metrics(name);
    let error = bench.try_run(name, RESUME, GO_ON, &mut Silent).unwrap_err();
    let Error::NotTheSameRun { differences, .. } = error else { panic!("{error}") };
    assert_eq!(bench.metrics(name), before);
    differences
}

#[test]
fn a_changed_recipe_is_refused_by_the_name_of_what_changed() {
    let mut bench = Bench::new();
    bench.stop_after("run", 4);
    let train = bench.train.clone();
    // What changes nothing of the adapter may change.
    bench.train = train.replace("save_steps = 3", "save_steps = 4\nmax_time = \"1h\"");
    bench.more = "[gate]\nmax_eval_loss = 100\n".into();
    bench.train += "warmup_steps = 1\nmax_grad_norm = 0.5\n";
    assert_eq!(
        refused(&bench, "run"),
        [
            "`train.max_grad_norm` was 1.0 and is 0.5",
            "`train.warmup_ratio` was 0.03 and is left out",
            "`train.warmup_steps` was left out and is 1",
        ]
    );
    let accept = Options { accept_changes: true, ..RESUME };
    bench.try_run("run", accept, GO_ON, &mut Silent).unwrap();
    let changes = &bench.provenance("run")["tune.changes"];
    assert!(changes.contains("after step 4: `train.max_grad_norm` was 1.0 and is 0.5"), "{changes}");

    // An adapter of another shape cannot take up the numbers.
    bench.stop_after("shape", 2);
    bench.more += "[quantization.nf4]\n";
    let text = bench.recipe("shape").replace("rank = 4", "rank = 8");
    let file = tune::recipe::RecipeFile::parse("test.toml", text.as_bytes(), &[]);
    let environment =
        tune::run::Environment { hub_cache: std::path::Path::new("none"), stop: GO_ON, save: &|| false };
    let error = tune::run::fine_tune(file, &environment, accept, &mut Silent).unwrap_err().to_string();
    assert!(error.contains("does not fit this run") && error.contains("lora_A"), "{error}");
}

#[test]
fn changed_files_are_refused_by_name() {
    let mut bench = Bench::new();
    let base = bench.own_base();
    bench.stop_after("run", 4);
    let rows = fs::read_to_string(bench.rows()).unwrap();
    fs::write(bench.rows(), rows.replacen("131", "132", 1)).unwrap();
    let told = refused(&bench, "run");
    assert_eq!(told.len(), 1, "{told:?}");
    assert!(
        told[0].starts_with("dataset 0 (") && told[0].ends_with("rows.jsonl) has another content"),
        "{told:?}"
    );
    fs::write(bench.rows(), rows).unwrap();

    let weights = base.join("model.safetensors");
    let good = fs::read(&weights).unwrap();
    let mut other = good.clone();
    *other.last_mut().unwrap() ^= 1;
    fs::write(&weights, &other).unwrap();
    assert_eq!(refused(&bench, "run"), ["the base's model.safetensors has another content"]);

    let accept = Options { accept_changes: true, ..RESUME };
    let outcome = bench.try_run("run", accept, GO_ON, &mut Silent).unwrap();
    assert!(outcome.adapter.is_some());
    assert!(bench.provenance("run")["tune.changes"].contains("the base's model.safetensors"));
}
