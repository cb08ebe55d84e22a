//! Pseudo terminals of which a tree has both ends.

use nix::fcntl::{OFlag, open};
use nix::pty::{posix_openpt, ptsname_r, unlockpt};
use nix::sys::stat::Mode;
use std::fs::File;
use std::path::Path;
use std::process::Command;
use tests::abi::Abi;
use tests::case::{Workload, nothing_left};
use tests::isolate::isolated;
use tests::{Result, command, here, require_ia32, require_root, wait};

const fn ptys(case: &'static str) -> Workload {
    Workload::new("ptys", case)
}

tests::survives! {
    settings => ptys("settings");
    lines => ptys("lines");
    raw => ptys("raw");
    full => ptys("full");
    packets => ptys("packets");
    held_up => ptys("held_up");
    without_slaves => ptys("without_slaves");
    hung_up => ptys("hung_up");
    session => ptys("session");
    session_of_other_abi => ptys("session_of_other_abi");
    cloned_leader => ptys("cloned_leader");
    several => ptys("several");
    reader_waits => ptys("reader_waits");
}

/// What cannot be put back is named, and stays.
#[test]
fn untold_status() {
    require_root!();
    require_ia32!();
    isolated(&here!(), |dir| {
        Abi::ALL.into_iter().try_for_each(|abi| refuse_status(&dir.join(abi.name()), abi))
    });
}

fn refuse_status(dir: &Path, abi: Abi) -> Result {
    let mut running = ptys("status").start(dir, abi)?;
    let before = running.snapshot()?;
    running.dump(&[])?.code(1)?.says_with_hint("/dev/pts/0: its master has still to be told of a change")?;
    running.looks_like(&before)?;
    running.verify()
}

/// A terminal of the tree that somebody else has open as well, on either side.
#[test]
fn ends_outside() {
    require_root!();
    require_ia32!();
    isolated(&here!(), |dir| {
        let mut running = ptys("raw").start(dir, Abi::X86_64)?;
        let slave = open("/dev/pts/0", OFlag::O_RDWR | OFlag::O_NOCTTY, Mode::empty())?;
        let own = std::process::id();
        let named = format!("/dev/pts/0: also open in task {own}");
        running.dump(&[])?.code(1)?.says_with_hint(&named)?;
        drop(slave);
        let master = tests::sys::descriptor_of(running.root.as_raw(), 3)?;
        running.dump(&[])?.code(1)?.says_with_hint(&named)?;
        drop(master);
        running.dump(&[])?.success()?;
        running.comes_back()
    });
}

/// All numbers that are taken are named before anything is made; once they are free the same images restore.
#[test]
fn numbers_that_are_taken() {
    require_root!();
    require_ia32!();
    isolated(&here!(), |dir| {
        let mut running = ptys("several").start(dir, Abi::X86_64)?;
        running.dump(&[])?.success()?;
        nothing_left()?;
        let ptmx = || open("/dev/ptmx", OFlag::O_RDWR | OFlag::O_NOCTTY, Mode::empty());
        let others: Vec<_> = (0..4).map(|_| ptmx()).collect::<std::result::Result<_, _>>()?;
        let output = running.restore(&["-d"])?.code(1)?;
        output.says_with_hint("/dev/pts/1: the number is taken")?;
        output.says_with_hint("/dev/pts/3: the number is taken")?;
        nothing_left()?;
        drop(others);
        running.restore(&["-d"])?.success()?;
        running.verify()
    });
}

/// Nothing is lost when crr is killed, whenever that is, while what is on its way is looked at.
#[test]
fn killed_dumps() {
    require_root!();
    require_ia32!();
    isolated(&here!(), |dir| {
        let mut running = ptys("raw").start(dir, Abi::Ia32)?;
        let before = running.snapshot()?;
        for round in 0..60 {
            let args = running.dump_args(&["--leave-running"])?;
            let mut crr = command::spawn(dir, &args.iter().map(String::as_str).collect::<Vec<_>>())?;
            std::thread::sleep(std::time::Duration::from_micros(500 * round));
            crr.kill()?;
            crr.wait()?;
            // Its guard puts everything back.
            wait::until(wait::STEP, "crr is gone", || Ok((!is_running("crr")?).then_some(())))?;
        }
        running.looks_like(&before)?;
        running.verify()
    });
}

fn is_running(name: &str) -> Result<bool> {
    for entry in std::fs::read_dir("/proc")? {
        let status = std::fs::read_to_string(entry?.path().join("status")).unwrap_or_default();
        let is = |line: &str| status.lines().any(|found| found.starts_with(line));
        if is(&format!("Name:\t{name}")) && !is("State:\tZ") {
            return Ok(true);
        }
    }
    Ok(false)
}

/// A slave whose master somebody else has, without --shell-job.
#[test]
fn master_outside() {
    require_root!();
    isolated(&here!(), |dir| {
        let master = posix_openpt(OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_CLOEXEC)?;
        unlockpt(&master)?;
        let slave = File::options().read(true).write(true).open(ptsname_r(&master)?)?;
        let mut child = Command::new("setsid").args(["--ctty", "sleep", "1000"]).stdin(slave).spawn()?;
        let pid = child.id().to_string();
        wait::until(wait::STEP, "sleep runs", || {
            Ok(std::fs::read_to_string(format!("/proc/{pid}/comm"))?.starts_with("sleep").then_some(()))
        })?;
        let images = dir.display().to_string();
        let output = command::crr(dir, &["dump", "-t", &pid, "-D", &images])?.code(1)?;
        output.says_with_hint("fd 0 (/dev/pts/0): a terminal")?;
        output.says_with_hint("controlling terminal 136:0: has an end outside of the tree")?;
        child.kill()?;
        child.wait()?;
        Ok(())
    });
}
