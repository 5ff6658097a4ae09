//! Devices of Vulkan and Metal, as wgpu lists them; memory as Vulkan itself reports it.

use burn_wgpu::WgpuDevice;
use wgpu::DeviceType;

use super::found::{Found, Kind, Memory, Unusable};
use super::start::Started;

const BACKEND: (wgpu::Backends, &str) = if cfg!(target_os = "macos") {
    (wgpu::Backends::METAL, "Metal")
} else {
    (wgpu::Backends::VULKAN, "Vulkan")
};

/// The devices of Vulkan (on macOS: Metal), the most capable kind first.
///
/// # Errors
/// If there is none.
pub fn wgpu_devices() -> Result<Vec<Found<WgpuDevice>>, Unusable> {
    let (backend, api) = BACKEND;
    let instance = wgpu::Instance::new(wgpu::InstanceDescriptor {
        backends: backend,
        ..wgpu::InstanceDescriptor::new_without_display_handle()
    });
    let adapters = cubecl::future::block_on(instance.enumerate_adapters(backend));
    let kinds = [
        (DeviceType::DiscreteGpu, Kind::Discrete),
        (DeviceType::IntegratedGpu, Kind::Integrated),
        (DeviceType::VirtualGpu, Kind::Virtual),
        (DeviceType::Cpu, Kind::Software),
    ];
    let mut found = Vec::new();
    for (device_type, kind) in kinds {
        let same = adapters.iter().filter(|adapter| adapter.get_info().device_type == device_type);
        for (index, adapter) in same.enumerate() {
            let device = match kind {
                Kind::Discrete => WgpuDevice::DiscreteGpu(index),
                Kind::Integrated => WgpuDevice::IntegratedGpu(index),
                Kind::Virtual => WgpuDevice::VirtualGpu(index),
                // CubeCL starts the first one only.
                Kind::Software if index > 0 => continue,
                Kind::Software => WgpuDevice::Cpu,
            };
            let info = adapter.get_info();
            let driver = format!("{} {}", info.driver, info.driver_info).trim().to_owned();
            let driver = if driver.is_empty() { api.to_owned() } else { driver };
            found.push(Found { device, name: info.name, driver, kind, memory: memory(adapter) });
        }
    }
    if found.is_empty() { Err(Unusable::NoDevice(api)) } else { Ok(found) }
}

/// Starts one of these devices, tests it with a small multiplication, and returns what it supports.
///
/// # Errors
/// A description of the failure.
pub fn start_wgpu(device: &WgpuDevice) -> Result<Started, String> {
    super::start::start::<cubecl::wgpu::WgpuRuntime>(device)
}

/// The memory of one of those devices, read now.
pub fn wgpu_memory(device: &WgpuDevice) -> Option<Memory> {
    wgpu_devices().ok()?.into_iter().find(|found| found.device == *device)?.memory
}

/// The largest heap that is the device's own. What is free of it is known where the driver has `VK_EXT_memory_budget`.
#[cfg(all(feature = "vulkan", not(target_os = "macos")))]
fn memory(adapter: &wgpu::Adapter) -> Option<Memory> {
    use ash::vk;

    // SAFETY: the handles are read while `adapter` lives, and nothing is destroyed through them.
    let hal = unsafe { adapter.as_hal::<wgpu::hal::api::Vulkan>() }?;
    let shared = hal.shared_instance();
    if shared.instance_api_version() < vk::API_VERSION_1_1 {
        return None;
    }
    let (instance, physical) = (shared.raw_instance(), hal.raw_physical_device());
    // SAFETY: the physical device is the instance's own.
    let extensions = unsafe { instance.enumerate_device_extension_properties(physical) }.ok()?;
    let has_budget = extensions
        .iter()
        .any(|extension| extension.extension_name_as_c_str() == Ok(vk::EXT_MEMORY_BUDGET_NAME));
    let mut budget = vk::PhysicalDeviceMemoryBudgetPropertiesEXT::default();
    let mut properties = vk::PhysicalDeviceMemoryProperties2::default();
    if has_budget {
        properties = properties.push_next(&mut budget);
    }
    // SAFETY: Vulkan 1.1 has the function, and the chain holds a structure that the device knows.
    unsafe { instance.get_physical_device_memory_properties2(physical, &mut properties) };
    let heaps = properties.memory_properties;
    let (index, heap) = heaps
        .memory_heaps
        .iter()
        .enumerate()
        .take(heaps.memory_heap_count as usize)
        .filter(|(_, heap)| heap.flags.contains(vk::MemoryHeapFlags::DEVICE_LOCAL))
        .max_by_key(|(_, heap)| heap.size)?;
    let free = has_budget.then(|| budget.heap_budget[index].saturating_sub(budget.heap_usage[index]));
    Some(Memory { total: heap.size, free })
}

/// Metal uses the machine's memory; wgpu does not report how much of it a GPU may take.
#[cfg(not(all(feature = "vulkan", not(target_os = "macos"))))]
fn memory(_: &wgpu::Adapter) -> Option<Memory> {
    None
}
