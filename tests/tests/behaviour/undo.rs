//! What is to be undone to semaphores of System V (SEM_UNDO). Every test has an IPC namespace of its own.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use tests::abi::Abi;
use tests::case::{Running, Workload, nothing_left};
use tests::isolate::isolated_for_both;
use tests::wait::{STEP, until};
use tests::{Result, here, require_ia32, require_root};

const fn undo(case: &'static str) -> Workload {
    Workload::new("undo", case)
}

tests::survives! {
    held => undo("held");
    threads => undo("threads");
    between_abis => undo("between_abis");
}

/// The id of the only set.
fn set() -> Result<String> {
    let text = std::fs::read_to_string("/proc/sysvipc/sem")?;
    let id = text.lines().nth(1).and_then(|line| line.split_whitespace().nth(1));
    Ok(id.ok_or_else(|| anyhow::anyhow!("no set: {text}"))?.to_owned())
}

/// The value of a semaphore, as ipcs(1) shows it.
fn value(set: &str, number: usize) -> Result<u16> {
    let output = Command::new("ipcs").args(["-s", "-i", set]).output()?;
    let text = String::from_utf8(output.stdout)?;
    let mut rows = text.lines().skip_while(|line| !line.starts_with("semnum")).skip(1);
    let value = rows.nth(number).and_then(|row| row.split_whitespace().nth(1));
    Ok(value.ok_or_else(|| anyhow::anyhow!("ipcs: {text}"))?.parse()?)
}

/// Takes a set away.
fn remove(set: &str) -> Result {
    let status = Command::new("ipcrm").args(["-s", set]).status()?;
    anyhow::ensure!(status.success(), "ipcrm -s {set}: {status}");
    Ok(())
}

/// Starts a process outside of the tree that takes one of a semaphore. With `stays`, it does not end then.
fn outsider(abi: Abi, set: &str, number: &str, stays: bool) -> Result<Child> {
    let mut command = Command::new(tests::binaries::workload("undo", abi)?);
    command.args(["take", set, number]).args(stays.then_some("stay"));
    Ok(command.stdout(Stdio::piped()).spawn()?)
}

/// Waits until an outsider has taken one.
fn has_taken(outsider: &mut Child) -> Result {
    let mut line = String::new();
    let output = outsider.stdout.as_mut().ok_or_else(|| anyhow::anyhow!("no output"))?;
    std::io::BufRead::read_line(&mut std::io::BufReader::new(output), &mut line)?;
    anyhow::ensure!(line == "taken\n", "the outsider says {line:?}");
    Ok(())
}

fn end(mut outsider: Child) -> Result {
    outsider.kill()?;
    outsider.wait()?;
    Ok(())
}

fn locked(dir: &Path, abi: Abi) -> Result<(Running, String)> {
    let running = undo("lock").start(dir, abi)?;
    let set = set()?;
    Ok((running, set))
}

/// Waits until the root is gone, beside processes that do not belong to the tree.
fn is_gone(running: &Running) -> Result {
    until(STEP, "the tree is gone", || {
        tests::case::reap()?;
        Ok((nix::sys::signal::kill(running.root, None) == Err(nix::errno::Errno::ESRCH)).then_some(()))
    })
}

/// Nobody gets what a task of the tree holds while the tree is gone; who waits for it gets it from the restored task.
#[test]
fn what_is_held_stays_taken() {
    require_root!();
    require_ia32!();
    isolated_for_both(&here!(), |dir, abi| {
        let (mut running, set) = locked(dir, abi)?;
        let before = running.snapshot()?;
        let mut waiter = outsider(abi, &set, "1", true)?;
        let asleep = format!("/proc/{}/wchan", waiter.id());
        let waits = || Ok(std::fs::read_to_string(&asleep)?.contains("semtimedop").then_some(()));
        until(STEP, "the outsider waits", waits)?;
        for _ in 0..2 {
            running.dump(&[])?.success()?;
            is_gone(&running)?;
            waits()?.ok_or_else(|| anyhow::anyhow!("the outsider got it"))?;
            running.restore(&["-d"])?.success()?;
            running.looks_like(&before)?;
            waits()?.ok_or_else(|| anyhow::anyhow!("the outsider got it"))?;
        }
        running.signal(nix::sys::signal::Signal::SIGUSR1)?;
        has_taken(&mut waiter)?;
        end(waiter)?;
        running.passed()?;
        remove(&set)
    });
}

/// As after a restart of the machine.
#[test]
fn a_set_that_is_gone_is_made_again() {
    require_root!();
    require_ia32!();
    isolated_for_both(&here!(), |dir, abi| {
        for case in ["held", "threads", "between_abis"] {
            let mut running = undo(case).start(&dir.join(case), abi)?;
            let before = running.snapshot()?;
            for _ in 0..2 {
                running.dump(&[])?.success()?;
                nothing_left()?;
                remove(&set()?)?;
                running.restore(&["-d"])?.success()?;
                running.looks_like(&before)?;
            }
            running.verify()?;
        }
        Ok(())
    });
}

/// A dump that is killed before it could keep the kernel from undoing; a tree that ran on and ended: what was undone is taken back.
#[test]
fn what_was_undone_is_taken_back() {
    require_root!();
    require_ia32!();
    isolated_for_both(&here!(), |dir, abi| {
        let (mut running, set) = locked(&dir.join("killed"), abi)?;
        let output = running.dump(&["--fault", "killed-disarming"])?;
        anyhow::ensure!(output.status.code().is_none(), "the dump was not killed: {}", output.stderr);
        is_gone(&running)?;
        running.restore(&["-d"])?.success()?;
        // A restore that fails, or is killed, leaves what another one can take back.
        running.dump(&[])?.success()?;
        nothing_left()?;
        running.restore(&["-d", "--fault", "set-xstate"])?.code(1)?;
        anyhow::ensure!(value(&set, 1)? == 0, "a restore that has failed has given it back");
        let killed = running.restore(&["-d", "--fault", "killed-finished"])?;
        anyhow::ensure!(killed.status.code().is_none(), "the restore was not killed: {}", killed.stderr);
        until(STEP, "the tree is gone", || Ok((value(&set, 1)? == 1).then_some(())))?;
        nothing_left()?;
        running.restore(&["-d"])?.success()?;
        running.verify()?;
        remove(&set)?;
        let (mut running, set) = locked(&dir.join("ran_on"), abi)?;
        running.dump(&["-R"])?.success()?;
        nix::sys::signal::kill(running.root, nix::sys::signal::Signal::SIGKILL)?;
        nix::sys::wait::waitpid(running.root, None)?;
        running.restore(&["-d"])?.success()?;
        running.verify()?;
        remove(&set)
    });
}

/// Whoever used a semaphore while the tree was gone, and is still there, may have what a task of it takes for its own; who has ended has nothing.
#[test]
fn others_that_used_it_are_named() {
    require_root!();
    require_ia32!();
    isolated_for_both(&here!(), |dir, abi| {
        let (mut running, set) = locked(dir, abi)?;
        let before = running.snapshot()?;
        running.dump(&[])?.success()?;
        nothing_left()?;
        let mut other = outsider(abi, &set, "0", true)?;
        has_taken(&mut other)?;
        let named = format!(
            "System V semaphore 0 of set {set}: is to be undone by a task (SEM_UNDO), and process {}, which is there, has used it",
            other.id()
        );
        running.restore(&["-d"])?.code(1)?.says_with_hint(&named)?;
        // What it had is undone, so all is as it was.
        end(other)?;
        running.restore(&["-d"])?.success()?;
        running.looks_like(&before)?;
        running.dump(&[])?.success()?;
        nothing_left()?;
        let freed = Command::new("perl")
            .args(["-e", r#"exit !semop(shift, pack("s!*", 1, 1, 0))"#, &set])
            .status()?;
        anyhow::ensure!(freed.success(), "perl: {freed}");
        let named =
            format!("System V semaphore 1 of set {set}: is to be undone by a task (SEM_UNDO), and process ");
        let refused = running.restore(&["-d"])?.code(1)?;
        refused.says_with_hint(&named)?;
        refused.says("its value is 1")?;
        remove(&set)?;
        running.restore(&["-d"])?.success()?;
        running.looks_like(&before)?;
        running.verify()?;
        remove(&set)
    });
}
