//! A device that has no more memory: known before anything is taken where the plan knows it, and an error with a whole
//! checkpoint behind it where it happens under way.

use std::fs;
use std::path::Path;
use std::process::Command;

use burn_tensor::Tensor;
use tune::device::{self, Device, Failed};
use tune::recipe::RecipeFile;
use tune::run::{Environment, Error, Options, fine_tune};
use tune::train::event::{Event, Observer};
use tune_kernels::gpu::{Wgpu, WgpuDevice};

#[path = "support/vulkan.rs"]
mod vulkan;

fn tune(folder: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tune"));
    command.args(arguments).current_dir(folder).env("NO_COLOR", "1");
    command
}

/// Takes a larger buffer than the device has, at the end of one step.
struct Greedy {
    step: u64,
    device: WgpuDevice,
    numbers: usize,
}

impl Observer for Greedy {
    fn observe(&mut self, event: &Event<'_>) {
        if matches!(event, Event::Step { step, .. } if *step == self.step) {
            let _ = Tensor::<Wgpu, 1>::empty([self.numbers], &self.device);
        }
    }
}

/// The buffer that was not had belongs to a step behind the first checkpoint: the run ends with an error, nothing of what
/// was computed without it is kept, and a resumed run comes out as if nothing had happened.
#[test]
fn a_run_that_is_out_of_memory_under_way_keeps_its_checkpoint() {
    let Some(devices) = vulkan::devices() else { return };
    device::configure(None, None);
    let folder = tempfile::tempdir().unwrap();
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/trajectory");
    let recipe = format!(
        r#"
        version = 1
        output_dir = {out:?}
        device = "vulkan"
        model = {{ base = {base:?}, compute_dtype = "f32" }}
        quantization.nf4 = {{}}
        adapter.lora = {{ rank = 4, dropout = 0.1 }}
        data = {{ max_seq_len = 64 }}
        dataset = [{{ path = {rows:?}, format = "tokens" }}]
        train = {{ max_steps = 6, learning_rate = 1e-3, save_steps = 2, micro_batch_size = 2 }}
        "#,
        out = folder.path().join("run"),
        base = golden.join("base"),
        rows = golden.join("tokens.jsonl"),
    );
    let path = folder.path().join("recipe.toml");
    fs::write(&path, recipe).unwrap();

    let largest = Device::choose("vulkan".parse().unwrap()).unwrap().largest_buffer().unwrap();
    let mut observer = Greedy { step: 3, device: devices[0].device.clone(), numbers: 1 << 40 };
    let environment = Environment { hub_cache: Path::new("no-such-cache"), stop: &|| false, save: &|| false };
    let file = RecipeFile::open(&path, &[]).unwrap();
    let error = fine_tune(file, &environment, Options::default(), &mut observer).unwrap_err();
    match &error {
        Error::DeviceFailed(Failed::OutOfMemory { device, bytes }) => {
            assert!(device.starts_with("vulkan:0"), "{device}");
            assert!(bytes.is_some_and(|bytes| bytes > largest), "{bytes:?}");
        }
        error => panic!("{error}"),
    }
    assert!(error.to_string().contains("out of memory: cannot allocate a buffer of"), "{error}");
    let run = folder.path().join("run");
    assert!(run.join("checkpoints/step-2").is_dir());
    assert!(!run.join("checkpoints/step-4").exists() && !run.join("adapter").exists());

    for arguments in [
        ["run", "recipe.toml", "--resume"].as_slice(),
        &["run", "recipe.toml", "--set", "output_dir=\"whole\""],
    ] {
        let output = tune(folder.path(), arguments).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
    let adapter =
        |run: &str| fs::read(folder.path().join(run).join("adapter/adapter_model.safetensors")).unwrap();
    assert!(adapter("run") == adapter("whole"), "the resumed run came out otherwise");
}

/// No device of Vulkan has a buffer of 2 GiB through wgpu: an embedding in f32 may need one, and is refused before
/// anything is taken.
#[test]
fn a_tensor_larger_than_any_buffer_is_refused_beforehand() {
    let Some(_) = vulkan::devices() else { return };
    let folder = tempfile::tempdir().unwrap();
    let shape = ["bench", "--device", "vulkan", "--shape", "qwen2.5-7b", "--seq-len", "8"];
    let output = tune(folder.path(), &[&shape[..], &["--compute-dtype", "f32"]].concat()).output().unwrap();
    let told = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(4), "{told}");
    assert!(told.contains("the token embeddings take 2.03 GiB in one piece"), "{told}");
    assert!(told.contains("at most") && told.contains("16 bits"), "{told}");
    assert!(!told.contains("panicked"), "{told}");
}
