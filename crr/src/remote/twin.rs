//! A twin of a task: a child that has its private memory as it was at one moment, and runs none of its code.
//!
//! The task clones it in a batch. The stack that it is given is a list of calls of its own, which the same code walks as any other; the last of them is
//! exit(2), and there its tracer holds it, before it has given anything up. So nobody is needed to end it: if crr is killed at any moment, it is killed too, or
//! comes to its end by itself.
//!
//! It keeps nothing of its maker but memory and credentials. It shares the table of descriptors until it leaves that by close_range(2), and has none from then
//! on. In between the kernel may copy the first 64 to a new table, and close these (dup_fd(), fs/file.c): no lock goes, since that is the old table's, but a file
//! system that is told of each close (`->flush` of FUSE and NFS) is told of one more. Its working directory is the root, and it is alone in its session, so that
//! what is sent to the group of its maker is not for it. What is
//! shared memory to its maker it unmaps. The kernel gives no child timers, pending signals, robust lists, contexts of asynchronous I/O, locks of memory or of files.
//! It tells its end by no signal, so its maker does not see it by wait(2) unless it asks for such children (`__WALL`, `__WCLONE`).

use super::batch::{MAX_BUFFERS, decode_result, entry, word};
use super::calls::Call;
use super::code::{ENTRY_WORDS, pushed, returning_stack};
use super::{Arg, Executor};
use crate::fault::{self, Point};
use crate::ptrace::{Error, Patience, Seized, Stop, Stopped, Waited};
use crate::sys::vm;
use anyhow::{Context, Result, bail};
use images::{Abi, Addr, Pid};
use nix::errno::Errno;
use std::ffi::CStr;
use std::ops::Range;

/// Bytes of buffers for the strings that its calls take.
const STRINGS: usize = 64;

/// What a twin is called from its first call on.
pub const TWIN: &CStr = c"crr-twin";

/// A twin that was cloned, and is not held yet.
#[derive(Debug)]
pub struct Twin {
    pid: Pid,
    /// Its filters of seccomp have no effect, as those of its maker.
    unfiltered: bool,
    abi: Abi,
    /// Where the result of the clone goes, before its calls, and how many they are but for the last.
    list: Addr,
    calls: usize,
}

impl Executor {
    /// Has `thread` clone its task. `shed` are areas that the twin does without; `unfiltered` says that seccomp is suspended. What has been written to the
    /// area of this executor belongs to the twin from then on, until it is held: nothing else may be run.
    ///
    /// Returns the error of the clone, or of what else it would take.
    ///
    /// # Errors
    /// When a thread dies.
    pub fn clone_twin(
        &self,
        thread: &mut Stopped,
        shed: &[Range<u64>],
        unfiltered: bool,
        patience: &Patience,
    ) -> Result<nix::Result<Twin>> {
        const FLAGS: i32 = libc::CLONE_PTRACE | libc::CLONE_FILES;
        let mut batch = self.batch(thread)?;
        let abi = batch.abi();
        let (name, root) = (batch.data(TWIN.to_bytes_with_nul()), batch.data(c"/".to_bytes_with_nul()));
        let (Some(name), Some(root)) = (self.place(name), self.place(root)) else {
            return Ok(Err(Errno::ENOMEM));
        };
        let area = match self.fresh() {
            Ok(area) => area,
            Err(errno) => return Ok(Err(errno)),
        };
        let calls = calls(name, root, shed);
        let list = list(abi, &calls, area);
        if list.len() > MAX_BUFFERS - STRINGS {
            return Ok(Err(Errno::E2BIG));
        }
        let list = batch.data(&list);
        let place = self.place(list).context("the list of a twin")?.offset(pushed(abi));
        let cloned = batch.call(Call::Clone, &[Arg::Value(u64::from(FLAGS.cast_unsigned())), Arg::Out(list)]);
        if let Err(errno) = fault::point(Point::CloneTwin) {
            return Ok(Err(errno));
        }
        let pid = match self.run(thread, &batch, patience)?.result(cloned) {
            Ok(pid) => Pid::try_from(pid).context("the pid of a twin")?,
            Err(errno) => return Ok(Err(errno)),
        };
        fault::strike(Point::TwinDies, pid);
        fault::point(Point::KilledCloning)?;
        Ok(Ok(Twin { pid, unfiltered, abi, list: place, calls: calls.len() }))
    }
}

impl Twin {
    /// Its pid.
    #[must_use]
    pub fn pid(&self) -> Pid {
        self.pid
    }

    /// Sends it to its end.
    ///
    /// # Errors
    /// When it dies.
    pub fn start(&self, patience: &Patience) -> Result<(), Error> {
        let twin = Seized::cloned(self.pid).wait_stop(&patience.for_an_answer())?;
        twin.hold_at_end(self.unfiltered)?;
        twin.cont(0).map(drop)
    }

    /// Waits until it is held at its end, with its memory.
    ///
    /// # Errors
    /// When it dies.
    pub fn hold(&self, patience: &Patience) -> Result<Stopped> {
        match Seized::cloned(self.pid).wait(&patience.for_an_answer())? {
            Waited::Stopped(held) if held.stop() == Stop::Event(libc::PTRACE_EVENT_EXIT) => Ok(held),
            other => bail!("{other:?} on its way to its end"),
        }
    }

    /// Whether it has done all that it is to do, when it is held. Otherwise it is of no use.
    ///
    /// # Errors
    /// When it dies.
    pub fn outcome(&self) -> Result<nix::Result<()>> {
        let Self { pid, abi, list, calls, .. } = *self;
        let words = ENTRY_WORDS * abi.word();
        let mut table = vec![0u8; usize::try_from(words)? * calls];
        vm::read_exact(pid, list.offset(abi.word()), &mut table).context("read the answers of a twin")?;
        let result = |entry: &[u8]| -> nix::Result<u64> {
            let mut value = [0u8; 8];
            let last = &entry[entry.len() - usize::try_from(abi.word()).unwrap_or(8)..];
            value[..last.len()].copy_from_slice(last);
            decode_result(abi, u64::from_le_bytes(value))
        };
        Ok(table.chunks_exact(usize::try_from(words)?).try_for_each(|entry| result(entry).map(drop)))
    }
}

/// What a twin does first of all.
fn calls(name: Addr, root: Addr, shed: &[Range<u64>]) -> Vec<(Call, [u64; 6])> {
    const PR_SET_NAME: u64 = 15;
    const ALL: u64 = u32::MAX as u64;
    // With this flag, close_range(2) makes a table without what is to be closed, and leaves the shared one as it is.
    const UNSHARE: u64 = 2;
    let mut calls = vec![
        (Call::Prctl, [PR_SET_NAME, name.0, 0, 0, 0, 0]),
        (Call::CloseRange, [0, ALL, UNSHARE, 0, 0, 0]),
        (Call::Setsid, [0; 6]),
        (Call::Chdir, [root.0, 0, 0, 0, 0, 0]),
    ];
    calls.extend(shed.iter().map(|area| (Call::Munmap, [area.start, area.end - area.start, 0, 0, 0, 0])));
    calls
}

/// The stack that a twin begins on: its way out of the clone, where the result of that goes, its calls, and its end, behind which nothing is to come.
/// Should filters of seccomp, which count when nobody traces it, refuse one way to end, there is another; at last it takes away the code that it is in, and
/// dies of that, SIGSEGV being blocked.
fn list(abi: Abi, calls: &[(Call, [u64; 6])], area: Range<u64>) -> Vec<u8> {
    let ends = [
        (Call::Exit, [0; 6]),
        (Call::ExitGroup, [0; 6]),
        (Call::Munmap, [area.start, area.end - area.start, 0, 0, 0, 0]),
    ];
    let mut out = returning_stack(abi, Addr(area.start));
    word(abi, &mut out, 0);
    for &(call, args) in calls.iter().chain(&ends) {
        entry(abi, &mut out, call, args);
    }
    out
}
