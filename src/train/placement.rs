//! Where the frozen weights of a run lie: layers on the device, or in host memory or on disk, from where each is fetched
//! for each use; the token embeddings on the device, or off it.

use std::path::Path;
use std::sync::Arc;

use serde::Serialize;

use super::memory::{DoesNotFit, Plan, Term, Workload};
use super::saved_inputs::SavedInputs;
use crate::model::fetch::Home;
use crate::model::load;
use crate::model::parts::LayerSpec;
use crate::model::spec::Embeddings;

/// Which layers are held, and how many of the others the device has room for at one time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Placement {
    /// Where the other layers wait.
    pub home: Home,
    /// Layers that are held on the device: those next to the output head.
    pub resident_layers: usize,
}

/// The layers of a plan that are fetched for each use.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Streaming {
    /// Where they wait.
    pub home: Home,
    /// Layers that are held on the device.
    pub resident_layers: usize,
    /// Layers that the device has room for beside those.
    pub slots: usize,
    /// Bytes of all layers that are fetched.
    pub streamed_bytes: u64,
    /// Bytes of the largest of them.
    pub largest_layer_bytes: u64,
    /// Of host memory, where that is not the device's.
    pub host: Vec<Term>,
}

/// Room for fetched layers on a GPU: the layer in use, and two that are copied ahead.
pub const SLOTS_OF_GPU: usize = 3;
/// Room for fetched layers on the processor: the layer in use, and one that is read ahead.
pub const SLOTS_OF_CPU: usize = 2;

impl Streaming {
    /// What `placement` means for a workload.
    pub fn of(workload: &Workload<'_>, placement: Placement) -> Self {
        let Placement { home, resident_layers } = placement;
        let layers = &workload.spec.layers;
        let resident_layers = resident_layers.min(layers.len());
        let streamed = &layers[..layers.len() - resident_layers];
        let bytes = |layer: &Arc<LayerSpec>| layer.weights(workload.quantization, workload.dtype).total();
        let (streamed_bytes, largest) = (streamed.iter().map(bytes).sum(), streamed.iter().map(bytes).max());
        let largest_layer_bytes = largest.unwrap_or(0);
        let slots = if workload.on_device { SLOTS_OF_GPU } else { SLOTS_OF_CPU }.min(streamed.len());
        let host = match (workload.on_device, home) {
            (false, _) => Vec::new(),
            (true, Home::Host) => vec![Term { name: "waiting layers", bytes: streamed_bytes }],
            (true, Home::Disk) => {
                vec![Term { name: "layers read ahead", bytes: SLOTS_OF_CPU as u64 * largest_layer_bytes }]
            }
        };
        Self { home, resident_layers, slots, streamed_bytes, largest_layer_bytes, host }
    }

    /// What loading needs to know, with the folder of packed weights where there is one.
    pub fn load<'a>(&self, packed: Option<&'a Path>) -> load::Streaming<'a> {
        let Self { home, resident_layers, slots, .. } = *self;
        load::Streaming { home, resident_layers, slots, packed }
    }

    /// Bytes of the slots.
    pub fn transit_bytes(&self) -> u64 {
        self.slots as u64 * self.largest_layer_bytes
    }

    /// Bytes that a forward and a backward pass fetch. Layers that are still in a slot where a pass turns are used again.
    pub fn fetched_bytes(&self, layers: usize) -> u64 {
        let streamed = (layers - self.resident_layers) as u64;
        2 * streamed.saturating_sub(self.slots as u64) * (self.streamed_bytes / streamed.max(1))
    }
}

/// How many layers `budget` bytes allow to hold while the others wait at `home`, every forward pass being run twice.
pub fn most_resident(workload: &Workload<'_>, home: Home, budget: u64) -> usize {
    let placement = |resident_layers| Some(Placement { home, resident_layers });
    let fits = |resident: &usize| Plan::placed(workload, 0, placement(*resident)).total() <= budget;
    (0..=workload.spec.layers.len()).rev().find(fits).unwrap_or(0)
}

/// The plan with token embeddings and the inputs of recomputed layers where the choices have them. What they leave open is
/// on the device if it fits so; the inputs are the last to leave it.
///
/// # Errors
/// The plan that needs the least memory does not fit.
pub fn chosen(
    workload: &Workload<'_>,
    embeddings: Embeddings,
    inputs: SavedInputs,
    plan: impl Fn(&Workload<'_>) -> Result<Plan, DoesNotFit>,
) -> Result<Plan, DoesNotFit> {
    let with = |host_inputs| with_embeddings(&Workload { host_inputs, ..*workload }, embeddings, &plan);
    match inputs {
        _ if !workload.on_device => with(false),
        SavedInputs::Device => with(false),
        SavedInputs::Host => with(true),
        SavedInputs::Auto => with(false).or_else(|_| with(true)),
    }
}

/// The workload in as little memory as the choices allow.
pub fn smallest<'a>(workload: &Workload<'a>, embeddings: Embeddings, inputs: SavedInputs) -> Workload<'a> {
    Workload {
        host_embeddings: embeddings != Embeddings::Device,
        host_inputs: inputs != SavedInputs::Device,
        ..*workload
    }
}

/// The plan with the token embeddings where `choice` has them. Where it leaves that open, they are on the device unless
/// more layers can be held, or fewer are recomputed, without them.
///
/// # Errors
/// The plan that needs less memory does not fit.
fn with_embeddings(
    workload: &Workload<'_>,
    choice: Embeddings,
    plan: impl Fn(&Workload<'_>) -> Result<Plan, DoesNotFit>,
) -> Result<Plan, DoesNotFit> {
    let on_host = |host_embeddings| plan(&Workload { host_embeddings, ..*workload });
    match choice {
        _ if workload.spec.tied => on_host(false),
        Embeddings::Device => on_host(false),
        Embeddings::Host => on_host(true),
        Embeddings::Auto => {
            let rank = |plan: &Plan| (plan.resident_layers(), plan.kept_layers);
            match (on_host(false), on_host(true)) {
                (Ok(device), Ok(host)) if rank(&device) >= rank(&host) => Ok(device),
                (Ok(device), Err(_)) => Ok(device),
                (_, host) => host,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{FloatDtype, shapes};
    use crate::quant::spec::Spec;

    #[test]
    fn fetched_layers_take_their_slots_and_held_ones_their_own_size() {
        let spec = shapes::spec("llama-3.1-8b").unwrap().unwrap();
        let workload = Workload {
            spec: &spec,
            quantization: Some(Spec::USUAL),
            dtype: FloatDtype::Bf16,
            targets: &[],
            saved_modules: &[],
            tokens: 512,
            shares_prompts: false,
            program: 0,
            on_device: true,
            host_embeddings: false,
            host_inputs: false,
        };
        let total = |resident_layers| {
            Plan::placed(&workload, 0, Some(Placement { home: Home::Host, resident_layers })).total()
        };
        let held = Plan::keeping(&workload, 0).total();
        let layer = spec.layers[0].weights(workload.quantization, workload.dtype).total();
        assert_eq!(total(32), held);
        assert_eq!(total(0), held - 32 * layer + 3 * layer);
        assert_eq!(total(31), held, "a single fetched layer has one slot");
        for resident in [0, 7, 20] {
            assert_eq!(most_resident(&workload, Home::Host, total(resident)), resident);
        }
        assert_eq!(most_resident(&workload, Home::Host, held), 32);
        let streaming = Streaming::of(&workload, Placement { home: Home::Host, resident_layers: 12 });
        assert_eq!((streaming.streamed_bytes, streaming.host[0].bytes), (20 * layer, 20 * layer));
        // Three layers are still there at each turn.
        assert_eq!(streaming.fetched_bytes(32), 2 * 17 * layer);
    }
}
