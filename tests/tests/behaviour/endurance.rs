//! Many cycles, and dumps that are killed at random moments.

use anyhow::Context;
use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::path::Path;
use std::time::{Duration, Instant};
use tests::abi::Abi;
use tests::case::{Workload, nothing_left};
use tests::isolate::isolated_for;
use tests::kills::{kill_dumps, kill_restores};
use tests::modes::cycles;
use tests::snapshot::Snapshot;
use tests::{here, require_ia32, require_root, wait};

const MINUTES: Duration = Duration::from_secs(60);

/// The same mixed tree dumped and restored twenty times in a row is the same in /proc each time.
#[test]
fn twenty_cycles_of_a_mixed_tree() {
    require_root!();
    require_ia32!();
    isolated_for(4 * MINUTES, &here!(), |dir| {
        cycles(&dir.join("mixed"), &Workload::new("tree", "mixed"), Abi::X86_64, 20)?;
        cycles(&dir.join("threads"), &Workload::new("threads", "in_children"), Abi::Ia32, 20)
    });
}

/// Two hundred small trees, one after the other, without one failure.
#[test]
fn two_hundred_cycles_of_small_trees() {
    require_root!();
    require_ia32!();
    isolated_for(8 * MINUTES, &here!(), |dir| {
        let trees = [
            Workload::new("harness", "idle"),
            Workload::new("pipes", "between_abis"),
            Workload::new("tree", "parent_death"),
            Workload::new("threads", "robust_mutex"),
        ];
        for round in 0..50 {
            for (index, workload) in trees.iter().enumerate() {
                let abi = Abi::ALL[(round + index) % 2];
                let dir = dir.join(format!("{round}-{workload}"));
                cycles(&dir, workload, abi, 1)
                    .map_err(|e| e.context(format!("{abi} {workload}, round {round}")))?;
                std::fs::remove_dir_all(dir)?;
            }
        }
        Ok(())
    });
}

/// SIGKILL hits `crr dump` at a hundred random moments; the tree of both ABIs works on, every thread of it. Of all
/// of them at most one executable area a task is left, and after a dump to the end everything is as before.
#[test]
fn a_killed_dump_harms_nothing() {
    require_root!();
    require_ia32!();
    isolated_for(8 * MINUTES, &here!(), |dir| killed_dumps(dir, Workload::new("busy", "tree")));
}

/// The same with filters of seccomp that kill whoever makes the calls by which crr asks a task.
#[test]
fn a_killed_dump_of_confined_tasks_harms_nothing() {
    require_root!();
    require_ia32!();
    isolated_for(8 * MINUTES, &here!(), |dir| killed_dumps(dir, Workload::new("busy", "confined")));
}

/// The same where nothing can be mapped, or no code.
#[test]
fn a_killed_dump_of_tasks_without_room_harms_nothing() {
    require_root!();
    require_ia32!();
    isolated_for(8 * MINUTES, &here!(), |dir| killed_dumps(dir, Workload::new("busy", "cramped")));
}

/// The same with tasks none of whose threads would find back by a frame of its task's ABI.
#[test]
fn a_killed_dump_of_lone_threads_harms_nothing() {
    require_root!();
    require_ia32!();
    isolated_for(8 * MINUTES, &here!(), |dir| killed_dumps(dir, Workload::new("modes", "alone")));
}

/// The same with requests of asynchronous I/O, of which a dump takes all that there can be.
#[test]
fn a_killed_dump_of_asynchronous_io_harms_nothing() {
    require_root!();
    require_ia32!();
    isolated_for(8 * MINUTES, &here!(), |dir| killed_dumps(dir, Workload::new("aio", "busy")));
}

/// How many dumps of each tree are killed in the ordinary tests.
const KILLS: u32 = 50;

fn killed_dumps(dir: &Path, workload: Workload) -> tests::Result {
    killed_dumps_of(dir, workload, KILLS)
}

fn killed_dumps_of(dir: &Path, workload: Workload, kills: u32) -> tests::Result {
    let workload = workload.busy();
    for abi in Abi::ALL {
        let mut running = workload.start(&dir.join(abi.name()), abi)?;
        let before = running.snapshot()?;
        let cut = kill_dumps(&mut running, &[], kills, |running| {
            std::fs::remove_dir_all(running.images())?;
            running.is_alive()
        });
        let cut = cut.with_context(|| format!("{abi}"))?;
        at_most_one_area_left(&before, &running.snapshot()?)
            .map_err(|e| e.context(format!("{abi}: after {cut} killed dumps")))?;
        running.dump(&["--leave-running"])?.success()?;
        running
            .looks_like(&before)
            .map_err(|e| e.context(format!("{abi}: {cut} killed dumps, then a whole one")))?;
        running.cycle(&before)?;
        running.verify()?;
    }
    Ok(())
}

/// The thousand that `ci/stress` asks for: 250 of each of two trees, in each ABI.
#[test]
#[ignore = "ci/stress runs it"]
fn a_thousand_killed_dumps() {
    require_root!();
    require_ia32!();
    isolated_for(60 * MINUTES, &here!(), |dir| {
        killed_dumps_of(&dir.join("tree"), Workload::new("busy", "tree"), 250)?;
        killed_dumps_of(&dir.join("confined"), Workload::new("busy", "confined"), 250)
    });
}

/// SIGKILL hits `crr restore` at random moments: nobody is left, or everybody is there.
#[test]
fn a_killed_restore_leaves_all_or_nobody() {
    require_root!();
    require_ia32!();
    isolated_for(8 * MINUTES, &here!(), |dir| killed_restores(dir, 25));
}

/// The same five hundred times.
#[test]
#[ignore = "ci/stress runs it"]
fn five_hundred_killed_restores() {
    require_root!();
    require_ia32!();
    isolated_for(60 * MINUTES, &here!(), |dir| killed_restores(dir, 250));
}

fn killed_restores(dir: &Path, kills: u32) -> tests::Result {
    for abi in Abi::ALL {
        let mut running = Workload::new("threads", "in_children").start(&dir.join(abi.name()), abi)?;
        let before = running.snapshot()?;
        let pids = tests::snapshot::tree(running.root.as_raw())?;
        running.dump(&[])?.success()?;
        nothing_left()?;
        let started = Instant::now();
        running.restore(&["-d"])?.success()?;
        let span = started.elapsed();
        end_all(&pids)?;
        kill_restores(&mut running, span, kills, |running| {
            let whole = running.looks_like(&before);
            if let Err(difference) = whole {
                nobody_left(&pids).map_err(|e| e.context(difference))?;
            }
            end_all(&pids)
        })
        .with_context(|| format!("{abi}"))?;
        running.restore(&["-d"])?.success()?;
        running.looks_like(&before)?;
        running.verify()?;
    }
    Ok(())
}

/// Waits until none of these tasks is there: whoever is killed with crr is on the way out when that is gone.
fn nobody_left(pids: &[i32]) -> tests::Result {
    let is_there = |pid: &i32| {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        !stat.is_empty() && !stat.contains(") Z ")
    };
    wait::until(wait::STEP / 10, "nobody is left", || Ok((!pids.iter().any(is_there)).then_some(())))
}

fn end_all(pids: &[i32]) -> tests::Result {
    for &pid in pids {
        match kill(Pid::from_raw(pid), Signal::SIGKILL) {
            Ok(()) | Err(Errno::ESRCH) => {}
            Err(e) => return Err(e.into()),
        }
    }
    nothing_left()
}

/// The area in which a task makes system calls for a dump (or one without code in its place) stays behind when the dump is killed just
/// then, but not the areas of several.
fn at_most_one_area_left(before: &Snapshot, after: &Snapshot) -> tests::Result {
    for key in before.keys().filter(|key| key.ends_with(" maps")) {
        let known = before.lines(key);
        let new: Vec<_> = after.lines(key).iter().filter(|line| !known.contains(line)).collect();
        let shown = |line: &&String| line.contains(" rwxs ") || line.contains(" r--s ");
        let ours = new.iter().all(|line| shown(line) && line.ends_with("/dev/zero (deleted)"));
        anyhow::ensure!(new.len() <= 1 && ours, "{key}: {new:#?}");
    }
    Ok(())
}

/// Threads and tasks that come and go, and signals on their way, at whatever moment a dump picks: it succeeds every time
/// and harms nothing, and so do dump and restore.
#[test]
fn dumps_of_a_tree_in_motion() {
    require_root!();
    require_ia32!();
    isolated_for(8 * MINUTES, &here!(), |dir| {
        for abi in Abi::ALL {
            let mut running = Workload::new("churn", "tree").busy().start(&dir.join(abi.name()), abi)?;
            running.is_alive()?;
            for dump in 1..=30 {
                running.dump(&["--leave-running"])?.success()?;
                running.is_alive().map_err(|e| e.context(format!("{abi}: after dump {dump}")))?;
                std::fs::remove_dir_all(running.images())?;
            }
            for cycle in 1..=10 {
                running.dump(&[])?.success()?;
                nothing_left()?;
                running.restore(&["-d"])?.success()?;
                running.is_alive().map_err(|e| e.context(format!("{abi}: after cycle {cycle}")))?;
                std::fs::remove_dir_all(running.images())?;
            }
            running.verify()?;
        }
        Ok(())
    });
}
