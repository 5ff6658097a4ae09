//! Ranks: processes that train one adapter together, on one machine or many, as an MPI launcher starts them.
//!
//! MPI moves bytes and nothing else. Every addition is made here, in a fixed order ([`tree`]), so that a sum has the same
//! bits with every MPI, every network and every algorithm that it chooses. The library is opened when ranks are asked for:
//! a program with this crate starts and works where there is no MPI. Waiting ends by a deadline of our own, for MPI itself
//! waits for ever.
//!
//! Knows no tensors, no training and no environment.

mod error;
#[cfg(all(unix, target_pointer_width = "64"))]
mod mpi;
pub mod tree;

use std::path::Path;
use std::time::Duration;

pub use error::Error;
#[cfg(all(unix, target_pointer_width = "64"))]
use mpi::Mpi;

/// Bytes that a rank contributes to one call of MPI, at most: far below the 2 GiB that its counts can name. What is larger
/// goes in pieces.
pub const PIECE: usize = 64 << 20;

/// What the launcher's environment says of the processes that it started.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Launched {
    /// The variable that names their number.
    pub variable: &'static str,
    /// Their number.
    pub size: usize,
}

/// This process among those that work together.
pub struct Ranks {
    rank: usize,
    size: usize,
    carrier: Carrier,
}

/// What moves the bytes. Another carrier is another variant, with the same three operations: `all_gather`, `all_to_all` and
/// `broadcast`; all of it has to end by a deadline.
enum Carrier {
    One,
    #[cfg(all(unix, target_pointer_width = "64"))]
    Mpi(Mpi),
}

impl Ranks {
    /// A process by itself.
    pub fn one() -> Self {
        Self { rank: 0, size: 1, carrier: Carrier::One }
    }

    /// The ranks that an MPI launcher started, of which this process is one. Called once, on the thread that makes all
    /// later calls.
    ///
    /// `library` is opened instead of the first that is found. `launched` is what the launcher says of itself, compared with
    /// what the library sees. A rank that waits longer than `silence` for the others gives up.
    ///
    /// # Errors
    /// There is no MPI that can be opened, or the launcher belongs to another one.
    pub fn mpi(
        library: Option<&Path>,
        launched: Option<&Launched>,
        silence: Duration,
    ) -> Result<Self, Error> {
        #[cfg(all(unix, target_pointer_width = "64"))]
        {
            let mpi = Mpi::start(library, launched, silence)?;
            let (rank, size) = (mpi.rank(), mpi.size());
            Ok(Self { rank, size, carrier: Carrier::Mpi(mpi) })
        }
        #[cfg(not(all(unix, target_pointer_width = "64")))]
        {
            let _ = (library, launched, silence);
            Err(Error::Unsupported)
        }
    }

    /// The number of this process, from 0.
    pub fn rank(&self) -> usize {
        self.rank
    }

    /// How many ranks there are.
    pub fn size(&self) -> usize {
        self.size
    }

    /// The MPI that carries the bytes, in its own words; `None` without one.
    pub fn library(&self) -> Option<&str> {
        match &self.carrier {
            Carrier::One => None,
            #[cfg(all(unix, target_pointer_width = "64"))]
            Carrier::Mpi(mpi) => Some(mpi.library()),
        }
    }

    /// The name of the machine that this process is on; empty for a process by itself.
    pub fn machine(&self) -> String {
        match &self.carrier {
            Carrier::One => String::new(),
            #[cfg(all(unix, target_pointer_width = "64"))]
            Carrier::Mpi(mpi) => mpi.machine(),
        }
    }

    /// The messages of all ranks, in their order. Messages may differ in length.
    ///
    /// # Errors
    /// The other ranks do not answer, or MPI fails; every later call then fails too.
    pub fn gather(&self, message: &[u8]) -> Result<Vec<Vec<u8>>, Error> {
        if self.size == 1 {
            return Ok(vec![message.to_vec()]);
        }
        let lengths = self.all_gather((message.len() as u64).to_le_bytes().to_vec())?;
        let lengths: Vec<usize> =
            lengths.as_chunks::<8>().0.iter().map(|length| u64::from_le_bytes(*length) as usize).collect();
        let longest = lengths.iter().copied().max().unwrap_or(0);
        let mut messages = vec![Vec::new(); self.size];
        for start in (0..longest).step_by(PIECE / self.size) {
            let width = (longest - start).min(PIECE / self.size);
            let mut piece: Vec<u8> = message.iter().skip(start).take(width).copied().collect();
            piece.resize(width, 0);
            let gathered = self.all_gather(piece)?;
            for ((message, length), part) in messages.iter_mut().zip(&lengths).zip(gathered.chunks(width)) {
                message.extend_from_slice(&part[..length.saturating_sub(start).min(width)]);
            }
        }
        Ok(messages)
    }

    /// Copies the first rank's bytes to all others.
    ///
    /// # Errors
    /// As [`Self::gather`].
    pub fn broadcast(&self, bytes: Vec<u8>) -> Result<Vec<u8>, Error> {
        if self.size == 1 {
            return Ok(bytes);
        }
        let lengths = self.gather(&(bytes.len() as u64).to_le_bytes())?;
        let length = lengths[0].first_chunk().map_or(0, |length| u64::from_le_bytes(*length) as usize);
        let mut copied = Vec::with_capacity(length);
        for start in (0..length).step_by(PIECE) {
            let width = (length - start).min(PIECE);
            let mut piece: Vec<u8> = bytes.iter().skip(start).take(width).copied().collect();
            piece.resize(width, 0);
            match &self.carrier {
                Carrier::One => copied.extend(piece),
                #[cfg(all(unix, target_pointer_width = "64"))]
                Carrier::Mpi(mpi) => copied.extend(mpi.broadcast(piece)?),
            }
        }
        Ok(copied)
    }

    /// The sum of all ranks' values, the same on each: added in the order of a [`tree`] over the ranks. All have the same
    /// number of values.
    ///
    /// # Errors
    /// As [`Self::gather`].
    pub fn sum(&self, mut values: Vec<f32>) -> Result<Vec<f32>, Error> {
        if self.size == 1 {
            return Ok(values);
        }
        let whole = values.len();
        // Each rank adds a slice of its own.
        for start in (0..whole).step_by(PIECE / size_of::<f32>()) {
            let end = whole.min(start + PIECE / size_of::<f32>());
            let mut piece = values[start..end].to_vec();
            piece.resize((end - start).next_multiple_of(self.size), 0.0);
            let mut slices = self.all_to_all(piece)?;
            tree::add_slices(&mut slices, self.size);
            slices.truncate(slices.len() / self.size);
            let sum = self.all_gather(slices)?;
            values[start..end].copy_from_slice(&sum[..end - start]);
        }
        Ok(values)
    }

    /// The ranks' parts, one behind the other.
    fn all_gather<T: Copy + Default>(&self, mine: Vec<T>) -> Result<Vec<T>, Error> {
        match &self.carrier {
            Carrier::One => Ok(mine),
            #[cfg(all(unix, target_pointer_width = "64"))]
            Carrier::Mpi(mpi) => mpi.all_gather(mine),
        }
    }

    /// Slice `r` of `mine` goes to rank `r`; returns what the ranks sent here, one behind the other.
    fn all_to_all<T: Copy + Default>(&self, mine: Vec<T>) -> Result<Vec<T>, Error> {
        match &self.carrier {
            Carrier::One => Ok(mine),
            #[cfg(all(unix, target_pointer_width = "64"))]
            Carrier::Mpi(mpi) => mpi.all_to_all(mine),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_by_itself_exchanges_with_itself() {
        let ranks = Ranks::one();
        assert_eq!((ranks.rank(), ranks.size(), ranks.library()), (0, 1, None));
        assert_eq!(ranks.gather(b"x").unwrap(), [b"x"]);
        assert_eq!(ranks.broadcast(vec![1, 2]).unwrap(), [1, 2]);
        assert_eq!(ranks.sum(vec![1.0, -0.0]).unwrap(), [1.0, -0.0]);
    }

    #[test]
    fn a_library_that_is_missing_is_named() {
        let found = Ranks::mpi(Some(Path::new("/no/such/libmpi.so")), None, Duration::from_secs(1));
        let message = found.err().unwrap().to_string();
        assert!(cfg!(windows) || message.contains("/no/such/libmpi.so"), "{message}");
    }
}
