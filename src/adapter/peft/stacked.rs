//! The tensors of an adapter's file, those of each expert by itself: also where the file has all experts stacked, as PEFT
//! writes them for a parameter that holds all experts, or under Mixtral's old names.
//!
//! ```text
//! experts.base_layer.lora_A [experts · rank, hidden]   ─▶  experts.E.gate_proj.lora_A, experts.E.up_proj.lora_A
//! experts.base_layer.lora_B [2 · width, rank · experts] ─▶  experts.E.gate_proj.lora_B, experts.E.up_proj.lora_B
//! experts.lora_A, experts.lora_B                        ─▶  experts.E.down_proj.lora_A, experts.E.down_proj.lora_B
//! ```
//!
//! A has the rows of one expert together, B the columns of one rank. Where gate and up alone are adapted, `base_layer` is
//! left out.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};

use super::config::Config;
use crate::adapter::parameter::{Part, key, parse};
use crate::assets::{Error, SafetensorsFile, TensorInfo, experts_renamed};

/// The parameters that hold all experts of a layer, in the order that PEFT wraps them, and what they hold.
pub const PARAMETERS: [(&str, &[&str]); 2] =
    [("gate_up_proj", &["gate_proj", "up_proj"]), ("down_proj", &["down_proj"])];

/// The key in the metadata that says how rows of gate and up lie in their parameter: [`ALTERNATE`] or `halves`.
pub const GATE_UP: &str = "tune.gate_up";
/// Gate and up take turns.
pub const ALTERNATE: &str = "alternate";

/// The tensors of an adapter's file.
#[derive(Debug)]
pub(super) struct Tensors {
    file: SafetensorsFile,
    /// What another name, or part of another tensor, stands for.
    pieces: BTreeMap<String, Piece>,
    /// The names that those replace.
    replaced: BTreeSet<String>,
    /// Stacks that were read last: those of a layer are read expert by expert.
    recent: Mutex<Vec<(String, Arc<Vec<f32>>)>>,
}

#[derive(Debug)]
struct Piece {
    /// The tensor in the file.
    tensor: String,
    info: TensorInfo,
    stack: Option<Slice>,
}

/// One expert's part of a stack.
#[derive(Debug)]
struct Slice {
    /// The path of the parameter, which ranks and alphas are given for.
    parameter: String,
    part: Part,
    expert: usize,
    experts: usize,
    rank: usize,
    /// Of B: which of the projections in the parameter, and how many there are.
    projection: [usize; 2],
}

/// A pair of stacks.
struct Stack<'a> {
    /// Path of the module that holds the parameter.
    holder: &'a str,
    name: &'static str,
    projections: &'static [&'static str],
    /// Path of the module that holds A and B.
    path: String,
}

/// Stacks that are kept: A and B of both parameters of a layer.
const RECENT: usize = 4;

impl Tensors {
    /// Looks through a file; what is wrong with its stacks joins `problems`.
    pub(super) fn new(file: SafetensorsFile, config: Option<&Config>, problems: &mut Vec<String>) -> Self {
        let mut found =
            Self { file, pieces: BTreeMap::new(), replaced: BTreeSet::new(), recent: Mutex::default() };
        let renamed = |name: &str| Some((experts_renamed(name)?, name.to_owned()));
        for (name, tensor) in found.file.names().filter_map(renamed).collect::<Vec<_>>() {
            if let Some(info) = found.file.info(&tensor).cloned() {
                found.replaced.insert(tensor.clone());
                found.pieces.insert(name, Piece { tensor, info, stack: None });
            }
        }
        let Some(config) = config.filter(|config| !config.target_parameters.is_empty()) else { return found };
        let paths: BTreeSet<String> = found.file.names().filter_map(holder_of).map(str::to_owned).collect();
        for holder in &paths {
            let named = |(name, _): &&(&str, _)| config.names_parameter(&format!("{holder}.{name}"));
            let stacks: Vec<_> = PARAMETERS.iter().filter(named).collect();
            for (index, (name, projections)) in stacks.iter().enumerate() {
                // The first parameter is wrapped first.
                let path = format!("{holder}{}", ".base_layer".repeat(stacks.len() - 1 - index));
                let stack = Stack { holder, name, projections, path };
                if let Err(reason) = found.take_apart(&stack, config) {
                    problems.push(format!("adapter of `{holder}.{name}`: {reason}"));
                }
            }
        }
        found
    }

    fn take_apart(&mut self, stack: &Stack<'_>, config: &Config) -> Result<(), String> {
        let parameter = format!("{}.{}", stack.holder, stack.name);
        let (rank, ..) = config.strength(&parameter);
        let tensor = |part| key(&stack.path, part);
        let shape = |part: Part| match self.file.info(&tensor(part)).map(|info| &info.shape[..]) {
            None => Err(format!("{} is missing", part.name())),
            Some(&[rows, columns]) => Ok([rows, columns]),
            Some(shape) => Err(format!("{} has shape {shape:?}, which is no matrix", part.name())),
        };
        let ([rows, inputs], [outputs, columns]) = (shape(Part::A)?, shape(Part::B)?);
        let count = stack.projections.len();
        let experts = rows / rank;
        if rows != columns || experts * rank != rows || outputs % count != 0 {
            return Err(format!(
                "lora_A {:?} and lora_B {:?} are not those of experts with rank {rank}",
                [rows, inputs],
                [outputs, columns]
            ));
        }
        for part in [Part::A, Part::B] {
            self.replaced.insert(tensor(part));
            for (expert, index) in
                (0..experts).flat_map(|expert| (0..count).map(move |index| (expert, index)))
            {
                let info = match part {
                    Part::A => TensorInfo::of_f32(vec![rank, inputs]),
                    _ => TensorInfo::of_f32(vec![outputs / count, rank]),
                };
                let module = format!("{}.{expert}.{}", stack.holder, stack.projections[index]);
                let (parameter, projection) = (parameter.clone(), [index, count]);
                let stack = Some(Slice { parameter, part, expert, experts, rank, projection });
                self.pieces.insert(key(&module, part), Piece { tensor: tensor(part), info, stack });
            }
        }
        Ok(())
    }

    /// The names of all tensors.
    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        let own = self.file.names().filter(|name| !self.replaced.contains(*name));
        own.chain(self.pieces.keys().map(String::as_str))
    }

    /// Dtype and shape of a tensor.
    pub(super) fn info(&self, name: &str) -> Option<&TensorInfo> {
        match self.pieces.get(name) {
            Some(piece) => Some(&piece.info),
            None => self.file.info(name).filter(|_| !self.replaced.contains(name)),
        }
    }

    /// The metadata of the file.
    pub(super) fn metadata(&self) -> &BTreeMap<String, String> {
        self.file.metadata()
    }

    /// The parameter that holds the module at `path`, if the file has it stacked.
    pub(super) fn parameter_of(&self, path: &str) -> Option<&str> {
        Some(&self.pieces.get(&key(path, Part::A))?.stack.as_ref()?.parameter)
    }

    /// Whether gate and up are stacked in one parameter.
    pub(super) fn stacks_gate_and_up(&self) -> bool {
        self.pieces.values().filter_map(|piece| piece.stack.as_ref()).any(|slice| slice.projection[1] == 2)
    }

    /// The values of a tensor; `alternates` where gate and up take turns in their parameter.
    ///
    /// # Errors
    /// The file can no longer be read, or has a number that is not finite.
    pub(super) fn read(&self, name: &str, alternates: bool) -> Result<Vec<f32>, Error> {
        let Some(Piece { tensor, info, stack }) = self.pieces.get(name) else {
            return self.file.read_floats(name);
        };
        let Some(slice) = stack else { return self.file.read_floats(tensor) };
        let (values, numbers) = (self.stack(tensor)?, info.shape.iter().product::<usize>());
        if slice.part == Part::A {
            return Ok(values[slice.expert * numbers..][..numbers].to_vec());
        }
        let Slice { expert, experts, rank, projection: [index, count], .. } = *slice;
        let height = info.shape[0];
        let row = |output: usize| if alternates { output * count + index } else { index * height + output };
        let numbers = |output| {
            let row = &values[row(output) * rank * experts..][..rank * experts];
            row.iter().skip(expert).step_by(experts).copied()
        };
        Ok((0..height).flat_map(numbers).collect())
    }

    /// The values of a whole stack.
    fn stack(&self, tensor: &str) -> Result<Arc<Vec<f32>>, Error> {
        // A panic elsewhere leaves the list as it was.
        let mut recent = self.recent.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Some((_, values)) = recent.iter().find(|(name, _)| name == tensor) {
            return Ok(Arc::clone(values));
        }
        let values = Arc::new(self.file.read_floats(tensor)?);
        if recent.len() == RECENT {
            recent.remove(0);
        }
        recent.push((tensor.to_owned(), Arc::clone(&values)));
        Ok(values)
    }
}

/// The module of stacked experts that a key belongs to.
fn holder_of(name: &str) -> Option<&str> {
    let (module, _) = parse(name).ok().filter(|(_, part)| matches!(part, Part::A | Part::B))?;
    let module = module.strip_suffix(".base_layer").unwrap_or(module);
    module.ends_with(".experts").then_some(module)
}
