//! Tasks whose leader has ended while other threads go on.

use nix::sys::signal::Signal;
use tests::abi::Abi;
use tests::case::Workload;
use tests::isolate::isolated;
use tests::{here, require_ia32, require_root};

const fn leader(case: &'static str) -> Workload {
    Workload::new("leader", case)
}

tests::survives! {
    one => leader("one");
    many => leader("many");
    code => leader("code");
    children => leader("children");
    session => leader("session");
    mixed => leader("mixed");
    timers => leader("timers");
    death_signal => leader("death_signal");
    mourner => leader("mourner");
    confined => leader("confined");
    sharer => leader("sharer");
    cloned => leader("cloned");
    properties => leader("properties");
}

/// What a leader has ended by is not to be seen while its task is stopped.
#[test]
fn stopped_without_a_leader() {
    require_root!();
    require_ia32!();
    isolated(&here!(), |dir| {
        for abi in Abi::ALL {
            let mut running = leader("one").start(&dir.join(abi.name()), abi)?;
            let before = running.snapshot()?;
            running.signal(Signal::SIGSTOP)?;
            let output = running.dump(&[])?.code(1)?;
            output.says_with_hint(&format!("thread {}: its code of exit", running.root))?;
            running.signal(Signal::SIGCONT)?;
            running.cycle(&before)?;
            running.verify()?;
        }
        Ok(())
    });
}

/// Whatever a restore leaves behind in such tasks would be there in the next dump.
#[test]
fn three_times_in_a_row() {
    require_root!();
    require_ia32!();
    isolated(&here!(), |dir| {
        for abi in Abi::ALL {
            for case in ["one", "children", "mixed", "death_signal", "confined", "sharer"] {
                let dir = dir.join(format!("{abi}-{case}"));
                tests::modes::cycles(&dir, &leader(case), abi, 3).map_err(|e| e.context(case))?;
            }
        }
        Ok(())
    });
}
