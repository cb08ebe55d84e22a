//! `/proc/PID/timers`: the POSIX timers of a task, without their times.

use super::{Malformed, decimal, hex};
use images::Pid;

/// What is shown of a timer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shown {
    /// Its number.
    pub id: i32,
    /// Signal.
    pub signal: i32,
    /// What comes with the signal.
    pub value: u64,
    /// SIGEV_*.
    pub notify: i32,
    /// The thread that is told, or the task.
    pub pid: Pid,
    /// CLOCK_*.
    pub clock: i32,
}

/// Parses the file: four lines for each timer.
///
/// # Errors
/// [`Malformed`] with the line.
pub fn parse(text: &[u8]) -> Result<Vec<Shown>, Malformed> {
    let mut lines = text.split(|&byte| byte == b'\n').filter(|line| !line.is_empty());
    let mut timers = Vec::new();
    while let Some(first) = lines.next() {
        let id = first.strip_prefix(b"ID: ").and_then(decimal).ok_or(bad("ID"))?;
        let mut line = |name: &'static str| {
            lines.next().and_then(|line| line.strip_prefix(name.as_bytes())).ok_or(bad(name))
        };
        let (signal, value) = halves(line("signal: ")?, b'/').ok_or(bad("signal"))?;
        let (how, pid) = halves(line("notify: ")?, b'.').ok_or(bad("notify"))?;
        timers.push(Shown {
            id,
            signal: decimal(signal).ok_or(bad("signal"))?,
            value: hex(value).ok_or(bad("signal"))?,
            notify: notify(how).ok_or(bad("notify"))?,
            pid: decimal(pid).ok_or(bad("notify"))?,
            clock: line("ClockID: ").map(decimal)?.ok_or(bad("ClockID"))?,
        });
    }
    // The kernel lists them by a hash.
    timers.sort_unstable_by_key(|timer: &Shown| timer.id);
    Ok(timers)
}

fn bad(field: &'static str) -> Malformed {
    Malformed { file: "timers", field }
}

fn halves(text: &[u8], at: u8) -> Option<(&[u8], &[u8])> {
    let at = text.iter().position(|&byte| byte == at)?;
    Some((&text[..at], &text[at + 1..]))
}

/// `show_timer` of fs/proc/base.c: how, and whether a thread or the task is told.
fn notify(text: &[u8]) -> Option<i32> {
    let (how, whom) = halves(text, b'/')?;
    let how = match how {
        b"signal" => 0,
        b"none" => 1,
        b"thread" => 2,
        _ => return None,
    };
    match whom {
        b"pid" => Some(how),
        b"tid" => Some(how | 4),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CAPTURED: &[u8] = b"ID: 1000\nsignal: 35/00007fff86e452a8\nnotify: signal/pid.2634\nClockID: 1\n\
        ID: 8\nsignal: 60/000000000000004d\nnotify: signal/tid.2635\nClockID: -6\n";

    #[test]
    fn captured_text() {
        let timers = parse(CAPTURED).unwrap();
        let first = Shown { id: 8, signal: 60, value: 77, notify: 4, pid: 2635, clock: -6 };
        let second = Shown { id: 1000, signal: 35, value: 0x7fff_86e4_52a8, notify: 0, pid: 2634, clock: 1 };
        assert_eq!(timers, [first, second]);
        assert_eq!(parse(b""), Ok(Vec::new()));
    }

    #[test]
    fn a_cut_entry_is_an_error() {
        assert_eq!(parse(&CAPTURED[..40]).unwrap_err().field, "notify: ");
    }
}
