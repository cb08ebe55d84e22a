//! Many cycles, and dumps that are killed at random moments.

use std::path::Path;
use std::time::{Duration, Instant};
use tests::abi::Abi;
use tests::case::{Workload, nothing_left};
use tests::isolate::isolated_for;
use tests::modes::cycles;
use tests::moments::Moments;
use tests::snapshot::Snapshot;
use tests::{command, here, require_ia32, require_root, wait};

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

fn killed_dumps(dir: &Path, workload: Workload) -> tests::Result {
    let workload = workload.busy();
    for abi in Abi::ALL {
        let mut running = workload.start(&dir.join(abi.name()), abi)?;
        let before = running.snapshot()?;
        let started = Instant::now();
        running.dump(&["--leave-running"])?.success()?;
        // Twice, since the time varies; what comes after the end tests nothing but does no harm.
        let span = 2 * started.elapsed();
        let mut moments = Moments::default();
        let mut cut = 0;
        for kill in 1..=50 {
            let args = running.dump_args(&["--leave-running"])?;
            let moment = Instant::now() + moments.below(span);
            let mut crr = command::spawn(&running.dir, &args.iter().map(String::as_str).collect::<Vec<_>>())?;
            while Instant::now() < moment {
                std::hint::spin_loop();
            }
            crr.kill()?;
            cut += u32::from(crr.wait()?.code().is_none());
            command::none_left()?;
            alive(&running).map_err(|e| e.context(format!("{abi}: after kill {kill}")))?;
        }
        assert!(cut >= 10, "only {cut} of 50 dumps were still running when they were killed");
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
            alive(&running)?;
            for dump in 1..=30 {
                running.dump(&["--leave-running"])?.success()?;
                alive(&running).map_err(|e| e.context(format!("{abi}: after dump {dump}")))?;
                std::fs::remove_dir_all(running.images())?;
            }
            for cycle in 1..=10 {
                running.dump(&[])?.success()?;
                nothing_left()?;
                running.restore(&["-d"])?.success()?;
                alive(&running).map_err(|e| e.context(format!("{abi}: after cycle {cycle}")))?;
                std::fs::remove_dir_all(running.images())?;
            }
            running.verify()?;
        }
        Ok(())
    });
}

/// Asks the busy tree whether every thread gets on.
fn alive(running: &tests::case::Running) -> tests::Result {
    let answers = |log: &str| log.lines().filter(|line| *line == "ALIVE").count();
    let before = answers(&running.log()?);
    running.signal(nix::sys::signal::Signal::SIGUSR2)?;
    wait::until(wait::STEP, "the workload answers ALIVE", || {
        let log = running.log()?;
        anyhow::ensure!(!log.contains("FAIL"), "the workload said:\n{log}");
        Ok((answers(&log) > before).then_some(()))
    })
}
