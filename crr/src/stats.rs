//! Where the time of a command goes (`--stats`): its stages, one after the other.
//!
//! A stage ends where the next one begins, so together they are all of the time, and none is forgotten. Entering one costs
//! a look at the clock.

use anyhow::{Context, Result};
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::{TimeVal, TimeValLike};
use serde::Serialize;
use std::fs::File;
use std::io::Write;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// What a command does at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Stage {
    /// Dump: what is looked at before the tree stands still.
    Look,
    /// Dump: stopping all threads.
    Freeze,
    /// Dump: asking each task for what it has.
    Tasks,
    /// Dump: what tasks have together, and what is in the way.
    Relations,
    /// Dump: finding the pages that have to be stored.
    FindPages,
    /// Dump: having tasks clone themselves (`--snapshot`).
    Clone,
    /// Dump: their contents, while the tree stands still.
    WritePages,
    /// Dump: the rest of them, when it runs on (`--snapshot`).
    CopyPages,
    /// Dump: all other images.
    WriteRecords,
    /// Dump: killing the tree, or letting it go.
    Finish,
    /// Restore: reading and checking the images, all but pages.
    Read,
    /// Restore: looking for what is in the way, and planning.
    Plan,
    /// Restore: checksums of pages that tasks read themselves, and what has to be unpacked.
    CheckPages,
    /// Restore: making and opening files.
    Open,
    /// Restore: making the tasks, which put back what is theirs.
    Rebuild,
    /// Restore: contents of memory that are put in place from outside.
    PutPages,
    /// Restore: taking over all threads, and letting them run.
    TakeOver,
}

/// Stages by the moment that each was entered.
static ENTERED: Mutex<Vec<(Stage, Instant)>> = Mutex::new(Vec::new());

/// Ends the stage before, and begins one.
pub(crate) fn enter(stage: Stage) {
    ENTERED.lock().unwrap_or_else(PoisonError::into_inner).push((stage, Instant::now()));
}

/// What a command did, as `--stats` writes it.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Stats {
    /// `dump`, `pre-dump` or `restore`.
    pub(crate) command: &'static str,
    /// Tasks of the tree, without zombies.
    pub(crate) tasks: u32,
    /// Bytes of all images (dump), or of page contents (restore).
    pub(crate) bytes: u64,
    /// From start to end, in seconds; of a restore, until the tree runs.
    pub(crate) total_seconds: f64,
    /// From the first task stopped to the last resumed or killed, in seconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) frozen_seconds: Option<f64>,
}

/// The whole file.
#[derive(Debug, Serialize)]
struct Written<'a> {
    crr: &'static str,
    #[serde(flatten)]
    stats: &'a Stats,
    stages: Vec<Spent>,
    processor_seconds: ProcessorSeconds,
    /// The largest resident memory of crr itself so far.
    peak_memory_bytes: u64,
}

/// Time spent in a stage, in the order in which they were first entered.
#[derive(Debug, PartialEq, Serialize)]
struct Spent {
    stage: Stage,
    seconds: f64,
}

/// Of crr's own process: what tasks do for it is theirs.
#[derive(Debug, Serialize)]
struct ProcessorSeconds {
    user: f64,
    system: f64,
}

impl Stats {
    /// Writes everything to `file`, if there is one, as JSON. What the command did is done: a file that does not take it is no reason
    /// to fail.
    pub(crate) fn write(&self, file: Option<&File>) {
        if let Some(file) = file {
            self.try_write(file).unwrap_or_else(|e| log::warn!("{e:#}"));
        }
    }

    fn try_write(&self, mut file: &File) -> Result<()> {
        let usage = getrusage(UsageWho::RUSAGE_SELF).context("getrusage")?;
        let seconds =
            |time: TimeVal| Duration::from_micros(time.num_microseconds().unsigned_abs()).as_secs_f64();
        let written = Written {
            crr: env!("CARGO_PKG_VERSION"),
            stats: self,
            stages: spent(&ENTERED.lock().unwrap_or_else(PoisonError::into_inner), Instant::now()),
            processor_seconds: ProcessorSeconds {
                user: seconds(usage.user_time()),
                system: seconds(usage.system_time()),
            },
            peak_memory_bytes: u64::try_from(usage.max_rss()).unwrap_or(0) << 10,
        };
        let mut text = serde_json::to_vec_pretty(&written)?;
        text.push(b'\n');
        file.write_all(&text).context("write statistics")
    }
}

/// Adds up: a stage may be entered more than once, as by a dump that has to begin again.
fn spent(entered: &[(Stage, Instant)], end: Instant) -> Vec<Spent> {
    let ends = entered.iter().skip(1).map(|&(_, at)| at).chain([end]);
    let mut all: Vec<Spent> = Vec::new();
    for (&(stage, at), end) in entered.iter().zip(ends) {
        let seconds = end.saturating_duration_since(at).as_secs_f64();
        match all.iter_mut().find(|spent| spent.stage == stage) {
            Some(spent) => spent.seconds += seconds,
            None => all.push(Spent { stage, seconds }),
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stages_that_are_entered_again_add_up() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let entered =
            [(Stage::Look, at(0)), (Stage::Freeze, at(1)), (Stage::Tasks, at(3)), (Stage::Freeze, at(4))];
        let seconds = |stage, seconds| Spent { stage, seconds };
        assert_eq!(
            spent(&entered, at(10)),
            [seconds(Stage::Look, 1.0), seconds(Stage::Freeze, 8.0), seconds(Stage::Tasks, 1.0)]
        );
    }
}
