//! Pipes: what is in them, and who else holds an end.

pub(crate) mod recreate;

use super::Refuse;
use crate::proc::Dir;
use crate::refusal::{Refusal, Refusals};
use crate::sys::pipe;
use anyhow::{Context, Result, bail};
use images::Pid;
use images::file::Pipe;
use nix::fcntl::OFlag;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd};
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

/// Tasks outside of the tree that hold ends of pipes: by pipe, then by task.
#[derive(Debug, Default)]
pub(crate) struct Holders {
    by_pipe: HashMap<u64, BTreeMap<Pid, ()>>,
    tree: HashSet<Pid>,
    scanned: bool,
}

impl Holders {
    /// Looks before the tree is stopped, if any task of it has a pipe: this takes longer than the rest.
    pub(crate) fn scan(tree: &[Pid]) -> Result<Self> {
        let mut holders = Self { tree: tree.iter().copied().collect(), ..Self::default() };
        let has_pipe = tree.iter().any(|&pid| !pipes_of(pid).is_empty());
        if has_pipe {
            holders.scan_others()?;
        }
        Ok(holders)
    }

    fn scan_others(&mut self) -> Result<()> {
        self.by_pipe.clear();
        self.scanned = true;
        let own = nix::unistd::getpid().as_raw();
        for entry in std::fs::read_dir("/proc").context("list /proc")? {
            let name = entry.context("list /proc")?.file_name();
            let Some(pid) = crate::proc::decimal::<Pid>(name.as_bytes()) else { continue };
            if pid == own || self.tree.contains(&pid) {
                continue;
            }
            for ino in pipes_of(pid) {
                self.by_pipe.entry(ino).or_default().insert(pid, ());
            }
        }
        Ok(())
    }

    /// Refuses pipes that a task outside of the tree holds as well. `tree` is what was stopped in the end. When
    /// that is not what the scan went by, or somebody is to be named, the scan is repeated: what it saw may be gone.
    pub(crate) fn refuse_outsiders(
        &mut self,
        tree: &[Pid],
        pipes: impl Iterator<Item = u64>,
        refusals: &mut Refusals,
    ) -> Result<()> {
        let pipes: Vec<u64> = pipes.collect();
        if pipes.is_empty() {
            return Ok(());
        }
        let stopped: HashSet<Pid> = tree.iter().copied().collect();
        if !self.scanned || stopped != self.tree || pipes.iter().any(|ino| self.by_pipe.contains_key(ino)) {
            self.tree = stopped;
            self.scan_others()?;
        }
        for ino in pipes {
            for &pid in self.by_pipe.get(&ino).into_iter().flat_map(BTreeMap::keys) {
                let comm = crate::dump::freeze::comm_of(pid);
                refusals.push(Refusal {
                    task: None,
                    object: format!("pipe:[{ino}]"),
                    reason: format!("also open in task {pid} ({comm}), outside of the tree"),
                    hint: Some("dump a tree that holds both ends, or redirect to files".into()),
                });
            }
        }
        Ok(())
    }
}

/// Inodes of the pipes that a task has open. A task that is gone or not ours to look at has none.
fn pipes_of(pid: Pid) -> Vec<u64> {
    let Ok(dir) = Dir::task(pid).and_then(|dir| dir.dir("fd")) else { return Vec::new() };
    let fds: Vec<u32> = dir.numbers(".").unwrap_or_default();
    fds.into_iter().filter_map(|fd| inode(dir.link(&fd.to_string()).ok()?.as_bytes())).collect()
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
