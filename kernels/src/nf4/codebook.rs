//! The level tables of bitsandbytes: NF4, FP4 and the signed 8-bit dynamic map. Constants only.

/// The 16 NF4 levels, ascending: quantiles of a normal distribution, scaled to [−1, 1], with an exact 0.
pub const CODEBOOK: [f32; 16] = [
    -1.0,
    -0.696_192_8,
    -0.525_073_05,
    -0.394_917_5,
    -0.284_441_38,
    -0.184_773_43,
    -0.091_050_036,
    0.0,
    0.079_580_3,
    0.160_930_2,
    0.246_112_3,
    0.337_915_24,
    0.440_709_83,
    0.562_617,
    0.722_956_84,
    1.0,
];

/// The 16 FP4 levels in the order of their codes: sign, two exponent bits, one of mantissa.
pub const FP4_CODEBOOK: [f32; 16] = [
    0.0,
    0.005_208_333_5,
    0.666_666_7,
    1.0,
    0.333_333_34,
    0.5,
    0.166_666_67,
    0.25,
    0.0,
    -0.005_208_333_5,
    -0.666_666_7,
    -1.0,
    -0.333_333_34,
    -0.5,
    -0.166_666_67,
    -0.25,
];

/// The 15 borders between NF4 codes: a scaled weight above `MIDPOINTS[c]` has a code above `c`.
pub const MIDPOINTS: [f32; 15] = [
    -0.848_096_4,
    -0.610_632_9,
    -0.459_995_27,
    -0.339_679_42,
    -0.234_607_4,
    -0.137_911_74,
    -0.045_525_018,
    0.039_790_15,
    0.120_255_25,
    0.203_521_25,
    0.292_013_76,
    0.389_312_54,
    0.501_663_45,
    0.642_786_9,
    0.861_478_45,
];

/// The signed 8-bit dynamic map: 256 ascending levels, 0 at index 127, from −0.993 to 1.
///
/// Seven decades; decade `i` (factor 10^(i−6)) holds the centres of 2^i equal intervals of [0.1, 1], with both
/// signs; then 0 and 1. The borders are rounded to f32 as torch's `linspace` rounds them, from both ends inwards.
pub const fn dynamic_map() -> [f32; 256] {
    let mut map = [0.0f32; 256];
    let mut index = 0;
    let mut decade = 0;
    while decade < 7 {
        let intervals = 1usize << decade;
        let factor = DECADES[decade];
        let mut interval = 0;
        while interval < intervals {
            let centre = (border(interval, intervals) + border(interval + 1, intervals)) / 2.0;
            let level = factor * centre;
            map[128 + index] = level;
            map[126 - index] = -level;
            index += 1;
            interval += 1;
        }
        decade += 1;
    }
    map[255] = 1.0;
    map
}

const DECADES: [f32; 7] = [1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0];

/// Border `index` of `intervals` equal parts of [0.1, 1].
const fn border(index: usize, intervals: usize) -> f32 {
    let step = ((1.0f32 - 0.1f32) / intervals as f32) as f64;
    if index < intervals.div_ceil(2) {
        (0.1f32 as f64 + step * index as f64) as f32
    } else {
        (1.0 - step * (intervals - index) as f64) as f32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codebook_has_the_bits_of_bitsandbytes() {
        let bits = [
            0xbf80_0000_u32,
            0xbf32_39b1,
            0xbf06_6b30,
            0xbeca_32a0,
            0xbe91_a24d,
            0xbe3d_353f,
            0xbdba_7871,
            0x0000_0000,
            0x3da2_faff,
            0x3e24_cae3,
            0x3e7c_04dd,
            0x3ead_033a,
            0x3ee1_a4b8,
            0x3f10_07ab,
            0x3f39_13b3,
            0x3f80_0000,
        ];
        assert_eq!(CODEBOOK.map(f32::to_bits), bits);
    }

    /// Each border is the f32 nearest to the published decimal number.
    #[test]
    fn midpoints_are_the_published_ones() {
        let published = [
            -0.8480964004993439_f64,
            -0.6106329262256622,
            -0.4599952697753906,
            -0.33967943489551544,
            -0.23460740596055984,
            -0.13791173323988914,
            -0.045525018125772476,
            0.03979014977812767,
            0.1202552504837513,
            0.2035212516784668,
            0.2920137718319893,
            0.3893125355243683,
            0.5016634166240692,
            0.6427869200706482,
            0.8614784181118011,
        ];
        assert_eq!(MIDPOINTS, published.map(|midpoint| midpoint as f32));
    }

    #[test]
    fn dynamic_map_is_ascending_with_zero_at_127() {
        let map = dynamic_map();
        assert!(map.is_sorted_by(|a, b| a < b));
        assert_eq!(map[127], 0.0);
        assert_eq!((map[0], map[255]), (-0.992_968_74, 1.0));
    }
}
