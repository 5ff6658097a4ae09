//! Copies to a CUDA device through pinned memory, which it reads by itself, on a stream of their own beside its work.
//!
//! CubeCL's own uploads are copied from memory that is not pinned by the thread that launches all kernels. Here the calling
//! thread copies ([`Copier`]), and returns when all bytes have arrived, so that who launches work with the buffer need not
//! wait for it. What may still use a buffer that CubeCL's pool hands out is the calling thread's own stream alone, which is
//! waited for: buffers go back to pools behind fences of all other threads (`DeviceOps::fence`).

use std::any::Any;
use std::sync::{Mutex, PoisonError};

use cubecl::client::ComputeClient;
use cubecl::cuda::CudaRuntime;
use cubecl::prelude::Runtime;
use cubecl::server::Handle;
use cudarc::driver::DriverError;
use cudarc::driver::result::{self, event, stream};
use cudarc::driver::sys::{CUevent, CUevent_flags, CUstream};

use super::context::Context;
use crate::copier::{Copier, Link};

/// Bytes of a pinned piece: a fifth of a millisecond on PCIe 4.0.
const PIECE: usize = 4 << 20;

/// Fewer bytes are left to CubeCL: by estimate, asking for their place takes longer than to copy them.
const LEAST: usize = 256 << 10;

/// By device. Never dropped: pinned memory and streams end with the process.
static COPIERS: Mutex<Vec<(usize, Copier<Stream>)>> = Mutex::new(Vec::new());

/// Gets a copier for device `index`, if it has none.
///
/// # Errors
/// The driver gives no stream or no pinned memory: bytes are uploaded by CubeCL then.
pub(super) fn start(index: usize) -> Result<(), String> {
    let mut copiers = COPIERS.lock().unwrap_or_else(PoisonError::into_inner);
    if copiers.iter().all(|(found, _)| *found != index) {
        copiers.push((index, copier(index).map_err(|error| error.to_string())?));
    }
    Ok(())
}

/// A new buffer with these bytes on device `index`; `None`: it has no copier, or is better uploaded to by CubeCL.
///
/// # Errors
/// The device failed.
pub(crate) fn upload<R: Runtime>(
    client: &ComputeClient<R>,
    index: usize,
    bytes: &[u8],
) -> Option<Result<Handle, String>> {
    let client = (client as &dyn Any).downcast_ref::<ComputeClient<CudaRuntime>>()?;
    if bytes.len() < LEAST {
        return None;
    }
    let mut copiers = COPIERS.lock().unwrap_or_else(PoisonError::into_inner);
    let (_, copier) = copiers.iter_mut().find(|(found, _)| *found == index)?;
    Some(fill(copier, client, bytes))
}

fn fill(
    copier: &mut Copier<Stream>,
    client: &ComputeClient<CudaRuntime>,
    bytes: &[u8],
) -> Result<Handle, String> {
    let handle = client.empty(bytes.len());
    let resource = client.get_resource(handle.clone()).map_err(|error| error.to_string())?;
    // Behind the buffer's allocation, and behind what this thread launched with a tensor that had it before.
    cubecl::future::block_on(client.sync()).map_err(|error| error.to_string())?;
    let memory = resource.resource().ptr;
    copier.copy(bytes, Buffer { handle, memory, _resource: Box::new(resource) }).map(|buffer| buffer.handle)
}

fn copier(index: usize) -> Result<Copier<Stream>, DriverError> {
    let context = Context::of(index)?;
    context.enter()?;
    let pieces = [Pinned::new()?, Pinned::new()?];
    let stream = stream::create(stream::StreamKind::NonBlocking)?;
    Ok(Copier::new(Stream { stream, context }, pieces))
}

/// A stream for copies, kept until the process ends.
struct Stream {
    stream: CUstream,
    context: Context,
}

/// A piece of pinned memory.
struct Pinned {
    /// Of [`PIECE`] bytes.
    memory: *mut u8,
    /// Behind the copy that reads it.
    read: CUevent,
}

/// A buffer of the calling thread's pool that nothing else uses.
struct Buffer {
    handle: Handle,
    /// Where it begins.
    memory: u64,
    /// Keeps the memory, of at least as many bytes as the handle, from the pool.
    _resource: Box<dyn Any>,
}

// SAFETY: what the driver hands out may be used by any thread that entered its context.
unsafe impl Send for Stream {}
// SAFETY: as above; the memory is reached through this value alone.
unsafe impl Send for Pinned {}

impl Pinned {
    /// In the context that the calling thread entered.
    fn new() -> Result<Self, DriverError> {
        let read = event::create(CUevent_flags::CU_EVENT_DISABLE_TIMING)?;
        // SAFETY: freed when the value is dropped.
        match unsafe { result::malloc_host(PIECE, 0) } {
            Ok(memory) => {
                // SAFETY: it has as many bytes.
                unsafe { memory.cast::<u8>().write_bytes(0, PIECE) };
                Ok(Self { memory: memory.cast(), read })
            }
            Err(error) => {
                // SAFETY: made above and never recorded.
                _ = unsafe { event::destroy(read) };
                Err(error)
            }
        }
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        // SAFETY: made by `new`, and no copy reads it. A failure cannot be reported from here.
        unsafe {
            _ = event::destroy(self.read);
            _ = result::free_host(self.memory.cast());
        }
    }
}

impl Link for Stream {
    type Piece = Pinned;
    type Place = Buffer;

    fn bytes<'a>(&self, piece: &'a mut Pinned) -> &'a mut [u8] {
        // SAFETY: the memory has as many bytes, all written by `new`, and the value alone reaches it.
        unsafe { std::slice::from_raw_parts_mut(piece.memory, PIECE) }
    }

    fn send(
        &mut self,
        piece: &mut Pinned,
        count: usize,
        place: &mut Buffer,
        offset: usize,
    ) -> Result<(), String> {
        self.context.enter().map_err(said)?;
        let to = place.memory + offset as u64;
        let (read, bytes) = (piece.read, &self.bytes(piece)[..count]);
        // SAFETY: the piece stays as it is until its event has passed, and the place is kept until the stream was waited
        // for; where that fails, both are never freed.
        unsafe {
            result::memcpy_htod_async(to, bytes, self.stream).map_err(said)?;
            event::record(read, self.stream).map_err(said)
        }
    }

    fn wait(&mut self, piece: &mut Pinned) -> Result<(), String> {
        self.context.enter().map_err(said)?;
        // SAFETY: the event is the piece's; one that was never recorded has passed.
        unsafe { event::synchronize(piece.read) }.map_err(said)
    }

    fn wait_for_all(&mut self) -> Result<(), String> {
        self.context.enter().map_err(said)?;
        // SAFETY: the stream is ours.
        unsafe { stream::synchronize(self.stream) }.map_err(said)
    }
}

fn said(error: DriverError) -> String {
    error.to_string()
}
