//! Pipes, named ones too: what is in them, and who else holds an end.

mod contents;
pub(crate) mod recreate;
mod table;

pub(crate) use table::{End, Pipes};

use super::external::Key;
use super::path::file_type;
use super::unix_socket::Holder;
use super::{event, socket, terminal};
use crate::parallel;
use crate::proc::tasks::{Outsider, named, pids_outside};
use crate::proc::{Dir, living_thread};
use crate::refusal::{Refusal, Refusals};
use crate::sys::kcmp::{Kind, kcmp};
use anyhow::Result;
use images::Pid;
use images::file::Files;
use nix::sys::stat::{FileStat, SFlag, stat};
use std::cmp::Ordering;
use std::collections::{BTreeSet, HashMap, HashSet};
use std::ffi::OsStr;
use std::fmt;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;

/// The inode number of a pipe, from its link in `/proc/PID/fd`.
pub(crate) fn inode(link: &[u8]) -> Option<u64> {
    crate::proc::decimal(link.strip_prefix(b"pipe:[")?.strip_suffix(b"]")?)
}

/// Something with two ends, of which somebody outside of the tree may hold one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Object {
    /// A pipe, by inode.
    Pipe(u64),
    /// A named pipe, by device and inode; or another file that is looked for.
    Fifo(u64, u64),
    /// A pseudo terminal: the device of its devpts, and its number.
    Pty(u64, u32),
    /// A socket, by inode: it has one description.
    Socket(u64),
}

/// Who in the tree has an object, and by what it could stay outside.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ours<'a> {
    pub(crate) holder: &'a Holder,
    pub(crate) key: Option<Key>,
}

impl Object {
    /// What crr's standard output is an end of.
    pub(crate) fn standard_output() -> Option<Self> {
        let link = std::fs::read_link("/proc/self/fd/1").ok()?;
        Self::pipe(link.as_os_str().as_bytes(), &nix::sys::stat::fstat(std::io::stdout()).ok()?)
    }

    /// What a descriptor is an end of, by its link in `/proc/PID/fd`.
    pub(crate) fn pipe(link: &[u8], stat: &FileStat) -> Option<Self> {
        match file_type(stat.st_mode) {
            SFlag::S_IFIFO if inode(link).is_some() => Some(Self::Pipe(stat.st_ino)),
            SFlag::S_IFIFO => Some(Self::Fifo(stat.st_dev, stat.st_ino)),
            _ => None,
        }
    }

    /// A named pipe, by device and inode.
    fn fifo(self) -> Option<(u64, u64)> {
        match self {
            Self::Fifo(dev, ino) => Some((dev, ino)),
            Self::Pipe(_) | Self::Pty(..) | Self::Socket(_) => None,
        }
    }
}

impl fmt::Display for Object {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pipe(ino) => write!(f, "pipe:[{ino}]"),
            Self::Fifo(_, ino) => write!(f, "named pipe, inode {ino}"),
            Self::Pty(_, number) => write!(f, "/dev/pts/{number}"),
            Self::Socket(ino) => write!(f, "socket:[{ino}]"),
        }
    }
}

/// Tasks outside of the tree that hold ends (by what they are ends of, then by task) or event files.
#[derive(Debug, Default)]
pub(crate) struct Holders {
    by_object: HashMap<Object, BTreeSet<Pid>>,
    /// Their event files, by task and number.
    events: Vec<(Pid, u32)>,
    tree: HashSet<Pid>,
    /// Named pipes and other files to look for, by device and inode.
    fifos: HashSet<(u64, u64)>,
    /// The tree has masters of pseudo terminals.
    masters: bool,
    /// Its fanotify groups, by task and number.
    groups: Vec<(Pid, u32)>,
    /// Its sockets, by inode.
    sockets: HashSet<u64>,
    /// Masters of whatever else: task and descriptor.
    other_masters: Vec<(Pid, u32)>,
    scanned: bool,
}

impl Holders {
    /// Looks before the tree is stopped, if any task of it has such files: this takes longer than the rest.
    pub(crate) fn scan(tree: &[Pid]) -> Result<Self> {
        let mut holders = Self { tree: tree.iter().copied().collect(), ..Self::default() };
        let mut has_any = false;
        let look = |&pid: &Pid| {
            let seen = Dir::living(pid).map_or(Vec::new(), |dir| look_at(&dir, Fifos::All));
            Ok(seen.into_iter().map(|seen| (pid, seen)).collect::<Vec<_>>())
        };
        for (pid, seen) in parallel::map(tree, look)?.into_iter().flatten() {
            match seen {
                Seen::Master(_) => holders.masters = true,
                Seen::End(object) => {
                    has_any = true;
                    holders.fifos.extend(object.fifo());
                    if let Object::Socket(ino) = object {
                        holders.sockets.insert(ino);
                    }
                }
                Seen::Event(fd, kind) => {
                    has_any = true;
                    if kind == event::Kind::Fanotify {
                        holders.groups.push((pid, fd));
                    }
                }
            }
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

    /// The fanotify groups that it had then, by task and number.
    pub(crate) fn fanotify_groups(&self) -> &[(Pid, u32)] {
        &self.groups
    }

    /// The sockets that it had then, by inode.
    pub(crate) fn sockets(&self) -> &HashSet<u64> {
        &self.sockets
    }

    /// The event files of others, with `tree` outside of which they are to be.
    pub(crate) fn event_files(&mut self, tree: &HashSet<Pid>) -> Result<&[(Pid, u32)]> {
        if !self.scanned || *tree != self.tree {
            self.tree.clone_from(tree);
            self.scan_others()?;
        }
        Ok(&self.events)
    }

    /// Who outside of the tree has these files open, by device and inode: one task for each.
    pub(crate) fn holders_of(
        &mut self,
        tree: &HashSet<Pid>,
        files: impl Iterator<Item = (u64, u64)>,
    ) -> Result<HashMap<(u64, u64), Pid>> {
        let files: Vec<_> = files.collect();
        if files.is_empty() {
            return Ok(HashMap::new());
        }
        self.fifos.extend(&files);
        self.tree.clone_from(tree);
        self.scan_others()?;
        let holder = |file: &(u64, u64)| {
            let pids = self.by_object.get(&Object::Fifo(file.0, file.1))?;
            Some((*file, *pids.first()?))
        };
        Ok(files.iter().filter_map(holder).collect())
    }

    fn scan_others(&mut self) -> Result<()> {
        self.by_object.clear();
        self.other_masters.clear();
        self.events.clear();
        self.scanned = true;
        let fifos = Fifos::These(&self.fifos);
        let look = |&pid: &Pid| {
            let seen = Outsider::look(pid).map_or(Vec::new(), |outsider| look_at(&outsider.dir, fifos));
            Ok(seen.into_iter().map(|seen| (pid, seen)).collect::<Vec<_>>())
        };
        for (pid, seen) in parallel::map(&pids_outside(&self.tree)?, look)?.into_iter().flatten() {
            match seen {
                Seen::Master(fd) => self.other_masters.push((pid, fd)),
                Seen::Event(fd, _) => self.events.push((pid, fd)),
                Seen::End(object) => {
                    self.by_object.entry(object).or_default().insert(pid);
                }
            }
        }
        Ok(())
    }

    /// Refuses what a task outside of the tree holds as well, with who in the tree has it, where that is told. `tree` is what was
    /// stopped in the end. When that is not what the scan went by, or somebody is to be named, the scan is repeated: what it saw may be gone.
    pub(crate) fn refuse_outsiders<'a>(
        &mut self,
        tree: &HashSet<Pid>,
        objects: impl Iterator<Item = (Object, Option<Ours<'a>>)>,
        refusals: &mut Refusals,
    ) -> Result<()> {
        let objects: Vec<_> = objects.collect();
        if objects.is_empty() {
            return Ok(());
        }
        let fifos = self.fifos.len();
        self.fifos.extend(objects.iter().filter_map(|(object, _)| object.fifo()));
        if !self.scanned
            || *tree != self.tree
            || self.fifos.len() > fifos
            || objects.iter().any(|(object, _)| self.by_object.contains_key(object))
        {
            self.tree.clone_from(tree);
            self.scan_others()?;
        }
        for (object, ours) in objects {
            if let Some(pids) = self.by_object.get(&object) {
                refuse(object, ours, pids, refusals);
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
            // What is closed by now is open in no other task.
            let has_it = |&&(pid, fd): &&(Pid, u32)| {
                kcmp(Kind::File, ours, (living_thread(pid), fd)) == Ok(Ordering::Equal)
            };
            let pids: BTreeSet<Pid> = self.other_masters.iter().filter(has_it).map(|&(pid, _)| pid).collect();
            if !pids.is_empty() {
                refuse(object, None, &pids, refusals);
            }
        }
    }
}

fn refuse(object: Object, ours: Option<Ours<'_>>, others: &BTreeSet<Pid>, refusals: &mut Refusals) {
    let holder = ours.map(|ours| ours.holder);
    let hint = match (object, ours.and_then(|ours| ours.key)) {
        (Object::Socket(_), None) => "dump a tree that has both, or have one of them close it".to_owned(),
        (Object::Socket(_), Some(key)) => {
            format!("dump a tree that has both, or leave it outside with --external {key}")
        }
        (_, Some(key)) => {
            format!("dump a tree that holds both ends, or leave it outside with --external {key}")
        }
        (_, None) => "dump a tree that holds both ends, or redirect to files".to_owned(),
    };
    refusals.push(Refusal {
        task: holder.map(|holder| (holder.pid, holder.name.clone())),
        object: holder.map_or_else(|| object.to_string(), |holder| holder.object.clone()),
        reason: format!("also open in {}, outside of the tree", named(others.iter().copied())),
        hint: Some(hint),
    });
}

/// Refuses the restore of named pipes that somebody has open by now: what is in them would get mixed up.
pub(crate) fn preflight(files: &Files, refusals: &mut Refusals) {
    let mut names = HashMap::new();
    for fifo in files.pipes.iter().filter_map(|pipe| pipe.fifo.as_ref()) {
        let path = &files.paths[fifo.path.0 as usize];
        if let Ok(now) = stat(OsStr::from_bytes(&path.path))
            && path.deleted.is_none()
        {
            names.insert(Object::Fifo(now.st_dev, now.st_ino), String::from_utf8_lossy(&path.path));
        }
    }
    if names.is_empty() {
        return;
    }
    let fifos = names.keys().filter_map(|object| object.fifo()).collect();
    let mut holders = Holders { fifos, ..Holders::default() };
    if let Err(error) = holders.scan_others() {
        let (object, reason) =
            ("named pipes".to_owned(), format!("who has them open is not to be seen: {error:#}"));
        refusals.push(Refusal { task: None, object, reason, hint: None });
    }
    for (object, name) in names {
        if let Some(pids) = holders.by_object.get(&object) {
            let who = named(pids.iter().copied());
            refusals.push(Refusal {
                task: None,
                object: name.into_owned(),
                reason: format!("is open in {who}, outside of what is restored"),
                hint: Some("close it there, and restore again".into()),
            });
        }
    }
}

/// A file of a task that others may have a part in.
enum Seen {
    End(Object),
    /// A master of a pseudo terminal.
    Master(u32),
    Event(u32, event::Kind),
}

/// Which named pipes to look for.
#[derive(Clone, Copy)]
enum Fifos<'a> {
    All,
    /// These, by device and inode.
    These(&'a HashSet<(u64, u64)>),
}

impl Fifos<'_> {
    /// The named pipe that a descriptor leads to. Among those of others it is first looked for by its inode, which takes no look at the
    /// file itself: on a file system whose server is gone that would not end.
    fn find(self, task: &Dir, fds: &Dir, name: &str) -> Option<Object> {
        match self {
            Self::All => {}
            Self::These(fifos) if fifos.is_empty() => return None,
            Self::These(fifos) => {
                let mut text = Vec::new();
                task.read(&format!("fdinfo/{name}"), &mut text).ok()?;
                let ino = crate::proc::fdinfo::parse(&text).ok()?.ino;
                // Linux before 5.14 does not tell.
                if ino.is_some_and(|ino| !fifos.iter().any(|fifo| fifo.1 == ino)) {
                    return None;
                }
            }
        }
        let stat = fds.stat(name).ok()?;
        let key = (stat.st_dev, stat.st_ino);
        let wanted = match self {
            Self::All => file_type(stat.st_mode) == SFlag::S_IFIFO,
            Self::These(fifos) => fifos.contains(&key),
        };
        wanted.then_some(Object::Fifo(key.0, key.1))
    }
}

/// Such files of a task. One that is gone or not ours to look at has none.
fn look_at(task: &Dir, fifos: Fifos<'_>) -> Vec<Seen> {
    let Ok(dir) = task.dir("fd") else { return Vec::new() };
    let numbers = dir.numbers::<u32>(".").unwrap_or_default();
    let seen = parallel::map(&numbers, |&fd| Ok(Seen::look(fd, task, &dir, fifos)));
    seen.unwrap_or_default().into_iter().flatten().collect()
}

impl Seen {
    /// A master is looked for by its slave: that has a file of its own.
    fn look(fd: u32, task: &Dir, fds: &Dir, fifos: Fifos<'_>) -> Option<Self> {
        let name = fd.to_string();
        let link = fds.link(&name).ok()?;
        let link = link.as_bytes();
        if let Some(ino) = inode(link) {
            Some(Self::End(Object::Pipe(ino)))
        } else if let Some(ino) = socket::inode(link) {
            Some(Self::End(Object::Socket(ino)))
        } else if let Some(kind) = event::Kind::of(link) {
            Some(Self::Event(fd, kind))
        } else if link.ends_with(b"/ptmx") {
            Some(Self::Master(fd))
        } else if let Some(number) = terminal::number_in(link)
            && let Ok(stat) = fds.stat(&name)
        {
            Some(Self::End(Object::Pty(stat.st_dev, number)))
        } else if link.starts_with(b"/") {
            fifos.find(task, fds, &name).map(Self::End)
        } else {
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_of_pipes_are_known() {
        assert_eq!(inode(b"pipe:[77]"), Some(77));
        assert_eq!(inode(b"/tmp/pipe:[77]"), None);
    }
}
