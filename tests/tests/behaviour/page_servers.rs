//! Page contents that go over the network (`--page-server`).

use anyhow::{Context, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::fs;
use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use tests::abi::Abi;
use tests::case::{Running, Workload, memory_arrives, nothing_left};
use tests::isolate::{isolated, isolated_for_both};
use tests::{Result, command, here, require_ia32, require_root, wait};

/// A server that puts pages into a directory of its own, in the background; its address.
fn server(dir: &Path) -> Result<String> {
    fs::create_dir_all(dir)?;
    server_with(dir, &[])
}

fn server_with(dir: &Path, options: &[&str]) -> Result<String> {
    let images = dir.display().to_string();
    let args = [&["page-server", "-D", &images, "-d", "--pidfile", "pid"], options].concat();
    Ok(command::crr(dir, &args)?.success()?.stdout.trim().to_owned())
}

/// A server that gives the pages of the last dump, or of the rounds, of which none are left where they were; its address, and directory.
fn giving(running: &Running) -> Result<(String, PathBuf)> {
    let images = running.images();
    let dir = images.parent().context("a parent")?;
    let away = dir.join("away");
    fs::create_dir_all(&away)?;
    let rounds = fs::read_dir(dir)?.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    for name in rounds.filter(|name| name.starts_with("images-")) {
        fs::create_dir(away.join(&name))?;
        for entry in fs::read_dir(dir.join(&name))? {
            let entry = entry?;
            let to = away.join(&name).join(entry.file_name());
            fs::copy(entry.path(), to)?;
        }
        fs::remove_file(dir.join(&name).join("pages.img"))?;
    }
    let given = away.join(images.file_name().context("a name")?);
    Ok((server_with(&given, &["--serve"])?, given))
}

/// Has the workload verify itself while there is a server, which ends then.
fn verify(running: &Running, server: &Path) -> Result {
    running.signal(Signal::SIGUSR1)?;
    has_ended(running)?;
    let log = running.log()?;
    ensure!(log.lines().last() == Some("PASS") && !log.contains("FAIL"), "the workload said:\n{log}");
    end(server, Signal::SIGTERM)?;
    nothing_left()
}

fn end(server: &Path, signal: Signal) -> Result {
    Ok(kill(Pid::from_raw(fs::read_to_string(server.join("pid"))?.trim().parse()?), signal)?)
}

/// Kills the tree.
fn kill_all_but(server: &Path) -> Result {
    let server = fs::read_to_string(server.join("pid"))?;
    let (server, own) = (server.trim(), std::process::id().to_string());
    wait::until(wait::STEP, "the tree is gone", || {
        tests::case::reap()?;
        let names = fs::read_dir("/proc")?.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
        let others: Vec<i32> = names
            .filter(|name| name != server && *name != own)
            .filter_map(|name| name.parse().ok())
            .filter(|&pid| pid != 1)
            .collect();
        for &pid in &others {
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
        Ok(others.is_empty().then_some(()))
    })
}

fn has_ended(running: &Running) -> Result {
    let root = Path::new("/proc").join(running.root.to_string());
    wait::until(wait::STEP, "the root has ended", || {
        tests::case::reap()?;
        Ok((!root.exists()).then_some(()))
    })
}

/// Brings the pages to where the rest is.
fn fetch(from: &Path, to: PathBuf) -> Result {
    wait::until(wait::STEP, "the server ends", || Ok((!is_there(from)?).then_some(())))?;
    fs::rename(from.join("pages.img"), to.join("pages.img")).context("pages.img")
}

/// Whether the server still runs, which this process has to wait for.
fn is_there(dir: &Path) -> Result<bool> {
    tests::case::reap()?;
    Ok(Path::new("/proc").join(fs::read_to_string(dir.join("pid"))?.trim()).exists())
}

#[test]
fn the_rest_stays() {
    require_root!();
    require_ia32!();
    isolated_for_both(&here!(), |dir, abi| {
        for (name, options) in [("anonymous", &[][..]), ("heap", &["--compress"])] {
            let dir = dir.join(name);
            let mut running = Workload::new("memory", name).start(&dir, abi)?;
            let before = running.snapshot()?;
            let elsewhere = dir.join("elsewhere");
            let address = server(&elsewhere)?;
            running.dump(&[&["--page-server", &address], options].concat())?.success()?;
            nothing_left()?;
            ensure!(!running.images().join("pages.img").exists(), "pages are here, too");
            running.restore(&["-d"])?.code(1)?.says_with_hint("pages.img: is missing")?;
            fetch(&elsewhere, running.images())?;
            running.restore(&["-d"])?.success()?;
            running.looks_like(&before)?;
            running.verify()?;
        }
        Ok(())
    });
}

/// A server may have the very directory of the dump.
#[test]
fn one_directory_for_both() {
    require_root!();
    require_ia32!();
    isolated_for_both(&here!(), |dir, abi| {
        let mut running = Workload::new("memory", "anonymous").start(dir, abi)?;
        let before = running.snapshot()?;
        let elsewhere = dir.join("elsewhere");
        let address = server(&elsewhere)?;
        let snapshot = ["-R", "--snapshot", "--fault", "twins-always", "--page-server", &address];
        running.dump(&snapshot)?.success()?;
        fetch(&elsewhere, running.images())?;
        let (images, root) = (running.images().display().to_string(), running.root.to_string());
        // The directory has a checkpoint already, which would be lost.
        let args = ["page-server", "-D", &images];
        command::crr(dir, &args)?.code(1)?.says_with_hint("pages.img: is there already")?;
        fs::remove_file(running.images().join("pages.img"))?;
        let address = server(&running.images())?;
        let (host, port) = address.rsplit_once(':').context("an address")?;
        let server = ["--page-server", "--address", host, "--port", port];
        let args = [&["dump", "-t", &root, "-D", &images][..], &server].concat();
        command::crr(dir, &args)?.success()?;
        nothing_left()?;
        running.restore(&["-d"])?.success()?;
        running.looks_like(&before)?;
        running.verify()
    });
}

/// A server that goes away at any moment is a dump that failed, and the tree runs on. A checkpoint that was in the directory is still one.
#[test]
fn a_server_that_goes_away() {
    require_root!();
    require_ia32!();
    isolated_for_both(&here!(), |dir, abi| {
        let mut running = Workload::new("memory", "anonymous").start(dir, abi)?;
        let before = running.snapshot()?;
        running.dump(&["-R"])?.success()?;
        let images = running.images().display().to_string();
        // It greets the dump, takes so many bytes, and is gone.
        for taken in [0, 1000, 100_000] {
            let listener = TcpListener::bind("127.0.0.1:0")?;
            let address = listener.local_addr()?.to_string();
            let gone = thread::spawn(move || -> Result {
                let (mut tcp, _) = listener.accept()?;
                tcp.read_exact(&mut [0; 12])?;
                tcp.write_all(&[0; 8])?;
                Ok(tcp.read_exact(&mut vec![0; taken])?)
            });
            let root = running.root.to_string();
            let args = ["dump", "-t", &root, "-D", &images, "--page-server", &address];
            command::crr(dir, &args)?.code(1)?.says(&format!("page server {address}"))?;
            gone.join().map_err(|_| anyhow::anyhow!("the server"))??;
            running.looks_like(&before)?;
        }
        // Nobody is there at all.
        let args = ["dump", "-t", &running.root.to_string(), "-D", &images, "--page-server", "127.0.0.1:1"];
        command::crr(dir, &args)?.code(1)?.says("page server 127.0.0.1:1: ")?;
        running.looks_like(&before)?;
        kill(running.root, Signal::SIGKILL)?;
        nothing_left()?;
        running.restore(&["-d"])?.success()?;
        running.verify()
    });
}

/// A server that takes nothing holds the tree up until crr is told to end; a killed server leaves no file that looks like one.
#[test]
fn a_server_that_sleeps() {
    require_root!();
    require_ia32!();
    isolated_for_both(&here!(), |dir, abi| {
        let mut running = Workload::new("memory", "anonymous").start(dir, abi)?;
        let before = running.snapshot()?;
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let address = listener.local_addr()?.to_string();
        let args = running.dump_args(&["--page-server", &address])?;
        let mut crr = command::spawn(dir, &args.iter().map(String::as_str).collect::<Vec<_>>())?;
        let (mut tcp, _) = listener.accept()?;
        tcp.read_exact(&mut [0; 12])?;
        tcp.write_all(&[0; 8])?;
        // Pages come: the tree is stopped.
        tcp.read_exact(&mut [0; 20])?;
        kill(Pid::from_raw(crr.id().cast_signed()), Signal::SIGTERM)?;
        let status = wait::until(wait::STEP, "crr ends", || Ok(crr.try_wait()?))?;
        ensure!(!status.success(), "{status}");
        running.looks_like(&before)?;
        running.verify()
    });
}

/// Rounds go to servers, too, each to one of its own.
#[test]
fn rounds() {
    require_root!();
    require_ia32!();
    isolated_for_both(&here!(), |dir, abi| {
        let mut running = Workload::new("rounds", "steps").start(dir, abi)?;
        let mut fetched = Vec::new();
        let mut round = |running: &mut Running, last: bool| -> Result {
            let elsewhere = dir.join(format!("elsewhere-{}", fetched.len()));
            let address = server(&elsewhere)?;
            let options = ["--page-server", &address];
            let done = if last { running.dump_on_rounds(&options)? } else { running.pre_dump(&options)? };
            done.success()?;
            fetched.push((elsewhere, running.images()));
            Ok(())
        };
        let step = |running: &Running, number: u32| -> Result {
            running.signal(Signal::SIGUSR2)?;
            running.wait_for(&format!("STEP {number}"))
        };
        round(&mut running, false)?;
        step(&running, 1)?;
        round(&mut running, false)?;
        step(&running, 2)?;
        round(&mut running, true)?;
        nothing_left()?;
        for (from, to) in fetched {
            fetch(&from, to)?;
        }
        running.restore(&["-d"])?.success()?;
        running.verify()
    });
}

/// What a server gives is what a dump wrote, packed or not, before the tasks run or when they do; to as many restores as come.
#[test]
fn pages_are_given() {
    require_root!();
    require_ia32!();
    isolated_for_both(&here!(), |dir, abi| {
        let cases = [
            ("memory", "anonymous", &[][..], &[][..]),
            ("memory", "heap", &["--compress"], &[]),
            ("memory", "heap", &[], &["--lazy-pages"]),
            ("mapping", "shared_anonymous", &["--compress"], &["--lazy-pages"]),
            ("tree", "mixed", &[], &["--lazy-pages"]),
        ];
        for (number, (workload, case, dumping, restoring)) in cases.into_iter().enumerate() {
            let mut running = Workload::new(workload, case).start(&dir.join(number.to_string()), abi)?;
            let before = running.snapshot()?;
            running.dump(dumping)?.success()?;
            nothing_left()?;
            let (address, server) = giving(&running)?;
            running.restore(&["-d"])?.code(1)?.says_with_hint("pages.img: is missing")?;
            let options = [&["-d", "--page-server", &address], restoring].concat();
            running.restore(&options)?.success()?;
            memory_arrives()?;
            running.looks_like(&before)?;
            kill_all_but(&server)?;
            running.restore(&options)?.success()?;
            verify(&running, &server).with_context(|| format!("{workload} {case}"))?;
        }
        Ok(())
    });
}

/// What nobody uses is not fetched, and what is used is: also by children, and where areas have been moved.
#[test]
fn pages_are_given_when_they_are_used() {
    require_root!();
    require_ia32!();
    isolated_for_both(&here!(), |dir, abi| {
        for case in ["changed", "forks", "threads", "family", "large"] {
            for under in [&[][..], &["env", "CRR_FAULT=lazy-ahead"]] {
                let dir = dir.join(format!("{case}-{}", under.len()));
                let mut running = Workload::new("lazy", case).start(&dir, abi)?;
                running.dump(&[])?.success()?;
                nothing_left()?;
                let (address, server) = giving(&running)?;
                running
                    .restore_under(under, &["-d", "--lazy-pages", "--page-server", &address])?
                    .success()?;
                verify(&running, &server).context(case)?;
            }
        }
        Ok(())
    });
}

/// A server finds the rounds that a dump builds on; of these, only those are fetched that are not here.
#[test]
fn rounds_are_given() {
    require_root!();
    require_ia32!();
    isolated_for_both(&here!(), |dir, abi| {
        let mut running = Workload::new("rounds", "steps").start(dir, abi)?;
        running.pre_dump(&[])?.success()?;
        let first = running.images().join("pages.img");
        running.signal(Signal::SIGUSR2)?;
        running.wait_for("STEP 1")?;
        running.pre_dump(&["--compress"])?.success()?;
        running.signal(Signal::SIGUSR2)?;
        running.wait_for("STEP 2")?;
        running.dump_on_rounds(&[])?.success()?;
        nothing_left()?;
        let (address, server) = giving(&running)?;
        running.restore(&["-d", "--page-server", &address])?.success()?;
        kill_all_but(&server)?;
        let given = server.parent().context("a parent")?;
        fs::copy(given.join("images-1/pages.img"), first)?;
        running.restore(&["-d", "--lazy-pages", "--page-server", &address])?.success()?;
        verify(&running, &server)
    });
}

/// A server that dies is the end of the tasks that wait for it, with a word. Pages that are not those of the dump start nothing.
#[test]
fn servers_that_do_not_give() {
    require_root!();
    require_ia32!();
    isolated(&here!(), |dir| {
        let mut running = Workload::new("lazy", "large").start(dir, Abi::Ia32)?;
        running.dump(&[])?.success()?;
        nothing_left()?;
        let (address, server) = giving(&running)?;
        let options = ["-d", "--lazy-pages", "--page-server", &address, "-o", "log"];
        running.restore_under(&["env", "CRR_FAULT=lazy-ahead"], &options)?.success()?;
        end(&server, Signal::SIGKILL)?;
        running.signal(Signal::SIGUSR1)?;
        has_ended(&running)?;
        nothing_left()?;
        let log = fs::read_to_string(running.images().join("log"))?;
        ensure!(log.contains(&format!("page server {address}: ")), "the log says:\n{log}");
        ensure!(log.contains("killing the restored tasks"), "the log says:\n{log}");
        ensure!(!running.log()?.contains("FAIL"), "the workload went on");
        // Nobody is there any more; then somebody who has something else.
        running.restore(&options)?.code(1)?.says(&format!("page server {address}: "))?;
        let pages = fs::File::options().write(true).open(server.join("pages.img"))?;
        let size = pages.metadata()?.len();
        pages.write_all_at(&[b'x'; 5000], size / 2)?;
        let refused = |with: &str| -> Result {
            let address = server_with(&server, &["--serve"])?;
            running.restore(&["-d", "--page-server", &address])?.code(1)?.says(with)?;
            end(&server, Signal::SIGTERM)?;
            nothing_left()
        };
        refused("pages.img: is corrupt")?;
        fs::remove_file(server.join("inventory.img"))?;
        refused("pages.img: is corrupt")?;
        pages.set_len(size - 4096)?;
        refused("it has pages of another checkpoint")
    });
}

/// A way to a server on which each connection ends after so many bytes of what the server says; its address, and how many there have been.
fn breaking(server: String, limit: u64) -> Result<(String, Arc<AtomicUsize>)> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?.to_string();
    let count = Arc::new(AtomicUsize::new(0));
    let counting = Arc::clone(&count);
    thread::spawn(move || -> Result {
        loop {
            let (mut near, _) = listener.accept()?;
            counting.fetch_add(1, Ordering::Relaxed);
            let mut far = TcpStream::connect(&server)?;
            let (mut asking, mut asked) = (near.try_clone()?, far.try_clone()?);
            thread::spawn(move || io::copy(&mut asking, &mut asked));
            thread::spawn(move || {
                let _ = io::copy(&mut Read::by_ref(&mut far).take(limit), &mut near);
                let _ = (near.shutdown(Shutdown::Both), far.shutdown(Shutdown::Both));
            });
        }
    });
    Ok((address, count))
}

/// Connections that break are made again, in the background, while somebody waits, and before the tasks run.
#[test]
fn connections_that_break() {
    require_root!();
    require_ia32!();
    isolated_for_both(&here!(), |dir, abi| {
        let cases = [
            (&[][..], &["--lazy-pages"][..]),
            (&["env", "CRR_FAULT=lazy-ahead"], &["--lazy-pages"]),
            (&[], &[]),
        ];
        for (number, (under, restoring)) in cases.into_iter().enumerate() {
            let mut running = Workload::new("lazy", "large").start(&dir.join(number.to_string()), abi)?;
            running.dump(&[])?.success()?;
            nothing_left()?;
            let (address, server) = giving(&running)?;
            let (address, connections) = breaking(address, 20 << 20)?;
            let options = [&["-d", "--page-server", &address], restoring].concat();
            running.restore_under(under, &options)?.success()?;
            verify(&running, &server)?;
            let connections = connections.load(Ordering::Relaxed);
            // 128 MiB by 20, and those that are there from the start.
            ensure!(connections > 6, "{connections} connections");
        }
        Ok(())
    });
}

/// More connections than a server has descriptors for do not end it: tasks may need what it gives over others.
#[test]
fn a_server_with_too_many_connections() {
    require_root!();
    isolated(&here!(), |dir| {
        let mut running = Workload::new("memory", "anonymous").start(dir, Abi::X86_64)?;
        running.dump(&[])?.success()?;
        let (_, server) = giving(&running)?;
        end(&server, Signal::SIGTERM)?;
        nothing_left()?;
        let images = server.display().to_string();
        let args = ["page-server", "-D", &images, "-d", "--pidfile", "pid", "-o", "log", "--serve"];
        let started = command::crr_under(&["prlimit", "--nofile=16:16"], dir, &args)?.success()?;
        let address = started.stdout.trim();
        let connections: Vec<TcpStream> =
            (0..32).map(|_| TcpStream::connect(address)).collect::<std::io::Result<_>>()?;
        wait::until(wait::STEP, "somebody has to wait", || {
            let log = fs::read_to_string(server.join("log"))?;
            Ok(log.contains("who connects has to wait: ").then_some(()))
        })?;
        drop(connections);
        running.restore(&["-d", "--page-server", address])?.success()?;
        verify(&running, &server)
    });
}

/// A server that would stand still with the tree.
#[test]
fn a_server_of_the_tree_is_refused() {
    require_root!();
    require_ia32!();
    isolated(&here!(), |dir| {
        for what in ["pre-dump", "dump"] {
            let (there, here) = (dir.join(format!("{what}-there")), dir.join(format!("{what}-here")));
            fs::create_dir_all(&here)?;
            let address = server(&there)?;
            let pid = fs::read_to_string(there.join("pid"))?;
            let images = here.display().to_string();
            let args = [what, "-t", pid.trim(), "-D", &images, "--page-server", &address];
            command::crr(dir, &args)?.code(1)?.says("the page server is a task of the tree")?;
            wait::until(wait::STEP, "the server ends", || {
                tests::case::reap()?;
                Ok((!Path::new("/proc").join(pid.trim()).exists()).then_some(()))
            })?;
        }
        Ok(())
    });
}
