//! The process's environment: the Hugging Face cache, the hub and its token, and signals.

use std::env;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

#[cfg(unix)]
use signal_hook::consts::{SIGHUP, SIGUSR1, SIGUSR2, SIGXCPU};
use signal_hook::consts::{SIGINT, SIGTERM};

use super::exit::Exit;
use crate::hub::Token;
use crate::run::Environment;

/// What a command gets from the process that it runs in.
pub(super) struct Context<'a> {
    /// For the use cases.
    pub environment: Environment<'a>,
    /// For the exit code of a command that a signal stopped.
    pub signals: &'a Signals,
}

/// A variable that is set and not empty.
pub(super) fn variable(name: &str) -> Option<PathBuf> {
    env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from)
}

/// A path from a variable, with `~`, `$NAME` and `${NAME}` expanded as huggingface_hub does.
fn path_variable(name: &str) -> Option<PathBuf> {
    let value = variable(name)?;
    match value.to_str() {
        Some(text) => Some(expanded(text, &|name| env::var(name).ok(), env::home_dir().as_deref())),
        None => Some(value),
    }
}

/// Expands a leading `~` and variables. Unknown variables stay as they are.
fn expanded(text: &str, lookup: &dyn Fn(&str) -> Option<String>, home: Option<&Path>) -> PathBuf {
    let text = match (text.strip_prefix('~'), home) {
        (Some(rest), Some(home)) if rest.is_empty() || rest.starts_with('/') => {
            format!("{}{rest}", home.display())
        }
        _ => text.to_owned(),
    };
    let is_name = |character: char| character.is_ascii_alphanumeric() || character == '_';
    let (mut path, mut rest) = (String::new(), text.as_str());
    while let Some(at) = rest.find('$') {
        path.push_str(&rest[..at]);
        let after = &rest[at + 1..];
        let (name, length) = match after.strip_prefix('{').and_then(|inner| inner.split_once('}')) {
            Some((name, _)) => (name, name.len() + 2),
            None => {
                let name = &after[..after.find(|character| !is_name(character)).unwrap_or(after.len())];
                (name, name.len())
            }
        };
        match lookup(name).filter(|_| !name.is_empty()) {
            Some(value) => path.push_str(&value),
            None => path.push_str(&rest[at..=at + length]),
        }
        rest = &after[length..];
    }
    PathBuf::from(path + rest)
}

/// The folder of all Hugging Face caches, found as huggingface_hub does.
fn hub_home() -> PathBuf {
    path_variable("HF_HOME").unwrap_or_else(|| {
        let cache = path_variable("XDG_CACHE_HOME");
        cache
            .or_else(|| env::home_dir().map(|home| home.join(".cache")))
            .unwrap_or_default()
            .join("huggingface")
    })
}

/// The folder of the `models--…` entries, found as huggingface_hub does.
pub(super) fn hub_cache() -> PathBuf {
    let named = ["HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"].into_iter().find_map(path_variable);
    named.unwrap_or_else(|| hub_home().join("hub"))
}

/// The folder of compiled kernels, created if missing; `None` if there is no place for it. Only this user can access
/// it, because its contents are executed.
pub(super) fn kernel_cache() -> Option<PathBuf> {
    if cfg!(not(any(feature = "cuda", feature = "vulkan", feature = "metal"))) {
        return None;
    }
    let home = || env::home_dir().filter(|home| !home.as_os_str().is_empty()).map(|home| home.join(".cache"));
    let folder = variable("XDG_CACHE_HOME").or_else(home)?.join("tune").join("kernels");
    private_folder(&folder).ok()?;
    Some(folder)
}

/// The file of what was said in earlier conversations; `None` if there is no place for it.
pub(super) fn chat_history() -> Option<PathBuf> {
    let home = || env::home_dir().filter(|home| !home.as_os_str().is_empty());
    let state = variable("XDG_STATE_HOME").or_else(|| Some(home()?.join(".local").join("state")))?;
    Some(state.join("tune").join("chat_history"))
}

/// Creates a folder, and missing ones above it, with access for this user only.
pub(super) fn private_folder(path: &Path) -> io::Result<()> {
    #[cfg_attr(not(unix), expect(unused_mut, reason = "only Unix has a mode to set"))]
    let mut builder = std::fs::DirBuilder::new();
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.recursive(true).create(path)
}

/// The file of kernel times, specific to this process.
pub(super) fn profile_file() -> PathBuf {
    env::temp_dir().join(format!("tune-profile-{}.txt", std::process::id()))
}

/// The hub's address.
pub(super) fn hub_endpoint() -> String {
    env::var("HF_ENDPOINT").ok().filter(|text| !text.is_empty()).unwrap_or("https://huggingface.co".into())
}

/// Access to private models: HF_TOKEN, else the token file of `hf auth login`.
pub(super) fn hub_token() -> Option<Token> {
    let variables = ["HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"];
    let named = variables.into_iter().find_map(|name| env::var(name).ok().filter(|text| !text.is_empty()));
    let text = named.or_else(|| {
        let file = path_variable("HF_TOKEN_PATH").unwrap_or_else(|| hub_home().join("token"));
        std::fs::read_to_string(file).ok()
    });
    Token::new(&text?)
}

/// Whether the user disabled network access.
pub(super) fn is_offline() -> bool {
    let set = |value: String| matches!(value.to_uppercase().as_str(), "1" | "ON" | "YES" | "TRUE");
    env::var("HF_HUB_OFFLINE").is_ok_and(set)
}

/// The signals that stop a run with a checkpoint: interrupts, batch systems' warnings, and a closed terminal.
#[cfg(unix)]
const STOPPING: [i32; 5] = [SIGINT, SIGTERM, SIGHUP, SIGUSR2, SIGXCPU];
#[cfg(not(unix))]
const STOPPING: [i32; 2] = [SIGINT, SIGTERM];

/// Listens for signals. The first stopping one ends the run at its next step, with a checkpoint; a second one of the same
/// number ends the process. SIGUSR1 requests a checkpoint. The default listens for none.
#[derive(Default)]
pub(super) struct Signals {
    received: Arc<AtomicUsize>,
    save: Arc<AtomicBool>,
}

impl Signals {
    /// Starts to listen. If the system refuses, signals end the process as by default.
    pub(super) fn listen() -> Self {
        let signals = Self::default();
        for signal in STOPPING.into_iter().filter(|signal| !is_ignored(*signal)) {
            let again = Arc::new(AtomicBool::new(false));
            // Order matters: the second signal finds the flag that the first one set.
            let _ =
                signal_hook::flag::register_conditional_shutdown(signal, 128 + signal, Arc::clone(&again));
            let _ = signal_hook::flag::register(signal, again);
            let _ = signal_hook::flag::register_usize(signal, Arc::clone(&signals.received), signal as usize);
        }
        #[cfg(unix)]
        let _ = signal_hook::flag::register(SIGUSR1, Arc::clone(&signals.save));
        signals
    }

    /// Whether a stopping signal was received.
    pub(super) fn raised(&self) -> bool {
        self.received.load(Ordering::Relaxed) != 0
    }

    /// Whether SIGUSR1 was received since the last call.
    pub(super) fn take_save_request(&self) -> bool {
        self.save.swap(false, Ordering::Relaxed)
    }

    /// The exit of a command that a signal stopped: its own, or that of another rank.
    pub(super) fn exit(&self) -> Exit {
        match u8::try_from(self.received.load(Ordering::Relaxed)) {
            Ok(0) => Exit::Signal(SIGTERM as u8),
            Ok(signal) => Exit::Signal(signal),
            Err(_) => Exit::Signal(SIGINT as u8),
        }
    }
}

/// Whether the process was started with SIGHUP ignored, as `nohup` does: it must then survive its terminal.
#[cfg(target_os = "linux")]
fn is_ignored(signal: i32) -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0);
    signal == SIGHUP && mask >> (signal - 1) & 1 == 1
}

#[cfg(not(target_os = "linux"))]
fn is_ignored(_signal: i32) -> bool {
    false
}

/// Listens for SIGINT without ending the process: in a conversation it stops an answer.
pub(super) struct Interrupts {
    raised: Arc<AtomicBool>,
}

impl Interrupts {
    /// Starts to listen. If the system refuses, the signal ends the process as by default.
    pub(super) fn listen() -> Self {
        let raised = Arc::new(AtomicBool::new(false));
        let _ = signal_hook::flag::register(SIGINT, Arc::clone(&raised));
        Self { raised }
    }

    /// Whether the signal was received since the last [`Self::forget`].
    pub(super) fn raised(&self) -> bool {
        self.raised.load(Ordering::Relaxed)
    }

    /// Forgets signals received so far.
    pub(super) fn forget(&self) {
        self.raised.store(false, Ordering::Relaxed);
    }
}

#[cfg(all(test, unix))]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn hub_variables_expand_the_home_folder_and_variables() {
        let lookup = |name: &str| (name == "SCRATCH").then(|| "/scratch/u".to_owned());
        for (text, path) in [
            ("~/hf", "/home/u/hf"),
            ("~", "/home/u"),
            ("~other/hf", "~other/hf"),
            ("$SCRATCH/hf", "/scratch/u/hf"),
            ("${SCRATCH}x/$NONE/${NONE}", "/scratch/ux/$NONE/${NONE}"),
            ("/a/$", "/a/$"),
            ("/a/${", "/a/${"),
        ] {
            assert_eq!(expanded(text, &lookup, Some(Path::new("/home/u"))), Path::new(path), "{text}");
        }
    }

    #[test]
    fn a_private_folder_has_no_access_for_others() {
        let outer = tempfile::tempdir().unwrap();
        let folder = outer.path().join("tune/kernels");
        private_folder(&folder).unwrap();
        private_folder(&folder).unwrap();
        for path in [&folder, &outer.path().join("tune")] {
            assert_eq!(
                std::fs::metadata(path).unwrap().permissions().mode() & 0o077,
                0,
                "{}",
                path.display()
            );
        }
    }
}
