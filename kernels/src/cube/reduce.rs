//! Sums and maxima over the units of a cube, through shared memory: the order depends on the cube's size alone, so the
//! bits do not depend on the device's plane size.

use cubecl::prelude::*;

/// Σ of `value` over all units of the cube, in every unit. `shared` holds one f32 for each of `units`, a power of two.
#[cube]
pub(crate) fn cube_sum(value: f32, shared: &mut SharedMemory<f32>, #[comptime] units: u32) -> f32 {
    sync_cube();
    shared[UNIT_POS as usize] = value;
    sync_cube();
    let steps = comptime!(units.ilog2());
    #[unroll]
    for step in 0..steps {
        let stride = comptime!(units >> (step + 1));
        if UNIT_POS < stride {
            let other = shared[(UNIT_POS + stride) as usize];
            shared[UNIT_POS as usize] += other;
        }
        sync_cube();
    }
    shared[0]
}

/// The largest `value` of all units of the cube, in every unit; as [`cube_sum`].
#[cube]
pub(crate) fn cube_max(value: f32, shared: &mut SharedMemory<f32>, #[comptime] units: u32) -> f32 {
    sync_cube();
    shared[UNIT_POS as usize] = value;
    sync_cube();
    let steps = comptime!(units.ilog2());
    #[unroll]
    for step in 0..steps {
        let stride = comptime!(units >> (step + 1));
        if UNIT_POS < stride {
            let other = shared[(UNIT_POS + stride) as usize];
            shared[UNIT_POS as usize] = max(shared[UNIT_POS as usize], other);
        }
        sync_cube();
    }
    shared[0]
}
