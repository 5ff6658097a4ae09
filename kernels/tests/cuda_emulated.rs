//! Every op on the CUDA C++ that CubeCL makes of our kernels, run on the CPU and judged by the oracles: what is left for a
//! card to prove is that NVIDIA's compiler and silicon do what their manuals say. Wants a C++ compiler, `c++`.
//!
//! `TUNE_CUDA_ARCH` as in `cuda_sources`: 75 has other tensor cores, and no bf16.
#![expect(clippy::expect_used, clippy::panic, reason = "helpers of tests stop where they fail")]

#[path = "cuda_without_gpu/emulator.rs"]
mod emulator;
#[path = "cuda_without_gpu/runtime.rs"]
mod runtime;

use std::io::Write;
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};

use burn_tensor::DType;
use emulator::{Buffer, Emulator, Launch, Source, program};
use runtime::{Compiled, EMULATES, LAUNCHED, Launched, NoDevice, architecture};
use tune_kernels::attention::reference::Sizes;
use tune_kernels::attention::{AttentionOptions, DocumentOffsets};
use tune_kernels::check::attention::{CAP, SCALING};
use tune_kernels::check::{self, Deviation, On};
use tune_kernels::gpu::with_plain_products;

/// Something to compute, by name.
struct Task {
    name: String,
    run: Box<dyn Fn() -> Vec<Deviation>>,
}

/// Every op's check; attention at the widths that models have, beside those of the check; the product that is left where
/// no tiled one fits.
fn tasks() -> Vec<Task> {
    let dtypes: &[_] = if architecture() < 80 { &[DType::F16] } else { &[DType::BF16, DType::F32] };
    let mut tasks = Vec::new();
    let mut add = |name: &str, dtype: DType, run: Box<dyn Fn() -> Vec<Deviation>>| {
        tasks.push(Task { name: format!("{name} in {dtype:?}"), run });
    };
    for dtype in dtypes.iter().copied() {
        let on = move || On { device: &NoDevice, dtype };
        for check in check::all::<Compiled>() {
            if !check.f32_only || dtype == dtypes[0] {
                add(check.op, dtype, Box::new(move || check.run(on())));
            }
        }
    }
    let dtype = dtypes[0];
    let on = move || On { device: &NoDevice, dtype };
    let several = || DocumentOffsets::packed(&[0, 37, 70, 101]);
    for (head_dim, window) in [(64, Some(33)), (96, None), (256, Some(20))] {
        let sizes = Sizes { heads: 4, kv_heads: 2, head_dim };
        for soft_cap in [None, Some(CAP)] {
            let options =
                AttentionOptions { documents: several(), scaling: SCALING, sliding_window: window, soft_cap };
            let run = move || check::attention::check(on(), "several documents", &options, sizes);
            add("attention", dtype, Box::new(run));
        }
    }
    let linear = check::all::<Compiled>().into_iter().find(|check| check.op == "linear");
    let linear = linear.expect("linear has a check");
    add("linear, plain", dtype, Box::new(move || with_plain_products(|| linear.run(on()))));
    tasks
}

/// What was launched since the last call.
fn launched() -> Launched {
    LAUNCHED.lock().expect("nothing panicked while it was held").take().unwrap_or_default()
}

/// Compiles kernels, on all cores.
fn compile_all(launched: &Launched) -> Result<(), String> {
    // As CubeCL wrote them: behind a number in the name, and a line in the text.
    let kernel = |(name, text): (&'_ String, &'_ String)| {
        let ((_, entry_point), (_, text)) = (name.split_once('_')?, text.split_once('\n')?);
        Some((entry_point.to_owned(), text.to_owned()))
    };
    let kernels: Vec<_> = launched.sources.iter().filter_map(kernel).collect();
    let next = AtomicUsize::new(0);
    let work = || {
        while let Some((entry_point, text)) = kernels.get(next.fetch_add(1, Ordering::Relaxed)) {
            program(Source { entry_point, text })?;
        }
        Ok(())
    };
    std::thread::scope(|scope| {
        let cores = std::thread::available_parallelism().map_or(1, Into::into);
        let workers: Vec<_> = (0..cores).map(|_| scope.spawn(work)).collect();
        workers.into_iter().try_for_each(|worker| worker.join().expect("no worker panics"))
    })
}

/// Whether there is a C++ compiler; says so where there is none.
fn has_compiler() -> bool {
    let found = Command::new("c++").arg("--version").output().is_ok();
    if !found {
        // Past the harness, which would keep it to itself.
        let _ = writeln!(std::io::stdout(), "skipped: no C++ compiler (c++)");
    }
    found
}

/// A kernel of one block of 64 threads over one buffer of 64 words.
fn emulated(body: &str) -> Result<Vec<u32>, String> {
    let text = format!(
        "extern \"C\" __global__ void kernel(unsigned* words) {{ extern __shared__ unsigned char dynamic_shared_mem[]; \
         unsigned* shared = reinterpret_cast<unsigned*>(dynamic_shared_mem); unsigned i = threadIdx.x; {body} }}"
    );
    let buffers = vec![Buffer::Bytes(vec![0; 256])];
    let launch = Launch { grid: [1; 3], block: [64, 1, 1], shared: 256, constants: Vec::new(), buffers };
    let results = Emulator::default().run(Source { entry_point: "kernel", text: &text }, &launch)?;
    Ok(results[0]
        .chunks_exact(4)
        .map(|word| u32::from_ne_bytes([word[0], word[1], word[2], word[3]]))
        .collect())
}

/// What a card might forgive, or only sometimes notice.
#[test]
fn the_emulator_forgives_nothing() {
    if !has_compiler() {
        return;
    }
    let reversed: Vec<u32> = (0..64).rev().collect();
    let swapped = "shared[i] = i; __syncthreads(); words[i] = shared[63 - i];";
    assert_eq!(emulated(swapped).as_deref(), Ok(&reversed[..]));
    assert_ne!(emulated(&swapped.replace("__syncthreads();", "")).as_deref(), Ok(&reversed[..]));

    let complaint = |body: &str| emulated(body).expect_err("a card would not stand it");
    let touches = "memory that is neither a buffer's nor shared (block 0 0 0, thread 63 0 0)";
    assert!(complaint("words[i + 1] = i;").contains(touches));
    assert!(complaint("if (i == 63) words[i] = shared[1 << 14];").contains(touches));
    assert!(complaint("shared[i + 1] = i;").contains("does not ask for"));
    assert!(complaint("if (i < 32) __syncthreads();").contains("threads that never come"));
    assert!(
        complaint("if (i % 2) __syncwarp(); else __any_sync(0xffffffff, 1);").contains("different things")
    );
}

#[test]
fn every_op_agrees_with_its_oracle() {
    if !has_compiler() {
        return;
    }
    // A first time without results, for the kernels: those are compiled side by side.
    for task in tasks() {
        (task.run)();
    }
    compile_all(&launched()).unwrap_or_else(|complaint| panic!("{complaint}"));

    EMULATES.store(true, Ordering::Relaxed);
    let mut wrong = Vec::new();
    for Task { name, run } in tasks() {
        let found = run();
        let refused = launched().refused;
        assert!(refused.is_empty(), "{name}: {}", refused[0]);
        assert!(!found.is_empty(), "{name}: nothing was measured");
        let far = found.iter().filter(|found| !found.is_within_tolerance());
        wrong.extend(far.map(|found| format!("{name}: {found}")));
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}
