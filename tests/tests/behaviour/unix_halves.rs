//! Unix sockets whose other end is outside of the tree, in this process: refused, closed, connected again, or given by another program.

use anyhow::{Context, ensure};
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use std::fs::{self, Permissions};
use std::io::{IoSlice, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::{SocketAddr, UnixDatagram, UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use tests::abi::Abi;
use tests::case::{Running, Workload, nothing_left};
use tests::command::{self, Output};
use tests::isolate::isolated;
use tests::{Result, here, require_ia32, require_root, wait};

/// Who is there for a workload.
struct Servers {
    stream: UnixListener,
    /// At an abstract name.
    hidden: UnixListener,
    log: UnixDatagram,
    dir: PathBuf,
}

impl Servers {
    fn new(dir: &Path) -> Result<Self> {
        fs::create_dir_all(dir)?;
        let at = |name: &str| dir.join(name);
        let hidden = SocketAddr::from_abstract_name(at("hidden").as_os_str().as_bytes())?;
        let (stream, log) = (UnixListener::bind(at("server"))?, UnixDatagram::bind(at("journal"))?);
        fs::set_permissions(at("server"), Permissions::from_mode(0o777))?;
        log.set_read_timeout(Some(wait::STEP))?;
        Ok(Self { stream, hidden: UnixListener::bind_addr(&hidden)?, log, dir: dir.to_owned() })
    }

    /// The next client, whom nobody waits for longer than for anything else.
    fn accept(listener: &UnixListener) -> Result<UnixStream> {
        listener.set_nonblocking(true)?;
        let (client, _) = wait::until(wait::STEP, "somebody connects", || Ok(listener.accept().ok()))?;
        client.set_read_timeout(Some(wait::STEP))?;
        Ok(client)
    }
}

fn hear(from: &mut UnixStream, text: &str) -> Result {
    let mut bytes = vec![0; text.len()];
    from.read_exact(&mut bytes).with_context(|| format!("instead of {text:?}"))?;
    ensure!(bytes == text.as_bytes(), "{:?} instead of {text:?}", bytes.escape_ascii().to_string());
    Ok(())
}

fn hand_over(to: &UnixStream, fd: RawFd) -> Result {
    let rights = [ControlMessage::ScmRights(&[fd])];
    sendmsg::<()>(to.as_raw_fd(), &[IoSlice::new(b"x")], &rights, MsgFlags::empty(), None)?;
    Ok(())
}

/// Starts a case while `serve` does its part of it.
fn beside<T>(
    case: &'static str,
    dir: &Path,
    abi: Abi,
    serve: impl FnOnce(&Servers) -> Result<T> + Send,
) -> Result<(Servers, Running, T)>
where
    T: Send,
{
    let servers = Servers::new(&dir.join(abi.name()))?;
    let (running, served) = std::thread::scope(|scope| {
        let serving = scope.spawn(|| serve(&servers));
        let running = Workload::new("unix_halves", case).start(&servers.dir, abi);
        (running, serving.join())
    });
    let served = served.map_err(|_| anyhow::anyhow!("the servers panicked"))?;
    Ok((servers, running?, served?))
}

/// All connections of the tree to others come back closed, with what had arrived: without the option each is refused, with the ways out.
#[test]
fn closed() {
    require_root!();
    require_ia32!();
    isolated(&here!(), |dir| {
        for abi in Abi::ALL {
            let (servers, running, others) = beside("closed", dir, abi, |servers| {
                let mut client = Servers::accept(&servers.stream)?;
                let mut other = Servers::accept(&servers.hidden)?;
                hear(&mut client, "begin\n")?;
                let (own, theirs) = UnixStream::pair()?;
                let mut outsider = UnixStream::connect(servers.dir.join("own"))?;
                outsider.set_read_timeout(Some(wait::STEP))?;
                outsider.write_all(b"request")?;
                hand_over(&client, theirs.as_raw_fd())?;
                client.write_all(b"farewell")?;
                other.write_all(b"farewell")?;
                Ok((client, other, own, outsider))
            })?;
            let waiting = UnixStream::connect(servers.dir.join("own"))?;
            let output = running_refuses(&running, 5)?;
            output.says_with_hint("a connection waits to be accepted, by socket:[")?;
            drop(waiting);
            let mut running = running;
            running.dump(&["--unix-half", "close"])?.success()?;
            nothing_left()?;
            let (mut client, mut other, mut own, mut outsider) = others;
            // What the tree had sent arrives.
            hear(&mut outsider, "unread")?;
            for gone in [&mut client, &mut other, &mut own, &mut outsider] {
                let end = gone.read(&mut [0]);
                ensure!(
                    matches!(&end, Ok(0))
                        || end.as_ref().is_err_and(|e| e.kind() == std::io::ErrorKind::ConnectionReset),
                    "the tree is gone, and its peer reads {end:?}"
                );
            }
            running.restore(&["-d"])?.success()?;
            running.verify()?;
        }
        Ok(())
    });
}

/// A dump without an option names each of so many connections, with who has it and what can be done; the tree runs on.
fn running_refuses(running: &Running, count: usize) -> Result<Output> {
    let images = running.dir.join("refused");
    fs::create_dir_all(&images)?;
    let root = running.root.to_string();
    let output = command::crr(&running.dir, &["dump", "-t", &root, "-D", &images.display().to_string()])?;
    let output = output.code(1)?;
    output.says_with_hint("of task 1 (")?;
    let hints = output.stderr.matches("--unix-half close, or leave it outside with --external unix[").count();
    let clients = output.stderr.matches("use --unix-half reconnect, --unix-half close").count();
    ensure!((hints, clients) == (count, 3), "{hints} and {clients} hints:\n{}", output.stderr);
    Ok(output)
}

/// Clients are connected again as who they are, or the restore says who is missing before it makes anything.
#[test]
fn connected_again() {
    require_root!();
    require_ia32!();
    isolated(&here!(), |dir| {
        for abi in Abi::ALL {
            let (servers, mut running, before) = beside("again", dir, abi, |servers| {
                let clients = [Servers::accept(&servers.stream)?, Servers::accept(&servers.stream)?];
                Ok((clients, Servers::accept(&servers.hidden)?))
            })?;
            fs::remove_file(servers.dir.join("journal"))?;
            let reconnect = ["--unix-half", "reconnect"];
            running
                .dump(&reconnect)?
                .code(1)?
                .says_with_hint("/journal, where crr finds no socket from its root")?;
            let log = UnixDatagram::bind(servers.dir.join("journal"))?;
            log.set_read_timeout(Some(wait::STEP))?;
            running.dump(&reconnect)?.success()?;
            nothing_left()?;
            drop((before, log));

            let Servers { stream, hidden, dir: place, .. } = servers;
            drop((stream, hidden));
            let output = running.restore(&["-d"])?.code(1)?;
            for name in ["server", "journal"] {
                let at = place.join(name);
                output.says_with_hint(&format!(
                    "connected again to {}, outside of the tree: connection refused",
                    at.display()
                ))?;
            }
            output.says("hidden, outside of the tree: nobody has that name")?;
            nothing_left()?;
            for name in ["server", "journal"] {
                fs::remove_file(place.join(name))?;
            }
            let servers = Servers::new(&place)?;
            running.restore(&["-d"])?.success()?;
            let clients = [Servers::accept(&servers.stream)?, Servers::accept(&servers.stream)?];
            let mut other = Servers::accept(&servers.hidden)?;
            for (mut client, who) in clients.iter().zip([0, 4321]) {
                ensure!(user_of(client)? == who, "connected by user {}", user_of(client)?);
                client.write_all(b"welcome")?;
            }
            running.verify()?;
            hear(&mut other, "more\n")?;
            let mut bytes = [0; 16];
            let length = servers.log.recv(&mut bytes)?;
            ensure!(&bytes[..length] == b"after", "{:?}", bytes.escape_ascii().to_string());
        }
        Ok(())
    });
}

/// SO_PEERCRED.
fn user_of(client: &UnixStream) -> Result<u32> {
    Ok(nix::sys::socket::getsockopt(client, nix::sys::socket::sockopt::PeerCredentials)?.uid())
}

/// A server is at another path by the time of the restore, which the dump has been told.
#[test]
fn connected_elsewhere() {
    require_root!();
    require_ia32!();
    isolated(&here!(), |dir| {
        for abi in Abi::ALL {
            let (servers, running, before) =
                beside("elsewhere", dir, abi, |servers| Servers::accept(&servers.stream))?;
            let mut running = running;
            let moved = servers.dir.join("moved");
            running.dump(&["--unix-half", &format!("reconnect={}", moved.display())])?.success()?;
            nothing_left()?;
            drop((servers, before));
            let listener = UnixListener::bind(&moved)?;
            running.restore(&["-d"])?.success()?;
            Servers::accept(&listener)?.write_all(b"welcome")?;
            running.verify()?;
        }
        Ok(())
    });
}

/// A message can be kept only if it can be sent again in the name of its sender.
#[test]
fn heard() {
    require_root!();
    require_ia32!();
    isolated(&here!(), |dir| {
        for abi in Abi::ALL {
            let (_servers, mut running, sender) = beside("heard", dir, abi, |servers| {
                let name = servers.dir.join("sender");
                let sender =
                    UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(name.as_os_str().as_bytes())?)?;
                let mailbox = servers.dir.join("mailbox");
                wait::until(wait::STEP, "it takes a letter", || {
                    Ok(sender.send_to(b"letter", &mailbox).ok())
                })?;
                Ok(sender)
            })?;
            running.dump(&[])?.code(1)?.says_with_hint("/sender, outside of the tree")?;
            drop(sender);
            let before = running.snapshot()?;
            running.cycle(&before)?;
            running.verify()?;
        }
        Ok(())
    });
}

/// Sockets that stay outside are those that the restore is given, whatever is at their other end.
#[test]
fn given() {
    require_root!();
    require_ia32!();
    isolated(&here!(), |dir| {
        for abi in Abi::ALL {
            let (servers, mut running, mut others) = beside("given", dir, abi, |servers| {
                let mut client = Servers::accept(&servers.stream)?;
                hear(&mut client, "begin\n")?;
                let pairs = [UnixStream::pair()?, UnixStream::pair()?];
                (&pairs[1].0).write_all(b"unread")?;
                for fd in [pairs[0].1.as_raw_fd(), pairs[1].1.as_raw_fd(), servers.hidden.as_raw_fd()] {
                    hand_over(&client, fd)?;
                }
                Ok(pairs.map(|(own, _)| own))
            })?;
            let root = running.root.as_raw();
            // 3 was the connection that they came by.
            let (pair, extra, listening) = (inode(root, 4)?, inode(root, 5)?, inode(root, 6)?);
            let key = |ino| format!("unix[{ino}]");
            let (in_their_words, in_ours) =
                (format!("--ext-unix-sk={pair}"), format!("--external={}", key(listening)));
            let output = running.dump(&[&in_their_words])?.code(1)?;
            output.says_with_hint(&format!("(socket:[{listening}]): also open in task 1 ("))?;
            output.says(&format!("leave it outside with --external {}", key(listening)))?;
            running
                .dump(&[&in_their_words, &in_ours, &format!("--external={}", key(extra))])?
                .code(1)?
                .says_with_hint("has data that was not read, and is to stay outside")?;
            // The socket at the other end stands for it, too.
            let other = inode(1, others[0].as_raw_fd())?;
            running
                .dump(&["--external", &key(other), &in_ours, "--unix-half=close", "-v4"])?
                .success()?
                .says(&format!("--inherit-fd fd[N]:{}, N open for reading and writing", key(pair)))?;
            nothing_left()?;
            ensure!(others[0].read(&mut [0])? == 0, "the tree is gone, and its end of a pair is not");
            drop(servers);

            let (mut own, theirs) = UnixStream::pair()?;
            let place = running.dir.join("another");
            let listener = UnixListener::bind(&place)?;
            let datagrams = UnixDatagram::unbound()?;
            restore(&running, &[(theirs.as_fd(), &key(pair))])?.code(1)?.says_with_hint(&format!(
                "{} (socket:[{listening}]): stayed outside, and nothing is given for it",
                key(listening)
            ))?;
            restore(&running, &[(datagrams.as_fd(), &key(pair)), (listener.as_fd(), &key(listening))])?
                .code(1)?
                .says("is a unix socket of type datagram, not a unix socket of type stream")?;
            nothing_left()?;
            restore(
                &running,
                &[(theirs.as_fd(), &key(pair)), (listener.as_fd(), &format!("socket:[{listening}]"))],
            )?
            .success()?;
            drop((theirs, listener));
            own.write_all(b"from the other pair")?;
            UnixStream::connect(&place)?.write_all(b"knock")?;
            running.verify()?;
            hear(&mut own, "answer")?;
        }
        Ok(())
    });
}

/// The inode number of a socket.
fn inode(pid: i32, fd: RawFd) -> Result<u64> {
    Ok(fs::metadata(format!("/proc/{pid}/fd/{fd}"))?.ino())
}

/// `crr restore -d` of the newest images, with descriptors of this process for these keys.
fn restore(running: &Running, given: &[(BorrowedFd<'_>, &str)]) -> Result<Output> {
    let images = running.images().display().to_string();
    let mut args = vec!["restore".to_owned(), "-d".to_owned(), "-D".to_owned(), images];
    // Inherited under their numbers.
    let mut copies = Vec::new();
    for (fd, key) in given {
        let copy = nix::unistd::dup(fd)?;
        args.extend(["--inherit-fd".to_owned(), format!("fd[{}]:{key}", copy.as_raw_fd())]);
        copies.push(copy);
    }
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    command::crr(&running.dir, &args)
}
