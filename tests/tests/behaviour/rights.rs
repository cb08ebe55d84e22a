//! What crr can do without being root, and how it names what it lacks.

use std::path::Path;
use tests::abi::Abi;
use tests::case::{Running, Workload, nothing_left};
use tests::command::{Output, crr_under};
use tests::isolate::isolated;
use tests::{Result, here, require_ia32, require_root};

/// `crr dump` as user 1000 with these capabilities.
pub(crate) fn dump_as_user(running: &mut Running, capabilities: &[&str]) -> Result<Output> {
    let args = running.dump_args(&["--leave-running"])?;
    std::os::unix::fs::chown(running.images(), Some(1000), Some(1000))?;
    let sets = capabilities.iter().fold("-all".to_owned(), |all, one| format!("{all},+{one}"));
    let ids = ["--reuid", "1000", "--regid", "1000", "--clear-groups"];
    let under = [&["setpriv"], &ids[..], &["--inh-caps", &sets, "--ambient-caps", &sets]].concat();
    crr_under(&under, &running.dir, &args.iter().map(String::as_str).collect::<Vec<_>>())
}

fn start(dir: &Path, abi: Abi, case: (&'static str, &'static str)) -> Result<Running> {
    Workload::new(case.0, case.1).start(&dir.join(case.1).join(abi.name()), abi)
}

/// An ordinary user with CAP_CHECKPOINT_RESTORE alone dumps his own tasks; root restores them as his.
#[test]
fn one_capability_is_enough_for_own_tasks() {
    require_root!();
    require_ia32!();
    isolated(&here!(), |dir| {
        for abi in Abi::ALL {
            let mut running = start(dir, abi, ("identity", "ordinary"))?;
            let before = running.snapshot()?;
            dump_as_user(&mut running, &["checkpoint_restore"])?.success()?;
            running.looks_like(&before)?;
            nix::sys::signal::kill(running.root, nix::sys::signal::Signal::SIGKILL)?;
            nothing_left()?;
            running.restore(&["-d"])?.success()?;
            running.looks_like(&before)?;
            running.verify()?;
        }
        Ok(())
    });
}

/// Root without CAP_SYS_RESOURCE, as in most containers, has all that a dump and a restore take.
#[test]
fn without_the_right_to_resources() {
    require_root!();
    require_ia32!();
    let under = ["setpriv", "--bounding-set=-sys_resource", "--inh-caps=-sys_resource"];
    let cases =
        [("identity", "arguments"), ("identity", "limits"), ("memory", "heap"), ("threads", "waiting")];
    isolated(&here!(), |dir| {
        for (abi, case) in Abi::ALL.into_iter().flat_map(|abi| cases.map(|case| (abi, case))) {
            let mut running = start(dir, abi, case)?;
            let before = running.snapshot()?;
            let args = running.dump_args(&[])?;
            let args: Vec<&str> = args.iter().map(String::as_str).collect();
            crr_under(&under, &running.dir, &args)?.success()?;
            nothing_left()?;
            running.restore_under(&under, &["-d"])?.success()?;
            running.looks_like(&before)?;
            running.verify()?;
        }
        Ok(())
    });
}

/// What is missing is named, and the task runs on.
#[test]
fn missing_capabilities_are_named() {
    require_root!();
    require_ia32!();
    isolated(&here!(), |dir| {
        for abi in Abi::ALL {
            let mut own = start(dir, abi, ("identity", "ordinary"))?;
            dump_as_user(&mut own, &[])?.code(1)?.says_with_hint("CAP_CHECKPOINT_RESTORE")?;
            own.verify()?;
            let mut other = start(dir, abi, ("harness", "idle"))?;
            let output = dump_as_user(&mut other, &["checkpoint_restore"])?.code(1)?;
            output.says_with_hint(&format!("task {} ", other.root))?;
            output.says("CAP_SYS_PTRACE")?;
            other.verify()?;
        }
        Ok(())
    });
}
