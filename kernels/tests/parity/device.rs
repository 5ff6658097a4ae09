//! Frozen weights that another thread places: they arrive, and count as memory of the device.

use burn_tensor::{DType, TensorData};
use tune_kernels::KernelBackend;
use tune_kernels::nf4::{self, Nf4Weight};

use crate::support::{Site, everywhere, random, values};

fn placed_by_another_thread<B: KernelBackend>(site: &Site) {
    let device = B::Device::default();
    // Pinned pieces and a part of one: 4.1 and 9 MiB.
    let (wide, shape) = ([4099, 2112], [1201, 1966]);
    let mut quantized = nf4::quantize(&random(256 * 96, 1, 0.1), [256, 96], 64, false);
    let blocks = wide[0] * wide[1] / 64;
    quantized.codes = (0..wide[0] * wide[1] / 2).map(|index| (index * 7 % 251) as u8).collect();
    quantized.absmax = nf4::Absmax::F32((0..blocks).map(|block| (block % 13) as f32).collect());
    quantized.shape = wide;
    let dense = random(shape[0] * shape[1], 2, 1.0);
    let before = B::device_memory(&device);
    let place = || {
        B::place_for_others();
        let floats = B::upload::<2>(TensorData::new(dense.clone(), shape), DType::F32, &device);
        (Nf4Weight::<B>::copied(&quantized, &device).expect("its parts fit"), floats)
    };
    let placed = std::thread::scope(|scope| scope.spawn(place).join());
    let (weight, floats) = placed.expect("it is placed");
    assert!(values(&floats) == dense, "{}: a dense weight", site.name);
    let (rows, found) = ([0, 1777, 4098], values(&weight.dequantize()));
    let expected = nf4::reference::dequantize(&quantized);
    for row in rows {
        let row = row * wide[1]..(row + 1) * wide[1];
        assert!(found[row.clone()] == expected[row], "{}: a packed weight", site.name);
    }
    let bytes = (quantized.codes.len() + 4 * dense.len()) as u64;
    if let (Some(before), Some(now)) = (before, B::device_memory(&device)) {
        assert!(now.in_use >= before.in_use + bytes, "{}: {before:?}, then {now:?}", site.name);
    }
}

#[test]
fn what_another_thread_places_arrives_and_is_counted() {
    everywhere!(placed_by_another_thread);
}
