//! What a card of each architecture says of itself, as CubeCL's CUDA runtime asks it: features of the compiler, and the
//! sizes by which kernels are chosen. Nothing of it is what a kernel may do: that is the emulator's and NVIDIA's compilers'.

use std::sync::OnceLock;

use cubecl::features::{Plane, Tma};
use cubecl::ir::{
    BarrierLevel, DeviceProperties, ElemType, FloatKind, HardwareProperties, MemoryDeviceProperties,
    OpaqueType, SemanticType, VectorSize,
};
use cubecl_common::profile::TimingMethod;
use cubecl_cpp::DialectWmmaCompiler;
use cubecl_cpp::cuda::arch::CudaArchitecture;
use cubecl_cpp::cuda::mma::CudaWmmaCompiler;
use cubecl_cpp::shared::{
    CompilationOptions, CppSupportedFeatures, register_mma_features, register_scaled_mma_features,
    register_supported_types, register_wmma_features,
};

/// By architecture: bytes of shared memory that a block may ask for, and multiprocessors (of a T4, an A100, an RTX 3060,
/// an RTX 4090, an H100 and an RTX 5090).
const CARDS: [(u32, usize, u32); 6] = [
    (75, 65_536, 40),
    (80, 166_912, 108),
    (86, 101_376, 28),
    (89, 101_376, 128),
    (90, 232_448, 132),
    (120, 101_376, 170),
];

/// What rows and buffers begin at a multiple of, in bytes.
pub(crate) const ALIGNMENT: usize = 512;

/// The architecture that `TUNE_CUDA_ARCH` names, as in `sm_80`, which it is without; compiled for from here on.
pub(crate) fn architecture() -> u32 {
    static ARCHITECTURE: OnceLock<u32> = OnceLock::new();
    *ARCHITECTURE.get_or_init(|| {
        let named = std::env::var("TUNE_CUDA_ARCH").ok();
        named.map_or(80, |text| text.parse().expect("TUNE_CUDA_ARCH is a number like 80"))
    })
}

/// What a card of the architecture says of itself.
pub(crate) fn properties() -> DeviceProperties {
    let version = architecture();
    let (_, max_shared_memory_size, multiprocessors) = CARDS
        .into_iter()
        .find(|card| card.0 == version)
        .expect("TUNE_CUDA_ARCH is one of 75, 80, 86, 89, 90, 120");
    let hardware = HardwareProperties {
        load_width: 128,
        plane_size_min: 32,
        plane_size_max: 32,
        max_bindings: 1024,
        max_shared_memory_size,
        max_cube_count: (i32::MAX as u32, 65_535, 65_535),
        max_units_per_cube: 1024,
        max_cube_dim: (1024, 1024, 64),
        num_streaming_multiprocessors: Some(multiprocessors),
        num_tensor_cores: match version {
            75 => Some(8),
            120 => None,
            _ => Some(4),
        },
        min_tensor_cores_dim: Some(8),
        num_cpu_cores: None,
        max_vector_size: VectorSize::MAX,
    };
    // Pages smaller than a card's, for they are the host's memory.
    let memory = MemoryDeviceProperties { max_page_size: 1 << 30, alignment: ALIGNMENT as u64 };
    let mut properties = DeviceProperties::new(Default::default(), memory, hardware, TimingMethod::System);
    register_supported_types(&mut properties);
    let architecture = CudaArchitecture { version };
    register_wmma_features(CudaWmmaCompiler::supported_wmma_combinations(&architecture), &mut properties);
    register_mma_features(CudaWmmaCompiler::supported_mma_combinations(&architecture), &mut properties);
    let scaled = CudaWmmaCompiler::supported_scaled_mma_combinations(&architecture);
    register_scaled_mma_features(scaled, &mut properties);
    properties.register_semantic_type(SemanticType::Pipeline);
    for level in [BarrierLevel::Unit, BarrierLevel::Cube] {
        properties.register_type_usage(OpaqueType::Barrier(level), cubecl::features::TypeUsage::Buffer);
    }
    let features = &mut properties.features;
    features.memory_reinterpret = true;
    features.alignment = true;
    features.copy_async = version >= 80;
    for feature in [Plane::Ops, Plane::Sync, Plane::NonUniformControlFlow] {
        features.plane.insert(feature);
    }
    for kind in [FloatKind::F16, FloatKind::BF16] {
        let kind = ElemType::Float(kind);
        features.matmul.ldmatrix.insert(kind.into());
        if version >= 90 {
            features.matmul.stmatrix.insert(kind.into());
        }
    }
    if version >= 90 {
        features.cube_cluster = true;
        features.tma.insert(Tma::Base);
        properties.register_semantic_type(SemanticType::TensorMap);
    }
    if version >= 100 {
        properties.features.tma.insert(Tma::Im2colWide);
        properties.features.tma.insert(Tma::SwizzleAtomicity);
    }
    properties
}

/// What CubeCL's compiler may write for it.
pub(crate) fn options() -> CompilationOptions {
    let version = architecture();
    let supports_features = CppSupportedFeatures {
        grid_constants: true,
        fast_math: true,
        fast_tanh: true,
        clusters: version >= 90,
        elect_sync: version >= 90,
    };
    CompilationOptions { warp_size: 32, supports_features }
}
