//! What the ranks of a run make sure of before anything is loaded: that they share the lanes, that they run the same
//! recipe on the same inputs and devices, and where the run begins.

use super::Error;
use super::inputs;
use super::open::Opened;
use super::resume::Beginning;
use crate::checkpoint;
use crate::device::{Device, Unavailable};
use crate::recipe::{self, DeviceId, DeviceSpec};
use crate::record::Machine;
use crate::train::lanes::Lanes;
use crate::train::spec::Spec;
use crate::train::state::{Origin, Saved};
use crate::train::team::{Neighbours, Team};

/// The recipe's lanes, dealt out to the team.
///
/// # Errors
/// [`Error::Choice`] with the numbers of ranks that would do.
pub(super) fn lanes(team: &Team, train: &Spec) -> Result<Lanes, Error> {
    let (size, lanes) = (team.size(), train.lanes);
    Lanes::new(lanes, size).ok_or_else(|| {
        let ranks: Vec<String> = Lanes::ranks(lanes).iter().map(ToString::to_string).collect();
        Error::Choice(format!(
            "{size} ranks cannot share `train.lanes = {lanes}`, which would do for {}; set `train.lanes` to {size}, or to \
             {size} times 2, 4, 8 …",
            ranks.join(" or "),
        ))
    })
}

/// The device of this rank: of several GPUs of a machine, `auto` takes the one with the number of the rank there.
///
/// # Errors
/// [`Unavailable`].
pub(super) fn device(team: &Team, spec: DeviceSpec) -> Result<Device, Unavailable> {
    match spec {
        DeviceSpec::Auto if !team.is_alone() => {
            let gpus = Device::cuda_devices();
            // A launcher may show each rank only its own.
            let own = gpus.get(team.local_rank() % gpus.len().max(1)).copied();
            Device::choose(own.map_or(spec, |index| DeviceSpec::Named(DeviceId::Cuda(index))))
        }
        _ => Device::choose(spec),
    }
}

/// With whom this rank shares memory.
///
/// # Errors
/// Another rank fails.
pub(super) fn neighbours(team: &Team, device: &Device) -> Result<Neighbours, Error> {
    // A launcher may show each rank its own GPU alone, under the same number.
    let is_own = device.has_own_memory() && Device::cuda_devices().len() < 2;
    let name =
        if is_own { format!("{} of rank {}", device.id(), team.rank()) } else { device.id().to_string() };
    Ok(team.neighbours(&name)?)
}

/// Compares what all ranks run.
///
/// # Errors
/// [`Error::Choice`], naming the first rank that differs and how.
pub(super) fn require_same(
    team: &Team,
    opened: &Opened,
    origin: &Origin,
    device: &Device,
) -> Result<(), Error> {
    if team.is_alone() {
        return Ok(());
    }
    // Kernels are chosen by the processor.
    let processor = match device.id() {
        DeviceId::Cpu => format!("cpu ({})", Machine::this().processor_features.join(", ")),
        _ => device.kind(),
    };
    let mine = Origin {
        recipe: opened.recipe.to_toml(),
        compute: format!("{} on {processor}", origin.compute.split(" on ").next().unwrap_or_default()),
        ..origin.clone()
    };
    let mine = serde_json::to_vec(&mine).unwrap_or_default();
    let all: Vec<Origin> =
        team.gather(&mine)?.iter().map(|origin| serde_json::from_slice(origin).unwrap_or_default()).collect();
    let datasets: Vec<String> = opened.recipe.datasets.iter().map(|dataset| dataset.path.clone()).collect();
    let Some((rank, other)) = all.iter().enumerate().find(|(_, other)| **other != all[0]) else {
        return Ok(());
    };
    let mut differences: Vec<String> =
        recipe::differences(&all[0].recipe, &other.recipe).iter().map(ToString::to_string).collect();
    differences.extend(inputs::differences(&all[0].inputs, &other.inputs, &datasets));
    if all[0].compute != other.compute {
        differences.push(format!("it computes {}, rank 0 {}", other.compute, all[0].compute));
    }
    let list: String = differences.iter().map(|difference| format!("\n  - {difference}")).collect();
    Err(Error::Choice(format!("rank {rank} does not run what rank 0 runs:{list}")))
}

/// Where the run begins, as the first rank found it in its folder.
///
/// # Errors
/// Another rank fails.
pub(super) fn beginning(team: &Team, found: Option<Beginning>) -> Result<Beginning, Error> {
    if team.is_alone()
        && let Some(found) = found
    {
        return Ok(found);
    }
    // The first rank may have refused its folder.
    team.gather(&[])?;
    let bytes = team.broadcast(found.as_ref().map(to_bytes).transpose()?.unwrap_or_default())?;
    found.map_or_else(|| from_bytes(&bytes), Ok)
}

const FRESH: u8 = 0;
const FINISHED: u8 = 1;
const GOES_ON: u8 = 2;
const GOES_ON_CHANGED: u8 = 3;

fn to_bytes(beginning: &Beginning) -> Result<Vec<u8>, Error> {
    Ok(match beginning {
        Beginning::Finished(state) => {
            [vec![FINISHED], serde_json::to_vec(state).map_err(unreadable)?].concat()
        }
        Beginning::Trains { saved: None, .. } => vec![FRESH],
        Beginning::Trains { saved: Some(saved), is_changed } => {
            let kind = if *is_changed { GOES_ON_CHANGED } else { GOES_ON };
            [vec![kind], saved.to_bytes()?].concat()
        }
    })
}

fn from_bytes(bytes: &[u8]) -> Result<Beginning, Error> {
    Ok(match bytes {
        [FINISHED, state @ ..] => Beginning::Finished(serde_json::from_slice(state).map_err(unreadable)?),
        [kind @ (GOES_ON | GOES_ON_CHANGED), saved @ ..] => {
            Beginning::Trains { saved: Some(Saved::from_bytes(saved)?), is_changed: *kind == GOES_ON_CHANGED }
        }
        _ => Beginning::Trains { saved: None, is_changed: false },
    })
}

fn unreadable(error: serde_json::Error) -> checkpoint::Error {
    checkpoint::Error::Damaged { path: "the checkpoint of rank 0".into(), reason: error.to_string() }
}
