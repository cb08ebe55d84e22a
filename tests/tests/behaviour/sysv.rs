//! System V IPC. Every test has an IPC namespace of its own.

use std::path::Path;
use std::process::Command;
use tests::abi::Abi;
use tests::case::{Running, Workload, nothing_left};
use tests::isolate::isolated_for_both;
use tests::{Result, here, require_ia32, require_root};

const fn sysv(case: &'static str) -> Workload {
    Workload::new("sysv", case)
}

tests::survives! {
    attached => sysv("attached");
    removed => sysv("removed");
    parts => sysv("parts");
    between_abis => sysv("between_abis");
    semaphores => sysv("semaphores");
}

fn run(program: &str, args: &[&str]) -> Result<String> {
    let output = Command::new(program).args(args).output()?;
    anyhow::ensure!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8(output.stdout)?)
}

/// Ids of all segments.
fn segments() -> Result<Vec<String>> {
    let text = std::fs::read_to_string("/proc/sysvipc/shm")?;
    Ok(text.lines().skip(1).filter_map(|line| line.split_whitespace().nth(1)).map(str::to_owned).collect())
}

fn dumped(dir: &Path, abi: Abi) -> Result<Running> {
    let mut running = sysv("attached").start(dir, abi)?;
    running.dump(&[])?.success()?;
    nothing_left()?;
    Ok(running)
}

/// As after a restart of the machine: all of them are gone, the removed ones with the tree.
#[test]
fn what_is_gone_is_made_again() {
    require_root!();
    require_ia32!();
    isolated_for_both(&here!(), |dir, abi| {
        let mut running = sysv("attached").start(dir, abi)?;
        let before = running.snapshot()?;
        running.dump(&[])?.success()?;
        nothing_left()?;
        for id in segments()? {
            run("ipcrm", &["-m", &id])?;
        }
        running.restore(&["-d"])?.success()?;
        running.looks_like(&before)?;
        running.verify()
    });
}

/// What a restore has made goes again when it fails, and a segment that somebody else has, or another one under its id or key, is left alone.
#[test]
fn conflicts_are_named() {
    require_root!();
    require_ia32!();
    isolated_for_both(&here!(), |dir, abi| {
        let running = dumped(dir, abi)?;
        let ids = segments()?;
        anyhow::ensure!(ids.len() == 3, "{ids:?}");
        let program = tests::binaries::workload("sysv", abi)?;
        let mut holder =
            Command::new(program).args(["hold", &ids[1]]).stdout(std::process::Stdio::piped()).spawn()?;
        tests::wait::until(tests::wait::STEP, "the segment is attached", || {
            Ok(run("ipcs", &["-m", "-i", &ids[1]])?.contains("nattch=1").then_some(()))
        })?;
        let refused = running.restore(&["-d"])?.code(1)?;
        refused
            .says_with_hint(&format!("System V shared memory {}: is attached by somebody else", ids[1]))?;
        holder.kill()?;
        holder.wait()?;
        run("ipcrm", &["-m", &ids[1]])?;
        std::fs::write("/proc/sys/kernel/shm_next_id", &ids[1])?;
        let other = run("ipcmk", &["-M", "100"])?;
        anyhow::ensure!(other.trim_end().ends_with(&ids[1]), "{other}");
        let refused = running.restore(&["-d"])?.code(1)?;
        refused.says_with_hint(&format!("System V shared memory {}: is another segment now", ids[1]))?;
        let mut there = segments()?;
        there.sort_unstable();
        let mut expected = ids.clone();
        expected.sort_unstable();
        anyhow::ensure!(there == expected, "{there:?}");
        run("ipcrm", &["-m", &ids[1]])?;
        running.restore(&["-d"])?.success()?;
        running.verify()
    });
}

/// Attached by somebody outside of the tree: refused, also when that one cannot be seen.
#[test]
fn shared_with_the_outside() {
    require_root!();
    require_ia32!();
    isolated_for_both(&here!(), |dir, abi| {
        let mut running = sysv("attached").start(dir, abi)?;
        let before = running.snapshot()?;
        let id = segments()?.swap_remove(0);
        let program = tests::binaries::workload("sysv", abi)?;
        let mut holder =
            Command::new(program).args(["hold", &id]).stdout(std::process::Stdio::piped()).spawn()?;
        tests::wait::until(tests::wait::STEP, "the segment is attached", || {
            Ok(run("ipcs", &["-m", "-i", &id])?.contains("nattch=4").then_some(()))
        })?;
        let refused = running.dump(&[])?.code(1)?;
        refused.says_with_hint(&format!(
            "System V shared memory {id}: is attached 4 times, 3 of them in the tree"
        ))?;
        holder.kill()?;
        holder.wait()?;
        running.looks_like(&before)?;
        running.verify()
    });
}
