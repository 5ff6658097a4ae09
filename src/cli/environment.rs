//! What the process's surroundings say: where the Hugging Face cache lies, and whether a signal came.

use std::env;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use signal_hook::consts::{SIGINT, SIGTERM};

use super::exit::Exit;

/// The folder that holds `models--…` entries, as the hub's own tools find it.
pub(super) fn hub_cache() -> PathBuf {
    let variable = |name: &str| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    if let Some(cache) = variable("HF_HUB_CACHE") {
        return cache;
    }
    let home = variable("HF_HOME").unwrap_or_else(|| {
        let cache = variable("XDG_CACHE_HOME");
        cache
            .or_else(|| env::home_dir().map(|home| home.join(".cache")))
            .unwrap_or_default()
            .join("huggingface")
    });
    home.join("hub")
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
            let again = Arc::new(std::sync::atomic::AtomicBool::new(false));
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
