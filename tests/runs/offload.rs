//! Layers that are fetched for each use: the same adapter, and what becomes of a run whose packed base is damaged, of
//! another base, or lost under way.

use std::fs;
use std::path::Path;

use tune::assets::{self, ModelDir};
use tune::device::Cpu;
use tune::model::fetch::Home;
use tune::model::{self, Decoder, FloatDtype, family, load};
use tune::run::{Error, Options};
use tune::train::event::Event;

use crate::common::{Bench, GO_ON, RESUME, Watch};

const NF4: &str = "[quantization.nf4]\n";

fn disk(resident_layers: usize) -> String {
    format!("offload = \"disk\"\nresident_layers = {resident_layers}\n")
}

/// Runs to the end; the notes and warnings on the way.
fn told(bench: &Bench, name: &str, options: Options) -> (Result<(), Error>, String) {
    let mut told = String::new();
    let mut watch = Watch(|event: &Event<'_>| {
        if let Event::Note(text) | Event::Warning(text) = event {
            told.push_str(&format!("{text}\n"));
        }
    });
    let result = bench.try_run(name, options, GO_ON, &mut watch).map(|_| ());
    (result, told)
}

#[test]
fn the_adapter_is_the_same_wherever_layers_come_from() {
    let cases =
        [("dropout = 0.1\n", NF4), ("dropout = 0.1\nuse_dora = true\n", NF4), ("dropout = 0.1\n", "")];
    for (case, (settings, quantization)) in cases.into_iter().enumerate() {
        let mut bench = Bench::new();
        (bench.adapter, bench.more) = (settings.to_owned(), quantization.to_owned());
        bench.train =
            "max_steps = 4\nmicro_batch_size = 2\ngradient_accumulation_steps = 2\neval_steps = 2\n".into();
        bench.run("held");
        let held = bench.adapter("held");
        for resident_layers in [0, 1, 3] {
            bench.model = disk(resident_layers);
            let name = format!("disk-{resident_layers}");
            bench.run(&name);
            assert!(bench.adapter(&name) == held, "case {case} with {resident_layers} layers held");
            let plan = fs::read_to_string(bench.run_dir(&name).join("memory_plan.json")).unwrap();
            assert!(plan.contains("\"streaming\""), "{plan}");
        }
        bench.model = "offload = \"host\"\n".into();
        bench.run("host");
        assert!(bench.adapter("host") == held, "case {case}: on the CPU, host means none");
    }
}

/// Rows of the token embeddings come from the checkpoint's files; the table is read there too where it is trained.
#[test]
fn the_adapter_is_the_same_with_embeddings_off_the_device() {
    for settings in ["", "modules_to_save = [\"embed_tokens\"]\n"] {
        let mut bench = Bench::new();
        (bench.adapter, bench.more) = (settings.to_owned(), NF4.into());
        bench.train = "max_steps = 2\nmicro_batch_size = 2\neval_steps = 2\n".into();
        let plan_of = |bench: &Bench, name: &str| {
            bench.run(name);
            let plan = fs::read_to_string(bench.run_dir(name).join("memory_plan.json")).unwrap();
            serde_json::from_str::<serde_json::Value>(&plan).unwrap()
        };
        let held = plan_of(&bench, "held");
        assert_eq!(held["embeddings"], serde_json::Value::Null);
        for (name, offload) in [("host", String::new()), ("disk", disk(1))] {
            bench.model = format!("embeddings = \"host\"\n{offload}");
            assert_eq!(plan_of(&bench, name)["embeddings"], "host");
            assert!(bench.adapter(name) == bench.adapter("held"), "{settings}{name}");
        }
    }
}

/// Experts are fetched with their layer, the choice of their routers is kept for the pass that runs a layer again, and the
/// loss that spreads tokens knows the choices of all layers before the first goes down.
#[test]
fn a_mixture_is_trained_in_the_same_bits_wherever_its_layers_lie() {
    let mut bench = Bench::of_experts();
    bench.more = NF4.into();
    bench.train =
        "max_steps = 3\nmicro_batch_size = 2\ngradient_accumulation_steps = 2\nrouter_aux_loss_coef = 0.1\n"
            .into();
    bench.run("held");
    for (name, model) in [("disk", disk(0)), ("host", "embeddings = \"host\"\n".to_owned()), ("one", disk(1))]
    {
        bench.model = model;
        bench.run(name);
        assert!(bench.adapter(name) == bench.adapter("held"), "{name}");
    }
    let load = fs::read_to_string(bench.run_dir("held").join("expert_load.json")).unwrap();
    assert_eq!(fs::read_to_string(bench.run_dir("disk").join("expert_load.json")).unwrap(), load);
}

#[test]
fn a_run_goes_on_with_layers_elsewhere_than_it_began_with() {
    let mut bench = Bench::new();
    bench.more = NF4.into();
    bench.run("whole");
    for (name, first, then) in [("to-disk", String::new(), disk(0)), ("from-disk", disk(1), String::new())] {
        bench.model = first;
        bench.stop_after(name, 5);
        bench.model = then;
        bench.resume(name);
        assert!(bench.adapter(name) == bench.adapter("whole"), "{name}");
    }
}

#[test]
fn the_packed_base_is_written_once_and_anew_where_it_is_of_no_use() {
    let mut bench = Bench::new();
    (bench.model, bench.more) = (disk(0), NF4.into());
    bench.train = "max_steps = 2\nmicro_batch_size = 2\n".into();
    let base = bench.own_base();
    let again = Options { overwrite: true, ..Options::default() };
    let packed = bench.run_dir("run").join("base-packed");

    let (first, notes) = told(&bench, "run", Options::default());
    first.unwrap();
    assert!(notes.contains("writes the base in 4 bits") && notes.contains("are free there"), "{notes}");
    let expected = bench.adapter("run");
    let weights = packed.join("model.safetensors");
    let written = fs::metadata(&weights).unwrap().modified().unwrap();

    let (second, notes) = told(&bench, "run", again);
    second.unwrap();
    assert!(notes.contains("layers are read from"), "{notes}");
    assert_eq!(fs::metadata(&weights).unwrap().modified().unwrap(), written);

    let mut bytes = fs::read(&weights).unwrap();
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    fs::write(&weights, bytes).unwrap();
    let (third, notes) = told(&bench, "run", again);
    third.unwrap();
    assert!(notes.contains("is damaged (model.safetensors"), "{notes}");
    assert!(bench.adapter("run") == expected);

    fs::write(&weights, "no weights").unwrap();
    let (fourth, notes) = told(&bench, "run", again);
    fourth.unwrap();
    assert!(notes.contains("cannot be used"), "{notes}");
    assert!(bench.adapter("run") == expected);

    // The same model with other bytes.
    let config = fs::read_to_string(base.join("config.json")).unwrap();
    fs::write(base.join("config.json"), format!("{config}\n")).unwrap();
    let (fifth, notes) = told(&bench, "run", again);
    fifth.unwrap();
    assert!(notes.contains("another base (config.json differs)"), "{notes}");
}

#[test]
fn a_disk_that_fails_under_way_ends_the_run_and_the_next_one_goes_on() {
    let mut bench = Bench::new();
    (bench.model, bench.more) = (disk(0), NF4.into());
    bench.run("whole");
    let weights = bench.run_dir("lost").join("base-packed/model.safetensors");
    let mut damage = Watch(|event: &Event<'_>| {
        if let Event::Step { step: 5, .. } = event {
            fs::File::options().write(true).open(&weights).unwrap().set_len(4096).unwrap();
        }
    });
    let result = bench.try_run("lost", Options::default(), GO_ON, &mut damage);
    let error = result.map(|_| ()).unwrap_err();
    assert!(matches!(&error, Error::Model(model::Error::Assets(assets::Error::Truncated { .. }))), "{error}");
    let (resumed, notes) = told(&bench, "lost", RESUME);
    resumed.unwrap();
    assert!(notes.contains("written anew"), "{notes}");
    assert!(bench.adapter("lost") == bench.adapter("whole"));
}

#[test]
fn a_folder_of_tune_quantize_is_read_where_it_lies() {
    let mut bench = Bench::new();
    (bench.model, bench.more) = (disk(0), NF4.into());
    bench.train = "max_steps = 2\nmicro_batch_size = 2\n".into();
    bench.run("first");
    // The packed base is such a folder.
    let folder = bench.run_dir("first").join("base-packed");
    bench.use_base(folder);
    bench.run("second");
    assert!(!bench.run_dir("second").join("base-packed").exists());
    bench.model = String::new();
    bench.run("third");
    assert!(bench.adapter("second") == bench.adapter("third"));
}

#[test]
fn nothing_but_a_run_writes_a_packed_base_and_settings_without_effect_are_refused() {
    let mut bench = Bench::new();
    (bench.model, bench.more) = (disk(0), NF4.into());
    let said = |output: std::process::Output| String::from_utf8_lossy(&output.stderr).into_owned();
    let command = |bench: &Bench, name: &str, words: &[&str]| {
        let recipe = bench.path().join(format!("{name}.toml"));
        fs::write(&recipe, bench.recipe(name)).unwrap();
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_tune"));
        let output = command.args(words).arg(&recipe).env("NO_COLOR", "1").output().unwrap();
        (output.status.code(), output)
    };
    for words in [&["validate"][..], &["plan"]] {
        let (code, output) = command(&bench, "run", words);
        assert_eq!(code, Some(0), "{}", said(output));
        assert!(!bench.run_dir("run").exists());
    }
    bench.train.push_str("host_memory_budget = \"1GiB\"\n");
    let (code, output) = command(&bench, "run", &["validate"]);
    let text = said(output);
    assert_eq!(code, Some(2), "{text}");
    assert!(text.contains("host_memory_budget"), "{text}");
    bench.model = "resident_layers = 2\n".into();
    let (code, output) = command(&bench, "run", &["validate"]);
    assert_eq!(code, Some(2), "{}", said(output));
}

/// `tune generate` in less and less memory: the same answer, until nothing fits.
#[test]
fn a_model_that_does_not_fit_answers_with_fetched_layers() {
    let base = concat!(env!("CARGO_MANIFEST_DIR"), "/data/quickstart/base");
    let answer = |budget: u64| {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_tune"));
        command.args([
            "generate",
            "Once upon a time",
            "--base",
            base,
            "--max-new-tokens",
            "6",
            "--seed",
            "1",
        ]);
        command.args(["--device", "cpu", "--memory-budget", &format!("{budget}MiB")]).env("NO_COLOR", "1");
        let output = command.output().unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (output.status.code(), text(&output.stdout), text(&output.stderr))
    };
    let (code, expected, told) = answer(512);
    assert_eq!(code, Some(0), "{told}");
    let mut is_fetched = false;
    for budget in (8..=64).rev().step_by(2) {
        let (code, found, told) = answer(budget);
        if code == Some(4) {
            break;
        }
        assert_eq!((code, &found), (Some(0), &expected), "{told}");
        is_fetched |= told.contains("of 6 layers fit into memory");
    }
    assert!(is_fetched, "no budget was too small for all layers and large enough for some");
}

/// Logits, and decoding with a cache, by any number of slots.
#[test]
fn decoding_walks_the_same_layers() {
    let base = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/trajectory/base");
    let folder = ModelDir::open(&base).unwrap();
    let spec = family::decoder_spec(folder.config()).unwrap();
    let (weights, device, dtype) = (folder.weights(), Default::default(), FloatDtype::F32);
    let held = load::load::<Cpu>(weights, &spec, None, dtype, &device, &mut |_| {}).unwrap();
    let ids = [5, 17, 300, 2, 44];
    let numbers = |decoder: &Decoder<Cpu>| {
        let mut found = decoder.logits(&ids, None).unwrap().into_data().to_vec::<f32>().unwrap();
        let mut cache = decoder.new_cache();
        for id in ids {
            let hidden = decoder.hidden(&[id], None, Some(&mut cache)).unwrap();
            found.extend(hidden.into_data().to_vec::<f32>().unwrap());
        }
        found
    };
    for (resident_layers, slots) in [(0, 1), (0, 2), (0, 9), (1, 2), (2, 2), (3, 0)] {
        let streaming = load::Streaming { home: Home::Disk, resident_layers, slots, packed: None };
        let layout = load::Layout { host_embeddings: resident_layers == 1, streaming: Some(streaming) };
        let streamed = load::load_as::<Cpu>(weights, &spec, None, dtype, &device, layout, &mut |_| {});
        let streamed = streamed.unwrap();
        let table =
            if layout.host_embeddings && !spec.tied { 4 * spec.vocab_size * spec.hidden_size } else { 0 };
        let frozen = held.frozen_bytes() - table as u64;
        assert_eq!((streamed.layers().len(), streamed.frozen_bytes()), (3, frozen));
        assert_eq!(numbers(&streamed), numbers(&held), "{resident_layers} held, {slots} slots");
    }
}

/// On a GPU layers come from host memory or from disk.
#[cfg(feature = "vulkan")]
#[test]
fn the_adapter_of_a_gpu_is_the_same_wherever_layers_come_from() {
    let Some(_) = crate::vulkan::devices() else { return };
    for settings in ["dropout = 0.1\n", "use_dora = true\n"] {
        let mut bench = Bench::new();
        bench.overrides.push("device=\"vulkan\"".to_owned());
        (bench.adapter, bench.more) = (settings.to_owned(), NF4.into());
        bench.train =
            "max_steps = 2\nmicro_batch_size = 2\ngradient_accumulation_steps = 2\neval_steps = 2\n".into();
        bench.run("held");
        let held = bench.adapter("held");
        for (offload, resident_layers) in [("host", 0), ("host", 1), ("disk", 1), ("host", 3), ("disk", 0)] {
            bench.model = format!("offload = {offload:?}\nresident_layers = {resident_layers}\n");
            let name = format!("{offload}-{resident_layers}");
            bench.run(&name);
            assert!(
                bench.adapter(&name) == held,
                "{settings:?}: {offload} with {resident_layers} layers held"
            );
        }
        // A layer is run again, whose input waited on the host.
        let plan_of = |bench: &Bench, name: &str| {
            let plan = fs::read_to_string(bench.run_dir(name).join("memory_plan.json")).unwrap();
            serde_json::from_str::<serde_json::Value>(&plan).unwrap()
        };
        let short = plan_of(&bench, "held")["total_bytes"].as_u64().unwrap() - 1;
        let train = bench.train.clone();
        bench.model = "embeddings = \"device\"\n".into();
        bench.train.push_str(&format!("saved_inputs = \"host\"\nmemory_budget = \"{short} B\"\n"));
        bench.run("parked");
        assert!(bench.adapter("parked") == held, "{settings:?}: with an input on the host");
        assert!(plan_of(&bench, "parked")["host_inputs_bytes"].as_u64().is_some_and(|bytes| bytes > 0));
        bench.train = train;
        bench.model = "offload = \"host\"\n".into();
        bench.train.push_str("host_memory_budget = \"1KiB\"\n");
        let refused = bench.try_run("refused", Options::default(), GO_ON, &mut Watch(|_: &Event<'_>| {}));
        let error = refused.map(|_| ()).unwrap_err();
        assert!(matches!(&error, Error::Memory(found) if found.ways[0].contains("disk")), "{error}");
    }
}
