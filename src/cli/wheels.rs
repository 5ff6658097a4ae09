//! CUDA from pip: NVRTC and the CUDA headers in the Python environment that this binary was installed into.
//!
//! CubeCL looks for headers below `CUDA_PATH`, and the loader for NVRTC along `LD_LIBRARY_PATH`, which it reads when a process
//! starts. So the program starts itself again with both set. A `CUDA_PATH` that is set and a toolkit of the system go first.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::{env, fs, io};

use sha2::{Digest, Sha256};

use super::environment::private_folder;

/// Toolkits of the system, which CubeCL finds itself.
const SYSTEM: [&str; 3] = ["/usr/local/cuda", "/opt/cuda", "/usr/bin/nvcc"];

/// NVRTC and what it includes.
#[derive(Debug, PartialEq, Eq)]
struct Wheels {
    /// The folder of libnvrtc.
    library: PathBuf,
    headers: Headers,
}

#[derive(Debug, PartialEq, Eq)]
enum Headers {
    /// A folder with all of them in `include`: CUDA 13 and newer.
    Together(PathBuf),
    /// Entries of `include`, each in the wheel that brings it: CUDA 12.
    Apart(BTreeMap<String, PathBuf>),
}

/// Starts this program again if that is how it finds CUDA; returns otherwise.
pub(super) fn restart_with_cuda(cache: Option<&Path>) {
    let has_its_own =
        env::var_os("CUDA_PATH").is_some() || SYSTEM.iter().any(|path| Path::new(path).exists());
    if !cfg!(feature = "cuda") || has_its_own {
        return;
    }
    let Ok(executable) = env::current_exe() else { return };
    let Some((wheels, cache)) = Wheels::beside(&executable).zip(cache) else { return };
    // Without headers the devices say what is missing.
    let Ok(toolkit) = wheels.toolkit(cache) else { return };
    let before = env::var_os("LD_LIBRARY_PATH").unwrap_or_default();
    let folders = env::split_paths(&before).filter(|folder| !folder.as_os_str().is_empty());
    let Ok(libraries) = env::join_paths(folders.chain([wheels.library])) else { return };
    start_again(&executable, &[("CUDA_PATH", toolkit.into()), ("LD_LIBRARY_PATH", libraries)]);
}

/// Replaces this process; returns if the system refuses.
#[cfg(unix)]
fn start_again(executable: &Path, variables: &[(&str, std::ffi::OsString)]) {
    use std::os::unix::process::CommandExt;
    let mut command = std::process::Command::new(executable);
    let mut arguments = env::args_os();
    if let Some(name) = arguments.next() {
        command.arg0(name);
    }
    let _refused = command.args(arguments).envs(variables.iter().cloned()).exec();
}

#[cfg(not(unix))]
fn start_again(_: &Path, _: &[(&str, std::ffi::OsString)]) {}

impl Wheels {
    /// Those in the environment whose `bin` holds a binary, of its newest Python.
    fn beside(executable: &Path) -> Option<Self> {
        let environment = executable.parent()?.parent()?;
        let mut pythons = entries(&environment.join("lib"), "python3");
        pythons.sort();
        let packages = pythons.iter().rev().flat_map(|python| {
            ["site-packages", "dist-packages"].map(|name| python.join(name).join("nvidia"))
        });
        packages.into_iter().find_map(|nvidia| Self::together(&nvidia).or_else(|| Self::apart(&nvidia)))
    }

    fn together(nvidia: &Path) -> Option<Self> {
        let mut toolkits = entries(nvidia, "cu1");
        toolkits.sort();
        let is_whole = |folder: &PathBuf| {
            has_nvrtc(&folder.join("lib"))
                && has_headers(&folder.join("include"), &folder.join("include/crt"))
        };
        let toolkit = toolkits.into_iter().rev().find(is_whole)?;
        Some(Self { library: toolkit.join("lib"), headers: Headers::Together(toolkit) })
    }

    fn apart(nvidia: &Path) -> Option<Self> {
        let (library, runtime) = (nvidia.join("cuda_nvrtc/lib"), nvidia.join("cuda_runtime/include"));
        let compiler = nvidia.join("cuda_nvcc/include/crt");
        if !has_nvrtc(&library) || !has_headers(&runtime, &compiler) {
            return None;
        }
        let named = |path: PathBuf| Some((path.file_name()?.to_str()?.to_owned(), path));
        let mut headers: BTreeMap<String, PathBuf> =
            entries(&runtime, "").into_iter().filter_map(named).collect();
        headers.insert("crt".to_owned(), compiler);
        // CubeCL includes this folder too where it is there.
        let libraries = nvidia.join("cuda_cccl/include");
        if libraries.is_dir() {
            headers.insert("cccl".to_owned(), libraries);
        }
        Some(Self { library, headers: Headers::Apart(headers) })
    }

    /// The folder to be `CUDA_PATH`; one of links, in `cache`, where the headers lie apart.
    fn toolkit(&self, cache: &Path) -> io::Result<PathBuf> {
        let headers = match &self.headers {
            Headers::Together(toolkit) => return Ok(toolkit.clone()),
            Headers::Apart(headers) => headers,
        };
        let hash = Sha256::digest(format!("{headers:?}").as_bytes());
        let hash: String = hash.iter().take(8).map(|byte| format!("{byte:02x}")).collect();
        let folder = cache.join(format!("cuda-{hash}"));
        if folder.is_dir() {
            return Ok(folder);
        }
        let new = cache.join(format!("cuda-{hash}-{}", std::process::id()));
        private_folder(&new.join("include"))?;
        for (name, path) in headers {
            link(path, &new.join("include").join(name))?;
        }
        match fs::rename(&new, &folder) {
            // Another process was faster.
            Err(_) if folder.is_dir() => fs::remove_dir_all(&new)?,
            renamed => renamed?,
        }
        Ok(folder)
    }
}

#[cfg(unix)]
fn link(to: &Path, at: &Path) -> io::Result<()> {
    std::os::unix::fs::symlink(to, at)
}

#[cfg(not(unix))]
fn link(_: &Path, _: &Path) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}

/// The entries of a folder whose names begin so.
fn entries(folder: &Path, start: &str) -> Vec<PathBuf> {
    let found = fs::read_dir(folder).into_iter().flatten().flatten();
    let begins = |path: &PathBuf| {
        path.file_name().and_then(|name| name.to_str()).is_some_and(|name| name.starts_with(start))
    };
    found.map(|entry| entry.path()).filter(begins).collect()
}

fn has_nvrtc(folder: &Path) -> bool {
    !entries(folder, "libnvrtc.so").is_empty()
}

/// Whether the headers of the runtime are in one folder, and those of the compiler, which they include, in another.
fn has_headers(runtime: &Path, compiler: &Path) -> bool {
    runtime.join("cuda_runtime.h").is_file() && compiler.join("host_config.h").is_file()
}

#[cfg(unix)]
#[cfg(test)]
mod tests {
    use super::*;

    /// An environment whose site-packages have these files below `nvidia`.
    fn environment(files: &[&str]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for file in files {
            let path = folder.path().join("lib/python3.12/site-packages/nvidia").join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "").unwrap();
        }
        folder
    }

    fn found(folder: &tempfile::TempDir) -> Option<Wheels> {
        Wheels::beside(&folder.path().join("bin/tune"))
    }

    #[test]
    fn wheels_of_cuda_13_are_a_toolkit() {
        let files =
            ["cu13/lib/libnvrtc.so.13", "cu13/include/cuda_runtime.h", "cu13/include/crt/host_config.h"];
        let folder = environment(&files);
        let toolkit = folder.path().join("lib/python3.12/site-packages/nvidia/cu13");
        let wheels = found(&folder).unwrap();
        assert_eq!(wheels.library, toolkit.join("lib"));
        assert_eq!(wheels.toolkit(Path::new("unused")).unwrap(), toolkit);
        // As PyTorch brings them, the compiler's headers are missing.
        assert_eq!(found(&environment(&files[..2])), None);
        assert_eq!(found(&environment(&files[1..])), None);
    }

    #[test]
    fn wheels_of_cuda_12_are_linked_into_one_folder() {
        let files = [
            "cuda_nvrtc/lib/libnvrtc.so.12",
            "cuda_runtime/include/cuda_runtime.h",
            "cuda_runtime/include/mma.h",
            "cuda_nvcc/include/crt/host_config.h",
            "cuda_cccl/include/cub/cub.cuh",
        ];
        let folder = environment(&files);
        let cache = tempfile::tempdir().unwrap();
        let wheels = found(&folder).unwrap();
        let toolkit = wheels.toolkit(cache.path()).unwrap();
        for header in ["cuda_runtime.h", "mma.h", "crt/host_config.h", "cccl/cub/cub.cuh"] {
            assert!(toolkit.join("include").join(header).is_file(), "{header}");
        }
        assert_eq!(found(&folder).unwrap().toolkit(cache.path()).unwrap(), toolkit);
        assert_eq!(fs::read_dir(cache.path()).unwrap().count(), 1);
        assert_eq!(found(&environment(&files[..3])), None);
    }
}
