//! `--new-pidns`: the tree under its old pids inside a fresh pid namespace.
//!
//! The first process of that namespace does the restore and stays as its init: it reaps orphans, and ends, and with
//! it the namespace, when the root of the tree ends. It has a mount namespace too, for a /proc that shows the new pids.

use super::{Options, PidFile, Report, foreground};
use crate::fault::{self, Point};
use crate::resource::external::given::Given;
use crate::sys::process;
use anyhow::{Context, Result, anyhow, bail};
use images::Pid;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::wait::{WaitStatus, waitpid};
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::io::{Read, Write};
use std::time::Duration;

/// What init tells: the restored tree, or why there is none.
#[derive(Debug, Serialize, Deserialize)]
enum Outcome {
    Restored { tasks: u32, bytes: u64, nanos: u64 },
    Failed(String),
}

/// Restores in a new namespace; the report names the root by its pid outside.
///
/// # Errors
/// As the restore itself, or if no namespace can be made.
pub(super) fn restore(options: &Options, given: Given) -> Result<(Report, Option<u8>)> {
    if options.sibling {
        bail!(
            "--new-pidns and --restore-sibling exclude each other: the root is a child of the new namespace's init"
        );
    }
    let pidfile = PidFile::prepare(options)?;
    let (reader, writer) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC).context("pipe")?;
    fault::point(Point::Namespace).context("make a pid namespace")?;
    unshare(CloneFlags::CLONE_NEWPID).context("make a pid namespace (needs CAP_SYS_ADMIN)")?;
    let Some(init) = process::fork(0).context("fork the namespace's init")? else {
        drop(reader);
        become_init(options, given, File::from(writer));
    };
    drop(writer);
    drop(given);
    let mut told = Vec::new();
    File::from(reader).read_to_end(&mut told).context("wait for the namespace's init")?;
    let outcome: Outcome = postcard::from_bytes(&told).map_err(|_| anyhow!("the namespace's init died"))?;
    let (tasks, bytes, nanos) = match outcome {
        Outcome::Restored { tasks, bytes, nanos } => (tasks, bytes, nanos),
        Outcome::Failed(message) => {
            let _ = waitpid(nix::unistd::Pid::from_raw(init), None);
            bail!("{message}");
        }
    };
    // If the root has ended already, its init is about to.
    let root = first_child(init).unwrap_or(init);
    let report = Report { root, tasks, bytes, total: Duration::from_nanos(nanos) };
    pidfile.write(root)?;
    let status = if options.detached { None } else { Some(foreground::wait(init, root, None)?) };
    Ok((report, status))
}

/// Runs in the new namespace as pid 1. Never returns.
fn become_init(options: &Options, given: Given, mut tell: File) -> ! {
    let restored = enter(options).and_then(|()| super::restore_here(options, given));
    let (outcome, root) = match restored {
        Ok((report, _terminal)) => {
            report.stats().write(options.stats.as_ref());
            let nanos = u64::try_from(report.total.as_nanos()).unwrap_or(u64::MAX);
            (Outcome::Restored { tasks: report.tasks, bytes: report.bytes, nanos }, Some(report.root))
        }
        Err(error) => (Outcome::Failed(format!("{error:#}")), None),
    };
    if fault::is_due(Point::InitDies) {
        process::exit(1);
    }
    let bytes = postcard::to_allocvec(&outcome).unwrap_or_default();
    let told = tell.write_all(&bytes);
    drop(tell);
    match (root, told) {
        (Some(root), Ok(())) => process::exit(reap(root)),
        _ => process::exit(1),
    }
}

fn enter(options: &Options) -> Result<()> {
    if !options.detached {
        nix::sys::prctl::set_pdeathsig(nix::sys::signal::Signal::SIGKILL).context("prctl")?;
    }
    unshare(CloneFlags::CLONE_NEWNS).context("make a mount namespace")?;
    let none = None::<&str>;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).context("make mounts private")?;
    fault::point(Point::MountProc).context("mount /proc of the namespace")?;
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount(Some("proc"), "/proc", Some("proc"), flags, none).context("mount /proc of the namespace")
}

/// Waits for children, orphans included, until the root ends; its status.
fn reap(root: Pid) -> i32 {
    loop {
        match waitpid(None, None) {
            Ok(WaitStatus::Exited(pid, code)) if pid.as_raw() == root => return code,
            Ok(WaitStatus::Signaled(pid, signal, _)) if pid.as_raw() == root => return 128 + signal as i32,
            // EINVAL: an orphan was killed by a real-time signal, which nix cannot name.
            Ok(_) | Err(nix::errno::Errno::EINTR | nix::errno::Errno::EINVAL) => {}
            Err(_) => return 1,
        }
    }
}

fn first_child(pid: Pid) -> Result<Pid> {
    let path = format!("/proc/{pid}/task/{pid}/children");
    let children = std::fs::read_to_string(&path).context(path)?;
    children.split_whitespace().next().context("it has ended already")?.parse().context("children")
}
