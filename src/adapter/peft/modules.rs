//! The modules that an adapter's own tensors name, for use without its base model.

use std::collections::BTreeSet;

use super::read::{Adapter, Groups, target_of};
use super::stacked::{ALTERNATE, GATE_UP};
use crate::adapter::error::Error;
use crate::adapter::parameter::{Part, key, parse};
use crate::adapter::projection::{Module, Role};
use crate::adapter::saved::{SavedKind, SavedModule};

impl Adapter {
    /// The modules to save, with the sizes that their tensors give them.
    pub fn own_saved_modules(&self) -> Vec<SavedModule> {
        let saved = |kind: SavedKind| {
            let mut paths = self.file.names().filter_map(|name| match parse(name) {
                Ok((module, Part::Saved)) => Some(module),
                _ => None,
            });
            let path = paths.find(|path| path.rsplit('.').next() == Some(kind.hf_name()))?;
            let shape = &self.file.info(&key(path, Part::Saved))?.shape;
            Some(SavedModule {
                kind,
                path: path.to_owned(),
                shape: <[usize; 2]>::try_from(shape.as_slice()).ok()?,
            })
        };
        SavedKind::ALL.into_iter().filter_map(saved).collect()
    }

    /// Every module that has a complete pair of tensors, by layer, role and path, with the
    /// sizes that the tensors give it.
    ///
    /// # Errors
    /// Half a pair, two halves of different rank, a path that is no projection of a decoder layer (all of them
    /// together).
    pub fn modules(&self) -> Result<Vec<Module>, Error> {
        let mut faults = Groups::default();
        let alternates = self.metadata().get(GATE_UP).map(|how| how == ALTERNATE);
        if alternates.is_none() && self.file.stacks_gate_and_up() {
            let problem = "gate and up of all experts are one parameter, and whether their rows take turns depends on the \
                           base model; name it (`--base`)";
            return Err(Error::unusable(&self.folder, vec![problem.to_owned()]));
        }
        let alternates = alternates.unwrap_or(false);
        let paths: BTreeSet<&str> = self.file.names().filter_map(target_of).collect();
        let mut modules = Vec::with_capacity(paths.len());
        for path in paths {
            let shape = |part| {
                let info = self.file.info(&key(path, part))?;
                <[usize; 2]>::try_from(info.shape.as_slice()).ok()
            };
            let (a, b) = match (shape(Part::A), shape(Part::B)) {
                (Some(a), Some(b)) => (a, b),
                (None, _) => {
                    faults.add("lora_A is missing".into(), path);
                    continue;
                }
                (_, None) => {
                    faults.add("lora_B is missing".into(), path);
                    continue;
                }
            };
            if a[0] != b[1] {
                faults.add(format!("lora_A has rank {} and lora_B {}", a[0], b[1]), path);
            }
            match place(path) {
                Some((layer, role)) => modules.push(Module {
                    path: path.to_owned(),
                    layer,
                    role,
                    slot: role as usize,
                    out_features: b[0],
                    in_features: a[1],
                    alternates,
                }),
                None => faults.add("it is not a projection of a decoder layer".into(), path),
            }
        }
        modules.sort_by(|one: &Module, other| {
            (one.layer, one.role, &one.path).cmp(&(other.layer, other.role, &other.path))
        });
        let problems = faults.lines("module");
        match problems.is_empty() {
            true => Ok(modules),
            false => Err(Error::unusable(&self.folder, problems)),
        }
    }
}

/// Layer and role of a path such as `model.layers.3.self_attn.q_proj`.
fn place(path: &str) -> Option<(usize, Role)> {
    let (before, last) = path.rsplit_once('.')?;
    let role = Role::of_name(last)?;
    let is_expert =
        before.rsplit_once(".experts.").is_some_and(|(_, number)| number.parse::<usize>().is_ok());
    let role = if is_expert { role.of_expert()? } else { role };
    let mut parts = before.split('.').skip_while(|part| !["layers", "h"].contains(part)).skip(1);
    Some((parts.next()?.parse().ok()?, role))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_give_layer_and_role() {
        assert_eq!(place("model.layers.12.mlp.down_proj"), Some((12, Role::Down)));
        assert_eq!(place("model.layers.3.mlp.experts.11.up_proj"), Some((3, Role::ExpertUp)));
        assert_eq!(place("model.layers.3.mlp.shared_expert.up_proj"), Some((3, Role::Up)));
        assert_eq!(place("lm_head"), None);
        assert_eq!(place("model.layers.x.mlp.down_proj"), None);
        assert_eq!(place("model.layers.1.mlp.router"), None);
    }
}
