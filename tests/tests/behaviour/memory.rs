//! Private memory.

use anyhow::ensure;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use tests::abi::Abi;
use tests::case::{Running, Workload, nothing_left};
use tests::isolate::{isolated, isolated_for_both};
use tests::{here, modes, needs, require_ia32, require_root};

const fn memory(case: &'static str) -> Workload {
    Workload::new("memory", case)
}

tests::survives! {
    anonymous => memory("anonymous");
    holes => memory("holes");
    prot_none => memory("prot_none");
    code => memory("code");
    access => memory("access");
    heap => memory("heap");
    stack => memory("stack");
    grows_down => memory("grows_down");
    sparse => memory("sparse");
    many_areas => memory("many_areas");
    extremes => memory("extremes");
    advice => memory("advice");
    guard_pages => memory("guard_pages");
    sealed => memory("sealed");
    droppable => memory("droppable");
    locked => memory("locked");
    locked_whole => memory("locked_whole");
    huge_pages => memory("huge_pages");
    huge_pages_sparse => memory("huge_pages_sparse");
    stack_room => memory("stack_room");
    zero_page => memory("zero_page");
    /// No dynamic loader, and in ia32 another place for everything.
    statically_linked => Workload::new("memory-static", "heap");
}

/// A gigabyte of which 64 pages were touched, private or shared, costs about 64 pages of image.
#[test]
fn sparse_memory_costs_what_is_touched() {
    require_root!();
    require_ia32!();
    isolated(&here!(), |dir| {
        for abi in Abi::ALL {
            for workload in [memory("sparse"), Workload::new("mapping", "shared_sparse")] {
                let dir = dir.join(format!("{abi}-{workload}"));
                let mut running = workload.start(&dir, abi)?;
                running.dump(&[])?.success()?;
                let bytes = tests::case::images_size(&running.images())?;
                assert!(bytes < 4 << 20, "{abi} {workload}: the images have {bytes} bytes");
                tests::case::nothing_left()?;
            }
        }
        Ok(())
    });
}

/// Sixteen megabytes that were only read, all of it by the page of zeros, cost nothing.
#[test]
fn the_page_of_zeros_is_not_stored() {
    require_root!();
    require_ia32!();
    isolated_for_both(&here!(), |dir, abi| {
        let mut running = memory("zero_page").start(dir, abi)?;
        running.dump(&[])?.success()?;
        let bytes = tests::case::images_size(&running.images())?;
        assert!(bytes < 4 << 20, "the images have {bytes} bytes");
        running.comes_back()
    });
}

/// Memory that the kernel may drop at any moment is in no image, however that is made, and comes back as if it had been dropped.
#[test]
fn what_can_be_dropped_is_not_stored() {
    require_root!();
    require_ia32!();
    isolated_for_both(&here!(), |dir, abi| {
        let mut running = memory("droppable").start(dir, abi)?;
        let before = running.snapshot()?;
        let small = |running: &Running, how: &str| {
            let bytes = tests::case::images_size(&running.images())?;
            ensure!(bytes < 4 << 20, "{how}: the images have {bytes} bytes");
            Ok(())
        };
        for options in [&["--leave-running"][..], &["--leave-running", "--snapshot"]] {
            running.dump(options)?.success()?;
            small(&running, &options.join(" "))?;
        }
        running.pre_dump(&[])?.success()?;
        small(&running, "pre-dump")?;
        running.dump_on_rounds(&[])?.success()?;
        small(&running, "on a pre-dump")?;
        nothing_left()?;
        running.restore(&["-d", "--lazy-pages"])?.success()?;
        running.looks_like(&before)?;
        running.verify()
    });
}

/// A file of the machine's swap, until it is dropped.
struct Swap(PathBuf);

impl Swap {
    /// `None` where there can be none.
    fn on(dir: &Path) -> tests::Result<Option<Self>> {
        let file = dir.join("swap");
        // One with holes is refused.
        fs::write(&file, vec![0; 32 << 20])?;
        fs::set_permissions(&file, fs::Permissions::from_mode(0o600))?;
        let swap = |program| Command::new(program).arg(&file).output();
        let made = swap("mkswap")?.status.success() && swap("swapon")?.status.success();
        Ok(made.then_some(Self(file)))
    }
}

impl Drop for Swap {
    fn drop(&mut self) {
        let _ = Command::new("swapoff").arg(&self.0).status();
    }
}

/// Pages that lie in swap at the dump.
#[test]
fn swapped() {
    require_root!();
    require_ia32!();
    let test = here!();
    isolated_for_both(&test, |dir, abi| {
        fs::create_dir_all(dir)?;
        let swap = Swap::on(dir)?;
        if needs::in_kernel(&test, swap.is_some(), "swap") {
            memory("swapped").start(&dir.join("control"), abi)?.verify()?;
            modes::left_running(&dir.join("left_running"), &memory("swapped"), abi)?;
            modes::restored(&dir.join("restored"), &memory("swapped"), abi)?;
        }
        Ok(())
    });
}

/// Areas that are larger than memory and swap come back, whoever brings their contents; so does a task that forked before it had one.
#[test]
fn areas_larger_than_the_machine() {
    require_root!();
    isolated(&here!(), |dir| {
        for case in ["beyond_machine", "beyond_machine_forked"] {
            modes::control(&dir.join(format!("{case}-control")), &memory(case), Abi::X86_64)?;
            modes::restored(&dir.join(format!("{case}-restored")), &memory(case), Abi::X86_64)?;
            let mut running = memory(case).start(&dir.join(format!("{case}-late")), Abi::X86_64)?;
            running.dump(&[])?.success()?;
            nothing_left()?;
            running.restore(&["-d", "--lazy-pages"])?.success()?;
            running.verify()?;
        }
        Ok(())
    });
}

/// With as many areas as there may be, a task comes back if a few more fit; else it is refused.
#[test]
fn as_many_areas_as_there_may_be() {
    require_root!();
    require_ia32!();
    isolated(&here!(), |dir| {
        for abi in Abi::ALL {
            let mut running = memory("most_areas").start(&dir.join(format!("{abi}-most")), abi)?;
            running.dump(&[])?.success()?;
            running.comes_back()?;
            let mut running = memory("too_many_areas").start(&dir.join(format!("{abi}-too-many")), abi)?;
            running.dump(&[])?.code(1)?.says_with_hint("areas, and restoring it takes 32 more")?;
            running.verify()?;
        }
        Ok(())
    });
}

#[test]
#[ignore = "needs a kernel with CONFIG_ANON_VMA_NAME, which those of Debian are not"]
fn area_names() {
    require_root!();
    require_ia32!();
    isolated_for_both(&here!(), |dir, abi| {
        let mut running = memory("area_names").start(dir, abi)?;
        running.dump(&[])?.success()?;
        running.comes_back()
    });
}

/// Wherever a wrong byte lies in the pages, in those that a task reads or in those that are put there, no task runs, and none is left.
#[test]
fn corrupt_pages() {
    require_root!();
    require_ia32!();
    isolated_for_both(&here!(), |dir, abi| {
        let mut running = memory("anonymous").start(dir, abi)?;
        running.dump(&[])?.success()?;
        nothing_left()?;
        let pages = running.images().join("pages.img");
        let whole = fs::read(&pages)?;
        for at in [0, whole.len() / 2, whole.len() - 1] {
            let mut changed = whole.clone();
            changed[at] ^= 1;
            fs::write(&pages, changed)?;
            running.restore(&["-d"])?.code(1)?.says("pages.img: is corrupt: bytes from")?;
            nothing_left()?;
        }
        fs::write(&pages, whole)?;
        running.comes_back()
    });
}
