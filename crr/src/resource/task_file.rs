//! Files and directories of `/proc/PID` that belong to a task or thread of the tree.
//!
//! They are opened again by name when all tasks exist ([`crate::restore::late`]). The name leads to the same file only as long as the task
//! lives: procfs makes a new inode for a new task. What shows the memory of a task shows that of the program which it ran when the file
//! was opened, which is not to be seen from outside, but by what such a file shows.

use super::Refuse;
use super::file::reopen::{Ia32, open_with};
use super::path::CLOSE;
use super::view::root_of_procfs;
use crate::proc::auxv;
use crate::proc::tasks::comm_of;
use crate::refusal::{Refusal, Refusals};
use anyhow::{Context, Result, ensure};
use images::file::{Description, Files};
use images::late::TaskFile;
use images::task::{Task, Zombie};
use images::{Abi, Pid};
use nix::fcntl::OFlag;
use nix::sys::stat::{FileStat, stat};
use nix::unistd::{Whence, lseek64};
use std::collections::{BTreeSet, HashMap};
use std::ffi::{CString, OsStr};
use std::fs::{self, File};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::Path;

const O_ACCMODE: u32 = 3;
const O_WRONLY: u32 = 1;

/// The way out for those of a task that is not in the tree.
const OUTSIDE: &str = "dump a tree that holds it, or have the program close it before the dump";

/// Files that show the memory of the program which the task ran when they were opened (`proc_mem_open`, fs/proc/base.c).
const OF_MEMORY: [&[u8]; 8] =
    [b"mem", b"maps", b"smaps", b"smaps_rollup", b"numa_maps", b"pagemap", b"environ", b"auxv"];

/// What the link of a file in procfs says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place<'a> {
    /// Where that procfs is mounted.
    procfs: &'a [u8],
    /// Whose it is.
    pid: Pid,
    /// Its name in the directory of that task.
    name: &'a [u8],
}

impl<'a> Place<'a> {
    /// By the link in `/proc/PID/fd`, and the device; `None` for what is not of a task.
    pub(crate) fn of(link: &'a [u8], dev: u64) -> Option<Self> {
        let procfs = root_of_procfs(Path::new(OsStr::from_bytes(link)), dev)?.as_os_str().as_bytes();
        let rest = link.strip_prefix(procfs)?.strip_prefix(b"/")?;
        let digits = rest.iter().take_while(|byte| byte.is_ascii_digit()).count();
        let (pid, rest) = rest.split_at(digits);
        let name = match rest {
            b"" | b" (deleted)" => rest,
            _ => rest.strip_prefix(b"/")?,
        };
        Some(Self { procfs, pid: crate::proc::decimal(pid)?, name })
    }
}

/// Whether a procfs shows the tasks that crr sees, under the same numbers: each mount has a device of its own.
fn shows_own_tasks(procfs: &[u8]) -> bool {
    let init = |procfs: &OsStr| fs::read_link(Path::new(procfs).join("1/ns/pid")).ok();
    let own = |procfs: &OsStr| fs::read_link(Path::new(procfs).join("self/ns/pid")).ok();
    let (there, here) = (OsStr::from_bytes(procfs), OsStr::new("/proc"));
    let same_self = fs::read_link(Path::new(there).join("self")).ok() == fs::read_link("/proc/self").ok();
    procfs == b"/proc"
        || own(there).is_some() && same_self && own(there) == own(here) && init(there) == init(here)
}

/// Refuses those for which no procfs is where it was.
pub(crate) fn preflight(refusals: &mut Refusals, files: &Files) {
    let places: BTreeSet<&[u8]> = files.task_files.iter().map(|file| file.procfs.as_slice()).collect();
    for procfs in places.into_iter().filter(|procfs| !shows_own_tasks(procfs)) {
        refusals.push(Refusal {
            task: None,
            object: String::from_utf8_lossy(procfs).into_owned(),
            reason: "is not the procfs of crr's pid namespace, which a file of the tree is of".to_owned(),
            hint: Some("mount it there: mount -t proc proc DIR".to_owned()),
        });
    }
}

/// One that was found.
#[derive(Debug)]
struct Found {
    task: (Pid, String),
    object: String,
}

/// An open one.
pub(crate) struct Open<'a> {
    pub(crate) place: Place<'a>,
    pub(crate) object: String,
    pub(crate) link: &'a [u8],
    pub(crate) stat: &'a FileStat,
    pub(crate) flags: u32,
    pub(crate) copy: BorrowedFd<'a>,
}

/// Those of a tree, being collected.
#[derive(Debug, Default)]
pub(crate) struct Table {
    found: Vec<Found>,
    records: Vec<TaskFile>,
    /// Whether a procfs with this device shows the tasks that crr sees.
    own: HashMap<u64, bool>,
}

impl Table {
    /// Where a file is if it is one of a task, in a procfs that shows those that crr sees.
    pub(crate) fn place<'a>(&mut self, link: &'a [u8], dev: u64) -> Option<Place<'a>> {
        let place = Place::of(link, dev)?;
        self.own.entry(dev).or_insert_with(|| shows_own_tasks(place.procfs)).then_some(place)
    }

    /// The number of its record; `None` when it was refused.
    pub(crate) fn add(&mut self, open: Open<'_>, refuse: &mut Refuse<'_>) -> Result<Option<u32>> {
        let Open { place: Place { procfs, pid, name }, object, link, stat: shown, flags, copy } = open;
        let there = stat(OsStr::from_bytes(link)).ok();
        if there.is_none_or(|there| (there.st_dev, there.st_ino) != (shown.st_dev, shown.st_ino)) {
            refuse.with_hint(object, "of a task or a descriptor that is gone", CLOSE);
            return Ok(None);
        }
        if is_of_memory(name) && !shows_present_memory(pid, link, flags, copy)? {
            let reason = "shows the memory of a program that its task does not run any more";
            refuse.with_hint(object, reason, CLOSE);
            return Ok(None);
        }
        let index = u32::try_from(self.records.len()).context("too many files of tasks")?;
        self.found.push(Found { task: (refuse.pid(), refuse.name().to_owned()), object });
        self.records.push(TaskFile { procfs: procfs.to_vec(), pid, name: name.to_vec() });
        Ok(Some(index))
    }

    /// Refuses those whose task is not in the tree.
    pub(crate) fn refuse_outsiders(&self, tasks: &[Task], zombies: &[Zombie], refusals: &mut Refusals) {
        for (Found { task, object }, record) in self.found.iter().zip(&self.records) {
            if !is_known(record, tasks, zombies) {
                let pid = record.pid;
                let reason = format!("of task {pid} ({}), outside of the tree", comm_of(pid));
                refusals.task((task.0, &task.1), object, reason, Some(OUTSIDE));
            }
        }
    }

    pub(crate) fn into_records(self) -> Vec<TaskFile> {
        self.records
    }
}

/// Whether the task of a file, and the thread that the name leads to, are of a tree.
pub(crate) fn is_known(file: &TaskFile, tasks: &[Task], zombies: &[Zombie]) -> bool {
    // Threads have directories of their own, which are only not listed.
    let has = |task: &Task, tid: Pid| task.threads.iter().any(|thread| thread.tid == tid);
    let Some(task) = tasks.iter().find(|task| has(task, file.pid)) else {
        return zombies.iter().any(|zombie| zombie.pid == file.pid);
    };
    thread_of(&file.name).is_none_or(|tid| has(task, tid))
}

/// The thread in a name.
fn thread_of(name: &[u8]) -> Option<Pid> {
    crate::proc::decimal(name.strip_prefix(b"task/")?.split(|&byte| byte == b'/').next()?)
}

fn is_of_memory(name: &[u8]) -> bool {
    let of_thread = name.strip_prefix(b"task/").and_then(|rest| rest.splitn(2, |&byte| byte == b'/').nth(1));
    OF_MEMORY.contains(&of_thread.unwrap_or(name))
}

/// Whether an open file shows the memory that its task has now: whether it says the same as one that is opened now. No two programs have
/// the same random bytes.
fn shows_present_memory(pid: Pid, link: &[u8], flags: u32, copy: BorrowedFd<'_>) -> Result<bool> {
    const ENOUGH: usize = 4096;
    if flags & O_ACCMODE == O_WRONLY {
        return Ok(false);
    }
    let Ok(now) = File::open(OsStr::from_bytes(link)) else { return Ok(false) };
    let then = File::from(copy.try_clone_to_owned().context("duplicate a descriptor")?);
    let (at, len) = if link.ends_with(b"/mem") {
        (random_bytes(pid)?, 16)
    } else if link.ends_with(b"/pagemap") {
        (random_bytes(pid)? / images::id::PAGE_SIZE * 8, 8)
    } else {
        (0, ENOUGH)
    };
    let look = |file: &File| {
        let mut bytes = vec![0; len];
        // Where nothing is mapped there is nothing to be read (EIO).
        let count = file.read_at(&mut bytes, at).unwrap_or(0);
        bytes.truncate(count);
        // Flags of a page: its number is not for everybody to see.
        if link.ends_with(b"/pagemap") {
            bytes.drain(..count.min(7));
        }
        bytes
    };
    let (then, now) = (look(&then), look(&now));
    Ok(if COUNTING.iter().any(|name| link.ends_with(name)) {
        are_of_same_areas(&then, &now)
    } else {
        then == now
    })
}

/// Those that tell of areas how much of them is there, and to how many tasks: that changes with what other tasks do.
const COUNTING: [&[u8]; 3] = [b"/smaps", b"/smaps_rollup", b"/numa_maps"];

/// Whether such texts, which may be cut off, name the same areas: by the first word of a line, which is not a field's.
fn are_of_same_areas(one: &[u8], other: &[u8]) -> bool {
    fn areas(text: &[u8]) -> Vec<&[u8]> {
        let whole = text.iter().rposition(|&byte| byte == b'\n').map_or(&text[..0], |end| &text[..end]);
        let words =
            whole.split(|&byte| byte == b'\n').filter_map(|line| line.split(|&byte| byte == b' ').next());
        words.filter(|word| !word.ends_with(b":")).collect()
    }
    let (one, other) = (areas(one), areas(other));
    one.is_empty() == other.is_empty() && one.iter().zip(&other).all(|(one, other)| one == other)
}

/// Where the random bytes of a program lie (AT_RANDOM).
fn random_bytes(pid: Pid) -> Result<u64> {
    const AT_RANDOM: u64 = 25;
    let auxv = std::fs::read(format!("/proc/{pid}/auxv")).context("read auxv")?;
    let long = |bytes: &[u8]| bytes.iter().rev().fold(0, |value, &byte| value << 8 | u64::from(byte));
    // The first tag is a small number, with the first value above it in the words of ia32.
    let is_narrow = auxv.len() >= 8 && long(&auxv[..8]) > u64::from(u16::MAX);
    auxv::entry(&auxv, if is_narrow { Abi::Ia32 } else { Abi::X86_64 }, AT_RANDOM).context("no AT_RANDOM")
}

/// Opens one again, now that its task exists.
///
/// # Errors
/// As open(2) and lseek(2), with the name.
pub(crate) fn open(file: &TaskFile, description: &Description, ia32: &mut Ia32) -> Result<OwnedFd> {
    let pid = format!("/{}/", file.pid);
    let path = [&file.procfs, pid.as_bytes(), &file.name].concat();
    let name = String::from_utf8_lossy(&path).into_owned();
    let path = CString::new(path).with_context(|| format!("{name}: not a path"))?;
    let flags = OFlag::from_bits_retain(description.flags.cast_signed()) | OFlag::O_CLOEXEC;
    let opened =
        open_with(&path, flags, description.flags, ia32).with_context(|| format!("open {name} again"))?;
    let position = description.position.cast_signed();
    if position != 0 {
        seek(opened.as_fd(), position).with_context(|| format!("{name}: seek to {position}"))?;
        if description.flags & O_ACCMODE != O_WRONLY {
            forget_text(&opened, position)?;
        }
    }
    Ok(opened)
}

/// lseek(2) to any place: in memory also to those that are negative numbers, for which the answer looks like an error.
fn seek(file: BorrowedFd<'_>, position: i64) -> Result<()> {
    if let Err(errno) = lseek64(file, position, Whence::SeekSet) {
        let now = lseek64(file, 0, Whence::SeekCur);
        ensure!(i64::from(errno as i32) == -position && now == Err(errno), errno);
    }
    Ok(())
}

/// Has the kernel make the text anew at the next read: seeking has made it, and the task is not what it will be. A read at another place
/// than the last one does that (`seq_read_iter`, fs/seq_file.c).
fn forget_text(file: &OwnedFd, position: i64) -> Result<()> {
    let file = File::from(file.try_clone().context("duplicate a descriptor")?);
    let mut bytes = [0; 2];
    let len = if position == 1 { 2 } else { 1 };
    // Files of other kinds have no such text, and a directory or one that refuses to be read has none either.
    let _ = file.read_at(&mut bytes[..len], 0);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_read_off_links() {
        let dev = stat("/proc").unwrap().st_dev;
        let place = |link: &'static str| {
            Place::of(link.as_bytes(), dev).map(|place| {
                assert_eq!(place.procfs, b"/proc");
                (place.pid, std::str::from_utf8(place.name).unwrap())
            })
        };
        assert_eq!(place("/proc/12/fdinfo/3"), Some((12, "fdinfo/3")));
        assert_eq!(place("/proc/12"), Some((12, "")));
        assert_eq!(place("/proc/12 (deleted)"), Some((12, " (deleted)")));
        assert_eq!(place("/proc/12a"), None);
        assert_eq!(place("/proc/version"), None);
        assert_eq!(place("/proc"), None);
        assert!(shows_own_tasks(b"/proc") && !shows_own_tasks(b"/sys"));
    }

    #[test]
    fn names_tell_threads_and_what_shows_memory() {
        assert_eq!(thread_of(b"task/14/maps"), Some(14));
        assert_eq!(thread_of(b"task"), None);
        assert!(is_of_memory(b"mem") && is_of_memory(b"task/14/maps"));
        assert!(!is_of_memory(b"task/14/status") && !is_of_memory(b"fdinfo") && !is_of_memory(b""));
    }

    #[test]
    fn counts_do_not_count() {
        let smaps = |pss, size| {
            format!("1000-2000 r-xp 0 00:00 0 /bin/cat\nPss: {pss} kB\n2000-{size}000 rw-p 0 00:00 0\nPss")
        };
        let same = |one: &str, other: &str| are_of_same_areas(one.as_bytes(), other.as_bytes());
        assert!(same(&smaps(1, 3), &smaps(20, 3)));
        assert!(!same(&smaps(1, 3), &smaps(1, 4)) && !same(&smaps(1, 3), ""));
        assert!(same("1000 default file=/bin/cat mapmax=3\n", "1000 default file=/bin/cat mapmax=30\n20"));
        assert!(!same("1000 default\n", "2000 default\n"));
    }

    /// A program that has answered stands still: its memory does not change from one look to the next.
    fn program() -> std::process::Child {
        use std::io::{Read, Write};
        use std::process::{Command, Stdio};
        let mut cat = Command::new("cat").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        cat.stdin.as_mut().unwrap().write_all(b"x").unwrap();
        cat.stdout.as_mut().unwrap().read_exact(&mut [0]).unwrap();
        cat
    }

    #[test]
    fn memory_is_told_apart() {
        let (mut one, mut other) = (program(), program());
        let pid = one.id().cast_signed();
        for name in ["mem", "pagemap", "maps", "auxv", "smaps", "smaps_rollup", "numa_maps"] {
            let link = format!("/proc/{pid}/{name}");
            let open = |of: &std::process::Child| File::open(format!("/proc/{}/{name}", of.id())).unwrap();
            assert!(shows_present_memory(pid, link.as_bytes(), 0, open(&one).as_fd()).unwrap(), "{name}");
            // The flags of a page are alike in any two tasks.
            if name != "pagemap" {
                assert!(
                    !shows_present_memory(pid, link.as_bytes(), 0, open(&other).as_fd()).unwrap(),
                    "{name}"
                );
            }
        }
        for program in [&mut one, &mut other] {
            program.kill().unwrap();
            program.wait().unwrap();
        }
    }
}
