//! `crr dump`.

use super::dirs::{Dirs, Stats};
use super::network::Pages;
use super::rounds::Rounds;
use super::{Outcome, seconds, size};
use crate::dump::{After, Options, dump};
use crate::progress::bytes;
use crate::resource::external::Key;
use crate::resource::inet::{NetworkLock, Policy, TcpPolicy};
use crate::resource::unix_socket::half::HalfPolicy;
use crate::store::Destination;
use clap::{Args, ValueEnum};
use images::Pid;
use std::process::ExitCode;
use std::time::Duration;

const EXAMPLES: &str = "\
Examples:
  crr dump -t 1234 -D ckpt            checkpoint the tree under 1234 and kill it
  crr dump -t 1234 -D ckpt -R         checkpoint it and let it run on
  crr dump -t 1234 -D ckpt -R --snapshot
                                      and stop it only for as long as a fork takes
  crr dump -t $(pidof job) -D ckpt -j checkpoint a job started from this shell
  crr dump -t 1234 -D ckpt --external 'pipe[77]'
                                      leave a pipe to another program outside
  crr dump -t 1234 -D ckpt --compress=zstd:3
                                      make the images smaller
  crr dump -t 1234 -D - | ssh host crr restore -D - -d
                                      move it to another machine; or | tar x -C ckpt
  crr dump -t 1234 -D ckpt -v4 -o dump.log

Whatever cannot be restored is refused before anything is written, all of it at once, and the tree runs on.
A checkpoint that is already in the directory stays until the new one is whole.";

#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Dump {
    /// Root of the tree: this process and all its descendants are dumped.
    #[arg(short = 't', long, value_name = "PID", value_parser = clap::value_parser!(Pid).range(1..))]
    tree: Pid,

    #[command(flatten)]
    dirs: Dirs,

    #[command(flatten)]
    stats: Stats,

    /// Let the tree run on after the dump instead of killing it.
    #[arg(short = 'R', long)]
    leave_running: bool,

    /// Copy what is in private memory when the tree runs on already, as it was when the tree stood still: each task is forked for that, so
    /// what is written meanwhile takes its room twice.
    #[arg(long, requires = "leave_running", conflicts_with = "leave_stopped")]
    snapshot: bool,

    /// Leave the tree stopped after the dump, as by SIGSTOP.
    #[arg(short = 's', long, conflicts_with = "leave_running")]
    leave_stopped: bool,

    /// Allow a session, process group and terminal that belong to a shell outside of the tree.
    #[arg(short = 'j', long)]
    shell_job: bool,

    /// Keep TCP connections whose other end is outside of the tree. What that sends is held until the restore, by a table of
    /// nftables.
    #[arg(long)]
    tcp_established: bool,

    /// Have sockets with such connections come back closed.
    #[arg(long, conflicts_with = "tcp_established")]
    tcp_close: bool,

    /// Taken for the sake of those who are used to it: file locks are dumped in any case.
    #[arg(short = 'l', long, hide = true)]
    file_locks: bool,

    /// Give up connections that have not been accepted yet, and cannot be kept: their clients find them reset. Also packets that raw, ping and
    /// packet sockets have received and nobody has read, which cannot be put back.
    #[arg(long)]
    skip_in_flight: bool,

    /// How the traffic of kept connections is held: "skip" if the network is cut otherwise.
    #[arg(long, value_name = "METHOD", default_value = "nftables")]
    network_lock: Lock,

    /// Have unix sockets whose other end is outside of the tree come back closed, or clients among them connected again: where they were, or
    /// to the server at another path.
    #[arg(long, value_name = "close|reconnect[=PATH]")]
    unix_half: Option<HalfPolicy>,

    /// As CRIU spells it: with inode numbers --external unix[INO], without one --unix-half reconnect.
    #[arg(short = 'x', long, value_name = "INO", num_args = 0..=1, require_equals = true, value_delimiter = ',', default_missing_value = "0",
        hide = true)]
    ext_unix_sk: Vec<u64>,

    /// Leave a file outside that the tree has open: pipe[INO], unix[INO], file[MNT_ID:INODE] or tty[RDEV:DEV], the last two with hexadecimal
    /// numbers.
    ///
    /// A restore has to be given another one in its place (--inherit-fd). Can be used more than once.
    #[arg(long, value_name = "KEY")]
    external: Vec<Key>,

    /// How much a deleted file may hold that is still open or mapped: it goes into the images. With suffix K, M, G or T.
    #[arg(long, value_name = "SIZE", default_value = "4G", value_parser = size)]
    ghost_limit: u64,

    /// Give a file a name beside its old one where that is gone and its others are elsewhere, until the restore (also with --leave-running).
    #[arg(long)]
    link_remap: bool,

    /// Put copies of programs and libraries into the images: a restore uses those of files that are others by then.
    #[arg(long)]
    embed_files: bool,

    #[command(flatten)]
    rounds: Rounds,

    #[command(flatten)]
    pages: Pages,

    /// How long stopping the tree may take.
    #[arg(long, value_name = "SECS", default_value = "10", value_parser = seconds)]
    timeout: Duration,
}

/// `--network-lock`.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum Lock {
    Nftables,
    Skip,
}

impl Dump {
    pub(super) fn run(&self, level: u8) -> Outcome {
        self.dirs.start(level)?;
        let stats = self.stats.file(&self.dirs)?;
        let options = self.options(level, self.pages.destination(&self.dirs)?);
        self.rounds.check(&options.destination)?;
        let report = dump(&options)?;
        self.rounds.dedup(&options.destination);
        report.stats().write(stats.as_ref());
        log::info!(
            "dumped {} tasks with {} threads: {} in {:.3} s, frozen for {:.3} s",
            report.tasks,
            report.threads,
            bytes(report.bytes),
            report.total.as_secs_f64(),
            report.frozen.as_secs_f64(),
        );
        if let Some(table) = report.held_by {
            log::info!(
                "traffic of its TCP connections is held until the restore, by the nftables table inet {table}"
            );
        }
        for argument in report.outside {
            log::info!("restore takes {argument}");
        }
        Ok(ExitCode::SUCCESS)
    }

    fn options(&self, level: u8, destination: Destination) -> Options {
        let named = self.ext_unix_sk.iter().filter(|&&ino| ino != 0).map(|&ino| Key::UnixSocket(ino));
        Options {
            root: self.tree,
            destination,
            after: match (self.leave_running, self.leave_stopped) {
                (true, _) => After::Run,
                (false, true) => After::Stop,
                (false, false) => After::Kill,
            },
            shell_job: self.shell_job,
            sockets: Policy {
                tcp: match (self.tcp_established, self.tcp_close) {
                    (true, _) => TcpPolicy::Keep,
                    (false, true) => TcpPolicy::Close,
                    (false, false) => TcpPolicy::Refuse,
                },
                skip_in_flight: self.skip_in_flight,
                lock: match self.network_lock {
                    Lock::Nftables => NetworkLock::Nftables,
                    Lock::Skip => NetworkLock::Skip,
                },
            },
            unix_half: self.unix_half.clone().unwrap_or_else(|| match self.ext_unix_sk.contains(&0) {
                true => HalfPolicy::Reconnect(None),
                false => HalfPolicy::Refuse,
            }),
            external: self.external.iter().copied().chain(named).collect(),
            ghost_limit: self.ghost_limit,
            link_remap: self.link_remap,
            embed_files: self.embed_files,
            previous: self.rounds.prev_images_dir.clone(),
            snapshot: self.snapshot,
            compression: self.rounds.compress,
            direct_io: self.rounds.direct_io,
            timeout: self.timeout,
            progress: level > 0,
        }
    }
}
