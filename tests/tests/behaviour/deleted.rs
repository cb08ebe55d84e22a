//! Files and directories that are in use and have no name any more, and memfds.

use tests::abi::Abi;
use tests::case::Workload;
use tests::isolate::isolated;
use tests::{here, require_ia32, require_root};

const fn deleted(case: &'static str) -> Workload {
    Workload::new("deleted", case)
}

tests::survives! {
    file => deleted("file");
    same_names => deleted("same_names");
    sparse => deleted("sparse");
    mapped => deleted("mapped");
    only_mapped => deleted("only_mapped");
    directory => deleted("directory");
    root => deleted("root");
    program => deleted("program");
    flags => deleted("flags");
    program_in_memory => deleted("program_in_memory");
    memfd => deleted("memfd");
    memfd_between_abis => deleted("memfd_between_abis");
    between_abis => deleted("between_abis");
}

/// Another file got the name meanwhile: it stays as it is, and what was deleted comes back beside it.
#[test]
fn name_taken() {
    require_root!();
    require_ia32!();
    isolated(&here!(), |dir| {
        for abi in Abi::ALL {
            let dir = dir.join(abi.name());
            let mut running = deleted("file").start(&dir, abi)?;
            running.dump(&[])?.success()?;
            tests::case::nothing_left()?;
            std::fs::write(dir.join("gone"), "mine")?;
            running.restore(&["-d"])?.success()?;
            assert_eq!(std::fs::read(dir.join("gone"))?, b"mine");
            std::fs::remove_file(dir.join("gone"))?;
            let left: Vec<_> = std::fs::read_dir(&dir)?.map(|entry| entry.unwrap().file_name()).collect();
            assert!(left.iter().all(|name| !name.to_string_lossy().contains("gone")), "{left:?}");
            running.verify()?;
        }
        Ok(())
    });
}

/// More in it than the limit allows; a place that is gone at restore.
#[test]
fn limits() {
    require_root!();
    require_ia32!();
    isolated(&here!(), |dir| {
        let mut running = deleted("directory").start(dir, Abi::Ia32)?;
        let before = running.snapshot()?;
        running
            .dump(&["--ghost-limit", "1K"])?
            .code(1)?
            .says_with_hint("more than --ghost-limit (1.0 KiB)")?;
        running.looks_like(&before)?;
        running.dump(&["--ghost-limit", "4K"])?.success()?;
        tests::case::nothing_left()?;
        std::fs::write(dir.join("a"), "in the way")?;
        running.restore(&["-d"])?.code(1)?.says_with_hint("a is no directory any more")?;
        std::fs::remove_file(dir.join("a"))?;
        running.restore(&["-d"])?.success()?;
        running.looks_like(&before)?;
        running.verify()
    });
}
