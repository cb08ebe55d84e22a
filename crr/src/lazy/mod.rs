//! Memory that comes when the tasks run already (`crr restore --lazy-pages`).
//!
//! Each task whose pages come later makes a userfaultfd while it is restored, and sends it to the coordinator, which puts the
//! areas under it. Before any task runs on, two processes of crr's own have taken over:
//!
//! ```text
//! crr-lazy-guard     has the descriptors, too; waits for the other
//! crr-lazy-pages     brings the pages (`serve`), and ends when all are there
//! ```
//!
//! When the last copy of a descriptor is closed, the kernel takes each missing page for one of zeros. So both share one table of
//! descriptors: whatever ends the process that brings pages, the tasks wait, and the guard kills them. What is left is that both are killed
//! at once.

mod fetch;
mod guard;
mod pending;
mod serve;
mod source;

pub(crate) use guard::{Given, run};

use crate::cli::lazy_pages::COMMAND;
use crate::fault::{self, Point};
use crate::proc::tasks;
use crate::progress;
use crate::restore::Restore;
use crate::store::Unchecked;
use crate::sys::{process, userfaultfd};
use crate::track::instance;
use crate::track::keeper::Tracked;
use anyhow::{Context, Result, bail};
use fetch::Absent;
use images::Pid;
use images::id::PAGE_SIZE;
use images::memory::Run;
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, FdFlag, OFlag, fcntl};
use nix::sys::stat::Mode;
use nix::sys::wait::waitpid;
use serde::{Deserialize, Serialize};
use shared::range::Range;
use std::collections::BTreeMap;
use std::ffi::{CStr, CString};
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

/// What is to be brought.
#[derive(Debug, Serialize, Deserialize)]
struct Work {
    /// Of each address space.
    runs: Vec<Vec<Run>>,
    /// Pages of the page file.
    page_count: u64,
    /// What of it has not been checked.
    unchecked: Unchecked,
    /// The page file lies in memory, for nobody else.
    in_memory: bool,
    /// What is not there yet.
    absent: Option<Absent>,
}

/// Says that pages are brought; else what is said is why not.
const READY: u8 = 0;

/// What it takes to start the processes, from before the root directory changes.
#[derive(Debug)]
pub(crate) struct Starter {
    program: OwnedFd,
    /// Where they tell what goes wrong: the log file, or else the kernel's log, since nobody may be left at stderr.
    messages: OwnedFd,
}

impl Starter {
    /// Looks that the kernel can do it.
    ///
    /// # Errors
    /// If it cannot.
    pub(crate) fn new() -> Result<Self> {
        if let Err(reason) = crate::kernel::late_pages() {
            bail!("--lazy-pages: userfaultfd: {reason}\n  hint: restore without --lazy-pages");
        }
        let open = |path: &CStr, flags| {
            nix::fcntl::open(path, flags | OFlag::O_CLOEXEC, Mode::empty())
                .with_context(|| path.to_string_lossy().into_owned())
        };
        let messages = match crate::log::file() {
            Some(file) => file.try_clone_to_owned()?,
            None => open(c"/dev/kmsg", OFlag::O_WRONLY).or_else(|_| open(c"/dev/null", OFlag::O_WRONLY))?,
        };
        Ok(Self { program: open(c"/proc/self/exe", OFlag::O_PATH)?, messages })
    }

    /// Has pages brought by the descriptors of tasks, which are named by their indices, from now on; those of blocks that are `unchecked` when
    /// they have been checked.
    ///
    /// # Errors
    /// If no process can be started.
    pub(crate) fn start(
        &self,
        restore: &Restore<'_>,
        descriptors: &BTreeMap<usize, OwnedFd>,
        unchecked: Unchecked,
    ) -> Result<()> {
        let (tasks, lazy) = (&restore.checkpoint.tree.tasks, &restore.preparation.lazy);
        if descriptors.is_empty() {
            return Ok(());
        }
        let work = Work {
            runs: descriptors.keys().map(|&index| lazy[index].runs.clone()).collect(),
            page_count: restore.checkpoint.memory.page_count,
            unchecked,
            in_memory: restore.checkpoint.pages.in_memory(),
            absent: (restore.checkpoint.pages.absent()).map(|(server, file, blocks)| Absent {
                server,
                file,
                blocks,
            }),
        };
        let work = memory_file(&postcard::to_extend(&work, Vec::new())?)?;
        let mut words: Vec<String> = Vec::new();
        let (ready, tell) = nix::unistd::pipe2(OFlag::O_CLOEXEC).context("pipe")?;
        let given =
            [("--pages", restore.opened.pages.as_fd()), ("--work", work.as_fd()), ("--ready", tell.as_fd())];
        for (option, fd) in &given {
            words.extend([(*option).to_owned(), fd.as_raw_fd().to_string()]);
        }
        for (index, task) in tasks.iter().enumerate() {
            let fd = descriptors.get(&index).map_or(-1, AsRawFd::as_raw_fd);
            words.extend(["--task".to_owned(), Tracked { task: instance(task.pid)?, fd }.to_string()]);
        }
        if fault::is_set(Point::LazyAhead) {
            words.extend(["--fault".to_owned(), Point::LazyAhead.name().to_owned()]);
        }
        let inherited = given.iter().map(|&(_, fd)| fd).chain(descriptors.values().map(AsFd::as_fd));
        self.spawn(&words, &inherited.collect::<Vec<_>>(), &tell)?;
        drop(tell);
        let mut answer = Vec::new();
        File::from(ready).read_to_end(&mut answer).context("wait for crr lazy-pages")?;
        match &answer[..] {
            [READY] => {}
            [] => bail!("crr lazy-pages ended at once"),
            why => bail!("crr lazy-pages: {}", String::from_utf8_lossy(why)),
        }
        let pages: u64 = descriptors.keys().map(|&index| lazy[index].pages()).sum();
        log::info!("{} come when the tasks run", progress::bytes(pages * PAGE_SIZE));
        Ok(())
    }

    /// Runs the program in a grandchild, so that nobody has to wait for it.
    fn spawn(&self, words: &[String], inherited: &[BorrowedFd<'_>], tell: &OwnedFd) -> Result<()> {
        let mut all = vec![CString::from(c"crr"), CString::new(COMMAND)?];
        for word in words {
            all.push(CString::new(word.as_str())?);
        }
        let fork = || process::fork(0).context("fork crr lazy-pages");
        let Some(child) = fork()? else {
            if let Ok(None) = fork() {
                let error = self.exec(&all, inherited);
                let _ = nix::unistd::write(tell, error.desc().as_bytes());
            }
            process::exit(0)
        };
        waitpid(nix::unistd::Pid::from_raw(child), None).context("wait for a child")?;
        Ok(())
    }

    /// Returns why it is not executed.
    fn exec(&self, words: &[CString], inherited: &[BorrowedFd<'_>]) -> Errno {
        let become_it = || -> nix::Result<()> {
            process::go_to_background(Some(self.messages.as_raw_fd()))?;
            for fd in inherited {
                fcntl(fd, FcntlArg::F_SETFD(FdFlag::empty()))?;
            }
            process::default_signal_actions();
            process::set_signal_mask(0)?;
            nix::unistd::fexecve::<_, _, CString>(&self.program, words, &[])?;
            Ok(())
        };
        become_it().err().unwrap_or(Errno::EIO)
    }
}

/// Puts areas under a descriptor that a task has just made: whoever touches a page that is missing there waits.
///
/// # Errors
/// If they cannot be.
pub(crate) fn put_under(descriptor: &OwnedFd, areas: &[Range]) -> nix::Result<()> {
    let fd = descriptor.as_fd();
    userfaultfd::enable_late(fd)?;
    areas.iter().try_for_each(|area| userfaultfd::await_missing(fd, area.start, area.end))
}

fn memory_file(bytes: &[u8]) -> Result<OwnedFd> {
    let memfd =
        memfd::MemfdOptions::default().close_on_exec(true).create("crr-lazy").context("memfd_create")?;
    let mut file = memfd.into_file();
    file.write_all(bytes).context("write a memfd")?;
    Ok(file.into())
}

/// What to do about memory that is still to come.
pub(crate) const WAIT: &str = "wait until crr lazy-pages has ended";

/// Whether memory is still to come somewhere.
pub(crate) fn is_at_work() -> bool {
    let is_one = |pid: &Pid| {
        let words = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        words.split(|&byte| byte == 0).nth(1) == Some(COMMAND.as_bytes())
    };
    tasks::all().is_ok_and(|pids| pids.iter().any(is_one))
}
