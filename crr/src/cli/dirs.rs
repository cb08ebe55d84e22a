//! Where images, logs, pid and statistics files go: the same flags and the same rule for dump and restore.

use crate::store::{Destination, STREAM, Source, Spool};
use anyhow::{Context, Result, bail};
use clap::Args;
use std::fs::File;
use std::io::{self, IsTerminal};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

/// Directories and the log.
#[derive(Debug, Args)]
pub(super) struct Dirs {
    /// Directory of the images, which must exist; "-": one stream, to the standard output or from the standard input.
    #[arg(short = 'D', long, value_name = "DIR", default_value = ".")]
    images_dir: PathBuf,

    /// Directory that relative names of log, pid and statistics files start from [default: the images directory; of a stream, the working directory].
    #[arg(short = 'W', long, value_name = "DIR")]
    work_dir: Option<PathBuf>,

    /// Log to this file instead of stderr; an error goes to both.
    #[arg(short = 'o', long, value_name = "FILE")]
    log_file: Option<PathBuf>,
}

/// What a command tells of its stages, if it has any.
#[derive(Debug, Args)]
pub(super) struct Stats {
    /// Write to this file, as JSON, how long each stage took, and what it took of memory and processor time. It stays empty if the command fails. A relative name starts from --work-dir.
    #[arg(long, value_name = "FILE")]
    stats: Option<PathBuf>,
}

impl Stats {
    /// The file: made before the command does anything.
    pub(super) fn file(&self, dirs: &Dirs) -> Result<Option<File>> {
        let create = |file: &PathBuf| {
            let path = dirs.in_work_dir(file);
            File::create(&path).with_context(|| format!("{}: create", path.display()))
        };
        self.stats.as_ref().map(create).transpose()
    }
}

impl Dirs {
    /// Looks that the directories are there and starts the log.
    pub(super) fn start(&self, level: u8) -> Result<()> {
        let images_dir = (!self.is_stream()).then_some(&self.images_dir);
        for dir in images_dir.into_iter().chain(&self.work_dir) {
            if !dir.is_dir() {
                bail!("{}: is not a directory\n  hint: create it first", dir.display());
            }
        }
        let log_file = self.log_file.as_deref().map(|file| self.in_work_dir(file));
        crate::log::start(log_file.as_deref(), level)
    }

    /// The place of a file that was named on the command line.
    pub(super) fn in_work_dir(&self, file: &Path) -> PathBuf {
        match &self.work_dir {
            Some(dir) => dir.join(file),
            None if self.is_stream() => file.to_owned(),
            None => self.images_dir.join(file),
        }
    }

    pub(super) fn is_stream(&self) -> bool {
        self.images_dir == Path::new(STREAM)
    }

    pub(super) fn images_dir(&self) -> &Path {
        &self.images_dir
    }

    /// Where a dump writes to.
    pub(super) fn destination(&self) -> Destination {
        self.images_dir.as_path().into()
    }

    /// Where a restore reads from.
    pub(super) fn source(&self) -> Result<Source> {
        source(&self.images_dir)
    }
}

/// Where a command reads from. A stream is read to its end, which tells that the dump has ended, too.
pub(super) fn source(spelled: &Path) -> Result<Source> {
    if spelled != Path::new(STREAM) {
        return Ok(spelled.into());
    }
    let stdin = io::stdin();
    if stdin.is_terminal() {
        bail!("no images come from a terminal\n  hint: -D - is for a pipe or a file");
    }
    let stream = File::from(stdin.as_fd().try_clone_to_owned().context("standard input")?);
    Spool::receive(stream, &std::env::temp_dir()).map(Source::Stream)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn relative_names_start_from_the_work_dir() {
        let mut dirs = Dirs { images_dir: "/i".into(), work_dir: None, log_file: None };
        assert_eq!(dirs.in_work_dir(Path::new("a.log")), Path::new("/i/a.log"));
        dirs.work_dir = Some("/w".into());
        assert_eq!(dirs.in_work_dir(Path::new("a.log")), Path::new("/w/a.log"));
        assert_eq!(dirs.in_work_dir(Path::new("/a.log")), Path::new("/a.log"));
        let dirs = Dirs { images_dir: "-".into(), work_dir: None, log_file: None };
        assert_eq!(dirs.in_work_dir(Path::new("a.log")), Path::new("a.log"));
    }
}
