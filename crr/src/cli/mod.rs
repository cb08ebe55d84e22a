//! The command line: parse, run, print once.
//!
//! One file per command, each with its flags, their help and what they are turned into. Options are spelled as
//! in CRIU where they mean the same.

mod check;
mod dedup;
mod dirs;
mod dump;
mod generate;
pub(crate) mod keep_track;
pub(crate) mod lazy_pages;
mod network;
mod page_server;
mod pre_dump;
mod restore;
mod rounds;
mod show;
mod verbosity;

use crate::changed::Changed;
use crate::fault;
use crate::kernel::disabled;
use crate::progress::bytes;
use crate::sys::{limits, process};
use anyhow::{Context, Result};
use clap::builder::Resettable;
use clap::{ArgMatches, Args, FromArgMatches, Parser, Subcommand};
use std::io::{self, ErrorKind, IsTerminal, Write};
use std::process::ExitCode;

/// Refused or failed, everything is as before.
const FAILED: u8 = 1;
/// The command line makes no sense.
const USAGE: u8 = 2;
/// Failed, and the target was changed.
const CHANGED: u8 = 3;

const EXIT_CODES: &str = "\
Exit codes:
  0  done
  1  refused or failed; every task is as it was before
  2  the command line makes no sense
  3  failed, and the tasks were changed: the message says how
A restore without --restore-detached ends with the exit code of the tree's root.";

/// Checkpoint a tree of x86_64 and ia32 processes to files, and restore it later, here or elsewhere.
#[derive(Debug, Parser)]
#[command(name = "crr", version, after_help = EXIT_CODES, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
    #[command(flatten)]
    verbosity: verbosity::Verbosity,

    /// Do without a feature of the kernel, as where it is missing. May be repeated; `crr check` names and shows them.
    #[arg(long, value_name = "NAME", global = true)]
    disable_feature: Vec<String>,

    /// Faults to inject, NAME[:COUNT] with commas between them; also from the environment variable CRR_FAULT.
    #[arg(long, value_name = "FAULTS", global = true, hide = true)]
    fault: Option<String>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Checkpoint a process tree into a directory.
    Dump(Late<dump::Dump>),
    /// Record what a tree has in memory while it runs, so that the dump that follows has little to do.
    PreDump(Late<pre_dump::PreDump>),
    /// Restore a process tree from a checkpoint.
    Restore(Late<restore::Restore>),
    /// Take the page contents of one dump over the network, or give those of a checkpoint to restores.
    ///
    /// Prints the address that it listens on. Ends with 0 when the dump has come to its end and its pages are in the directory, as pages.img; with
    /// --serve, it goes on until it is killed.
    PageServer(Late<page_server::PageServer>),
    /// Show what this kernel can do, and what each lack costs.
    ///
    /// Ends with 0 if everything is there that crr cannot do without, else with 1.
    Check(Late<check::Check>),
    /// Show what is in a checkpoint.
    ///
    /// Records are checked; page contents are not looked at, restore does that.
    Show(Late<show::Show>),
    /// Give back the room of pages that earlier pre-dumps hold and a later pre-dump or dump has anew.
    ///
    /// What else builds on these pre-dumps cannot be restored afterwards.
    Dedup(Late<dedup::Dedup>),
    /// Print a shell's completion script.
    Completions(Late<generate::Completions>),
    /// Write the manual pages, crr(1) and one for each command.
    Man(Late<generate::Man>),
    /// Keep track of what tasks write, until they end or another pre-dump or dump takes over.
    #[command(hide = true)]
    KeepTrack(Late<keep_track::KeepTrack>),
    /// Bring pages to restored tasks that run already, until all are there.
    #[command(hide = true)]
    LazyPages(Late<lazy_pages::LazyPages>),
}

/// A command whose flags are defined when it is the one that is given: a small dump or restore would notice those of all others.
#[derive(Debug)]
struct Late<T>(T);

impl<T: Args> FromArgMatches for Late<T> {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        T::from_arg_matches(matches).map(Self)
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        self.0.update_from_arg_matches(matches)
    }
}

impl<T: Args> Args for Late<T> {
    fn augment_args(command: clap::Command) -> clap::Command {
        command.defer(|command| keep_about(command, T::augment_args))
    }

    fn augment_args_for_update(command: clap::Command) -> clap::Command {
        command.defer(|command| keep_about(command, T::augment_args_for_update))
    }
}

/// Adds flags to a command that is described already: parts of them that are flattened come with what describes these.
fn keep_about(command: clap::Command, add: fn(clap::Command) -> clap::Command) -> clap::Command {
    let short = Resettable::from(command.get_about().cloned());
    let long = Resettable::from(command.get_long_about().cloned());
    add(command).about(short).long_about(long)
}

/// What a command ends with when it does not fail.
type Outcome = Result<ExitCode>;

/// Parses, runs, prints once.
#[must_use]
pub fn main() -> ExitCode {
    let arguments = verbosity::spelled_out(std::env::args_os());
    let cli = match Cli::try_parse_from(arguments) {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version go to stdout and are no error. A closed stdout is no reason to complain.
            let _ = error.print();
            return if error.use_stderr() { ExitCode::from(USAGE) } else { ExitCode::SUCCESS };
        }
    };
    run(cli).unwrap_or_else(|error| {
        report(&error);
        ExitCode::from(exit_code(&error))
    })
}

fn run(cli: Cli) -> Outcome {
    let level = cli.verbosity.level();
    process::outlive_file_size_limit().context("catch SIGXFSZ")?;
    if let Some(faults) = cli.fault.or_else(|| std::env::var("CRR_FAULT").ok()) {
        fault::arm(&faults).map_err(|e| Usage(e.to_string()))?;
    }
    disabled::disable(&cli.disable_feature).map_err(Usage)?;
    match cli.command {
        Command::Dump(Late(command)) => command.run(level),
        Command::PreDump(Late(command)) => command.run(level),
        Command::Restore(Late(command)) => command.run(level),
        Command::PageServer(Late(command)) => command.run(level),
        Command::Check(Late(command)) => command.run(level),
        Command::Show(Late(command)) => command.run(level),
        Command::Dedup(Late(command)) => command.run(level),
        Command::Completions(Late(command)) => command.run(),
        Command::Man(Late(command)) => command.run(),
        Command::KeepTrack(Late(command)) => command.run(),
        Command::LazyPages(Late(command)) => command.run(level),
    }
}

/// Prints an error, on stderr and in the log file.
fn report(error: &anyhow::Error) {
    let mut message = format!("{error:#}");
    if let Some(most) = limits::file_size_in_the_way(error) {
        let most = bytes(most);
        message +=
            &format!("\n  hint: crr may write no file larger than {most}: raise RLIMIT_FSIZE (ulimit -f)");
    }
    crate::log::note_failure(&message);
    let erase = if io::stderr().is_terminal() { "\r\x1b[K" } else { "" };
    let _ = writeln!(io::stderr(), "{erase}crr: error: {message}");
}

fn exit_code(error: &anyhow::Error) -> u8 {
    if error.is::<Usage>() {
        USAGE
    } else if error.is::<Changed>() {
        CHANGED
    } else {
        FAILED
    }
}

/// A mistake on the command line that only shows once it has been parsed.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Usage(String);

/// Writes data to stdout. A reader that has seen enough (`crr show | head`) is no error.
fn print(text: &str) -> Outcome {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => Err(error.into()),
        _ => Ok(ExitCode::SUCCESS),
    }
}

/// `--json`, for commands that print data.
#[derive(Debug, Args)]
struct Format {
    /// Print JSON instead of text.
    #[arg(long)]
    json: bool,
}

/// Parses a duration in whole or broken seconds.
fn seconds(text: &str) -> Result<std::time::Duration, String> {
    let seconds: f64 = text.parse().map_err(|_| "not a number of seconds".to_owned())?;
    // A year: enough for every wait, small enough for every clock.
    if !(0.001..=31_536_000.0).contains(&seconds) {
        return Err("not between 0.001 and 31536000 seconds".to_owned());
    }
    Ok(std::time::Duration::from_secs_f64(seconds))
}

/// Parses a number of bytes, with a suffix as in `dd` or none.
fn size(text: &str) -> Result<u64, String> {
    const UNITS: [(char, u32); 4] = [('K', 10), ('M', 20), ('G', 30), ('T', 40)];
    let unit = UNITS.iter().find(|(letter, _)| text.to_ascii_uppercase().ends_with(*letter));
    let (digits, shift) = unit.map_or((text, 0), |(_, shift)| (&text[..text.len() - 1], *shift));
    let number: u64 = digits.parse().map_err(|_| "not a number of bytes, as in 512M".to_owned())?;
    number.checked_mul(1 << shift).ok_or_else(|| "too large".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn definitions_are_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn seconds_may_be_broken_and_must_be_sane() {
        assert_eq!(seconds("0.5").unwrap().as_millis(), 500);
        for wrong in ["", "x", "0", "-1", "nan", "inf", "1e300"] {
            assert!(seconds(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn sizes_have_suffixes() {
        assert_eq!([size("0"), size("7"), size("3k"), size("4G")], [Ok(0), Ok(7), Ok(3072), Ok(4 << 30)]);
        for wrong in ["", "G", "-1", "1.5M", "99999999999T", "1KB"] {
            assert!(size(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_changed_target_has_its_own_exit_code_wherever_it_stands_in_the_chain() {
        let changed = Changed { how: "task 5 was killed".to_owned() };
        let error = anyhow::anyhow!("out of memory").context(changed).context("dump");
        assert_eq!(exit_code(&error), CHANGED);
        assert_eq!(exit_code(&anyhow::anyhow!("out of memory")), FAILED);
    }
}
