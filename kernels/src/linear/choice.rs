//! When an NF4 weight is dequantized: tile by tile inside the product, or once before it.
//!
//! A tile of the weight is loaded by every block of rows, so with many tokens a product dequantizes it many times; with
//! few, a pass over a dense scratch costs more than it saves. Where the border lies depends on the card, so a device
//! with tensor cores is asked: the first product of a shape runs both ways, and the faster one is kept for the life of
//! the process. Both give the same bits, so what is measured does not show in a result. Other devices go by a rule.

use std::any::TypeId;
use std::collections::HashMap;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use burn_cubecl::CubeRuntime;
use burn_cubecl::tensor::CubeTensor;
use burn_tensor::DType;
use cubecl::prelude::*;
use cubecl_common::device::{Device, DeviceId};

use crate::cube::product::{Rows, Stored};
use crate::nf4::cube::{Nf4Tensors, dequantize};

/// Rows from which on a weight is dequantized beforehand where nothing was measured.
const DEQUANTIZE_FROM: usize = 256;

/// Runs of each way that are timed, after one that compiles its kernels.
const RUNS: u32 = 3;

/// What a measurement holds for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Key {
    runtime: TypeId,
    device: DeviceId,
    shape: [usize; 2],
    /// Rounded up to a power of two: batches differ in length.
    rows: usize,
    dtype: DType,
    transposed: bool,
}

/// Whether to dequantize beforehand, as far as it was measured.
static MEASURED: Mutex<Option<HashMap<Key, bool>>> = Mutex::new(None);

/// `product` of `rows` rows over an NF4 weight, in `dtype`, the faster way.
pub(super) fn over_nf4<R: CubeRuntime>(
    weight: &Nf4Tensors<R>,
    rows: usize,
    dtype: DType,
    transposed: bool,
    product: impl Fn(Stored<'_, R>) -> CubeTensor<R>,
) -> CubeTensor<R> {
    let run = |beforehand: bool| {
        if beforehand {
            product(Stored::Dense(&Rows::all(dequantize(weight, dtype))))
        } else {
            product(Stored::Nf4(weight))
        }
    };
    let codes = weight.codes();
    let features = &codes.client.properties().features.matmul;
    if features.mma.is_empty() && features.cmma.is_empty() {
        return run(rows >= DEQUANTIZE_FROM);
    }
    let (runtime, device) = (TypeId::of::<R>(), codes.device.to_id());
    let key = Key { runtime, device, shape: weight.shape, rows: rows.next_power_of_two(), dtype, transposed };
    let known = MEASURED.lock().ok().and_then(|measured| measured.as_ref()?.get(&key).copied());
    let beforehand = known.unwrap_or_else(|| {
        let [within, beforehand] = [false, true].map(|way| time(&codes.client, || drop(run(way))));
        let faster = beforehand < within;
        if let Ok(mut measured) = MEASURED.lock() {
            measured.get_or_insert_default().insert(key, faster);
        }
        faster
    });
    run(beforehand)
}

/// How long `run` takes on the device.
fn time<R: Runtime>(client: &ComputeClient<R>, run: impl Fn()) -> Duration {
    let wait = || {
        // An error of the device comes up again where a result is read.
        let _ = cubecl::future::block_on(client.sync());
    };
    run();
    wait();
    let start = Instant::now();
    (0..RUNS).for_each(|_| run());
    wait();
    start.elapsed()
}
