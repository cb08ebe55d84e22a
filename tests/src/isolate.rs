//! Runs a test body in a PID, mount, network and IPC namespace of its own.
//!
//! The test function runs twice. Outside, it starts this very test binary again under unshare(1), for this one test;
//! inside, it finds itself named in the environment and runs the body as PID 1. So tests stay ordinary `#[test]`
//! functions, run in parallel, and cannot leave a process behind.

use crate::abi::Abi;
use crate::{binaries, wait};
use anyhow::Context;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

/// Names the test that the inner process is to run the body of.
const INSIDE: &str = "CRR_TEST_INSIDE";

/// How long a test may take as a whole unless it says otherwise.
const LIMIT: Duration = Duration::from_secs(300);

/// The path of a test as libtest spells it, from the type name of an item inside of the function.
#[must_use]
pub fn test_path(type_name: &str) -> String {
    let path = type_name.strip_suffix("::marker").unwrap_or(type_name);
    path.split_once("::").map_or(path, |(_crate, rest)| rest).to_owned()
}

/// Runs `body` inside, with an empty directory that is kept when the test fails.
///
/// # Panics
/// When the body fails or takes longer than five minutes.
pub fn isolated(test: &str, body: impl FnOnce(&Path) -> crate::Result) {
    isolated_for(LIMIT, test, body);
}

/// [`isolated`] with its own limit.
///
/// # Panics
/// When the body fails or takes longer than `limit`.
pub fn isolated_for(limit: Duration, test: &str, body: impl FnOnce(&Path) -> crate::Result) {
    let outcome = match std::env::var(INSIDE) {
        Ok(inside) => {
            assert_eq!(inside, test, "the test runner started another test than it was asked for");
            own_terminals().and_then(|()| own_network()).and_then(|()| body(&directory(test)))
        }
        Err(_) => outside(limit, test),
    };
    if let Err(e) = outcome {
        panic!("{e:#}");
    }
}

/// Runs `body` in the same way for both ABIs, each in a directory of its own.
///
/// # Panics
/// As [`isolated`], with the ABI.
pub fn isolated_for_both(test: &str, body: impl Fn(&Path, Abi) -> crate::Result) {
    isolated(test, |dir| {
        Abi::ALL.into_iter().try_for_each(|abi| body(&dir.join(abi.name()), abi).context(abi))
    });
}

/// Pseudo terminals with numbers of their own: nobody else takes one while a tree is gone.
fn own_terminals() -> crate::Result {
    let options = "newinstance,ptmxmode=0666,mode=620";
    let status =
        Command::new("mount").args(["-t", "devpts", "devpts", "/dev/pts", "-o", options]).status()?;
    anyhow::ensure!(status.success(), "mount devpts: {status}");
    Ok(())
}

/// A network with nothing but the loopback interface: ports of its own, and nobody else's traffic.
fn own_network() -> crate::Result {
    let status = Command::new("ip").args(["link", "set", "lo", "up"]).status()?;
    anyhow::ensure!(status.success(), "ip link set lo up: {status}");
    Ok(())
}

/// Where the files of a test lie.
fn directory(test: &str) -> PathBuf {
    binaries::target_dir().join("tmp/behaviour").join(test.replace("::", "/"))
}

fn outside(limit: Duration, test: &str) -> crate::Result {
    let dir = directory(test);
    let crr = binaries::crr()?;
    if dir.exists() {
        fs::remove_dir_all(&dir)?;
    }
    fs::create_dir_all(&dir)?;
    let report = dir.with_extension("report");
    let output = File::create(&report)?;
    let mut child = Command::new("unshare")
        .args(["--pid", "--net", "--ipc", "--fork", "--mount-proc", "--kill-child", "--"])
        // A shell that runs the tests in the background has all of them ignore SIGINT and SIGQUIT.
        .args(["env", "--default-signal"])
        .arg(std::env::current_exe()?)
        .args(["--exact", test, "--include-ignored", "--nocapture", "--test-threads=1"])
        .env_remove("RUST_BACKTRACE")
        .env(INSIDE, test)
        .env("CRR_BIN", crr)
        .stdin(Stdio::null())
        .stdout(output.try_clone()?)
        .stderr(output)
        .spawn()?;
    let status = wait::until(limit, "the test as a whole", || Ok(child.try_wait()?));
    if status.is_err() {
        // unshare takes its child, and so the whole namespace, with it.
        child.kill()?;
        child.wait()?;
    }
    let text = fs::read_to_string(&report)?;
    match status {
        Ok(status) if status.success() && text.contains("1 passed") => {
            fs::remove_dir_all(&dir)?;
            fs::remove_file(&report)?;
            Ok(())
        }
        Ok(status) => Err(anyhow::anyhow!("{status}; files in {}\n{text}", dir.display())),
        Err(e) => Err(e.context(format!("files in {}\n{text}", dir.display()))),
    }
}
