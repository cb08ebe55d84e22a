//! Where images, logs and pid files go: the same flags and the same rule for dump and restore.

use anyhow::{Result, bail};
use clap::Args;
use std::path::{Path, PathBuf};

/// Directories and the log.
#[derive(Debug, Args)]
pub(super) struct Dirs {
    /// Directory of the images; it must exist.
    #[arg(short = 'D', long, value_name = "DIR", default_value = ".")]
    pub(super) images_dir: PathBuf,

    /// Directory that relative names of log and pid files start from [default: the images directory].
    #[arg(short = 'W', long, value_name = "DIR")]
    work_dir: Option<PathBuf>,

    /// Log to this file instead of stderr; an error goes to both.
    #[arg(short = 'o', long, value_name = "FILE")]
    log_file: Option<PathBuf>,
}

impl Dirs {
    /// Looks that the directories are there and starts the log.
    pub(super) fn start(&self, level: u8) -> Result<()> {
        for dir in std::iter::once(&self.images_dir).chain(&self.work_dir) {
            if !dir.is_dir() {
                bail!("{}: is not a directory\n  hint: create it first", dir.display());
            }
        }
        let log_file = self.log_file.as_deref().map(|file| self.in_work_dir(file));
        crate::log::start(log_file.as_deref(), level)
    }

    /// The place of a file that was named on the command line.
    pub(super) fn in_work_dir(&self, file: &Path) -> PathBuf {
        self.work_dir.as_ref().unwrap_or(&self.images_dir).join(file)
    }
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
    }
}
