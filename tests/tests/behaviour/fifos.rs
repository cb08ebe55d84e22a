//! Named pipes.

use std::fs::{self, File};
use std::process::{Command, Stdio};
use tests::abi::Abi;
use tests::case::{Running, Workload, nothing_left};
use tests::isolate::isolated;
use tests::{Result, here, require_ia32, require_root};

const fn fifos(case: &'static str) -> Workload {
    Workload::new("fifos", case)
}

tests::survives! {
    contents => fifos("contents");
    descriptions => fifos("descriptions");
    readers => fifos("readers");
    writers => fifos("writers");
    deleted => fifos("deleted");
    opening => fifos("opening");
    waiting => fifos("waiting");
    between_abis => fifos("between_abis");
}

/// A task that only has `file` open, as its standard input.
fn holder_of(file: File) -> Result<std::process::Child> {
    Ok(Command::new("sleep").arg("600").stdin(file).stdout(Stdio::null()).stderr(Stdio::null()).spawn()?)
}

fn open(running: &Running, name: &str) -> Result<File> {
    Ok(File::options().read(true).write(true).open(running.dir.join(name))?)
}

/// One that a task outside of the tree has open too is refused, by name of both, and works on.
#[test]
fn ends_outside() {
    require_root!();
    require_ia32!();
    isolated(&here!(), |dir| {
        for abi in Abi::ALL {
            let mut running = fifos("contents").start(&dir.join(abi.name()), abi)?;
            let before = running.snapshot()?;
            let mut outsider = holder_of(open(&running, "both")?)?;
            let output = running.dump(&[])?.code(1)?;
            let name = running.dir.join("both").display().to_string();
            let holder = format!("task {} (fifos): fd 5 ({name})", running.root);
            let other = format!("also open in task {} (sleep), outside of the tree", outsider.id());
            output.says_with_hint(&format!("{holder}: {other}"))?;
            assert_eq!(output.stderr.matches("outside of the tree").count(), 1, "{}", output.stderr);
            outsider.kill()?;
            outsider.wait()?;
            running.looks_like(&before)?;
            running.cycle(&before)?;
            running.verify()?;
        }
        Ok(())
    });
}

/// A restore does not begin where the name leads to something else, or somebody has the pipe open by now.
#[test]
fn changed_since() {
    require_root!();
    require_ia32!();
    isolated(&here!(), |dir| {
        for abi in Abi::ALL {
            let mut running = fifos("contents").start(&dir.join(abi.name()), abi)?;
            let before = running.snapshot()?;
            running.dump(&[])?.success()?;
            nothing_left()?;
            let mut outsider = holder_of(open(&running, "both")?)?;
            let other = format!("is open in task {} (sleep)", outsider.id());
            running.restore(&["-d"])?.code(1)?.says_with_hint(&other)?;
            outsider.kill()?;
            outsider.wait()?;
            let (name, away) = (running.dir.join("fifo"), running.dir.join("away"));
            fs::rename(&name, &away)?;
            running.restore(&["-d"])?.code(1)?.says_with_hint("fifo: has been deleted since the dump")?;
            fs::write(&name, "")?;
            running.restore(&["-d"])?.code(1)?.says_with_hint("fifo: is another kind of file")?;
            fs::rename(&away, &name)?;
            nothing_left()?;
            running.restore(&["-d"])?.success()?;
            running.looks_like(&before)?;
            running.verify()?;
        }
        Ok(())
    });
}
