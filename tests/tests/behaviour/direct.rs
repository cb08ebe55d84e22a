//! Page contents that pass the page cache by (`--direct-io`). The tests have their files on a disk.

use anyhow::{Context, ensure};
use std::fs::File;
use tests::abi::Abi;
use tests::case::{Running, Workload, nothing_left};
use tests::isolate::{isolated, isolated_for_both};
use tests::sys::cached_pages;
use tests::{Result, command, here, require_ia32, require_root};

/// How many pages of the page file are in the page cache.
fn cached(running: &Running) -> Result<usize> {
    Ok(cached_pages(&File::open(running.images().join("pages.img"))?)?)
}

/// Whoever reads pages, crr or the tasks, and whatever memory they are of: none comes by the page cache, neither way.
#[test]
fn nothing_comes_by_the_page_cache() {
    require_root!();
    require_ia32!();
    isolated_for_both(&here!(), |dir, abi| {
        let cases = [
            ("memory", "anonymous"),
            ("memory", "heap"),
            ("mapping", "private_file"),
            ("mapping", "shared_sparse"),
            ("cow", "siblings"),
        ];
        for (workload, case) in cases {
            let mut running = Workload::new(workload, case).start(&dir.join(case), abi)?;
            let before = running.snapshot()?;
            running.dump(&["--direct-io", "always"])?.success()?;
            nothing_left()?;
            let pages = cached(&running)?;
            ensure!(pages == 0, "{case}: {pages} pages are in the page cache after the dump");
            running.restore(&["-d", "--direct-io", "always"])?.success()?;
            let pages = cached(&running)?;
            ensure!(pages == 0, "{case}: {pages} pages are in the page cache after the restore");
            running.looks_like(&before)?;
            running.verify().context(case)?;
        }
        Ok(())
    });
}

/// Small images do, unless told otherwise.
#[test]
fn small_images_come_by_the_page_cache() {
    require_root!();
    isolated(&here!(), |dir| {
        let mut running = Workload::new("memory", "anonymous").start(dir, Abi::X86_64)?;
        for options in [&["--leave-running"][..], &["--direct-io", "never"]] {
            running.dump(options)?.success()?;
            ensure!(cached(&running)? > 0, "no page is in the page cache");
        }
        running.comes_back()
    });
}

/// A write that takes less than it was given can leave what is no page: that goes by the page cache.
#[test]
fn short_writes() {
    require_root!();
    isolated(&here!(), |dir| {
        for (name, options) in [("plain", &[][..]), ("packed", &["--compress"])] {
            let mut running = Workload::new("memory", "anonymous").start(&dir.join(name), Abi::X86_64)?;
            let args = running.dump_args(&[options, &["--direct-io", "always"]].concat())?;
            let args: Vec<&str> = args.iter().map(String::as_str).collect();
            command::crr_under(&["env", "CRR_FAULT=image-write-short"], dir, &args)?.success()?;
            running.comes_back()?;
        }
        Ok(())
    });
}

/// Packed pages and rounds, the last page of which is filled up and cut: a restore reads them by the page cache.
#[test]
fn packed_pages() {
    require_root!();
    require_ia32!();
    isolated_for_both(&here!(), |dir, abi| {
        let mut running = Workload::new("rounds", "steps").start(dir, abi)?;
        for step in 1..3 {
            running.pre_dump(&["--compress", "--direct-io", "always"])?.success()?;
            let pages = cached(&running)?;
            ensure!(pages <= 1, "{pages} pages are in the page cache");
            running.signal(nix::sys::signal::Signal::SIGUSR2)?;
            running.wait_for(&format!("STEP {step}"))?;
        }
        running.dump_on_rounds(&["--compress", "--direct-io", "always"])?.success()?;
        nothing_left()?;
        running.restore(&["-d", "--direct-io", "always"])?.success()?;
        running.verify()
    });
}
