//! What a test needs of the machine. A skip is printed and counted; in CI it is a failure.

use crate::abi::Abi;
use crate::binaries;
use std::io::Write;
use std::process::Command;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

static SKIPPED: AtomicU32 = AtomicU32::new(0);

/// Whether we are root.
#[must_use]
pub fn root(test: &str) -> bool {
    has(test, nix::unistd::geteuid().is_root(), "root")
}

/// Whether ia32 programs can be built and run here.
#[must_use]
pub fn ia32(test: &str) -> bool {
    static ANSWER: OnceLock<Result<(), String>> = OnceLock::new();
    let answer = ANSWER.get_or_init(probe_ia32);
    let reason = answer.as_ref().err().map_or("", String::as_str);
    has(test, answer.is_ok(), &format!("ia32 programs ({reason})"))
}

fn probe_ia32() -> Result<(), String> {
    let program = binaries::workload("probe", Abi::Ia32).map_err(|e| format!("{e:#}"))?;
    match Command::new(program).arg("probe").output() {
        Ok(output) if output.status.success() => Ok(()),
        Ok(output) => Err(format!("the probe ended with {}", output.status)),
        Err(e) => Err(format!("the probe does not start: {e}")),
    }
}

/// Passes `given` on; where it is false, reports the skip of `test` for want of `what`.
///
/// # Panics
/// In CI, where nothing may be skipped.
pub fn has(test: &str, given: bool, what: &str) -> bool {
    if !given {
        assert!(std::env::var_os("CI").is_none(), "{test} needs {what}, and CI must not skip");
        skip(test, what);
    }
    given
}

/// As [`has`], for what a kernel may have been built without, which CI cannot change: there too the skip is printed and counted.
pub fn in_kernel(test: &str, given: bool, what: &str) -> bool {
    if !given {
        skip(test, &format!("a kernel with {what}"));
    }
    given
}

fn skip(test: &str, what: &str) {
    let count = SKIPPED.fetch_add(1, Ordering::Relaxed) + 1;
    // Straight to the descriptor: the test runner swallows what print! writes.
    let _ = writeln!(std::io::stderr(), "skipped ({count} so far): {test} needs {what}");
}
