//! What holds for every block type without another tool's word: sizes, error bounds, threads, refusals.

use super::BlockType;

/// Numbers of several magnitudes, signs mixed.
fn numbers(count: usize) -> Vec<f32> {
    let mut state = 0x2545_f491_u32;
    (0..count)
        .map(|at| {
            state ^= state << 13;
            state ^= state >> 17;
            state ^= state << 5;
            let unit = state as f32 / u32::MAX as f32 - 0.5;
            unit * [1.0, 0.02, 5.0][at / 512 % 3]
        })
        .collect()
}

fn relative_error(kind: BlockType, values: &[f32]) -> f64 {
    let decoded = kind.decode(&kind.encode(values).unwrap());
    assert_eq!(decoded.len(), values.len());
    let square = |values: &mut dyn Iterator<Item = f64>| values.map(|value| value * value).sum::<f64>();
    let difference =
        square(&mut decoded.iter().zip(values).map(|(left, right)| f64::from(*left) - f64::from(*right)));
    (difference / square(&mut values.iter().map(|value| f64::from(*value)))).sqrt()
}

#[test]
fn errors_are_those_of_the_number_of_bits() {
    let values = numbers(256 * 24);
    for (kind, bound) in [
        (BlockType::F32, 0.0),
        (BlockType::F16, 3e-4),
        (BlockType::Bf16, 3e-3),
        (BlockType::Q8_0, 5e-3),
        (BlockType::Q6K, 0.02),
        (BlockType::Q5K, 0.032),
        (BlockType::Q5_1, 0.035),
        (BlockType::Q5_0, 0.04),
        (BlockType::Q4K, 0.065),
        (BlockType::Q4_0, 0.08),
        (BlockType::Mxfp4, 0.13),
    ] {
        let error = relative_error(kind, &values);
        assert!(error <= bound, "{}: {error}", kind.name());
        assert!(error >= bound / 4.0, "{}: {error} is too good to be true", kind.name());
    }
}

#[test]
fn zeros_stay_zeros_and_constants_stay_close() {
    for kind in BlockType::ALL {
        let zeros = vec![0.0; 256];
        assert_eq!(kind.decode(&kind.encode(&zeros).unwrap()), zeros, "{}", kind.name());
        for constant in [0.75, -0.75] {
            assert!(relative_error(kind, &[constant; 256]) < 0.02, "{} {constant}", kind.name());
        }
    }
}

#[test]
fn what_a_format_cannot_hold_is_refused_with_its_place() {
    let mut values = numbers(256 * 40);
    values[256 * 37 + 5] = f32::NAN;
    for kind in BlockType::ALL {
        let fault = kind.encode(&values).unwrap_err();
        assert_eq!(fault.element, (256 * 37 + 5) / kind.block_size() * kind.block_size(), "{}", kind.name());
        assert!(fault.value.is_nan());
    }
    values[256 * 37 + 5] = -1e9;
    for kind in BlockType::ALL {
        let found = kind.encode(&values).map_err(|fault| fault.value);
        match kind {
            BlockType::F32 | BlockType::Bf16 | BlockType::Mxfp4 => assert!(found.is_ok()),
            _ => assert_eq!(found.unwrap_err(), -1e9, "{}", kind.name()),
        }
    }
}

#[test]
fn numbers_and_sizes_are_those_of_ggml() {
    for kind in BlockType::ALL {
        assert_eq!(BlockType::of_id(kind.id()), Some(kind));
        assert_eq!(kind.encode(&numbers(512)).unwrap().len(), kind.bytes(512));
    }
    assert_eq!(BlockType::of_id(9), None);
    let bits = |kind: BlockType| kind.block_bytes() as f64 * 8.0 / kind.block_size() as f64;
    assert_eq!((bits(BlockType::Q4K), bits(BlockType::Q5K), bits(BlockType::Q6K)), (4.5, 5.5, 6.5625));
}
