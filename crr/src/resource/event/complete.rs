//! The last of event files, when every thread of the tree is held: timers run, epolls watch, owners are told.
//!
//! In this order: an epoll finds its files as ready as they were; owners exist by now, and nothing that is done to
//! files here is worth a signal to them.

use super::{owner, timer, watch};
use crate::fault::{self, Point};
use anyhow::{Context, Result};
use images::file::{Files, Target};
use images::task::Task;
use images::{DescriptionId, Pid};
use std::os::fd::BorrowedFd;

/// Does it. `file` gives a description, `group` how a process group is called here.
///
/// # Errors
/// Names the file and what it does not take.
pub(crate) fn complete<'a>(
    files: &Files,
    tasks: &[Task],
    file: impl Fn(DescriptionId) -> BorrowedFd<'a>,
    group: impl Fn(Pid) -> Pid,
) -> Result<()> {
    for (id, description) in (0..).map(DescriptionId).zip(&files.descriptions) {
        if let Target::Timerfd(record) = &description.target {
            timer::restore(file(id), record).with_context(|| format!("timerfd {id}"))?;
        }
    }
    fault::point(Point::CompleteEvents).context("have epolls watch")?;
    watch::restore(files, &file)?;
    owner::restore(files, tasks, &file, &group)
}
