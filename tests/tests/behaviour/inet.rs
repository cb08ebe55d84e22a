//! Sockets of the internet families.

use anyhow::{Context, ensure};
use nix::sys::signal::Signal;
use nix::sys::socket::{MsgFlags, send, setsockopt, sockopt};
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;
use tests::abi::Abi;
use tests::case::{Running, Workload, nothing_left};
use tests::isolate::{isolated, isolated_for, isolated_for_both};
use tests::kills::kill_dumps;
use tests::{here, needs, require_ia32, require_root, wait};

pub(crate) const fn inet(case: &'static str) -> Workload {
    Workload::new("inet", case)
}

tests::survives! {
    connected => inet("connected");
    full => inet("full");
    urgent => inet("urgent");
    half_closed => inet("half_closed");
    last_words => inet("last_words");
    listening => inet("listening");
    not_accepted => inet("not_accepted");
    idle => inet("idle");
    lingering => inet("lingering");
    options => inet("options");
    moving_options => inet("moving_options");
    special_options => inet("special_options");
    corked => inet("corked");
    keepalive => inet("keepalive");
    datagrams => inet("datagrams");
    datagrams_full => inet("datagrams_full");
    strangers => inet("strangers");
    udp_lite => inet("udp_lite");
    datagrams_shut_down => inet("datagrams_shut_down");
    multicast => inet("multicast");
    waiting => inet("waiting");
    between_abis => inet("between_abis");
    filters => inet("filters");
    netlink => inet("netlink");
}

/// The ports that a workload has printed.
pub(crate) fn ports(running: &Running) -> tests::Result<Vec<u16>> {
    let log = running.log()?;
    let line = log.lines().next().context("no ports")?;
    line.split(' ').map(|port| port.parse().context("a port")).collect()
}

/// Data sent over a connection that nobody has accepted stands in the way, on both sides, unless it can be given up.
#[test]
fn not_accepted_and_used() {
    require_root!();
    require_ia32!();
    isolated(&here!(), |dir| {
        for abi in Abi::ALL {
            let mut running = inet("not_accepted_and_used").start(&dir.join(abi.name()), abi)?;
            let before = running.snapshot()?;
            let output = running.dump(&[])?.code(1)?;
            output.says_with_hint("1 connections wait to be accepted")?;
            output.says_with_hint("has a connection that waits to be accepted, over which data was sent")?;
            running.looks_like(&before)?;
            running.dump(&["--skip-in-flight"])?.success()?;
            running.comes_back()?;
        }
        Ok(())
    });
}

/// A server of `case` for each ABI, with a client outside of the tree at its IPv4 and at its IPv6 address.
fn with_clients(
    dir: &Path,
    check: impl Fn(&mut Running, &mut [TcpStream]) -> tests::Result,
) -> tests::Result {
    for abi in Abi::ALL {
        let mut running = inet("server").start(&dir.join(abi.name()), abi)?;
        let ports = ports(&running)?;
        let mut clients = [("127.0.0.1", ports[0]), ("::1", ports[1])]
            .into_iter()
            .map(TcpStream::connect)
            .collect::<std::io::Result<Vec<_>>>()?;
        for client in &mut clients {
            client.set_read_timeout(Some(Duration::from_secs(20)))?;
            client.set_write_timeout(Some(Duration::from_secs(20)))?;
            ask(client, b"before").and_then(|()| hear(client, b"before"))?;
        }
        check(&mut running, &mut clients).with_context(|| format!("{abi}"))?;
        running.verify()?;
    }
    Ok(())
}

pub(crate) fn ask(client: &mut TcpStream, bytes: &[u8]) -> tests::Result {
    Ok(client.write_all(bytes)?)
}

/// What the server answers.
pub(crate) fn hear(client: &mut TcpStream, bytes: &[u8]) -> tests::Result {
    let mut answer = vec![0; bytes.len()];
    client.read_exact(&mut answer)?;
    let expected: Vec<u8> = bytes.iter().map(|byte| byte.wrapping_add(1)).collect();
    ensure!(answer == expected, "another answer");
    Ok(())
}

/// Tables of nftables.
pub(crate) fn tables() -> tests::Result<String> {
    nft("list tables")
}

pub(crate) fn nft(commands: &str) -> tests::Result<String> {
    let output = Command::new("nft").arg(commands).output()?;
    ensure!(output.status.success(), "nft: {}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8(output.stdout)?)
}

/// A client elsewhere asks before, while the server is gone, and after, and gets every answer.
#[test]
fn a_client_elsewhere_waits() {
    require_root!();
    require_ia32!();
    isolated(&here!(), |dir| {
        with_clients(dir, |running, clients| {
            let before = running.snapshot()?;
            running.dump(&["--tcp-established"])?.success()?;
            nothing_left()?;
            ensure!(tables()?.lines().count() == 1, "tables:\n{}", tables()?);
            for client in clients.iter_mut() {
                ask(client, &[7; 3000])?;
            }
            running.restore(&["-d"])?.success()?;
            running.looks_like(&before)?;
            ensure!(tables()?.is_empty(), "tables:\n{}", tables()?);
            for client in clients.iter_mut() {
                hear(client, &[7; 3000])?;
                ask(client, b"after").and_then(|()| hear(client, b"after"))?;
            }
            Ok(())
        })
    });
}

/// Ten times in a row, with more on its way than goes into a queue.
#[test]
fn a_client_elsewhere_waits_ten_times() {
    require_root!();
    require_ia32!();
    isolated(&here!(), |dir| {
        with_clients(dir, |running, clients| {
            let bytes: Vec<u8> =
                (0..8 << 20u32).map(|n: u32| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
            let client = clients[0].try_clone()?;
            std::thread::scope(|scope| {
                let mut writing = client.try_clone()?;
                let bytes = &bytes;
                let writer = scope.spawn(move || writing.write_all(bytes));
                let mut reading = client.try_clone()?;
                let reader = scope.spawn(move || hear(&mut reading, bytes));
                for _ in 0..10 {
                    running.dump(&["--tcp-established"])?.success()?;
                    nothing_left()?;
                    running.restore(&["-d"])?.success()?;
                }
                writer.join().map_err(|_| anyhow::anyhow!("the writer panicked"))??;
                reader.join().map_err(|_| anyhow::anyhow!("the reader panicked"))?
            })
        })
    });
}

/// Without the option, each connection is named; nothing is changed.
#[test]
fn connections_elsewhere_are_refused() {
    require_root!();
    require_ia32!();
    isolated(&here!(), |dir| {
        with_clients(dir, |running, clients| {
            let before = running.snapshot()?;
            let output = running.dump(&[])?.code(1)?;
            for client in clients.iter_mut() {
                let (local, peer) = (client.peer_addr()?, client.local_addr()?);
                let state = "(ESTABLISHED), outside of the tree";
                output.says_with_hint(&format!("connected from {local} to {peer} {state}"))?;
            }
            running.looks_like(&before)?;
            for client in clients.iter_mut() {
                ask(client, b"on").and_then(|()| hear(client, b"on"))?;
            }
            Ok(())
        })
    });
}

/// Let run on, the tree does not notice, and nothing is held any more.
#[test]
fn a_client_elsewhere_does_not_notice_a_dump() {
    require_root!();
    require_ia32!();
    isolated(&here!(), |dir| {
        with_clients(dir, |running, clients| {
            let before = running.snapshot()?;
            running.dump(&["--tcp-established", "-R"])?.success()?;
            running.looks_like(&before)?;
            ensure!(tables()?.is_empty(), "tables:\n{}", tables()?);
            for client in clients.iter_mut() {
                ask(client, b"on").and_then(|()| hear(client, b"on"))?;
            }
            Ok(())
        })
    });
}

/// One client gives up while the server is gone, with much on its way to it: the others are served on.
#[test]
fn a_client_that_gave_up_is_no_obstacle() {
    require_root!();
    require_ia32!();
    isolated(&here!(), |dir| {
        with_clients(dir, |running, clients| {
            let mut greedy = TcpStream::connect(clients[0].peer_addr()?)?;
            greedy.set_nonblocking(true)?;
            // Until the server waits for room to answer, and does not listen any more.
            let mut sent = 0;
            wait::until(wait::STEP, "nothing more goes in", || {
                let full = loop {
                    match greedy.write(&[1; 65536]) {
                        Ok(some) => sent += some,
                        Err(e) => break e.kind() == ErrorKind::WouldBlock,
                    }
                };
                // Neither at work nor in epoll_pwait(2) of either ABI.
                let call = std::fs::read_to_string(format!("/proc/{}/syscall", running.root))?;
                let waits = !["running", "281 ", "319 "].iter().any(|other| call.starts_with(other));
                Ok((full && waits).then_some(()))
            })?;
            ensure!(sent > 100_000, "{sent} bytes went in");
            running.dump(&["--tcp-established"])?.success()?;
            nothing_left()?;
            let reset = nix::libc::linger { l_onoff: 1, l_linger: 0 };
            setsockopt(&greedy, sockopt::Linger, &reset)?;
            drop(greedy);
            for client in clients.iter_mut() {
                ask(client, b"still")?;
            }
            running.restore(&["-d"])?.success()?;
            for client in clients.iter_mut() {
                hear(client, b"still")?;
            }
            Ok(())
        })
    });
}

/// SIGKILL hits a dump at random moments: clients go on, nothing stays held, no socket stays silent.
#[test]
fn a_killed_dump_lets_clients_go_on() {
    require_root!();
    require_ia32!();
    isolated_for(Duration::from_secs(300), &here!(), |dir| {
        with_clients(dir, |running, clients| {
            let before = running.snapshot()?;
            kill_dumps(running, &["--tcp-established"], 50, |_| {
                ensure!(tables()?.is_empty(), "tables:\n{}", tables()?);
                for client in clients.iter_mut() {
                    ask(client, b"on").and_then(|()| hear(client, b"on"))?;
                }
                Ok(())
            })?;
            running.cycle_with(&before, &["--tcp-established"])?;
            for client in clients.iter_mut() {
                ask(client, b"after").and_then(|()| hear(client, b"after"))?;
            }
            Ok(())
        })
    });
}

/// A connection that is being opened is opened anew: whoever answers in the end is connected to.
#[test]
fn a_connection_is_opened_meanwhile() {
    require_root!();
    require_ia32!();
    isolated(&here!(), |dir| {
        for abi in Abi::ALL {
            nft("add table inet test; add chain inet test in { type filter hook input priority 0; }; \
                 add rule inet test in tcp dport 4242 drop")?;
            let mut running = inet("connecting").start(&dir.join(abi.name()), abi)?;
            let before = running.snapshot()?;
            running.cycle(&before)?;
            let listener = TcpListener::bind("127.0.0.1:4242")?;
            nft("delete table inet test")?;
            let (mut client, _) = listener.accept()?;
            running.signal(Signal::SIGUSR1)?;
            let mut word = [0; 5];
            client.read_exact(&mut word)?;
            ensure!(word == *b"hello", "it said {word:?}");
            running.passed()?;
        }
        Ok(())
    });
}

/// `--tcp-close`: connections are gone, whoever comes next is served.
#[test]
fn connections_elsewhere_can_be_closed() {
    require_root!();
    require_ia32!();
    isolated(&here!(), |dir| {
        for at_restore in [false, true] {
            with_clients(&dir.join(at_restore.to_string()), |running, clients| {
                let (dump, restore) =
                    if at_restore { ("--tcp-established", "--tcp-close") } else { ("--tcp-close", "-d") };
                let servers =
                    clients.iter().map(TcpStream::peer_addr).collect::<std::io::Result<Vec<_>>>()?;
                running.dump(&[dump])?.success()?;
                nothing_left()?;
                running.restore(&["-d", restore][usize::from(!at_restore)..])?.success()?;
                ensure!(tables()?.is_empty(), "tables:\n{}", tables()?);
                for server in servers {
                    let mut next = TcpStream::connect(server)?;
                    ask(&mut next, b"next").and_then(|()| hear(&mut next, b"next"))?;
                }
                Ok(())
            })?;
        }
        Ok(())
    });
}

/// A workload of `case` with a client outside of the tree, which has called `host`, done `speak` and told the end of its stream.
pub(crate) fn start_with_one_that_spoke(
    dir: &Path,
    case: &'static str,
    abi: Abi,
    host: &'static str,
    speak: fn(&mut TcpStream) -> tests::Result,
) -> tests::Result<(Running, TcpStream)> {
    let client = std::thread::spawn({
        let log = dir.join("log");
        move || -> tests::Result<TcpStream> {
            let port = wait::until(wait::STEP, "it listens", || {
                let log = std::fs::read_to_string(&log).unwrap_or_default();
                Ok(log.contains("LISTENS").then(|| log.lines().next().map(str::to_owned)).flatten())
            })?;
            let mut client = TcpStream::connect((host, port.parse()?))?;
            speak(&mut client)?;
            client.shutdown(Shutdown::Write)?;
            Ok(client)
        }
    });
    let running = inet(case).start(dir, abi)?;
    let client = client.join().map_err(|_| anyhow::anyhow!("the client panicked"))??;
    Ok((running, client))
}

/// A workload of `case` with a client outside of the tree that has done `speak`, and hears `answer` and the end after a restore.
fn with_one_that_spoke(
    dir: &Path,
    case: &'static str,
    speak: fn(&mut TcpStream) -> tests::Result,
    answer: &[u8],
) -> tests::Result {
    for abi in Abi::ALL {
        let (mut running, mut client) =
            start_with_one_that_spoke(&dir.join(abi.name()), case, abi, "127.0.0.1", speak)?;
        let before = running.snapshot()?;
        running.dump(&["--tcp-established"])?.success()?;
        nothing_left()?;
        running.restore(&["-d"])?.success()?;
        running.looks_like(&before)?;
        running.verify()?;
        let mut heard = Vec::new();
        client.read_to_end(&mut heard)?;
        ensure!(heard == answer, "another answer, of {} bytes", heard.len());
    }
    Ok(())
}

/// The other end has said that it sends no more before the dump.
#[test]
fn closed_by_a_client_elsewhere() {
    require_root!();
    require_ia32!();
    let speak = |client: &mut TcpStream| ask(client, &[b'a'; 4000]);
    isolated(&here!(), |dir| with_one_that_spoke(dir, "closed_there", speak, &[b'b'; 4000]));
}

/// The other end has sent something urgent before that.
#[test]
fn urgent_data_of_a_client_elsewhere() {
    require_root!();
    require_ia32!();
    let speak = |client: &mut TcpStream| {
        ask(client, b"abc")?;
        send(client.as_raw_fd(), b"!", MsgFlags::MSG_OOB)?;
        ask(client, b"def")
    };
    isolated(&here!(), |dir| with_one_that_spoke(dir, "urgent_there", speak, b"bbbb"));
}

/// A workload of `case` is refused for so many sockets with this reason, and goes on.
pub(crate) fn is_refused(
    dir: &Path,
    abi: Abi,
    case: &'static str,
    reason: &str,
    sockets: usize,
) -> tests::Result {
    let mut running = inet(case).start(&dir.join(case), abi)?;
    let before = running.snapshot()?;
    let output = running.dump(&[])?.code(1)?;
    output.says_with_hint(reason)?;
    let named = output.stderr.matches(reason).count();
    ensure!(named == sockets, "{named} sockets are named, not {sockets}:\n{}", output.stderr);
    running.looks_like(&before)?;
    running.verify()
}

/// Urgent data that nobody can look at is named.
#[test]
fn urgent_data_that_cannot_be_kept() {
    require_root!();
    require_ia32!();
    isolated_for_both(&here!(), |dir, abi| {
        let announced = "has urgent data announced that has not come yet (MSG_OOB)";
        is_refused(dir, abi, "urgent_announced", announced, 1)?;
        let ended = "its connection has ended, with urgent data (MSG_OOB) among what is to be read";
        is_refused(dir, abi, "urgent_ended", ended, 1)
    });
}

/// Datagrams that would not come to their socket again, or to another one, are named.
#[test]
fn datagrams_that_cannot_be_kept() {
    require_root!();
    require_ia32!();
    isolated_for_both(&here!(), |dir, abi| {
        is_refused(
            dir,
            abi,
            "datagrams_elsewhere",
            "has datagrams to be read that were sent to 127.0.0.2:",
            1,
        )?;
        is_refused(dir, abi, "strangers_at_one_port", "which is not its peer, and others are at its port", 1)
    });
}

/// An error that was not told is named, and told after.
#[test]
fn errors_that_were_not_told() {
    require_root!();
    require_ia32!();
    let reason = "has an error to tell, which asking for it would take away";
    isolated_for_both(&here!(), |dir, abi| is_refused(dir, abi, "errors", reason, 2));
}

/// Memory cgroups of this machine, by the root of their hierarchy, of either version.
fn memory_cgroups() -> Option<&'static Path> {
    let of_memory = Path::new("/sys/fs/cgroup/memory");
    if of_memory.exists() {
        return Some(of_memory);
    }
    let unified = Path::new("/sys/fs/cgroup");
    let controllers = std::fs::read_to_string(unified.join("cgroup.controllers")).unwrap_or_default();
    controllers.split_whitespace().any(|one| one == "memory").then_some(unified)
}

/// Makes a memory cgroup that counts what sockets use, and enters it.
fn enter_memory_cgroup(root: &Path, name: &str) -> tests::Result<PathBuf> {
    let group = root.join(name);
    std::fs::create_dir(&group)?;
    if root.join("cgroup.controllers").exists() {
        std::fs::write(root.join("cgroup.subtree_control"), "+memory")?;
    } else {
        std::fs::write(group.join("memory.kmem.tcp.limit_in_bytes"), "1G")?;
    }
    std::fs::write(group.join("cgroup.procs"), "0")?;
    Ok(group)
}

/// Memory is reserved again (SO_RESERVE_MEM), by a restore that has a memory cgroup; one that has none says that it is not.
#[test]
fn reserved_memory() {
    require_root!();
    require_ia32!();
    let Some(root) = memory_cgroups() else {
        needs::in_kernel(&here!(), false, "memory cgroups");
        return;
    };
    isolated_for_both(&here!(), |dir, abi| {
        std::fs::create_dir_all(dir)?;
        let group = enter_memory_cgroup(root, &format!("crr-test-{}", dir.metadata()?.ino()))?;
        let mut running = inet("reserved").start(dir, abi)?;
        let before = running.snapshot()?;
        running.cycle(&before)?;
        running.dump(&[])?.success()?;
        nothing_left()?;
        let leave = format!(r#"echo 0 > {}/cgroup.procs && exec "$@""#, root.display());
        running.restore_under(&["sh", "-c", &leave, "sh"], &["-d"])?.success()?.says("SO_RESERVE_MEM")?;
        std::fs::write(running.dir.join("none"), "")?;
        running.verify()?;
        std::fs::write(root.join("cgroup.procs"), "0")?;
        Ok(std::fs::remove_dir(group)?)
    });
}
