//! Internet sockets whose other ends are behind a real interface, whose addresses have changed, or whose traffic crr is not to hold.

use super::inet::{ask, hear, inet, is_refused, nft, ports, start_with_one_that_spoke, tables};
use anyhow::{Context, ensure};
use std::io::Read;
use std::net::{Shutdown, TcpStream, UdpSocket};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use std::sync::mpsc::{Sender, channel};
use std::thread::JoinHandle;
use tests::abi::Abi;
use tests::case::{Running, nothing_left};
use tests::command::crr_under;
use tests::isolate::isolated_for_both;
use tests::{Result, here, require_ia32, require_root, wait};

fn ip(arguments: &str) -> Result {
    let output = Command::new("ip").args(arguments.split(' ')).output()?;
    ensure!(output.status.success(), "ip {arguments}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

/// A client of both addresses, which has asked once.
fn clients(running: &Running, hosts: [&str; 2]) -> Result<Vec<TcpStream>> {
    let mut clients = Vec::new();
    for (host, port) in hosts.into_iter().zip(ports(running)?) {
        let mut client = TcpStream::connect((host, port)).with_context(|| format!("{host} port {port}"))?;
        client.set_read_timeout(Some(wait::STEP))?;
        client.set_write_timeout(Some(wait::STEP))?;
        ask(&mut client, b"before").and_then(|()| hear(&mut client, b"before"))?;
        clients.push(client);
    }
    Ok(clients)
}

/// A thread in a network namespace of its own, which does what it is told: sockets that it makes stay there, whoever has them.
struct Elsewhere {
    work: Sender<Box<dyn FnOnce() + Send>>,
    _thread: JoinHandle<()>,
}

impl Elsewhere {
    /// One that is reached by a pair of interfaces: at 10.1.1.1 and fd01::1, from 10.1.1.2 and fd01::2.
    fn new() -> Result<Self> {
        let (work, told) = channel::<Box<dyn FnOnce() + Send>>();
        let thread = std::thread::spawn(move || told.into_iter().for_each(|task| task()));
        let there = Self { work, _thread: thread };
        there.run(|| Ok(nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET)?))?;
        let tid = there.run(|| Ok(nix::unistd::gettid()))?;
        ip(&format!("link add here type veth peer name there netns {tid}"))?;
        let set_up = |name: &str, host: u8| {
            ip(&format!("addr add 10.1.1.{host}/24 dev {name}"))?;
            ip(&format!("addr add fd01::{host}/64 dev {name} nodad"))?;
            ip(&format!("link set {name} up"))
        };
        set_up("here", 2)?;
        there.run(move || set_up("there", 1))?;
        Ok(there)
    }

    /// What `task` gives, there.
    fn run<T: Send + 'static>(&self, task: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
        let (answer, answered) = channel();
        self.work
            .send(Box::new(move || drop(answer.send(task()))))
            .ok()
            .context("the thread elsewhere is gone")?;
        answered.recv().context("the thread elsewhere is gone")?
    }
}

/// The other ends are behind an interface: what they send meanwhile is held there, and no reset goes to them, neither from the kernel that knows of no such
/// connection, nor from the sockets that are closed.
#[test]
fn behind_an_interface() {
    require_root!();
    require_ia32!();
    isolated_for_both(&here!(), |dir, abi| {
        let there = Elsewhere::new()?;
        let mut running = inet("server_for_all").start(dir, abi)?;
        there.run(|| {
            nft("add table inet watch; add chain inet watch in { type filter hook input priority 0; }; \
                 add rule inet watch in tcp flags & rst == rst counter; add rule inet watch in meta l4proto icmp counter; \
                 add rule inet watch in icmpv6 type destination-unreachable counter")
        })?;
        // Addresses of both sides are known to each other once somebody has spoken.
        wait::until(wait::STEP, "the interfaces carry traffic", || {
            let ports = ports(&running)?;
            let reached = there.run(move || Ok(TcpStream::connect(("fd01::2", ports[1])).is_ok()))?;
            Ok(reached.then_some(()))
        })?;
        let (port, port6) = (ports(&running)?[0], ports(&running)?[1]);
        let connect = move || {
            let mut clients = Vec::new();
            for server in [("10.1.1.2", port), ("fd01::2", port6)] {
                let mut client = TcpStream::connect(server)?;
                client.set_read_timeout(Some(wait::STEP))?;
                ask(&mut client, b"before").and_then(|()| hear(&mut client, b"before"))?;
                clients.push(client);
            }
            Ok(clients)
        };
        let mut clients = there.run(connect)?;
        for round in 0..3 {
            running.dump(&["--tcp-established"])?.success()?;
            nothing_left()?;
            for client in &mut clients {
                ask(client, &[round; 3000])?;
            }
            held_traffic(2)?;
            running.restore(&["-d"])?.success()?;
            for client in &mut clients {
                hear(client, &[round; 3000])?;
            }
        }
        let seen = there.run(|| nft("list table inet watch"))?;
        ensure!(seen.matches("counter packets 0 ").count() == 3, "the other end has got:\n{seen}");
        ensure!(tables()?.is_empty(), "tables:\n{}", tables()?);
        running.verify()?;
        ip("link del here")
    });
}

/// Sockets that hear the interface alone, by which what crr puts into their queues does not come.
#[test]
fn on_a_device() {
    require_root!();
    require_ia32!();
    isolated_for_both(&here!(), |dir, abi| {
        let there = Elsewhere::new()?;
        let log = dir.join("log");
        let speak = move || -> Result<TcpStream> {
            let ports = wait::until(wait::STEP, "it listens", || {
                let log = std::fs::read_to_string(&log).unwrap_or_default();
                Ok(log.contains("LISTENS").then(|| log.lines().next().map(str::to_owned)).flatten())
            })?;
            let (port, ear) = ports.split_once(' ').context("two ports")?;
            let mut client = TcpStream::connect(("10.1.1.2", port.parse()?))?;
            client.set_read_timeout(Some(wait::STEP))?;
            ask(&mut client, b"abc")?;
            client.shutdown(Shutdown::Write)?;
            UdpSocket::bind("10.1.1.1:0")?.send_to(b"heard", ("10.1.1.2", ear.parse::<u16>()?))?;
            Ok(client)
        };
        let (running, client) = std::thread::scope(|scope| {
            let client = scope.spawn(|| there.run(speak));
            (inet("on_a_device").start(dir, abi), client.join())
        });
        let (mut running, mut client) = (running?, client.ok().context("the client panicked")??);
        let before = running.snapshot()?;
        running.dump(&["--tcp-established"])?.success()?;
        nothing_left()?;
        let restored = running.restore(&["-d"])?.success()?;
        ensure!(restored.stderr.is_empty(), "the restore says:\n{}", restored.stderr);
        running.looks_like(&before)?;
        running.verify()?;
        let mut heard = Vec::new();
        client.read_to_end(&mut heard)?;
        ensure!(heard == b"bbbb", "heard {heard:?}");
        ip("link del here")
    });
}

/// A datagram that waits on one interface, at a port that others may have, could go to one of these by a restore. It is refused.
#[test]
fn on_a_device_with_others() {
    require_root!();
    require_ia32!();
    let reason =
        "has datagrams to be read, on a device (SO_BINDTODEVICE), at a port that others have or may have";
    isolated_for_both(&here!(), |dir, abi| {
        ["shared_on_a_device", "group_on_a_device"]
            .into_iter()
            .try_for_each(|case| is_refused(dir, abi, case, reason, 1))
    });
}

/// An address that is routed to this machine, and which none of its interfaces has: a packet to it could leave the machine of the restore.
#[test]
fn urgent_data_at_an_address_of_nobody() {
    require_root!();
    require_ia32!();
    let reason = "to be read at an address that is none of this machine";
    isolated_for_both(&here!(), |dir, abi| {
        ip("route replace local 10.77.0.0/16 dev lo")?;
        let mut running = inet("urgent_of_nobody").start(dir, abi)?;
        let before = running.snapshot()?;
        let output = running.dump(&[])?.code(1)?;
        output.says("socket:[")?;
        output.says_with_hint(reason)?;
        running.looks_like(&before)?;
        running.verify()
    });
}

/// The same of the end of a stream.
#[test]
fn the_end_of_a_stream_at_an_address_of_nobody() {
    require_root!();
    require_ia32!();
    isolated_for_both(&here!(), |dir, abi| {
        ip("route replace local 10.77.0.0/16 dev lo")?;
        let speak = |client: &mut TcpStream| ask(client, &[b'a'; 4000]);
        let (mut running, mut client) =
            start_with_one_that_spoke(dir, "closed_there", abi, "10.77.0.1", speak)?;
        let before = running.snapshot()?;
        let reason = "was told of the end of the stream at an address that is none of this machine";
        running.dump(&["--tcp-established"])?.code(1)?.says_with_hint(reason)?;
        running.looks_like(&before)?;
        running.verify()?;
        hear(&mut client, &[b'a'; 4000])
    });
}

/// A datagram comes to the socket of the interface that it was sent to, where others have the same link-local address.
#[test]
fn link_local_datagrams() {
    require_root!();
    require_ia32!();
    isolated_for_both(&here!(), |dir, abi| {
        ip("link add crr0 type veth peer name crr1")?;
        for name in ["crr0", "crr1"] {
            ip(&format!("link set {name} addrgenmode none"))?;
            ip(&format!("link set {name} up"))?;
            ip(&format!("address add fe80::1/64 dev {name} nodad"))?;
        }
        let mut running = inet("link_local").start(dir, abi)?;
        let before = running.snapshot()?;
        running.cycle(&before)?;
        running.verify()?;
        ip("link del crr0")
    });
}

/// The traffic of clients of so many families is held, in both directions.
fn held_traffic(count: usize) -> Result {
    let table = tables()?;
    let name = table.split_whitespace().nth(2).context("no table holds anything")?.to_owned();
    let rules = nft(&format!("list table inet {name}"))?;
    ensure!(rules.matches("-held drop").count() == 2 * count, "{rules}");
    Ok(())
}

/// A dump calls nft once, and a restore three times: to see whether traffic is held, to hold it, and to let it pass; for however many connections.
#[test]
fn held_all_at_once() {
    require_root!();
    require_ia32!();
    isolated_for_both(&here!(), |dir, abi| {
        std::fs::create_dir_all(dir)?;
        let (counted, calls) = (dir.join("nft"), dir.join("calls"));
        let count = format!("#!/bin/sh\necho >> {}\nPATH=${{PATH#*:}} exec nft \"$@\"\n", calls.display());
        std::fs::write(&counted, count)?;
        std::fs::set_permissions(&counted, std::fs::Permissions::from_mode(0o755))?;
        let path = format!("PATH={}:{}", dir.display(), std::env::var("PATH")?);
        let mut of_each = Vec::new();
        for pairs in [1, 100] {
            let mut running = inet("server").start(&dir.join(pairs.to_string()), abi)?;
            let clients = (0..pairs).map(|_| clients(&running, ["127.0.0.1", "::1"]));
            let mut clients = clients.collect::<Result<Vec<_>>>()?.into_iter().flatten().collect::<Vec<_>>();
            let calls_of = |args: &[&str]| -> Result<usize> {
                std::fs::write(&calls, "")?;
                crr_under(&["env", &path], dir, args)?.success()?;
                Ok(std::fs::read(&calls)?.len())
            };
            let dump = running.dump_args(&["--tcp-established"])?;
            let dumped = calls_of(&dump.iter().map(String::as_str).collect::<Vec<_>>())?;
            nothing_left()?;
            for client in &mut clients {
                ask(client, b"meanwhile")?;
            }
            let restored = calls_of(&["restore", "-D", &running.images().display().to_string(), "-d"])?;
            for client in &mut clients {
                hear(client, b"meanwhile")?;
            }
            running.verify()?;
            of_each.push((dumped, restored));
        }
        ensure!(of_each == [(1, 3); 2], "nft was called {of_each:?} times");
        Ok(())
    });
}

/// `--network-lock skip`: traffic is held by whoever dumps, and crr leaves it alone.
#[test]
fn held_by_others() {
    require_root!();
    require_ia32!();
    isolated_for_both(&here!(), |dir, abi| {
        let mut running = inet("server").start(dir, abi)?;
        let mut clients = clients(&running, ["127.0.0.1", "::1"])?;
        let before = running.snapshot()?;
        nft("add table inet own; add chain inet own in { type filter hook input priority 0; }; \
             add rule inet own in meta l4proto tcp drop")?;
        running.dump(&["--tcp-established", "--network-lock", "skip"])?.success()?;
        nothing_left()?;
        ensure!(tables()? == "table inet own\n", "tables:\n{}", tables()?);
        let shown =
            tests::command::crr(dir, &["show", &running.images().display().to_string()])?.success()?;
        ensure!(!shown.stdout.contains("crr-"), "a table is named:\n{}", shown.stdout);
        for client in &mut clients {
            ask(client, &[7; 3000])?;
        }
        running.restore(&["-d"])?.success()?;
        ensure!(tables()? == "table inet own\n", "tables:\n{}", tables()?);
        // As long as nothing comes that it would take more memory for.
        running.looks_like(&before)?;
        nft("delete table inet own")?;
        for client in &mut clients {
            hear(client, &[7; 3000])?;
            ask(client, b"after").and_then(|()| hear(client, b"after"))?;
        }
        running.verify()
    });
}

/// The machine has other addresses by the time of the restore: refused without a word about them, before there is any process.
#[test]
fn other_addresses() {
    require_root!();
    require_ia32!();
    isolated_for_both(&here!(), moves);
}

fn moves(dir: &Path, abi: Abi) -> Result {
    let addresses = |verb: &str, host: u8| {
        ip(&format!("addr {verb} 10.9.8.{host}/32 dev lo"))?;
        // Tentative for a moment otherwise, even there: ipv6_add_addr() of net/ipv6/addrconf.c.
        ip(&format!("addr {verb} fd09::{host}/128 dev lo nodad"))
    };
    addresses("add", 7)?;
    let mut running = inet("mapped").start(dir, abi)?;
    running.dump(&[])?.success()?;
    nothing_left()?;
    addresses("del", 7)?;
    addresses("add", 8)?;
    running.restore(&["-d"])?.code(1)?.says("10.9.8.7")?;
    nothing_left()?;
    let half = running.restore(&["-d", "--map-addr", "10.9.8.7=10.9.8.8"])?.code(1)?;
    half.says("fd09::7")?;
    nothing_left()?;
    let both = ["-d", "--map-addr", "10.9.8.7=10.9.8.8", "--map-addr", "fd09::7=fd09::8"];
    running.restore(&both)?.success()?;
    running.verify()?;
    addresses("del", 8)
}
