//! SIGKILL for crr at random moments.

use crate::case::Running;
use crate::command;
use crate::moments::Moments;
use anyhow::{Context, ensure};
use std::time::{Duration, Instant};

/// Starts dumps that leave the tree running and kills each at a moment of its own; `check` looks at the tree after each. Returns
/// how many were still running when they were killed.
///
/// # Errors
/// What `check` found, or that too few were killed in time.
pub fn kill_dumps(
    running: &mut Running,
    options: &[&str],
    kills: u32,
    check: impl FnMut(&mut Running) -> crate::Result,
) -> crate::Result<u32> {
    let options = [options, &["--leave-running"]].concat();
    let started = Instant::now();
    running.dump(&options)?.success()?;
    let span = started.elapsed();
    kill_each(running, span, kills, |running| running.dump_args(&options), check)
}

/// The same with restores that were to end by themselves, of the newest images; one that takes `span` is known to work.
///
/// # Errors
/// As [`kill_dumps`].
pub fn kill_restores(
    running: &mut Running,
    span: Duration,
    kills: u32,
    check: impl FnMut(&mut Running) -> crate::Result,
) -> crate::Result<u32> {
    let args = |running: &mut Running| {
        let images = running.images().display().to_string();
        Ok(["restore", "-d", "-D", &images].map(str::to_owned).to_vec())
    };
    kill_each(running, span, kills, args, check)
}

fn kill_each(
    running: &mut Running,
    span: Duration,
    kills: u32,
    args: impl Fn(&mut Running) -> crate::Result<Vec<String>>,
    mut check: impl FnMut(&mut Running) -> crate::Result,
) -> crate::Result<u32> {
    let (mut moments, mut cut, mut span) = (Moments::default(), 0, span);
    for kill in 1..=kills {
        let args = args(running)?;
        // Twice, since the time varies; what comes after the end tests nothing but does no harm.
        let moment = Instant::now() + moments.below(2 * span);
        let mut crr = command::spawn(&running.dir, &args.iter().map(String::as_str).collect::<Vec<_>>())?;
        while Instant::now() < moment {
            std::hint::spin_loop();
        }
        crr.kill()?;
        let in_time = crr.wait()?.code().is_none();
        cut += u32::from(in_time);
        // The first time that was measured can be far from most.
        span = if in_time { span * 9 / 8 } else { span * 7 / 8 };
        command::none_left()?;
        check(running).with_context(|| format!("after kill {kill}"))?;
    }
    ensure!(cut >= kills / 5, "only {cut} of {kills} were still running when they were killed");
    Ok(cut)
}
