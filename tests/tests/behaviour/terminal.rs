//! `--shell-job`: a job of an interactive shell, dumped from outside and restored from that shell's prompt.

use nix::pty::openpty;
use nix::unistd::{Pid, read, write};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use tests::abi::Abi;
use tests::isolate::isolated;
use tests::{binaries, command, here, require_ia32, require_root, wait};

/// An interactive shell with a terminal of its own, whose keyboard and screen are ours.
struct Shell {
    child: Child,
    keyboard: OwnedFd,
    screen: std::sync::mpsc::Receiver<Vec<u8>>,
    seen: String,
}

impl Shell {
    fn start() -> tests::Result<Self> {
        let pty = openpty(None, None)?;
        let side = || -> tests::Result<Stdio> { Ok(Stdio::from(pty.slave.try_clone()?)) };
        let child = Command::new("setsid")
            .args(["--ctty", "bash", "--norc", "--noprofile", "-i"])
            .env("PS1", "prompt> ")
            .stdin(side()?)
            .stdout(side()?)
            .stderr(side()?)
            .spawn()?;
        let master = pty.master.try_clone()?;
        let (send, screen) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            let mut buffer = [0; 1024];
            while let Ok(got) = read(&master, &mut buffer) {
                if got == 0 || send.send(buffer[..got].to_vec()).is_err() {
                    break;
                }
            }
        });
        let mut shell = Self { child, keyboard: pty.master, screen, seen: String::new() };
        shell.shows("prompt> ")?;
        Ok(shell)
    }

    fn types(&self, keys: &str) -> tests::Result {
        write(&self.keyboard, keys.as_bytes())?;
        Ok(())
    }

    /// Waits until a text comes that was not looked for yet.
    fn shows(&mut self, text: &str) -> tests::Result {
        wait::until(wait::STEP, &format!("the terminal shows {text:?}"), || {
            while let Ok(bytes) = self.screen.try_recv() {
                self.seen.push_str(&String::from_utf8_lossy(&bytes));
            }
            let found = self.seen.find(text);
            if let Some(at) = found {
                self.seen.drain(..at + text.len());
            }
            Ok(found)
        })?;
        Ok(())
    }
}

impl Drop for Shell {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The foreground job of a terminal.
fn job(shell: &Shell) -> tests::Result<Pid> {
    Ok(nix::unistd::tcgetpgrp(&shell.keyboard)?)
}

fn round(dir: &Path, abi: Abi) -> tests::Result {
    let images = dir.join(abi.name());
    std::fs::create_dir(&images)?;
    let images = images.display().to_string();
    let program = binaries::workload("terminal", abi)?.display().to_string();
    let crr = binaries::crr()?.display().to_string();
    let mut shell = Shell::start()?;
    shell.types(&format!("{program} echo\n"))?;
    shell.shows("reading")?;
    shell.types("one\n")?;
    shell.shows("answer one")?;
    let pid = job(&shell)?.to_string();
    // Without the option, everything borrowed from the shell is named.
    let refused = command::crr(dir, &["dump", "-t", &pid, "-D", &images])?.code(1)?;
    refused.says("session")?;
    refused.says("controlling terminal")?;
    refused.says("--shell-job")?;
    command::crr(dir, &["dump", "-t", &pid, "-D", &images, "--shell-job"])?.success()?;
    shell.shows("Killed")?;
    shell.shows("prompt> ")?;
    // Restored without the option: refused, and back at the prompt.
    shell.types(&format!("{crr} restore -D {images}; echo status $?\n"))?;
    shell.shows("--shell-job")?;
    shell.shows("status 1")?;
    shell.types(&format!("{crr} restore -D {images} --shell-job\n"))?;
    wait::until(wait::STEP, "the job is back", || Ok((job(&shell)?.to_string() == pid).then_some(())))?;
    shell.types("two\n")?;
    shell.shows("answer two")?;
    // Stopped by a key and continued by the shell, as any job.
    shell.types("\u{1a}")?;
    shell.shows("Stopped")?;
    shell.types("fg\n")?;
    wait::until(wait::STEP, "the job is back", || Ok((job(&shell)?.to_string() == pid).then_some(())))?;
    shell.types("three\n")?;
    shell.shows("answer three")?;
    shell.types("end\n")?;
    shell.shows("PASS")?;
    shell.shows("prompt> ")?;
    shell.types("echo status $?\n")?;
    shell.shows("status 0")?;
    shell.types("exit\n")?;
    Ok(())
}

#[test]
fn shell_job() {
    require_root!();
    require_ia32!();
    isolated(&here!(), |dir| Abi::ALL.into_iter().try_for_each(|abi| round(dir, abi)));
}
