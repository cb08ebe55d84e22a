//! What is given to a tree by `--inherit-fd`: which descriptor for what, whether it fits, and the descriptions that come of it.

use super::how;
use crate::refusal::{Refusal, Refusals};
use crate::resource::file::O_ASYNC;
use crate::resource::file::reopen::Ia32;
use crate::resource::path::file_type;
use crate::resource::pipe::recreate::open_end;
use crate::resource::{socket, unix_socket};
use crate::sys::pipe as sys;
use anyhow::{Context, Result};
use images::PathId;
use images::external::{External, ExternalKind};
use images::file::{Description, Files, Target};
use images::socket::UnixKind;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::stat::{SFlag, fstat};
use nix::unistd::{Whence, isatty, lseek64};
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::CString;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

/// A descriptor of crr, and the key of what it is given for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Inherit {
    /// Its number.
    pub number: RawFd,
    /// As it was spelled.
    pub key: String,
}

/// What crr was given, away from where it was so that nothing else gets its number; it is gone as soon as the tree has it.
#[derive(Debug, Default)]
pub struct Given(Vec<(Inherit, Option<OwnedFd>)>);

impl Given {
    /// Takes the descriptors. To be called before anything else is opened: what was not open could be by then. The standard files stay
    /// crr's, too.
    #[must_use]
    pub fn take(inherit: &[Inherit]) -> Self {
        // Free numbers are handed out again: all are looked at first.
        let open: Vec<bool> = inherit.iter().map(|one| sys::duplicate(one.number).is_ok()).collect();
        let given = (inherit.iter().zip(&open))
            .map(|(one, open)| (one.clone(), open.then(|| sys::duplicate(one.number).ok()).flatten()))
            .collect();
        let open = inherit.iter().zip(open).filter(|(_, open)| *open).map(|(one, _)| one.number);
        for number in open.filter(|&number| number > libc::STDERR_FILENO).collect::<BTreeSet<RawFd>>() {
            let _ = nix::unistd::close(number);
        }
        Self(given)
    }

    /// The same once more, for a restore that may have to be tried again.
    ///
    /// # Errors
    /// As dup(2).
    pub(crate) fn try_clone(&self) -> Result<Self> {
        let again = |(inherit, fd): &(Inherit, Option<OwnedFd>)| {
            let fd = fd.as_ref().map(OwnedFd::try_clone).transpose().context("dup")?;
            Ok((inherit.clone(), fd))
        };
        self.0.iter().map(again).collect::<Result<_>>().map(Self)
    }

    /// Whether a file is opened by its name no more, since something is given in its place.
    pub(crate) fn replaces(&self, files: &Files, path: PathId) -> bool {
        self.0.iter().any(|(inherit, _)| object(files, &inherit.key) == Some(Object::Path(path)))
    }

    /// Refuses a restore without all that the tree needs, or with what does not fit.
    pub(crate) fn preflight(&self, files: &Files, refusals: &mut Refusals) {
        let mut refuse = |object: String, reason: String, hint: Option<String>| {
            refusals.push(Refusal { task: None, object, reason, hint });
        };
        // What can be done with all that is given for a file, where that fits.
        let mut served: BTreeMap<Object, Option<(bool, bool)>> = BTreeMap::new();
        for (inherit, fd) in &self.0 {
            let name = format!("--inherit-fd fd[{}]:{}", inherit.number, inherit.key);
            let Some(object) = object(files, &inherit.key) else {
                let hint = "crr show lists what the checkpoint needs to be given";
                refuse(name, "nothing in the checkpoint goes by this key".to_owned(), Some(hint.to_owned()));
                continue;
            };
            let served = served.entry(object).or_default();
            let Some(fd) = fd else {
                let hint = format!("have the shell open it for crr, as in {}<>FILE", inherit.number);
                refuse(name, "this descriptor is not open".to_owned(), Some(hint));
                continue;
            };
            if let Some((is, wanted)) = misfit(fd, kind_of(files, object)) {
                refuse(name, format!("is {is}, not {wanted}"), None);
                continue;
            }
            let (read, write) = flags_of(fd).map_or((false, false), access);
            let so_far = served.unwrap_or_default();
            *served = Some((so_far.0 || read, so_far.1 || write));
        }
        for (object, need) in needs(files) {
            let (key, name) = names_of(files, object);
            let spelled = format!("--inherit-fd fd[N]:{key}");
            match (served.get(&object), object) {
                (None, Object::External(_)) => {
                    let hint = format!("{spelled} gives it descriptor N, which is to be open {}", how(need));
                    refuse(name, "stayed outside, and nothing is given for it".to_owned(), Some(hint));
                }
                (Some(Some((read, write))), _) if need.0 && !read || need.1 && !write => {
                    let missing = how((need.0 && !read, need.1 && !write));
                    let hint = format!("{spelled}, with N open {missing}; it can be given more than once");
                    refuse(name, format!("nothing that is given for it is open {missing}"), Some(hint));
                }
                _ => {}
            }
        }
    }

    /// What is there for each file, to be made descriptions of. After [`Given::preflight`].
    pub(crate) fn sort(self, files: &Files) -> Sorted {
        let mut by_object: BTreeMap<Object, Vec<Source>> = BTreeMap::new();
        for (inherit, fd) in self.0 {
            if let (Some(object), Some(fd)) = (object(files, &inherit.key), fd) {
                by_object.entry(object).or_default().push(Source { fd, taken: false });
            }
        }
        Sorted(by_object)
    }
}

/// What something is given for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Object {
    External(u32),
    /// A file that would be opened by its name.
    Path(PathId),
}

/// What goes by a key: a file that stayed outside, by its key or the name that it had, or else one that is open in the tree, by its name,
/// with the first slash or without.
fn object(files: &Files, key: &str) -> Option<Object> {
    let wanted: Option<super::Key> = key.parse().ok();
    let wanted = wanted.map_or_else(|| key.to_owned(), |key| key.to_string());
    let is_named = |name: &[u8]| name == key.as_bytes() || name.strip_prefix(b"/") == Some(key.as_bytes());
    let found =
        (0..).zip(&files.externals).find(|(_, external)| external.key == wanted || is_named(&external.name));
    if let Some((id, _)) = found {
        return Some(Object::External(id));
    }
    files.descriptions.iter().find_map(|description| match description.target {
        Target::Path(path) => {
            let record = &files.paths[path.0 as usize];
            (record.deleted.is_none() && is_named(&record.path)).then_some(Object::Path(path))
        }
        _ => None,
    })
}

fn kind_of(files: &Files, object: Object) -> ExternalKind {
    match object {
        Object::External(id) => files.externals[id as usize].kind,
        Object::Path(path) => ExternalKind::File(file_type(files.paths[path.0 as usize].mode).bits()),
    }
}

/// The key of what something can be given for, and what to call it.
fn names_of(files: &Files, object: Object) -> (String, String) {
    match object {
        Object::External(id) => {
            let External { key, name, .. } = &files.externals[id as usize];
            let name = String::from_utf8_lossy(name);
            (key.clone(), if name == *key { key.clone() } else { format!("{key} ({name})") })
        }
        Object::Path(path) => {
            let name = String::from_utf8_lossy(&files.paths[path.0 as usize].path).into_owned();
            (name.clone(), name)
        }
    }
}

/// For each file that something can be given for, whether the tree has it open for reading and for writing.
pub(super) fn needs(files: &Files) -> BTreeMap<Object, (bool, bool)> {
    let mut needs: BTreeMap<Object, (bool, bool)> = BTreeMap::new();
    for description in &files.descriptions {
        let Some(object) = object_of(description) else { continue };
        let (read, write) = access(description.flags);
        let need = needs.entry(object).or_default();
        *need = (need.0 || read, need.1 || write);
    }
    needs
}

fn object_of(description: &Description) -> Option<Object> {
    match description.target {
        Target::External(id) => Some(Object::External(id)),
        Target::Path(path) => Some(Object::Path(path)),
        _ => None,
    }
}

/// What a descriptor is and what it should be, if these differ.
fn misfit(fd: &OwnedFd, wanted: ExternalKind) -> Option<(&'static str, &'static str)> {
    let kind = fstat(fd).map_or(SFlag::empty(), |stat| file_type(stat.st_mode));
    let is_terminal = isatty(fd).unwrap_or(false);
    let is_unix = socket::family(fd.as_fd()) == Ok(libc::AF_UNIX);
    let own_socket = is_unix.then(|| unix_socket::kind(fd.as_fd()).ok()).flatten();
    let (fits, wanted) = match wanted {
        ExternalKind::Pipe => (kind == SFlag::S_IFIFO, "a pipe"),
        ExternalKind::Terminal => (is_terminal, "a terminal"),
        ExternalKind::File(bits) => (kind.bits() == bits, name_of(file_type(bits))),
        ExternalKind::UnixSocket(wanted) => (own_socket == Some(wanted), name_of_socket(wanted)),
    };
    let is = match own_socket {
        Some(own) => name_of_socket(own),
        None if is_terminal => "a terminal",
        None => name_of(kind),
    };
    (!fits).then_some((is, wanted))
}

fn name_of_socket(kind: UnixKind) -> &'static str {
    match kind {
        UnixKind::Stream => "a unix socket of type stream",
        UnixKind::Datagram => "a unix socket of type datagram",
        UnixKind::Seqpacket => "a unix socket of type seqpacket",
    }
}

fn name_of(kind: SFlag) -> &'static str {
    match kind {
        SFlag::S_IFREG => "a regular file",
        SFlag::S_IFDIR => "a directory",
        SFlag::S_IFIFO => "a pipe",
        SFlag::S_IFSOCK => "a socket",
        SFlag::S_IFCHR => "a character device",
        SFlag::S_IFBLK => "a block device",
        _ => "a file of another kind",
    }
}

fn flags_of(fd: &OwnedFd) -> Option<u32> {
    fcntl(fd, FcntlArg::F_GETFL).ok().map(i32::cast_unsigned)
}

/// Whether flags allow reading and writing.
pub(crate) fn access(flags: u32) -> (bool, bool) {
    match OFlag::from_bits_retain(flags.cast_signed()) & OFlag::O_ACCMODE {
        OFlag::O_RDONLY => (true, false),
        OFlag::O_WRONLY => (false, true),
        _ => (true, true),
    }
}

#[derive(Debug)]
struct Source {
    fd: OwnedFd,
    /// A description of the tree is this one.
    taken: bool,
}

/// What is given, by what it is for.
#[derive(Debug)]
pub(crate) struct Sorted(BTreeMap<Object, Vec<Source>>);

impl Sorted {
    /// Whether something is given for the file of a description.
    pub(crate) fn is_for(&self, description: &Description) -> bool {
        object_of(description).is_some_and(|object| self.0.contains_key(&object))
    }

    /// A description of a file that is given from outside; `None` if this one is not. The first that could be the given one is that.
    ///
    /// # Errors
    /// If it cannot be opened again.
    pub(crate) fn open(&mut self, description: &Description, ia32: &mut Ia32) -> Result<Option<OwnedFd>> {
        let sources = object_of(description).and_then(|object| self.0.get_mut(&object));
        let Some(sources) = sources else { return Ok(None) };
        let flags = description.flags & !O_ASYNC;
        let fits = |source: &&mut Source| {
            !source.taken && flags_of(&source.fd).is_some_and(|own| (own ^ flags) & !settable() == 0)
        };
        if let Some(source) = sources.iter_mut().find(fits) {
            source.taken = true;
            fcntl(&source.fd, FcntlArg::F_SETFL(OFlag::from_bits_retain(flags.cast_signed())))
                .context("set flags")?;
            return Ok(Some(source.fd.try_clone().context("dup")?));
        }
        let (read, write) = access(flags);
        let covers = |source: &&Source| {
            let (may_read, may_write) = flags_of(&source.fd).map_or((false, false), access);
            (may_read || !read) && (may_write || !write)
        };
        let source = sources.iter().find(covers).context("nothing that is given allows this access")?;
        reopen(source.fd.as_fd(), flags, ia32).map(Some)
    }
}

/// Another description of what is given, at the same place in it.
fn reopen(fd: BorrowedFd<'_>, flags: u32, ia32: &mut Ia32) -> Result<OwnedFd> {
    let name = CString::new(format!("/proc/self/fd/{}", fd.as_raw_fd())).context("path")?;
    let flags = flags & !OFlag::O_NOFOLLOW.bits().cast_unsigned() | OFlag::O_NOCTTY.bits().cast_unsigned();
    let opened = open_end(&name, flags, ia32).context("what is given cannot be opened again")?;
    // Where there is one.
    if let Ok(position) = lseek64(fd, 0, Whence::SeekCur) {
        lseek64(&opened, position, Whence::SeekSet).context("seek")?;
    }
    Ok(opened)
}

/// What F_SETFL can set: SETFL_MASK of fs/fcntl.c.
fn settable() -> u32 {
    let flags = OFlag::O_APPEND | OFlag::O_NONBLOCK | OFlag::O_DIRECT | OFlag::O_NOATIME;
    flags.bits().cast_unsigned() | O_ASYNC
}

/// `fd[N]:KEY`.
///
/// # Errors
/// Says what it should be.
pub(crate) fn parse(text: &str) -> Result<Inherit, String> {
    let parsed = text.strip_prefix("fd[").and_then(|rest| rest.split_once("]:")).and_then(|(number, key)| {
        let number = number.parse::<u16>().ok()?.into();
        (!key.is_empty()).then(|| Inherit { number, key: key.to_owned() })
    });
    parsed.ok_or_else(|| "not fd[N]:KEY, as in fd[3]:pipe:[4711]".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_are_read() {
        let inherit = |number, key: &str| Ok(Inherit { number, key: key.to_owned() });
        assert_eq!(parse("fd[3]:pipe:[4711]"), inherit(3, "pipe:[4711]"));
        assert_eq!(parse("fd[10]:var/log/a]:b"), inherit(10, "var/log/a]:b"));
        for wrong in ["", "3:pipe:[1]", "fd[]:a", "fd[-1]:a", "fd[3]:", "fd[3]"] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }
}
