//! The harness itself: it passes what is right and fails what is wrong.

use nix::sys::signal::Signal;
use tests::case::Workload;
use tests::isolate::{isolated, isolated_for_both};
use tests::{here, require_ia32, require_root};

#[test]
fn a_workload_that_passes_passes() {
    require_root!();
    require_ia32!();
    isolated_for_both(&here!(), |dir, abi| {
        tests::modes::control(dir, &Workload::new("harness", "idle"), abi)
    });
}

#[test]
fn a_failed_check_is_reported() {
    require_root!();
    require_ia32!();
    isolated_for_both(&here!(), |dir, abi| {
        let running = Workload::new("harness", "failing").start(dir, abi)?;
        let error = format!("{:#}", running.verify().unwrap_err());
        assert!(error.contains("FAIL") && error.contains("on purpose"), "{error}");
        Ok(())
    });
}

#[test]
fn an_early_end_is_reported() {
    require_root!();
    require_ia32!();
    isolated_for_both(&here!(), |dir, abi| {
        let error = format!("{:#}", Workload::new("harness", "ends_early").start(dir, abi).unwrap_err());
        assert!(error.contains("ended before it printed READY"), "{error}");
        Ok(())
    });
}

#[test]
fn a_timeout_is_a_failure() {
    let limit = std::time::Duration::from_millis(20);
    let error = tests::wait::until(limit, "never", || Ok(None::<()>)).unwrap_err();
    assert_eq!(error.to_string(), "timed out after 20ms: never");
}

#[test]
fn a_process_left_behind_is_found() {
    require_root!();
    isolated(&here!(), |_| {
        let mut child = std::process::Command::new("sleep").arg("1000").spawn()?;
        let error = format!("{:#}", tests::case::nothing_left().unwrap_err());
        assert!(error.contains("sleep"), "{error}");
        child.kill()?;
        tests::case::nothing_left()
    });
}

/// The snapshot sees every change that the workload makes, under its own name.
#[test]
fn a_snapshot_sees_changes() {
    require_root!();
    require_ia32!();
    isolated_for_both(&here!(), |dir, abi| {
        let running = Workload::new("harness", "changing").start(dir, abi)?;
        let before = running.snapshot()?;
        running.signal(Signal::SIGUSR1)?;
        tests::wait::until(tests::wait::STEP, "the second READY", || {
            Ok((running.log()?.matches("READY").count() == 2).then_some(()))
        })?;
        let difference = before.difference(&running.snapshot()?).unwrap();
        for expected in [
            "+ Umask:\t0123",
            "cwd:\n  - ",
            "+ Name:\trenamed",
            "maps:\n  - ",
            "vmflags:\n",
            " dc",
            "anonymous:\n",
            "+ 77 -> pipe #1",
            "+ 4 -> pipe #1 flags:04001",
            "+ SigIgn:",
            "+ Threads:\t2",
            "+ threads 2",
            "+ Changing",
            "fd 3, task ",
        ] {
            assert!(difference.contains(expected), "no {expected:?} in\n{difference}");
        }
        running.verify()
    });
}
