//! A CUDA runtime without a GPU: CubeCL's CUDA compiler, with host memory for buffers. A launch compiles its kernel to
//! CUDA C++ and keeps the source. With [`EMULATES`] it also runs it on the CPU; otherwise nothing is computed, and what is
//! read back is whatever the memory held.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use burn_cubecl::CubeBackend;
use cubecl::client::ComputeClient;
use cubecl::ir::{ContiguousElements, MatrixLayout, MmaProperties, TargetProperties};
use cubecl::server::{
    Binding, ComputeServer, CopyDescriptor, CubeCount, ExecutionMode, KernelArguments, ServerCommunication,
    ServerUtilities,
};
use cubecl::{MemoryConfiguration, Runtime};
use cubecl_common::bytes::Bytes;
use cubecl_common::device::{Device, DeviceId, DeviceService};
use cubecl_common::future::DynFut;
use cubecl_common::profile::ProfileDuration;
use cubecl_common::stream_id::StreamId;
use cubecl_cpp::cuda::CudaDialect;
use cubecl_cpp::cuda::mma::{CudaWmmaCompiler, contiguous_elements_cuda};
use cubecl_cpp::shared::{CompilationOptions, CppCompiler};
use cubecl_runtime::allocator::PitchedMemoryLayoutPolicy;
use cubecl_runtime::compiler::CubeTask;
use cubecl_runtime::id::KernelId;
use cubecl_runtime::kernel::KernelMetadata;
use cubecl_runtime::logging::ServerLogger;
use cubecl_runtime::memory_management::{
    ManagedMemoryHandle, MemoryAllocationMode, MemoryManagement, MemoryManagementOptions, MemoryUsage,
};
use cubecl_runtime::server::{ProfileError, ProfilingToken, ServerError};
use cubecl_runtime::storage::{BytesResource, BytesStorage, ManagedResource};
use cubecl_runtime::timestamp_profiler::TimestampProfiler;
use cubecl_zspace::striding::has_pitched_row_major_strides;
use cubecl_zspace::{Shape, Strides};

use crate::card;
use crate::emulator::{Buffer, Emulator, Launch, Source};

/// burn over the runtime without a GPU.
pub(crate) type Compiled = CubeBackend<CompileOnly, f32, i32, u8>;

type Compiler = CppCompiler<CudaDialect<CudaWmmaCompiler>>;

/// What was launched: each kernel once, and what CubeCL or a card would refuse.
#[derive(Debug, Default)]
pub(crate) struct Launched {
    pub(crate) kernels: Vec<Arc<Kernel>>,
    pub(crate) refused: Vec<String>,
}

/// A kernel as CubeCL writes it.
#[derive(Debug)]
pub(crate) struct Kernel {
    pub(crate) entry_point: String,
    /// CUDA C++.
    pub(crate) text: String,
    block: [u32; 3],
    shared: usize,
    /// Units of a cube, bytes of shared memory, and what was computed when it was first launched, as [`begin`] names it.
    pub(crate) launch: String,
}

/// Whether kernels are run, too.
pub(crate) static EMULATES: AtomicBool = AtomicBool::new(false);

/// Whether no kernel of the past is known any more.
static FORGETS: AtomicBool = AtomicBool::new(false);

/// Everything launched so far in this process.
pub(crate) static LAUNCHED: Mutex<Option<Launched>> = Mutex::new(None);

static PART: Mutex<String> = Mutex::new(String::new());

/// The runtime for one test alone, as if nothing had been launched.
pub(crate) fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    let alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    begin("");
    EMULATES.store(false, Ordering::Relaxed);
    FORGETS.store(true, Ordering::Relaxed);
    *LAUNCHED.lock().expect("nothing panics while it is held") = None;
    alone
}

fn note(what: impl FnOnce(&mut Launched)) {
    what(LAUNCHED.lock().expect("nothing panics while it is held").get_or_insert_default());
}

/// Names what is computed from here on.
pub(crate) fn begin(part: &str) {
    // Launches are handed to the runtime's thread.
    cubecl::future::block_on(CompileOnly::client(&NoDevice).sync()).expect("host memory");
    *PART.lock().expect("nothing panics while it is held") = part.to_owned();
}

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
    /// As a card's context has them: CubeCL does not write a kernel in the same words every time.
    compiled: HashMap<KernelId, Arc<Kernel>>,
}

impl DeviceService for Server {
    fn init(_: DeviceId) -> Self {
        let properties = card::properties();
        let logger = Arc::new(ServerLogger::default());
        let memory = MemoryManagement::from_configuration(
            BytesStorage::default(),
            &properties.memory,
            MemoryConfiguration::default(),
            logger.clone(),
            MemoryManagementOptions::new("compile-only"),
        );
        let policy = PitchedMemoryLayoutPolicy::new(card::ALIGNMENT);
        let utilities = Arc::new(ServerUtilities::new(properties, logger, (), policy));
        let (timestamps, emulator) = (TimestampProfiler::default(), Emulator::default());
        Self { memory, timestamps, utilities, options: card::options(), emulator, compiled: HashMap::new() }
    }

    fn utilities(&self) -> Arc<dyn std::any::Any + Send + Sync> {
        self.utilities.clone()
    }
}

impl Server {
    fn resource(&mut self, binding: Binding) -> BytesResource {
        let Binding { memory, offset_start, offset_end, .. } = binding;
        self.memory.get_resource(memory, offset_start, offset_end).expect("bound memory")
    }

    /// A kernel in CUDA C++.
    ///
    /// # Errors
    /// What CubeCL or a card would not stand.
    fn compile(&self, kernel: &dyn CubeTask<Compiler>, mode: ExecutionMode) -> Result<Kernel, String> {
        let address = kernel.address_type();
        let compiled = kernel
            .compile(&mut Default::default(), &self.options, mode, address)
            .map_err(|error| format!("{}: {error:?}", kernel.name()))?;
        let block = [compiled.cube_dim.x, compiled.cube_dim.y, compiled.cube_dim.z];
        let units: u32 = block.into_iter().product();
        let shared = compiled.repr.as_ref().map_or(0, |kernel| kernel.shared_memory_size());
        let limits = &self.utilities.properties.hardware;
        if units > limits.max_units_per_cube || shared > limits.max_shared_memory_size {
            return Err(format!("{}: {units} units and {shared} bytes of shared memory", kernel.name()));
        }
        let part = PART.lock().expect("nothing panics while it is held");
        let launch = format!("units {units} shared {shared} of {part}");
        let (entry_point, text) = (compiled.entrypoint_name, compiled.source);
        Ok(Kernel { entry_point, text, block, shared, launch })
    }

    /// Runs a launch on the CPU.
    ///
    /// # Errors
    /// What the kernel did that no card would stand.
    fn emulate(
        &mut self,
        kernel: &Kernel,
        count: CubeCount,
        arguments: KernelArguments,
    ) -> Result<(), String> {
        let CubeCount::Static(x, y, z) = count else {
            return Err(format!("{}: a grid that a kernel decides", kernel.entry_point));
        };
        let mut resources = Vec::new();
        for binding in arguments.buffers {
            let size = binding.size_in_used() as usize;
            resources.push((self.resource(binding), size));
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
        let Kernel { entry_point, text, block, shared, .. } = kernel;
        let launch = Launch { grid: [x, y, z], block: *block, shared: *shared as u64, constants, buffers };
        let mut results = self.emulator.run(Source { entry_point, text }, &launch)?.into_iter();
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

/// Bytes of a row, and from one to the next: at least 1, for there are tensors of nothing.
fn rows(descriptor: &CopyDescriptor) -> (usize, usize) {
    let CopyDescriptor { shape, strides, elem_size, .. } = descriptor;
    if !has_pitched_row_major_strides(shape, strides) {
        note(|launched| launched.refused.push(format!("a copy of {shape:?} by {strides:?}")));
    }
    let width = shape.last().copied().unwrap_or(1);
    let pitch = if shape.len() < 2 { width } else { strides[shape.len() - 2] };
    ((width * elem_size).max(1), (pitch * elem_size).max(1))
}

impl ServerCommunication for Server {
    const SERVER_COMM_ENABLED: bool = false;
}

impl ComputeServer for Server {
    type Kernel = Box<dyn CubeTask<Compiler>>;
    type Storage = BytesStorage;
    type MemoryLayoutPolicy = PitchedMemoryLayoutPolicy;
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
            let (width, pitch) = rows(&descriptor);
            let resource = self.resource(descriptor.handle);
            let rows = resource.read().chunks(pitch).map(|row| &row[..width]);
            let size = descriptor.shape.num_elements() * descriptor.elem_size;
            let bytes: Vec<u8> = rows.flatten().copied().take(size).collect();
            assert_eq!(bytes.len(), size, "a tensor of {:?} lies in its buffer", descriptor.shape);
            Bytes::from_bytes_vec(bytes)
        };
        let bytes: Vec<_> = descriptors.into_iter().map(read).collect();
        Box::pin(async move { Ok(bytes) })
    }

    fn write(&mut self, descriptors: Vec<(CopyDescriptor, Bytes)>, _: StreamId) {
        for (descriptor, data) in descriptors {
            let (width, pitch) = rows(&descriptor);
            let mut resource = self.resource(descriptor.handle);
            let to = resource.write().chunks_mut(pitch);
            for (to, from) in to.zip(data.chunks(width)) {
                to[..from.len()].copy_from_slice(from);
            }
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
        if FORGETS.swap(false, Ordering::Relaxed) {
            self.compiled.clear();
        }
        let mut id = kernel.id();
        id.mode(mode);
        let done = match self.compiled.get(&id) {
            Some(kernel) => Ok(kernel.clone()),
            None => self.compile(&*kernel, mode).map(|kernel| {
                let kernel = Arc::new(kernel);
                self.compiled.insert(id, kernel.clone());
                note(|launched| launched.kernels.push(kernel.clone()));
                kernel
            }),
        };
        let done = done.and_then(|kernel| {
            if EMULATES.load(Ordering::Relaxed) { self.emulate(&kernel, count, arguments) } else { Ok(()) }
        });
        if let Err(refusal) = done {
            note(|launched| launched.refused.push(refusal));
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

    fn can_read_tensor(shape: &Shape, strides: &Strides) -> bool {
        has_pitched_row_major_strides(shape, strides)
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
