//! The process's environment: the Hugging Face cache, the hub and its token, and signals.

use std::env;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

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
fn variable(name: &str) -> Option<PathBuf> {
    env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from)
}

/// The folder of all Hugging Face caches, found as huggingface_hub does.
fn hub_home() -> PathBuf {
    variable("HF_HOME").unwrap_or_else(|| {
        let cache = variable("XDG_CACHE_HOME");
        cache
            .or_else(|| env::home_dir().map(|home| home.join(".cache")))
            .unwrap_or_default()
            .join("huggingface")
    })
}

/// The folder of the `models--…` entries, found as huggingface_hub does.
pub(super) fn hub_cache() -> PathBuf {
    variable("HF_HUB_CACHE").unwrap_or_else(|| hub_home().join("hub"))
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

/// Creates a folder, and missing ones above it, with access for this user only.
fn private_folder(path: &Path) -> io::Result<()> {
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
        let file = variable("HF_TOKEN_PATH").unwrap_or_else(|| hub_home().join("token"));
        std::fs::read_to_string(file).ok()
    });
    Token::new(&text?)
}

/// Whether the user disabled network access.
pub(super) fn is_offline() -> bool {
    let set = |value: String| matches!(value.to_uppercase().as_str(), "1" | "ON" | "YES" | "TRUE");
    env::var("HF_HUB_OFFLINE").is_ok_and(set)
}

/// Listens for SIGINT and SIGTERM. The first one stops the run at the end of its step; a second one ends the process.
/// The default listens for none.
#[derive(Default)]
pub(super) struct Signals {
    received: Arc<AtomicUsize>,
}

impl Signals {
    /// Starts to listen. If the system refuses, signals end the process as by default.
    pub(super) fn listen() -> Self {
        let received = Arc::new(AtomicUsize::new(0));
        for (signal, exit) in [(SIGINT, Exit::Interrupted), (SIGTERM, Exit::Terminated)] {
            let again = Arc::new(AtomicBool::new(false));
            // Order matters: the second signal finds the flag that the first one set.
            let _ = signal_hook::flag::register_conditional_shutdown(signal, exit as i32, Arc::clone(&again));
            let _ = signal_hook::flag::register(signal, again);
            let _ = signal_hook::flag::register_usize(signal, Arc::clone(&received), signal as usize);
        }
        Self { received }
    }

    /// Whether a signal was received.
    pub(super) fn raised(&self) -> bool {
        self.received.load(Ordering::Relaxed) != 0
    }

    /// The exit of a command that the signal stopped.
    pub(super) fn exit(&self) -> Exit {
        match self.received.load(Ordering::Relaxed) {
            signal if signal == SIGTERM as usize => Exit::Terminated,
            _ => Exit::Interrupted,
        }
    }
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
