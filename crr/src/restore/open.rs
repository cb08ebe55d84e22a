//! Opening the tree's files: each description once, each mapped file once, in the coordinator, before the first fork.
//!
//! What every forked child needs until it execs gets a number that no task uses, so that the child can put its files
//! in place without overwriting it.

use super::late::{self, Places};
use crate::fault::{self, Point};
use crate::resource::deleted::recreate::{self, Recreated};
use crate::resource::external::given::Given;
use crate::resource::file::reopen::Controlling;
use crate::resource::file::reopen::{Reopened, open_all};
use crate::resource::unix_socket::bind::Binder;
use crate::resource::{self, inet, mqueue, packet, sysv};
use crate::store::Checkpoint;
use anyhow::{Context, Result, bail};
use images::file::Files;
use images::inet::InetSocket;
use images::task::Task;
use images::{DescriptionId, PathId, SharedId};
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::stat::Mode;
use shared::plan::Need;
use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::CString;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, IntoRawFd, OwnedFd, RawFd};
use std::rc::Rc;

/// The files of a tree.
#[derive(Debug)]
pub(crate) struct Opened {
    /// Knows the numbers that tasks use.
    pub(super) raiser: Raiser,
    descriptions: Vec<Rc<OwnedFd>>,
    /// Where those go that are opened when the tasks exist.
    pub(super) late: Places,
    /// The files of unix sockets, which go again if the restore fails.
    pub(super) socket_files: Binder,
    /// POSIX message queues that were made, of which the same is true.
    pub(super) message_queues: mqueue::recreate::Made,
    inet_sockets: inet::recreate::Restored,
    inet_records: Vec<InetSocket>,
    packet_sockets: packet::Deaf,
    /// Files that have no name.
    pub(super) deleted: Recreated,
    /// What leaders of sessions take as controlling terminals.
    pub(super) controlling: Controlling,
    /// The names by which files can be opened now.
    pub(super) paths: Vec<images::file::Path>,
    mapped: BTreeMap<Need, OwnedFd>,
    /// Segments of System V, until the tasks have them.
    pub(super) segments: sysv::recreate::Segments,
    /// Semaphores and message queues of System V, which go again if the restore fails.
    pub(super) ipc: sysv::objects::Made,
    directories: BTreeMap<PathId, OwnedFd>,
    /// The page file.
    pub(crate) pages: OwnedFd,
}

impl Opened {
    /// Opens everything.
    ///
    /// # Errors
    /// Names the first file that cannot be opened.
    pub(crate) fn open(
        checkpoint: &Checkpoint,
        given: Given,
        wishes: &inet::Wishes,
        needs: impl IntoIterator<Item = Need>,
    ) -> Result<Self> {
        let tasks = &checkpoint.tree.tasks;
        let raiser = Raiser::new(tasks);
        let needs: BTreeSet<Need> = needs.into_iter().collect();
        let directories: BTreeSet<PathId> = tasks.iter().flat_map(|task| [task.root, task.cwd]).collect();
        let executed = tasks.iter().map(|task| task.exe).collect();
        let (mut deleted, mut files) =
            recreate::create_all(&checkpoint.files, &executed, &checkpoint.pages, &raiser)?;
        inet::recreate::as_wished(&mut files.inet_sockets, wishes);
        let done = std::mem::take(&mut deleted.descriptions);
        let mut late = Places::default();
        let Reopened {
            descriptions,
            socket_files,
            controlling,
            inet_sockets,
            packet_sockets,
            message_queues,
        } = open_all(&files, given, done, &mut late)?;
        let segments = sysv::recreate::put_back(&checkpoint.memory, &checkpoint.pages)?;
        let ipc = sysv::objects::put_back(&checkpoint.tree.ipc)?;
        let mut mapped = BTreeMap::new();
        for need in needs.into_iter().filter(|need| matches!(need, Need::Path { .. } | Need::Shared(_))) {
            mapped.insert(need, open_need(checkpoint, &files, need, &raiser)?);
        }
        let open_directory = |path| {
            fault::point(Point::OpenDirectory).context("open a directory")?;
            let fd = open_path(&files, path, OFlag::O_PATH | OFlag::O_DIRECTORY)?;
            Ok((path, raiser.raise(fd)?))
        };
        let directories = directories.into_iter().map(open_directory).collect::<Result<_>>()?;
        let pages =
            raiser.raise(checkpoint.pages.file_of_pages().try_clone().context("pages.img")?.into())?;
        let inet_records = files.inet_sockets;
        let paths = files.paths;
        Ok(Self {
            raiser,
            descriptions,
            late,
            socket_files,
            message_queues,
            inet_sockets,
            inet_records,
            packet_sockets,
            controlling,
            deleted,
            paths,
            mapped,
            segments,
            ipc,
            directories,
            pages,
        })
    }

    /// An open file description of the tree.
    #[must_use]
    pub(crate) fn description(&self, id: DescriptionId) -> BorrowedFd<'_> {
        self.descriptions[id.0 as usize].as_fd()
    }

    /// Lets traffic pass to TCP connections, which are silent still, and to packet sockets.
    ///
    /// # Errors
    /// Names the socket that does not come to the state that it had.
    pub(super) fn let_traffic_pass(&mut self) -> Result<()> {
        self.inet_sockets.let_traffic_pass(&self.inet_records)?;
        self.packet_sockets.hear()
    }

    /// Lets TCP connections speak again.
    pub(super) fn let_connections_speak(&mut self) {
        self.inet_sockets.speak(&self.inet_records);
    }

    /// Puts files that were opened late where their places were held.
    pub(super) fn complete(&mut self, files: late::Files) {
        for (id, file) in files {
            self.descriptions[id.0 as usize] = Rc::new(file);
        }
        self.late = Places::default();
    }

    /// Closes all that was opened for the tree: it is the tree's alone from now on.
    pub(super) fn let_go(&mut self) {
        self.descriptions.clear();
        self.controlling.clear();
        self.mapped.clear();
        self.segments.let_go();
        self.directories.clear();
    }

    /// A file that an op names: one that is mapped or the program of a task, a description, or a directory.
    #[must_use]
    pub(crate) fn need(&self, need: Need) -> Option<BorrowedFd<'_>> {
        match need {
            Need::Path { .. } | Need::Shared(_) => self.mapped.get(&need).map(AsFd::as_fd),
            Need::Description(id) => Some(self.description(id)),
            Need::Directory(path) => Some(self.directory(path)),
            Need::Program(_) | Need::Socket(_) | Need::LastPid => None,
        }
    }

    /// A current or root directory.
    #[must_use]
    pub(crate) fn directory(&self, path: PathId) -> BorrowedFd<'_> {
        self.directories[&path].as_fd()
    }
}

/// Moves descriptors to numbers that no task uses.
#[derive(Clone, Debug)]
pub(crate) struct Raiser {
    /// What lies between the numbers of tasks, in order; the last gap has no end.
    gaps: Vec<Range<RawFd>>,
    /// The gap that the last one went to: those before it were full then.
    last: Cell<usize>,
}

impl Raiser {
    fn new(tasks: &[Task]) -> Self {
        let fds = tasks.iter().flat_map(|task| &task.fds).map(|entry| entry.fd.0.cast_signed());
        Self::beside(fds.collect())
    }

    fn beside(mut used: BTreeSet<RawFd>) -> Self {
        // The standard files are in use too: a task that lacks one has it closed.
        used.extend(0..3);
        let starts = used.iter().map(|fd| fd + 1);
        let ends = used.iter().skip(1).copied().chain([RawFd::MAX]);
        let gaps = starts.zip(ends).map(|(start, end)| start..end).filter(|gap| !gap.is_empty()).collect();
        Self { gaps, last: Cell::new(0) }
    }

    /// The same description under a number that no task uses, close-on-exec.
    ///
    /// # Errors
    /// EMFILE.
    pub(crate) fn raise(&self, fd: OwnedFd) -> Result<OwnedFd> {
        self.duplicate(fd.as_fd(), FcntlArg::F_DUPFD_CLOEXEC).context("fcntl F_DUPFD_CLOEXEC")
    }

    /// The same, open across exec.
    ///
    /// # Errors
    /// EMFILE.
    pub(super) fn raise_inheritable(&self, fd: BorrowedFd<'_>) -> nix::Result<OwnedFd> {
        self.duplicate(fd, FcntlArg::F_DUPFD)
    }

    /// The number of a further descriptor of what `fd` refers to, in a forked child: it closes on exec.
    #[allow(unsafe_code)]
    pub(super) fn move_away(&self, fd: RawFd) -> nix::Result<RawFd> {
        // SAFETY: open: it is one of the descriptions that the coordinator opened and that are still to be placed.
        let borrowed = unsafe { BorrowedFd::borrow_raw(fd) };
        self.duplicate(borrowed, FcntlArg::F_DUPFD_CLOEXEC).map(IntoRawFd::into_raw_fd)
    }

    fn duplicate<'a>(&self, fd: BorrowedFd<'_>, how: impl Fn(RawFd) -> FcntlArg<'a>) -> nix::Result<OwnedFd> {
        let from = self.last.get();
        match self.duplicate_from(from, fd, &how) {
            // What had been full may have room again.
            Err(Errno::EMFILE | Errno::EINVAL) if from > 0 => self.duplicate_from(0, fd, &how),
            done => done,
        }
    }

    fn duplicate_from<'a>(
        &self,
        first: usize,
        fd: BorrowedFd<'_>,
        how: &impl Fn(RawFd) -> FcntlArg<'a>,
    ) -> nix::Result<OwnedFd> {
        let mut at = first;
        while let Some(gap) = self.gaps.get(at) {
            let found = fcntl(fd, how(gap.start))?;
            let owned = owned(found).ok_or(Errno::EBADF)?;
            at += self.gaps[at..].partition_point(|gap| gap.end <= found);
            if self.gaps.get(at).is_some_and(|gap| gap.contains(&found)) {
                self.last.set(at);
                return Ok(owned);
            }
        }
        Err(Errno::EMFILE)
    }
}

/// Takes a number that the kernel has just handed out.
#[must_use]
#[allow(unsafe_code)]
pub(super) fn owned(fd: RawFd) -> Option<OwnedFd> {
    // SAFETY: both callers pass the fresh result of F_DUPFD, which nobody else owns.
    (fd >= 0).then(|| unsafe { OwnedFd::from_raw_fd(fd) })
}

fn open_path(files: &Files, path: PathId, flags: OFlag) -> Result<OwnedFd> {
    let record = &files.paths[path.0 as usize];
    let name = String::from_utf8_lossy(&record.path);
    let path = CString::new(record.path.as_slice()).with_context(|| format!("{name}: not a path"))?;
    nix::fcntl::open(path.as_c_str(), flags | OFlag::O_CLOEXEC, Mode::empty())
        .with_context(|| format!("open {name}"))
}

fn open_need(checkpoint: &Checkpoint, files: &Files, need: Need, raiser: &Raiser) -> Result<OwnedFd> {
    match need {
        Need::Path { path, writable } => {
            raiser.raise(open_path(files, path, if writable { OFlag::O_RDWR } else { OFlag::O_RDONLY })?)
        }
        Need::Shared(SharedId(id)) => {
            let object = &checkpoint.memory.shared[id as usize];
            raiser.raise(resource::shared_memory::create(object, &checkpoint.pages)?)
        }
        Need::Description(_) | Need::Directory(_) | Need::Program(_) | Need::Socket(_) | Need::LastPid => {
            bail!("not opened by itself: {need:?}")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsRawFd;

    #[test]
    fn numbers_of_tasks_are_left_out() {
        let file = std::fs::File::open("/dev/null").unwrap();
        // Every second one, and a few in a row, where this process has hardly anything open.
        let used: BTreeSet<RawFd> = (100..300).step_by(2).chain(400..410).collect();
        let raiser = Raiser::beside((3..100).chain(used.iter().copied()).collect());
        let raise = || raiser.raise(file.try_clone().unwrap().into()).unwrap();
        let raised: Vec<OwnedFd> = (0..220).map(|_| raise()).collect();
        let numbers: Vec<RawFd> = raised.iter().map(AsRawFd::as_raw_fd).collect();
        assert!(numbers.iter().all(|fd| !used.contains(fd) && *fd > 100), "{numbers:?}");
        // Once there is no room behind, what has become free is taken.
        drop(raised);
        raiser.last.set(raiser.gaps.len() - 1);
        let mut limited = raiser.clone();
        limited.gaps.last_mut().unwrap().start = RawFd::MAX - 1;
        let again = limited.raise(file.into()).unwrap();
        assert!((101..400).contains(&again.as_raw_fd()), "{again:?}");
    }
}
