//! Relative time limits of calls in progress: what is left of them is kept, and the time between dump and restore does
//! not count. Absolute ones go by their clock.

use anyhow::{Context, ensure};
use std::time::{Duration, Instant};
use tests::abi::Abi;
use tests::case::{Running, Workload, nothing_left};
use tests::isolate::isolated;
use tests::{Result, here, require_ia32, require_root};

tests::survives! {
    many => Workload::new("waits", "many");
}

/// What every wait of the workload is given.
const LIMIT: f64 = 6.0;

/// How much the moments differ between which the test measures and those that count.
const EARLY: f64 = 1.0;
const LATE: f64 = 1.8;

/// Dumps and restores, with some time in between. Returns how long the tree was gone.
fn gone_for(running: &mut Running, outage: Duration) -> Result<Duration> {
    let started = Instant::now();
    running.dump(&[])?.success()?;
    nothing_left()?;
    std::thread::sleep(outage);
    running.restore(&["-d"])?.success()?;
    Ok(started.elapsed())
}

/// Has the workload end, and compares how long each wait took with what it should.
fn took(running: Running, expected: f64) -> Result {
    let log = running.dir.join("log");
    running.verify()?;
    let log = std::fs::read_to_string(log)?;
    let mut count = 0;
    for line in log.lines().filter_map(|line| line.strip_prefix("TOOK ")) {
        let (seconds, name) = line.split_once(' ').context("no name")?;
        let seconds: f64 = seconds.parse()?;
        let right = expected - EARLY..expected + LATE;
        ensure!(right.contains(&seconds), "{name} took {seconds} s, not {expected:.3} s:\n{log}");
        count += 1;
    }
    ensure!(count > 0, "no wait told how long it took:\n{log}");
    Ok(())
}

/// Runs `body` for both ABIs on a case that has just begun to wait. It returns how long the waits should take.
fn waits(test: &str, workload: &Workload, body: impl Fn(&mut Running) -> Result<f64>) {
    isolated(test, |dir| {
        for abi in Abi::ALL {
            let mut running = workload.start(&dir.join(abi.name()), abi)?;
            let expected = body(&mut running)?;
            took(running, expected).with_context(|| abi.name().to_owned())?;
        }
        Ok(())
    });
}

fn pass(seconds: f64) {
    std::thread::sleep(Duration::from_secs_f64(seconds));
}

#[test]
fn a_wait_goes_on_where_it_was() {
    require_root!();
    require_ia32!();
    waits(&here!(), &Workload::new("waits", "relative"), |running| {
        pass(LIMIT / 2.0);
        let gone = gone_for(running, Duration::from_secs(2))?;
        Ok(LIMIT + gone.as_secs_f64())
    });
}

#[test]
fn three_outages_in_one_wait() {
    require_root!();
    require_ia32!();
    waits(&here!(), &Workload::new("waits", "relative"), |running| {
        let mut expected = LIMIT;
        for _ in 0..3 {
            pass(LIMIT / 4.0);
            expected += gone_for(running, Duration::from_secs(1))?.as_secs_f64();
        }
        Ok(expected)
    });
}

/// A dump that lets the tree go on interrupts a wait too.
#[test]
fn an_outage_after_other_dumps() {
    require_root!();
    require_ia32!();
    waits(&here!(), &Workload::new("waits", "relative"), |running| {
        pass(LIMIT / 4.0);
        running.dump(&["--leave-running"])?.success()?;
        pass(LIMIT / 2.0);
        let gone = gone_for(running, Duration::from_secs(2))?;
        Ok(LIMIT + gone.as_secs_f64())
    });
}

#[test]
fn let_run_it_ends_in_time() {
    require_root!();
    require_ia32!();
    waits(&here!(), &Workload::new("waits", "relative"), |running| {
        pass(LIMIT / 2.0);
        running.dump(&["--leave-running"])?.success()?;
        Ok(LIMIT)
    });
}

#[test]
fn an_absolute_wait_goes_by_its_clock() {
    require_root!();
    require_ia32!();
    waits(&here!(), &Workload::new("waits", "absolute"), |running| {
        pass(LIMIT / 4.0);
        let gone = gone_for(running, Duration::from_secs(2))?;
        Ok(LIMIT.max(LIMIT / 4.0 + gone.as_secs_f64()))
    });
}

#[test]
fn a_timer_goes_on_where_it_was() {
    require_root!();
    require_ia32!();
    waits(&here!(), &Workload::new("timers", "took"), |running| {
        pass(LIMIT / 2.0);
        let gone = gone_for(running, Duration::from_secs(2))?;
        Ok(LIMIT + gone.as_secs_f64())
    });
}

#[test]
fn a_timerfd_goes_on_where_it_was() {
    require_root!();
    require_ia32!();
    waits(&here!(), &Workload::new("events", "timer_took"), |running| {
        pass(LIMIT / 2.0);
        let gone = gone_for(running, Duration::from_secs(2))?;
        Ok(LIMIT + gone.as_secs_f64())
    });
}

#[test]
fn a_timerfd_set_to_a_moment_keeps_it() {
    require_root!();
    require_ia32!();
    waits(&here!(), &Workload::new("events", "moment_took"), |running| {
        pass(LIMIT / 4.0);
        let gone = gone_for(running, Duration::from_secs(2))?;
        Ok(LIMIT.max(LIMIT / 4.0 + gone.as_secs_f64()))
    });
}
