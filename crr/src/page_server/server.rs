//! The side of a server that takes pages: one dump, or one round, and its file.

use super::line::{Line, Patience, Patient};
use super::{ALL, COMMIT, Frame, Hello, PAGES, VERSION, answer, tls};
use anyhow::{Context, Result, bail};
use images::container::Kind;
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use nix::poll::poll;
use rustls::ServerConfig;
use std::convert::Infallible;
use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Read};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{self, SendError, SyncSender};
use std::thread;
use std::time::{Duration, Instant};

/// How long who connects may take to say that it is a dump.
const PATIENCE: Duration = Duration::from_secs(10);

/// Milliseconds until it is looked again whether there is what a connection takes.
const SHORTAGE: u8 = 100;

/// Serves the first that turns out to be a dump. Returns the bytes of its pages.
///
/// # Errors
/// If that dump did not come to its end, or its pages cannot be written: there is then the file that was there before, or none.
pub fn serve(listener: &TcpListener, dir: &Path, tls: Option<&Arc<ServerConfig>>) -> Result<u64> {
    // Whoever is not taken has his line back.
    let (found, dumps) = mpsc::sync_channel(0);
    let (listener, tls) = (listener.try_clone().context("dup")?, tls.cloned());
    let listen = move || {
        let Err(error) = look_for_dumps(&listener, tls.as_ref(), &found);
        // Nobody waits for it if there is a dump by now.
        let _ = found.send(Err(error));
    };
    thread::Builder::new().name("accept".to_owned()).spawn(listen).context("start a thread")?;
    let (mut line, peer) = dumps.recv().context("nobody listens")??;
    drop(dumps);
    log::info!("a dump comes from {peer}");
    receive(&mut line, dir)
}

/// Who connects and turns out to be a dump.
type Found = Result<(Line, SocketAddr)>;

/// Listens to all who connect side by side, so that who says nothing keeps nobody from the server.
fn look_for_dumps(
    listener: &TcpListener,
    tls: Option<&Arc<ServerConfig>>,
    found: &SyncSender<Found>,
) -> Result<Infallible> {
    loop {
        let (tcp, peer) = accept(listener)?;
        let (tls, found) = (tls.cloned(), found.clone());
        let look = move || match greet(tcp, tls.as_ref(), Hello::Dump) {
            Ok(line) => {
                // Those that are too late get their lines back.
                if let Err(SendError(Ok((mut line, _)))) = found.send(Ok((line, peer))) {
                    log::warn!("{peer}: is sent away: there is a dump already");
                    let _ = answer(&mut line, Some("it has a dump already, and takes one alone"));
                }
            }
            Err(error) => log::warn!("{peer}: is no dump of crr: {error:#}"),
        };
        if let Err(error) = thread::Builder::new().name("greet".to_owned()).spawn(look) {
            log::warn!("{peer}: is sent away: start a thread: {error}");
        }
    }
}

/// Waits for somebody to connect. Those who have gone away again are passed over. Where there are no descriptors or is no memory left for
/// one more, that is waited for: tasks may need what is given over the others.
///
/// # Errors
/// If nobody can connect any more.
pub(super) fn accept(listener: &TcpListener) -> Result<(TcpStream, SocketAddr)> {
    let mut waits = false;
    loop {
        let error = match listener.accept() {
            Ok(accepted) => return Ok(accepted),
            Err(error) => error,
        };
        match Errno::from_raw(error.raw_os_error().unwrap_or(0)) {
            // Errors of the connection that would have been the next, as accept(2) lists them.
            Errno::ECONNABORTED
            | Errno::ECONNRESET
            | Errno::EPROTO
            | Errno::ENETDOWN
            | Errno::ENOPROTOOPT
            | Errno::EHOSTDOWN
            | Errno::ENONET
            | Errno::EHOSTUNREACH
            | Errno::ENETUNREACH => log::debug!("accept: {error}"),
            Errno::EMFILE | Errno::ENFILE | Errno::ENOBUFS | Errno::ENOMEM => {
                if !waits {
                    log::warn!("who connects has to wait: {error}");
                }
                waits = true;
                // Nothing tells when there is some again.
                let _ = poll(&mut [], SHORTAGE);
            }
            _ => return Err(error).context("accept"),
        }
    }
}

/// Listens to what is said first.
pub(super) fn greet(tcp: TcpStream, tls: Option<&Arc<ServerConfig>>, expected: Hello) -> Result<Line> {
    let patient = Patient::new(tcp, Patience::Until(Instant::now() + PATIENCE))?;
    let mut line = match tls {
        Some(config) => tls::accept(config, patient)?,
        None => Line::Plain(patient),
    };
    let mut said = [0; Hello::MAGIC_SIZE + 4];
    line.read_exact(&mut said)?;
    let (magic, version) = said.split_at(Hello::MAGIC_SIZE);
    let wrong = match [Hello::Dump, Hello::Restore].into_iter().find(|hello| hello.magic() == magic) {
        None => bail!("it says something else"),
        Some(_) if version != VERSION.to_le_bytes() => "is of another version",
        Some(Hello::Dump) if expected == Hello::Restore => "gives pages, and takes none of a dump",
        Some(Hello::Restore) if expected == Hello::Dump => "takes pages of a dump, and gives none (--serve)",
        Some(_) => {
            line.be(Patience::Endless);
            return Ok(line);
        }
    };
    answer(&mut line, Some(wrong))?;
    bail!("it is of another version, or wants something else")
}

/// Takes all of a dump; if that cannot be, the dump is told why.
fn receive(line: &mut Line, dir: &Path) -> Result<u64> {
    let received = PageFile::create(dir).and_then(|pages| {
        answer(line, None)?;
        pages.receive(line)
    });
    received.inspect_err(|error| {
        // The dump is about to notice, and sends what it was about to send: to close now would take the answer away from it.
        if answer(line, Some(&format!("{error:#}"))).is_ok() {
            line.be(Patience::Until(Instant::now() + PATIENCE));
            let _ = std::io::copy(line, &mut std::io::sink());
        }
    })
}

/// A file of pages that has not got its name yet. Dropped before, it leaves nothing behind.
#[derive(Debug)]
struct PageFile {
    path: PathBuf,
    temporary: PathBuf,
    file: Flock<File>,
    named: bool,
}

impl PageFile {
    /// What a killed server has left under the name is removed, never followed or used again: it may be anything, with other names and rights.
    /// (The directory itself cannot say whether there is another server: it is locked by a dump that has it, too.)
    fn create(dir: &Path) -> Result<Self> {
        let path = dir.join(Kind::Pages.file_name());
        let temporary = dir.join(format!("{}.received", Kind::Pages.file_name()));
        let create = || -> Result<Flock<File>> {
            // Locked until there is a new one that is: of two servers that find it, one removes it.
            let _left = remove_left(&temporary)?;
            let new = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary)?;
            lock(new, &temporary)
        };
        let file = create().with_context(|| format!("create {}", temporary.display()))?;
        Ok(Self { path, temporary, file, named: false })
    }

    fn receive(mut self, line: &mut Line) -> Result<u64> {
        let (mut received, mut whole, mut bytes) = (0_u64, false, Vec::new());
        let place = format!("write {}", self.temporary.display());
        loop {
            let frame = Frame::read(line, &mut bytes).context("the dump did not finish")?;
            match frame.what {
                PAGES => {
                    self.file.write_all_at(&bytes, frame.place).with_context(|| place.clone())?;
                    received += u64::from(frame.len);
                }
                ALL => {
                    let size = self.file.metadata().with_context(|| place.clone())?.len();
                    if received != frame.place || size != frame.place {
                        bail!("{received} bytes of pages came, {} were sent", frame.place);
                    }
                    whole = true;
                    answer(line, None)?;
                }
                COMMIT if whole => {
                    let to = || format!("rename to {}", self.path.display());
                    fs::rename(&self.temporary, &self.path).with_context(to)?;
                    self.named = true;
                    answer(line, None)?;
                    return Ok(received);
                }
                other => bail!("a frame of kind {other}, which is not to come now"),
            }
        }
    }
}

impl Drop for PageFile {
    fn drop(&mut self) {
        if !self.named {
            let _ = fs::remove_file(&self.temporary);
        }
    }
}

/// Removes what a server has left that does not run any more; if that is a file, it is returned, locked.
fn remove_left(path: &Path) -> Result<Option<Flock<File>>> {
    let left = match fs::symlink_metadata(path) {
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(None),
        Ok(left) if !left.is_file() => None,
        _ => {
            let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK | libc::O_NOCTTY;
            Some(lock(OpenOptions::new().write(true).custom_flags(flags).open(path)?, path)?)
        }
    };
    fs::remove_file(path)?;
    Ok(left)
}

/// Locks a file as long as the name leads to it.
fn lock(file: File, path: &Path) -> Result<Flock<File>> {
    const OTHER: &str = "another page server writes to it";
    let file = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        Ok(file) => file,
        Err((_, Errno::EWOULDBLOCK)) => bail!(OTHER),
        Err((_, errno)) => return Err(errno.into()),
    };
    let (named, own) = (fs::symlink_metadata(path)?, file.metadata()?);
    if (named.dev(), named.ino()) != (own.dev(), own.ino()) {
        bail!(OTHER);
    }
    Ok(file)
}
