//! Every way a file can be named.

use anyhow::Context;
use std::path::Path;
use tests::case::{Workload, nothing_left};
use tests::isolate::isolated_for_both;
use tests::{Result, command, here, require_ia32, require_root};

const fn names(case: &'static str) -> Workload {
    Workload::new("names", case)
}

tests::survives! {
    path_only => names("path_only");
    path_only_deleted => names("path_only_deleted");
    views => names("views");
    devices => names("devices");
    other_name => names("other_name");
    renamed => names("renamed");
    odd => names("odd");
    mounts => names("mounts");
    permitted => names("permitted");
    overlaid => names("overlaid");
    program => names("program");
    program_elsewhere => names("program_elsewhere");
}

fn entries(dir: &Path) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(dir)? {
        names.push(entry?.file_name().to_string_lossy().into_owned());
    }
    names.sort_unstable();
    Ok(names)
}

/// Another file has the name: it stays as it is, and what lost the name comes back by one like it, which is gone at once.
#[test]
fn replaced() {
    require_root!();
    require_ia32!();
    isolated_for_both(&here!(), |dir, abi| {
        let mut running = names("replaced").start(dir, abi)?;
        let before = entries(dir)?;
        running.dump(&[])?.success()?;
        nothing_left()?;
        running.restore(&["-d"])?.success()?.says("/name: the name is taken")?;
        let mut after = entries(dir)?;
        after.retain(|name| name != "images-1" && !name.starts_with("crr."));
        assert_eq!(after, before);
        running.verify()
    });
}

/// The file's other name is elsewhere: refused, or by a helper name, which is there from the dump to the restore.
#[test]
fn link_remap() {
    require_root!();
    require_ia32!();
    isolated_for_both(&here!(), |dir, abi| {
        let mut running = names("elsewhere").start(dir, abi)?;
        let before = running.snapshot()?;
        let refused = running.dump(&[])?.code(1)?;
        refused
            .says_with_hint("this name of the file is gone, and its others are not in the same directory")?;
        refused.says("use --link-remap")?;
        running.looks_like(&before)?;
        for _ in 0..2 {
            running.dump(&["--link-remap"])?.success()?;
            nothing_left()?;
            assert_eq!(entries(&dir.join("here"))?.len(), 1);
            running.restore(&["-d"])?.success()?;
            running.looks_like(&before)?;
            assert!(entries(&dir.join("here"))?.is_empty());
        }
        running.verify()
    });
}

/// A dump that fails after all takes the helper name away; one that lets the tree run leaves it to the restore.
#[test]
fn link_remap_of_a_tree_that_runs_on() {
    require_root!();
    require_ia32!();
    isolated_for_both(&here!(), |dir, abi| {
        let mut running = names("elsewhere").start(dir, abi)?;
        let before = running.snapshot()?;
        running.dump(&["--link-remap", "-R"])?.success()?;
        assert_eq!(entries(&dir.join("here"))?.len(), 1);
        running.dump(&["--link-remap"])?.success()?;
        nothing_left()?;
        assert_eq!(entries(&dir.join("here"))?.len(), 1, "the same name serves both");
        running.restore(&["-d"])?.success()?;
        running.looks_like(&before)?;
        running.verify()
    });
}

/// No name can be made for a moment: it is shown by the one that it has.
#[test]
fn read_only() {
    require_root!();
    require_ia32!();
    isolated_for_both(&here!(), |dir, abi| {
        let mut running = names("read_only").start(dir, abi)?;
        running.dump(&[])?.success()?;
        nothing_left()?;
        running.restore(&["-d"])?.success()?.says("dir/other: shown by this name from now on")?;
        running.verify()
    });
}

/// Dumps what is to be refused by the names that the workload says.
fn refused(test: &str, case: &'static str) {
    isolated_for_both(test, |dir, abi| {
        let mut running = names(case).start(dir, abi)?;
        let output = running.dump(&["--link-remap"])?.code(1)?;
        let log = running.log()?;
        for name in log.lines().filter_map(|line| line.strip_prefix("NAME ")) {
            output.says_with_hint(name)?;
        }
        running.verify()
    });
}

/// The harness cannot look at such names either.
#[test]
fn lost() {
    require_root!();
    require_ia32!();
    refused(&here!(), "lost");
}

/// What mounts and attributes forbid by now: a restore could not have it again.
#[test]
fn forbidden() {
    require_root!();
    require_ia32!();
    refused(&here!(), "forbidden");
}

#[test]
fn claimed() {
    require_root!();
    require_ia32!();
    refused(&here!(), "claimed");
}

/// Puts a file of other contents in the place of one, as an upgrade does.
fn upgrade(dir: &Path, name: &str) -> Result {
    let new = dir.join("new");
    std::fs::copy("/bin/true", &new)?;
    Ok(std::fs::rename(new, dir.join(name))?)
}

/// A program and a library that are others at restore: both are named, or their copies take their places.
#[test]
fn upgraded() {
    require_root!();
    require_ia32!();
    isolated_for_both(&here!(), |dir, abi| {
        let mut running = names("program").start(dir, abi)?;
        running.dump(&["-R"])?.success()?;
        let plain = running.images().display().to_string();
        running.dump(&["--embed-files"])?.success()?;
        nothing_left()?;
        upgrade(dir, "copy")?;
        upgrade(dir, "library")?;
        let refused = command::crr(dir, &["restore", "-D", &plain, "-d"])?.code(1)?;
        for name in ["copy", "library"] {
            refused
                .says_with_hint(&format!("/{name}: is mapped and has changed since the dump (other size"))?;
        }
        let restored = running.restore(&["-d"])?.success()?;
        for name in ["copy", "library"] {
            restored.says(&format!("/{name}: is mapped and has changed since the dump (other size"))?;
            restored.says(&format!("/{name}.crr-1 now"))?;
            assert_eq!(std::fs::read(dir.join(name))?, std::fs::read("/bin/true")?);
        }
        // From now on they are deleted files.
        running.dump(&[])?.success()?;
        running.comes_back()
    });
}

/// Copies are for files that have changed only; those that are gone come back under their names.
#[test]
fn embedded() {
    require_root!();
    require_ia32!();
    isolated_for_both(&here!(), |dir, abi| {
        let mut running = names("program").start(dir, abi)?;
        let before = running.snapshot()?;
        running.dump(&["--embed-files"])?.success()?;
        nothing_left()?;
        running.restore(&["-d"])?.success()?;
        running.looks_like(&before)?;
        running.dump(&["--embed-files"])?.success()?;
        nothing_left()?;
        std::fs::remove_file(dir.join("library"))?;
        running.restore(&["-d"])?.success()?.says("/library: has been deleted since the dump")?;
        running.verify()
    });
}

/// A file with another time, and the same in everything else.
#[test]
fn validation() {
    require_root!();
    require_ia32!();
    isolated_for_both(&here!(), |dir, abi| {
        let mut running = names("program").start(dir, abi)?;
        running.dump(&[])?.success()?;
        nothing_left()?;
        let moment = std::time::SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(1_000_000_000);
        std::fs::File::open(dir.join("library"))?.set_modified(moment)?;
        running
            .restore(&["-d"])?
            .code(1)?
            .says_with_hint("/library: is mapped and has changed since the dump (other modification time)")?;
        running.restore(&["-d", "--file-validation", "filesize"])?.success()?;
        running.verify()
    });
}

/// By build-ids, a program of another time is the same, and one of another build is not. (Of a library whose head a task has not looked at, nothing is known.)
#[test]
fn validation_by_build_id() {
    require_root!();
    require_ia32!();
    isolated_for_both(&here!(), |dir, abi| {
        let mut running = names("program").start(dir, abi)?;
        running.dump(&[])?.success()?;
        nothing_left()?;
        let program = dir.join("copy");
        let same = std::fs::read(&program)?;
        let mut other = same.clone();
        other[build_id_at(&same)?] ^= 1;
        std::fs::write(&program, other)?;
        let by_build_id = ["-d", "--file-validation", "buildid"];
        let says = "/copy: is mapped and has changed since the dump (other build-id)";
        running.restore(&by_build_id)?.code(1)?.says_with_hint(says)?;
        nothing_left()?;
        std::fs::write(&program, same)?;
        running.restore(&by_build_id)?.success()?;
        running.verify()
    });
}

/// Where the first byte of the build-id of a program lies: behind the header of its note, of a hash of 20 bytes.
fn build_id_at(program: &[u8]) -> Result<usize> {
    const HEADER: &[u8] = b"\x04\0\0\0\x14\0\0\0\x03\0\0\0GNU\0";
    let found = program.windows(HEADER.len()).position(|bytes| bytes == HEADER);
    Ok(found.context("the workload has no build-id")? + HEADER.len())
}
