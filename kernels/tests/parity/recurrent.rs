//! The causal convolution and the gated delta rule: documents, grouped heads, states that go on; and that no document sees
//! another.

use tune_kernels::KernelBackend;
use tune_kernels::attention::DocumentOffsets;
use tune_kernels::causal_conv::{CausalConv, causal_conv, causal_conv_backward};
use tune_kernels::check::recurrent;
use tune_kernels::delta_rule::{DeltaHeads, DeltaRule, delta_rule, delta_rule_backward};

use crate::support::{Site, assert_within, everywhere, random, tensor, values};

#[test]
fn causal_conv_agrees_with_the_oracle() {
    everywhere!(check_causal_conv);
}

fn check_causal_conv<B: KernelBackend>(site: &Site) {
    for dtype in site.dtypes.clone() {
        for (offsets, channels, size, silu) in [
            (&[0, 1][..], 1, 1, true),
            (&[0, 2, 2, 9], 5, 3, false),
            (&[0, 1, 4, 70, 203], 300, 4, true),
            (&[0, 129], 513, 4, true),
        ] {
            let device = B::Device::default();
            let documents = DocumentOffsets::packed(offsets);
            let on = Site::on::<B>(&device, dtype);
            let found = recurrent::check_causal_conv(on, &documents, channels, size, silu);
            assert_within(&format!("causal_conv in {dtype:?} on {}", site.name), found);
        }
    }
}

#[test]
fn delta_rule_agrees_with_the_recurrence() {
    everywhere!(check_delta_rule);
}

fn check_delta_rule<B: KernelBackend>(site: &Site) {
    let heads = |keys, values, key_dim, value_dim| DeltaHeads { keys, values, key_dim, value_dim };
    for dtype in site.dtypes.clone() {
        for (offsets, heads) in [
            (&[0, 1][..], heads(1, 1, 1, 1)),
            (&[0, 3], heads(1, 2, 4, 8)),
            (&[0, 64, 64, 65], heads(1, 1, 16, 16)),
            (&[0, 1, 4, 70, 203], heads(2, 4, 24, 40)),
            (&[0, 260], heads(1, 3, 64, 32)),
            (&[0, 130], heads(2, 2, 128, 128)),
        ] {
            let device = B::Device::default();
            let documents = DocumentOffsets::packed(offsets);
            let found = recurrent::check_delta_rule(Site::on::<B>(&device, dtype), &documents, heads);
            assert_within(&format!("delta_rule in {dtype:?} on {}", site.name), found);
        }
    }
}

/// The same bits alone and beside others: convolution and state begin anew with each document.
#[test]
fn no_document_sees_another() {
    everywhere!(check_documents);
}

fn check_documents<B: KernelBackend>(site: &Site) {
    let dtype = site.dtypes[0];
    let heads = DeltaHeads { keys: 1, values: 2, key_dim: 16, value_dim: 8 };
    let (offsets, width) = ([0u32, 70, 71, 140], heads.widths().iter().sum::<usize>());
    let tokens = 140;
    let x = tensor::<B, 2>(&random(tokens * width, 1, 1.0), [tokens, width], dtype);
    let weight = tensor::<B, 2>(&random(4 * width, 2, 1.0), [width, 4], dtype);
    let [decay, write] =
        [3, 4].map(|seed| tensor::<B, 2>(&random(tokens * 2, seed, 1.0), [tokens, 2], dtype));
    let [log_rate, bias] =
        [5, 6].map(|seed| tensor::<B, 1>(&random(2, seed, 1.0), [2], burn_tensor::DType::F32));
    let dy = tensor::<B, 2>(&random(tokens * 16, 7, 1.0), [tokens, 16], dtype);
    // Outputs and gradients of some tokens, taken as these documents.
    let run = |start: usize, length: usize, offsets: &[u32]| -> Vec<Vec<f32>> {
        let documents = DocumentOffsets::packed(offsets);
        let part = |x: &burn_tensor::Tensor<B, 2>| x.clone().narrow(0, start, length);
        let (x, decay, write, dy) = (part(&x), part(&decay), part(&write), part(&dy));
        let conv = CausalConv { weight: &weight, silu: true, documents: &documents };
        let mixed = causal_conv(&x, conv);
        let rule = DeltaRule {
            mixed: &mixed,
            decay: &decay,
            write: &write,
            log_rate: &log_rate,
            bias: &bias,
            heads,
            documents: &documents,
        };
        let y = delta_rule(rule);
        let slopes = delta_rule_backward(rule, &dy);
        let dx = causal_conv_backward(&x, conv, &slopes.mixed);
        [y, dx, slopes.decay, slopes.write].iter().map(values).collect()
    };
    let packed = run(0, tokens, &offsets);
    for pair in offsets.windows(2) {
        let (start, length) = (pair[0] as usize, (pair[1] - pair[0]) as usize);
        for (all, alone) in packed.iter().zip(run(start, length, &[0, length as u32])) {
            let width = all.len() / tokens;
            assert!(alone == all[start * width..][..length * width], "on {}, from {start}", site.name);
        }
    }
}
