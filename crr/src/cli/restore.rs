//! `crr restore`.

use super::dirs::{Dirs, Stats};
use super::network::Pages;
use super::{Outcome, Usage, seconds};
use crate::changed::Changed;
use crate::resource::external::given;
use crate::resource::inet::Wishes;
use crate::restore::{Options, Validation, restore};
use crate::store::{DirectIo, Left, Source};
use crate::sys::limits;
use anyhow::anyhow;
use clap::Args;
use std::fs::File;
use std::net::IpAddr;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

const EXAMPLES: &str = "\
Examples:
  crr restore -D ckpt                 restore, pass signals on, end with the exit code of the root
  crr restore -D ckpt -d              restore and leave the tree to itself
  crr restore -D ckpt -d --pidfile p  and write the pid of its root to ckpt/p
  ssh host cat ckpt.tar | crr restore -D - -d
                                      restore what comes as one stream
  crr restore -D ckpt -d --lazy-pages --page-server 10.0.0.2:9876 --insecure
                                      run at once; memory comes from crr page-server --serve on another machine
  crr restore -D ckpt -j              restore a shell job onto this terminal
  crr restore -D ckpt -d --inherit-fd 'fd[3]:pipe:[77]' 3>log
                                      and give it the file or pipe that it has to have
  crr restore -D ckpt --new-pidns     restore under the old pids although they are taken

Images are checked and everything is planned before the first process is made; a restore that fails later
removes all that it made.";

#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Restore {
    #[command(flatten)]
    dirs: Dirs,

    #[command(flatten)]
    stats: Stats,

    /// Exit once the tree runs, instead of waiting for its end.
    #[arg(short = 'd', long)]
    restore_detached: bool,

    /// Make the root of the tree a child of crr's parent, not of crr.
    #[arg(short = 'S', long, requires = "restore_detached")]
    restore_sibling: bool,

    /// Put the tree into the session, process group and terminal that crr runs in.
    #[arg(short = 'j', long)]
    shell_job: bool,

    /// Write the pid of the tree's root to this file.
    #[arg(long, value_name = "FILE")]
    pidfile: Option<PathBuf>,

    /// Change the root directory to this one first: all paths in the images are taken from there.
    #[arg(short = 'r', long, value_name = "DIR")]
    root: Option<PathBuf>,

    /// Restore inside a fresh pid namespace, so that the old pids are free.
    #[arg(long)]
    new_pidns: bool,

    /// Have sockets with TCP connections to the outside come back closed.
    #[arg(long)]
    tcp_close: bool,

    /// Taken for the sake of those who are used to it: connections that were dumped are restored.
    #[arg(long, hide = true, conflicts_with = "tcp_close")]
    tcp_established: bool,

    /// Taken for the sake of those who are used to it: what is to become of unix sockets is said to the dump.
    #[arg(short = 'x', long, value_name = "INO", num_args = 0..=1, require_equals = true, hide = true)]
    ext_unix_sk: Option<Option<String>>,

    /// A local address of internet sockets that is another one now.
    #[arg(long, value_name = "OLD=NEW", value_parser = addresses)]
    map_addr: Vec<(IpAddr, IpAddr)>,

    /// Give the tree descriptor N of this command in place of a file that was left outside at the dump, or of one that it has open by this
    /// path: fd[N]:KEY, as crr show lists them. Can be used more than once.
    #[arg(long, value_name = "fd[N]:KEY", value_parser = given::parse)]
    inherit_fd: Vec<given::Inherit>,

    /// By what a program or library is known to be that of the dump, beside its size.
    #[arg(long, value_name = "METHOD", default_value = "mtime", value_enum)]
    file_validation: Validation,

    /// Let the tasks run at once: memory comes when it is used, and meanwhile. A process of crr's own (crr lazy-pages) brings it; if that
    /// is killed before all is there, the tasks are killed.
    #[arg(long)]
    lazy_pages: bool,

    /// When page contents are read from the disk past the page cache: "auto" if they are larger than half of the memory that is left. Never
    /// those that come late, or are put together first.
    #[arg(long, value_name = "WHEN", default_value = "auto", value_enum)]
    direct_io: DirectIo,

    #[command(flatten)]
    pages: Pages,

    /// How long the tree may take to come back.
    #[arg(long, value_name = "SECS", default_value = "300", value_parser = seconds)]
    timeout: Duration,
}

/// Has what came from a pipe stay until the tasks run: nobody else may have it.
fn keep(source: &mut Source) {
    let comes_from_file = || {
        let stdin = std::io::stdin().as_fd().try_clone_to_owned().map(File::from);
        stdin.and_then(|stdin| stdin.metadata()).is_ok_and(|stdin| stdin.is_file())
    };
    if let Source::Stream(spool) = source
        && !comes_from_file()
        && let Err(error) = spool.keep(&std::env::temp_dir())
    {
        log::warn!("if this fails, the images are lost: {error:#}");
    }
}

/// Adds to why a restore has failed where its images are.
fn tell_what_is_left(source: &Source, error: anyhow::Error) -> anyhow::Error {
    let Source::Stream(spool) = source else { return error };
    if error.is::<Changed>() {
        return error;
    }
    match spool.left() {
        Left::Nothing => error,
        Left::All(dir) if source.has_parent() => {
            let dir = dir.display();
            anyhow!(
                "{error:#}\n  hint: the images are in {dir}, to try again here: tar c -C {dir} . | crr restore -D -"
            )
        }
        Left::All(dir) => {
            let dir = dir.display();
            anyhow!("{error:#}\n  hint: the images are in {dir}, to try again: crr restore -D {dir}")
        }
        Left::Parts => {
            anyhow!("{error:#}\n  hint: the images are gone: for want of memory, pages had been given back")
        }
    }
}

/// OLD=NEW.
fn addresses(text: &str) -> Result<(IpAddr, IpAddr), String> {
    let (old, new) = text.split_once('=').ok_or("not OLD=NEW")?;
    let address = |text: &str| text.parse::<IpAddr>().map_err(|e| format!("{text}: {e}"));
    Ok((address(old)?.to_canonical(), address(new)?.to_canonical()))
}

impl Restore {
    pub(super) fn run(&self, level: u8) -> Outcome {
        // Before anything gets a number that was not open.
        let given = given::Given::take(&self.inherit_fd);
        limits::raise_file_size()?;
        self.dirs.start(level)?;
        if self.dirs.is_stream() && self.inherit_fd.iter().any(|one| one.number == libc::STDIN_FILENO) {
            return Err(
                Usage("--inherit-fd fd[0]: the standard input has the images, by -D -".to_owned()).into()
            );
        }
        let stats = self.stats.file(&self.dirs)?;
        let mut source = self.pages.source(&self.dirs)?;
        keep(&mut source);
        let options = Options { stats, ..self.options(level, source) };
        let (_, status) =
            restore(&options, given).map_err(|error| tell_what_is_left(&options.source, error))?;
        Ok(status.map_or(ExitCode::SUCCESS, ExitCode::from))
    }

    fn options(&self, level: u8, source: Source) -> Options {
        Options {
            source,
            detached: self.restore_detached,
            sibling: self.restore_sibling,
            shell_job: self.shell_job,
            pidfile: self.pidfile.as_deref().map(|file| self.dirs.in_work_dir(file)),
            root: self.root.clone(),
            new_pidns: self.new_pidns,
            sockets: Wishes { close: self.tcp_close, map: self.map_addr.clone() },
            validation: self.file_validation,
            lazy_pages: self.lazy_pages,
            direct_io: self.direct_io,
            timeout: self.timeout,
            progress: level > 0,
            stats: None,
        }
    }
}
