//! Unix sockets with addresses.

use tests::abi::Abi;
use tests::case::{Workload, nothing_left};
use tests::isolate::isolated;
use tests::{here, require_ia32, require_root};

const fn names(case: &'static str) -> Workload {
    Workload::new("unix_names", case)
}

tests::survives! {
    listening => names("listening");
    accepted => names("accepted");
    waiting => names("waiting");
    peers => names("peers");
    gone => names("gone");
    datagrams => names("datagrams");
    files => names("names");
    between_abis => names("between_abis");
}

/// The other ends of a task's sockets are outside of the tree: each is named, with who has it.
#[test]
fn other_end() {
    require_root!();
    require_ia32!();
    isolated(&here!(), |dir| {
        for abi in Abi::ALL {
            let mut running = names("other_end").start(&dir.join(abi.name()), abi)?;
            let root = running.root;
            let child = tests::snapshot::tree(root.as_raw())?[1];
            let before = running.snapshot()?;
            let output = running.dump_task(child, &[])?.code(1)?;
            output.says_with_hint(&format!("of task {root} (unix_names), outside of the tree"))?;
            output.says_with_hint("a connection waits to be accepted, by socket:[")?;
            running.looks_like(&before)?;
            running.verify()?;
        }
        Ok(())
    });
}

/// Another file at the place of a socket stops a restore before anything is made; it is left alone.
#[test]
fn place_taken() {
    require_root!();
    require_ia32!();
    isolated(&here!(), |dir| {
        for abi in Abi::ALL {
            let mut running = names("listening").start(&dir.join(abi.name()), abi)?;
            let before = running.snapshot()?;
            running.dump(&[])?.success()?;
            nothing_left()?;
            let server = running.dir.join("server");
            std::fs::rename(&server, running.dir.join("aside"))?;
            std::fs::write(&server, "another")?;
            running.restore(&["-d"])?.code(1)?.says_with_hint("where there is another file now")?;
            assert_eq!(std::fs::read(&server)?, b"another");
            std::fs::rename(running.dir.join("aside"), &server)?;
            running.restore(&["-d"])?.success()?;
            running.looks_like(&before)?;
            running.verify()?;
        }
        Ok(())
    });
}
