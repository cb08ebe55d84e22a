//! Files and directories that are in use and have no name any more, and memfds.

use std::process::Command;
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
    half_pages => deleted("half_pages");
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

/// A file system with blocks smaller than pages, where a page can be hole and data.
#[test]
fn blocks_smaller_than_pages() {
    require_root!();
    require_ia32!();
    isolated(&here!(), |dir| {
        let (image, disk) = (dir.join("disk.img"), dir.join("disk"));
        std::fs::File::create(&image)?.set_len(32 << 20)?;
        std::fs::create_dir(&disk)?;
        run(Command::new("mkfs.ext4").args(["-q", "-b", "1024"]).arg(&image))?;
        run(Command::new("mount").args(["-o", "loop"]).arg(&image).arg(&disk))?;
        for abi in Abi::ALL {
            let mut running = deleted("half_pages").start(&disk.join(abi.name()), abi)?;
            running.dump(&[])?.success()?;
            tests::case::nothing_left()?;
            running.restore(&["-d"])?.success()?;
            running.verify()?;
        }
        Ok(())
    });
}

fn run(command: &mut Command) -> tests::Result {
    let output = command.output()?;
    anyhow::ensure!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
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
