//! `crr keep-track`, which a pre-dump starts: see [`crate::track::keeper`].

use super::Outcome;
use crate::track::keeper::{self, Tracked};
use clap::Args;
use std::process::ExitCode;

/// Its name.
pub(crate) const COMMAND: &str = "keep-track";

#[derive(Debug, Args)]
pub(super) struct KeepTrack {
    /// A task, and the descriptor that was inherited for it.
    #[arg(long = "task", value_name = "PID:START:FD")]
    tasks: Vec<Tracked>,
}

impl KeepTrack {
    pub(super) fn run(&self) -> Outcome {
        keeper::run(&self.tasks)?;
        Ok(ExitCode::SUCCESS)
    }
}
