//! Numbers from a device, asked for now and waited for later.
//!
//! A copy takes its place in the device's queue when it is asked for: later launches do not delay it, and a late wait is
//! short.

use std::pin::Pin;

use burn_cubecl::CubeRuntime;
use burn_cubecl::tensor::CubeTensor;
use cubecl::client::ComputeClient;
use cubecl::server::ServerError;

use crate::device::Reading;
use crate::fault;

type Bytes = Result<Vec<cubecl::bytes::Bytes>, ServerError>;

/// A copy under way. Its future is typed as if it borrowed the client that made it.
struct Copy<R: CubeRuntime> {
    // Dropped first: fields are in the order of their declaration.
    bytes: Pin<Box<dyn Future<Output = Bytes> + Send>>,
    _client: Box<ComputeClient<R>>,
}

/// The values of an f32 tensor without gaps.
pub(crate) fn later<R: CubeRuntime>(numbers: CubeTensor<R>) -> Reading {
    let client = Box::new(numbers.client.clone());
    // Refused launches are reported when the queue is flushed: CUDA flushes on every read, the other runtimes need a
    // call.
    let sent = match R::name(&client) {
        "cuda" => Ok(()),
        _ => client.flush(),
    };
    // SAFETY: the client stays where it is, in its box, and outlives the future that may borrow it: `Copy` holds both, and
    // drops the future first.
    let borrowed: &'static ComputeClient<R> = unsafe { &*std::ptr::from_ref(client.as_ref()) };
    let copy = Copy { bytes: Box::pin(borrowed.read_async(vec![numbers.handle])), _client: client };
    Reading::new(move || {
        let Copy { bytes, _client } = copy;
        let parts = cubecl::future::block_on(bytes);
        // The first failure, rather than its consequences.
        match fault::raised() {
            Some(fault) => return Err(fault),
            None => sent.map_err(|error| error.to_string())?,
        }
        let parts = parts.map_err(|error| error.to_string())?;
        Ok(parts.iter().flat_map(|bytes| bytemuck::pod_collect_to_vec::<u8, f32>(bytes)).collect())
    })
}
