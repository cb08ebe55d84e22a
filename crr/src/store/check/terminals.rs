//! Pseudo terminals: that there is one master to each, and that sessions are of the tree.

use super::{Check, ensure, inside};
use crate::resource::terminal::INPUT_MAX;
use images::Pid;
use images::file::{Files, Target};
use images::task::Tree;
use images::terminal::{Control, LineEnd, LivePty, PtyEnd, Settings};
use std::collections::BTreeSet;

/// NCCS of the kernel's `struct termios2`.
const CHARACTERS: usize = 19;
/// NR_UNIX98_PTY_MAX of include/linux/tty.h: the kernel has no more of them.
const NUMBERS: u32 = 1 << 20;

pub(super) fn check(files: &Files) -> Check {
    let mut numbers = BTreeSet::new();
    for (index, pty) in files.ptys.iter().enumerate() {
        let number = pty.number;
        ensure!(number < NUMBERS, "pty#{index}: has number {number}");
        ensure!(numbers.insert(number), "pty#{index}: has the number of another one, {number}");
        if let Some(live) = &pty.live {
            check_live(live).map_err(inside(format_args!("pty#{index}")))?;
        }
    }
    check_ends(files)
}

/// One master where there is one, and nobody at a slave without.
fn check_ends(files: &Files) -> Check {
    let mut masters = BTreeSet::new();
    for (index, description) in files.descriptions.iter().enumerate() {
        let Target::Pty { pty, end, .. } = description.target else { continue };
        let live = &files.ptys[pty as usize].live;
        match end {
            PtyEnd::Master => ensure!(masters.insert(pty), "pty#{pty} has two masters"),
            PtyEnd::Slave | PtyEnd::Controlling => {
                let open = live.as_ref().is_some_and(|live| !live.closed);
                ensure!(open, "description#{index} is open on a closed pty#{pty}");
                let controls = live.as_ref().is_some_and(|live| live.control.is_some());
                ensure!(end == PtyEnd::Slave || controls, "pty#{pty} controls no session");
            }
            PtyEnd::HungUp => {}
        }
    }
    for (pty, record) in (0..).zip(&files.ptys) {
        let has = if masters.contains(&pty) { "a" } else { "no" };
        ensure!(record.live.is_some() == masters.contains(&pty), "pty#{pty} has {has} master");
    }
    Ok(())
}

fn check_live(pty: &LivePty) -> Check {
    check_settings(&pty.settings)?;
    check_settings(&pty.locked_settings)?;
    let typed: usize = pty.input.iter().map(|line| line.bytes.len()).sum();
    ensure!(typed <= INPUT_MAX, "has {typed} bytes of input");
    ensure!(i32::try_from(pty.output.len()).is_ok(), "has {} bytes of output", pty.output.len());
    let (_, before) = pty.input.split_last().map_or((None, &[][..]), |(last, before)| (Some(last), before));
    ensure!(before.iter().all(|line| line.end != LineEnd::Open), "has an open line before others");
    let ended = pty.input.iter().all(|line| line.end != LineEnd::Own || !line.bytes.is_empty());
    ensure!(ended, "has an empty line that ends by itself");
    Ok(())
}

fn check_settings(settings: &Settings) -> Check {
    let count = settings.characters.len();
    ensure!(count == CHARACTERS, "has {count} control characters");
    Ok(())
}

/// A session has a living leader as long as it has a terminal, and one terminal only.
pub(super) fn check_control(files: &Files, tree: &Tree) -> Check {
    let mut sessions = BTreeSet::new();
    for (index, pty) in files.ptys.iter().enumerate() {
        let Some(control) = pty.live.as_ref().and_then(|live| live.control.as_ref()) else { continue };
        ensure!(sessions.insert(control.sid), "pty#{index}: session {} has two terminals", control.sid);
        check_session(control, tree).map_err(inside(format_args!("pty#{index}")))?;
    }
    Ok(())
}

fn check_session(control: &Control, tree: &Tree) -> Check {
    let sid = control.sid;
    let leads = tree.tasks.iter().any(|task| task.pid == sid && task.sid == sid);
    ensure!(leads && !control.without.contains(&sid), "controls session {sid}, which no task leads");
    let tasks = tree.tasks.iter().map(|task| (task.pid, task.pgid, task.sid));
    let zombies = tree.zombies.iter().map(|zombie| (zombie.pid, zombie.pgid, zombie.sid));
    let members: Vec<(Pid, Pid)> =
        tasks.chain(zombies).filter(|member| member.2 == sid).map(|(pid, pgid, _)| (pid, pgid)).collect();
    let foreground = control.foreground;
    let there = members.iter().any(|member| member.1 == foreground);
    ensure!(there, "has process group {foreground} in the foreground, which is not of session {sid}");
    for pid in &control.without {
        ensure!(members.iter().any(|member| member.0 == *pid), "task {pid} is not of session {sid}");
    }
    Ok(())
}
