//! A checkpoint as one stream (`-D -`).

use anyhow::{bail, ensure};
use nix::fcntl::{FcntlArg, fcntl};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::fs::{self, File};
use std::net::TcpListener;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use tests::abi::Abi;
use tests::case::{Running, Workload, nothing_left};
use tests::command::{self, Output};
use tests::isolate::{isolated, isolated_for_both};
use tests::{Result, here, require_ia32, require_root, sys, wait};

/// A dump under a shell that does with its output as `how` says.
fn dump(running: &Running, how: &str, options: &[&str]) -> Result<Output> {
    let script = format!("set -o pipefail; \"$@\" {how}");
    let root = running.root.to_string();
    let args = [&["dump", "-t", &root, "-D", "-"], options].concat();
    command::crr_under(&["bash", "-c", &script, "bash"], &running.dir, &args)
}

/// A restore from a file.
fn restore(running: &Running, stream: &str) -> Result<Output> {
    let script = format!("exec \"$@\" < {stream}");
    command::crr_under(&["bash", "-c", &script, "bash"], &running.dir, &["restore", "-D", "-", "-d"])
}

/// By pipes, out of one crr and into the other: memory of all kinds, many tasks, shared pages, packed or not.
#[test]
fn by_pipes() {
    require_root!();
    require_ia32!();
    let workloads = [
        ("memory", "anonymous", &[][..]),
        ("memory", "heap", &["--compress"]),
        ("mapping", "shared_twice", &["--compress=zstd"]),
        ("deleted", "memfd", &[]),
        ("tree", "mixed", &[]),
        ("seccomp", "threads", &[]),
    ];
    isolated_for_both(&here!(), |dir, abi| {
        for (file, case, options) in workloads {
            let workload = Workload::new(file, case);
            let running = workload.start(&dir.join(workload.to_string()), abi)?;
            let before = running.snapshot()?;
            dump(&running, "| cat > a.tar", options)?.success()?;
            nothing_left()?;
            restore(&running, "<(cat a.tar)")?.success()?;
            running.looks_like(&before)?;
            running.verify()?;
        }
        Ok(())
    });
}

/// A stream in a file can be shown, unpacked by tar(1), restored as it is and from where it is unpacked. The tree ran on.
#[test]
fn a_file_that_any_tool_unpacks() {
    require_root!();
    require_ia32!();
    isolated_for_both(&here!(), |dir, abi| {
        let mut running = Workload::new("memory", "heap").start(dir, abi)?;
        let before = running.snapshot()?;
        dump(&running, "> a.tar", &["--leave-running"])?.success()?;
        running.looks_like(&before)?;
        let shown = |under: &[&str], what: &str| -> Result<String> {
            Ok(command::crr_under(under, dir, &["show", what])?.success()?.stdout)
        };
        running.dump_args(&[])?;
        let images = running.images().display().to_string();
        let status = Command::new("tar").current_dir(dir).args(["xf", "a.tar", "-C", &images]).status()?;
        ensure!(status.success(), "tar: {status}");
        let listed = shown(&["bash", "-c", "exec \"$@\" < a.tar", "bash"], "-")?;
        ensure!(listed == shown(&[], &images)? && listed.contains(" pages"), "{listed}");
        // Nothing of it is in the way: the dump that ends the tree.
        dump(&running, "> b.tar", &[])?.success()?;
        nothing_left()?;
        restore(&running, "b.tar")?.success()?;
        running.looks_like(&before)?;
        dump(&running, "| cat > /dev/null", &[])?.success()?;
        nothing_left()?;
        running.restore(&["-d"])?.success()?;
        running.looks_like(&before)?;
        running.verify()
    });
}

/// Whenever the reader goes away, even if all was on its way already: the dump fails, and the tree runs on.
#[test]
fn a_reader_that_goes_away() {
    require_root!();
    require_ia32!();
    isolated_for_both(&here!(), |dir, abi| {
        let running = Workload::new("memory", "anonymous").start(dir, abi)?;
        let before = running.snapshot()?;
        for reader in ["true", "head -c 1 > part", "head -c 30000 > part", "head -c 100000 > part"] {
            let output = dump(&running, &format!("| {reader}"), &[])?.code(1)?;
            output.says("whoever reads the stream has gone away")?;
            running.looks_like(&before)?;
            if reader != "true" {
                restore(&running, "part")?.code(1)?.says("the stream: is cut off")?;
            }
        }
        running.verify()
    });
}

/// A reader or a disk without room for all: the dump fails, and the tree runs on.
#[test]
fn without_room() {
    require_root!();
    require_ia32!();
    isolated_for_both(&here!(), |dir, abi| {
        let running = Workload::new("memory", "anonymous").start(dir, abi)?;
        let before = running.snapshot()?;
        fs::create_dir(dir.join("small"))?;
        let mount = ["-t", "tmpfs", "-o", "size=64k", "tmpfs", "small"];
        let status = Command::new("mount").current_dir(dir).args(mount).status()?;
        ensure!(status.success(), "mount: {status}");
        let reader = "| { TMPDIR=small \"$CRR_BIN\" restore -D - -d; true; }";
        let output = dump(&running, reader, &[])?.code(1)?;
        output.says("small: write pages.img: No space left on device")?;
        output.says("whoever reads the stream has gone away")?;
        running.looks_like(&before)?;
        dump(&running, "> small/a.tar", &[])?.code(1)?.says("No space left on device")?;
        running.looks_like(&before)?;
        running.verify()
    });
}

/// A restore that is refused, or fails at any moment, keeps what it has read; one that works keeps nothing.
#[test]
fn a_restore_that_fails_keeps_the_images() {
    require_root!();
    require_ia32!();
    isolated_for_both(&here!(), |dir, abi| {
        let running = Workload::new("memory", "anonymous").start(dir, abi)?;
        let before = running.snapshot()?;
        let room = dir.join("room");
        fs::create_dir(&room)?;
        let kept = || -> Result<Vec<PathBuf>> {
            Ok(fs::read_dir(&room)?.map(|entry| Ok(entry?.path())).collect::<std::io::Result<_>>()?)
        };
        let restore = |faults: &str| {
            let script = format!("export TMPDIR=room {faults}; exec \"$@\" < <(cat a.tar)");
            command::crr_under(&["bash", "-c", &script, "bash"], dir, &["restore", "-D", "-", "-d"])
        };
        // The tree runs on: its pids are taken.
        dump(&running, "| cat > a.tar", &["-R"])?.success()?;
        restore("")?.code(1)?.says("is taken by")?;
        let [refused] = &kept()?[..] else { bail!("kept: {:?}", kept()?) };
        fs::remove_dir_all(refused)?;
        // The tree is gone, and the restore comes as far as it can without working.
        dump(&running, "| cat > a.tar", &[])?.success()?;
        nothing_left()?;
        let output = restore("CRR_FAULT=set-registers")?.code(1)?;
        nothing_left()?;
        let [failed] = &kept()?[..] else { bail!("kept: {:?}", kept()?) };
        output.says("write registers: ")?;
        output.says(&format!("the images are in {0}, to try again: crr restore -D {0}", failed.display()))?;
        let images = failed.display().to_string();
        command::crr(dir, &["restore", "-D", &images, "-d"])?.success()?;
        running.looks_like(&before)?;
        running.signal(Signal::SIGKILL)?;
        nothing_left()?;
        fs::remove_dir_all(failed)?;
        restore("")?.success()?;
        ensure!(kept()?.is_empty(), "kept: {:?}", kept()?);
        running.looks_like(&before)?;
        running.verify()
    });
}

/// What does not show whether anybody has taken the images is no place for them.
#[test]
fn where_a_stream_may_go() {
    require_root!();
    isolated(&here!(), |dir| {
        let running = Workload::new("memory", "heap").start(dir, Abi::X86_64)?;
        let before = running.snapshot()?;
        let socket = TcpListener::bind("127.0.0.1:0")?;
        let to_socket = format!("> /dev/tcp/127.0.0.1/{}", socket.local_addr()?.port());
        for (how, reason) in [
            ("> /dev/null", "standard output: is a device"),
            ("> /dev/full", "standard output: is a device"),
            (">&-", "standard output: is a device as /dev/null, or closed"),
            (&to_socket, "standard output: is a socket"),
        ] {
            dump(&running, how, &[])?.code(1)?.says_with_hint(reason)?;
            running.looks_like(&before)?;
        }
        running.verify()
    });
}

/// A reader that does not read holds the tree up until crr is told to end.
#[test]
fn a_reader_that_sleeps() {
    require_root!();
    require_ia32!();
    isolated(&here!(), |dir| {
        for packed in [&[][..], &["--compress"]] {
            let running = Workload::new("mapping", "private_file")
                .start(&dir.join(packed.len().to_string()), Abi::Ia32)?;
            let before = running.snapshot()?;
            let (reader, writer) = nix::unistd::pipe()?;
            fcntl(&writer, FcntlArg::F_SETPIPE_SZ(4096))?;
            let root = running.root.to_string();
            let mut crr = Command::new(std::env::var("CRR_BIN")?)
                .args(["dump", "-t", &root, "-D", "-"])
                .args(packed)
                .stdin(Stdio::null())
                .stdout(writer)
                .stderr(File::create(dir.join("stderr"))?)
                .spawn()?;
            let stat = format!("/proc/{}/stat", running.root);
            wait::until(wait::STEP, "the tree is stopped, and the reader has something", || {
                let stopped = fs::read_to_string(&stat)?.contains(") t ");
                Ok((stopped && sys::readable(reader.as_fd())? > 0).then_some(()))
            })?;
            kill(Pid::from_raw(crr.id().cast_signed()), Signal::SIGTERM)?;
            let status = wait::until(wait::STEP, "crr ends", || Ok(crr.try_wait()?))?;
            ensure!(!status.success(), "{status}");
            running.looks_like(&before)?;
            running.verify()?;
        }
        Ok(())
    });
}

/// A reader that would be stopped with the tree is none, whether its end is to stay outside or not.
#[test]
fn a_reader_in_the_tree() {
    require_root!();
    isolated(&here!(), |dir| {
        // One by its name, the other as a shell makes it; nobody else has the end to read.
        for (reader, options) in [
            ("mkfifo fifo; setsid sleep 1000 <> fifo & exec > fifo", ""),
            ("exec > >(exec setsid sleep 1000)", ""),
            ("exec > >(exec setsid sleep 1000)", "--external $(readlink /proc/$$/fd/1)"),
        ] {
            let script = format!("{reader}; \"$@\" -t $! {options}; status=$?; kill $!; exit $status");
            let under = ["bash", "-c", &script, "bash"];
            let output = command::crr_under(&under, dir, &["dump", "-D", "-"])?.code(1)?;
            output.says_with_hint("crr writes the images to it")?;
        }
        Ok(())
    });
}

/// A stream that is not whole, or not as it was, is refused before anything is made.
#[test]
fn a_stream_that_is_damaged() {
    require_root!();
    require_ia32!();
    isolated(&here!(), |dir| {
        let running = Workload::new("memory", "heap").start(dir, Abi::Ia32)?;
        dump(&running, "> whole", &[])?.success()?;
        nothing_left()?;
        let whole = fs::read(dir.join("whole"))?;
        let refused = |bytes: &[u8], why: &str| -> Result {
            fs::write(dir.join("damaged"), bytes)?;
            restore(&running, "damaged")?.code(1)?.says(why)?;
            nothing_left()
        };
        for len in [0, 1000, whole.len() / 2, whole.len() - 600, whole.len() - 1] {
            refused(&whole[..len], "is cut off")?;
        }
        let mut changed = whole.clone();
        changed[5000] ^= 1;
        refused(&changed, "pages.img: is corrupt")?;
        changed.clone_from(&whole);
        changed[0] ^= 1;
        refused(&changed, "is none of crr's, or damaged")?;
        restore(&running, "whole")?.success()?;
        running.verify()
    });
}

/// A round, or a dump, as a stream that is unpacked into a directory of its own, beside those before.
fn round(running: &Running, dir: &Path, number: u32, command: &str, options: &[&str]) -> Result {
    let here = dir.join(number.to_string());
    fs::create_dir(&here)?;
    let (root, previous) = (running.root.to_string(), format!("../{}", number - 1));
    let previous = ["--prev-images-dir", &previous];
    let previous = if number > 1 { &previous[..] } else { &[] };
    let args = [&[command, "-t", &root, "-D", "-"], previous, options].concat();
    let script = "set -o pipefail; shopt -s nullglob; \"$@\" | tar x || exit
        for part in pages.img.*; do cat $part >> pages.img && rm $part; done";
    command::crr_under(&["bash", "-c", script, "bash"], &here, &args)?.success().map(drop)
}

/// Restores a dump that builds on others, as one stream.
fn restore_round(dir: &Path, number: u32) -> Result {
    let under = ["bash", "-c", "tar c . | \"$@\"", "bash"];
    command::crr_under(&under, &dir.join(number.to_string()), &["restore", "-D", "-", "-d"])?
        .success()
        .map(drop)
}

/// Rounds that are streams, too, each unpacked where the next one looks for it.
#[test]
fn rounds() {
    require_root!();
    require_ia32!();
    isolated_for_both(&here!(), |dir, abi| {
        let running = Workload::new("rounds", "steps").start(dir, abi)?;
        let step = |number: u32| -> Result {
            running.signal(Signal::SIGUSR2)?;
            running.wait_for(&format!("STEP {number}"))
        };
        round(&running, dir, 1, "pre-dump", &[])?;
        step(1)?;
        round(&running, dir, 2, "pre-dump", &[])?;
        step(2)?;
        round(&running, dir, 3, "dump", &[])?;
        nothing_left()?;
        let size = |number: u32| -> Result<u64> { Ok(fs::metadata(pages(dir, number))?.len()) };
        ensure!(size(3)? < size(1)?, "{} bytes after {}", size(3)?, size(1)?);
        restore_round(dir, 3)?;
        running.verify()
    });
}

/// Next to nothing is written since the round before, by a task that is stopped: only the stack that asking it needs, and what the kernel itself writes.
#[test]
fn a_round_without_pages() {
    require_root!();
    require_ia32!();
    isolated_for_both(&here!(), |dir, abi| {
        let running = Workload::new("memory", "heap").start(dir, abi)?;
        // One that runs on has something written by the kernel itself (rseq(2)).
        running.signal(Signal::SIGSTOP)?;
        let stat = format!("/proc/{}/stat", running.root);
        wait::until(wait::STEP, "it is stopped", || {
            Ok(fs::read_to_string(&stat)?.contains(") T ").then_some(()))
        })?;
        for number in [1, 2] {
            round(&running, dir, number, "pre-dump", &["--compress"])?;
        }
        let written = fs::metadata(pages(dir, 2))?.len();
        ensure!(written < 16 * 4096, "{written} bytes were written");
        running.signal(Signal::SIGCONT)?;
        round(&running, dir, 3, "dump", &["--compress"])?;
        nothing_left()?;
        restore_round(dir, 3)?;
        running.verify()
    });
}

fn pages(dir: &Path, number: u32) -> PathBuf {
    dir.join(number.to_string()).join("pages.img")
}
