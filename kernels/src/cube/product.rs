//! The matrix product of the GPU ops: cubek's tiled kernels over the operands of [`super::operand`].
//!
//! `result = factor · lhs · rhs + bias + residual`, sums in f32. Which kernel: for f16 and bf16, tensor cores with ordered
//! double buffering where planes can be synchronized, else cooperative matrices ([`super::in_step`]), else (and always for
//! f32, whose tensor-core form would round to tf32) multiplications by units. What none of these accepts, for a shape or
//! for what the device lacks, [`super::plain`] multiplies. The choice depends on device, dtypes and shapes alone, and dense
//! and dequantized operands go through the same kernel, so an NF4 weight gives the same bits whether it is dequantized as
//! it is read or beforehand.

use std::cell::Cell;

use burn_cubecl::CubeRuntime;
use burn_cubecl::tensor::CubeTensor;
use burn_tensor::DType;
use cubecl::features::MmaConfig;
use cubecl::prelude::*;
use cubecl::std::tensor::View;
use cubecl::zspace::shape;
use cubek::matmul::components::global::memory::GlobalLayoutConfig;
use cubek::matmul::components::tile::TileMatmulKind;
use cubek::matmul::definition::{MatmulGlobalElems, MatmulProblem, MatmulSetupError, MatmulVectorSizes};
use cubek::matmul::launch::{BatchedCoords, MatmulArgs, launch_kernel};
use cubek::matmul::routines::ordered_double_buffering::OrderedSelectionArgs;
use cubek::matmul::routines::simple::SimpleArgs;
use cubek::matmul::routines::simple_unit::SimpleUnitAlgorithm;
use cubek::matmul::routines::{BlueprintStrategy, Routine};
use cubek::std::MatrixLayout;

use super::in_step::{Ordered, Simple};
use super::operand::{Checks, DenseLaunch, Extent, Input, InputLaunch, Matrix};
use super::plain::{TILE, plain_product_kernel};
use super::sink::{Sink, SinkLaunch, extent};
use super::tensor::{cubes, dims, elements, empty, syncs_planes, vector_size};
use crate::nf4::cube::Nf4Tensors;

thread_local! {
    static ONLY_PLAIN: Cell<bool> = const { Cell::new(false) };
}

/// Runs `body` with every GPU product that is launched from this thread on the plain kernel, as if no tiled routine
/// accepted it: how that last resort is checked on a device whose tiled routines accept everything.
pub fn with_plain_products<T>(body: impl FnOnce() -> T) -> T {
    /// Puts back what was before, also when `body` panics.
    struct Before(bool);
    impl Drop for Before {
        fn drop(&mut self) {
            ONLY_PLAIN.set(self.0);
        }
    }
    let _before = Before(ONLY_PLAIN.replace(true));
    body()
}

/// Whether products launched from this thread go to the plain kernel: see [`with_plain_products`].
pub(super) fn only_plain() -> bool {
    ONLY_PLAIN.get()
}

/// A row-major matrix `[rows, columns]`: a tensor, or some of its columns.
#[derive(Clone)]
pub(crate) struct Rows<R: CubeRuntime> {
    pub(crate) tensor: CubeTensor<R>,
    pub(crate) rows: usize,
    pub(crate) columns: usize,
    /// Elements before the first.
    offset: usize,
    /// Elements from one row to the next.
    stride: usize,
    /// Columns that may be read: those, and what fills them up to whole vectors.
    room: usize,
}

impl<R: CubeRuntime> Rows<R> {
    /// All of a contiguous tensor `[rows, columns]`.
    pub(crate) fn all(tensor: CubeTensor<R>) -> Self {
        let shape = dims(&tensor);
        let (rows, columns) = (shape[0], shape[1]);
        Self { tensor, rows, columns, offset: 0, stride: columns, room: columns }
    }

    /// `columns` columns from `first` on.
    pub(crate) fn part(tensor: CubeTensor<R>, first: usize, columns: usize) -> Self {
        let all = Self::all(tensor);
        Self { columns, offset: first, room: columns, ..all }
    }

    /// `[rows, columns]` from element `offset` of a tensor on.
    pub(crate) fn at(tensor: CubeTensor<R>, offset: usize, [rows, columns]: [usize; 2]) -> Self {
        Self { tensor, rows, columns, offset, stride: columns, room: columns }
    }

    /// Elements before the first.
    pub(crate) fn offset(&self) -> usize {
        self.offset
    }

    /// The first `columns`, where the others may be read and do not count.
    pub(crate) fn first(&self, columns: usize) -> Self {
        Self { columns, ..self.clone() }
    }

    fn argument<E: CubePrimitive>(&self, vector_size: usize) -> DenseLaunch<E, R> {
        let length = elements(&self.tensor) / vector_size;
        // SAFETY: the tensor is contiguous and the vector size divides its rows.
        let data = unsafe { ArrayArg::from_raw_parts(self.tensor.handle.clone(), length) };
        DenseLaunch::new(data, self.offset as u32, self.stride as u32)
    }

    /// What a vector size must divide.
    fn lengths(&self) -> [usize; 3] {
        [self.room, self.offset, self.stride]
    }
}

/// What an operand is stored as.
pub(crate) enum Stored<'a, R: CubeRuntime> {
    Dense(&'a Rows<R>),
    Nf4(&'a Nf4Tensors<R>),
}

impl<R: CubeRuntime> Stored<'_, R> {
    /// Rows and columns as stored.
    fn shape(&self) -> [usize; 2] {
        match self {
            Self::Dense(rows) => [rows.rows, rows.columns],
            Self::Nf4(weight) => weight.shape,
        }
    }
}

/// An operand: a stored matrix or its transpose, carried on along the reduction by `tail`, which is stored alike.
pub(crate) struct Operand<'a, R: CubeRuntime> {
    pub(crate) stored: Stored<'a, R>,
    pub(crate) transposed: bool,
    pub(crate) tail: Option<&'a Rows<R>>,
}

impl<'a, R: CubeRuntime> Operand<'a, R> {
    pub(crate) fn dense(rows: &'a Rows<R>) -> Self {
        Self { stored: Stored::Dense(rows), transposed: false, tail: None }
    }

    pub(crate) fn transposed(rows: &'a Rows<R>) -> Self {
        Self { stored: Stored::Dense(rows), transposed: true, tail: None }
    }

    /// Rows and columns of the operand without its tail.
    fn head(&self) -> [usize; 2] {
        let [rows, columns] = self.stored.shape();
        if self.transposed { [columns, rows] } else { [rows, columns] }
    }

    /// How far the tail carries on the reduction.
    fn tail_length(&self, reduces_rows: bool) -> usize {
        let length = |tail: &Rows<R>| {
            if self.transposed == reduces_rows { tail.columns } else { tail.rows }
        };
        self.tail.map_or(0, length)
    }

    fn vector_size(&self, client: &ComputeClient<R>, dtype: DType) -> usize {
        let mut lengths = match self.stored {
            Stored::Dense(rows) => rows.lengths().to_vec(),
            Stored::Nf4(weight) => vec![weight.shape[1]],
        };
        lengths.extend(self.tail.iter().flat_map(|tail| tail.lengths()));
        vector_size(client, dtype, &lengths)
    }

    fn argument<E: CubePrimitive>(&self, reduces_rows: bool, vector_size: usize) -> InputLaunch<E, R> {
        let [mut rows, mut columns] = self.head();
        if let Stored::Dense(stored) = self.stored {
            *(if self.transposed { &mut rows } else { &mut columns }) = stored.room;
        }
        let tail = self.tail_length(reduces_rows);
        let (dense, nf4) = match self.stored {
            Stored::Dense(rows) => (Some(rows.argument::<E>(vector_size)), None),
            Stored::Nf4(weight) => (None, Some(weight.argument(self.transposed))),
        };
        let (border, rows, columns) =
            if reduces_rows { (rows, rows + tail, columns) } else { (columns, rows, columns + tail) };
        InputLaunch::new(
            dense.into(),
            nf4.into(),
            self.tail.map(|tail| tail.argument::<E>(vector_size)).into(),
            border as u32,
            rows as u32,
            columns as u32,
            self.transposed,
            reduces_rows,
            vector_size,
        )
    }
}

/// What is added to a product, and the factor before it.
pub(crate) struct Finish<'a, R: CubeRuntime> {
    pub(crate) factor: f32,
    /// `[columns]`, in the dtype of the result.
    pub(crate) bias: Option<&'a CubeTensor<R>>,
    /// Like the result.
    pub(crate) residual: Option<&'a CubeTensor<R>>,
}

impl<R: CubeRuntime> Default for Finish<'_, R> {
    fn default() -> Self {
        Self { factor: 1.0, bias: None, residual: None }
    }
}

/// `finish(lhs · rhs)` in `dtype`; operands are in the dtype of `like`, or NF4.
pub(crate) fn product<R: CubeRuntime>(
    like: &CubeTensor<R>,
    lhs: Operand<'_, R>,
    rhs: Operand<'_, R>,
    finish: Finish<'_, R>,
    dtype: DType,
) -> CubeTensor<R> {
    let result = Rows::all(empty(like, &[lhs.head()[0], rhs.head()[1]], dtype));
    run(like.dtype, lhs, rhs, finish, &result);
    result.tensor
}

/// [`product`] into a part of a tensor; operands are in its dtype, or NF4.
pub(crate) fn product_into<R: CubeRuntime>(
    result: &Rows<R>,
    lhs: Operand<'_, R>,
    rhs: Operand<'_, R>,
    finish: Finish<'_, R>,
) {
    run(result.tensor.dtype, lhs, rhs, finish, result);
}

fn run<R: CubeRuntime>(
    operands: DType,
    lhs: Operand<'_, R>,
    rhs: Operand<'_, R>,
    finish: Finish<'_, R>,
    result: &Rows<R>,
) {
    let ([rows, reduction], [_, columns]) = (lhs.head(), rhs.head());
    let reduction = reduction + lhs.tail_length(false);
    let dtype = result.tensor.dtype;
    let layout = |transposed| if transposed { MatrixLayout::ColMajor } else { MatrixLayout::RowMajor };
    let problem = MatmulProblem::from_parameters(
        rows,
        columns,
        reduction,
        shape![],
        shape![],
        layout(lhs.transposed),
        layout(rhs.transposed),
        MatrixLayout::RowMajor,
        None,
        None,
        MatmulGlobalElems { lhs: operands.into(), rhs: operands.into(), out: dtype.into() },
        AddressType::U32,
    );
    let call = Call { client: &result.tensor.client, problem, lhs, rhs, finish, result, operands };
    call.run();
}

/// One product, ready to be launched by whichever routine takes it.
struct Call<'a, R: CubeRuntime> {
    client: &'a ComputeClient<R>,
    problem: MatmulProblem,
    lhs: Operand<'a, R>,
    rhs: Operand<'a, R>,
    finish: Finish<'a, R>,
    result: &'a Rows<R>,
    operands: DType,
}

impl<R: CubeRuntime> Call<'_, R> {
    fn run(&self) {
        if only_plain() || !self.runs_tiled() {
            self.launch_plain();
        }
    }

    /// Launches the first tiled routine that accepts the product; false if none does.
    fn runs_tiled(&self) -> bool {
        let features = &self.client.properties().features.matmul;
        if self.operands != DType::F32 {
            if syncs_planes(self.client) && self.launch::<Ordered>(self.ordered()).is_ok() {
                return true;
            }
            let simple = SimpleArgs { tile_matmul: TileMatmulKind::Cmma, multi_rows: false };
            if !features.cmma.is_empty() && self.launch::<Simple>(simple).is_ok() {
                return true;
            }
        }
        self.launch::<SimpleUnitAlgorithm>(Default::default()).is_ok()
    }

    /// What the ordered routine multiplies with: `mma.sync` where it takes a depth of 16. cubek 0.2 loads the two halves
    /// of a left operand of depth 8, which is all that Turing has, from the wrong places; there it is `wmma`, whose tiles
    /// are twice as wide: with as many of them to a plane, its sums would not fit into the registers.
    fn ordered(&self) -> OrderedSelectionArgs {
        let operands: StorageType = self.operands.into();
        let deep =
            MmaConfig { a_type: operands, b_type: operands, cd_type: DType::F32.into(), m: 16, n: 8, k: 16 };
        let has_deep = self.client.properties().features.matmul.mma.contains(&deep);
        let (tile_matmul, row_count) =
            if has_deep { (TileMatmulKind::Mma, 8) } else { (TileMatmulKind::Cmma, 4) };
        OrderedSelectionArgs {
            tile_matmul,
            partition_k: None,
            row_count: Some(row_count),
            rows_per_plane: Some(2),
        }
    }

    fn launch_plain(&self) {
        let (rows, columns) = (self.problem.m as u32, self.problem.n as u32);
        // SAFETY: what lies outside an operand is not read, nor anything written outside the result.
        unsafe {
            plain_product_kernel::launch_unchecked::<R>(
                self.client,
                cubes(rows.div_ceil(TILE) * columns.div_ceil(TILE)),
                CubeDim::new_2d(TILE, TILE),
                self.lhs.argument(false, 1),
                self.rhs.argument(true, 1),
                self.sink(1),
                [self.operands.into(), self.result.tensor.dtype.into()],
            );
        }
    }

    /// The result as an argument that is written by vectors of so many elements.
    fn sink<E: CubePrimitive>(&self, vector_size: usize) -> SinkLaunch<E, R> {
        // SAFETY: the tensors are contiguous, and the vector size divides their rows.
        let vectors = |tensor: &CubeTensor<R>| unsafe {
            ArrayArg::from_raw_parts(tensor.handle.clone(), elements(tensor) / vector_size)
        };
        SinkLaunch::new(
            vectors(&self.result.tensor),
            self.finish.bias.map(vectors).into(),
            self.finish.residual.map(vectors).into(),
            self.result.offset as u32,
            self.result.stride as u32,
            self.problem.m as u32,
            self.problem.n as u32,
            self.finish.factor,
            vector_size,
        )
    }

    fn launch<A: Routine<()>>(&self, strategy: A::Strategy) -> Result<(), MatmulSetupError> {
        let sizes = MatmulVectorSizes {
            lhs: self.lhs.vector_size(self.client, self.operands),
            rhs: self.rhs.vector_size(self.client, self.operands),
            out: vector_size(self.client, self.result.tensor.dtype, &self.result.lengths()),
        };
        let settings = A::device_settings(self.client, sizes);
        let blueprint =
            A::expand_blueprint(&self.problem, &settings, &BlueprintStrategy::Inferred(strategy))?;
        let info = A::prepare(&self.problem, &settings, blueprint)?;
        let sizes = info.vector_sizes;
        let input =
            OperandsLaunch::new(self.lhs.argument(false, sizes.lhs), self.rhs.argument(true, sizes.rhs));
        launch_kernel::<ProductArgs, R, A>(self.client, input, self.sink(sizes.out), (), info)
    }
}

/// The operands of a product as a kernel's argument.
#[derive(CubeType, CubeLaunch)]
pub(crate) struct Operands<L: CubePrimitive, W: CubePrimitive> {
    lhs: Input<L>,
    rhs: Input<W>,
}

/// Our operands as cubek's problem description.
#[derive(Clone)]
pub(crate) struct ProductArgs;

/// The views that a kernel reads and writes through.
#[derive(CubeType, Clone)]
pub(crate) struct Views<L: CubePrimitive, W: CubePrimitive, O: CubePrimitive> {
    lhs: View<L, BatchedCoords>,
    rhs: View<W, BatchedCoords>,
    out: View<O, BatchedCoords, ReadWrite>,
}

#[cube]
impl MatmulArgs for ProductArgs {
    type Input<Lhs: CubePrimitive, Rhs: CubePrimitive, EO: CubePrimitive> = Operands<Lhs, Rhs>;
    type Output<EO: CubePrimitive> = Sink<EO>;
    type Config = ();
    type State<Lhs: CubePrimitive, Rhs: CubePrimitive, EO: CubePrimitive> = Views<Lhs, Rhs, EO>;

    fn init_state<Lhs: CubePrimitive, Rhs: CubePrimitive, EO: CubePrimitive>(
        input: &Self::Input<Lhs, Rhs, EO>,
        output: &mut Self::Output<EO>,
        _config: (),
        #[comptime] lhs_layout: GlobalLayoutConfig,
        #[comptime] rhs_layout: GlobalLayoutConfig,
        #[comptime] out_layout: GlobalLayoutConfig,
    ) -> Self::State<Lhs, Rhs, EO> {
        let lhs = Matrix::<Lhs>::new(&input.lhs, comptime!(Checks::from(lhs_layout)));
        let rhs = Matrix::<Rhs>::new(&input.rhs, comptime!(Checks::from(rhs_layout)));
        let to = extent::<EO>(output, comptime!(Checks::from(out_layout)));
        Views::<Lhs, Rhs, EO> {
            lhs: View::new::<Matrix<Lhs>, BatchedCoords>(&lhs, Extent::of::<Lhs>(&input.lhs)),
            rhs: View::new::<Matrix<Rhs>, BatchedCoords>(&rhs, Extent::of::<Rhs>(&input.rhs)),
            out: View::new_mut::<Sink<EO>, BatchedCoords>(output, to),
        }
    }

    fn view_lhs<Lhs: CubePrimitive, Rhs: CubePrimitive, EO: CubePrimitive>(
        state: &Self::State<Lhs, Rhs, EO>,
    ) -> View<Lhs, BatchedCoords> {
        state.lhs
    }

    fn batch_lhs<Lhs: CubePrimitive, Rhs: CubePrimitive, EO: CubePrimitive>(
        _state: &Self::State<Lhs, Rhs, EO>,
        _batch: usize,
    ) -> usize {
        0usize.runtime()
    }

    fn view_rhs<Lhs: CubePrimitive, Rhs: CubePrimitive, EO: CubePrimitive>(
        state: &Self::State<Lhs, Rhs, EO>,
    ) -> View<Rhs, BatchedCoords> {
        state.rhs
    }

    fn batch_rhs<Lhs: CubePrimitive, Rhs: CubePrimitive, EO: CubePrimitive>(
        _state: &Self::State<Lhs, Rhs, EO>,
        _batch: usize,
    ) -> usize {
        0usize.runtime()
    }

    fn view_acc<Lhs: CubePrimitive, Rhs: CubePrimitive, EO: CubePrimitive>(
        _state: &Self::State<Lhs, Rhs, EO>,
    ) -> ComptimeOption<View<EO, BatchedCoords>> {
        ComptimeOption::new_None()
    }

    fn batch_acc<Lhs: CubePrimitive, Rhs: CubePrimitive, EO: CubePrimitive>(
        _state: &Self::State<Lhs, Rhs, EO>,
        batch: usize,
    ) -> usize {
        batch
    }

    fn view_out<Lhs: CubePrimitive, Rhs: CubePrimitive, EO: CubePrimitive>(
        state: &mut Self::State<Lhs, Rhs, EO>,
    ) -> View<EO, BatchedCoords, ReadWrite> {
        state.out
    }

    fn batch_out<Lhs: CubePrimitive, Rhs: CubePrimitive, EO: CubePrimitive>(
        _state: &Self::State<Lhs, Rhs, EO>,
        _batch: usize,
    ) -> usize {
        0usize.runtime()
    }

    fn runtime_config<Lhs: CubePrimitive, Rhs: CubePrimitive, EO: CubePrimitive>(
        _state: &Self::State<Lhs, Rhs, EO>,
    ) -> Self::Config {
    }
}
