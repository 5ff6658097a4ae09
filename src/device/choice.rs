//! Chooses a device from the requested and the available ones, or returns an error with a remedy.

use super::discovery::{Api, Found, Listed};
use super::{Device, Started};
use crate::recipe::{DeviceId, DeviceSpec};

/// Why the requested device is unusable.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unavailable {
    /// This build does not support its interface.
    #[error("`{device}` is not available: this build has no {feature} support (available: {there})")]
    NotBuilt {
        /// The device.
        device: DeviceId,
        /// The missing build feature.
        feature: &'static str,
        /// The available devices.
        there: String,
    },
    /// It was not found.
    #[error("`{device}` is not available: {why} (available: {there})")]
    Missing {
        /// The device.
        device: DeviceId,
        /// What is missing.
        why: String,
        /// What to install.
        help: Option<&'static str>,
        /// The available devices.
        there: String,
    },
    /// It was found but does not work.
    #[error("`{device}` ({model}) does not work: {why} (available: {there})")]
    Broken {
        /// The device.
        device: DeviceId,
        /// What its driver calls it.
        model: String,
        /// The error.
        why: String,
        /// The available devices.
        there: String,
    },
}

impl Unavailable {
    /// The remedy.
    pub fn help(&self) -> String {
        match self {
            Self::NotBuilt { feature, .. } => {
                let way_out = format!("build it with `cargo build --release --features {feature}`");
                match *feature {
                    "metal" if !cfg!(target_os = "macos") => {
                        "Metal exists only on a Mac; use `vulkan`".to_owned()
                    }
                    "vulkan" if cfg!(target_os = "macos") => "use `metal` on a Mac".to_owned(),
                    _ => way_out,
                }
            }
            Self::Missing { help: Some(help), .. } => (*help).to_owned(),
            Self::Missing { help: None, .. } => "`tune doctor` lists the devices of this machine".to_owned(),
            Self::Broken { .. } => "test it with `tune doctor`; a newer driver often helps".to_owned(),
        }
    }
}

/// The first device that `spec` allows and `start` can start.
pub(super) fn choose(
    spec: DeviceSpec,
    apis: Vec<Api>,
    mut start: impl FnMut(&Listed) -> Result<Started, String>,
) -> Result<Device, Unavailable> {
    let id = match spec {
        DeviceSpec::Auto => return Ok(best(&apis, start)),
        DeviceSpec::Named(DeviceId::Cpu) => return Ok(Device::cpu()),
        DeviceSpec::Named(id) => id,
    };
    let there = there(&apis);
    let name = match id {
        DeviceId::Cuda(_) => "cuda",
        DeviceId::Vulkan(_) => "vulkan",
        DeviceId::Metal | DeviceId::Cpu => "metal",
    };
    let missing = |why: String, help| Unavailable::Missing { device: id, why, help, there: there.clone() };
    let devices = match apis.iter().find(|api| api.name == name).map(|api| &api.found) {
        None | Some(Found::NotBuilt) => {
            return Err(Unavailable::NotBuilt { device: id, feature: name, there });
        }
        Some(Found::Nothing { why, help }) => return Err(missing(why.clone(), Some(*help))),
        Some(Found::Devices(devices)) => devices,
    };
    match devices.iter().find(|listed| listed.id == id) {
        None => Err(missing("no such device was found".to_owned(), None)),
        Some(listed) => match start(listed) {
            Ok(started) => Ok(device(listed, started)),
            Err(why) => Err(Unavailable::Broken { device: id, model: listed.name.clone(), why, there }),
        },
    }
}

/// The best device that works, the CPU as a last resort, and notes about skipped ones.
fn best(apis: &[Api], mut start: impl FnMut(&Listed) -> Result<Started, String>) -> Device {
    let mut notes = Vec::new();
    for api in apis {
        if let Found::Nothing { why, .. } = &api.found {
            notes.push(format!("training without a GPU: {why}; `tune doctor` shows what to install"));
        }
        for listed in api.devices().iter().filter(|listed| !listed.is_software) {
            match start(listed) {
                Ok(started) => return device(listed, started),
                Err(why) => notes.push(format!("`{}` ({}) does not work: {why}", listed.id, listed.name)),
            }
        }
    }
    Device { notes, ..Device::cpu() }
}

fn device(listed: &Listed, started: Started) -> Device {
    let Started { dtypes, largest_buffer, lacks: notes } = started;
    let (handle, model) = (listed.handle.clone(), listed.name.clone());
    Device { id: listed.id, handle, model, dtypes, largest_buffer, notes }
}

/// The available devices, in words.
fn there(apis: &[Api]) -> String {
    let listed = apis.iter().flat_map(Api::devices);
    let named = listed.map(|listed| format!(", `{}` ({})", listed.id, listed.name));
    std::iter::once("`cpu`".to_owned()).chain(named).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::discovery::Handle;
    use crate::model::FloatDtype;

    fn listed(id: DeviceId, is_software: bool) -> Listed {
        Listed {
            id,
            name: format!("model of {id}"),
            driver: String::new(),
            kind: if is_software { "software" } else { "discrete" },
            is_software,
            memory: None,
            handle: Handle::Cpu,
        }
    }

    fn api(name: &'static str, found: Found) -> Api {
        Api { name, found }
    }

    fn nothing() -> Found {
        Found::Nothing { why: "no driver".into(), help: "install it" }
    }

    fn choose_from(
        spec: &str,
        apis: Vec<Api>,
        works: fn(DeviceId) -> bool,
    ) -> Result<(DeviceId, Vec<String>), Unavailable> {
        let start = |listed: &Listed| match works(listed.id) {
            true => {
                let lacks = Vec::new();
                Ok(Started { dtypes: vec![FloatDtype::F32], largest_buffer: Some(1 << 27), lacks })
            }
            false => Err("the kernel did not compile".to_owned()),
        };
        choose(spec.parse().unwrap(), apis, start).map(|device| (device.id, device.notes))
    }

    fn full() -> Vec<Api> {
        let cuda = vec![listed(DeviceId::Cuda(0), false), listed(DeviceId::Cuda(1), false)];
        let vulkan = vec![listed(DeviceId::Vulkan(0), false), listed(DeviceId::Vulkan(1), true)];
        vec![api("cuda", Found::Devices(cuda)), api("vulkan", Found::Devices(vulkan))]
    }

    #[test]
    fn auto_takes_the_best_that_works_and_tells_what_it_passed_over() {
        let auto = |works| choose_from("auto", full(), works).unwrap();
        assert_eq!(auto(|_| true), (DeviceId::Cuda(0), vec![]));
        let (id, _) = auto(|id| id != DeviceId::Cuda(0));
        assert_eq!(id, DeviceId::Cuda(1));
        let (id, _) = auto(|id| matches!(id, DeviceId::Vulkan(_)));
        assert_eq!(id, DeviceId::Vulkan(0));
        let (id, notes) = auto(|_| false);
        assert_eq!((id, notes.len()), (DeviceId::Cpu, 3));
        assert!(notes[0].contains("cuda:0") && notes[0].contains("did not compile"), "{notes:?}");
    }

    #[test]
    fn auto_never_takes_a_gpu_that_the_processor_imitates() {
        let software = || Found::Devices(vec![listed(DeviceId::Vulkan(0), true)]);
        let apis = || vec![api("cuda", Found::NotBuilt), api("vulkan", software())];
        assert_eq!(choose_from("auto", apis(), |_| true), Ok((DeviceId::Cpu, vec![])));
        assert_eq!(choose_from("vulkan", apis(), |_| true), Ok((DeviceId::Vulkan(0), vec![])));
        // A build without GPU support gives no notes.
        let none = vec![api("cuda", Found::NotBuilt), api("vulkan", Found::NotBuilt)];
        assert_eq!(choose_from("auto", none, |_| true), Ok((DeviceId::Cpu, vec![])));
        let (id, notes) = choose_from("auto", vec![api("cuda", nothing())], |_| true).unwrap();
        assert_eq!(id, DeviceId::Cpu);
        assert!(notes[0].contains("no driver"), "{notes:?}");
    }

    #[test]
    fn a_device_that_is_named_is_taken_or_told_why_not() {
        assert_eq!(choose_from("cuda:1", full(), |_| true), Ok((DeviceId::Cuda(1), vec![])));
        let broken = choose_from("cuda:1", full(), |_| false).unwrap_err().to_string();
        assert!(broken.contains("does not work") && broken.contains("model of vulkan:0"), "{broken}");
        let missing = choose_from("cuda:7", full(), |_| true).unwrap_err();
        assert!(matches!(&missing, Unavailable::Missing { help: None, .. }), "{missing}");
        let apis = vec![api("cuda", nothing()), api("vulkan", Found::NotBuilt)];
        let missing = choose_from("cuda", apis.clone(), |_| true).unwrap_err();
        assert_eq!(missing.help(), "install it");
        let not_built = choose_from("vulkan", apis.clone(), |_| true).unwrap_err();
        assert!(not_built.help().contains("--features vulkan") || cfg!(target_os = "macos"));
        assert!(not_built.to_string().contains("(available: `cpu`"), "{not_built}");
        assert_eq!(choose_from("cpu", apis, |_| false), Ok((DeviceId::Cpu, vec![])));
    }
}
