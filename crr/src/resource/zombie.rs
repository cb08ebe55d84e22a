//! Zombies: tasks that have ended and whose parents have not waited for them.
//!
//! All that is left of one is what its parent will see, and where it stands: it may lead a session or a group.

use super::Refuse;
use crate::proc::stat::Stat;
use crate::proc::status::Status;
use crate::sys::process;
use images::task::{End, Zombie};
use nix::errno::Errno;
use nix::sys::signal::Signal;
use nix::unistd::{Gid, Uid};
use std::ffi::CString;

/// Signals that end no task by default.
const HARMLESS: [Signal; 8] = [
    Signal::SIGCHLD,
    Signal::SIGCONT,
    Signal::SIGURG,
    Signal::SIGWINCH,
    Signal::SIGSTOP,
    Signal::SIGTSTP,
    Signal::SIGTTIN,
    Signal::SIGTTOU,
];

/// The record. `pid` is not in [`Stat`].
pub(crate) fn dump(
    pid: images::Pid,
    stat: &Stat,
    status: &Status,
    refuse: &mut Refuse<'_>,
) -> Option<Zombie> {
    // setfsuid(2) takes only one of the others once the privilege is gone.
    if !status.uid[..3].contains(&status.uid[3]) {
        refuse.because("zombie", "its file-system user id is none of its others");
    }
    let end = match end(stat.exit_code) {
        Ok(end) => end,
        Err(reason) => {
            refuse.with_hint("zombie", reason, "have its parent wait for it");
            return None;
        }
    };
    Some(Zombie {
        pid,
        ppid: stat.ppid,
        pgid: stat.pgid,
        sid: stat.sid,
        comm: stat.comm.clone(),
        end,
        uid: status.uid,
        gid: status.gid,
        groups: status.groups.clone(),
    })
}

/// Refuses a zombie that would have to be cloned (`shared::plan::family`): it does not tell its end by SIGCHLD, or it is
/// stranded below or in the group of a task that has to be.
pub(crate) fn refuse_odd(stat: &Stat, stranded: bool, refuse: &mut Refuse<'_>) {
    const HINT: &str = "have its parent wait for it";
    if stat.exit_signal != libc::SIGCHLD {
        refuse.with_hint("zombie", format!("its exit signal is {}, not SIGCHLD", stat.exit_signal), HINT);
    }
    if stranded {
        let reason =
            "its parent or its group's leader shares with others, or has another exit signal than SIGCHLD";
        refuse.with_hint("zombie", reason, HINT);
    }
}

/// A wait status as it can be reached again.
pub(crate) fn end(status: u32) -> Result<End, &'static str> {
    const CORE: u32 = 0x80;
    let (code, signal) = ((status >> 8) & 0xff, status & 0x7f);
    let number = |value: u32| u8::try_from(value).unwrap_or(0);
    if status & CORE != 0 {
        return Err("it dumped core, and no task can end like that again without doing so");
    }
    match signal {
        0 => Ok(End::Exit(number(code))),
        _ if is_deadly(number(signal)) => Ok(End::Killed(number(signal))),
        _ => Err("it ended by a signal that ends no task"),
    }
}

/// Whether a signal ends a task that does nothing about it.
#[must_use]
pub(crate) fn is_deadly(signal: u8) -> bool {
    (1..=64).contains(&signal) && HARMLESS.iter().all(|&harmless| harmless as i32 != i32::from(signal))
}

/// Makes the calling process what its record says was there of it at last.
///
/// # Errors
/// EPERM where a user or group may not be taken.
pub(crate) fn take_identity(zombie: &Zombie) -> nix::Result<()> {
    let groups: Vec<Gid> = zombie.groups.iter().map(|&gid| Gid::from_raw(gid)).collect();
    let (uid, gid) = (zombie.uid.map(Uid::from_raw), zombie.gid.map(Gid::from_raw));
    let name = CString::new(zombie.comm.as_slice()).map_err(|_| Errno::EINVAL)?;
    nix::sys::prctl::set_name(&name)?;
    nix::unistd::setgroups(&groups)?;
    nix::unistd::setresgid(gid[0], gid[1], gid[2])?;
    nix::unistd::setfsgid(gid[3]);
    nix::unistd::setresuid(uid[0], uid[1], uid[2])?;
    nix::unistd::setfsuid(uid[3]);
    Ok(())
}

/// Ends the calling process, all of whose signal actions are the default, as its record says.
pub(crate) fn die(end: End) -> Errno {
    match end {
        End::Exit(code) => process::exit(code.into()),
        End::Killed(signal) => process::be_killed(signal.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ends_are_told_apart() {
        assert_eq!(end(0), Ok(End::Exit(0)));
        assert_eq!(end(0xff00), Ok(End::Exit(255)));
        assert_eq!(end(9), Ok(End::Killed(9)));
        assert_eq!(end(64), Ok(End::Killed(64)));
        assert!(end(11 | 0x80).is_err());
        assert!(end(17).is_err() && end(0x7f).is_err());
    }
}
