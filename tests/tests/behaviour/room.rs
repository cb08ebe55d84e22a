//! Tasks in which nothing can be mapped, or no code.

use std::path::Path;
use tests::abi::Abi;
use tests::case::Workload;
use tests::isolate::isolated;
use tests::modes::{cycles, left_running, restored};
use tests::{here, require_ia32, require_root};

const fn room(case: &'static str) -> Workload {
    Workload::new("room", case)
}

tests::survives! {
    limit => room("limit");
    limit_below => room("limit_below");
    limit_threads => room("limit_threads");
    limit_answers => room("limit_answers");
    limit_locked_now => room("limit_locked_now");
    limit_lock_future => room("limit_lock_future");
    limit_lock_on_fault => room("limit_lock_on_fault");
    no_code => room("no_code");
    no_code_inherited => room("no_code_inherited");
    no_code_not_inherited => room("no_code_not_inherited");
    no_code_locked => room("no_code_locked");
    no_code_threads => room("no_code_threads");
    confined => room("confined");
    full => room("full");
    crowded => room("crowded");
    full_writable => room("full_writable");
    full_in_every_way => room("full_in_every_way");
    full_child => room("full_child");
    full_locked => room("full_locked");
    full_stopped => room("full_stopped");
    full_shared => room("full_shared");
    low_stack => room("low_stack");
}

/// Must be refused, with what the workload names and a way out, and goes on untouched.
fn refused(dir: &Path, abi: Abi, workload: &Workload) -> tests::Result {
    let mut running = workload.start(dir, abi)?;
    let before = running.snapshot()?;
    let output = running.dump(&[])?.code(1)?;
    let log = running.log()?;
    let named = log.lines().find_map(|line| line.strip_prefix("NAME ")).unwrap();
    output.says_with_hint(named)?;
    running.looks_like(&before)?;
    running.verify()
}

/// Where not even a hole can be had, and where something would be lost.
#[test]
fn what_cannot_be_is_refused() {
    require_root!();
    require_ia32!();
    isolated(&here!(), |dir| {
        for abi in Abi::ALL {
            for case in ["full_of_code", "limit_locked"] {
                refused(&dir.join(format!("{abi}-{case}")), abi, &room(case)).map_err(|e| e.context(case))?;
            }
        }
        Ok(())
    });
}

/// A thread in the mode of the other ABI is asked where it finds back by itself: 32-bit code of an x86_64 task.
#[test]
fn threads_in_the_mode_of_the_other_abi() {
    require_root!();
    require_ia32!();
    isolated(&here!(), |dir| {
        let workload = Workload::new("modes", "busy_at_limit").busy();
        restored(&dir.join("restored"), &workload, Abi::X86_64)?;
        left_running(&dir.join("left_running"), &workload, Abi::X86_64)?;
        let mut running = workload.start(&dir.join("refused"), Abi::Ia32)?;
        let output = running.dump(&[])?.code(1)?;
        output.says_with_hint("stands in code of the other ABI")?;
        running.verify()
    });
}

/// What comes back is full again, and is dumped again.
#[test]
fn three_times_in_a_row() {
    require_root!();
    require_ia32!();
    isolated(&here!(), |dir| {
        for abi in Abi::ALL {
            for case in ["limit_threads", "full_in_every_way", "full_writable"] {
                cycles(&dir.join(format!("{abi}-{case}")), &room(case), abi, 3)
                    .map_err(|e| e.context(case))?;
            }
        }
        Ok(())
    });
}
