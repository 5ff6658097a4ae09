//! The functions of MPI that are called, and the three binary interfaces that they come with.
//!
//! | library | world, byte | handles |
//! |---|---|---|
//! | `libmpi_abi.so` (the standard ABI of MPI 5) | constants | pointers |
//! | `libmpi.so.40` (Open MPI 4 and 5) | addresses of variables | pointers |
//! | `libmpi.so.12`, `libmpich.so.12` (MPICH, Intel, Cray, MVAPICH) | constants | `int`s |
//!
//! Handles are passed as pointer-sized integers: where a function takes an `int`, it reads the low half of the register,
//! as the calling conventions of 64-bit Unix systems (System V, AAPCS64) have it.

use std::cell::Cell;
use std::ffi::{OsString, c_char, c_int, c_void};
use std::path::Path;
use std::ptr::null_mut;
use std::thread;
use std::time::{Duration, Instant};

use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_NOW};

use super::{Error, Launched};

/// Room for a text that MPI writes: `MPI_MAX_LIBRARY_VERSION_STRING`, the largest, is at most 8192.
const TEXT: usize = 1 << 14;
/// Polls without a pause before the first pause.
const EAGER: u32 = 2000;
/// Longest pause between two polls.
const NAP: Duration = Duration::from_micros(200);

/// A handle of MPI.
type Handle = usize;
type Gather =
    unsafe extern "C" fn(*const c_void, c_int, Handle, *mut c_void, c_int, Handle, Handle, *mut u64) -> c_int;
type Broadcast = unsafe extern "C" fn(*mut c_void, c_int, Handle, c_int, Handle, *mut u64) -> c_int;
type Asked = unsafe extern "C" fn(Handle, *mut c_int) -> c_int;
type Named = unsafe extern "C" fn(*mut c_char, *mut c_int) -> c_int;

/// The functions of a library.
struct Calls {
    init: unsafe extern "C" fn(*mut c_int, *mut *mut *mut c_char, c_int, *mut c_int) -> c_int,
    finalize: unsafe extern "C" fn() -> c_int,
    rank: Asked,
    size: Asked,
    all_to_all: Gather,
    all_gather: Gather,
    broadcast: Broadcast,
    test: unsafe extern "C" fn(*mut u64, *mut c_int, *mut c_void) -> c_int,
    description: Named,
    machine: Named,
}

/// The values that a binary interface gives to names.
struct Constants {
    world: Handle,
    byte: Handle,
    /// `MPI_THREAD_FUNNELED`: one thread calls.
    funneled: c_int,
}

/// A started MPI. Ended when it is dropped, unless the other ranks fell silent.
pub(crate) struct Mpi {
    calls: Calls,
    constants: Constants,
    description: String,
    rank: usize,
    size: usize,
    silence: Duration,
    /// The error that ended the exchange.
    broken: Cell<Option<Broken>>,
}

#[derive(Clone, Copy)]
enum Broken {
    Silent,
    Call(&'static str, c_int),
}

/// The names to open, in order: those that fit the launcher first.
fn names(launched: Option<&Launched>) -> [&'static str; 5] {
    let standard = ["libmpi_abi.so.1", "libmpi_abi.so.0"];
    match launched {
        Some(Launched { variable, .. }) if variable.starts_with("OMPI") => {
            ["libmpi.so.40", standard[0], standard[1], "libmpi.so.12", "libmpich.so.12"]
        }
        _ => [standard[0], standard[1], "libmpi.so.12", "libmpich.so.12", "libmpi.so.40"],
    }
}

/// The text that a function of MPI writes.
fn named(write: Named) -> String {
    let mut text = vec![0_u8; TEXT];
    let mut length = 0;
    // SAFETY: the buffer is longer than any text of MPI.
    unsafe { write(text.as_mut_ptr().cast(), &raw mut length) };
    text.truncate(usize::try_from(length).unwrap_or(0));
    String::from_utf8_lossy(&text).trim_end_matches('\0').to_owned()
}

impl Mpi {
    pub(crate) fn start(
        library: Option<&Path>,
        launched: Option<&Launched>,
        silence: Duration,
    ) -> Result<Self, Error> {
        let names: Vec<OsString> = match library {
            Some(path) => vec![path.into()],
            None => names(launched).map(OsString::from).to_vec(),
        };
        let mut tried = String::new();
        for name in names {
            // SAFETY: an MPI library may be initialized by loading it. Its plugins look for its symbols among the global ones.
            match unsafe { Library::open(Some(name.as_os_str()), RTLD_NOW | RTLD_GLOBAL) } {
                Ok(opened) => return Self::of(opened, &name.to_string_lossy(), launched, silence),
                Err(error) => tried += &format!("\n  {} ({error})", name.display()),
            }
        }
        Err(Error::NoLibrary { tried })
    }

    fn of(
        library: Library,
        name: &str,
        launched: Option<&Launched>,
        silence: Duration,
    ) -> Result<Self, Error> {
        // It has threads and handlers of its own that unloading would pull the ground from under.
        let library: &'static Library = Box::leak(Box::new(library));
        let lacks = |symbol| Error::NotMpi { library: name.to_owned(), symbol };
        macro_rules! call {
            ($symbol:literal) => {
                // SAFETY: the standard declares the function so, but for the width of handles.
                unsafe { *library.get($symbol).map_err(|_| lacks($symbol))? }
            };
        }
        let calls = Calls {
            init: call!("MPI_Init_thread"),
            finalize: call!("MPI_Finalize"),
            rank: call!("MPI_Comm_rank"),
            size: call!("MPI_Comm_size"),
            all_to_all: call!("MPI_Ialltoall"),
            all_gather: call!("MPI_Iallgather"),
            broadcast: call!("MPI_Ibcast"),
            test: call!("MPI_Test"),
            description: call!("MPI_Get_library_version"),
            machine: call!("MPI_Get_processor_name"),
        };
        // SAFETY: only the addresses of the two variables are taken.
        let variable =
            |name: &str| unsafe { library.get::<*mut c_void>(name) }.map(|at| at.as_raw_ptr() as usize);
        let constants = match (variable("ompi_mpi_comm_world"), variable("ompi_mpi_byte")) {
            (Ok(world), Ok(byte)) => Constants { world, byte, funneled: 1 },
            _ if name.contains("mpi_abi") => Constants { world: 0x101, byte: 0x247, funneled: 1024 },
            _ => Constants { world: 0x4400_0000, byte: 0x4c00_010d, funneled: 1 },
        };

        // May be called before MPI is initialized.
        let text = named(calls.description);
        let text = text.split(['\n', ',']).next().unwrap_or_default();
        let words: Vec<&str> = text.split_whitespace().collect();
        let description = format!("{name} ({})", words.join(" "));

        let mut mpi =
            Self { calls, constants, description, rank: 0, size: 1, silence, broken: Cell::new(None) };
        let mut provided = 0;
        // SAFETY: MPI allows null for both arguments of `main`. Initialized once: `Ranks::mpi` says so.
        let code =
            unsafe { (mpi.calls.init)(null_mut(), null_mut(), mpi.constants.funneled, &raw mut provided) };
        mpi.checked("MPI_Init_thread", code)?;
        mpi.rank = mpi.asked("MPI_Comm_rank", mpi.calls.rank)?;
        mpi.size = mpi.asked("MPI_Comm_size", mpi.calls.size)?;
        if let Some(Launched { variable, size }) = launched.filter(|launched| launched.size != mpi.size) {
            return Err(Error::OtherLauncher {
                variable: (*variable).to_owned(),
                launched: *size,
                library: mpi.description.clone(),
                size: mpi.size,
            });
        }
        Ok(mpi)
    }

    pub(crate) fn rank(&self) -> usize {
        self.rank
    }

    pub(crate) fn size(&self) -> usize {
        self.size
    }

    pub(crate) fn library(&self) -> &str {
        &self.description
    }

    /// The name of this machine, unlike that of any other.
    pub(crate) fn machine(&self) -> String {
        named(self.calls.machine)
    }

    /// The parts of all ranks, one behind the other.
    pub(crate) fn all_gather<T: Copy + Default>(&self, mine: Vec<T>) -> Result<Vec<T>, Error> {
        let (count, room) = (mine.len(), mine.len() * self.size);
        self.exchange("MPI_Iallgather", self.calls.all_gather, mine, count, room)
    }

    /// The slices that the ranks have for this one, one behind the other; `mine` is a whole number of slices for each.
    pub(crate) fn all_to_all<T: Copy + Default>(&self, mine: Vec<T>) -> Result<Vec<T>, Error> {
        let (count, room) = (mine.len() / self.size, mine.len());
        self.exchange("MPI_Ialltoall", self.calls.all_to_all, mine, count, room)
    }

    /// Sends `count` values of `mine` to each rank, or all of them to all, and receives as many of each into `room`.
    fn exchange<T: Copy + Default>(
        &self,
        call: &'static str,
        start: Gather,
        mine: Vec<T>,
        count: usize,
        room: usize,
    ) -> Result<Vec<T>, Error> {
        self.require_whole()?;
        let mut received = vec![T::default(); room];
        let bytes = (count * size_of::<T>()) as c_int;
        let Constants { world, byte, .. } = self.constants;
        let mut request = 0;
        // SAFETY: both buffers have the length that MPI is given, in bytes, for each rank, and live until `wait` has seen the
        // end of the exchange; otherwise they are never freed.
        let code = unsafe {
            start(
                mine.as_ptr().cast(),
                bytes,
                byte,
                received.as_mut_ptr().cast(),
                bytes,
                byte,
                world,
                &raw mut request,
            )
        };
        let done = self.checked(call, code).and_then(|()| self.wait(request));
        match done {
            Ok(()) => Ok(received),
            Err(error) => {
                std::mem::forget((mine, received));
                Err(error)
            }
        }
    }

    /// The first rank's bytes; all ranks give as many.
    pub(crate) fn broadcast(&self, mut bytes: Vec<u8>) -> Result<Vec<u8>, Error> {
        self.require_whole()?;
        let Constants { world, byte, .. } = self.constants;
        let mut request = 0;
        // SAFETY: as in `exchange`.
        let code = unsafe {
            (self.calls.broadcast)(
                bytes.as_mut_ptr().cast(),
                bytes.len() as c_int,
                byte,
                0,
                world,
                &raw mut request,
            )
        };
        let done = self.checked("MPI_Ibcast", code).and_then(|()| self.wait(request));
        match done {
            Ok(()) => Ok(bytes),
            Err(error) => {
                std::mem::forget(bytes);
                Err(error)
            }
        }
    }

    /// Polls until the request is done: eagerly at first, then with pauses.
    fn wait(&self, mut request: u64) -> Result<(), Error> {
        // `MPI_Status` is smaller than this in every interface.
        let mut status = [0_u64; 32];
        let began = Instant::now();
        let mut polls = 0;
        loop {
            let mut done = 0;
            // SAFETY: the request is one that MPI returned and has not freed; it frees it when it is done.
            let code =
                unsafe { (self.calls.test)(&raw mut request, &raw mut done, status.as_mut_ptr().cast()) };
            self.checked("MPI_Test", code)?;
            if done != 0 {
                return Ok(());
            }
            polls += 1;
            if polls < EAGER {
                thread::yield_now();
                continue;
            }
            if began.elapsed() > self.silence {
                self.broken.set(Some(Broken::Silent));
                return self.require_whole();
            }
            thread::sleep(NAP.min(began.elapsed() / 8));
        }
    }

    fn asked(&self, call: &'static str, ask: Asked) -> Result<usize, Error> {
        let mut answer = 0;
        // SAFETY: MPI is initialized, and writes one `int`.
        let code = unsafe { ask(self.constants.world, &raw mut answer) };
        self.checked(call, code)?;
        Ok(usize::try_from(answer).unwrap_or(0))
    }

    fn checked(&self, call: &'static str, code: c_int) -> Result<(), Error> {
        if code != 0 {
            self.broken.set(Some(Broken::Call(call, code)));
        }
        self.require_whole()
    }

    /// The error that ended the exchange, if one did.
    fn require_whole(&self) -> Result<(), Error> {
        match self.broken.get() {
            None => Ok(()),
            Some(Broken::Silent) => Err(Error::Silent(self.silence)),
            Some(Broken::Call(call, code)) => {
                Err(Error::Call { call, code, library: self.description.clone() })
            }
        }
    }
}

impl Drop for Mpi {
    fn drop(&mut self) {
        // It would wait for the others; a process that ends without it is noticed by the launcher.
        if self.broken.get().is_none() && !thread::panicking() {
            // SAFETY: initialized, by this thread, and nothing is under way.
            unsafe { (self.calls.finalize)() };
        }
    }
}
