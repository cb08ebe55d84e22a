//! Tasks that are stopped by a signal stay stopped, and go on when they are continued.

use nix::sys::signal::Signal;
use tests::abi::Abi;
use tests::case::{Running, Workload};
use tests::isolate::isolated;
use tests::{Result, here, require_ia32, require_root, wait};

const fn stops(case: &'static str) -> Workload {
    Workload::new("stops", case)
}

tests::survives! {
    signals => stops("signals");
    handled => stops("handled");
    pending => stops("pending");
    taken => stops("taken");
    threads => stops("threads").busy();
    signals_waiting => stops("signals_waiting");
    sleeping => stops("sleeping");
    both => stops("both");
    mixed => stops("mixed");
    continued => stops("continued");
}

fn stop(running: &Running) -> Result {
    running.signal(Signal::SIGSTOP)?;
    wait::until(wait::STEP, "the root is stopped", || Ok((state(running)? == "T").then_some(())))
}

fn state(running: &Running) -> Result<String> {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", running.root))?;
    Ok(stat.rsplit_once(") ").map_or("", |(_, rest)| &rest[..1]).to_owned())
}

/// The root itself is stopped: three rounds, then it goes on.
#[test]
fn root() {
    require_root!();
    require_ia32!();
    isolated(&here!(), |dir| {
        for abi in Abi::ALL {
            let mut running = Workload::new("threads", "many").start(&dir.join(abi.name()), abi)?;
            stop(&running)?;
            let before = running.snapshot()?;
            running.dump(&["--leave-running"])?.success()?;
            running.looks_like(&before)?;
            for _ in 0..3 {
                running.cycle(&before)?;
            }
            assert_eq!(state(&running)?, "T", "{abi}");
            running.signal(Signal::SIGCONT)?;
            running.verify()?;
        }
        Ok(())
    });
}

/// `--leave-stopped` leaves a tree that a later dump takes as it is.
#[test]
fn left_stopped() {
    require_root!();
    require_ia32!();
    isolated(&here!(), |dir| {
        for abi in Abi::ALL {
            let mut running = Workload::new("tree", "mixed").start(&dir.join(abi.name()), abi)?;
            running.dump(&["--leave-stopped"])?.success()?;
            wait::until(wait::STEP, "it is stopped", || Ok((state(&running)? == "T").then_some(())))?;
            let before = running.snapshot()?;
            running.cycle(&before)?;
            for pid in tests::snapshot::tree(running.root.as_raw())? {
                nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), Signal::SIGCONT)?;
            }
            running.verify()?;
        }
        Ok(())
    });
}
