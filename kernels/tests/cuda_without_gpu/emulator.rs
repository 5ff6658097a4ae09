//! Runs CUDA C++ on the CPU: each kernel becomes a program (`memory.hpp`, `device.hpp` and the host's C++ compiler), each
//! launch a run of it. A kernel that reaches beside a buffer or its shared memory, waits for a thread that never comes, or
//! forgets to synchronize ends there with a message, and nowhere else.

use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};
use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, Stdio};

const DEVICE: &str = concat!(include_str!("memory.hpp"), include_str!("device.hpp"));

/// As nvcc, which lets one type be read as another; with calls of what `memory.hpp` has instead of sanitizers' libraries.
const COMPILE: [&str; 7] = [
    "-std=c++17",
    "-O0",
    "-w",
    "-fno-strict-aliasing",
    "-fno-threadsafe-statics",
    "-fsanitize=thread,alignment,bounds,shift,integer-divide-by-zero",
    "-c",
];

/// A kernel in CUDA C++.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Source<'a> {
    pub(crate) entry_point: &'a str,
    pub(crate) text: &'a str,
}

/// One launch of it.
#[derive(Debug)]
pub(crate) struct Launch {
    pub(crate) grid: [u32; 3],
    pub(crate) block: [u32; 3],
    /// Bytes of shared memory that a block gets.
    pub(crate) shared: u64,
    /// What the kernel gets by value after its buffers.
    pub(crate) constants: Vec<u64>,
    pub(crate) buffers: Vec<Buffer>,
}

/// What a kernel gets a pointer to.
#[derive(Debug)]
pub(crate) enum Buffer {
    Bytes(Vec<u8>),
    /// The memory of an earlier one, by its number.
    Same(usize),
}

/// Runs launches, each with its threads in an order of its own.
#[derive(Debug, Default)]
pub(crate) struct Emulator {
    launches: u64,
}

impl Emulator {
    /// Runs a launch; the bytes of its distinct buffers afterwards, in their order.
    ///
    /// # Errors
    /// If the kernel does not compile or does what a card would not stand.
    pub(crate) fn run(&mut self, source: Source<'_>, launch: &Launch) -> Result<Vec<Vec<u8>>, String> {
        let program = program(source)?;
        self.launches += 1;
        let mut child = Command::new(&program)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("{}: {error}", program.display()));
        let mut input = child.stdin.take().expect("it is piped");
        let message = encode(launch, self.launches);
        let writer = std::thread::spawn(move || input.write_all(&message));
        let output = child.wait_with_output().expect("the program can be waited for");
        if !output.status.success() {
            let complaint = String::from_utf8_lossy(&output.stderr);
            return Err(format!(
                "{} ({}): {complaint}{}",
                source.entry_point,
                program.display(),
                output.status
            ));
        }
        writer.join().expect("the writer does not panic").expect("the program reads all of its launch");
        let mut bytes = output.stdout.as_slice();
        let mut results = Vec::new();
        for buffer in &launch.buffers {
            if let Buffer::Bytes(before) = buffer {
                let (own, rest) = bytes.split_at(before.len());
                results.push(own.to_vec());
                bytes = rest;
            }
        }
        Ok(results)
    }
}

/// The program of a kernel, compiled if it is not there yet.
///
/// # Errors
/// What the compiler says of it.
pub(crate) fn program(source: Source<'_>) -> Result<PathBuf, String> {
    let mut hasher = DefaultHasher::new();
    (DEVICE, COMPILE, source.text).hash(&mut hasher);
    let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("cuda_without_gpu");
    std::fs::create_dir_all(&folder).expect("the folder can be made");
    let program = folder.join(format!("{:016x}", hasher.finish()));
    if program.exists() {
        return Ok(program);
    }
    let text = format!(
        "{DEVICE}\n{}\nint main() {{ return launch({}); }}\n",
        without_assembly(&without_includes(source.text)),
        source.entry_point
    );
    // Two processes may compile the same kernel.
    let own = |extension: &str| program.with_extension(format!("{}.{extension}", std::process::id()));
    let [file, object, made] = ["cpp", "o", "new"].map(own);
    std::fs::write(&file, text).expect("the folder can be written to");
    let compiler = |arguments: &[&str], from: &PathBuf, to: &PathBuf| {
        let mut command = Command::new("c++");
        command.args(arguments).arg(from).arg("-o").arg(to).output().map_err(|error| format!("c++: {error}"))
    };
    let mut output = compiler(&COMPILE, &file, &object)?;
    if output.status.success() {
        output = compiler(&[], &object, &made)?;
    }
    if !output.status.success() {
        let complaint = String::from_utf8_lossy(&output.stderr);
        let first: Vec<_> = complaint.lines().take(6).collect();
        return Err(format!("{} ({}): {}", source.entry_point, file.display(), first.join("\n")));
    }
    std::fs::rename(&made, &program).expect("the program can be renamed");
    for left in [&file, &object] {
        std::fs::remove_file(left).expect("the file can be removed");
    }
    Ok(program)
}

/// The words that `launch` of `device.hpp` reads.
fn encode(launch: &Launch, seed: u64) -> Vec<u8> {
    let mut message = Vec::new();
    fn put(message: &mut Vec<u8>, word: u64) {
        message.extend(word.to_ne_bytes());
    }
    for size in launch.grid.into_iter().chain(launch.block) {
        put(&mut message, size.into());
    }
    put(&mut message, launch.shared);
    put(&mut message, seed);
    put(&mut message, launch.constants.len() as u64);
    for constant in &launch.constants {
        put(&mut message, *constant);
    }
    put(&mut message, launch.buffers.len() as u64);
    for buffer in &launch.buffers {
        match buffer {
            Buffer::Bytes(bytes) => {
                put(&mut message, bytes.len() as u64);
                message.extend(bytes);
            }
            Buffer::Same(earlier) => put(&mut message, 1 << 63 | *earlier as u64),
        }
    }
    message
}

fn without_includes(text: &str) -> String {
    text.lines().filter(|line| !line.starts_with("#include")).flat_map(|line| [line, "\n"]).collect()
}

/// Each `asm volatile("instruction operands" : outputs : inputs)` as a call of the function that has the instruction's
/// name, with its outputs and inputs; operands are named by variables.
fn without_assembly(text: &str) -> String {
    const START: &str = "asm volatile(\"";
    let mut parts = text.split(START);
    let mut result = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let (statement, rest) = part.split_once(");").expect("a statement ends");
        let instruction = statement.split(['"', ' ']).next().unwrap_or_default();
        let name: String = instruction.chars().map(|c| if c.is_alphanumeric() { c } else { '_' }).collect();
        let operands: Vec<_> =
            statement.split('(').skip(1).filter_map(|operand| operand.split(')').next()).collect();
        result += &format!("{name}({});{rest}", operands.join(", "));
    }
    result
}
