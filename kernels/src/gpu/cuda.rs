//! Devices of CUDA, and whether everything is there that CubeCL needs to run on them: the driver, NVRTC, and headers.

use std::ffi::c_int;
use std::path::Path;

use burn_cuda::CudaDevice;
use cudarc::driver::result::{self, DriverError, device};
use cudarc::driver::sys::{self as driver, CUdevice_attribute as Attribute};
use cudarc::nvrtc::sys as nvrtc;

use super::context::Context;
use super::found::{Found, Kind, Memory, Unusable};
use super::start::Started;

/// Some of what kernels include: a folder that has these is the toolkit's.
const HEADERS: [&str; 4] = ["cuda_runtime.h", "cuda_fp16.h", "cuda_bf16.h", "mma.h"];

/// The CUDA devices, in the driver's order.
///
/// # Errors
/// What is missing before any of them can be used.
pub fn cuda_devices() -> Result<Vec<Found<CudaDevice>>, Unusable> {
    let known = require_driver()?;
    let count = device::get_count().map_err(refused)?;
    let found = (0..count).map(|index| describe(index, known)).collect::<Result<Vec<_>, _>>();
    let found = found.map_err(refused)?;
    if found.is_empty() {
        return Err(Unusable::NoDevice("CUDA"));
    }
    require_compiler(known)?;
    Ok(found)
}

/// Starts a CUDA device, tests it with a small multiplication, and returns what it supports. Weights are copied to it through
/// pinned memory, if there is some.
///
/// # Errors
/// A description of the failure.
pub fn start_cuda(device: &CudaDevice) -> Result<Started, String> {
    let mut started = super::start::start::<cubecl::cuda::CudaRuntime>(device)?;
    // A driver without pools maps memory anew, which takes time and changes nothing else.
    _ = Context::of(device.index).and_then(|context| context.keep_freed_memory());
    if let Err(why) = super::pinned::start(device.index) {
        started.lacks.push(format!(
            "no memory that the device reads by itself ({why}): weights come to it more slowly"
        ));
    }
    Ok(started)
}

/// The memory of a CUDA device, read now.
pub fn cuda_memory(device: &CudaDevice) -> Option<Memory> {
    require_driver().ok()?;
    memory(device::get(device.index as c_int).ok()?).ok()
}

fn refused(error: DriverError) -> Unusable {
    Unusable::CudaDriver(error.to_string())
}

/// Loads and initialises the driver; returns the newest CUDA it supports.
fn require_driver() -> Result<(i32, i32), Unusable> {
    // SAFETY: loads the library, whose initialisers are NVIDIA's.
    if !unsafe { driver::is_culib_present() } {
        return Err(Unusable::NoCudaDriver);
    }
    result::init().map_err(refused)?;
    let mut version = 0;
    // SAFETY: writes one integer.
    unsafe { driver::cuDriverGetVersion(&raw mut version) }.result().map_err(refused)?;
    Ok((version / 1000, version % 1000 / 10))
}

/// What CubeCL compiles its kernels with.
fn require_compiler(driver: (i32, i32)) -> Result<(), Unusable> {
    // SAFETY: loads the library, whose initialisers are NVIDIA's.
    if !unsafe { nvrtc::is_culib_present() } {
        return Err(Unusable::NoNvrtc);
    }
    let (mut major, mut minor) = (0, 0);
    // SAFETY: writes two integers.
    let asked = unsafe { nvrtc::nvrtcVersion(&raw mut major, &raw mut minor) }.result();
    if asked.is_ok() && (major, minor) > driver {
        return Err(Unusable::NvrtcTooNew { nvrtc: (major, minor), driver });
    }
    // CubeCL's own lookup: CUDA_PATH, /usr/local/cuda, /opt/cuda, /usr where nvcc is there.
    match cubecl::cuda::install::cuda_path() {
        None => Err(Unusable::NoCudaHeaders(
            "any of the folders looked into: CUDA_PATH, /usr/local/cuda, /opt/cuda".to_owned(),
        )),
        Some(path) => {
            let folder = path.join("include");
            let is_there = |name: &&str| folder.join(name).is_file();
            match HEADERS.iter().all(is_there) {
                true => Ok(()),
                false => Err(Unusable::NoCudaHeaders(folder.display().to_string())),
            }
        }
    }
}

fn describe(index: c_int, (major, minor): (i32, i32)) -> Result<Found<CudaDevice>, DriverError> {
    let raw = device::get(index)?;
    // SAFETY: the device is one that the driver just handed out.
    let attribute = |which| unsafe { device::get_attribute(raw, which) };
    let capability = (
        attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
        attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
    );
    let integrated = attribute(Attribute::CU_DEVICE_ATTRIBUTE_INTEGRATED)? != 0;
    let release = kernel_module_version().map(|version| format!("NVIDIA {version}, ")).unwrap_or_default();
    Ok(Found {
        device: CudaDevice::new(index as usize),
        name: device::get_name(raw)?,
        driver: format!(
            "{release}CUDA {major}.{minor}, compute capability {}.{}",
            capability.0, capability.1
        ),
        kind: if integrated { Kind::Integrated } else { Kind::Discrete },
        memory: Some(memory(raw)?),
    })
}

/// All memory of a device, and what is free of it, which needs a context.
fn memory(raw: driver::CUdevice) -> Result<Memory, DriverError> {
    // SAFETY: the device is one that the driver handed out.
    let total = unsafe { device::total_mem(raw) }? as u64;
    let context = Context::of_raw(raw)?;
    // What was this thread's context before is so again afterwards.
    let before = result::ctx::get_current()?;
    context.enter()?;
    let free = result::mem_get_info();
    // SAFETY: it was current above.
    unsafe { result::ctx::set_current(before.unwrap_or(std::ptr::null_mut()))? };
    Ok(Memory { total, free: free.ok().map(|(free, _)| free as u64) })
}

/// The driver's release, such as 570.86.15.
fn kernel_module_version() -> Option<String> {
    let text = std::fs::read_to_string(Path::new("/proc/driver/nvidia/version")).ok()?;
    let words = text.lines().next()?.split_ascii_whitespace();
    let is_release = |word: &&str| {
        word.contains('.') && word.chars().all(|character| character.is_ascii_digit() || character == '.')
    };
    words.into_iter().find(is_release).map(str::to_owned)
}
