//! Giving unix sockets their addresses back: abstract names, files, and names whose file is gone.
//!
//! What getsockname shows is the name that bind(2) was given, and that can be relative, seen from another root directory,
//! or the name of a file that has been deleted, renamed or replaced since. So a name is bound where it leads to the right
//! file, from another root or current directory if need be, or in a file system of its own that is thrown away.

use super::recreate::sock_type;
use crate::sys::{mount, socket as sys};
use anyhow::{Context, Result, bail};
use images::socket::{Peer, SocketFile, UnixKind, UnixSocket};
use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
use nix::sys::stat::{Mode, SFlag, lstat, stat};
use nix::sys::statfs::fstatfs;
use nix::unistd::{chroot, fchdir, mkdir, unlink};
use std::ffi::OsStr;
use std::fs;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Component, Path, PathBuf};

/// Binds sockets. Dropped without [`Binder::keep`], it removes the files that it made.
#[derive(Debug, Default)]
pub(crate) struct Binder {
    /// Path, device and inode of each.
    made: Vec<(PathBuf, u64, u64)>,
    /// Where names are bound whose file is gone; each in a directory of its own.
    nowhere: Option<OwnedFd>,
    count: u32,
}

impl Binder {
    /// The tree is back: its files stay.
    pub(crate) fn keep(&mut self) {
        self.made.clear();
    }

    /// Binds a socket to an address; to a path only by its name if there is no file for it.
    pub(super) fn bind(
        &mut self,
        socket: BorrowedFd<'_>,
        address: &[u8],
        file: Option<&SocketFile>,
    ) -> Result<()> {
        let bound = match (address.first(), file) {
            (None, _) => Ok(()),
            (Some(0), _) => sys::bind(socket, address).context("is the name taken?"),
            (_, Some(file)) => self.bind_file(socket, address, file),
            (_, None) => self.bind_nowhere(socket, address),
        };
        bound.with_context(|| format!("bind to {}", printable(address)))
    }

    /// Binds what is gone by the time the tree runs. Its abstract name can be another's by now, or still that of one outside of the tree:
    /// then the kernel chooses one instead.
    pub(super) fn bind_gone(&mut self, socket: BorrowedFd<'_>, address: &[u8]) -> Result<()> {
        if address.first() == Some(&0) && sys::bind(socket, address) == Err(Errno::EADDRINUSE) {
            log::warn!(
                "{} is taken: the other end of what was connected to it has another name",
                printable(address)
            );
            return sys::bind(socket, &[]).context("bind to any name");
        }
        // Names that are bound already are not bound again.
        if address.first() == Some(&0) { Ok(()) } else { self.bind(socket, address, None) }
    }

    fn bind_file(&mut self, socket: BorrowedFd<'_>, address: &[u8], file: &SocketFile) -> Result<()> {
        let path = Path::new(OsStr::from_bytes(&file.path));
        match stale(file)? {
            Stale::Absent => {}
            Stale::Same => unlink(path).context("remove the file of the tree that was dumped")?,
            Stale::Dead => {
                log::warn!("{}: the socket is gone: its file makes room", path.display());
                unlink(path).context("remove the file of a socket that is gone")?;
            }
            Stale::Another => bail!("another file is at {} now", path.display()),
        }
        match place(address, path) {
            Place::Here => sys::bind(socket, address)?,
            Place::Root(directory) => {
                let _elsewhere = Elsewhere::enter(Some(directory), None)?;
                sys::bind(socket, address)?;
            }
            Place::Current(directory) => {
                let _elsewhere = Elsewhere::enter(None, Some(directory))?;
                sys::bind(socket, address)?;
            }
            Place::Apart => self.bind_and_move(socket, address, path)?,
        }
        let now = lstat(path).with_context(|| path.display().to_string())?;
        self.made.push((path.to_owned(), now.st_dev, now.st_ino));
        chown(path, Some(file.uid), Some(file.gid)).context("change its owner")?;
        fs::set_permissions(path, fs::Permissions::from_mode(file.mode & 0o7777)).context("change its mode")
    }

    /// Binds in a directory beside the wanted file, then moves the file there.
    fn bind_and_move(&mut self, socket: BorrowedFd<'_>, address: &[u8], path: &Path) -> Result<()> {
        self.count += 1;
        let parent = path.parent().context("no directory")?;
        let scratch = parent.join(format!(".crr-{}-{}", std::process::id(), self.count));
        mkdir(&scratch, Mode::S_IRWXU).with_context(|| scratch.display().to_string())?;
        let moved = bind_below(socket, address, &scratch).and_then(|bound| Ok(fs::rename(bound, path)?));
        let removed = fs::remove_dir_all(&scratch);
        moved?;
        removed.with_context(|| format!("remove {}", scratch.display()))
    }

    fn bind_nowhere(&mut self, socket: BorrowedFd<'_>, address: &[u8]) -> Result<()> {
        self.count += 1;
        let nowhere = match self.nowhere.take() {
            Some(nowhere) => nowhere,
            None => mount::private_tmpfs().context("make a file system")?,
        };
        let nowhere = self.nowhere.insert(nowhere);
        let root = PathBuf::from(format!("/proc/self/fd/{}/{}", nowhere.as_raw_fd(), self.count));
        mkdir(&root, Mode::from_bits_truncate(0o755))?;
        let bound = bind_below(socket, address, &root)?;
        Ok(unlink(&bound)?)
    }
}

impl Drop for Binder {
    fn drop(&mut self) {
        for (path, dev, ino) in &self.made {
            if lstat(path).is_ok_and(|now| (now.st_dev, now.st_ino) == (*dev, *ino)) {
                let _ = unlink(path);
            }
        }
    }
}

/// Addresses that are taken on this machine: the socket, what is wrong, the way out.
pub(crate) fn obstacles(records: &[UnixSocket]) -> Vec<(String, String, &'static str)> {
    let mut found = Vec::new();
    for record in records {
        let mut add = |reason: String, hint| found.push((format!("socket:[{}]", record.ino), reason, hint));
        if let Some(file) = &record.file {
            match stale(file) {
                Ok(Stale::Absent | Stale::Same | Stale::Dead) => {}
                Ok(Stale::Another) => add(
                    format!("bound to {}, where there is another file now", printable(&file.path)),
                    "move that file out of the way",
                ),
                Err(error) => add(format!("bound to {error:#}"), "make its directory again"),
            }
        } else if record.address.first() == Some(&0) && is_taken(record.kind, &record.address) {
            let reason =
                format!("bound to {}, a name that another socket has now", printable(&record.address));
            add(reason, "end the program that has it");
        }
        if let Peer::Elsewhere { address, .. } = &record.peer
            && let Some(why) = unreachable(record.kind, address)
        {
            let reason =
                format!("to be connected again to {}, outside of the tree: {why}", printable(address));
            add(reason, "start the program that it was connected to");
        }
    }
    found
}

/// Whether an abstract name cannot be bound.
fn is_taken(kind: UnixKind, address: &[u8]) -> bool {
    let made = socket(AddressFamily::Unix, sock_type(kind), SockFlag::SOCK_CLOEXEC, None);
    made.is_ok_and(|socket| sys::bind(socket.as_fd(), address) == Err(Errno::EADDRINUSE))
}

/// Why a socket cannot be connected to somebody outside of the tree, without connecting it: one of another type gets as far as to be told that
/// it is one (unix_find_bsd(), net/unix/af_unix.c).
fn unreachable(kind: UnixKind, address: &[u8]) -> Option<String> {
    if address.first() == Some(&0) {
        return (!is_taken(kind, address)).then(|| "nobody has that name".to_owned());
    }
    let other = if kind == UnixKind::Datagram { UnixKind::Stream } else { UnixKind::Datagram };
    let probe = socket(AddressFamily::Unix, sock_type(other), SockFlag::SOCK_CLOEXEC, None).ok()?;
    match sys::connect(probe.as_fd(), address) {
        Err(Errno::EPROTOTYPE) => None,
        Ok(()) => Some("a socket of another type is there".to_owned()),
        Err(errno) => Some(errno.desc().to_lowercase()),
    }
}

/// What is at the place of a file that a socket was bound to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stale {
    /// Nothing.
    Absent,
    /// The file that was there at dump.
    Same,
    /// That of another socket, which is gone: a restore that is killed leaves such files.
    Dead,
    /// Anything else.
    Another,
}

/// Looks at the place of a file that a socket is to be bound to.
///
/// # Errors
/// As lstat(2).
pub(crate) fn stale(file: &SocketFile) -> Result<Stale> {
    let path = Path::new(OsStr::from_bytes(&file.path));
    match lstat(path) {
        Err(Errno::ENOENT) if path.parent().is_some_and(Path::is_dir) => Ok(Stale::Absent),
        Err(errno) => Err(errno).with_context(|| path.display().to_string()),
        Ok(now) => {
            let socket = now.st_mode & SFlag::S_IFMT.bits() == SFlag::S_IFSOCK.bits();
            let same = socket && (now.st_dev, now.st_ino) == (file.dev, file.ino);
            Ok(match socket {
                _ if same => Stale::Same,
                true if is_dead(path) => Stale::Dead,
                _ => Stale::Another,
            })
        }
    }
}

/// Whether the socket is gone that a file was made for: no other one can ever be bound to it (unix_bind_bsd() of net/unix/af_unix.c). A datagram socket
/// can ask whoever lives: one of its own type is not told, and of others it hears that they are such (unix_find_bsd()). Of a file system that other
/// machines have, too, nobody here knows whether one of them has it bound.
fn is_dead(path: &Path) -> bool {
    /// nfs, cifs, smb3, 9p, fuse (and virtiofs), ceph, gfs2, ocfs2: include/uapi/linux/magic.h and where they are.
    const SHARED: [i64; 8] =
        [0x6969, 0xff53_4d42, 0xfe53_4d42, 0x0102_1997, 0x6573_5546, 0x00c3_6400, 0x0116_1970, 0x7461_636f];
    let ask = || {
        let file = open(path, OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC, Mode::empty())?;
        if SHARED.contains(&fstatfs(&file)?.filesystem_type().0) {
            return Err(Errno::EXDEV);
        }
        let asks = socket(AddressFamily::Unix, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
        sys::connect(asks.as_fd(), format!("/proc/self/fd/{}", file.as_raw_fd()).as_bytes())
    };
    ask() == Err(Errno::ECONNREFUSED)
}

/// From where a name leads to a file.
enum Place<'a> {
    /// From where crr is.
    Here,
    /// With this root directory.
    Root(&'a Path),
    /// With this current directory.
    Current(&'a Path),
    /// From nowhere: it was renamed, or something on the way was.
    Apart,
}

fn place<'a>(address: &[u8], path: &'a Path) -> Place<'a> {
    let name = Path::new(OsStr::from_bytes(address));
    let same_directory = || {
        let [a, b] = [name.parent()?, path.parent()?].map(|directory| stat(directory).ok());
        let (a, b) = (a?, b?);
        ((a.st_dev, a.st_ino) == (b.st_dev, b.st_ino) && name.file_name() == path.file_name()).then_some(())
    };
    if name.is_absolute() && same_directory().is_some() {
        return Place::Here;
    }
    let bytes = path.as_os_str().as_bytes();
    let Some(prefix) = bytes.strip_suffix(address) else { return Place::Apart };
    let directory =
        |bytes: &'a [u8]| Path::new(OsStr::from_bytes(if bytes.is_empty() { b"/" } else { bytes }));
    match (name.is_absolute(), prefix.last()) {
        (true, Some(_)) => Place::Root(directory(prefix)),
        (false, Some(b'/')) => Place::Current(directory(prefix)),
        _ => Place::Apart,
    }
}

/// Binds with `root` as root directory; a relative name in a directory deep enough for its `..`. The path of the file.
fn bind_below(socket: BorrowedFd<'_>, address: &[u8], root: &Path) -> Result<PathBuf> {
    let name = Path::new(OsStr::from_bytes(address));
    let mut at = root.to_owned();
    let depth = name.components().filter(|component| *component == Component::ParentDir).count();
    let make = |at: &Path| match mkdir(at, Mode::from_bits_truncate(0o755)) {
        Ok(()) | Err(Errno::EEXIST) => Ok(()),
        Err(errno) => Err(errno).with_context(|| at.display().to_string()),
    };
    if !name.is_absolute() {
        for _ in 0..depth {
            at.push("0");
            make(&at)?;
        }
    }
    let current = at.clone();
    let mut components = name.components().peekable();
    while let Some(component) = components.next() {
        match component {
            Component::ParentDir if at != root => drop(at.pop()),
            Component::Normal(name) => {
                at.push(name);
                if components.peek().is_some() {
                    make(&at)?;
                }
            }
            _ => {}
        }
    }
    let elsewhere = Elsewhere::enter(Some(root), Some(&current))?;
    sys::bind(socket, address)?;
    drop(elsewhere);
    Ok(at)
}

/// Another root and current directory, for as long as it lives.
struct Elsewhere {
    root: OwnedFd,
    current: OwnedFd,
}

impl Elsewhere {
    fn enter(root: Option<&Path>, current: Option<&Path>) -> Result<Self> {
        let directory = |path: &Path| {
            let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
            open(path, flags, Mode::empty()).with_context(|| path.display().to_string())
        };
        let (new_root, new_current) = (root.map(directory).transpose()?, current.map(directory).transpose()?);
        let elsewhere = Self { root: directory(Path::new("/"))?, current: directory(Path::new("."))? };
        if let Some(root) = new_root {
            fchdir(&root).context("change directory")?;
            chroot(".").context("change root")?;
        }
        if let Some(current) = new_current {
            fchdir(&current).context("change directory")?;
        }
        Ok(elsewhere)
    }
}

impl Drop for Elsewhere {
    fn drop(&mut self) {
        // Back to directories that were ours, with the privilege that brought us here.
        let back = fchdir(&self.root).and_then(|()| chroot(".")).and_then(|()| fchdir(&self.current));
        if let Err(errno) = back {
            log::error!("cannot return to the root directory: {errno}");
            std::process::abort();
        }
    }
}

/// An address for messages: abstract names as `@name`.
pub(crate) fn printable(address: &[u8]) -> String {
    match address.strip_prefix(b"\0") {
        Some(name) => format!("@{}", name.escape_ascii()),
        None => String::from_utf8_lossy(address).into_owned(),
    }
}

/// By what connect(2) reaches a socket bound to a file, wherever that is: the file itself.
pub(super) fn handle(socket: BorrowedFd<'_>, address: &[u8]) -> Result<(Option<OwnedFd>, Vec<u8>)> {
    if address.first() == Some(&0) {
        // It can be another one than was wanted ([`Binder::bind_gone`]).
        return Ok((None, sys::local_address(socket).context("getsockname")?));
    }
    let file = sys::bound_file(socket).context("find the file of a socket (SIOCUNIXFILE)")?;
    let path = format!("/proc/self/fd/{}", file.as_fd().as_raw_fd()).into_bytes();
    Ok((Some(file), path))
}
