//! Open files.

use anyhow::ensure;
use std::fs;
use std::path::Path;
use tests::abi::Abi;
use tests::case::{Workload, nothing_left};
use tests::isolate::{isolated, isolated_for_both};
use tests::{Result, command, here, require_ia32, require_root, wait};

const fn files(case: &'static str) -> Workload {
    Workload::new("files", case)
}

tests::survives! {
    regular => files("regular");
    far => files("far");
    descriptions => files("descriptions");
    between_abis => files("between_abis");
    close_on_exec => files("close_on_exec");
    numbers => files("numbers");
    many => files("many");
    crossed => files("crossed");
    thousands => files("thousands");
    directory => files("directory");
    devices => files("devices");
    standard => files("standard");
}

/// A file that has been written to since is named, and the tree comes back; with another one under its name, it does not.
#[test]
fn changed() {
    require_root!();
    require_ia32!();
    isolated_for_both(&here!(), |dir, abi| {
        let mut running = files("descriptions").start(dir, abi)?;
        running.dump(&[])?.success()?;
        nothing_left()?;
        let (file, aside) = (dir.join("file"), dir.join("aside"));
        fs::rename(&file, &aside)?;
        fs::write(&file, "0123456789abcdefghijkl")?;
        let replaced = "/file: has been replaced since the dump (other size, other modification time)";
        running.restore(&["-d"])?.code(1)?.says_with_hint(replaced)?;
        nothing_left()?;
        fs::rename(&aside, &file)?;
        fs::write(&file, "0123456789abcdefghijkl")?;
        let changed = "/file: changed since the dump (other size, other modification time)";
        running.restore(&["-d"])?.success()?.says(changed)?;
        running.verify()
    });
}

/// A thousand tasks with one description, of which each finds what no other one has read. What /proc shows of so many takes long to look at.
fn sharers(dir: &Path, abi: Abi) -> Result {
    let mut running = files("sharers").start(dir, abi)?;
    // Where others are busy, too, so many tasks take longer than a step of a test may.
    let patiently = |args: &[&str]| -> Result {
        let mut crr = command::spawn(dir, args)?;
        let status = wait::until(4 * wait::STEP, "crr", || Ok(crr.try_wait()?))?;
        ensure!(status.success(), "{status}: {}", fs::read_to_string(dir.join("crr.stderr"))?);
        Ok(())
    };
    let dump = running.dump_args(&["--timeout", "120"])?;
    patiently(&dump.iter().map(String::as_str).collect::<Vec<_>>())?;
    nothing_left()?;
    patiently(&["restore", "-D", &running.images().to_string_lossy(), "-d"])?;
    running.verify()
}

#[test]
fn sharers_x86_64() {
    require_root!();
    isolated(&here!(), |dir| sharers(dir, Abi::X86_64));
}

#[test]
fn sharers_ia32() {
    require_root!();
    require_ia32!();
    isolated(&here!(), |dir| sharers(dir, Abi::Ia32));
}
