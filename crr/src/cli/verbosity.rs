//! `-v`, `-vv` and CRIU's `-v4`.

use clap::{ArgAction, Args};
use std::ffi::OsString;

/// Warnings and errors.
const DEFAULT: u8 = 2;
/// What is done: where the log becomes chatty.
pub(super) const INFO: u8 = 3;

/// How much goes to the log.
#[derive(Debug, Args)]
pub(super) struct Verbosity {
    /// Log more: what is done (-v), details (-vv), everything (-vvv).
    ///
    /// Or a level: -v0 logs nothing, -v1 errors, -v2 warnings (the default), -v3 what is done, -v4 details.
    #[arg(short, action = ArgAction::Count, global = true)]
    verbose: u8,

    /// `-vN`, as [`spelled_out`] turns it into.
    #[arg(long = "log-level", value_name = "N", global = true, hide = true, conflicts_with = "verbose")]
    level: Option<u8>,
}

impl Verbosity {
    /// 0 to 5, see [`crate::log::start`].
    pub(super) fn level(&self) -> u8 {
        self.level.unwrap_or(DEFAULT.saturating_add(self.verbose))
    }
}

/// Replaces `-v4` by `--log-level=4`: clap's counted flags take no number.
pub(super) fn spelled_out(arguments: impl Iterator<Item = OsString>) -> impl Iterator<Item = OsString> {
    arguments.map(|argument| match argument.as_encoded_bytes() {
        [b'-', b'v', digit @ b'0'..=b'9'] => format!("--log-level={}", char::from(*digit)).into(),
        _ => argument,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        verbosity: Verbosity,
        file: Option<String>,
    }

    fn level(arguments: &[&str]) -> u8 {
        let arguments = ["crr"].iter().chain(arguments).map(Into::into);
        Cli::parse_from(spelled_out(arguments)).verbosity.level()
    }

    #[test]
    fn both_habits_are_understood() {
        assert_eq!(level(&[]), 2);
        assert_eq!(level(&["-v"]), 3);
        assert_eq!(level(&["-vv", "-v"]), 5);
        assert_eq!(level(&["-v0"]), 0);
        assert_eq!(level(&["-v4"]), 4);
    }

    #[test]
    fn a_flag_takes_no_neighbour_as_its_number() {
        let arguments = ["crr", "-v", "4"].iter().map(Into::into);
        let cli = Cli::parse_from(spelled_out(arguments));
        assert_eq!((cli.verbosity.level(), cli.file.as_deref()), (3, Some("4")));
    }
}
