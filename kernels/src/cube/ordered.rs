//! cubek's ordered, double-buffered product for tensor cores by `mma.sync`, with each tile of the result passed on in
//! step.
//!
//! A tile's sums leave the registers of a plane's lanes through shared memory, from which other lanes write them out.
//! cubek 0.2's writer does not synchronize the plane between the two, nor before the next tile takes the same place. A
//! warp that happens to run in lockstep forgives that; since Volta none has to.

use cubecl::prelude::*;
use cubecl::std::tensor::View;
use cubecl::std::tensor::layout::Coords2d;
use cubek::matmul::components::batch::{
    BatchMatmulFamily, PartitionedBatchMatmulFamily, RowMajorGlobalPartitionMatmul,
};
use cubek::matmul::components::global::multi_stage::ordered::OrderedDoubleBufferingMatmulFamily;
use cubek::matmul::components::global::read::sync_full_cyclic::SyncFullCyclicLoading;
use cubek::matmul::components::global::read::sync_partial_cyclic::SyncPartialCyclicLoading;
use cubek::matmul::components::global::{
    GlobalWriter, GlobalWriterConfig, GlobalWriterFamily, PlaneWriter, PlaneWriterFamily, WriteEvent,
    WriteEventListener,
};
use cubek::matmul::components::stage::{PlaneMatmulFamily, RowMajorTilingOrder, StridedStageFamily};
use cubek::matmul::definition::{MatmulProblem, MatmulSetupError, MatrixTypes, TilingBlueprint};
use cubek::matmul::routines::ordered_double_buffering::{
    OrderedDoubleBufferingAlgorithm, OrderedSelectionArgs,
};
use cubek::matmul::routines::{BlueprintStrategy, DeviceSettings, ExpandInfo, LaunchInfo, Routine};

/// [`OrderedDoubleBufferingAlgorithm`] with [`InStep`] to write. Needs planes that can be synchronized.
pub(super) struct Ordered;

impl Routine<()> for Ordered {
    type Strategy = OrderedSelectionArgs;
    type BatchMatmul = PartitionedBatchMatmulFamily<
        (),
        OrderedDoubleBufferingMatmulFamily<
            PlaneMatmulFamily<StridedStageFamily, StridedStageFamily, Option<StridedStageFamily>>,
            (),
            SyncPartialCyclicLoading<RowMajorTilingOrder>,
            SyncFullCyclicLoading<RowMajorTilingOrder>,
            InStepFamily,
        >,
        RowMajorGlobalPartitionMatmul,
    >;
    type Blueprint = TilingBlueprint;
    type Config = <Self::BatchMatmul as BatchMatmulFamily<()>>::Config;

    fn expand_blueprint<R: Runtime>(
        problem: &MatmulProblem,
        device: &DeviceSettings<R>,
        strategy: &BlueprintStrategy<(), Self>,
    ) -> Result<ExpandInfo<Self::Blueprint>, MatmulSetupError> {
        let strategy: BlueprintStrategy<(), OrderedDoubleBufferingAlgorithm> = match strategy {
            BlueprintStrategy::Forced(blueprint) => BlueprintStrategy::Forced(blueprint.clone()),
            BlueprintStrategy::Inferred(strategy) => BlueprintStrategy::Inferred(strategy.clone()),
        };
        OrderedDoubleBufferingAlgorithm::expand_blueprint(problem, device, &strategy)
    }

    fn prepare<R: Runtime>(
        problem: &MatmulProblem,
        device: &DeviceSettings<R>,
        expanded: ExpandInfo<Self::Blueprint>,
    ) -> Result<LaunchInfo<Self::Blueprint>, MatmulSetupError> {
        <OrderedDoubleBufferingAlgorithm as Routine<()>>::prepare(problem, device, expanded)
    }
}

/// Makes [`InStep`].
pub(super) struct InStepFamily;

impl GlobalWriterFamily for InStepFamily {
    type Stage = <PlaneWriterFamily as GlobalWriterFamily>::Stage;
    type Writer<IP: MatrixTypes> = InStep<IP>;
}

/// cubek's writer of a plane's tiles, whose lanes wait for each other before and after.
#[derive(CubeType)]
pub(super) struct InStep<IP: MatrixTypes> {
    writer: PlaneWriter<IP>,
}

#[cube]
impl<IP: MatrixTypes> WriteEventListener for InStep<IP> {
    fn on_event(this: &mut Self, event: WriteEvent) {
        sync_plane();
        PlaneWriter::<IP>::on_event(&mut this.writer, event);
        sync_plane();
    }
}

#[cube]
impl<IP: MatrixTypes> GlobalWriter<IP> for InStep<IP> {
    type Stage = <PlaneWriter<IP> as GlobalWriter<IP>>::Stage;

    fn init(
        tensor: View<Vector<IP::Global, IP::GlobalSize>, Coords2d, ReadWrite>,
        #[comptime] config: GlobalWriterConfig,
    ) -> Self {
        InStep::<IP> { writer: PlaneWriter::<IP>::new(tensor, config) }
    }

    fn stage(this: &Self) -> Self::Stage {
        PlaneWriter::<IP>::stage(&this.writer)
    }
}
