//! Tasks that share with each other without being threads, and children with another exit signal than SIGCHLD.

use tests::abi::Abi;
use tests::case::Workload;
use tests::isolate::isolated;
use tests::{here, require_ia32, require_root};

const fn family(case: &'static str) -> Workload {
    Workload::new("families", case)
}

tests::survives! {
    exit_signals => family("exit_signals");
    memory => family("memory");
    memory_handlers => family("memory_handlers");
    memory_files => family("memory_files");
    all_but_threads => family("all_but_threads");
    files => family("files");
    directories => family("directories");
    files_directories => family("files_directories");
    descendants => family("descendants");
    descendants_of_a_sharer => family("descendants_of_a_sharer");
    chain => family("chain");
    siblings_in_one_memory => family("siblings_in_one_memory");
    siblings_with_one_table => family("siblings_with_one_table");
    directories_across_exec => family("directories_across_exec");
    directories_across_abis => family("directories_across_abis");
    groups => family("groups");
    threads => family("threads");
}

/// Whatever a restore leaves behind in such tasks would be there in the next dump.
#[test]
fn three_times_in_a_row() {
    require_root!();
    require_ia32!();
    isolated(&here!(), |dir| {
        for abi in Abi::ALL {
            for case in ["exit_signals", "all_but_threads", "descendants_of_a_sharer", "chain", "threads"] {
                let dir = dir.join(format!("{abi}-{case}"));
                tests::modes::cycles(&dir, &family(case), abi, 3).map_err(|e| e.context(case))?;
            }
        }
        Ok(())
    });
}

/// Dumps a workload that no restore could make again, and sees that it is untouched.
fn refused(case: &'static str, named: &str) -> impl Fn(&std::path::Path) -> tests::Result {
    move |dir| {
        for abi in Abi::ALL {
            let mut running = family(case).start(&dir.join(abi.name()), abi)?;
            let before = running.snapshot()?;
            running.dump(&[])?.code(1)?.says_with_hint(named)?;
            running.looks_like(&before)?;
            running.verify()?;
        }
        Ok(())
    }
}

/// Two tasks share what neither could give the other in a clone.
#[test]
fn sharers_apart() {
    require_root!();
    require_ia32!();
    isolated(&here!(), refused("apart", "file descriptors: shared with task "));
}

/// A parent that has run another program gets SIGCHLD from a child that still is none of SIGCHLD.
#[test]
fn parent_that_changed() {
    require_root!();
    require_ia32!();
    isolated(&here!(), refused("parent_changed", "exit signal 12: "));
}
