//! Contexts of asynchronous I/O (io_setup).

use std::path::Path;
use tests::abi::Abi;
use tests::case::{Workload, nothing_left};
use tests::isolate::isolated_for_both;
use tests::modes::cycles;
use tests::{Result, here, require_ia32, require_root};

const fn aio(case: &'static str) -> Workload {
    Workload::new("aio", case)
}

tests::survives! {
    idle => aio("idle");
    unread => aio("unread");
    full => aio("full");
    processors => aio("processors");
    waiting => aio("waiting");
    family => aio("family");
    busy => aio("busy").busy();
}

/// Requests are made, and events read, all the time.
#[test]
fn ten_cycles_of_working_threads() {
    require_root!();
    require_ia32!();
    isolated_for_both(&here!(), |dir, abi| cycles(dir, &aio("busy").busy(), abi, 10));
}

/// A request that is on its way: all is as it was when the dump gives up.
#[test]
fn a_request_on_its_way_is_named() {
    require_root!();
    require_ia32!();
    isolated_for_both(&here!(), |dir, abi| {
        named(
            &dir.join("one"),
            abi,
            "on_its_way",
            "(/[aio] (deleted)): an AIO context: 1 request of it is on the way",
        )?;
        named(&dir.join("many"), abi, "many_on_their_way", "requests of it are on the way")
    });
}

fn named(dir: &Path, abi: Abi, case: &'static str, what: &str) -> Result {
    let mut running = aio(case).start(dir, abi)?;
    let before = running.snapshot()?;
    for _ in 0..2 {
        let output = running.dump(&["--timeout", "1"])?.code(1)?;
        output.says_with_hint(what)?;
        running.looks_like(&before)?;
    }
    running.verify()
}

/// The dump waits for a request that ends, and an eventfd that is told of it has been told after the restore.
#[test]
fn a_request_that_ends_is_waited_for() {
    require_root!();
    require_ia32!();
    isolated_for_both(&here!(), |dir, abi| {
        let mut running = aio("ends_meanwhile").start(&dir.join("goes_on"), abi)?;
        running.dump(&["--leave-running"])?.success()?;
        running.verify()?;
        let mut running = aio("ends_meanwhile").start(&dir.join("restored"), abi)?;
        running.dump(&[])?.success()?;
        nothing_left()?;
        running.restore(&["-d"])?.success()?;
        running.verify()
    });
}

/// A task has the ring of its parent's, and not the context.
#[test]
fn the_ring_of_a_parent_is_named() {
    require_root!();
    require_ia32!();
    isolated_for_both(&here!(), |dir, abi| {
        let mut running = aio("ring_of_parent").start(dir, abi)?;
        let before = running.snapshot()?;
        let output = running.dump(&[])?.code(1)?;
        output.says_with_hint("(/[aio] (deleted)): the ring of an AIO context that is not its own")?;
        running.looks_like(&before)?;
        running.verify()
    });
}
