//! A dump and a server that speak with each other.

use super::client::{Client, Server};
use super::fetch::Fetcher;
use super::give::give;
use super::tls::Files;
use super::{Frame, Listed, PAGES, check_exposed, server};
use crate::store::Offered;
use nix::fcntl::{Flock, FlockArg};
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::Path;
use std::process::Command;
use std::thread;
use tempfile::TempDir;

/// A server for what `talk` does with it; what it ended with, and its directory.
fn serve(tls: Option<&Files>, talk: impl FnOnce(u16)) -> (anyhow::Result<u64>, TempDir) {
    serve_in(tls, |port, _| talk(port))
}

/// [`serve`] for who wants to see the directory meanwhile.
fn serve_in(tls: Option<&Files>, talk: impl FnOnce(u16, &Path)) -> (anyhow::Result<u64>, TempDir) {
    let dir = tempfile::tempdir().unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let config = tls.map(|files| files.read().unwrap().server().unwrap());
    let path = dir.path().to_owned();
    let server = thread::spawn(move || server::serve(&listener, &path, config.as_ref()));
    talk(port, dir.path());
    (server.join().unwrap(), dir)
}

fn at(port: u16, tls: Option<&Files>) -> Server {
    Server { host: "127.0.0.1".to_owned(), port, tls: tls.cloned(), insecure: false }
}

fn pages(number: u8) -> Vec<u8> {
    vec![number; 1 << 20]
}

fn send_all(client: &Client) {
    client.put(&pages(2), 1 << 20).unwrap();
    client.put(&pages(1), 0).unwrap();
    client.finish(2 << 20).unwrap();
    client.commit().unwrap();
}

fn names(dir: &Path) -> Vec<String> {
    fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

#[test]
fn pages_arrive_in_any_order() {
    let (served, dir) = serve(None, |port| send_all(&Client::connect(&at(port, None)).unwrap()));
    assert_eq!(served.unwrap(), 2 << 20);
    assert!(fs::read(dir.path().join("pages.img")).unwrap() == [pages(1), pages(2)].concat());
    assert_eq!(names(dir.path()), ["pages.img"]);
}

/// The file gets its name only if the dump says so.
#[test]
fn a_dump_that_goes_away_leaves_nothing() {
    let (served, dir) = serve(None, |port| {
        let client = Client::connect(&at(port, None)).unwrap();
        client.put(&pages(1), 0).unwrap();
        client.finish(1 << 20).unwrap();
    });
    assert!(format!("{:#}", served.unwrap_err()).contains("the dump did not finish"));
    assert_eq!(names(dir.path()), [""; 0]);
}

#[test]
fn what_is_missing_is_noticed() {
    let (served, dir) = serve(None, |port| {
        let client = Client::connect(&at(port, None)).unwrap();
        client.put(&pages(1), 0).unwrap();
        let error = format!("{:#}", client.finish(2 << 20).unwrap_err());
        assert!(error.contains("it says: 1048576 bytes of pages came, 2097152 were sent"), "{error}");
    });
    assert!(served.is_err());
    assert_eq!(names(dir.path()), [""; 0]);
}

#[test]
fn a_byte_that_changed_on_the_way_is_noticed() {
    let bytes = pages(5);
    let frame = Frame { what: PAGES, len: 1 << 20, place: 4096 };
    let whole = [&frame.encode(&bytes)[..], &bytes].concat();
    assert_eq!(Frame::read(&mut &whole[..], &mut Vec::new()).unwrap(), frame);
    for at in [0, 9, 17, 20, 5000, whole.len() - 1] {
        let mut changed = whole.clone();
        changed[at] ^= 1;
        assert!(Frame::read(&mut &changed[..], &mut Vec::new()).is_err(), "{at}");
    }
}

/// A server that cannot write tells the dump why, while that is still sending.
#[test]
fn a_server_that_fails_says_why() {
    let (served, _dir) = serve(None, |port| {
        let client = Client::connect(&at(port, None)).unwrap();
        let error = loop {
            if let Err(error) = client.put(&pages(1), i64::MAX as u64) {
                break format!("{error:#}");
            }
        };
        assert!(error.contains("it says: write ") && error.contains("pages.img.received"), "{error}");
    });
    assert!(served.is_err());
}

/// Whoever else connects does not keep the dump from it.
#[test]
fn strangers_are_sent_away() {
    let (served, _dir) = serve(None, |port| {
        let mut stranger = TcpStream::connect(("127.0.0.1", port)).unwrap();
        stranger.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
        assert!(matches!(stranger.read(&mut [0; 10]), Ok(0) | Err(_)));
        drop(TcpStream::connect(("127.0.0.1", port)).unwrap());
        send_all(&Client::connect(&at(port, None)).unwrap());
    });
    served.unwrap();
}

/// Nor does who says nothing at all; and a second dump is told at once that it is too late.
#[test]
fn who_says_nothing_keeps_nobody_waiting() {
    let (served, _dir) = serve(None, |port| {
        let silent = [(); 3].map(|()| TcpStream::connect(("127.0.0.1", port)).unwrap());
        let client = Client::connect(&at(port, None)).unwrap();
        let error = format!("{:#}", Client::connect(&at(port, None)).unwrap_err());
        assert!(error.contains("it has a dump already"), "{error}");
        send_all(&client);
        drop(silent);
    });
    served.unwrap();
}

/// What is there under the name that pages are received by is never written to; only a server that runs keeps another one out.
#[test]
fn what_a_killed_server_left_is_replaced() {
    let kept = tempfile::tempdir().unwrap();
    let secret = kept.path().join("secret");
    fs::write(&secret, "secret").unwrap();
    let ways: [fn(&Path, &Path) -> std::io::Result<()>; 3] = [
        |from, to| symlink(from, to),
        |from, to| fs::hard_link(from, to),
        |_, to| Ok(mkfifo(to, Mode::S_IRWXU)?),
    ];
    for put in ways {
        let (served, dir) = serve_in(None, |port, dir| {
            put(&secret, &dir.join("pages.img.received")).unwrap();
            send_all(&Client::connect(&at(port, None)).unwrap());
        });
        assert_eq!(served.unwrap(), 2 << 20);
        let pages = fs::metadata(dir.path().join("pages.img")).unwrap();
        assert_eq!((pages.len(), pages.mode() & 0o777, pages.nlink()), (2 << 20, 0o600, 1));
        assert_eq!(fs::read(&secret).unwrap(), b"secret");
    }
    let (served, dir) = serve_in(None, |port, dir| {
        let left = File::create(dir.join("pages.img.received")).unwrap();
        let _other = Flock::lock(left, FlockArg::LockExclusive).unwrap();
        let error = Client::connect(&at(port, None)).unwrap_err();
        assert!(format!("{error:#}").contains("another page server writes to it"), "{error:#}");
    });
    assert!(served.is_err());
    assert_eq!(names(dir.path()), ["pages.img.received"]);
}

#[test]
fn a_server_that_is_gone_is_noticed() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let server = at(listener.local_addr().unwrap().port(), None);
    let accepting = thread::spawn(move || {
        let (mut tcp, _) = listener.accept().unwrap();
        tcp.read_exact(&mut [0; 12]).unwrap();
        super::answer(&mut tcp, None).unwrap();
    });
    let client = Client::connect(&server).unwrap();
    accepting.join().unwrap();
    assert!((0..100).any(|_| client.put(&pages(0), 0).is_err()));
    assert!(Client::connect(&server).is_err());
}

#[test]
fn nothing_goes_over_a_network_in_the_open() {
    let address = |text: &str| text.parse().unwrap();
    for own in ["127.0.0.1", "127.3.0.1", "::1", "::ffff:127.0.0.1"] {
        check_exposed(address(own), false, false).unwrap();
    }
    for other in ["0.0.0.0", "::", "10.0.0.1", "2001:db8::1"] {
        assert!(check_exposed(address(other), false, false).is_err(), "{other}");
        check_exposed(address(other), true, false).unwrap();
        check_exposed(address(other), false, true).unwrap();
    }
    let server = Server { host: "192.0.2.1".to_owned(), port: 1, tls: None, insecure: false };
    assert!(format!("{:#}", Client::connect(&server).unwrap_err()).contains("--insecure"));
}

/// An authority, and a certificate of it for 127.0.0.1.
fn certified(dir: &Path, name: &str) -> Files {
    let file = |what: &str| dir.join(format!("{name}-{what}.pem"));
    let text = |what: &str| file(what).display().to_string();
    let openssl = |arguments: &str| {
        let output = Command::new("openssl").args(arguments.split(' ')).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    };
    let key = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2";
    openssl(&format!("req -x509 {key} -subj /CN=authority -keyout {} -out {}", text("ca-key"), text("ca")));
    openssl(&format!(
        "req -x509 {key} -subj /CN=peer -addext subjectAltName=IP:127.0.0.1 -addext basicConstraints=critical,CA:FALSE -CA {} -CAkey {} -keyout {} \
         -out {}",
        text("ca"),
        text("ca-key"),
        text("key"),
        text("cert")
    ));
    Files { authority: file("ca"), certificate: file("cert"), key: file("key") }
}

#[test]
fn tls_asks_both_for_a_certificate() {
    let files = tempfile::tempdir().unwrap();
    let (own, other) = (certified(files.path(), "own"), certified(files.path(), "other"));
    // A dump with the certificate of another authority, one that trusts another, one without TLS.
    let stranger = Files { authority: own.authority.clone(), ..other.clone() };
    let distrustful = Files { authority: other.authority.clone(), ..own.clone() };
    let (served, dir) = serve(Some(&own), |port| {
        for wrong in [Some(&stranger), Some(&distrustful), None] {
            assert!(Client::connect(&at(port, wrong)).is_err());
        }
        send_all(&Client::connect(&at(port, Some(&own))).unwrap());
    });
    served.unwrap();
    assert!(fs::read(dir.path().join("pages.img")).unwrap() == [pages(1), pages(2)].concat());
}

/// A server that gives these files, until the tests end.
fn giving(tls: Option<&Files>, files: Vec<Offered>) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let config = tls.map(|files| files.read().unwrap().server().unwrap());
    thread::spawn(move || give(&listener, files, config));
    port
}

fn offered(bytes: &[u8], inventory: Option<u32>) -> Offered {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(bytes).unwrap();
    Offered { path: "pages.img".into(), file, size: bytes.len() as u64, inventory }
}

/// More pieces than can be on their way at once come in order, from the file that was meant, over several connections.
#[test]
fn pages_are_given_to_many() {
    let files = tempfile::tempdir().unwrap();
    let own = certified(files.path(), "own");
    for tls in [None, Some(&own)] {
        let port = giving(tls, vec![offered(&pages(1), Some(7)), offered(&pages(2), Some(8))]);
        let first = Fetcher::connect(&at(port, tls)).unwrap();
        let second = Fetcher::again(first.peer()).unwrap();
        let mut fetchers = [first, second];
        for (which, crc, byte) in [(0, 8, 2), (1, 7, 1), (1, 8, 2)] {
            let fetcher: &mut Fetcher = &mut fetchers[which];
            let number = fetcher.find(&Listed { size: 1 << 20, inventory: Some(crc) }).unwrap();
            let pieces = (0..64).map(|piece| (piece * 1000, 1000));
            let mut next = 0;
            let each = |place, bytes: &[u8]| {
                assert_eq!((place, bytes), (next, &[byte; 1000][..]));
                next += 1000;
                Ok(())
            };
            fetcher.fetch(number, pieces, each).unwrap();
            assert_eq!(next, 64_000);
        }
    }
    assert!(Fetcher::connect(&at(giving(Some(&own), Vec::new()), None)).is_err());
}

#[test]
fn other_pages_are_not_taken() {
    let port = giving(None, vec![offered(&pages(1), Some(7))]);
    let mut fetcher = Fetcher::connect(&at(port, None)).unwrap();
    for (size, inventory) in [(1 << 20, 8), (1 << 21, 7)] {
        let error = fetcher.find(&Listed { size, inventory: Some(inventory) }).unwrap_err();
        assert!(format!("{error:#}").contains("pages of another checkpoint"), "{error:#}");
    }
    let error = fetcher.fetch(0, [(0, 1 << 20), (1 << 20, 1)], |_, _| Ok(())).unwrap_err();
    assert!(format!("{error:#}").contains("it says: pages.img: has no 1 bytes at 0x100000"), "{error:#}");
    // Without an inventory, a server cannot know.
    let fetcher = Fetcher::connect(&at(giving(None, vec![offered(&pages(1), None)]), None)).unwrap();
    assert_eq!(fetcher.find(&Listed { size: 1 << 20, inventory: Some(7) }).unwrap(), 0);
}

/// A server is for dumps or for restores, and says so to the others.
#[test]
fn servers_are_for_one_thing() {
    let port = giving(None, Vec::new());
    let error = format!("{:#}", Client::connect(&at(port, None)).unwrap_err());
    assert!(error.contains("it says: gives pages, and takes none"), "{error}");
    let (served, _dir) = serve(None, |port| {
        let error = format!("{:#}", Fetcher::connect(&at(port, None)).unwrap_err());
        assert!(error.contains("it says: takes pages of a dump, and gives none"), "{error}");
        send_all(&Client::connect(&at(port, None)).unwrap());
    });
    served.unwrap();
}

/// A way to a server that ends each connection after so many bytes of what the server says. Its port.
fn cutting(server: u16, limits: impl Iterator<Item = u64> + Send + 'static) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    thread::spawn(move || {
        for limit in limits {
            let (mut near, _) = listener.accept().unwrap();
            let mut far = TcpStream::connect(("127.0.0.1", server)).unwrap();
            let (mut asking, mut asked) = (near.try_clone().unwrap(), far.try_clone().unwrap());
            thread::spawn(move || std::io::copy(&mut asking, &mut asked));
            thread::spawn(move || {
                let _ = std::io::copy(&mut Read::by_ref(&mut far).take(limit), &mut near);
                let _ = (near.shutdown(Shutdown::Both), far.shutdown(Shutdown::Both));
            });
        }
    });
    port
}

/// A connection that breaks, wherever that is, is made again: all comes, in order, and once.
#[test]
fn broken_connections_are_made_again() {
    let files = tempfile::tempdir().unwrap();
    let own = certified(files.path(), "own");
    for tls in [None, Some(&own)] {
        let server = giving(tls, vec![offered(&pages(1), Some(7)), offered(&pages(2), Some(8))]);
        // Also before a new one is of any use.
        let port = cutting(server, [1 << 17, 1, 1 << 18, 1 << 17, 10_000, u64::MAX].into_iter());
        let mut fetcher = Fetcher::connect(&at(port, tls)).unwrap();
        let number = fetcher.find(&Listed { size: 1 << 20, inventory: Some(8) }).unwrap();
        let mut next = 0;
        let pieces = (0..16).map(|piece| (piece << 16, 1 << 16));
        let each = |place, bytes: &[u8]| {
            assert_eq!((place, bytes), (next, &[2; 1 << 16][..]));
            next += 1 << 16;
            Ok(())
        };
        fetcher.fetch(number, pieces, each).unwrap();
        assert_eq!(next, 1 << 20);
    }
}

/// What has come in the place of the server has to have the same.
#[test]
fn another_server_is_not_taken_for_the_first() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    thread::spawn(move || {
        for inventory in [7, 9] {
            let (mut tcp, _) = listener.accept().unwrap();
            tcp.read_exact(&mut [0; 12]).unwrap();
            super::answer(&mut tcp, None).unwrap();
            tcp.write_all(&1u32.to_le_bytes()).unwrap();
            tcp.write_all(&Listed { size: 1 << 20, inventory: Some(inventory) }.encode()).unwrap();
        }
    });
    let mut fetcher = Fetcher::connect(&at(port, None)).unwrap();
    let error = fetcher.fetch(0, [(0, 4096)], |_, _| Ok(())).unwrap_err();
    assert!(format!("{error:#}").contains("it has other pages than before"), "{error:#}");
}
