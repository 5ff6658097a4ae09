//! A template compiled so that it asks [`budget`] before it builds anything, and
//! [`effort`](super::effort) before it goes through anything. Knows the engine's instructions; the
//! environment they run in is the caller's.
//!
//! The engine's compiler makes the instructions. Of these, the ones that make a value larger than its parts, or read
//! all of one, are then replaced by calls of [`operators`], and raw text is written as any other value is, past the caller's formatter.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use minijinja::machinery::{
    CodeGenerator, Instruction, Instructions, Vm, WhitespaceConfig, make_string_output, parse,
};
use minijinja::syntax::SyntaxConfig;
use minijinja::value::Value;
use minijinja::{AutoEscape, Environment, Error, ErrorKind};
use self_cell::self_cell;

use super::{budget, constants, effort, namespace, operators};

/// The name of the template in the engine's errors.
const NAME: &str = "chat_template";

struct Compiled<'source> {
    instructions: Instructions<'source>,
    blocks: BTreeMap<&'source str, Instructions<'source>>,
}

impl Compiled<'_> {
    /// How many instructions there are.
    fn length(&self) -> u64 {
        let blocks: usize = self.blocks.values().map(Instructions::len).sum();
        (self.instructions.len() + blocks) as u64
    }
}

self_cell!(
    /// The instructions, beside the source that they point into.
    struct Owned {
        owner: String,
        #[covariant]
        dependent: Compiled,
    }
);

/// What is wrong with a source.
pub(super) struct Fault {
    /// The line, from 1; 0 where it is not known.
    pub(super) line: usize,
    /// What the engine says.
    pub(super) error: Error,
}

impl From<Error> for Fault {
    fn from(error: Error) -> Fault {
        Fault { line: error.line().unwrap_or(0), error }
    }
}

impl From<constants::TooLarge> for Fault {
    fn from(constants::TooLarge { line, error }: constants::TooLarge) -> Fault {
        Fault { line, error }
    }
}

/// A compiled template.
pub(super) struct Program(Owned);

impl fmt::Debug for Program {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_tuple("Program").field(&self.0.borrow_owner()).finish()
    }
}

impl Program {
    /// Compiles a source with transformers' treatment of white space.
    ///
    /// # Errors
    /// Invalid Jinja, or constants too large.
    pub(super) fn compile(source: String) -> Result<Program, Fault> {
        Owned::try_new(source, |source| {
            let whitespace =
                WhitespaceConfig { keep_trailing_newline: false, lstrip_blocks: true, trim_blocks: true };
            let parsed = parse(source, NAME, SyntaxConfig, whitespace)?;
            budget::begin();
            constants::charge(&parsed)?;
            let mut generator = CodeGenerator::new(NAME, source);
            generator.compile_stmt(&parsed);
            let (instructions, blocks) = generator.finish();
            let blocks = blocks.iter().map(|(name, block)| Ok((*name, guarded(block)?)));
            let blocks = blocks.collect::<Result<_, Error>>()?;
            Ok(Compiled { instructions: guarded(&instructions)?, blocks })
        })
        .map(Program)
    }

    /// Runs the template on its variables.
    ///
    /// # Errors
    /// What the template does wrong, and whatever would build more than a render may.
    pub(super) fn render(&self, environment: &Environment<'_>, variables: Value) -> Result<String, Error> {
        budget::begin();
        // Those of a render that the engine broke down on.
        namespace::empty_all();
        let mut text = String::new();
        let mut output = make_string_output(&mut text);
        let rendered = self.0.with_dependent(|_, compiled| {
            let (instructions, blocks) = (&compiled.instructions, &compiled.blocks);
            let evaluated =
                Vm::new(environment).eval(instructions, variables, blocks, &mut output, AutoEscape::None);
            match &evaluated {
                Ok((_, state)) => operators::count(state),
                // The engine keeps its count to itself then. Since it was last seen there was no turn of a loop and no
                // call, so no more instructions than the template has.
                Err(_) => effort::further_instructions(compiled.length()),
            }
            evaluated.map(drop)
        });
        drop(output);
        budget::end();
        namespace::empty_all();
        rendered.map(|()| text)
    }
}

/// What stands for one instruction of the engine behind another: itself, or what asks the budget and then does the same.
fn replacement<'source>(
    before: Option<&Instruction<'source>>,
    instruction: &Instruction<'source>,
) -> Result<Vec<Instruction<'source>>, Error> {
    let call = |name, operands| Instruction::CallFunction(name, Some(operands));
    Ok(match instruction {
        // Written by the formatter, which counts; the engine's own way into a captured text does not.
        Instruction::EmitRaw(text) => vec![Instruction::LoadConst(Value::from(*text)), Instruction::Emit],
        Instruction::StringConcat => vec![call(operators::CONCAT, 2)],
        Instruction::Add => vec![call(operators::ADD, 2)],
        Instruction::Mul => vec![call(operators::MULTIPLY, 2)],
        Instruction::Slice => vec![call(operators::SLICE, 4)],
        Instruction::In => vec![call(operators::IN, 2)],
        Instruction::UnpackLists(lists) => vec![
            Instruction::BuildList(Some(*lists)),
            call(operators::JOIN_LISTS, 1),
            Instruction::UnpackLists(1),
        ],
        Instruction::UnpackList(wanted) => vec![
            Instruction::LoadConst(Value::from(*wanted)),
            call(operators::OF_LENGTH, 2),
            Instruction::UnpackList(*wanted),
        ],
        Instruction::Eq => vec![call(operators::EQUAL, 2)],
        Instruction::Ne => vec![call(operators::UNEQUAL, 2)],
        Instruction::Lt => vec![call(operators::LESS, 2)],
        Instruction::Lte => vec![call(operators::AT_MOST, 2)],
        Instruction::Gt => vec![call(operators::GREATER, 2)],
        Instruction::Gte => vec![call(operators::AT_LEAST, 2)],
        Instruction::GetItem => vec![call(operators::ITEM, 2)],
        Instruction::BuildMap(entries) => {
            vec![Instruction::BuildList(Some(entries * 2)), call(operators::DICTIONARY, 1)]
        }
        Instruction::PushLoop(_) | Instruction::FastRecurse => {
            vec![call(operators::LOOP_OVER, 1), instruction.clone()]
        }
        // A variable may hold its own last value. An item of a list that is gone through does not.
        Instruction::StoreLocal(_) if !matches!(before, Some(Instruction::Iterate(_))) => {
            vec![call(operators::STORE, 1), instruction.clone()]
        }
        Instruction::SetAttr(name) => vec![
            Instruction::LoadConst(Value::from(*name)),
            call(operators::SET_ATTRIBUTE, 3),
            Instruction::DiscardTop,
        ],
        Instruction::CallMethod("changed", operands) => {
            vec![Instruction::CallFunction(operators::CHANGED, *operands)]
        }
        Instruction::Include(_) | Instruction::LoadBlocks => {
            vec![call(operators::OTHER_TEMPLATE, 1), instruction.clone()]
        }
        // A middle operand stays on the stack here, so no call can stand for it. `a in b in c` has yet to be seen.
        Instruction::CompareAndPreserve(operator) if format!("{operator:?}").ends_with("In") => {
            return Err(Error::new(ErrorKind::SyntaxError, "`in` cannot be chained with another comparison"));
        }
        Instruction::CompareAndPreserve(_) => vec![
            Instruction::BuildList(Some(2)),
            call(operators::COMPARED, 1),
            Instruction::UnpackList(2),
            Instruction::Swap,
            instruction.clone(),
        ],
        other => vec![other.clone()],
    })
}

/// Replaces each instruction by its [`replacement`], and lets jumps lead where they led.
///
/// Where instructions can come again (the head of a loop, the beginning of a macro or a block), they are counted first.
fn guarded<'source>(instructions: &Instructions<'source>) -> Result<Instructions<'source>, Error> {
    let all = (0..instructions.len() as u32).filter_map(|index| instructions.get(index));
    let macros: BTreeSet<u32> = all
        .filter_map(|instruction| match instruction {
            Instruction::BuildMacro(_, begin, _) => Some(*begin),
            _ => None,
        })
        .collect();
    let mut replaced = Vec::with_capacity(instructions.len());
    // Where each instruction comes to lie, and where the end does.
    let mut places = Vec::with_capacity(instructions.len() + 1);
    let mut place = 0;
    for index in 0..instructions.len() as u32 {
        let Some(instruction) = instructions.get(index) else { break };
        let before = index.checked_sub(1).and_then(|before| instructions.get(before));
        let mut replacement = replacement(before, instruction)?;
        if index == 0 || macros.contains(&index) || matches!(instruction, Instruction::Iterate(_)) {
            let count = [Instruction::CallFunction(operators::COUNT, Some(0)), Instruction::DiscardTop];
            replacement.splice(0..0, count);
        }
        places.push(place);
        place += replacement.len() as u32;
        replaced.push((index, replacement));
    }
    places.push(place);
    let moved = |target: u32| places.get(target as usize).copied().unwrap_or(target);
    let mut guarded = Instructions::new(instructions.name(), instructions.source());
    for (index, replacement) in replaced {
        for instruction in replacement {
            let instruction = match instruction {
                Instruction::Iterate(target) => Instruction::Iterate(moved(target)),
                Instruction::Jump(target) => Instruction::Jump(moved(target)),
                Instruction::JumpIfFalse(target) => Instruction::JumpIfFalse(moved(target)),
                Instruction::JumpIfFalseOrPop(target) => Instruction::JumpIfFalseOrPop(moved(target)),
                Instruction::JumpIfTrueOrPop(target) => Instruction::JumpIfTrueOrPop(moved(target)),
                Instruction::BuildMacro(name, target, flags) => {
                    Instruction::BuildMacro(name, moved(target), flags)
                }
                other => other,
            };
            match (instructions.get_span(index), instructions.get_line(index)) {
                (Some(span), _) => guarded.add_with_span(instruction, span),
                (None, Some(line)) => guarded.add_with_line(instruction, line as u16),
                (None, None) => guarded.add(instruction),
            };
        }
    }
    Ok(guarded)
}
