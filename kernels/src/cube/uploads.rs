//! Lists of numbers that many launches read, sent to the device once: what is kept of them lives as long as the value that
//! they follow from, such as the documents of a micro-batch.
//!
//! An upload is staged by the host for every launch that asks for one, and after some dozens of them CubeCL waits for the
//! device; one for each layer would make a fast card wait for the host.

use std::any::TypeId;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use burn_cubecl::CubeRuntime;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;
use cubecl::server::Handle;
use cubecl_common::device::{Device, DeviceId};

/// What a list is about: a name, and the numbers that it depends on beside the value that it follows from.
pub(crate) type About = (&'static str, [usize; 3]);

/// The lists of one value. Clones share them; they are no part of what the value is, so all are equal.
#[derive(Clone, Default)]
pub(crate) struct Uploads(Kept<(TypeId, DeviceId, About), (Handle, usize)>);

impl Uploads {
    /// The list `about` on the device of `like`: as it was sent, or now made and sent. For [`argument`].
    pub(crate) fn list<R: CubeRuntime>(
        &self,
        like: &CubeTensor<R>,
        about: About,
        make: impl FnOnce() -> Vec<u32>,
    ) -> (Handle, usize) {
        self.0.get((TypeId::of::<R>(), like.device.to_id(), about), || {
            let words = make();
            (like.client.create_from_slice(bytemuck::cast_slice(&words)), words.len())
        })
    }
}

/// A list of [`Uploads`] as a kernel's argument.
pub(crate) fn argument<R: CubeRuntime>((list, words): &(Handle, usize)) -> ArrayArg<R> {
    // SAFETY: the buffer was made of so many words.
    unsafe { ArrayArg::from_raw_parts(list.clone(), *words) }
}

impl PartialEq for Uploads {
    fn eq(&self, _other: &Self) -> bool {
        true
    }
}

impl Eq for Uploads {}

impl fmt::Debug for Uploads {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Uploads")
    }
}

/// Values by keys, each made when it is first asked for.
struct Kept<K, V>(Arc<Mutex<Vec<(K, V)>>>);

impl<K: PartialEq, V: Clone> Kept<K, V> {
    fn get(&self, key: K, make: impl FnOnce() -> V) -> V {
        // What was kept when a thread panicked is whole: an entry is pushed at once.
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, value)) = kept.iter().find(|(known, _)| *known == key) {
            return value.clone();
        }
        let value = make();
        kept.push((key, value.clone()));
        value
    }
}

impl<K, V> Clone for Kept<K, V> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<K, V> Default for Kept<K, V> {
    fn default() -> Self {
        Self(Arc::default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_is_made_once_for_all_clones() {
        let kept = Kept::default();
        let mut made = 0;
        for key in [1, 2, 1, 2, 1] {
            let value = kept.clone().get(key, || {
                made += 1;
                10 * key
            });
            assert_eq!(value, 10 * key);
        }
        assert_eq!(made, 2);
    }
}
