//! `crr page-server`.

use super::dirs::Dirs;
use super::network::Security;
use super::{Outcome, Usage, print};
use crate::page_server::give::give;
use crate::page_server::{check_exposed, server};
use crate::progress::bytes;
use crate::store::offer;
use crate::sys::{limits, process};
use anyhow::{Context, Result, bail};
use clap::Args;
use images::Pid;
use images::container::Kind;
use nix::fcntl::OFlag;
use std::fs::OpenOptions;
use std::io::Write;
use std::net::{IpAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

const EXAMPLES: &str = "\
Example: pages go straight to the machine that is to restore
  there$ crr page-server -D ckpt --address 10.0.0.2 --port 9876 --tls --tls-cacert ca --tls-cert cert --tls-key key
  here$  crr dump -t 1234 -D ckpt --page-server 10.0.0.2:9876 --tls --tls-cacert ca --tls-cert cert --tls-key key
  here$  scp ckpt/*.img there:ckpt
  there$ crr restore -D ckpt
Example: run on another machine, before its memory is there
  here$  crr dump -t 1234 -D ckpt
  here$  crr page-server -D ckpt --serve --address 10.0.0.1 --port 9876 --tls --tls-cacert ca --tls-cert cert --tls-key key
  here$  scp ckpt/[^p]*.img there:ckpt
  there$ crr restore -D ckpt -d --lazy-pages --page-server 10.0.0.1:9876 --tls --tls-cacert ca --tls-cert cert --tls-key key";

#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct PageServer {
    #[command(flatten)]
    dirs: Dirs,

    /// Address to listen on.
    #[arg(long, default_value = "127.0.0.1")]
    address: IpAddr,

    /// Port to listen on; 0: one that is free.
    #[arg(long, default_value = "0")]
    port: u16,

    /// Give the pages of the checkpoint in the directory to restores (and those of the rounds it builds on), as many as come.
    #[arg(long)]
    serve: bool,

    #[command(flatten)]
    security: Security,

    /// Go to the background once it listens.
    #[arg(short = 'd', long)]
    daemon: bool,

    /// Write a byte 0 to this descriptor once it listens.
    #[arg(long, value_name = "FD")]
    status_fd: Option<u32>,

    /// Write the pid of the server to this file.
    #[arg(long, value_name = "FILE")]
    pidfile: Option<PathBuf>,
}

impl PageServer {
    pub(super) fn run(&self, level: u8) -> Outcome {
        // Before anything gets a number that was not open.
        let inherited = inherited()?;
        self.dirs.start(level)?;
        limits::raise_open_files()?;
        if self.dirs.is_stream() {
            return Err(Usage("a page server needs a directory, not -D -".to_owned()).into());
        }
        let tls = self.security.tls();
        check_exposed(self.address, tls.is_some(), self.security.insecure)?;
        let tls = tls.map(|files| files.read()?.server()).transpose()?;
        // Names are seen from here, the background is elsewhere.
        let dir = std::fs::canonicalize(self.dirs.images_dir()).context("images directory")?;
        let files = self.serve.then(|| offer(&dir)).transpose()?;
        if files.is_none() {
            keep_others(&dir)?;
        }
        let listener = TcpListener::bind((self.address, self.port))
            .with_context(|| format!("listen on {} port {}", self.address, self.port))?;
        let address = listener.local_addr().context("getsockname")?;
        if self.daemon {
            let (go, say_go) = nix::unistd::pipe2(OFlag::O_CLOEXEC).context("pipe")?;
            if let Some(pid) = process::fork(0).context("fork")? {
                drop(go);
                self.tell(pid)?;
                nix::unistd::write(&say_go, &[0]).context("the server has ended")?;
                return print(&format!("{address}\n"));
            }
            drop(say_go);
            inherited.iter().for_each(|&fd| process::close_fd(fd));
            process::go_to_background(None).context("go to the background")?;
            // Nobody knows of a server that its starter could not tell of.
            if nix::unistd::read(&go, &mut [0]) != Ok(1) {
                process::exit(1);
            }
        } else {
            self.tell(nix::unistd::getpid().as_raw())?;
            print(&format!("{address}\n"))?;
        }
        if let Some(files) = files {
            match give(&listener, files, tls)? {}
        }
        let size = server::serve(&listener, &dir, tls.as_ref())?;
        log::info!("took {} of pages", bytes(size));
        Ok(ExitCode::SUCCESS)
    }

    /// Tells who waits for it that it listens, and which process that is.
    fn tell(&self, pid: Pid) -> Result<()> {
        if let Some(file) = self.pidfile.as_deref().map(|file| self.dirs.in_work_dir(file)) {
            std::fs::write(&file, pid.to_string()).with_context(|| file.display().to_string())?;
        }
        let Some(fd) = self.status_fd else { return Ok(()) };
        let tell = || OpenOptions::new().write(true).open(format!("/proc/self/fd/{fd}"))?.write_all(&[0]);
        tell().with_context(|| format!("--status-fd {fd}"))
    }
}

/// Pages of another dump, or round, are not replaced: their checkpoint would be lost.
fn keep_others(dir: &Path) -> Result<()> {
    let pages = dir.join(Kind::Pages.file_name());
    if pages.exists() {
        bail!(
            "{}: is there already\n  hint: each dump, and each round, takes a directory of its own; or remove it",
            pages.display()
        );
    }
    Ok(())
}

/// The descriptors that this was started with, but for the standard ones.
fn inherited() -> Result<Vec<i32>> {
    const OWN: &str = "/proc/self/fd";
    let mut open = Vec::new();
    for entry in std::fs::read_dir(OWN).context(OWN)? {
        open.extend(entry.context(OWN)?.file_name().to_str().and_then(|fd| fd.parse::<i32>().ok()));
    }
    // The one that the directory was read by is not there any more.
    open.retain(|&fd| fd > libc::STDERR_FILENO && std::fs::symlink_metadata(format!("{OWN}/{fd}")).is_ok());
    Ok(open)
}

#[cfg(test)]
mod tests {
    use crate::cli::Cli;
    use clap::Parser;
    use clap::error::ErrorKind;

    /// It has no stages.
    #[test]
    fn there_are_no_stats() {
        Cli::try_parse_from(["crr", "page-server", "-o", "log"]).unwrap();
        let error = Cli::try_parse_from(["crr", "page-server", "--stats", "s.json"]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::UnknownArgument);
    }
}
