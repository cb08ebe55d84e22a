//! The descriptors of a tree and what each leads to, as procfs shows it: read once, right after the tree has stopped, and before anything else is opened,
//! since opening a file can mean waiting for a task that stands still ([`fanotify::refuse_judges`](crate::resource::fanotify::refuse_judges)).

use crate::dump::freeze::FrozenTask;
use crate::parallel;
use crate::proc::{Dir, is_gone};
use crate::ptrace::Stopped;
use crate::resource::event::Kind;
use crate::resource::path::link_of;
use crate::sys::kcmp::{self, kcmp};
use anyhow::{Context, Result};
use images::Pid;
use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::io::ErrorKind;

/// A descriptor, and what its link shows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Link {
    pub(crate) fd: u32,
    pub(crate) target: Vec<u8>,
}

/// Those of a stopped tree, by thread: one for each task, and others that have descriptors of their own.
#[derive(Debug, Default)]
pub(crate) struct Links(BTreeMap<Pid, Vec<Link>>);

impl Links {
    /// Reads all of them. A task that is gone has none.
    ///
    /// # Errors
    /// If threads cannot be compared, or links not be read.
    pub(crate) fn read(tasks: &[FrozenTask]) -> Result<Self> {
        let mut with_own = Vec::with_capacity(tasks.len());
        for task in tasks {
            let deputy = task.deputy();
            with_own.push(deputy);
            for tid in task.threads.iter().map(Stopped::tid).filter(|&tid| tid != deputy) {
                let order = kcmp(kcmp::Kind::Files, (deputy, 0), (tid, 0));
                if order.context("compare file descriptors of threads")? != Ordering::Equal {
                    with_own.push(tid);
                }
            }
        }
        let look = |&tid: &Pid| {
            let links = match Dir::task(tid).and_then(|dir| dir.dir("fd")) {
                Ok(dir) => list(&dir),
                Err(e) => Err(e.into()),
            };
            match links {
                Err(e) if e.downcast_ref().is_some_and(is_gone) => Ok((tid, Vec::new())),
                links => Ok((tid, links.with_context(|| format!("thread {tid}"))?)),
            }
        };
        Ok(Self(parallel::map(&with_own, look)?.into_iter().collect()))
    }

    /// The fanotify groups among them, by thread and number.
    pub(crate) fn fanotify_groups(&self) -> Vec<(Pid, u32)> {
        let is_group = |link: &&Link| Kind::of(&link.target) == Some(Kind::Fanotify);
        let of_thread = |(&tid, links): (&Pid, &Vec<Link>)| {
            links.iter().filter(is_group).map(|link| (tid, link.fd)).collect::<Vec<_>>()
        };
        self.0.iter().flat_map(of_thread).collect()
    }

    /// Those of a thread; none where it shares them with the first one of its task.
    pub(crate) fn of(&self, tid: Pid) -> &[Link] {
        self.0.get(&tid).map_or(&[], Vec::as_slice)
    }

    /// Those of a thread, if they were read.
    pub(super) fn take(&mut self, tid: Pid) -> Option<Vec<Link>> {
        self.0.remove(&tid)
    }
}

/// Reads those in the directory `fd` of a task or thread, by rising number. One that is closed meanwhile, by somebody who runs with the same table, is
/// left out.
pub(super) fn list(fd_dir: &Dir) -> Result<Vec<Link>> {
    let numbers = fd_dir.numbers::<u32>(".").context("list fds")?;
    let links = parallel::map(&numbers, |&fd| match link_of(fd_dir, &fd.to_string()) {
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(None),
        target => {
            let target = target.with_context(|| format!("fd {fd}: read its link"))?;
            Ok(Some(Link { fd, target }))
        }
    })?;
    Ok(links.into_iter().flatten().collect())
}
