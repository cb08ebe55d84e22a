//! `crr completions` and `crr man`: generated from the definitions that are parsed with.

use super::{Cli, Outcome, print};
use anyhow::Context;
use clap::{Args, CommandFactory};
use clap_complete::Shell;
use std::path::PathBuf;
use std::process::ExitCode;

#[derive(Debug, Args)]
#[command(after_help = "Example:\n  crr completions bash > /usr/share/bash-completion/completions/crr")]
pub(super) struct Completions {
    /// The shell.
    shell: Shell,
}

impl Completions {
    pub(super) fn run(&self) -> Outcome {
        let mut script = Vec::new();
        clap_complete::generate(self.shell, &mut Cli::command(), "crr", &mut script);
        print(std::str::from_utf8(&script)?)
    }
}

#[derive(Debug, Args)]
#[command(after_help = "Example:\n  crr man /usr/share/man/man1")]
pub(super) struct Man {
    /// The directory to write to; it must exist.
    dir: PathBuf,
}

impl Man {
    pub(super) fn run(&self) -> Outcome {
        clap_mangen::generate_to(Cli::command(), &self.dir)
            .with_context(|| format!("manual pages in {}", self.dir.display()))?;
        Ok(ExitCode::SUCCESS)
    }
}
