//! POSIX message queues. Every test has an IPC namespace of its own.

use crate::rights::dump_as_user;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use tests::case::{Workload, nothing_left};
use tests::isolate::isolated_for_both;
use tests::{Result, here, require_ia32, require_root};

const fn mqueues(case: &'static str) -> Workload {
    Workload::new("mqueues", case)
}

tests::survives! {
    contents => mqueues("contents");
    waiting => mqueues("waiting");
    between_abis => mqueues("between_abis");
    unlinked => mqueues("unlinked");
    named => mqueues("named");
}

/// Mounts the queues, below a directory.
pub(crate) fn mount(dir: &Path) -> Result<PathBuf> {
    let queues = dir.join("queues");
    fs::create_dir(&queues)?;
    let flags = nix::mount::MsFlags::empty();
    nix::mount::mount(Some("none"), &queues, Some("mqueue"), flags, None::<&str>)?;
    Ok(queues)
}

fn names(queues: &Path) -> Result<Vec<PathBuf>> {
    Ok(fs::read_dir(queues)?.map(|entry| Ok(entry?.path())).collect::<std::io::Result<_>>()?)
}

/// As after a restart of the machine. A restore that fails takes away what it has made.
#[test]
fn what_is_gone_is_made_again() {
    require_root!();
    require_ia32!();
    isolated_for_both(&here!(), |dir, abi| {
        let mut running = mqueues("named").start(dir, abi)?;
        let queues = mount(dir)?;
        let before = running.snapshot()?;
        running.dump(&[])?.success()?;
        nothing_left()?;
        for queue in names(&queues)? {
            fs::remove_file(queue)?;
        }
        running.restore(&["-d", "--fault", "listen"])?.code(1)?;
        anyhow::ensure!(names(&queues)?.is_empty(), "left: {:?}", names(&queues)?);
        // What crr may have is what counts, not what it has at first.
        let without = ["setpriv", "--bounding-set=-sys_resource", "prlimit", "--msgqueue=100:100", "--"];
        let refused = running.restore_under(&without, &["-d"])?.code(1)?;
        refused.says_with_hint("takes 512 bytes, crr may have 100 (the hard limit of RLIMIT_MSGQUEUE)")?;
        running.restore_under(&["prlimit", "--msgqueue=100:", "--"], &["-d"])?.success()?;
        running.looks_like(&before)?;
        running.verify()
    });
}

/// What an ordinary user may not look into stays as it is, if it has a name to stay by; else it is named.
#[test]
fn what_may_not_be_looked_into() {
    require_root!();
    require_ia32!();
    isolated_for_both(&here!(), |dir, abi| {
        let mut named = mqueues("read_only_named").start(&dir.join("named"), abi)?;
        let before = named.snapshot()?;
        dump_as_user(&mut named, &["checkpoint_restore"])?.success()?.says("crr may not look into it")?;
        named.looks_like(&before)?;
        nix::sys::signal::kill(named.root, nix::sys::signal::Signal::SIGKILL)?;
        nothing_left()?;
        named.restore(&["-d"])?.success()?;
        named.looks_like(&before)?;
        named.verify()?;
        let mut unlinked = mqueues("read_only_unlinked").start(&dir.join("unlinked"), abi)?;
        dump_as_user(&mut unlinked, &["checkpoint_restore"])?
            .code(1)?
            .says_with_hint("may not be looked into by crr")?;
        unlinked.verify()
    });
}

/// Open outside of the tree too: one without a name is refused. Its name may be that of another queue at the restore, which is left alone.
#[test]
fn shared_with_the_outside() {
    require_root!();
    require_ia32!();
    isolated_for_both(&here!(), |dir, abi| {
        let mut running = mqueues("unlinked").start(dir, abi)?;
        let before = running.snapshot()?;
        let fds = PathBuf::from(format!("/proc/{}/fd", running.root));
        let mut found = None;
        for entry in fs::read_dir(&fds)? {
            let path = entry?.path();
            if fs::read_link(&path)?.to_string_lossy().starts_with("/crr-test") {
                found = found.or(Some(path));
            }
        }
        let path = found.ok_or_else(|| anyhow::anyhow!("no queue"))?;
        let link = fs::read_link(&path)?.to_string_lossy().into_owned();
        let held = File::open(&path)?;
        running.dump(&[])?.code(1)?.says_with_hint("outside of the tree")?;
        drop(held);
        running.looks_like(&before)?;
        running.dump(&[])?.success()?;
        let name = link.trim_start_matches('/').trim_end_matches(" (deleted)");
        let other = mount(dir)?.join(name);
        File::create(&other)?;
        running.comes_back()?;
        anyhow::ensure!(fs::read_to_string(&other)?.starts_with("QSIZE:0 "), "the other one was used");
        Ok(())
    });
}
