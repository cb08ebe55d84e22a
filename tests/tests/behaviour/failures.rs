//! Dumps and restores that cannot work: all reasons are listed, exit code 1, the target as before, no process left.

use anyhow::ensure;
use std::fs;
use std::path::Path;
use std::process::{Child, Command};
use tests::abi::Abi;
use tests::case::{Running, Workload, nothing_left};
use tests::isolate::{isolated, isolated_for_both};
use tests::{Result, command, here, require_ia32, require_root, wait};

/// A dumped tree of both ABIs that is gone.
fn dumped(dir: &Path, workload: &Workload) -> Result<(Running, Vec<i32>)> {
    let mut running = workload.start(dir, Abi::X86_64)?;
    let pids = tests::snapshot::tree(running.root.as_raw())?;
    running.dump(&[])?.success()?;
    nothing_left()?;
    Ok((running, pids))
}

const GENERATIONS: Workload = Workload::new("tree", "generations");

/// Starts a process under a pid of our choice, which a fresh pid namespace allows.
fn take_pid(pid: i32) -> Result<Child> {
    fs::write("/proc/sys/kernel/ns_last_pid", (pid - 1).to_string())?;
    let child = Command::new("sleep").arg("1000").spawn()?;
    assert_eq!(i32::try_from(child.id())?, pid, "the pid was not given out");
    Ok(child)
}

/// Beyond RLIMIT_FSIZE a dump fails as one that finds no room: it says why, and leaves nothing behind. A restore raises what it may of the limit, and
/// hands none of its own on.
#[test]
fn file_size_limit() {
    const LIMITED: [&str; 2] = ["prlimit", "--fsize=65536"];
    require_root!();
    require_ia32!();
    isolated_for_both(&here!(), |dir, abi| {
        let mut running = Workload::new("memory", "anonymous").start(dir, abi)?;
        let before = running.snapshot()?;
        let ways: [&[&str]; 5] = [
            &["dump"],
            &["dump", "--compress"],
            &["dump", "--leave-running", "--snapshot", "--fault", "twins-always"],
            &["pre-dump"],
            &["pre-dump", "--compress"],
        ];
        for way in ways {
            let mut args = running.dump_args(&way[1..])?;
            way[0].clone_into(&mut args[0]);
            let args: Vec<&str> = args.iter().map(String::as_str).collect();
            let output = command::crr_under(&LIMITED, &running.dir, &args)?.code(1)?;
            output.says("File too large")?;
            output.says_with_hint("File too large")?;
            let left: Vec<_> =
                fs::read_dir(running.images())?.map(|file| file.unwrap().file_name()).collect();
            ensure!(left.is_empty(), "{way:?} leaves {left:?}");
            running.looks_like(&before)?;
        }
        running.dump(&["--compress"])?.success()?;
        nothing_left()?;
        running.restore_under(&["prlimit", "--fsize=65536:"], &["-d"])?.success()?;
        running.looks_like(&before)?;
        running.verify()
    });
}

/// Busy pids are all named, and once they are free the same images restore.
#[test]
fn busy_pids_are_all_listed() {
    require_root!();
    require_ia32!();
    isolated(&here!(), |dir| {
        let (running, pids) = dumped(dir, &GENERATIONS)?;
        let mut squatters = vec![take_pid(pids[1])?, take_pid(pids[3])?];
        let output = running.restore(&["-d"])?.code(1)?;
        output.says(&pids[1].to_string())?;
        output.says(&pids[3].to_string())?;
        for squatter in &mut squatters {
            assert!(squatter.try_wait()?.is_none(), "the restore killed a stranger");
            squatter.kill()?;
            squatter.wait()?;
        }
        running.comes_back()
    });
}

/// Files that are gone or were replaced are all named; put back, the same images restore.
#[test]
fn changed_files_are_all_listed() {
    require_root!();
    require_ia32!();
    isolated(&here!(), |dir| {
        let (running, _) = dumped(dir, &Workload::new("files", "many"))?;
        fs::rename(dir.join("many-7"), dir.join("many-7.kept"))?;
        fs::rename(dir.join("many-300"), dir.join("many-300.kept"))?;
        fs::write(dir.join("many-300"), "another file of another size")?;
        let output = running.restore(&["-d"])?.code(1)?;
        output.says("many-7:")?;
        output.says("many-300:")?;
        nothing_left()?;
        fs::rename(dir.join("many-7.kept"), dir.join("many-7"))?;
        fs::rename(dir.join("many-300.kept"), dir.join("many-300"))?;
        running.restore(&["-d"])?.success()?;
        running.verify()
    });
}

/// A tree that takes more open files to be restored than crr may have is not dumped, nor restored.
#[test]
fn more_files_than_may_be_open() {
    require_root!();
    isolated(&here!(), |dir| {
        let mut running = Workload::new("files", "many").start(dir, Abi::X86_64)?;
        let limited = ["sh", "-c", "ulimit -n 540; exec \"$@\"", "sh"];
        let args = running.dump_args(&[])?;
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        command::crr_under(&limited, dir, &args)?
            .code(1)?
            .says_with_hint("file descriptors: a restore takes 5")?;
        running.dump(&[])?.success()?;
        nothing_left()?;
        let images = running.images().display().to_string();
        let restore = ["restore", "-D", &images, "-d"];
        command::crr_under(&limited, dir, &restore)?
            .code(1)?
            .says_with_hint("file descriptors: a restore takes 5")?;
        running.comes_back()
    });
}

/// A dump that may not have enough files open itself, while it finds the tasks or when it looks at them, says so and harms nothing.
#[test]
fn too_few_files_to_dump() {
    require_root!();
    require_ia32!();
    isolated_for_both(&here!(), |dir, abi| {
        let mut running = Workload::new("tree", "family").start(dir, abi)?;
        let before = running.snapshot()?;
        for limit in [20, 30] {
            let script = format!("ulimit -n {limit}; exec \"$@\"");
            let args = running.dump_args(&[])?;
            let args: Vec<&str> = args.iter().map(String::as_str).collect();
            let output = command::crr_under(&["sh", "-c", &script, "sh"], dir, &args)?.code(1)?;
            output.says("oo many open files")?;
            output.says(&format!("crr may have {limit} files open at once"))?;
            running.looks_like(&before)?;
        }
        running.verify()
    });
}

/// A procfs that is not mounted any more where the tree had a file of it is named; mounted again, the same images restore.
#[test]
fn a_missing_procfs_is_named() {
    require_root!();
    isolated(&here!(), |dir| {
        let (running, _) = dumped(dir, &Workload::new("task_files", "elsewhere"))?;
        let procfs = dir.join("proc");
        nix::mount::umount(&procfs)?;
        let output = running.restore(&["-d"])?.code(1)?;
        output.says_with_hint(&format!("{}: is not the procfs of crr's pid namespace", procfs.display()))?;
        nothing_left()?;
        nix::mount::mount(Some("proc"), &procfs, Some("proc"), nix::mount::MsFlags::empty(), None::<&str>)?;
        running.restore(&["-d"])?.success()?;
        running.verify()
    });
}

/// A message queue that others used too, and is gone, is named; made again, the same images restore.
#[test]
fn a_missing_message_queue_is_named() {
    require_root!();
    require_ia32!();
    isolated(&here!(), |dir| {
        let mut running = Workload::new("mqueues", "empty").start(dir, Abi::X86_64)?;
        let name = fs::read_to_string(dir.join("name"))?;
        let queue = crate::mqueues::mount(dir)?.join(name.trim_start_matches('/'));
        let held = fs::File::open(&queue)?;
        running.dump(&[])?.success()?.says("its messages are not recorded")?;
        drop(held);
        fs::remove_file(&queue)?;
        running.restore(&["-d"])?.code(1)?.says_with_hint(&format!("message queue {name}"))?;
        nothing_left()?;
        // With the limits that such files have, and the workload's queue.
        fs::File::create(&queue)?;
        running.restore(&["-d"])?.success()?;
        running.verify()
    });
}

/// A file that was mapped, not opened.
#[test]
fn a_missing_mapped_file_is_named() {
    require_root!();
    require_ia32!();
    isolated(&here!(), |dir| {
        let (running, _) = dumped(dir, &Workload::new("mapping", "private_file"))?;
        fs::remove_file(dir.join("private"))?;
        let output = running.restore(&["-d"])?.code(1)?;
        output.says("/private")?;
        nothing_left()
    });
}

/// Each image in turn missing, empty, cut or with a byte changed: a clear error and nothing forked.
#[test]
fn damaged_images_are_refused() {
    require_root!();
    require_ia32!();
    isolated(&here!(), |dir| {
        let (running, _) = dumped(dir, &Workload::new("harness", "idle"))?;
        let mut names: Vec<_> = fs::read_dir(running.images())?.map(|e| e.unwrap().path()).collect();
        names.sort();
        assert!(names.len() > 2, "only {names:?}");
        for path in &names {
            let whole = fs::read(path)?;
            let name = path.file_name().unwrap().to_str().unwrap();
            let middle = whole.len() / 2;
            let mut flipped = whole.clone();
            flipped[middle] ^= 0x10;
            for damaged in [None, Some(&[][..]), Some(&whole[..middle]), Some(&flipped)] {
                match damaged {
                    Some(bytes) => fs::write(path, bytes)?,
                    None => fs::remove_file(path)?,
                }
                running.restore(&["-d"])?.code(1)?.says(name)?;
                nothing_left()?;
            }
            fs::write(path, &whole)?;
        }
        running.restore(&["-d"])?.success()?;
        running.verify()
    });
}

/// A dump whose images do not fit leaves the target as it was.
#[test]
fn a_full_disk_harms_nothing() {
    require_root!();
    require_ia32!();
    isolated(&here!(), |dir| {
        for abi in Abi::ALL {
            let dir = dir.join(abi.name());
            let mut running = Workload::new("memory", "anonymous").start(&dir, abi)?;
            let before = running.snapshot()?;
            let small = dir.join("small");
            fs::create_dir(&small)?;
            let none: Option<&str> = None;
            nix::mount::mount(none, &small, Some("tmpfs"), nix::mount::MsFlags::empty(), Some("size=1m"))?;
            let root = running.root.to_string();
            let output = tests::command::crr(&dir, &["dump", "-t", &root, "-D", small.to_str().unwrap()])?;
            output.code(1)?.says("No space left on device")?;
            running.looks_like(&before)?;
            // Into a directory with room it can be dumped all the same.
            running.cycle(&before)?;
            running.verify()?;
        }
        Ok(())
    });
}

/// A restore that is killed while some tasks are back and others are not leaves none of them: no child that is all there,
/// and none that waits for a file which stands for a task.
#[test]
fn a_killed_restore_leaves_nobody() {
    require_root!();
    require_ia32!();
    isolated(&here!(), |dir| {
        ["memory", "pidfds"].into_iter().try_for_each(|file| killed_restores(&dir.join(file), file))
    });
}

/// Kills restores of a program's heavy case.
fn killed_restores(dir: &Path, file: &'static str) -> Result {
    for (abi, kill_root) in [(Abi::X86_64, false), (Abi::Ia32, false), (Abi::X86_64, true), (Abi::Ia32, true)]
    {
        let dir = dir.join(format!("{abi}-{kill_root}"));
        let mut running = Workload::new(file, "heavy").start(&dir, abi)?;
        let pids = tests::snapshot::tree(running.root.as_raw())?;
        running.dump(&[])?.success()?;
        nothing_left()?;
        let images = running.images().display().to_string();
        let mut crr = command::spawn(&dir, &["restore", "-d", "-D", &images])?;
        wait::until(wait::STEP, "the child is there", || {
            Ok(fs::exists(format!("/proc/{}", pids[1]))?.then_some(()))
        })?;
        // So that the restore is not through before it is killed.
        running.signal(nix::sys::signal::Signal::SIGSTOP)?;
        wait::until(wait::STEP, "the child is back", || {
            // The name is among the last things that a restoring task sets.
            let comm = |pid: i32| fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
            Ok((comm(pids[1]).trim() == file).then_some(()))
        })?;
        if kill_root {
            nix::sys::signal::kill(running.root, nix::sys::signal::Signal::SIGKILL)?;
        } else {
            crr.kill()?;
        }
        let status = wait::until(wait::STEP, "crr ends", || Ok(crr.try_wait()?))?;
        assert!(!status.success(), "the restore ended well");
        nothing_left()?;
    }
    Ok(())
}
