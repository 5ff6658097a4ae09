//! Numbers from a device, asked for now and waited for later; and tensors that wait on the host meanwhile.
//!
//! A copy takes its place in the device's queue when it is asked for: later launches do not delay it, and a late wait is
//! short.

use std::pin::Pin;

use burn_cubecl::CubeRuntime;
use burn_cubecl::tensor::CubeTensor;
use burn_tensor::TensorMetadata;
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

/// The bytes of a tensor without gaps, asked for now.
fn bytes_of<R: CubeRuntime>(
    tensor: CubeTensor<R>,
) -> impl FnOnce() -> Result<Vec<cubecl::bytes::Bytes>, String> {
    let client = Box::new(tensor.client.clone());
    // Refused launches are reported when the queue is flushed: CUDA flushes on every read, the other runtimes need a
    // call.
    let sent = match R::name(&client) {
        "cuda" => Ok(()),
        _ => client.flush(),
    };
    // SAFETY: the client stays where it is, in its box, and outlives the future that may borrow it: `Copy` holds both, and
    // drops the future first.
    let borrowed: &'static ComputeClient<R> = unsafe { &*std::ptr::from_ref(client.as_ref()) };
    let copy = Copy { bytes: Box::pin(borrowed.read_async(vec![tensor.handle])), _client: client };
    move || {
        let Copy { bytes, _client } = copy;
        let parts = cubecl::future::block_on(bytes);
        // The first failure, rather than its consequences.
        match fault::raised() {
            Some(fault) => return Err(fault),
            None => sent.map_err(|error| error.to_string())?,
        }
        parts.map_err(|error| error.to_string())
    }
}

/// The values of an f32 tensor without gaps.
pub(crate) fn later<R: CubeRuntime>(numbers: CubeTensor<R>) -> Reading {
    let bytes = bytes_of(numbers);
    Reading::new(move || Ok(bytes()?.iter().flat_map(|bytes| bytemuck::pod_collect_to_vec(bytes)).collect()))
}

/// A tensor without gaps that is copied to the host now, and back when it is asked for. CUDA's copies go to pinned memory.
pub(crate) fn parked<R: CubeRuntime>(
    tensor: CubeTensor<R>,
) -> impl FnOnce() -> Result<CubeTensor<R>, String> {
    let (client, device) = (tensor.client.clone(), tensor.device.clone());
    let (shape, dtype) = (tensor.shape(), tensor.dtype);
    let size = shape.num_elements() * dtype.size();
    let bytes = bytes_of(tensor);
    move || {
        let parts = bytes()?;
        // The buffer may be longer than the tensor.
        let rows = parts.first().and_then(|bytes| bytes.get(..size));
        let rows = rows.ok_or_else(|| format!("{size} bytes were copied to the host, and fewer came"))?;
        let handle = client.create_from_slice(rows);
        Ok(CubeTensor::new_contiguous(client, device, shape, handle, dtype))
    }
}
