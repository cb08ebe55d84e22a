//! `crr pre-dump`.

use super::dirs::{Dirs, Stats};
use super::network::Pages;
use super::rounds::Rounds;
use super::{Outcome, seconds};
use crate::dump::pre_dump::{Options, pre_dump};
use crate::progress::bytes;
use clap::Args;
use images::Pid;
use std::process::ExitCode;
use std::time::Duration;

const EXAMPLES: &str = "\
Example: two rounds while the tree runs, and the dump, which is short:
  crr pre-dump -t 1234 -D 1
  crr pre-dump -t 1234 -D 2 --prev-images-dir ../1
  crr dump     -t 1234 -D 3 --prev-images-dir ../2
  crr restore  -D 3

All directories are needed for the restore. Between two rounds, a process of crr's own (crr keep-track) holds what tells which pages are
written; it ends with the dump, or with the tasks. Before Linux 6.7, soft-dirty bits tell it, and the dump reads all memory to be sure.";

#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct PreDump {
    /// Root of the tree.
    #[arg(short = 't', long, value_name = "PID", value_parser = clap::value_parser!(Pid).range(1..))]
    tree: Pid,

    #[command(flatten)]
    dirs: Dirs,

    #[command(flatten)]
    stats: Stats,

    #[command(flatten)]
    rounds: Rounds,

    #[command(flatten)]
    pages: Pages,

    /// How long stopping the tree may take.
    #[arg(long, value_name = "SECS", default_value = "10", value_parser = seconds)]
    timeout: Duration,
}

impl PreDump {
    pub(super) fn run(&self, level: u8) -> Outcome {
        self.dirs.start(level)?;
        let stats = self.stats.file(&self.dirs)?;
        let destination = self.pages.destination(&self.dirs)?;
        self.rounds.check(&destination)?;
        let report = pre_dump(&Options {
            root: self.tree,
            destination: destination.clone(),
            previous: self.rounds.prev_images_dir.clone(),
            compression: self.rounds.compress,
            direct_io: self.rounds.direct_io,
            timeout: self.timeout,
            progress: level > 0,
        })?;
        self.rounds.dedup(&destination);
        report.stats().write(stats.as_ref());
        log::info!(
            "recorded {} of {} tasks in {:.3} s, frozen for {:.3} s",
            bytes(report.bytes),
            report.tasks,
            report.total.as_secs_f64(),
            report.frozen.as_secs_f64(),
        );
        Ok(ExitCode::SUCCESS)
    }
}
