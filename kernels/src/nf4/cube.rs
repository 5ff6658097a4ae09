//! NF4 on a GPU: a vector of weights out of its codes, for products that dequantize as they read, and whole matrices.

use burn_cubecl::tensor::CubeTensor;
use burn_cubecl::{BoolElement, CubeBackend, CubeRuntime, FloatElement, IntElement};
use burn_tensor::{DType, Tensor};
use cubecl::prelude::*;

use super::weight::{DeviceAbsmax, Nf4Ops, Nf4Weight};
use crate::cube::tensor::{array, empty, float, int, units, vector_size, wrap};

impl<R, F, I, T> Nf4Ops for CubeBackend<R, F, I, T>
where
    R: CubeRuntime,
    F: FloatElement,
    I: IntElement,
    T: BoolElement,
{
    fn nf4_dequantize(weight: &Nf4Weight<Self>) -> Tensor<Self, 2> {
        wrap(dequantize(&Nf4Tensors::new(weight), DType::F32))
    }
}

/// The device's buffers of an [`Nf4Weight`], and what a kernel must know of them.
pub(crate) struct Nf4Tensors<R: CubeRuntime> {
    pub(crate) shape: [usize; 2],
    block_size: usize,
    codebook: [f32; 16],
    codes: CubeTensor<R>,
    /// Absmax, or the nested absmax of double quantization.
    scales: CubeTensor<R>,
    double: Option<DoubleTensors<R>>,
}

struct DoubleTensors<R: CubeRuntime> {
    codes: CubeTensor<R>,
    map: CubeTensor<R>,
    offset: f32,
    block_size: usize,
}

impl<R: CubeRuntime> Nf4Tensors<R> {
    pub(crate) fn new<F, I, T>(weight: &Nf4Weight<CubeBackend<R, F, I, T>>) -> Self
    where
        F: FloatElement,
        I: IntElement,
        T: BoolElement,
    {
        let (scales, double) = match &weight.absmax {
            DeviceAbsmax::F32(absmax) => (float(absmax), None),
            DeviceAbsmax::Double { codes, nested_absmax, nested_map, offset, nested_block_size } => {
                let double = DoubleTensors {
                    codes: int(codes),
                    map: float(nested_map),
                    offset: *offset,
                    block_size: *nested_block_size,
                };
                (float(nested_absmax), Some(double))
            }
        };
        let Nf4Weight { shape, block_size, codebook, codes, .. } = weight;
        Self {
            shape: *shape,
            block_size: *block_size,
            codebook: *codebook,
            codes: int(codes),
            scales,
            double,
        }
    }

    /// As a kernel's argument; `transposed` where the kernel's rows are the weight's columns.
    pub(crate) fn argument(&self, transposed: bool) -> Nf4DataLaunch<R> {
        let double = self.double.as_ref().map(|double| {
            let (codes, map) = (array(&double.codes), array(&double.map));
            DoubleScalesLaunch::new(codes, map, double.offset, double.block_size as u32)
        });
        Nf4DataLaunch::new(
            array(&self.codes),
            array(&self.scales),
            double.into(),
            self.shape[1] as u32,
            self.block_size as u32,
            self.codebook.map(f32::to_bits),
            transposed,
        )
    }

    /// The codes' buffer: where and for whom the weight lies on a device.
    pub(crate) fn codes(&self) -> &CubeTensor<R> {
        &self.codes
    }
}

/// An NF4 matrix inside a kernel.
#[derive(CubeType, CubeLaunch)]
pub(crate) struct Nf4Data {
    /// Eight codes a word, as bitsandbytes orders its bytes.
    codes: Array<u32>,
    scales: Array<f32>,
    double: ComptimeOption<DoubleScales>,
    /// Weights in a stored row.
    width: u32,
    /// Weights that share a scale: known when a kernel is compiled, as a division by it would cost more than all else.
    #[cube(comptime)]
    block_size: u32,
    #[cube(comptime)]
    codebook: [u32; 16],
    #[cube(comptime)]
    transposed: bool,
}

/// The `#[cube]` expansion needs `Clone`; values are cloned inside kernels alone.
impl Clone for Nf4Data {
    fn clone(&self) -> Self {
        unreachable!("only expanded")
    }
}

/// Scales that are quantized themselves.
#[derive(CubeType, CubeLaunch)]
pub(crate) struct DoubleScales {
    /// Four codes a word.
    codes: Array<u32>,
    map: Array<f32>,
    offset: f32,
    #[cube(comptime)]
    block_size: u32,
}

#[cube]
impl Nf4Data {
    /// Puts the 16 levels into shared memory. All units of the cube call it.
    pub(crate) fn load_levels(&self, levels: &mut SharedMemory<f32>) {
        #[unroll]
        for level in 0..16usize {
            // A cube may have fewer units than there are levels.
            if UNIT_POS == comptime!(level as u32) % CUBE_DIM {
                levels[level] = comptime!(f32::from_bits(self.codebook[level])).runtime();
            }
        }
        sync_cube();
    }

    fn scale(&self, block: u32) -> f32 {
        #[comptime]
        match &self.double {
            ComptimeOption::Some(double) => {
                let code = (double.codes[(block / 4) as usize] >> (8 * (block % 4))) & 255;
                let nested = self.scales[(block / double.block_size) as usize];
                double.map[code as usize] * nested + double.offset
            }
            ComptimeOption::None => self.scales[block as usize],
        }
    }
}

/// The weights at (row, column) and after it, as many as a vector has: along the weight's rows as they are stored, which
/// the vector's size divides.
#[cube]
pub(crate) fn dequantize_vector<E: CubePrimitive>(
    nf4: &Nf4Data,
    levels: &SharedMemory<f32>,
    row: u32,
    column: u32,
) -> E {
    let (line, within) = if comptime!(nf4.transposed) { (column, row) } else { (row, column) };
    dequantize_from::<E>(nf4, levels, line * nf4.width + within)
}

/// The weights from `first` on, in the order that they are stored in.
#[cube]
fn dequantize_from<E: CubePrimitive>(nf4: &Nf4Data, levels: &SharedMemory<f32>, first: u32) -> E {
    let define!(T) = storage_type_of::<E::Scalar>();
    let word = nf4.codes[(first / 8) as usize];
    let scale = nf4.scale(first / nf4.block_size);
    let mut weights = Vector::<T, E::Size>::empty();
    #[unroll]
    for index in 0..weights.vector_size() {
        // The even weight is in a byte's high nibble.
        let nibble = (first % 8 + comptime!(index as u32)) ^ 1;
        let code = (word >> (4 * nibble)) & 15;
        weights[index] = T::cast_from(levels[code as usize] * scale);
    }
    E::cast_from(weights)
}

/// The whole matrix `[out, in]` in `dtype`.
pub(crate) fn dequantize<R: CubeRuntime>(weight: &Nf4Tensors<R>, dtype: DType) -> CubeTensor<R> {
    let [out, width] = weight.shape;
    let codes = weight.codes();
    let dense = empty(codes, &[out, width], dtype);
    let vector = vector_size(&codes.client, dtype, &[width]);
    let count = out * width / vector;
    let (cubes, dim) = units(count);
    // SAFETY: units from `count` on do nothing.
    unsafe {
        nf4_dequantize_kernel::launch_unchecked::<R>(
            &codes.client,
            cubes,
            dim,
            vector,
            weight.argument(false),
            array(&dense),
            count as u32,
            vector as u32,
            dtype.into(),
        );
    }
    dense
}

#[cube(launch_unchecked)]
fn nf4_dequantize_kernel<F: Float, N: Size>(
    nf4: &Nf4Data,
    dense: &mut Array<Vector<F, N>>,
    count: u32,
    #[comptime] lanes: u32,
    #[define(F)] _dtype: StorageType,
) {
    let mut levels = SharedMemory::<f32>::new(16usize);
    nf4.load_levels(&mut levels);
    if ABSOLUTE_POS < count as usize {
        dense[ABSOLUTE_POS] = dequantize_from::<Vector<F, N>>(nf4, &levels, ABSOLUTE_POS as u32 * lanes);
    }
}
