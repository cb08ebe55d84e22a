//! The server's side: one dump, or one round, and its file of pages.

use super::line::{Line, Patient};
use super::{ALL, COMMIT, Frame, HELLO, PAGES, VERSION, answer, tls};
use anyhow::{Context, Result, bail};
use images::container::Kind;
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use rustls::ServerConfig;
use std::fs::{self, File, OpenOptions};
use std::io::Read;
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long who connects may take to say that it is a dump.
const PATIENCE: Duration = Duration::from_secs(10);

/// Serves the first that turns out to be a dump. Returns the bytes of its pages.
///
/// # Errors
/// If that dump did not come to its end, or its pages cannot be written: there is then the file that was there before, or none.
pub fn serve(listener: &TcpListener, dir: &Path, tls: Option<&Arc<ServerConfig>>) -> Result<u64> {
    loop {
        let (tcp, peer) = listener.accept().context("accept")?;
        match greet(tcp, tls) {
            Ok(mut line) => {
                log::info!("a dump comes from {peer}");
                return receive(&mut line, dir);
            }
            Err(error) => log::warn!("{peer}: is no dump of crr: {error:#}"),
        }
    }
}

fn greet(tcp: TcpStream, tls: Option<&Arc<ServerConfig>>) -> Result<Line> {
    let patient = Patient::new(tcp, Some(Instant::now() + PATIENCE))?;
    let mut line = match tls {
        Some(config) => tls::accept(config, patient)?,
        None => Line::Plain(patient),
    };
    let mut hello = [0; HELLO.len() + 4];
    line.read_exact(&mut hello)?;
    let (magic, version) = hello.split_at(HELLO.len());
    if magic != HELLO {
        bail!("it says something else");
    }
    if version != VERSION.to_le_bytes() {
        answer(&mut line, Some("is of another version"))?;
        bail!("it is of another version");
    }
    line.wait_until(None);
    Ok(line)
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
            line.wait_until(Some(Instant::now() + PATIENCE));
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
    /// What a killed server has left under the name is used again, nobody else's. (The directory itself is locked by a dump that has it, too.)
    fn create(dir: &Path) -> Result<Self> {
        let path = dir.join(Kind::Pages.file_name());
        let temporary = dir.join(format!("{}.received", Kind::Pages.file_name()));
        let place = || format!("create {}", temporary.display());
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .custom_flags(libc::O_NOFOLLOW)
            .open(&temporary)
            .with_context(place)?;
        let file = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(file) => file,
            Err((_, Errno::EWOULDBLOCK)) => bail!("{}: another page server writes to it", dir.display()),
            Err((_, errno)) => return Err(errno).with_context(place),
        };
        let named = fs::symlink_metadata(&temporary).with_context(place)?;
        let own = file.metadata().with_context(place)?;
        if (named.dev(), named.ino()) != (own.dev(), own.ino()) || !own.is_file() {
            bail!("{}: another page server writes to it", dir.display());
        }
        file.set_len(0).with_context(place)?;
        Ok(Self { path, temporary, file, named: false })
    }

    fn receive(mut self, line: &mut Line) -> Result<u64> {
        let (mut received, mut whole, mut bytes) = (0_u64, false, Vec::new());
        let place = format!("write {}", self.temporary.display());
        loop {
            let frame = Frame::read(line, &mut bytes)?;
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
