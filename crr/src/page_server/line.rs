//! A connection, by TCP alone or with TLS.

use crate::ptrace;
use anyhow::{Context, Result};
use nix::sys::socket::setsockopt;
use nix::sys::socket::sockopt::{KeepAlive, TcpKeepCount, TcpKeepIdle, TcpKeepInterval, TcpUserTimeout};
use rustls::{ClientConnection, ServerConnection, StreamOwned};
use std::io::{self, ErrorKind, Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

/// After so long without progress it is looked whether crr is to end.
const LOOK: Duration = Duration::from_millis(100);

/// After so many milliseconds in which the other end has taken nothing of what was sent, it is gone.
const SILENCE: u32 = 30_000;

/// How long the other end is waited for.
#[derive(Clone, Copy, Debug)]
pub enum Patience {
    /// As long as its machine is there.
    Endless,
    /// Until a moment.
    Until(Instant),
    /// As long as it says something, or takes something, every half a minute.
    Progress,
}

impl Patience {
    /// When a call that begins now is given up.
    fn end(self) -> Option<Instant> {
        match self {
            Self::Endless => None,
            Self::Until(moment) => Some(moment),
            Self::Progress => Some(Instant::now() + Duration::from_millis(SILENCE.into())),
        }
    }
}

/// A connection by TCP; signals that are held back end it too.
#[derive(Debug)]
pub struct Patient {
    tcp: TcpStream,
    patience: Patience,
}

impl Patient {
    /// # Errors
    /// If the connection is gone already.
    pub(super) fn new(tcp: TcpStream, patience: Patience) -> Result<Self> {
        tcp.set_nodelay(true).context("TCP_NODELAY")?;
        tcp.set_read_timeout(Some(LOOK)).context("SO_RCVTIMEO")?;
        tcp.set_write_timeout(Some(LOOK)).context("SO_SNDTIMEO")?;
        notice_death(&tcp)?;
        Ok(Self { tcp, patience })
    }

    fn wait<T>(&mut self, mut work: impl FnMut(&mut TcpStream) -> io::Result<T>) -> io::Result<T> {
        let end = self.patience.end();
        loop {
            match work(&mut self.tcp) {
                Err(e) if [ErrorKind::WouldBlock, ErrorKind::Interrupted].contains(&e.kind()) => {
                    ptrace::check_interrupted().map_err(io::Error::other)?;
                    if end.is_some_and(|end| Instant::now() >= end) {
                        return Err(ErrorKind::TimedOut.into());
                    }
                }
                done => return done,
            }
        }
    }
}

/// A machine that is gone says nothing any more: without these, a tree would stand still for hours (tcp(7)). The first three are for an end
/// that waits, the last for one that has sent something.
fn notice_death(tcp: &TcpStream) -> Result<()> {
    setsockopt(tcp, TcpKeepIdle, &10).context("TCP_KEEPIDLE")?;
    setsockopt(tcp, TcpKeepInterval, &5).context("TCP_KEEPINTVL")?;
    setsockopt(tcp, TcpKeepCount, &3).context("TCP_KEEPCNT")?;
    setsockopt(tcp, KeepAlive, &true).context("SO_KEEPALIVE")?;
    setsockopt(tcp, TcpUserTimeout, &SILENCE).context("TCP_USER_TIMEOUT")
}

impl Read for Patient {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.wait(|tcp| tcp.read(buffer))
    }
}

impl Write for Patient {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.wait(|tcp| tcp.write(bytes))
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// What is said goes over this.
#[derive(Debug)]
pub enum Line {
    /// For everybody to read.
    Plain(Patient),
    /// The end of a dump or a restore.
    Client(Box<StreamOwned<ClientConnection, Patient>>),
    /// The server's end.
    Server(Box<StreamOwned<ServerConnection, Patient>>),
}

impl Line {
    /// From now on the other end is waited for so long.
    pub(super) fn be(&mut self, patience: Patience) {
        match self {
            Self::Plain(patient) => patient.patience = patience,
            Self::Client(tls) => tls.sock.patience = patience,
            Self::Server(tls) => tls.sock.patience = patience,
        }
    }
}

impl Read for Line {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Plain(patient) => patient.read(buffer),
            Self::Client(tls) => tls.read(buffer),
            Self::Server(tls) => tls.read(buffer),
        }
    }
}

impl Write for Line {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Plain(patient) => patient.write(bytes),
            Self::Client(tls) => tls.write(bytes),
            Self::Server(tls) => tls.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Plain(patient) => patient.flush(),
            Self::Client(tls) => tls.flush(),
            Self::Server(tls) => tls.flush(),
        }
    }
}
