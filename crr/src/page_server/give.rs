//! The side of a server that gives page contents to restores.

use super::line::{Line, Patience};
use super::server::{accept, greet};
use super::{Frame, Hello, Listed, MAX_FRAME, PAGES, WRONG, Want};
use crate::store::Offered;
use anyhow::{Context, Result, bail};
use rustls::ServerConfig;
use std::convert::Infallible;
use std::io::{ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::thread;

/// Gives these files to whoever asks, each connection by a thread of its own, until the server is killed.
///
/// # Errors
/// If nobody can connect any more.
pub fn give(
    listener: &TcpListener,
    files: Vec<Offered>,
    tls: Option<Arc<ServerConfig>>,
) -> Result<Infallible> {
    let (files, tls) = (Arc::new(files), tls);
    loop {
        let (tcp, peer) = accept(listener)?;
        let (files, tls) = (Arc::clone(&files), tls.clone());
        let give = move || match give_over(tcp, tls.as_ref(), &files) {
            Ok(()) => log::debug!("{peer}: has what it wanted"),
            Err(error) => log::warn!("{peer}: {error:#}"),
        };
        // The others' connections stay: without them, their tasks are killed.
        if let Err(error) = thread::Builder::new().name("give".to_owned()).spawn(give) {
            log::warn!("{peer}: is sent away: start a thread: {error}");
        }
    }
}

/// Gives what is wanted over one connection, until it is closed.
fn give_over(tcp: TcpStream, tls: Option<&Arc<ServerConfig>>, files: &[Offered]) -> Result<()> {
    let mut line = greet(tcp, tls, Hello::Restore)?;
    super::answer(&mut line, None)?;
    line.write_all(&u32::try_from(files.len())?.to_le_bytes())?;
    for Offered { size, inventory, .. } in files {
        line.write_all(&Listed { size: *size, inventory: *inventory }.encode())?;
    }
    line.flush()?;
    line.be(Patience::Endless);
    let mut bytes = Vec::new();
    while let Some(want) = next(&mut line)? {
        if let Err(error) = read(files, want, &mut bytes) {
            Frame::write(&mut line, WRONG, want.place, format!("{error:#}").as_bytes())?;
            return Err(error);
        }
        Frame::write(&mut line, PAGES, want.place, &bytes)?;
    }
    Ok(())
}

/// What is wanted next; `None` if the restore has closed the connection.
fn next(line: &mut Line) -> Result<Option<Want>> {
    let mut bytes = [0; Want::SIZE];
    let got = match line.read(&mut bytes) {
        Ok(0) => return Ok(None),
        Err(e) if e.kind() == ErrorKind::UnexpectedEof => return Ok(None),
        got => got?,
    };
    line.read_exact(&mut bytes[got..])?;
    Ok(Some(Want::decode(bytes)))
}

fn read(files: &[Offered], want: Want, bytes: &mut Vec<u8>) -> Result<()> {
    let file = usize::try_from(want.file).ok().and_then(|number| files.get(number));
    let file = file.context("there is no such file")?;
    let len = usize::try_from(want.len)?;
    if len > MAX_FRAME || want.place.checked_add(want.len.into()).is_none_or(|end| end > file.size) {
        bail!("{}: has no {len} bytes at {:#x}", file.path.display(), want.place);
    }
    bytes.resize(len, 0);
    file.file.read_exact_at(bytes, want.place).with_context(|| file.path.display().to_string())
}
