//! `tune doctor`: the devices of this machine, and whether every op is correct on them.
//!
//! Every op runs forward and backward on a few odd shapes in every dtype of a device, and is compared with its slow
//! oracle. No user file is read or written.

use std::panic::{AssertUnwindSafe, catch_unwind};

use serde::Serialize;
use tune_kernels::check::{self, Check, Deviation, On, panic_message};
use tune_kernels::isa::InstructionSet;
use tune_kernels::{KernelBackend, fault};

use super::Error;
use crate::device::{Api, Cpu, Device, Found, Listed, OnBackend, Unavailable, list};
use crate::model::FloatDtype;
use crate::model::dtype::burn_dtype;
use crate::recipe::{DeviceId, DeviceSpec};
use crate::record::Machine;

/// Factor on the tolerance for a GPU: its exponentials, quotients and square roots are not rounded to the last digit,
/// and its sums run in another order.
const GPU_ROOM: f64 = 8.0;

/// The devices found, and their test results.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// The processor and its memory.
    pub machine: Machine,
    /// The instruction set that the ops use.
    pub instruction_set: &'static str,
    /// The GPU interfaces.
    pub apis: Vec<Reached>,
    /// The tested devices.
    pub devices: Vec<Tried>,
}

/// A GPU interface.
#[derive(Clone, Debug, Serialize)]
pub struct Reached {
    /// Its name.
    pub name: &'static str,
    /// Whether this build supports it.
    pub is_built: bool,
    /// The missing driver or library.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub missing: Option<String>,
    /// The package to install.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub help: Option<&'static str>,
    /// The GPUs found.
    pub devices: Vec<Gpu>,
}

/// A GPU.
#[derive(Clone, Debug, Serialize)]
pub struct Gpu {
    /// Name in a recipe.
    pub device: String,
    /// Name from its driver.
    pub name: String,
    /// Name and version of the driver.
    pub driver: String,
    /// The kind of device: discrete, integrated or software.
    pub kind: &'static str,
    /// Total memory in bytes, if the driver reports it.
    pub memory_bytes: Option<u64>,
    /// Free memory in bytes, if the driver reports it.
    pub free_memory_bytes: Option<u64>,
}

/// A tested device.
#[derive(Clone, Debug, Serialize)]
pub struct Tried {
    /// Name in a recipe.
    pub device: String,
    /// The dtypes it supports.
    pub dtypes: Vec<&'static str>,
    /// Why it could not be started.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fault: Option<String>,
    /// The result of each op in each dtype.
    pub ops: Vec<Verdict>,
}

/// The result of one op in one dtype.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Verdict {
    /// The op.
    pub op: &'static str,
    /// The compute dtype.
    pub dtype: &'static str,
    /// Whether every result is within its tolerance.
    pub is_right: bool,
    /// The largest error relative to its tolerance; `None` if the op failed or a result was NaN.
    pub error: Option<f64>,
    /// The tolerance of that result.
    pub tolerance: f64,
    /// The result and the case it belongs to.
    pub of: String,
    /// Why the op failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fault: Option<String>,
}

impl Tried {
    /// Whether it starts and all its ops are correct.
    pub fn is_right(&self) -> bool {
        self.fault.is_none() && self.ops.iter().all(|verdict| verdict.is_right)
    }
}

/// Which checks run; an empty list stands for all.
#[derive(Clone, Copy, Debug, Default)]
pub struct Only<'a> {
    /// Names of ops, as in [`ops`].
    pub ops: &'a [String],
    /// Compute dtypes.
    pub dtypes: &'a [FloatDtype],
}

/// The ops that have a check.
pub fn ops() -> Vec<&'static str> {
    check::all::<Cpu>().iter().map(|check| check.op).collect()
}

impl Report {
    /// Whether every tested device is correct.
    pub fn is_right(&self) -> bool {
        self.devices.iter().all(Tried::is_right)
    }
}

/// Tests the CPU and every GPU that is not emulated by it; with `device`, only that one. Of all checks those in `only`
/// run. `testing` is called with each device before its test.
///
/// # Errors
/// [`Error::Device`] if the named device is unusable, [`Error::Choice`] if `only` leaves nothing to test on a device.
pub fn doctor(
    device: Option<DeviceSpec>,
    only: Only<'_>,
    environment: &super::Environment<'_>,
    testing: &mut dyn FnMut(&str),
) -> Result<Report, Error> {
    let apis = list();
    let specs: Vec<DeviceSpec> = match device {
        Some(spec) => vec![spec],
        None => {
            let gpus = apis.iter().flat_map(Api::devices).filter(|listed| !listed.is_software);
            let gpus = gpus.map(|listed| listed.id);
            std::iter::once(DeviceId::Cpu).chain(gpus).map(DeviceSpec::Named).collect()
        }
    };
    let mut devices = Vec::new();
    for spec in specs {
        testing(&spec.to_string());
        match Device::choose(spec) {
            Ok(device) => devices.push(try_out(&device, only, environment.stop)?),
            // A discovered device that fails is a finding; a requested one is an error.
            Err(Unavailable::Broken { device, why, .. }) => devices.push(Tried {
                device: device.to_string(),
                dtypes: Vec::new(),
                fault: Some(why),
                ops: Vec::new(),
            }),
            Err(error) => return Err(error.into()),
        }
    }
    Ok(Report {
        machine: Machine::this(),
        instruction_set: InstructionSet::best().name(),
        apis: apis.into_iter().map(reached).collect(),
        devices,
    })
}

fn reached(api: Api) -> Reached {
    let devices = api.devices().iter().map(gpu).collect();
    let (is_built, missing, help) = match api.found {
        Found::NotBuilt => (false, None, None),
        Found::Nothing { why, help } => (true, Some(why), Some(help)),
        Found::Devices(_) => (true, None, None),
    };
    Reached { name: api.name, is_built, missing, help, devices }
}

fn gpu(listed: &Listed) -> Gpu {
    Gpu {
        device: listed.id.to_string(),
        name: listed.name.clone(),
        driver: listed.driver.clone(),
        kind: listed.kind,
        memory_bytes: listed.memory.map(|memory| memory.total),
        free_memory_bytes: listed.memory.and_then(|memory| memory.free),
    }
}

fn try_out(device: &Device, only: Only<'_>, stop: &dyn Fn() -> bool) -> Result<Tried, Error> {
    let room = if device.has_own_memory() { GPU_ROOM } else { 1.0 };
    let ops = device.run(Checks { dtypes: device.dtypes(), only, room, stop })??;
    if ops.is_empty() {
        return Err(Error::Choice(format!(
            "{} has nothing to test: none of the ops asked for computes in a dtype asked for",
            device.id()
        )));
    }
    Ok(Tried {
        device: device.id().to_string(),
        dtypes: device.dtypes().iter().map(|dtype| dtype.name()).collect(),
        fault: None,
        ops,
    })
}

/// Runs checks on a backend.
struct Checks<'a> {
    dtypes: &'a [FloatDtype],
    only: Only<'a>,
    room: f64,
    stop: &'a dyn Fn() -> bool,
}

impl OnBackend for Checks<'_> {
    type Output = Result<Vec<Verdict>, Error>;

    fn call<B: KernelBackend>(self, device: &B::Device) -> Self::Output {
        let Only { ops, dtypes } = self.only;
        let mut verdicts = Vec::new();
        let is_wanted = |check: &Check<B>| ops.is_empty() || ops.iter().any(|op| op == check.op);
        for check in check::all::<B>().into_iter().filter(is_wanted) {
            let is_wanted = |dtype: &&FloatDtype| {
                (dtypes.is_empty() || dtypes.contains(dtype))
                    && (!check.f32_only || **dtype == FloatDtype::F32)
            };
            for dtype in self.dtypes.iter().filter(is_wanted) {
                if (self.stop)() {
                    return Err(Error::Stopped);
                }
                let on = On { device, dtype: burn_dtype(*dtype) };
                // The runtime of a broken device panics, on this thread or on its own. The op then counts as failed and
                // the next one runs; the panic affects only this op's own tensors.
                let found = fault::silently(|| catch_unwind(AssertUnwindSafe(|| check.run(on))));
                let found = match fault::take() {
                    Some(fault) => Err(fault),
                    None => found.map_err(|panic| panic_message(panic.as_ref())),
                };
                verdicts.push(verdict(check.op, dtype.name(), found, self.room));
            }
        }
        Ok(verdicts)
    }
}

/// The result with the largest error relative to its tolerance.
fn verdict(
    op: &'static str,
    dtype: &'static str,
    found: Result<Vec<Deviation>, String>,
    room: f64,
) -> Verdict {
    let nothing =
        Verdict { op, dtype, is_right: false, error: None, tolerance: 0.0, of: String::new(), fault: None };
    let found = match found {
        Ok(found) => found,
        Err(fault) => return Verdict { fault: Some(fault), ..nothing },
    };
    let share = |deviation: &Deviation| deviation.error / deviation.tolerance.max(f64::MIN_POSITIVE);
    let worst = found.iter().max_by(|a, b| share(a).total_cmp(&share(b)));
    match worst {
        None => Verdict { fault: Some("the op has no test cases".into()), ..nothing },
        Some(worst) => Verdict {
            is_right: worst.error <= worst.tolerance * room,
            error: worst.error.is_finite().then_some(worst.error),
            tolerance: worst.tolerance * room,
            of: format!("{} of {}", worst.part, worst.case),
            ..nothing
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn deviation(error: f64, tolerance: f64) -> Deviation {
        Deviation { part: "y", case: "[1, 2]".into(), error, tolerance }
    }

    #[test]
    fn the_worst_result_decides() {
        let found = vec![deviation(1e-7, 1e-6), deviation(5e-7, 1e-6), deviation(2e-6, 1e-5)];
        let right = verdict("rope", "f32", Ok(found), 1.0);
        assert_eq!((right.is_right, right.error), (true, Some(5e-7)));
        let wrong = verdict("rope", "f32", Ok(vec![deviation(0.0, 1.0), deviation(1e-3, 1e-6)]), 8.0);
        assert!(!wrong.is_right && wrong.of == "y of [1, 2]");
        assert!(!verdict("rope", "f32", Ok(vec![deviation(f64::INFINITY, 1.0)]), 8.0).is_right);
        // A zero tolerance stays zero.
        assert!(!verdict("rope", "f32", Ok(vec![deviation(1e-9, 0.0)]), 8.0).is_right);
        let broken = verdict("rope", "f32", Err("lost".into()), 8.0);
        assert!(!broken.is_right && broken.fault.as_deref() == Some("lost"));
        assert!(!verdict("rope", "f32", Ok(Vec::new()), 8.0).is_right);
    }
}
