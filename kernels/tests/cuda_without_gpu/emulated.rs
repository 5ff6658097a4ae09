//! Every op on the CUDA C++ that CubeCL makes of our kernels, run on the CPU and judged by the oracles: what is left for a
//! card to prove is that NVIDIA's compiler and silicon do what their manuals say. Wants a C++ compiler, `c++`.

use std::io::Write;
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};

use burn_tensor::DType;
use tune_kernels::attention::reference::Sizes;
use tune_kernels::attention::{AttentionOptions, DocumentOffsets};
use tune_kernels::check::attention::{CAP, SCALING};
use tune_kernels::check::{self, Deviation, On};
use tune_kernels::gpu::with_plain_products;

use crate::card::architecture;
use crate::emulator::{Buffer, Emulator, Launch, Source, program};
use crate::runtime::{Compiled, EMULATES, LAUNCHED, Launched, NoDevice, alone, begin};

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
    for (head_dim, window) in
        [(64, Some(33)), (80, None), (96, None), (128, Some(40)), (192, None), (256, Some(20))]
    {
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
    // For a look at some of them: the whole takes long.
    if let Ok(names) = std::env::var("TUNE_OPS") {
        tasks.retain(|task| names.split(',').any(|name| task.name.starts_with(name)));
        assert!(!tasks.is_empty(), "TUNE_OPS={names} names no op");
    }
    tasks
}

/// What was launched since the last call.
fn launched() -> Launched {
    LAUNCHED.lock().expect("nothing panicked while it was held").take().unwrap_or_default()
}

/// Compiles kernels, on all cores.
fn compile_all(launched: &Launched) -> Result<(), String> {
    let next = AtomicUsize::new(0);
    let work = || {
        while let Some(kernel) = launched.kernels.get(next.fetch_add(1, Ordering::Relaxed)) {
            let made = program(Source { entry_point: &kernel.entry_point, text: &kernel.text });
            made.map_err(|complaint| format!("{}: {complaint}", kernel.launch))?;
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

/// A kernel of blocks of 64 threads over one buffer of 64 words.
fn emulated(blocks: u32, body: &str) -> Result<Vec<u32>, String> {
    let text = format!(
        "extern \"C\" __global__ void kernel(unsigned* words) {{ extern __shared__ unsigned char dynamic_shared_mem[]; \
         unsigned* shared = reinterpret_cast<unsigned*>(dynamic_shared_mem); unsigned i = threadIdx.x; {body} }}"
    );
    let buffers = vec![Buffer::Bytes(vec![0; 256])];
    let launch =
        Launch { grid: [blocks, 1, 1], block: [64, 1, 1], shared: 256, constants: Vec::new(), buffers };
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
    assert_eq!(emulated(1, swapped).as_deref(), Ok(&reversed[..]));
    let of_a_warp = "shared[i] = i; __syncwarp(); words[i] = shared[i ^ 31];";
    assert!(emulated(1, of_a_warp).is_ok());

    let between_blocks = "if (i == 0) words[blockIdx.x] = words[1 - blockIdx.x];";
    assert!(emulated(1, between_blocks).is_ok());
    for (blocks, body, expected) in [
        (1, &*swapped.replace("__syncthreads();", ""), "without a barrier between them"),
        (1, &*of_a_warp.replace("31", "32"), "without a barrier between them"),
        (
            1,
            &*of_a_warp.replace("__syncwarp()", "__any_sync(0xffffffff, 1)"),
            "without a barrier between them",
        ),
        (2, between_blocks, "without a barrier between them"),
        (
            1,
            "words[i + 1] = i;",
            "beside what it is given: byte 256 of a buffer (block 0 0 0, thread 63 0 0)",
        ),
        (
            1,
            "words[int(i) - 1] = i;",
            "beside what it is given: byte -4 of a buffer (block 0 0 0, thread 0 0 0)",
        ),
        (
            1,
            "words[i + (i == 63) * (1 << 22)] = i;",
            "neither a buffer's nor shared (block 0 0 0, thread 63 0 0)",
        ),
        (1, "shared[i + 1] = i;", "beside what it is given: byte 256 of shared memory"),
        (
            1,
            "if (i == 63) words[i] = shared[1 << 14];",
            "beside what it is given: byte 65536 of shared memory",
        ),
        (
            1,
            "words[i] = *reinterpret_cast<unsigned long long*>(words + 1);",
            "an address that its type cannot have",
        ),
        (1, "unsigned local[4]; words[i] = local[i];", "an index beyond a local array"),
        (1, "words[i] = 1u << i;", "a shift by more bits than there are"),
        (1, "if (i < 32) __syncthreads();", "threads that never come"),
        (1, "if (i % 2) __syncwarp(); else __any_sync(0xffffffff, 1);", "different things"),
    ] {
        let found = emulated(blocks, body).expect_err("a card would not stand it");
        assert!(found.contains(expected), "{body}: {found}");
    }
}

/// The two rows of instructions that move matrices, as CubeCL writes them and the PTX manual defines them: lane l has two
/// elements of row l / 4, and lane r names row r.
#[test]
fn matrices_move_as_the_manual_says() {
    if !has_compiler() {
        return;
    }
    let moved = |store: &str, load: &str| {
        let body = format!(
            "uint32_t addr = __cvta_generic_to_shared(shared) + 16 * (i % 8 + i / 32 * 8); \
             uint32_t reg_0 = 2 * (i % 32) | (2 * (i % 32) + 1) << 16; \
             asm volatile(\"stmatrix.sync.aligned.m8n8.x1{store}.shared::cta.b16\" \" [%0], {{%1}};\" \
             :: \"r\"(addr), \"r\"(reg_0)); __syncwarp(); \
             asm volatile(\"ldmatrix.sync.aligned.m8n8.x1{load}.shared::cta.b16\" \" {{%0}}, [%1];\" \
             : \"=r\"(reg_0) : \"r\"(addr)); words[i] = reg_0;"
        );
        let words = emulated(1, &body).unwrap_or_else(|complaint| panic!("{complaint}"));
        assert_eq!(words[..32], words[32..]);
        words[..32].iter().flat_map(|word| [word & 0xffff, word >> 16]).collect::<Vec<_>>()
    };
    let rows: Vec<u32> = (0..64).collect();
    let columns: Vec<u32> = (0..64).map(|at| at % 8 * 8 + at / 8).collect();
    assert_eq!(moved("", ""), rows);
    assert_eq!(moved(".trans", ".trans"), rows);
    assert_eq!(moved("", ".trans"), columns);
    assert_eq!(moved(".trans", ""), columns);
}

#[test]
fn every_op_agrees_with_its_oracle() {
    if !has_compiler() {
        return;
    }
    let _alone = alone();
    // A first time without results, for the kernels: those are compiled side by side.
    for Task { name, run } in tasks() {
        begin(&name);
        run();
    }
    compile_all(&launched()).unwrap_or_else(|complaint| panic!("{complaint}"));

    EMULATES.store(true, Ordering::Relaxed);
    let mut wrong = Vec::new();
    for Task { name, run } in tasks() {
        begin(&name);
        let found = run();
        let refused = launched().refused;
        let far = found.iter().filter(|found| !found.is_within_tolerance()).map(ToString::to_string);
        if found.is_empty() {
            wrong.push(format!("{name}: nothing was measured"));
        } else if refused.is_empty() {
            wrong.extend(far.map(|found| format!("{name}: {found}")));
        } else {
            // What a refused kernel should have computed is wrong for sure.
            wrong.extend(refused.into_iter().map(|refusal| format!("{name}: {refusal}")));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}
