//! `tune run --ranks`: the processes that a launcher of MPI started, and what its environment says of them.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, ValueEnum};
use tune_ranks::{Launched, Ranks};

use super::environment::variable;
use super::failure::Failure;
use crate::assets::folder::digest;
use crate::run;
use crate::train::budget;
use crate::train::event::{Event, Observer};
use crate::train::team::{Team, TeamError};

/// How long a rank waits for the others.
const SILENCE: Duration = Duration::from_secs(600);

/// Variables with the number of processes, this one's number, and its number on its machine.
const LAUNCHERS: [[&str; 3]; 4] = [
    ["OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_LOCAL_RANK"],
    ["PMI_SIZE", "PMI_RANK", "MPI_LOCALRANKID"],
    ["PMI_SIZE", "PMI_RANK", "PALS_LOCAL_RANKID"],
    ["SLURM_STEP_NUM_TASKS", "SLURM_PROCID", "SLURM_LOCALID"],
];

/// Several processes that train one adapter.
#[derive(Clone, Debug, Default, Args)]
pub struct RanksArguments {
    /// Train together with the other processes of an MPI launcher, as in `mpirun -n 4 tune run RECIPE --ranks mpi`; the
    /// recipe's `train.lanes` are shared among them
    #[arg(long, value_enum, value_name = "CARRIER")]
    pub ranks: Option<Carrier>,
    /// With --ranks: give up after waiting so long for the other ranks, as in 90s or 10m [default: 10m]
    #[arg(long, requires = "ranks", value_name = "TIME", value_parser = budget::parse)]
    pub silence: Option<Duration>,
    /// With --ranks: the MPI library to open [default: the first that is found]
    #[arg(long, requires = "ranks", value_name = "PATH")]
    pub mpi_library: Option<PathBuf>,
}

/// What carries the bytes between ranks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Carrier {
    /// Open MPI, MPICH, or another MPI with the interface of one of them.
    Mpi,
}

/// This process, as its launcher counts.
#[derive(Debug, PartialEq, Eq)]
struct Launch {
    launched: Launched,
    rank: usize,
    local_rank: usize,
}

impl Launch {
    /// By the variables that `lookup` finds.
    fn of(lookup: impl Fn(&str) -> Option<usize>) -> Option<Self> {
        let known = LAUNCHERS.iter().filter_map(|[size, rank, local_rank]| {
            let launched = Launched { variable: size, size: lookup(size)? };
            Some((Self { launched, rank: lookup(rank)?, local_rank: 0 }, lookup(local_rank)))
        });
        let mut known: Vec<_> = known.collect();
        // Of the launchers that share a variable, the one that also has a number for each machine.
        let first = known.first()?.0.launched.variable;
        known.retain(|(launch, _)| launch.launched.variable == first);
        let local_rank = known.iter().find_map(|(_, local_rank)| *local_rank).unwrap_or(0);
        known.into_iter().next().map(|(launch, _)| Self { local_rank, ..launch })
    }

    fn this() -> Option<Self> {
        Self::of(|name| variable(name)?.to_str()?.parse().ok())
    }
}

impl RanksArguments {
    /// Whether this process is a rank that prints nothing but its own failure.
    pub(super) fn is_silent(&self) -> bool {
        self.ranks.is_some() && Launch::this().is_some_and(|launch| launch.rank > 0)
    }

    /// The same arguments, to be typed again.
    pub(super) fn typed(&self) -> Vec<String> {
        let mut words = Vec::new();
        if self.ranks.is_some() {
            words.extend(["--ranks".to_owned(), "mpi".to_owned()]);
        }
        if let Some(library) = &self.mpi_library {
            words.extend(["--mpi-library".to_owned(), library.to_string_lossy().into_owned()]);
        }
        words
    }

    /// The team that this process is to join, if any.
    ///
    /// # Errors
    /// There is no MPI that can be used, or the launcher started several processes that were not told to share.
    pub(super) fn team(&self) -> Result<Option<Team>, Failure> {
        let launch = Launch::this();
        let Some(Carrier::Mpi) = self.ranks else {
            return match launch {
                Some(Launch { launched: Launched { variable, size }, .. }) if size > 1 => {
                    let text = format!(
                        "{variable}={size}: a launcher started this command {size} times, and each would train by itself; add \
                         `--ranks mpi`"
                    );
                    Err(Failure::Run(run::Error::Choice(text)))
                }
                _ => Ok(None),
            };
        };
        let launched = launch.as_ref().map(|launch| &launch.launched);
        let ranks = Ranks::mpi(self.mpi_library.as_deref(), launched, self.silence.unwrap_or(SILENCE));
        let ranks = ranks.map_err(|error| run::Error::from(TeamError::from(error)))?;
        Ok(Some(Team::of(ranks, launch.map_or(0, |launch| launch.local_rank), build())))
    }
}

/// This program: its release, and the hash of its file, for programs of one release may compute differently.
fn build() -> String {
    let file = std::env::current_exe().ok().and_then(|program| digest(&program).ok());
    let hash = file.map_or_else(|| "unreadable".to_owned(), |file| file.sha256.chars().take(16).collect());
    format!("tune {} ({hash})", env!("CARGO_PKG_VERSION"))
}

/// Observes nothing, on all ranks but the first.
pub(super) struct Silent;

impl Observer for Silent {
    fn observe(&mut self, _: &Event<'_>) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn launchers_are_known_by_their_variables() {
        let launch = |set: &[(&str, usize)]| {
            Launch::of(|name| set.iter().find(|(known, _)| *known == name).map(|(_, value)| *value))
        };
        let known = |variable, size, rank, local_rank| {
            Some(Launch { launched: Launched { variable, size }, rank, local_rank })
        };
        assert_eq!(launch(&[]), None);
        // A job's own number of tasks is not that of a step.
        assert_eq!(launch(&[("SLURM_NTASKS", 4), ("SLURM_PROCID", 0)]), None);
        let step = [("SLURM_STEP_NUM_TASKS", 4), ("SLURM_PROCID", 3), ("SLURM_LOCALID", 1)];
        assert_eq!(launch(&step), known("SLURM_STEP_NUM_TASKS", 4, 3, 1));
        let hydra = [("PMI_SIZE", 2), ("PMI_RANK", 1), ("MPI_LOCALRANKID", 1)];
        assert_eq!(launch(&hydra), known("PMI_SIZE", 2, 1, 1));
        assert_eq!(
            launch(&[("PMI_SIZE", 8), ("PMI_RANK", 5), ("PALS_LOCAL_RANKID", 1)]),
            known("PMI_SIZE", 8, 5, 1)
        );
        // Under a launcher that SLURM started on each machine.
        let open =
            [("OMPI_COMM_WORLD_SIZE", 4), ("OMPI_COMM_WORLD_RANK", 2), ("OMPI_COMM_WORLD_LOCAL_RANK", 0)];
        let both: Vec<_> =
            open.into_iter().chain([("SLURM_STEP_NUM_TASKS", 2), ("SLURM_PROCID", 1)]).collect();
        assert_eq!(launch(&both), known("OMPI_COMM_WORLD_SIZE", 4, 2, 0));
    }
}
