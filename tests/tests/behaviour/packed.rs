//! Page contents that a dump has made smaller (`--compress`).

use std::fs;
use tests::abi::Abi;
use tests::case::{Workload, images_size, nothing_left};
use tests::isolate::isolated;
use tests::{here, require_ia32, require_root};

/// Private and shared memory and a memfd, by both methods.
#[test]
fn every_kind_of_contents() {
    require_root!();
    require_ia32!();
    isolated(&here!(), |dir| {
        let workloads = [
            Workload::new("memory", "anonymous"),
            Workload::new("mapping", "private_file"),
            Workload::new("mapping", "shared_sparse"),
            Workload::new("deleted", "memfd"),
        ];
        for abi in Abi::ALL {
            for (index, workload) in workloads.iter().enumerate() {
                let how = ["--compress", "--compress=zstd:3"][index % 2];
                let mut running = workload.start(&dir.join(format!("{abi}-{workload}")), abi)?;
                let before = running.snapshot()?;
                running
                    .cycle_with(&before, &[how])
                    .map_err(|e| e.context(format!("{abi} {workload} {how}")))?;
                running.verify()?;
            }
        }
        Ok(())
    });
}

/// The images get smaller, `crr show` tells by how much, and a byte that changed is found before anything is made.
#[test]
fn smaller_and_checked() {
    require_root!();
    require_ia32!();
    isolated(&here!(), |dir| {
        let mut running = Workload::new("memory", "heap").start(&dir.join("heap"), Abi::Ia32)?;
        running.dump(&["--leave-running"])?.success()?;
        let plain = images_size(&running.images())?;
        running.dump(&["--compress=zstd"])?.success()?;
        nothing_left()?;
        let packed = images_size(&running.images())?;
        assert!(packed < plain, "{packed} bytes instead of {plain}");
        let images = running.images().display().to_string();
        let shown = tests::command::crr(dir, &["show", &images])?.success()?;
        assert!(shown.stdout.contains(" pages (zstd "), "{}", shown.stdout);
        let pages = running.images().join("pages.img");
        let whole = fs::read(&pages)?;
        let mut changed = whole.clone();
        changed[1000] ^= 1;
        fs::write(&pages, changed)?;
        running.restore(&["-d"])?.code(1)?.says("pages.img: is corrupt")?;
        fs::write(&pages, whole)?;
        running.restore(&["-d"])?.success()?;
        running.verify()
    });
}
