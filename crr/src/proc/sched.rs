//! `/proc/PID/task/TID/sched`: what the scheduler notes about a thread. Not there without CONFIG_SCHED_DEBUG.

use super::{Malformed, decimal};

/// The lines that are used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sched {
    /// When it last ran, nanoseconds of its processor's run-queue clock.
    pub exec_start: u64,
    /// How often it gave its processor away by itself.
    pub voluntary_switches: u64,
}

/// Parses the file.
///
/// # Errors
/// [`Malformed`] with the line.
pub fn parse(text: &[u8]) -> Result<Sched, Malformed> {
    let line = |name: &'static str| {
        let mut lines = text.split(|&byte| byte == b'\n');
        let rest = lines.find_map(|line| line.strip_prefix(name.as_bytes())).map(<[u8]>::trim_ascii);
        rest.and_then(|rest| rest.strip_prefix(b":")).ok_or(Malformed { file: "sched", field: name })
    };
    Ok(Sched {
        exec_start: nanoseconds(line("se.exec_start")?)
            .ok_or(Malformed { file: "sched", field: "se.exec_start" })?,
        voluntary_switches: decimal(line("nr_voluntary_switches")?)
            .ok_or(Malformed { file: "sched", field: "nr_voluntary_switches" })?,
    })
}

/// Milliseconds with six decimals.
fn nanoseconds(text: &[u8]) -> Option<u64> {
    let text = text.trim_ascii();
    let point = text.iter().position(|&byte| byte == b'.')?;
    let (millis, nanos) = (decimal::<u64>(&text[..point])?, text.get(point + 1..point + 7)?);
    millis.checked_mul(1_000_000)?.checked_add(decimal(nanos)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    const CAPTURED: &[u8] = b"cat (32295, #threads: 1)\n\
        -------------------------------------------------------------------\n\
        se.exec_start                                :      12430311.072892\n\
        se.vruntime                                  :           275.165475\n\
        se.nr_migrations                             :                    1\n\
        nr_switches                                  :                   12\n\
        nr_voluntary_switches                        :                    7\n\
        nr_involuntary_switches                      :                    5\n";

    #[test]
    fn captured_text() {
        let expected = Sched { exec_start: 12_430_311_072_892, voluntary_switches: 7 };
        assert_eq!(parse(CAPTURED), Ok(expected));
    }

    #[test]
    fn a_missing_line_is_named() {
        assert_eq!(parse(&CAPTURED[..200]).unwrap_err().field, "nr_voluntary_switches");
    }
}
