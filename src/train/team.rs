//! The ranks that train one adapter together, and how they agree.
//!
//! Every exchange begins with a message of each rank, gathered by all: what it contributes, or why it gives up. A rank that
//! fails says so once, where the others gather next, and all of them end there. Before a process ends it waits for the
//! others ([`Team::close`]), since a launcher ends the ranks that remain when the first is gone.

use std::cell::Cell;

use tune_ranks::Ranks;

/// The first byte of a message.
const CONTRIBUTES: u8 = 0;
const GIVES_UP: u8 = 1;

/// Why the ranks cannot go on together.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TeamError {
    /// Another rank gave up.
    #[error("rank {rank}: {message}")]
    Elsewhere {
        /// Its number.
        rank: usize,
        /// Its reason.
        message: String,
        /// The exit code that it ends with.
        exit: u8,
    },
    /// The ranks have different adapters after the same step.
    #[error(
        "after step {step} the adapter of rank {rank} differs from that of rank 0: their processors or drivers compute \
         differently"
    )]
    Drifted {
        /// Steps done.
        step: u64,
        /// The first rank that differs.
        rank: usize,
    },
    /// The ranks cannot start, or the exchange failed.
    #[error(transparent)]
    Ranks(#[from] tune_ranks::Error),
}

/// The ranks of a run; a process by itself is a team of one.
pub struct Team {
    ranks: Ranks,
    /// The number of this process among those of its machine.
    local_rank: usize,
    /// The exchange is over: a rank gave up, or does not answer.
    is_over: Cell<bool>,
    /// The first rank gave up itself, and reports why.
    first_gave_up: Cell<bool>,
}

impl Team {
    /// A process by itself.
    pub fn alone() -> Self {
        Self::of(Ranks::one(), 0)
    }

    /// The team of `ranks`.
    pub fn of(ranks: Ranks, local_rank: usize) -> Self {
        Self { ranks, local_rank, is_over: Cell::new(false), first_gave_up: Cell::new(false) }
    }

    /// The number of this process, from 0.
    pub fn rank(&self) -> usize {
        self.ranks.rank()
    }

    /// How many there are.
    pub fn size(&self) -> usize {
        self.ranks.size()
    }

    /// Whether this process works by itself.
    pub fn is_alone(&self) -> bool {
        self.size() == 1
    }

    /// Whether this rank owns the run folder, observes, samples and judges.
    pub fn is_first(&self) -> bool {
        self.rank() == 0
    }

    /// Whether this rank reports its own failure: the first rank does not fail alike.
    pub fn reports(&self) -> bool {
        self.is_first() || !self.first_gave_up.get()
    }

    /// The number of this process among those of its machine.
    pub fn local_rank(&self) -> usize {
        self.local_rank
    }

    /// The MPI that connects the ranks, in its own words.
    pub fn library(&self) -> Option<&str> {
        self.ranks.library()
    }

    /// What all ranks contribute, in their order.
    ///
    /// # Errors
    /// [`TeamError`]: a rank gave up, or does not answer.
    pub fn gather(&self, mine: &[u8]) -> Result<Vec<Vec<u8>>, TeamError> {
        self.exchange([&[CONTRIBUTES], mine].concat())
    }

    /// Tells the others why this rank gives up, with the exit code that all end with. They learn it where they gather
    /// next. Does nothing once the exchange is over.
    pub fn give_up(&self, message: &str, exit: u8) {
        if !self.is_over.get() {
            // Another's reason does not replace the own one.
            let _ = self.exchange([&[GIVES_UP, exit], message.as_bytes()].concat());
        }
    }

    fn exchange(&self, message: Vec<u8>) -> Result<Vec<Vec<u8>>, TeamError> {
        let messages = self.checked(self.ranks.gather(&message))?;
        let mut contributions = Vec::with_capacity(messages.len());
        let mut failure = None;
        for (rank, message) in messages.into_iter().enumerate() {
            match message.as_slice() {
                [CONTRIBUTES, contribution @ ..] => contributions.push(contribution.to_vec()),
                [_, exit, text @ ..] => {
                    let message = String::from_utf8_lossy(text).into_owned();
                    failure.get_or_insert(TeamError::Elsewhere { rank, message, exit: *exit });
                    self.first_gave_up.set(self.first_gave_up.get() || rank == 0);
                }
                _ => {}
            }
        }
        match failure {
            None => Ok(contributions),
            Some(failure) => {
                self.is_over.set(true);
                Err(failure)
            }
        }
    }

    /// The first rank's bytes, on every rank.
    ///
    /// # Errors
    /// [`TeamError::Ranks`].
    pub fn broadcast(&self, bytes: Vec<u8>) -> Result<Vec<u8>, TeamError> {
        self.checked(self.ranks.broadcast(bytes))
    }

    /// The sum of all ranks' values, added in a fixed order. All have gathered just before, so that all take part.
    ///
    /// # Errors
    /// [`TeamError::Ranks`].
    pub fn sum(&self, values: Vec<f32>) -> Result<Vec<f32>, TeamError> {
        self.checked(self.ranks.sum(values))
    }

    /// Waits until all ranks have done their last work. Without an answer this process ends all the same.
    pub fn close(&self) {
        let _ = self.ranks.gather(&[]);
    }

    fn checked<T>(&self, exchanged: Result<T, tune_ranks::Error>) -> Result<T, TeamError> {
        if exchanged.is_err() {
            self.is_over.set(true);
        }
        Ok(exchanged?)
    }
}

/// Numbers as bytes of a message.
pub(super) fn to_bytes(numbers: &[f32]) -> Vec<u8> {
    numbers.iter().flat_map(|number| number.to_le_bytes()).collect()
}

/// The numbers of [`to_bytes`].
pub(super) fn from_bytes(bytes: &[u8]) -> Vec<f32> {
    bytes.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_by_itself_agrees_with_itself_until_it_gives_up() {
        let team = Team::alone();
        assert_eq!(team.gather(b"x"), Ok(vec![b"x".to_vec()]));
        team.give_up("no more", 3);
        assert!(team.is_over.get());
        team.close();
    }

    #[test]
    fn numbers_survive_as_bytes() {
        let numbers = [0.0, -0.0, 1.5, f32::INFINITY, f32::MIN_POSITIVE];
        assert_eq!(from_bytes(&to_bytes(&numbers)).map_bits(), numbers.to_vec().map_bits());
    }

    trait Bits {
        fn map_bits(self) -> Vec<u32>;
    }

    impl Bits for Vec<f32> {
        fn map_bits(self) -> Vec<u32> {
            self.into_iter().map(f32::to_bits).collect()
        }
    }
}
