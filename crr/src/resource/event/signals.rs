//! signalfds in epolls: whose signals an epoll is told of.
//!
//! A signalfd tells whoever reads or polls it of that task's own signals. An epoll hangs itself on the queue of the task
//! that makes the call to EPOLL_CTL_ADD (`signalfd_poll`, fs/signalfd.c). So that task has to make it again, and no other
//! may even look at the epoll: what is not ready for the one who looks is taken off the list of what is.

use images::event::Watch;
use images::file::{Files, Target};
use images::task::Task;
use images::{DescriptionId, Pid};
use std::collections::BTreeMap;

/// A watch that a task adds by itself.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Own {
    /// Its number for the epoll.
    pub(crate) epoll: u32,
    pub(crate) watch: Watch,
}

/// Whether a description is a signalfd.
pub(crate) fn is_signalfd(files: &[images::file::Description], id: DescriptionId) -> bool {
    files.get(id.0 as usize).is_some_and(|file| matches!(file.target, Target::Signalfd(_)))
}

/// The task that added a signalfd to an epoll, by its index, and its number for the epoll: the only one that has the
/// epoll, if it still has the signalfd under the number it was added by.
pub(crate) fn adder(tasks: &[Task], epoll: DescriptionId, watch: &Watch) -> Option<(usize, u32)> {
    let mut holders = tasks.iter().enumerate().filter_map(|(index, task)| {
        let entry = task.fds.iter().find(|entry| entry.description == epoll)?;
        Some((index, entry.fd.0))
    });
    let (index, number) = holders.next()?;
    let shared = |pid: Pid| tasks.iter().any(|task| task.shares.files == Some(pid));
    if holders.next().is_some() || shared(tasks[index].pid) {
        return None;
    }
    let has =
        |entry: &images::file::FdEntry| (entry.fd.0, entry.description) == (watch.fd, watch.description);
    tasks[index].fds.iter().any(has).then_some((index, number))
}

/// The watches that tasks have to add, by the index of the task.
pub(crate) fn by_task(files: &Files, tasks: &[Task]) -> BTreeMap<usize, Vec<Own>> {
    let mut by_task: BTreeMap<usize, Vec<Own>> = BTreeMap::new();
    for (id, description) in (0..).map(DescriptionId).zip(&files.descriptions) {
        let Target::Epoll(epoll) = description.target else { continue };
        for &watch in &files.epolls[epoll as usize].watches {
            if is_signalfd(&files.descriptions, watch.description)
                && let Some((task, epoll)) = adder(tasks, id, &watch)
            {
                by_task.entry(task).or_default().push(Own { epoll, watch });
            }
        }
    }
    by_task
}
