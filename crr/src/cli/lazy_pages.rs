//! `crr lazy-pages`, which a restore starts: see [`crate::lazy`].

use super::Outcome;
use crate::lazy::{self, Given};
use crate::sys::process;
use crate::track::keeper::Tracked;
use clap::Args;
use std::process::ExitCode;

/// Its name.
pub(crate) const COMMAND: &str = "lazy-pages";

#[derive(Debug, Args)]
pub(super) struct LazyPages {
    /// The page file, as all descriptors inherited.
    #[arg(long, value_name = "FD")]
    pages: i32,

    /// What is to be brought.
    #[arg(long, value_name = "FD")]
    work: i32,

    /// Who is told that pages come from now on.
    #[arg(long, value_name = "FD")]
    ready: i32,

    /// A task, and its userfaultfd or -1.
    #[arg(long = "task", value_name = "PID:START:FD")]
    tasks: Vec<Tracked>,
}

impl LazyPages {
    pub(super) fn run(&self, level: u8) -> Outcome {
        crate::log::start(None, level)?;
        let descriptors = self.tasks.iter().map(|tracked| tracked.fd).filter(|&fd| fd >= 0);
        lazy::run(Given {
            pages: process::own_fd(self.pages),
            work: process::own_fd(self.work),
            ready: process::own_fd(self.ready),
            tasks: self.tasks.clone(),
            descriptors: descriptors.map(process::own_fd).collect(),
        })?;
        Ok(ExitCode::SUCCESS)
    }
}
