//! cubek's products for tensor cores, with each tile of the result passed on in step, and tiles made in an [`order`].
//!
//! A tile's sums leave the registers of a plane's lanes through shared memory, from which other lanes write them out.
//! cubek 0.2's writer does not synchronize between the two, nor before the next tile takes the same place. A plane that
//! happens to run in lockstep forgives that; on CUDA, since Volta, and on Vulkan none has to.

use std::marker::PhantomData;

use cubecl::prelude::*;
use cubecl::std::tensor::View;
use cubecl::std::tensor::layout::Coords2d;
use cubek::matmul::components::batch::{
    BatchMatmulFamily, PartitionedBatchMatmulFamily, RowMajorGlobalPartitionMatmul,
};
use cubek::matmul::components::global::multi_stage::ordered::OrderedDoubleBufferingMatmulFamily;
use cubek::matmul::components::global::read::sync_full_cyclic::SyncFullCyclicLoading;
use cubek::matmul::components::global::read::sync_partial_cyclic::SyncPartialCyclicLoading;
use cubek::matmul::components::global::single_stage::simple::SimpleMatmulFamily;
use cubek::matmul::components::global::{
    GlobalWriter, GlobalWriterConfig, GlobalWriterFamily, PlaneWriter, PlaneWriterFamily, WriteEvent,
    WriteEventListener,
};
use cubek::matmul::components::stage::{
    ColMajorTilingOrder, PlaneMatmulFamily, RowMajorTilingOrder, StridedStageFamily,
};
use cubek::matmul::definition::{MatmulProblem, MatmulSetupError, MatrixTypes, TilingBlueprint};
use cubek::matmul::routines::ordered_double_buffering::{
    OrderedDoubleBufferingAlgorithm, OrderedSelectionArgs,
};
use cubek::matmul::routines::simple::{SimpleAlgorithm, SimpleArgs};
use cubek::matmul::routines::{BlueprintStrategy, DeviceSettings, ExpandInfo, LaunchInfo, Routine};

use super::order::order;

type Planes = PlaneMatmulFamily<StridedStageFamily, StridedStageFamily, Option<StridedStageFamily>>;

/// `$name`, which is `$inner` with its tiles passed on in step: its blueprints, and a kernel of `$global`.
macro_rules! routine {
    ($(#[$doc:meta])* $name:ident, $inner:ty, $strategy:ty, $global:ty) => {
        $(#[$doc])*
        pub(super) struct $name;

        impl Routine<()> for $name {
            type Strategy = $strategy;
            type BatchMatmul = PartitionedBatchMatmulFamily<(), $global, RowMajorGlobalPartitionMatmul>;
            type Blueprint = TilingBlueprint;
            type Config = <Self::BatchMatmul as BatchMatmulFamily<()>>::Config;

            fn expand_blueprint<R: Runtime>(
                problem: &MatmulProblem,
                device: &DeviceSettings<R>,
                strategy: &BlueprintStrategy<(), Self>,
            ) -> Result<ExpandInfo<Self::Blueprint>, MatmulSetupError> {
                let strategy: BlueprintStrategy<(), $inner> = match strategy {
                    BlueprintStrategy::Forced(blueprint) => BlueprintStrategy::Forced(blueprint.clone()),
                    BlueprintStrategy::Inferred(strategy) => BlueprintStrategy::Inferred(strategy.clone()),
                };
                let mut expanded = <$inner as Routine<()>>::expand_blueprint(problem, device, &strategy)?;
                fit(&mut expanded.blueprint, problem, &device.client);
                Ok(expanded)
            }

            fn prepare<R: Runtime>(
                problem: &MatmulProblem,
                device: &DeviceSettings<R>,
                expanded: ExpandInfo<Self::Blueprint>,
            ) -> Result<LaunchInfo<Self::Blueprint>, MatmulSetupError> {
                <$inner as Routine<()>>::prepare(problem, device, expanded)
            }
        }
    };
}

/// Cubes of a product that a multiprocessor works on together; their registers allow no more.
const CUBES_TOGETHER: u32 = 2;

/// What our products want otherwise than cubek's own.
fn fit<R: Runtime>(blueprint: &mut TilingBlueprint, problem: &MatmulProblem, client: &ComputeClient<R>) {
    let scheme = &blueprint.tiling_scheme;
    // Double buffering makes its last stages a pair, whose second may begin where the reduction ends.
    let pair = 2 * scheme.elements_per_stage_along_k();
    blueprint.check_k_bounds = !(problem.k as u32).is_multiple_of(pair);
    // Where the device does not say how many it has, its grid is the problem's and knows no order.
    if let Some(processors) = client.properties().hardware.num_streaming_multiprocessors {
        let tile = [scheme.elements_per_stage_along_m(), scheme.elements_per_stage_along_n()];
        let tiles = [(problem.m as u32).div_ceil(tile[0]), (problem.n as u32).div_ceil(tile[1])];
        blueprint.hypercube_blueprint.global_order = order(tiles, tile, processors * CUBES_TOGETHER);
    }
}

routine!(
    /// Ordered double buffering, planes in step: for devices that [`super::tensor::syncs_planes`].
    Ordered,
    OrderedDoubleBufferingAlgorithm,
    OrderedSelectionArgs,
    OrderedDoubleBufferingMatmulFamily<
        Planes,
        (),
        SyncPartialCyclicLoading<RowMajorTilingOrder>,
        SyncFullCyclicLoading<RowMajorTilingOrder>,
        InStepFamily<PlaneWise>,
    >
);

routine!(
    /// One stage, the whole cube in step.
    Simple,
    SimpleAlgorithm,
    SimpleArgs,
    SimpleMatmulFamily<
        Planes,
        (),
        SyncFullCyclicLoading<ColMajorTilingOrder>,
        SyncFullCyclicLoading<RowMajorTilingOrder>,
        SyncFullCyclicLoading<RowMajorTilingOrder>,
        InStepFamily<CubeWise>,
    >
);

/// Which units wait for each other.
#[cube]
pub(super) trait Wait: Send + Sync + 'static {
    /// Waits; writes to shared memory from before are visible after.
    fn wait();
}

/// The lanes of a plane for each other.
pub(super) struct PlaneWise;

#[cube]
impl Wait for PlaneWise {
    fn wait() {
        sync_plane();
    }
}

/// All units of a cube for each other.
pub(super) struct CubeWise;

#[cube]
impl Wait for CubeWise {
    fn wait() {
        sync_cube();
    }
}

/// Makes [`InStep`].
pub(super) struct InStepFamily<W: Wait> {
    _wait: PhantomData<W>,
}

impl<W: Wait> GlobalWriterFamily for InStepFamily<W> {
    type Stage = <PlaneWriterFamily as GlobalWriterFamily>::Stage;
    type Writer<IP: MatrixTypes> = InStep<IP, W>;
}

/// cubek's writer of a plane's tiles, before and after which its units wait for each other.
#[derive(CubeType)]
pub(super) struct InStep<IP: MatrixTypes, W: Wait> {
    writer: PlaneWriter<IP>,
    #[cube(comptime)]
    _wait: PhantomData<W>,
}

#[cube]
impl<IP: MatrixTypes, W: Wait> WriteEventListener for InStep<IP, W> {
    fn on_event(this: &mut Self, event: WriteEvent) {
        W::wait();
        PlaneWriter::<IP>::on_event(&mut this.writer, event);
        W::wait();
    }
}

#[cube]
impl<IP: MatrixTypes, W: Wait> GlobalWriter<IP> for InStep<IP, W> {
    type Stage = <PlaneWriter<IP> as GlobalWriter<IP>>::Stage;

    fn init(
        tensor: View<Vector<IP::Global, IP::GlobalSize>, Coords2d, ReadWrite>,
        #[comptime] config: GlobalWriterConfig,
    ) -> Self {
        InStep::<IP, W> { writer: PlaneWriter::<IP>::new(tensor, config), _wait: PhantomData }
    }

    fn stage(this: &Self) -> Self::Stage {
        PlaneWriter::<IP>::stage(&this.writer)
    }
}
