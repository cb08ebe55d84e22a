//! The dump's side.

use super::line::{Line, Patient};
use super::{ALL, COMMIT, Frame, HELLO, PAGES, VERSION, check_exposed, expect_good, tls};
use anyhow::{Context, Result, bail};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::io::Write;
use std::net::{TcpStream, ToSocketAddrs};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How long a server may take to take the connection.
const PATIENCE: Duration = Duration::from_secs(10);

/// Which server, and how it is to be spoken with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Server {
    /// A name or an address.
    pub host: String,
    /// Its port.
    pub port: u16,
    /// TLS, with these files.
    pub tls: Option<tls::Files>,
    /// Without TLS to other machines, too.
    pub insecure: bool,
}

/// A connection to a server.
#[derive(Debug)]
pub struct Client {
    name: String,
    line: Mutex<Line>,
    /// The same connection, to look whether the server has something to say.
    tcp: TcpStream,
    /// Where the next packed pages go.
    end: AtomicU64,
}

impl Client {
    /// Connects.
    ///
    /// # Errors
    /// If there is no server, or none that may be trusted.
    pub fn connect(server: &Server) -> Result<Self> {
        let name = format!("{}:{}", server.host, server.port);
        Self::try_to_connect(server, name.clone()).with_context(|| format!("page server {name}"))
    }

    fn try_to_connect(server: &Server, name: String) -> Result<Self> {
        let host = server.host.trim_matches(['[', ']']);
        let mut failed = None;
        for address in (host, server.port).to_socket_addrs()? {
            check_exposed(address.ip(), server.tls.is_some(), server.insecure)?;
            match TcpStream::connect_timeout(&address, PATIENCE) {
                Ok(tcp) => {
                    let patient =
                        Patient::new(tcp.try_clone().context("dup")?, Some(Instant::now() + PATIENCE))?;
                    let mut line = match &server.tls {
                        Some(files) => files.connect(host, patient)?,
                        None => Line::Plain(patient),
                    };
                    line.write_all(&HELLO)?;
                    line.write_all(&VERSION.to_le_bytes())?;
                    line.flush()?;
                    expect_good(&mut line)?;
                    line.wait_until(None);
                    return Ok(Self { name, line: Mutex::new(line), tcp, end: AtomicU64::new(0) });
                }
                Err(e) => failed = Some(e),
            }
        }
        match failed {
            Some(e) => Err(e.into()),
            None => bail!("has no address"),
        }
    }

    /// Sends pages to their place.
    pub(crate) fn put(&self, bytes: &[u8], place: u64) -> Result<()> {
        self.send(PAGES, place, bytes, false)
    }

    /// Sends packed pages. Returns where they go.
    pub(crate) fn append(&self, bytes: &[u8]) -> Result<u64> {
        let place = self.end.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        self.put(bytes, place)?;
        Ok(place)
    }

    /// Waits until the server has all pages, so many bytes.
    pub(crate) fn finish(&self, size: u64) -> Result<()> {
        self.send(ALL, size, &[], true)
    }

    /// Has the server give the file its name.
    pub(crate) fn commit(&self) -> Result<()> {
        self.send(COMMIT, 0, &[], true)
    }

    fn send(&self, what: u32, place: u64, bytes: &[u8], answered: bool) -> Result<()> {
        let send = || -> Result<()> {
            let mut line = self.line.lock().unwrap_or_else(PoisonError::into_inner);
            if self.has_something_to_say() {
                return expect_good(&mut *line).and_then(|()| bail!("it spoke without being asked"));
            }
            let frame = Frame { what, len: u32::try_from(bytes.len())?, place };
            line.write_all(&frame.encode(bytes))?;
            line.write_all(bytes)?;
            line.flush()?;
            if answered { expect_good(&mut *line) } else { Ok(()) }
        };
        send().with_context(|| format!("page server {}", self.name))
    }

    /// It speaks up when something is wrong.
    fn has_something_to_say(&self) -> bool {
        let mut polled = [PollFd::new(self.tcp.as_fd(), PollFlags::POLLIN)];
        poll(&mut polled, PollTimeout::ZERO).is_ok_and(|ready| ready > 0)
    }
}
