//! Connecting to a server; the dump's side.

use super::line::{Line, Patience, Patient};
use super::{ALL, COMMIT, Frame, Hello, PAGES, VERSION, check_exposed, expect_good, tls};
use anyhow::{Context, Result, bail};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use serde::{Deserialize, Serialize};
use std::io::Write;
use std::net::{SocketAddr, TcpStream, ToSocketAddrs};
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

impl Server {
    /// Connects to the first of its addresses where somebody is. Also returns what it takes to connect there again.
    pub(super) fn connect(&self, hello: Hello) -> Result<(Peer, Line, TcpStream)> {
        let name = format!("{}:{}", self.host, self.port);
        let connect = || {
            let host = self.host.trim_matches(['[', ']']);
            let tls = self.tls.as_ref().map(tls::Files::read).transpose()?;
            let mut failed = None;
            for address in (host, self.port).to_socket_addrs()? {
                check_exposed(address.ip(), tls.is_some(), self.insecure)?;
                match TcpStream::connect_timeout(&address, PATIENCE) {
                    Ok(tcp) => {
                        let peer = Peer { name: name.clone(), host: host.to_owned(), address, tls };
                        let (line, tcp) = peer.greet(tcp, hello)?;
                        return Ok((peer, line, tcp));
                    }
                    Err(e) => failed = Some(e),
                }
            }
            match failed {
                Some(e) => Err(e.into()),
                None => bail!("has no address"),
            }
        };
        connect().with_context(|| format!("page server {name}"))
    }
}

/// A server that has been connected to: what it takes to do so again, from any process.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Peer {
    /// As it was spelled.
    pub(super) name: String,
    host: String,
    address: SocketAddr,
    tls: Option<tls::Credentials>,
}

impl Peer {
    /// Connects again.
    pub(super) fn connect(&self, hello: Hello) -> Result<Line> {
        let tcp = TcpStream::connect_timeout(&self.address, PATIENCE)?;
        Ok(self.greet(tcp, hello)?.0)
    }

    /// Also returns the connection itself, to look whether the server has something to say.
    fn greet(&self, tcp: TcpStream, hello: Hello) -> Result<(Line, TcpStream)> {
        let patience = Patience::Until(Instant::now() + PATIENCE);
        let patient = Patient::new(tcp.try_clone().context("dup")?, patience)?;
        let mut line = match &self.tls {
            Some(credentials) => credentials.connect(&self.host, patient)?,
            None => Line::Plain(patient),
        };
        line.write_all(hello.magic())?;
        line.write_all(&VERSION.to_le_bytes())?;
        line.flush()?;
        expect_good(&mut line)?;
        line.be(Patience::Endless);
        Ok((line, tcp))
    }
}

/// The connection of a dump.
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
        let (Peer { name, .. }, line, tcp) = server.connect(Hello::Dump)?;
        Ok(Self { name, line: Mutex::new(line), tcp, end: AtomicU64::new(0) })
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
            Frame::write(&mut *line, what, place, bytes)?;
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
