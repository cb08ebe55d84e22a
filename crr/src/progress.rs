//! Progress of long work: one line on a terminal's stderr, only when the work takes longer than a second.

use std::fmt::Write as _;
use std::io::{self, IsTerminal};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// Work that is over sooner is not shown.
const QUIET: Duration = Duration::from_secs(1);
/// Time between two states of the line.
const STEP: Duration = Duration::from_millis(200);

/// Counts bytes done and, on a terminal, shows them. Dropping it erases the line.
#[derive(Debug)]
pub struct Progress {
    done: Arc<AtomicU64>,
    display: Option<Display>,
}

/// The thread that draws, and what stops it.
#[derive(Debug)]
struct Display {
    stop: Arc<(Mutex<bool>, Condvar)>,
    thread: JoinHandle<()>,
}

impl Progress {
    /// Starts showing work of `total` bytes; nothing is ever shown unless `enabled` and stderr is a terminal.
    /// A `total` of 0 is one that is not known.
    #[must_use]
    pub fn new(enabled: bool, total: u64, label: &'static str) -> Self {
        let done = Arc::new(AtomicU64::new(0));
        let display = (enabled && io::stderr().is_terminal()).then(|| Display::start(&done, total, label));
        Self { done, display: display.flatten() }
    }

    /// Counts `bytes` more as done. For any thread, at any rate.
    pub fn add(&self, bytes: u64) {
        self.done.fetch_add(bytes, Ordering::Relaxed);
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(display) = self.display.take() {
            *display.stop.0.lock().unwrap_or_else(PoisonError::into_inner) = true;
            display.stop.1.notify_one();
            // The thread has nothing to return, and its panic nothing to say here.
            drop(display.thread.join());
        }
    }
}

impl Display {
    /// `None` where no thread can be had: work goes on unseen.
    fn start(done: &Arc<AtomicU64>, total: u64, label: &'static str) -> Option<Self> {
        let stop = Arc::new((Mutex::new(false), Condvar::new()));
        let (signal, done, started) = (Arc::clone(&stop), Arc::clone(done), Instant::now());
        let thread = thread::Builder::new()
            .name("progress".to_owned())
            .spawn(move || {
                draw(&mut io::stderr(), &signal, QUIET, || {
                    line(label, done.load(Ordering::Relaxed), total, started.elapsed())
                })
            })
            .ok()?;
        Some(Self { stop, thread })
    }
}

/// Draws until told to stop; begins after `quiet`. A terminal that is gone is no reason to stop the work.
fn draw(
    out: &mut impl io::Write,
    signal: &(Mutex<bool>, Condvar),
    quiet: Duration,
    line: impl Fn() -> String,
) {
    let mut wait = quiet;
    let mut drawn = false;
    let mut stopped = signal.0.lock().unwrap_or_else(PoisonError::into_inner);
    loop {
        let waited = signal.1.wait_timeout_while(stopped, wait, |stopped| !*stopped);
        stopped = waited.unwrap_or_else(PoisonError::into_inner).0;
        if *stopped {
            break;
        }
        // Carriage return, line, erase to its end.
        let _ = write!(out, "\r{}\x1b[K", line());
        (drawn, wait) = (true, STEP);
    }
    if drawn {
        let _ = write!(out, "\r\x1b[K");
    }
}

/// `checking pages: 1.2 GiB of 2.0 GiB (60%), 1.0 GiB/s`.
fn line(label: &str, done: u64, total: u64, elapsed: Duration) -> String {
    let mut line = format!("{label}: {}", bytes(done));
    if total > 0 {
        let percent = u128::from(done) * 100 / u128::from(total);
        // Writing to a string cannot fail.
        let _ = write!(line, " of {} ({percent}%)", bytes(total));
    }
    let millis = elapsed.as_millis().max(1);
    let rate = u64::try_from(u128::from(done) * 1000 / millis).unwrap_or(u64::MAX);
    let _ = write!(line, ", {}/s", bytes(rate));
    line
}

/// A number of bytes for people: `17 B`, `1.5 KiB`, `2.0 GiB`.
#[must_use]
pub fn bytes(count: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    let Some(unit) = (1..=UNITS.len()).rev().find(|unit| count >> (10 * unit) > 0) else {
        return format!("{count} B");
    };
    let tenths = (u128::from(count) * 10) >> (10 * unit);
    format!("{}.{} {}", tenths / 10, tenths % 10, UNITS[unit - 1])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_read_well() {
        assert_eq!(bytes(0), "0 B");
        assert_eq!(bytes(1023), "1023 B");
        assert_eq!(bytes(1536), "1.5 KiB");
        assert_eq!(bytes(2 << 30), "2.0 GiB");
        assert_eq!(bytes(u64::MAX), "15.9 EiB");
    }

    #[test]
    fn a_line_has_bytes_share_and_rate() {
        assert_eq!(
            line("checking pages", 1 << 30, 2 << 30, Duration::from_secs(2)),
            "checking pages: 1.0 GiB of 2.0 GiB (50%), 512.0 MiB/s"
        );
        assert_eq!(line("reading", 0, 0, Duration::ZERO), "reading: 0 B, 0 B/s");
    }

    /// Draws until `stop` is answered with true, which is asked each time a line is made.
    fn drawn(quiet: Duration, stop: impl Fn() -> bool) -> String {
        let signal = (Mutex::new(false), Condvar::new());
        let mut out = Vec::new();
        thread::scope(|scope| {
            let (asked, answers) = std::sync::mpsc::channel();
            let drawing = scope.spawn(|| {
                draw(&mut out, &signal, quiet, move || {
                    let _ = asked.send(());
                    "half".to_owned()
                });
            });
            while !stop() {
                answers.recv().unwrap();
            }
            *signal.0.lock().unwrap() = true;
            signal.1.notify_one();
            drawing.join().unwrap();
        });
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn long_work_is_drawn_and_erased() {
        let asked = std::cell::Cell::new(0);
        let twice = || asked.replace(asked.get() + 1) == 2;
        let out = drawn(Duration::ZERO, twice);
        assert!(out.starts_with("\rhalf\x1b[K\rhalf\x1b[K") && out.ends_with("\r\x1b[K"), "{out:?}");
    }

    #[test]
    fn short_work_is_not_drawn() {
        assert_eq!(drawn(Duration::from_secs(60), || true), "");
    }

    #[test]
    fn counting_needs_no_terminal() {
        let progress = Progress::new(false, 10, "x");
        progress.add(4);
        progress.add(6);
        assert_eq!(progress.done.load(Ordering::Relaxed), 10);
    }
}
