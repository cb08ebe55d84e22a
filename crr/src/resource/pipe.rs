//! Pipes: what is in them, and who else holds an end.

pub(crate) mod recreate;

use super::{Refuse, event, terminal};
use crate::proc::tasks::{Outsider, comm_of, outside};
use crate::proc::{Dir, living_thread};
use crate::refusal::{Refusal, Refusals};
use crate::sys::kcmp::{Kind, kcmp};
use crate::sys::pipe;
use anyhow::{Context, Result, bail};
use images::Pid;
use images::file::Pipe;
use nix::fcntl::OFlag;
use std::cmp::Ordering;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt;
use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;

/// The inode number of a pipe, from its link in `/proc/PID/fd`.
pub(crate) fn inode(link: &[u8]) -> Option<u64> {
    crate::proc::decimal(link.strip_prefix(b"pipe:[")?.strip_suffix(b"]")?)
}

/// Reads what is in a pipe without taking it out. `end` is any description of a read end.
pub(crate) fn dump_contents(end: BorrowedFd<'_>, ino: u64) -> Result<Pipe> {
    let capacity = pipe::capacity(end).context("read the capacity of a pipe")?;
    let bytes = pipe::readable_bytes(end).context("ask what is in a pipe")?;
    let mut contents = vec![0u8; bytes];
    if bytes > 0 {
        let (from, to) = nix::unistd::pipe2(OFlag::O_CLOEXEC).context("make a pipe")?;
        // tee() moves whole buffers, so the copy needs as many slots as the original.
        pipe::set_capacity(to.as_fd(), capacity).context("make a pipe of the same size")?;
        let n = pipe::tee(end, to.as_fd(), bytes).context("copy the contents of a pipe")?;
        if n != bytes {
            bail!("pipe:[{ino}]: copied {n} of {bytes} bytes");
        }
        File::from(from).read_exact(&mut contents).context("read the contents of a pipe")?;
    }
    Ok(Pipe { ino, capacity, contents })
}

/// Something with two ends, of which somebody outside of the tree may hold one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Object {
    /// A pipe, by inode.
    Pipe(u64),
    /// A pseudo terminal: the device of its devpts, and its number.
    Pty(u64, u32),
}

impl fmt::Display for Object {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pipe(ino) => write!(f, "pipe:[{ino}]"),
            Self::Pty(_, number) => write!(f, "/dev/pts/{number}"),
        }
    }
}

/// Tasks outside of the tree that hold ends (by what they are ends of, then by task) or event files.
#[derive(Debug, Default)]
pub(crate) struct Holders {
    by_object: HashMap<Object, BTreeMap<Pid, ()>>,
    /// Their event files, by task and number.
    events: Vec<(Pid, u32)>,
    tree: HashSet<Pid>,
    /// The tree has masters of pseudo terminals.
    masters: bool,
    /// Masters of whatever else: task and descriptor.
    other_masters: Vec<(Pid, u32)>,
    scanned: bool,
}

impl Holders {
    /// Looks before the tree is stopped, if any task of it has such files: this takes longer than the rest.
    pub(crate) fn scan(tree: &[Pid]) -> Result<Self> {
        let mut holders = Self { tree: tree.iter().copied().collect(), ..Self::default() };
        let mut has_any = false;
        for &pid in tree {
            let Ok(dir) = Dir::living(pid) else { continue };
            look_at(&dir, |seen| match seen {
                Seen::Master(_) => holders.masters = true,
                Seen::End(_) | Seen::Event(_) => has_any = true,
            });
        }
        if has_any {
            holders.scan_others()?;
        }
        Ok(holders)
    }

    /// Whether the tree had masters of pseudo terminals when it was looked at.
    pub(crate) fn has_masters(&self) -> bool {
        self.masters
    }

    /// The event files of others, with `tree` outside of which they are to be.
    pub(crate) fn event_files(&mut self, tree: &HashSet<Pid>) -> Result<&[(Pid, u32)]> {
        if !self.scanned || *tree != self.tree {
            self.tree.clone_from(tree);
            self.scan_others()?;
        }
        Ok(&self.events)
    }

    fn scan_others(&mut self) -> Result<()> {
        self.by_object.clear();
        self.other_masters.clear();
        self.events.clear();
        self.scanned = true;
        for Outsider { pid, dir, .. } in outside(&self.tree)? {
            look_at(&dir, |seen| match seen {
                Seen::Master(fd) => self.other_masters.push((pid, fd)),
                Seen::Event(fd) => self.events.push((pid, fd)),
                Seen::End(object) => {
                    self.by_object.entry(object).or_default().insert(pid, ());
                }
            });
        }
        Ok(())
    }

    /// Refuses what a task outside of the tree holds as well. `tree` is what was stopped in the end. When
    /// that is not what the scan went by, or somebody is to be named, the scan is repeated: what it saw may be gone.
    pub(crate) fn refuse_outsiders(
        &mut self,
        tree: &HashSet<Pid>,
        objects: impl Iterator<Item = Object>,
        refusals: &mut Refusals,
    ) -> Result<()> {
        let objects: Vec<Object> = objects.collect();
        if objects.is_empty() {
            return Ok(());
        }
        if !self.scanned
            || *tree != self.tree
            || objects.iter().any(|object| self.by_object.contains_key(object))
        {
            self.tree.clone_from(tree);
            self.scan_others()?;
        }
        for object in objects {
            for &pid in self.by_object.get(&object).into_iter().flat_map(BTreeMap::keys) {
                refuse(object, pid, refusals);
            }
        }
        Ok(())
    }

    /// Refuses pseudo terminals whose master somebody outside of the tree has as well: only by the same description. After
    /// [`Holders::refuse_outsiders`].
    pub(crate) fn refuse_masters<'a>(
        &self,
        masters: impl Iterator<Item = (Object, BorrowedFd<'a>)>,
        refusals: &mut Refusals,
    ) {
        let own = nix::unistd::getpid().as_raw();
        for (object, master) in masters {
            let ours = (own, master.as_raw_fd().cast_unsigned());
            for &(pid, fd) in &self.other_masters {
                // What is closed by now is open in no other task.
                if kcmp(Kind::File, ours, (living_thread(pid), fd)) == Ok(Ordering::Equal) {
                    refuse(object, pid, refusals);
                }
            }
        }
    }
}

fn refuse(object: Object, pid: Pid, refusals: &mut Refusals) {
    let comm = comm_of(pid);
    refusals.push(Refusal {
        task: None,
        object: object.to_string(),
        reason: format!("also open in task {pid} ({comm}), outside of the tree"),
        hint: Some("dump a tree that holds both ends, or redirect to files".into()),
    });
}

/// A file of a task that others may have a part in.
enum Seen {
    End(Object),
    /// A master of a pseudo terminal.
    Master(u32),
    Event(u32),
}

/// Looks at such files of a task. One that is gone or not ours to look at has none. A master is looked for by its slave:
/// that has a file of its own.
fn look_at(dir: &Dir, mut see: impl FnMut(Seen)) {
    let Ok(dir) = dir.dir("fd") else { return };
    for fd in dir.numbers::<u32>(".").unwrap_or_default() {
        let name = fd.to_string();
        let Ok(link) = dir.link(&name) else { continue };
        let link = link.as_bytes();
        if let Some(ino) = inode(link) {
            see(Seen::End(Object::Pipe(ino)));
        } else if event::Kind::of(link).is_some() {
            see(Seen::Event(fd));
        } else if link.ends_with(b"/ptmx") {
            see(Seen::Master(fd));
        } else if let Some(number) = terminal::number_in(link)
            && let Ok(stat) = dir.stat(&name)
        {
            see(Seen::End(Object::Pty(stat.st_dev, number)));
        }
    }
}

/// O_DIRECT on a pipe makes it keep message boundaries.
pub(crate) fn check_flags(flags: u32, object: &str, refuse: &mut Refuse<'_>) {
    const O_DIRECT: u32 = 0o40000;
    if flags & O_DIRECT != 0 {
        let hint = "have the program take the flag off (F_SETFL) before the dump";
        refuse.with_hint(object, "a pipe in packet mode (O_DIRECT) is not supported", hint);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn contents_are_read_and_stay() {
        let (from, to) = nix::unistd::pipe().unwrap();
        let (mut from, mut to) = (File::from(from), File::from(to));
        pipe::set_capacity(to.as_fd(), 8192).unwrap();
        to.write_all(b"abc").unwrap();
        to.write_all(&[7; 5000]).unwrap();
        let dumped = dump_contents(from.as_fd(), 1).unwrap();
        assert_eq!((dumped.capacity, dumped.contents.len()), (8192, 5003));
        assert_eq!(&dumped.contents[..4], b"abc\x07");
        let mut still = [0u8; 5003];
        from.read_exact(&mut still).unwrap();
        assert_eq!(still[..], dumped.contents[..]);
    }

    #[test]
    fn links_of_pipes_are_known() {
        assert_eq!(inode(b"pipe:[77]"), Some(77));
        assert_eq!(inode(b"/tmp/pipe:[77]"), None);
    }
}
