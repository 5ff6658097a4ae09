//! A CUDA runtime without a GPU: CubeCL's CUDA compiler, with host memory for buffers. A launch compiles its kernel to
//! CUDA C++ and keeps the source. With [`EMULATES`] it also runs it on the CPU; otherwise nothing is computed, and what is
//! read back is whatever the memory held.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock};

use burn_cubecl::CubeBackend;
use cubecl::client::ComputeClient;
use cubecl::ir::{
    ContiguousElements, DeviceProperties, ElemType, FloatKind, HardwareProperties, MatrixLayout,
    MemoryDeviceProperties, MmaProperties, TargetProperties, VectorSize,
};
use cubecl::server::{
    Binding, ComputeServer, CopyDescriptor, CubeCount, ExecutionMode, KernelArguments, ServerCommunication,
    ServerUtilities,
};
use cubecl::{MemoryConfiguration, Runtime};
use cubecl_common::bytes::Bytes;
use cubecl_common::device::{Device, DeviceId, DeviceService};
use cubecl_common::future::DynFut;
use cubecl_common::profile::{ProfileDuration, TimingMethod};
use cubecl_common::stream_id::StreamId;
use cubecl_cpp::cuda::CudaDialect;
use cubecl_cpp::cuda::arch::CudaArchitecture;
use cubecl_cpp::cuda::mma::{CudaWmmaCompiler, contiguous_elements_cuda};
use cubecl_cpp::shared::{
    CompilationOptions, CppCompiler, CppSupportedFeatures, DialectWmmaCompiler, register_mma_features,
    register_supported_types, register_wmma_features,
};
use cubecl_runtime::allocator::ContiguousMemoryLayoutPolicy;
use cubecl_runtime::compiler::CubeTask;
use cubecl_runtime::kernel::KernelMetadata;
use cubecl_runtime::logging::ServerLogger;
use cubecl_runtime::memory_management::{
    ManagedMemoryHandle, MemoryAllocationMode, MemoryManagement, MemoryManagementOptions, MemoryUsage,
};
use cubecl_runtime::server::{ProfileError, ProfilingToken, ServerError};
use cubecl_runtime::storage::{BytesResource, BytesStorage, ManagedResource};
use cubecl_runtime::timestamp_profiler::TimestampProfiler;
use cubecl_zspace::{Shape, Strides};

use crate::emulator::{Buffer, Emulator, Launch, Source};

/// The architecture that `TUNE_CUDA_ARCH` names, as in `sm_80`, which it is without; compiled for from here on.
pub(crate) fn architecture() -> u32 {
    let named = std::env::var("TUNE_CUDA_ARCH").ok();
    *ARCHITECTURE
        .get_or_init(|| named.map_or(80, |text| text.parse().expect("TUNE_CUDA_ARCH is a number like 80")))
}

/// burn over the runtime without a GPU.
pub(crate) type Compiled = CubeBackend<CompileOnly, f32, i32, u8>;

type Compiler = CppCompiler<CudaDialect<CudaWmmaCompiler>>;

/// What was launched: CUDA C++ by kernel name and number, and kernels that CubeCL refused.
#[derive(Debug, Default)]
pub(crate) struct Launched {
    pub(crate) sources: BTreeMap<String, String>,
    pub(crate) refused: Vec<String>,
    number: usize,
}

static ARCHITECTURE: OnceLock<u32> = OnceLock::new();

/// Whether kernels are run, too; set before the first launch.
pub(crate) static EMULATES: AtomicBool = AtomicBool::new(false);

/// Everything launched so far in this process.
pub(crate) static LAUNCHED: Mutex<Option<Launched>> = Mutex::new(None);

/// The one device.
#[derive(Clone, Debug, Hash, PartialEq, Eq, Default)]
pub(crate) struct NoDevice;

impl Device for NoDevice {
    fn from_id(_: DeviceId) -> Self {
        Self
    }

    fn to_id(&self) -> DeviceId {
        DeviceId { type_id: 0, index_id: 0 }
    }
}

impl burn_tensor::backend::DeviceOps for NoDevice {}

#[derive(Debug)]
pub(crate) struct Server {
    memory: MemoryManagement<BytesStorage>,
    timestamps: TimestampProfiler,
    utilities: Arc<ServerUtilities<Self>>,
    options: CompilationOptions,
    emulator: Emulator,
}

impl DeviceService for Server {
    fn init(_: DeviceId) -> Self {
        let memory_properties = MemoryDeviceProperties { max_page_size: 1 << 30, alignment: 512 };
        let logger = Arc::new(ServerLogger::default());
        let memory = MemoryManagement::from_configuration(
            BytesStorage::default(),
            &memory_properties,
            MemoryConfiguration::default(),
            logger.clone(),
            MemoryManagementOptions::new("compile-only"),
        );
        let hardware = HardwareProperties {
            load_width: 128,
            plane_size_min: 32,
            plane_size_max: 32,
            max_bindings: 1024,
            // What every card since Turing gives a block that asks for it; newer ones give more.
            max_shared_memory_size: 65_536,
            max_cube_count: (i32::MAX as u32, 65_535, 65_535),
            max_units_per_cube: 1024,
            max_cube_dim: (1024, 1024, 64),
            num_streaming_multiprocessors: Some(128),
            num_tensor_cores: Some(4),
            min_tensor_cores_dim: Some(8),
            num_cpu_cores: None,
            max_vector_size: VectorSize::MAX,
        };
        let mut properties =
            DeviceProperties::new(Default::default(), memory_properties, hardware, TimingMethod::System);
        let version = architecture();
        let architecture = CudaArchitecture { version };
        register_supported_types(&mut properties);
        register_wmma_features(CudaWmmaCompiler::supported_wmma_combinations(&architecture), &mut properties);
        register_mma_features(CudaWmmaCompiler::supported_mma_combinations(&architecture), &mut properties);
        for kind in [FloatKind::F16, FloatKind::BF16] {
            properties.features.matmul.ldmatrix.insert(ElemType::Float(kind).into());
        }
        properties.features.copy_async = version >= 80;
        properties.features.memory_reinterpret = true;
        properties.features.alignment = true;
        for feature in [
            cubecl::features::Plane::Ops,
            cubecl::features::Plane::Sync,
            cubecl::features::Plane::NonUniformControlFlow,
        ] {
            properties.features.plane.insert(feature);
        }
        let policy = ContiguousMemoryLayoutPolicy::new(512);
        let utilities = Arc::new(ServerUtilities::new(properties, logger, (), policy));
        let supports_features = CppSupportedFeatures {
            grid_constants: version >= 70,
            fast_math: true,
            fast_tanh: version >= 75,
            ..Default::default()
        };
        let options = CompilationOptions { warp_size: 32, supports_features };
        let (timestamps, emulator) = (TimestampProfiler::default(), Emulator::default());
        Self { memory, timestamps, utilities, options, emulator }
    }

    fn utilities(&self) -> Arc<dyn std::any::Any + Send + Sync> {
        self.utilities.clone()
    }
}

impl Server {
    /// Runs a launch on the CPU.
    ///
    /// # Errors
    /// What the kernel did that no card would stand.
    fn emulate(
        &mut self,
        source: Source<'_>,
        count: CubeCount,
        block: [u32; 3],
        shared: u64,
        arguments: KernelArguments,
    ) -> Result<(), String> {
        let CubeCount::Static(x, y, z) = count else {
            return Err(format!("{}: a grid that a kernel decides", source.entry_point));
        };
        let mut resources = Vec::new();
        for binding in arguments.buffers {
            let size = binding.size_in_used() as usize;
            let Binding { memory, offset_start, offset_end, .. } = binding;
            let resource = self.memory.get_resource(memory, offset_start, offset_end);
            resources.push((resource.expect("bound memory"), size));
        }
        let mut buffers = Vec::new();
        for (number, (resource, size)) in resources.iter().enumerate() {
            let place = resource.get_write_ptr_and_length();
            let earlier = resources[..number]
                .iter()
                .position(|(earlier, _)| earlier.get_write_ptr_and_length() == place);
            buffers
                .push(earlier.map_or_else(|| Buffer::Bytes(resource.read()[..*size].to_vec()), Buffer::Same));
        }
        let mut constants = arguments.info.data;
        let dynamic = constants.split_off(arguments.info.dynamic_metadata_offset);
        if !dynamic.is_empty() {
            buffers.push(Buffer::Bytes(dynamic.into_iter().flat_map(u64::to_ne_bytes).collect()));
        }
        let launch = Launch { grid: [x, y, z], block, shared, constants, buffers };
        let mut results = self.emulator.run(source, &launch)?.into_iter();
        for ((resource, size), buffer) in resources.iter_mut().zip(&launch.buffers) {
            if matches!(buffer, Buffer::Bytes(_))
                && let Some(bytes) = results.next()
            {
                resource.write()[..*size].copy_from_slice(&bytes);
            }
        }
        Ok(())
    }
}

impl ServerCommunication for Server {
    const SERVER_COMM_ENABLED: bool = false;
}

impl ComputeServer for Server {
    type Kernel = Box<dyn CubeTask<Compiler>>;
    type Storage = BytesStorage;
    type MemoryLayoutPolicy = ContiguousMemoryLayoutPolicy;
    type Info = ();

    fn logger(&self) -> Arc<ServerLogger> {
        self.utilities.logger.clone()
    }

    fn utilities(&self) -> Arc<ServerUtilities<Self>> {
        self.utilities.clone()
    }

    fn initialize_memory(&mut self, memory: ManagedMemoryHandle, size: u64, _: StreamId) {
        let reserved = self.memory.reserve(size).expect("host memory");
        self.memory.bind(reserved, memory.clone(), 0).expect("a reservation is bound once");
        // As on a card, unwritten memory holds anything.
        let mut resource = self.memory.get_resource(memory.binding(), None, None).expect("bound memory");
        resource.write().fill(0xff);
    }

    fn read(
        &mut self,
        descriptors: Vec<CopyDescriptor>,
        _: StreamId,
    ) -> DynFut<Result<Vec<Bytes>, ServerError>> {
        let read = |descriptor: CopyDescriptor| {
            let Binding { memory, offset_start, offset_end, .. } = descriptor.handle.clone();
            let size = descriptor.handle.size_in_used() as usize;
            let resource = self.memory.get_resource(memory, offset_start, offset_end).expect("bound memory");
            Bytes::from_bytes_vec(resource.read()[..size].to_vec())
        };
        let bytes: Vec<_> = descriptors.into_iter().map(read).collect();
        Box::pin(async move { Ok(bytes) })
    }

    fn write(&mut self, descriptors: Vec<(CopyDescriptor, Bytes)>, _: StreamId) {
        for (descriptor, data) in descriptors {
            let Binding { memory, offset_start, offset_end, .. } = descriptor.handle.clone();
            let mut resource =
                self.memory.get_resource(memory, offset_start, offset_end).expect("bound memory");
            resource.write()[..data.len()].copy_from_slice(&data);
        }
    }

    fn sync(&mut self, _: StreamId) -> DynFut<Result<(), ServerError>> {
        Box::pin(async { Ok(()) })
    }

    fn get_resource(
        &mut self,
        binding: Binding,
        _: StreamId,
    ) -> Result<ManagedResource<BytesResource>, ServerError> {
        let resource =
            self.memory.get_resource(binding.memory.clone(), binding.offset_start, binding.offset_end)?;
        Ok(ManagedResource::new(binding.memory, resource))
    }

    unsafe fn launch(
        &mut self,
        kernel: Self::Kernel,
        count: CubeCount,
        arguments: KernelArguments,
        mode: ExecutionMode,
        _: StreamId,
    ) {
        let address = kernel.address_type();
        let compiled = kernel.compile(&mut Default::default(), &self.options, mode, address);
        let mut launched = LAUNCHED.lock().expect("nothing panics while it is held");
        let launched = launched.get_or_insert_default();
        let compiled = match compiled {
            Ok(compiled) => compiled,
            Err(error) => return launched.refused.push(format!("{}: {error:?}", kernel.name())),
        };
        let cube = compiled.cube_dim;
        let shared = compiled.repr.as_ref().map_or(0, |kernel| kernel.shared_memory_size()) as u64;
        if EMULATES.load(Ordering::Relaxed) {
            let source = Source { entry_point: &compiled.entrypoint_name, text: &compiled.source };
            let block = [cube.x, cube.y, cube.z];
            let failed = self.emulate(source, count, block, shared, arguments).err();
            launched.refused.extend(failed);
        }
        let source = format!("// units {} shared {shared}\n{}", cube.x * cube.y * cube.z, compiled.source);
        if !launched.sources.values().any(|known| *known == source) {
            launched.number += 1;
            let name = format!("{:03}_{}", launched.number, compiled.entrypoint_name);
            launched.sources.insert(name, source);
        }
    }

    fn flush(&mut self, _: StreamId) -> Result<(), ServerError> {
        Ok(())
    }

    fn memory_usage(&mut self, _: StreamId) -> Result<MemoryUsage, ServerError> {
        Ok(self.memory.memory_usage())
    }

    fn memory_cleanup(&mut self, _: StreamId) {
        self.memory.cleanup(true);
    }

    fn start_profile(&mut self, _: StreamId) -> Result<ProfilingToken, ServerError> {
        Ok(self.timestamps.start())
    }

    fn end_profile(&mut self, _: StreamId, token: ProfilingToken) -> Result<ProfileDuration, ProfileError> {
        self.timestamps.stop(token)
    }

    fn allocation_mode(&mut self, mode: MemoryAllocationMode, _: StreamId) {
        self.memory.mode(mode);
    }
}

/// The runtime without a GPU.
#[derive(Debug, Clone)]
pub(crate) struct CompileOnly;

impl Runtime for CompileOnly {
    type Compiler = Compiler;
    type Server = Server;
    type Device = NoDevice;

    fn client(device: &Self::Device) -> ComputeClient<Self> {
        ComputeClient::load(device)
    }

    fn name(_: &ComputeClient<Self>) -> &'static str {
        "cuda"
    }

    fn require_array_lengths() -> bool {
        true
    }

    fn max_cube_count() -> (u32, u32, u32) {
        (i32::MAX as u32, 65_535, 65_535)
    }

    fn can_read_tensor(_: &Shape, _: &Strides) -> bool {
        true
    }

    fn target_properties() -> TargetProperties {
        TargetProperties {
            mma: MmaProperties {
                register_size_bits: 32,
                const_plane_size: 32,
                register_layout_a: MatrixLayout::RowMajor,
                register_layout_b: MatrixLayout::ColMajor,
                register_layout_acc: MatrixLayout::RowMajor,
                register_duplication_a: 1,
                register_duplication_b: 1,
                register_duplication_acc: 1,
                contiguous_elements: ContiguousElements::new(contiguous_elements_cuda),
            },
        }
    }

    fn enumerate_devices(_: u16, _: &()) -> Vec<DeviceId> {
        vec![DeviceId { type_id: 0, index_id: 0 }]
    }
}
