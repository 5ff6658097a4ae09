//! A GPU as it is found on a machine, and why there is none.

/// What kind of hardware a device is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// A card with memory of its own.
    Discrete,
    /// Beside the processor, sharing its memory.
    Integrated,
    /// Passed through by a hypervisor.
    Virtual,
    /// A processor that emulates a GPU.
    Software,
}

impl Kind {
    /// Its name in messages.
    pub fn name(self) -> &'static str {
        match self {
            Self::Discrete => "discrete",
            Self::Integrated => "integrated",
            Self::Virtual => "virtual",
            Self::Software => "software",
        }
    }
}

/// Memory of a device, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Memory {
    /// All of it.
    pub total: u64,
    /// Free for this process, if the driver reports it.
    pub free: Option<u64>,
}

/// A usable GPU.
#[derive(Clone, Debug)]
pub struct Found<D> {
    /// What burn calls it.
    pub device: D,
    /// What its driver calls it.
    pub name: String,
    /// The driver, with its version.
    pub driver: String,
    /// The kind of hardware.
    pub kind: Kind,
    /// Its memory, if the driver reports it.
    pub memory: Option<Memory>,
}

impl<D> Found<D> {
    /// Whether the CPU emulates it.
    pub fn is_software(&self) -> bool {
        self.kind == Kind::Software
    }
}

/// Why no GPU is usable.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unusable {
    /// No driver, or the driver lists no device.
    #[error("no {0} device found: the machine has none, or its driver is not installed")]
    NoDevice(&'static str),
    /// The CUDA driver is not installed.
    #[error("the CUDA driver (libcuda) is not installed")]
    NoCudaDriver,
    /// The CUDA driver returns an error.
    #[error("the CUDA driver does not work: {0}")]
    CudaDriver(String),
    /// NVRTC, which compiles kernels, is not installed.
    #[error("NVRTC (libnvrtc), which compiles the kernels, is not installed")]
    NoNvrtc,
    /// NVRTC is newer than the driver, which cannot load what it makes.
    #[error(
        "NVRTC is from CUDA {}, and the driver supports CUDA up to {}",
        version(*.nvrtc), version(*.driver)
    )]
    NvrtcTooNew {
        /// Version of NVRTC.
        nvrtc: (i32, i32),
        /// Newest CUDA that the driver supports.
        driver: (i32, i32),
    },
    /// The headers that kernels include are not installed.
    #[error("the CUDA headers (cuda_runtime.h, cuda_fp16.h, cuda_bf16.h, mma.h) are not in {0}")]
    NoCudaHeaders(String),
}

fn version((major, minor): (i32, i32)) -> String {
    format!("{major}.{minor}")
}

impl Unusable {
    /// What to install.
    pub fn help(&self) -> &'static str {
        match self {
            Self::NoDevice("Metal") => "Metal needs a Mac with an Apple or AMD GPU, and no further software",
            Self::NoDevice(_) => {
                "Vulkan needs only a driver. Debian/Ubuntu: `apt install mesa-vulkan-drivers libvulkan1` (AMD, Intel; \
                 for NVIDIA the package nvidia-driver); Fedora: `dnf install mesa-vulkan-drivers vulkan-loader`; \
                 Arch: `pacman -S vulkan-icd-loader` and vulkan-radeon, vulkan-intel or nvidia-utils"
            }
            Self::NoCudaDriver | Self::CudaDriver(_) => {
                "install NVIDIA's driver. Debian: `apt install nvidia-driver libcuda1`; Ubuntu: `ubuntu-drivers install`; \
                 Fedora (RPM Fusion): `dnf install akmod-nvidia xorg-x11-drv-nvidia-cuda`; Arch: `pacman -S nvidia \
                 nvidia-utils`; in a container, start it with the NVIDIA container toolkit (`--gpus all`)"
            }
            Self::NoNvrtc | Self::NoCudaHeaders(_) => {
                "install the CUDA toolkit. Debian/Ubuntu: `apt install nvidia-cuda-toolkit`; Fedora: cuda-toolkit from \
                 NVIDIA's repository; Arch: `pacman -S cuda`. Or without root, for a driver of CUDA 13 (580 or newer): \
                 `pip install nvidia-cuda-nvrtc nvidia-cuda-runtime nvidia-cuda-crt nvidia-cuda-cccl`. A tune that pip \
                 installed into the same environment finds them; for another one set CUDA_PATH to the folder nvidia/cu13 of \
                 site-packages and LD_LIBRARY_PATH to its lib. A build with the feature `vulkan` needs only the driver"
            }
            Self::NvrtcTooNew { .. } => {
                "update NVIDIA's driver, or install a CUDA toolkit no newer than it; a build with the feature `vulkan` \
                 needs neither"
            }
        }
    }
}
