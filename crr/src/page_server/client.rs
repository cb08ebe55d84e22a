//! Connecting to a server; the dump's side.

use super::line::{Line, Patience, Patient};
use super::{ALL, COMMIT, Frame, Hello, PAGES, VERSION, check_exposed, expect_good, tls};
use anyhow::{Context, Result, bail};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use serde::{Deserialize, Serialize};
use std::io::Write;
use std::net::{IpAddr, SocketAddr, TcpStream, ToSocketAddrs};
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

    /// The inode number of the server's end of the connection, if that is in this network namespace.
    pub(crate) fn inode_of_server(&self) -> Option<u64> {
        inode_of(self.tcp.peer_addr().ok()?, self.tcp.local_addr().ok()?)
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

/// The inode number of a TCP socket in this network namespace, by its own address and that of the other end.
fn inode_of(own: SocketAddr, other: SocketAddr) -> Option<u64> {
    let plain = |address: SocketAddr| (address.ip().to_canonical(), address.port());
    let (own, other) = (plain(own), plain(other));
    // A socket of IPv6 takes connections of IPv4, too.
    ["/proc/net/tcp", "/proc/net/tcp6"].iter().find_map(|table| {
        let rows = std::fs::read_to_string(table).ok()?;
        rows.lines().skip(1).filter_map(row).find(|row| row.0 == own && row.1 == other).map(|row| row.2)
    })
}

/// An address and a port.
type Port = (IpAddr, u16);

/// A row of `/proc/net/tcp`: both addresses, and the inode number (get_tcp4_sock(), net/ipv4/tcp_ipv4.c).
fn row(text: &str) -> Option<(Port, Port, u64)> {
    let mut fields = text.split_whitespace().skip(1);
    let (own, other) = (end(fields.next()?)?, end(fields.next()?)?);
    Some((own, other, fields.nth(6)?.parse().ok().filter(|&inode| inode != 0)?))
}

/// An address and a port there: 32-bit words of the address, each as this machine has it, and a number.
fn end(text: &str) -> Option<(IpAddr, u16)> {
    let (address, port) = text.split_once(':')?;
    let word = |at: usize| -> Option<[u8; 4]> {
        Some(u32::from_str_radix(address.get(at..at + 8)?, 16).ok()?.to_ne_bytes())
    };
    let ip = if address.len() == 8 {
        IpAddr::from(word(0)?)
    } else {
        let mut bytes = [0; 16];
        for (part, at) in bytes.chunks_exact_mut(4).zip((0..).step_by(8)) {
            part.copy_from_slice(&word(at)?);
        }
        IpAddr::from(bytes).to_canonical()
    };
    Some((ip, u16::from_str_radix(port, 16).ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{Ipv6Addr, TcpListener};
    use std::os::fd::OwnedFd;
    use std::os::unix::fs::MetadataExt;
    use std::thread;

    #[test]
    fn the_other_end_is_found() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let here = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let there = std::fs::File::from(OwnedFd::from(listener.accept().unwrap().0));
        let (server, own) = (here.peer_addr().unwrap(), here.local_addr().unwrap());
        assert_eq!(inode_of(server, own), Some(there.metadata().unwrap().ino()));
        assert_ne!(inode_of(server, own), inode_of(own, server));
        drop((here, there));
        // A process that another test starts may have copies until it is another program.
        let is_gone = || {
            thread::sleep(Duration::from_millis(10));
            inode_of(server, own).is_none()
        };
        assert!((0..1000).any(|_| is_gone()));
    }

    #[test]
    fn addresses_are_read() {
        let v4 = IpAddr::from([127, 0, 0, 1]);
        assert_eq!(end("0100007F:1F90"), Some((v4, 8080)));
        assert_eq!(end("0000000000000000FFFF00000100007F:0016"), Some((v4, 22)));
        assert_eq!(end("00000000000000000000000001000000:0016"), Some((Ipv6Addr::LOCALHOST.into(), 22)));
        for wrong in ["", "0100007F", "0100007:1", "0100007F:10000", "x100007F:1"] {
            assert_eq!(end(wrong), None, "{wrong}");
        }
    }
}
