//! Finds the `crr` under test and builds the workloads, once and shared by tests that run at the same time.

use crate::abi::Abi;
use anyhow::{Context, bail};
use nix::fcntl::{Flock, FlockArg};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::SystemTime;

/// What every workload is built with.
const CFLAGS: [&str; 8] =
    ["-std=gnu11", "-O1", "-g", "-Wall", "-Wextra", "-Werror", "-pthread", "-fno-stack-protector"];

/// Sources linked into every workload; all are rebuilt when one changes.
const COMMON: [&str; 2] = ["workload.c", "workload.h"];

/// The build directory that this test binary lies in (`target`), from `target/PROFILE/deps/NAME`.
///
/// # Panics
/// Where the test binary lies elsewhere.
#[must_use]
pub fn target_dir() -> PathBuf {
    profile_dir().parent().expect("a profile directory has a parent").to_owned()
}

fn profile_dir() -> PathBuf {
    let exe = std::env::current_exe().expect("the running test has a path");
    exe.ancestors().nth(2).expect("cargo puts tests into target/PROFILE/deps").to_owned()
}

/// The `crr` to test: `$CRR_BIN`, or the one of this workspace, built in the same profile.
///
/// # Errors
/// The build failed.
pub fn crr() -> crate::Result<PathBuf> {
    static BUILT: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    if let Some(given) = std::env::var_os("CRR_BIN") {
        return Ok(PathBuf::from(given));
    }
    BUILT.get_or_init(|| build_crr().map_err(|e| format!("{e:#}"))).clone().map_err(anyhow::Error::msg)
}

fn build_crr() -> crate::Result<PathBuf> {
    let profile = profile_dir();
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.args(["build", "--quiet", "--package", "crr", "--target-dir"]).arg(target_dir());
    cargo.current_dir(env!("CARGO_MANIFEST_DIR"));
    if profile.ends_with("release") {
        cargo.arg("--release");
    }
    let status = cargo.status().context("start cargo to build crr")?;
    if !status.success() {
        bail!("cargo build --package crr: {status}");
    }
    Ok(profile.join("crr"))
}

/// Where the built workloads lie: `ABI/NAME` below.
#[must_use]
pub fn workloads_dir() -> PathBuf {
    target_dir().join("workloads")
}

/// The program of `workloads/NAME.c` for an ABI, built if it is missing or older than its sources. `NAME-static` is the
/// same source linked statically.
///
/// # Errors
/// gcc failed.
pub fn workload(name: &str, abi: Abi) -> crate::Result<PathBuf> {
    let dir = workloads_dir().join(abi.name());
    fs::create_dir_all(&dir)?;
    let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("workloads");
    let (stem, linkage) = match name.strip_suffix("-static") {
        Some(stem) => (stem, Some("-static")),
        None => (name, None),
    };
    let main = sources.join(stem).with_extension("c");
    let program = dir.join(name);
    let lock = File::create(dir.join(format!("{name}.lock")))?;
    let _lock = Flock::lock(lock, FlockArg::LockExclusive).map_err(|(_, e)| e)?;
    let newest = COMMON
        .iter()
        .map(|common| modified(&sources.join(common)))
        .chain([modified(&main)])
        .collect::<crate::Result<Vec<_>>>()?
        .into_iter()
        .max();
    if modified(&program).ok() < newest {
        let mut gcc = Command::new("gcc");
        gcc.arg(abi.gcc_flag()).args(linkage).args(CFLAGS).args([&main, &sources.join("workload.c")]);
        compile(gcc, &program)?;
    }
    Ok(program)
}

fn modified(path: &Path) -> crate::Result<SystemTime> {
    let metadata = fs::metadata(path).with_context(|| path.display().to_string())?;
    Ok(metadata.modified()?)
}

fn compile(mut gcc: Command, program: &Path) -> crate::Result {
    // Not in place: a program that is running cannot be written to.
    let fresh = program.with_extension("new");
    let output = gcc.arg("-o").arg(&fresh).output().context("start gcc")?;
    if !output.status.success() {
        bail!("{gcc:?}: {}\n{}", output.status, String::from_utf8_lossy(&output.stderr));
    }
    Ok(fs::rename(fresh, program)?)
}
