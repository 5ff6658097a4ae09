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
    /// The ranks are not the same program.
    #[error("rank {rank} is {other}, rank 0 {first}")]
    OtherBuild {
        /// The first rank that differs.
        rank: usize,
        /// What it says it is.
        other: String,
        /// What rank 0 says.
        first: String,
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
    /// This program, its release and its bytes.
    build: String,
    /// The exchange is over: a rank gave up, or does not answer.
    is_over: Cell<bool>,
    /// The first rank gave up itself, and reports why.
    first_gave_up: Cell<bool>,
}

impl Team {
    /// A process by itself.
    pub fn alone() -> Self {
        Self::of(Ranks::one(), 0, String::new())
    }

    /// The team of `ranks`. `build` tells programs apart; `local_rank` is the number of this process on its machine.
    pub fn of(ranks: Ranks, local_rank: usize, build: String) -> Self {
        Self { ranks, local_rank, build, is_over: Cell::new(false), first_gave_up: Cell::new(false) }
    }

    /// Makes sure that all ranks are the same program, before anything else is exchanged: another release may exchange
    /// something else. The form of this message, bare text, is that of every release.
    ///
    /// # Errors
    /// [`TeamError::OtherBuild`], on every rank.
    pub fn meet(&self) -> Result<(), TeamError> {
        let builds = self.checked(self.ranks.gather(self.build.as_bytes()))?;
        let Some(error) = other_build(&builds) else { return Ok(()) };
        self.is_over.set(true);
        self.first_gave_up.set(true);
        Err(error)
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

    /// With how many ranks this one, which computes on `device`, shares memory.
    ///
    /// # Errors
    /// [`TeamError`]: a rank gave up, or does not answer.
    pub fn neighbours(&self, device: &str) -> Result<Neighbours, TeamError> {
        let places = self.gather([self.ranks.machine().as_str(), device].join("\n").as_bytes())?;
        Ok(Neighbours::of(&places, self.rank()))
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

/// How many ranks there are, and how many of them share memory with one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Neighbours {
    /// All ranks.
    pub ranks: usize,
    /// Those of its machine, itself among them.
    pub on_machine: u64,
    /// Those of its device, itself among them.
    pub on_device: u64,
}

impl Neighbours {
    /// Of a process by itself.
    pub const NONE: Self = Self { ranks: 1, on_machine: 1, on_device: 1 };

    /// Of `rank` among all; the place of each is its machine and its device, in two lines.
    fn of(places: &[Vec<u8>], rank: usize) -> Self {
        fn machine(place: &[u8]) -> Option<&[u8]> {
            place.split(|byte| *byte == b'\n').next()
        }
        let own = &places[rank];
        let count =
            |is_near: &dyn Fn(&Vec<u8>) -> bool| places.iter().filter(|place| is_near(place)).count() as u64;
        Self {
            ranks: places.len(),
            on_machine: count(&|place| machine(place) == machine(own)),
            on_device: count(&|place| place == own),
        }
    }
}

fn other_build(builds: &[Vec<u8>]) -> Option<TeamError> {
    let (first, rest) = builds.split_first()?;
    let at = rest.iter().position(|build| build != first)?;
    let text = |build: &[u8]| String::from_utf8_lossy(build).into_owned();
    Some(TeamError::OtherBuild { rank: at + 1, other: text(&rest[at]), first: text(first) })
}

/// Numbers as bytes of a message.
pub(super) fn to_bytes(numbers: &[f32]) -> Vec<u8> {
    numbers.iter().flat_map(|number| number.to_le_bytes()).collect()
}

/// The numbers of [`to_bytes`].
pub(super) fn from_bytes(bytes: &[u8]) -> Vec<f32> {
    bytes.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()
}

/// A part of a message, with its length before it.
pub(super) fn framed(part: &[u8]) -> Vec<u8> {
    [&(part.len() as u64).to_le_bytes(), part].concat()
}

/// The next part of a message, which is cut off where the message is; `rest` begins behind it.
pub(super) fn next_part<'a>(rest: &mut &'a [u8]) -> &'a [u8] {
    let Some((length, behind)) = rest.split_first_chunk() else { return &[] };
    let length = usize::try_from(u64::from_le_bytes(*length)).unwrap_or(usize::MAX);
    let (part, behind) = behind.split_at(length.min(behind.len()));
    *rest = behind;
    part
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_come_as_they_went_and_end_with_their_message() {
        let message = [framed(b"one"), framed(b""), framed(b"three")].concat();
        let mut rest = &message[..message.len() - 2];
        let parts: Vec<&[u8]> = (0..4).map(|_| next_part(&mut rest)).collect();
        assert_eq!(parts, [b"one".as_slice(), b"", b"thr", b""]);
    }

    #[test]
    fn a_process_by_itself_agrees_with_itself_until_it_gives_up() {
        let team = Team::alone();
        assert_eq!(team.gather(b"x"), Ok(vec![b"x".to_vec()]));
        team.give_up("no more", 3);
        assert!(team.is_over.get());
        team.close();
    }

    #[test]
    fn another_build_is_named_with_what_it_says_of_itself() {
        let found = |builds: &[&str]| {
            other_build(&builds.iter().map(|build| build.as_bytes().to_vec()).collect::<Vec<_>>())
        };
        assert_eq!(found(&["tune 1 (a)"; 3]), None);
        let error = found(&["tune 1 (a)", "tune 1 (a)", "tune 2 (b)", ""]).unwrap();
        assert_eq!(error.to_string(), "rank 2 is tune 2 (b), rank 0 tune 1 (a)");
    }

    #[test]
    fn ranks_share_memory_with_those_of_their_machine_and_device() {
        let of = |places: &[&str]| -> Vec<(u64, u64)> {
            let places: Vec<Vec<u8>> = places.iter().map(|place| place.as_bytes().to_vec()).collect();
            let found = (0..places.len()).map(|rank| Neighbours::of(&places, rank));
            found.map(|found| (found.on_machine, found.on_device)).collect()
        };
        assert_eq!(Team::alone().neighbours("cpu"), Ok(Neighbours::NONE));
        assert_eq!(of(&["one\ncpu", "one\ncpu", "two\ncpu"]), [(2, 2), (2, 2), (1, 1)]);
        let cards = ["one\ncuda:0", "one\ncuda:1", "two\ncuda:0", "two\ncuda:0"];
        assert_eq!(of(&cards), [(2, 1), (2, 1), (2, 2), (2, 2)]);
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
