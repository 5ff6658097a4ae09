//! What the process's surroundings say: where the Hugging Face cache and the hub are, which token opens it, and
//! whether a signal came.

use std::env;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use signal_hook::consts::{SIGINT, SIGTERM};

use super::exit::Exit;
use crate::hub::Token;

/// A variable that is set to something.
fn variable(name: &str) -> Option<PathBuf> {
    env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from)
}

/// The folder in which the hub's own tools keep everything.
fn hub_home() -> PathBuf {
    variable("HF_HOME").unwrap_or_else(|| {
        let cache = variable("XDG_CACHE_HOME");
        cache
            .or_else(|| env::home_dir().map(|home| home.join(".cache")))
            .unwrap_or_default()
            .join("huggingface")
    })
}

/// The folder that holds `models--…` entries, as the hub's own tools find it.
pub(super) fn hub_cache() -> PathBuf {
    variable("HF_HUB_CACHE").unwrap_or_else(|| hub_home().join("hub"))
}

/// The folder for kernels that were compiled once, made if it is not there; `None` where there is no place for it. Nobody
/// else can look into it: what lies there is run.
pub(super) fn kernel_cache() -> Option<PathBuf> {
    if cfg!(not(any(feature = "cuda", feature = "vulkan", feature = "metal"))) {
        return None;
    }
    let home = || env::home_dir().filter(|home| !home.as_os_str().is_empty()).map(|home| home.join(".cache"));
    let folder = variable("XDG_CACHE_HOME").or_else(home)?.join("tune").join("kernels");
    private_folder(&folder).ok()?;
    Some(folder)
}

/// Makes a folder, and those above it that are missing, for this user alone.
fn private_folder(path: &Path) -> io::Result<()> {
    #[cfg_attr(not(unix), expect(unused_mut, reason = "only Unix has a mode to set"))]
    let mut builder = std::fs::DirBuilder::new();
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.recursive(true).create(path)
}

/// The file that kernels are timed into, of this process alone.
pub(super) fn profile_file() -> PathBuf {
    env::temp_dir().join(format!("tune-profile-{}.txt", std::process::id()))
}

/// The hub's address.
pub(super) fn hub_endpoint() -> String {
    env::var("HF_ENDPOINT").ok().filter(|text| !text.is_empty()).unwrap_or("https://huggingface.co".into())
}

/// Access to private models: HF_TOKEN, else the file that `hf auth login` writes.
pub(super) fn hub_token() -> Option<Token> {
    let variables = ["HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"];
    let named = variables.into_iter().find_map(|name| env::var(name).ok().filter(|text| !text.is_empty()));
    let text = named.or_else(|| {
        let file = variable("HF_TOKEN_PATH").unwrap_or_else(|| hub_home().join("token"));
        std::fs::read_to_string(file).ok()
    });
    Token::new(&text?)
}

/// Whether the user forbade the network.
pub(super) fn is_offline() -> bool {
    let set = |value: String| matches!(value.to_uppercase().as_str(), "1" | "ON" | "YES" | "TRUE");
    env::var("HF_HUB_OFFLINE").is_ok_and(set)
}

/// Notices SIGINT and SIGTERM. The first asks the run to stop at the end of its step; a second one ends the process.
#[derive(Clone)]
pub(super) struct Signals {
    received: Arc<AtomicUsize>,
}

impl Signals {
    /// Begins to listen. Where the system refuses, signals end the process as they always do.
    pub(super) fn listen() -> Self {
        let received = Arc::new(AtomicUsize::new(0));
        for (signal, exit) in [(SIGINT, Exit::Interrupted), (SIGTERM, Exit::Terminated)] {
            let again = Arc::new(AtomicBool::new(false));
            // Order matters: the second signal finds the flag that the first one raised.
            let _ = signal_hook::flag::register_conditional_shutdown(signal, exit as i32, Arc::clone(&again));
            let _ = signal_hook::flag::register(signal, again);
            let _ = signal_hook::flag::register_usize(signal, Arc::clone(&received), signal as usize);
        }
        Self { received }
    }

    /// Whether a signal came.
    pub(super) fn raised(&self) -> bool {
        self.received.load(Ordering::Relaxed) != 0
    }

    /// How a command that was stopped by the signal ends.
    pub(super) fn exit(&self) -> Exit {
        match self.received.load(Ordering::Relaxed) {
            signal if signal == SIGTERM as usize => Exit::Terminated,
            _ => Exit::Interrupted,
        }
    }
}

/// Notices SIGINT as often as it comes, and never ends the process: for a conversation, in which it stops an answer.
pub(super) struct Interrupts {
    raised: Arc<AtomicBool>,
}

impl Interrupts {
    /// Begins to listen. Where the system refuses, the signal ends the process as it always does.
    pub(super) fn listen() -> Self {
        let raised = Arc::new(AtomicBool::new(false));
        let _ = signal_hook::flag::register(SIGINT, Arc::clone(&raised));
        Self { raised }
    }

    /// Whether the signal came since it was last forgotten.
    pub(super) fn raised(&self) -> bool {
        self.raised.load(Ordering::Relaxed)
    }

    /// What came before does not count.
    pub(super) fn forget(&self) {
        self.raised.store(false, Ordering::Relaxed);
    }
}

#[cfg(all(test, unix))]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_private_folder_is_nobody_elses() {
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
