//! Incremental dumps: rounds of `crr pre-dump` while the tree runs, and a dump that builds on them.

use anyhow::{Context, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::fs;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;
use tests::abi::Abi;
use tests::case::{Running, Workload, images_size, nothing_left, reap};
use tests::isolate::isolated_for_both;
use tests::sys::descriptor_of;
use tests::{Result, command, here, needs, require_ia32, require_root, sys, wait};

/// The processes that keep track of what is written.
fn keepers() -> Result<Vec<i32>> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let path = entry?.path();
        let words = fs::read_to_string(path.join("cmdline")).unwrap_or_default();
        if words.starts_with("crr\0keep-track\0") {
            found.push(path.file_name().unwrap_or_default().to_string_lossy().parse()?);
        }
    }
    Ok(found)
}

/// The task has no descriptor of crr's, and its areas are under none.
fn is_untracked(root: Pid) -> Result {
    let smaps = fs::read_to_string(format!("/proc/{root}/smaps"))?;
    ensure!(!smaps.lines().any(|line| line.starts_with("VmFlags:") && line.contains(" uw")), "still tracked");
    has_no_descriptor(root)
}

fn has_no_descriptor(root: Pid) -> Result {
    for entry in fs::read_dir(format!("/proc/{root}/fd"))? {
        let target = fs::read_link(entry?.path())?;
        ensure!(!target.to_string_lossy().contains("userfaultfd"), "it has a userfaultfd");
    }
    Ok(())
}

fn step(running: &Running, number: u32) -> Result {
    running.signal(Signal::SIGUSR2)?;
    running.wait_for(&format!("STEP {number}"))
}

/// Memory that is written, by the program and by the kernel, dropped, moved, replaced, hidden, grown and forked between rounds.
#[test]
fn everything_that_changes() {
    require_root!();
    require_ia32!();
    isolated_for_both(&here!(), |dir, abi| {
        let mut running = Workload::new("rounds", "steps").start(dir, abi)?;
        running.pre_dump(&[])?.success()?;
        has_no_descriptor(running.root)?;
        step(&running, 1)?;
        running.pre_dump(&["--compress"])?.success()?;
        step(&running, 2)?;
        let before = fs::read_to_string(format!("/proc/{}/maps", running.root))?;
        ensure!(keepers()?.len() == 1, "keepers: {:?}", keepers()?);
        running.dump_on_rounds(&[])?.success()?;
        nothing_left()?;
        running.restore(&["-d"])?.success()?;
        is_untracked(running.root)?;
        let after = fs::read_to_string(format!("/proc/{}/maps", running.root))?;
        ensure!(before.lines().last() == after.lines().last(), "{before}\n{after}");
        running.verify()
    });
}

/// What other ways to know of writes would miss (ci/kernels has it with soft-dirty bits, which this kernel may not have).
#[test]
fn changes_that_are_hard_to_see() {
    require_root!();
    require_ia32!();
    isolated_for_both(&here!(), |dir, abi| {
        for case in ["moved", "joined", "cleared"] {
            let mut running = Workload::new("rounds", case).start(&dir.join(case), abi)?;
            running.pre_dump(&[])?.success()?;
            step(&running, 1)?;
            running.pre_dump(&[])?.success()?;
            step(&running, 2)?;
            running.dump_on_rounds(&[])?.success()?;
            running.comes_back()?;
        }
        Ok(())
    });
}

/// What writes to memory by its pages is refused by a round, also where no mapping and no descriptor shows it; when it has ended, all is as it left it.
#[test]
fn rings_that_write_unseen() {
    require_root!();
    require_ia32!();
    if !needs::in_kernel(&here!(), sys::has_kernel_helpers(), "io_uring") {
        return;
    }
    isolated_for_both(&here!(), |dir, abi| {
        let mut running = Workload::new("rounds", "rings").start(dir, abi)?;
        let root = running.root.to_string();
        let refused = dir.join("refused");
        fs::create_dir(&refused)?;
        let images = refused.display().to_string();
        let pre_dump = || command::crr(dir, &["pre-dump", "-t", &root, "-D", &images])?.code(1);
        let buffers = pre_dump()?;
        buffers.says_with_hint("(anon_inode:[io_uring])")?;
        buffers.says_with_hint("memory: has 16 KiB pinned")?;
        step(&running, 1)?;
        pre_dump()?.says_with_hint("io_uring is not supported: it has a ring with index 0")?;
        ensure!(keepers()?.is_empty() && fs::read_dir(&refused)?.next().is_none(), "something is left");
        is_untracked(running.root)?;
        step(&running, 2)?;
        running.pre_dump(&[])?.success()?;
        running.dump_on_rounds(&[])?.success()?;
        running.comes_back()
    });
}

/// Tasks of all sorts come back as they were.
#[test]
fn all_sorts_of_tasks() {
    require_root!();
    require_ia32!();
    let workloads = [
        Workload::new("memory", "heap"),
        Workload::new("memory", "prot_none"),
        Workload::new("mapping", "private_file"),
        Workload::new("mapping", "shared_twice"),
        Workload::new("threads", "many"),
        Workload::new("families", "memory"),
        Workload::new("tree", "mixed"),
        Workload::new("syscalls", "waiting"),
        Workload::new("room", "limit"),
    ];
    isolated_for_both(&here!(), |dir, abi| {
        for workload in &workloads {
            tracked(&dir.join(workload.to_string()), workload, abi).with_context(|| workload.to_string())?;
        }
        Ok(())
    });
}

fn tracked(dir: &Path, workload: &Workload, abi: Abi) -> Result {
    let mut running = workload.start(dir, abi)?;
    let before = running.snapshot()?;
    running.pre_dump(&[])?.success()?;
    running.pre_dump(&[])?.success()?;
    running.dump_on_rounds(&[])?.success()?;
    nothing_left()?;
    running.restore(&["-d"])?.success()?;
    running.looks_like(&before)?;
    running.verify()
}

/// A tree that is let run by the last dump is as before, not tracked any more. So it is after a dump that knows nothing of pre-dumps.
#[test]
fn tracking_ends_with_the_dump() {
    require_root!();
    require_ia32!();
    isolated_for_both(&here!(), |dir, abi| {
        let mut running = Workload::new("memory", "anonymous").start(dir, abi)?;
        let before = running.snapshot()?;
        running.pre_dump(&[])?.success()?;
        running.dump_on_rounds(&["--leave-running"])?.success()?;
        is_untracked(running.root)?;
        running.looks_like(&before)?;
        running.pre_dump(&[])?.success()?;
        running.dump(&["--leave-running"])?.success()?;
        ensure!(keepers()?.is_empty(), "a keeper is left");
        running.looks_like(&before)?;
        running.dump(&[])?.success()?;
        nothing_left()?;
        running.restore(&["-d"])?.success()?;
        running.looks_like(&before)?;
        running.verify()
    });
}

/// Without the keeper nobody knows what was written: the dump says so and takes everything.
#[test]
fn a_keeper_that_was_killed_is_noticed() {
    require_root!();
    require_ia32!();
    isolated_for_both(&here!(), |dir, abi| {
        let mut running = Workload::new("rounds", "steps").start(dir, abi)?;
        running.pre_dump(&[])?.success()?;
        for keeper in keepers()? {
            kill(Pid::from_raw(keeper), Signal::SIGKILL)?;
        }
        // A process has no arguments any more before its descriptors are closed.
        wait::until(wait::STEP, "tracking ends", || Ok(is_untracked(running.root).ok()))?;
        step(&running, 1)?;
        step(&running, 2)?;
        let dumped = running.dump_on_rounds(&[])?.success()?;
        dumped.says("nobody has kept track of what was written since")?;
        running.comes_back()
    });
}

/// The keeper ends with the tasks.
#[test]
fn a_keeper_ends_with_its_tasks() {
    require_root!();
    require_ia32!();
    isolated_for_both(&here!(), |dir, abi| {
        let mut running = Workload::new("tree", "mixed").start(dir, abi)?;
        running.pre_dump(&[])?.success()?;
        running.verify()
    });
}

/// Each round has only what was written since, and the last dump stops the tree for a fraction of the time of a whole one.
#[test]
fn rounds_of_a_program_that_writes_all_the_time() {
    require_root!();
    require_ia32!();
    isolated_for_both(&here!(), |dir, abi| {
        let mut running = Workload::new("rounds", "writer").busy().start(dir, abi)?;
        let whole = shortest_freeze(|| running.dump(&["--leave-running", "-v3"]))?;
        let whole_size = images_size(&running.images())?;
        running.pre_dump(&[])?.success()?;
        running.pre_dump(&[])?.success()?;
        running.pre_dump(&[])?.success()?;
        let round_size = images_size(&running.images())?;
        // The time that a tree takes to end is no part of what is compared.
        let last = shortest_freeze(|| {
            running.pre_dump(&[])?.success()?;
            running.dump_on_rounds(&["--leave-running", "-v3"])
        })?;
        running.signal(Signal::SIGKILL)?;
        nothing_left()?;
        let last_size = images_size(&running.images())?;
        ensure!(round_size * 10 < whole_size, "a round has {round_size} bytes, all {whole_size}");
        ensure!(last_size * 10 < whole_size, "the last dump has {last_size} bytes, all {whole_size}");
        ensure!(last * 3 < whole * 2, "frozen for {last:?} instead of {whole:?}");
        running.restore(&["-d"])?.success()?;
        running.verify()
    });
}

/// The shortest of the times that three dumps stop the tree: what else the machine does decides about single ones.
fn shortest_freeze(mut dump: impl FnMut() -> Result<command::Output>) -> Result<Duration> {
    let times = (0..3).map(|_| frozen(&dump()?.success()?.stderr)).collect::<Result<Vec<_>>>()?;
    times.into_iter().min().context("no dump")
}

/// How long a dump says that it stopped the tree.
fn frozen(said: &str) -> Result<Duration> {
    let seconds = said.split("frozen for ").nth(1).and_then(|rest| rest.split(' ').next());
    Ok(Duration::from_secs_f64(seconds.with_context(|| said.to_owned())?.parse()?))
}

/// A refused dump leaves everything as it was, what is known of written pages too.
#[test]
fn a_refused_dump_ends_nothing() {
    require_root!();
    require_ia32!();
    isolated_for_both(&here!(), |dir, abi| {
        let mut running = Workload::new("rounds", "steps").start(dir, abi)?;
        running.pre_dump(&[])?.success()?;
        let keeper = keepers()?;
        step(&running, 1)?;
        // The deleted file is too large for it.
        let previous = fs::canonicalize(running.images())?.display().to_string();
        let options = ["--prev-images-dir", &previous, "--ghost-limit", "0"];
        running.dump(&options)?.code(1)?.says_with_hint("--ghost-limit")?;
        ensure!(keepers()? == keeper, "the keeper has changed");
        step(&running, 2)?;
        let last = running.dump(&options[..2])?.success()?;
        ensure!(!last.stderr.contains("nobody"), "{}", last.stderr);
        running.comes_back()
    });
}

/// What later rounds have anew is given back, and the restore does not miss it.
#[test]
fn holes_in_earlier_rounds() {
    require_root!();
    require_ia32!();
    isolated_for_both(&here!(), |dir, abi| {
        let mut running = Workload::new("rounds", "steps").start(dir, abi)?;
        running.pre_dump(&[])?.success()?;
        let first = running.images().join("pages.img");
        let stored = || -> Result<u64> { Ok(std::os::unix::fs::MetadataExt::blocks(&fs::metadata(&first)?)) };
        let whole = stored()?;
        step(&running, 1)?;
        running.pre_dump(&["--auto-dedup"])?.success()?;
        let less = stored()?;
        ensure!(less < whole, "{less} blocks of {whole}");
        step(&running, 2)?;
        running.dump_on_rounds(&[])?.success()?;
        nothing_left()?;
        command::crr(dir, &["dedup", "-D", &running.images().display().to_string()])?.success()?;
        ensure!(stored()? < less, "{} blocks of {less}", stored()?);
        running.restore(&["-d"])?.success()?;
        running.verify()
    });
}

/// Where nothing tells what was written since a round, nothing of it is used: it is not needed for the restore, and `--auto-dedup` takes nothing from
/// others that build on it.
#[test]
fn what_uses_no_round_builds_on_none() {
    require_root!();
    require_ia32!();
    isolated_for_both(&here!(), |dir, abi| {
        let mut running = Workload::new("memory", "anonymous").start(dir, abi)?;
        running.pre_dump(&[])?.success()?;
        let first = running.images();
        let on_first = ["--prev-images-dir", &first.display().to_string(), "--leave-running"];
        running.dump(&on_first)?.success()?;
        let second = running.images();
        // The dump has ended tracking.
        let late = [&on_first[..], &["--auto-dedup"]].concat();
        running.dump(&late)?.success()?.says("nobody has kept track")?;
        let third = running.images();
        let mut args = running.dump_args(&late[..2])?;
        args.push("--auto-dedup".to_owned());
        "pre-dump".clone_into(&mut args[0]);
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        command::crr(dir, &args)?.success()?.says("nobody has kept track")?;
        let previous = running.images().display().to_string();
        running.dump(&["--prev-images-dir", &previous, "--leave-running"])?.success()?;
        let last = running.images();
        running.signal(Signal::SIGKILL)?;
        nothing_left()?;
        for images in [&second, &third, &last] {
            if images == &third {
                fs::remove_dir_all(&first)?;
            }
            let images = images.display().to_string();
            command::crr(dir, &["restore", "-d", "-D", &images])?.success()?;
            if images != last.display().to_string() {
                running.signal(Signal::SIGKILL)?;
                nothing_left()?;
            }
        }
        running.verify()
    });
}

/// A dump that could not be restored, for want of an earlier round, is none; nor is one that would take the place of what it builds on.
#[test]
fn earlier_rounds_have_to_be_there() {
    require_root!();
    require_ia32!();
    isolated_for_both(&here!(), |dir, abi| {
        let mut running = Workload::new("memory", "anonymous").start(dir, abi)?;
        running.pre_dump(&[])?.success()?;
        let first = running.images();
        running.pre_dump(&[])?.success()?;
        let (root, second) = (running.root.to_string(), running.images().display().to_string());
        for dir in [first.display().to_string(), second.clone()] {
            let args = ["dump", "-t", &root, "-D", &dir, "--prev-images-dir", &second];
            command::crr(&running.dir, &args)?
                .code(1)?
                .says_with_hint("would be replaced by what builds on it")?;
        }
        let away = first.with_extension("away");
        fs::rename(&first, &away)?;
        let options = ["--prev-images-dir", &second];
        running.dump(&options)?.code(1)?.says("builds on others, which have to be there")?;
        fs::rename(&away, &first)?;
        running.dump(&options)?.success()?;
        running.comes_back()
    });
}

/// A new series of rounds ends tracking for the one before.
#[test]
fn a_new_series() {
    require_root!();
    require_ia32!();
    isolated_for_both(&here!(), |dir, abi| {
        let mut running = Workload::new("rounds", "steps").start(dir, abi)?;
        let root = running.root.to_string();
        running.pre_dump(&[])?.success()?;
        let other = dir.join("other");
        fs::create_dir(&other)?;
        step(&running, 1)?;
        let images = other.display().to_string();
        command::crr(&running.dir, &["pre-dump", "-t", &root, "-D", &images])?.success()?;
        ensure!(keepers()?.len() == 1, "keepers: {:?}", keepers()?);
        step(&running, 2)?;
        // On the first one, of which nothing is known any more.
        let dumped = running.dump_on_rounds(&[])?.success()?;
        dumped.says("nobody has kept track of what was written since")?;
        running.comes_back()
    });
}

/// SIGKILL hits `crr pre-dump` at many moments; the tree goes on, is dumped and is right.
#[test]
fn killed_pre_dumps_harm_nothing() {
    require_root!();
    require_ia32!();
    isolated_for_both(&here!(), |dir, abi| {
        let mut running = Workload::new("rounds", "steps").start(dir, abi)?;
        let root = running.root.to_string();
        let begun = std::time::Instant::now();
        running.pre_dump(&[])?.success()?;
        let took = begun.elapsed();
        for round in 0..16u32 {
            let images = dir.join("killed");
            fs::create_dir_all(&images)?;
            let images = images.display().to_string();
            let mut child = command::spawn(dir, &["pre-dump", "-t", &root, "-D", &images])?;
            // The moment is what is tried; nothing waits for it.
            std::thread::sleep(took * round / 16);
            child.kill()?;
            child.wait()?;
            command::none_left()?;
            has_no_descriptor(running.root)?;
        }
        step(&running, 1)?;
        running.dump(&[])?.success()?;
        running.comes_back()
    });
}

/// What a checkpoint builds on has to be there, whole and the same.
#[test]
fn parents_are_checked() {
    require_root!();
    require_ia32!();
    isolated_for_both(&here!(), |dir, abi| {
        let mut running = Workload::new("memory", "anonymous").start(dir, abi)?;
        running.pre_dump(&[])?.success()?;
        let first = running.images();
        running.restore(&["-d"])?.code(1)?.says("is a pre-dump")?;
        running.pre_dump(&[])?.success()?;
        running.dump_on_rounds(&[])?.success()?;
        nothing_left()?;
        let shown = command::crr(dir, &["show", &running.images().display().to_string()])?.success()?;
        ensure!(shown.stdout.contains("builds on ../images-2"), "{}", shown.stdout);
        ensure!(shown.stdout.contains("builds on ../images-1"), "{}", shown.stdout);
        let pages = first.join("pages.img");
        let whole = fs::read(&pages)?;
        let middle = whole.len() / 2;
        let mut damaged = whole.clone();
        damaged[middle..].fill(0x55);
        fs::write(&pages, &damaged)?;
        running.restore(&["-d"])?.code(1)?.says("images-1/pages.img: is corrupt")?;
        fs::write(&pages, &whole)?;
        let away = first.with_extension("away");
        fs::rename(&first, &away)?;
        running.restore(&["-d"])?.code(1)?.says("builds on others, which have to be there")?;
        fs::rename(&away, &first)?;
        running.restore(&["-d"])?.success()?;
        running.verify()
    });
}

/// Somebody outside of the tree shares its memory and writes to it while a round looks at it: that comes before or after, and is not missed.
#[test]
fn writes_from_outside() {
    require_root!();
    require_ia32!();
    isolated_for_both(&here!(), |dir, abi| {
        let mut running = Workload::new("rounds", "outsider").start(dir, abi)?;
        running.pre_dump(&[])?.success()?;
        step(&running, 1)?;
        running.pre_dump(&[])?.success()?;
        step(&running, 2)?;
        reap()?;
        running.dump_on_rounds(&[])?.success()?;
        running.comes_back()
    });
}

/// What a program's own userfaultfd protects, which somebody else has, says nothing about a round: it is not tracked, and a dump is refused.
#[test]
fn what_others_watch() {
    require_root!();
    require_ia32!();
    isolated_for_both(&here!(), |dir, abi| {
        let mut running = Workload::new("rounds", "watched").start(dir, abi)?;
        running.pre_dump(&[])?.success()?;
        let keeper = keepers()?;
        let previous = fs::canonicalize(running.images())?.display().to_string();
        let options = ["--prev-images-dir", &previous];
        step(&running, 1)?;
        let watcher = descriptor_of(running.root.as_raw(), 60)?;
        step(&running, 2)?;
        running.dump(&options)?.code(1)?.says_with_hint("watched by userfaultfd, and not by a pre-dump")?;
        running.pre_dump(&options)?.code(1)?.says_with_hint("no task of the tree can be tracked")?;
        ensure!(keepers()? == keeper, "the keeper has changed");
        drop(watcher);
        let last = running.dump(&options)?.success()?;
        ensure!(!last.stderr.contains("nobody"), "{}", last.stderr);
        running.comes_back()
    });
}

/// A dump has looked who keeps track, and before it stops the tree another round takes over: its marks are not those of the round that the dump builds on.
#[test]
fn a_round_that_comes_first() {
    require_root!();
    require_ia32!();
    isolated_for_both(&here!(), |dir, abi| {
        let mut running = Workload::new("rounds", "steps").start(dir, abi)?;
        let root = running.root.to_string();
        running.pre_dump(&[])?.success()?;
        step(&running, 1)?;
        let own = dir.join("own");
        fs::create_dir(&own)?;
        let previous = ["--prev-images-dir", "../images-1"];
        let args = running.dump_args(&[&previous[..], &["--fault", "stopped-starting"]].concat())?;
        let mut dump = command::spawn(&own, &args.iter().map(String::as_str).collect::<Vec<_>>())?;
        let stat = format!("/proc/{}/stat", dump.id());
        wait::until(wait::STEP, "the dump is stopped", || {
            Ok(fs::read_to_string(&stat)?.contains(") T ").then_some(()))
        })?;
        fs::create_dir(dir.join("other"))?;
        let other = dir.join("other").display().to_string();
        let args = [&["pre-dump", "-t", &root, "-D", &other], &previous[..]].concat();
        command::crr(&running.dir, &args)?.success()?;
        kill(Pid::from_raw(dump.id().try_into()?), Signal::SIGCONT)?;
        let status = wait::until(wait::STEP, "the dump ends", || Ok(dump.try_wait()?))?;
        let said = fs::read_to_string(own.join("crr.stderr"))?;
        ensure!(status.success(), "{status}: {said}");
        ensure!(said.contains("nobody has kept track of what was written since"), "{said}");
        nothing_left()?;
        running.restore(&["-d"])?.success()?;
        step(&running, 2)?;
        running.verify()
    });
}

/// A process is no keeper for its command line alone.
#[test]
fn what_looks_like_a_keeper() {
    require_root!();
    require_ia32!();
    isolated_for_both(&here!(), |dir, abi| {
        let mut running = Workload::new("memory", "anonymous").start(dir, abi)?;
        let stat = fs::read_to_string(format!("/proc/{}/stat", running.root))?;
        let start =
            stat.rsplit(')').next().and_then(|rest| rest.split_whitespace().nth(19)).context("stat")?;
        fs::write(dir.join("keep-track"), "read line")?;
        let mut other = Command::new("sh")
            .arg0("crr")
            .args(["keep-track", "--task", &format!("{}:{start}:0", running.root)])
            .current_dir(dir)
            .stdin(Stdio::piped())
            .spawn()?;
        wait::until(wait::STEP, "it has its arguments", || Ok((!keepers()?.is_empty()).then_some(())))?;
        running.pre_dump(&[])?.success()?;
        running.dump(&["--leave-running"])?.success()?;
        ensure!(other.try_wait()?.is_none(), "it was ended");
        drop(other.stdin.take());
        other.wait()?;
        running.dump(&[])?.success()?;
        running.comes_back()
    });
}

/// The thread that a task is reached by, whose leader has ended, ends while memory is copied, and somebody else gets its id: what is copied is the task's all the same.
#[test]
fn a_deputy_that_ends() {
    require_root!();
    require_ia32!();
    isolated_for_both(&here!(), |dir, abi| {
        let mut running = Workload::new("rounds", "deputy").start(dir, abi)?;
        let root = running.root.to_string();
        let first = dir.join("first");
        fs::create_dir(&first)?;
        nix::unistd::mkfifo(&first.join("go"), nix::sys::stat::Mode::S_IRWXU)?;
        // What is read first says that the tree runs on; the pipe holds little of what is to come.
        let script =
            "set -o pipefail; \"$@\" | { head -c 512 > begun; read line < go; cat begun - | tar x; }";
        let round = || {
            let under = ["bash", "-c", script, "bash"];
            command::crr_under(&under, &first, &["pre-dump", "-t", &root, "-D", "-"])
        };
        std::thread::scope(|scope| -> Result {
            let round = scope.spawn(round);
            wait::until(wait::STEP, "pages come", || {
                let len = fs::metadata(first.join("begun")).map_or(0, |begun| begun.len());
                Ok((len == 512 || round.is_finished()).then_some(()))
            })?;
            step(&running, 1)?;
            fs::write(first.join("go"), "\n")?;
            round.join().map_err(|_| anyhow::anyhow!("panic"))??.success()?;
            Ok(())
        })?;
        step(&running, 2)?;
        running.dump(&["--prev-images-dir", "../first"])?.success()?;
        running.comes_back()
    });
}
