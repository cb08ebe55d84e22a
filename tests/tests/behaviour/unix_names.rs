//! Unix sockets with addresses.

use anyhow::ensure;
use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::os::unix::process::ExitStatusExt;
use tests::abi::Abi;
use tests::case::{Workload, nothing_left};
use tests::isolate::{isolated, isolated_for_both};
use tests::{here, require_ia32, require_root, wait};

const fn names(case: &'static str) -> Workload {
    Workload::new("unix_names", case)
}

tests::survives! {
    listening => names("listening");
    accepted => names("accepted");
    waiting => names("waiting");
    peers => names("peers");
    gone => names("gone");
    datagrams => names("datagrams");
    files => names("names");
    between_abis => names("between_abis");
}

/// The other ends of a task's sockets are outside of the tree: each is named, with who has it.
#[test]
fn other_end() {
    require_root!();
    require_ia32!();
    isolated(&here!(), |dir| {
        for abi in Abi::ALL {
            let mut running = names("other_end").start(&dir.join(abi.name()), abi)?;
            let root = running.root;
            let child = tests::snapshot::tree(root.as_raw())?[1];
            let before = running.snapshot()?;
            let output = running.dump_task(child, &[])?.code(1)?;
            output.says_with_hint(&format!("of task {root} (unix_names), outside of the tree"))?;
            output.says_with_hint("a connection waits to be accepted, by socket:[")?;
            running.looks_like(&before)?;
            running.verify()?;
        }
        Ok(())
    });
}

/// Data sent over connections that nobody has accepted stands in the way, as does who has closed one, unless they can be given up.
#[test]
fn waiting_and_used() {
    require_root!();
    require_ia32!();
    isolated_for_both(&here!(), |dir, abi| {
        let mut running = names("waiting_and_used").start(dir, abi)?;
        let before = running.snapshot()?;
        let output = running.dump(&[])?.code(1)?;
        output.says_with_hint("has sent data over a connection that waits to be accepted")?;
        output.says_with_hint("a connection waits to be accepted, and its client has closed it")?;
        assert_eq!(output.stderr.matches("has sent data over").count(), 2, "{}", output.stderr);
        running.looks_like(&before)?;
        running.dump(&["--skip-in-flight"])?.success()?;
        running.comes_back()
    });
}

/// A client elsewhere waits to be accepted: in the way, unless it can be given up, which it is told when the tree ends.
#[test]
fn waiting_elsewhere() {
    require_root!();
    require_ia32!();
    isolated_for_both(&here!(), |dir, abi| {
        let mut running = names("listening").start(dir, abi)?;
        let mut client = UnixStream::connect(running.dir.join("server"))?;
        client.write_all(b"too early")?;
        client.set_read_timeout(Some(wait::STEP))?;
        let before = running.snapshot()?;
        running.dump(&[])?.code(1)?.says_with_hint("a connection waits to be accepted, by socket:[")?;
        running.looks_like(&before)?;
        running.dump(&["--skip-in-flight"])?.success()?;
        nothing_left()?;
        let told = client.read(&mut [0]).map_err(|e| e.kind());
        ensure!(told == Err(ErrorKind::ConnectionReset), "the client is told {told:?}");
        running.restore(&["-d"])?.success()?;
        running.looks_like(&before)?;
        running.verify()
    });
}

/// Another file at the place of a socket stops a restore before anything is made; it is left alone.
#[test]
fn place_taken() {
    require_root!();
    require_ia32!();
    isolated(&here!(), |dir| {
        for abi in Abi::ALL {
            let mut running = names("listening").start(&dir.join(abi.name()), abi)?;
            let before = running.snapshot()?;
            running.dump(&[])?.success()?;
            nothing_left()?;
            let server = running.dir.join("server");
            std::fs::rename(&server, running.dir.join("aside"))?;
            std::fs::write(&server, "another")?;
            running.restore(&["-d"])?.code(1)?.says_with_hint("where there is another file now")?;
            assert_eq!(std::fs::read(&server)?, b"another");
            // Sockets of others, as long as they live.
            std::fs::remove_file(&server)?;
            let listening = UnixListener::bind(&server)?;
            running.restore(&["-d"])?.code(1)?.says_with_hint("where there is another file now")?;
            drop(listening);
            std::fs::remove_file(&server)?;
            let datagrams = UnixDatagram::bind(&server)?;
            running.restore(&["-d"])?.code(1)?.says_with_hint("where there is another file now")?;
            drop(datagrams);
            std::fs::rename(running.dir.join("aside"), &server)?;
            running.restore(&["-d"])?.success()?;
            running.looks_like(&before)?;
            running.verify()?;
        }
        Ok(())
    });
}

/// A restore that is killed leaves the files of sockets, which are not in the way of the next one.
#[test]
fn killed_restores() {
    require_root!();
    require_ia32!();
    isolated_for_both(&here!(), |dir, abi| {
        let mut running = names("listening").start(dir, abi)?;
        let before = running.snapshot()?;
        running.dump(&[])?.success()?;
        nothing_left()?;
        // Its inode is not used again.
        std::fs::rename(running.dir.join("server"), running.dir.join("aside"))?;
        for fault in ["killed-opened", "killed-parked"] {
            let killed = running.restore(&["-d", "--fault", fault])?;
            ensure!(killed.status.signal() == Some(9), "{}", killed.status);
            nothing_left()?;
            ensure!(running.dir.join("server").exists(), "no file is left");
        }
        let output = running.restore(&["-d"])?.success()?;
        output.says("server: the socket is gone: its file makes room")?;
        running.looks_like(&before)?;
        running.verify()
    });
}
