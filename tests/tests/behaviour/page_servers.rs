//! Page contents that go over the network (`--page-server`).

use anyhow::{Context, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::fs;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::thread;
use tests::case::{Running, Workload, nothing_left};
use tests::isolate::isolated_for_both;
use tests::{Result, command, here, require_ia32, require_root, wait};

/// A server that puts pages into a directory of its own, in the background; its address.
fn server(dir: &Path) -> Result<String> {
    fs::create_dir_all(dir)?;
    let images = dir.display().to_string();
    let started = command::crr(dir, &["page-server", "-D", &images, "-d", "--pidfile", "pid"])?.success()?;
    Ok(started.stdout.trim().to_owned())
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
        // The directory has a checkpoint already.
        running.dump(&["-R"])?.success()?;
        let address = server(&running.images())?;
        let (images, root) = (running.images().display().to_string(), running.root.to_string());
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
