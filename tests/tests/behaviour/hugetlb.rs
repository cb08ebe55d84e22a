//! Memory of huge pages (hugetlbfs, MAP_HUGETLB).

use anyhow::Context;
use std::fs;
use tests::abi::Abi;
use tests::case::{Workload, nothing_left};
use tests::isolate::isolated;
use tests::{Result, here, require_ia32, require_root};

/// How many huge pages the kernel makes on demand; as before when dropped. It is the same for the whole machine, so one test at a time.
struct Overcommit(String);

const OVERCOMMIT: &str = "/proc/sys/vm/nr_overcommit_hugepages";

impl Overcommit {
    fn raise(pages: u32) -> Result<Self> {
        let before = fs::read_to_string(OVERCOMMIT)?;
        let this = Self(before);
        this.set(pages)?;
        Ok(this)
    }

    fn set(&self, pages: u32) -> Result {
        let before: u32 = self.0.trim().parse()?;
        fs::write(OVERCOMMIT, (before + pages).to_string()).context(OVERCOMMIT)
    }
}

impl Drop for Overcommit {
    fn drop(&mut self) {
        let _ = fs::write(OVERCOMMIT, &self.0);
    }
}

/// Those that tasks share since a fork come back as copies: refused by the dump where there cannot be as many.
fn forked(dir: &std::path::Path, abi: Abi, huge_pages: &Overcommit) -> Result {
    let mut running = Workload::new("hugetlb", "forked").start(dir, abi)?;
    let before = running.snapshot()?;
    huge_pages.set(0)?;
    running.dump(&[])?.code(1)?.says_with_hint("huge pages of 2.0 MiB: a restore takes 6")?;
    running.looks_like(&before)?;
    huge_pages.set(64)?;
    running.dump(&[])?.success()?;
    nothing_left()?;
    running.restore(&["-d"])?.success()?;
    // Not as before: each has a file of its own, by the numbers that maps shows.
    running.verify()
}

/// Private, shared, of files; dumped, also while it runs on, and restored. Where there are too few huge pages a restore says so.
#[test]
fn all() {
    require_root!();
    require_ia32!();
    isolated(&here!(), |dir| {
        let huge_pages = Overcommit::raise(64)?;
        // First, while nobody else has any: other cases leave files on a hugetlbfs.
        for abi in Abi::ALL {
            let dir = dir.join(abi.name());
            forked(&dir.join("forked"), abi, &huge_pages)
                .with_context(|| format!("{}: forked", abi.name()))?;
        }
        for abi in Abi::ALL {
            for case in ["private", "shared", "files", "segments", "deleted"] {
                survives(&dir.join(abi.name()).join(case), abi, case, &huge_pages)
                    .with_context(|| format!("{}: {case}", abi.name()))?;
            }
        }
        Ok(())
    });
}

fn survives(dir: &std::path::Path, abi: Abi, case: &'static str, huge_pages: &Overcommit) -> Result {
    Workload::new("hugetlb", case).start(&dir.join("control"), abi)?.verify()?;
    let mut running = Workload::new("hugetlb", case).start(&dir.join("running"), abi)?;
    running.dump(&["--leave-running"])?.success()?;
    running.dump(&["--leave-running", "--snapshot", "--fault", "twins-always"])?.success()?;
    running.verify()?;
    let mut running = Workload::new("hugetlb", case).start(&dir.join("restored"), abi)?;
    let before = running.snapshot()?;
    // A dump takes none.
    huge_pages.set(0)?;
    running.dump(&[])?.success()?;
    nothing_left()?;
    // What lies in a file of hugetlbfs is there still.
    if case != "files" {
        running.restore(&["-d"])?.code(1)?.says_with_hint("huge pages of 2.0 MiB")?;
    }
    huge_pages.set(64)?;
    running.restore(&["-d"])?.success()?;
    running.looks_like(&before)?;
    running.verify()
}
