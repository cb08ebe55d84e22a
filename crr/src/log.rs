//! The log: a small backend for the `log` crate, on stderr or in a file, with times since the start.
//!
//! A line is formatted first and written by one system call, with no lock held: processes forked by restore
//! write to the same log.

use anyhow::{Context, Result, anyhow};
use log::{Level, LevelFilter, Log, Metadata, Record};
use nix::unistd::write;
use std::fs::{File, OpenOptions};
use std::io::{self, IsTerminal};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;
use std::sync::OnceLock;
use std::time::Instant;

static LOGGER: OnceLock<Logger> = OnceLock::new();

struct Logger {
    started: Instant,
    /// `None` for stderr.
    file: Option<File>,
    /// What erases a line of progress that may stand on the terminal.
    erase: &'static str,
}

/// Starts the log: `level` 0 is silent, 1 errors, 2 warnings, 3 what is done, 4 details, 5 everything.
///
/// # Errors
/// If the file cannot be created.
pub fn start(file: Option<&Path>, level: u8) -> Result<()> {
    let file = file.map(create).transpose()?;
    let erase = if file.is_none() && io::stderr().is_terminal() { "\r\x1b[K" } else { "" };
    let logger = LOGGER.get_or_init(|| Logger { started: Instant::now(), file, erase });
    log::set_logger(logger).map_err(|_| anyhow!("the log was started twice"))?;
    log::set_max_level(match level {
        0 => LevelFilter::Off,
        1 => LevelFilter::Error,
        2 => LevelFilter::Warn,
        3 => LevelFilter::Info,
        4 => LevelFilter::Debug,
        _ => LevelFilter::Trace,
    });
    Ok(())
}

/// The log file, if there is one.
#[must_use]
pub fn file() -> Option<BorrowedFd<'static>> {
    LOGGER.get().and_then(|logger| logger.file.as_ref()).map(AsFd::as_fd)
}

/// Notes in the log file, if there is one, the error that main prints on stderr.
pub fn note_failure(message: &str) {
    if let Some(logger) = LOGGER.get().filter(|logger| logger.file.is_some()) {
        logger.put(Level::Error, message);
    }
}

/// Appending, so that every line of every process goes to the end.
fn create(path: &Path) -> Result<File> {
    let open = || {
        File::create(path)?;
        OpenOptions::new().append(true).open(path)
    };
    open().with_context(|| format!("log file {}", path.display()))
}

impl Logger {
    fn sink(&self) -> BorrowedFd<'_> {
        static STDERR: OnceLock<io::Stderr> = OnceLock::new();
        match &self.file {
            Some(file) => file.as_fd(),
            None => STDERR.get_or_init(io::stderr).as_fd(),
        }
    }

    fn put(&self, level: Level, message: &str) {
        let line = if self.file.is_none() && level <= Level::Warn {
            format!("{}crr: {}: {message}\n", self.erase, word(level))
        } else {
            let time = self.started.elapsed();
            let (seconds, micros) = (time.as_secs(), time.subsec_micros());
            format!("{}[{seconds:5}.{micros:06}] {}: {message}\n", self.erase, word(level))
        };
        // There is nowhere to tell that the log cannot be written.
        let _ = write(self.sink(), line.as_bytes());
    }
}

impl Log for Logger {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.level() <= log::max_level()
    }

    fn log(&self, record: &Record<'_>) {
        if self.enabled(record.metadata()) {
            self.put(record.level(), &record.args().to_string());
        }
    }

    fn flush(&self) {}
}

fn word(level: Level) -> &'static str {
    match level {
        Level::Error => "error",
        Level::Warn => "warning",
        Level::Info => "info",
        Level::Debug => "debug",
        Level::Trace => "trace",
    }
}
