//! Pseudo terminals, made again under their numbers with all that is open on them.
//!
//! The kernel gives a new one the lowest number that is free in its devpts. So it is asked until the number comes, and those
//! with lower numbers, which came before, are closed when all are there.
//!
//! Nobody's session is controlled by one yet: its leader takes it after setsid(2), see `restore::births`.

use super::flight::{self, InFlight, Obstacle};
use crate::fault::{self, Point};
use crate::resource::file::reopen::{self, Ia32};
use crate::sys::{process, tty};
use anyhow::{Context, Result, anyhow, bail};
use images::file::{Description, Files, Target};
use images::terminal::{LivePty, Pty, PtyEnd};
use images::{PathId, Pid};
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::stat::Mode;
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{Gid, Uid};
use std::collections::BTreeMap;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

/// Where a pseudo terminal comes from whose master nobody has any more.
const MULTIPLEXER: &str = "/dev/ptmx";

/// What was made.
#[derive(Debug, Default)]
pub(crate) struct Ptys {
    /// By description.
    opened: BTreeMap<usize, OwnedFd>,
    /// A slave of each terminal that controls a session, by that session.
    pub(crate) controlling: BTreeMap<Pid, OwnedFd>,
}

impl Ptys {
    /// A description, once.
    ///
    /// # Errors
    /// If it was not made.
    pub(crate) fn open(&mut self, description: usize) -> Result<OwnedFd> {
        self.opened.remove(&description).with_context(|| format!("description#{description}: not made"))
    }
}

/// What is open on a terminal: index and record of each description.
type Users<'a> = Vec<(usize, &'a Description, PtyEnd, PathId)>;

/// Makes all of them.
///
/// # Errors
/// If a number is taken, or one does not take its state.
pub(crate) fn create_all(files: &Files, ia32: &mut Ia32) -> Result<Ptys> {
    let mut made = Ptys::default();
    let mut users: Vec<Users<'_>> = files.ptys.iter().map(|_| Vec::new()).collect();
    for (index, description) in files.descriptions.iter().enumerate() {
        if let Target::Pty { pty, end, path } = description.target {
            users[pty as usize].push((index, description, end, path));
        }
    }
    let mut all: Vec<(&Pty, Users<'_>)> = files.ptys.iter().zip(users).collect();
    all.sort_by_key(|(pty, _)| pty.number);
    let mut lower = Vec::new();
    let mut masters = Vec::with_capacity(all.len());
    for (pty, users) in &all {
        let master = users.iter().find(|user| user.2 == PtyEnd::Master);
        let open = || match master {
            Some(&(_, description, _, path)) => {
                reopen::open(&files.paths[path.0 as usize], description, &mut *ia32)
            }
            None => open_multiplexer(),
        };
        masters.push(number(pty.number, open, &mut lower)?);
    }
    drop(lower);
    for ((pty, users), master) in all.into_iter().zip(masters) {
        let making = Making { files, users: &users, master, made: &mut made, ia32: &mut *ia32 };
        (fault::point(Point::MakeTerminal).map_err(Into::into))
            .and_then(|()| making.make(pty.live.as_ref()))
            .with_context(|| format!("/dev/pts/{}", pty.number))?;
    }
    Ok(made)
}

/// What stands in the way of a restore: object, reason, way out.
#[must_use]
pub(crate) fn obstacles(ptys: &[Pty]) -> Vec<(String, String, &'static str)> {
    const HINT: &str = "close that terminal, or restore where /dev/pts is a new instance of devpts";
    let mut numbers: Vec<u32> = ptys.iter().map(|pty| pty.number).collect();
    numbers.sort_unstable();
    let (mut obstacles, mut lower) = (Vec::new(), Vec::new());
    for wanted in numbers {
        match number(wanted, open_multiplexer, &mut lower) {
            Ok(master) => lower.push(master),
            Err(error) => obstacles.push((format!("/dev/pts/{wanted}"), format!("{error:#}"), HINT)),
        }
    }
    obstacles
}

fn open_multiplexer() -> Result<OwnedFd> {
    let flags = OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_CLOEXEC;
    nix::fcntl::open(MULTIPLEXER, flags, Mode::empty()).context(MULTIPLEXER)
}

/// Opens masters until one has the number. Those that come before are kept, so that they do not come again.
fn number(
    wanted: u32,
    mut open: impl FnMut() -> Result<OwnedFd>,
    lower: &mut Vec<OwnedFd>,
) -> Result<OwnedFd> {
    loop {
        let master = open()?;
        let number = tty::number(master.as_fd()).context("TIOCGPTN")?;
        if number == wanted {
            return Ok(master);
        }
        lower.push(master);
        if number > wanted {
            bail!("the number is taken by another terminal");
        }
    }
}

/// Opens the slave of a master, without a word to anybody.
pub(super) fn open_slave(master: BorrowedFd<'_>, locked: bool) -> Result<OwnedFd> {
    let flags = OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
    if locked {
        tty::set_flag(master, tty::Flag::Locked, false).context("TIOCSPTLCK")?;
    }
    let slave = tty::peer(master, flags.bits()).context("TIOCGPTPEER");
    if locked {
        tty::set_flag(master, tty::Flag::Locked, true).context("TIOCSPTLCK")?;
    }
    slave
}

/// One that is being made.
struct Making<'a> {
    files: &'a Files,
    users: &'a Users<'a>,
    master: OwnedFd,
    made: &'a mut Ptys,
    ia32: &'a mut Ia32,
}

impl Making<'_> {
    fn make(mut self, live: Option<&LivePty>) -> Result<()> {
        tty::set_flag(self.master.as_fd(), tty::Flag::Locked, false).context("TIOCSPTLCK")?;
        self.open_all(PtyEnd::HungUp)?;
        // Without its master, all who have the slave open are hung up.
        let Some(live) = live else { return Ok(()) };
        self.hang_up()?;
        let uses = |end| self.users.iter().any(|user| user.2 == end);
        let was_open =
            live.closed || live.control.is_some() || uses(PtyEnd::Slave) || uses(PtyEnd::Controlling);
        // Opening it can be noticed at the master, if that was never done.
        let slave = if was_open { Some(open_slave(self.master.as_fd(), false)?) } else { None };
        self.open_all(PtyEnd::Slave)?;
        if let Some(slave) = &slave {
            self.open_controlling(slave)?;
        }
        set_up(self.master.as_fd(), slave.as_ref().map(AsFd::as_fd), live)?;
        if let (Some(control), Some(slave)) = (&live.control, slave) {
            self.made.controlling.insert(control.sid, slave);
        }
        if let Some(user) = self.users.iter().find(|user| user.2 == PtyEnd::Master) {
            self.made.opened.insert(user.0, self.master);
        }
        Ok(())
    }

    /// Opens all descriptions of one kind by name.
    fn open_all(&mut self, end: PtyEnd) -> Result<()> {
        for &(index, description, _, path) in self.users.iter().filter(|user| user.2 == end) {
            let opened = reopen::open(&self.files.paths[path.0 as usize], description, self.ia32)?;
            self.made.opened.insert(index, opened);
        }
        Ok(())
    }

    /// Hangs up those who are to be.
    fn hang_up(&self) -> Result<()> {
        let hung_up = self.users.iter().find(|user| user.2 == PtyEnd::HungUp);
        let Some(slave) = hung_up.and_then(|user| self.made.opened.get(&user.0)) else { return Ok(()) };
        tty::hang_up(slave.as_fd()).context("TIOCVHANGUP")
    }

    /// Opens `/dev/tty` as a session does that the terminal controls.
    fn open_controlling(&mut self, slave: &OwnedFd) -> Result<()> {
        for &(index, description, _, path) in self.users.iter().filter(|user| user.2 == PtyEnd::Controlling) {
            // What the other process opens takes the place of this one.
            let place = slave.try_clone().context("duplicate a descriptor")?;
            let Some(child) = process::fork(process::CLONE_FILES).context("fork")? else {
                let path = &self.files.paths[path.0 as usize];
                let opened = in_own_session(slave, || reopen::open(path, description, self.ia32));
                let placed = opened.and_then(|opened| {
                    process::move_fd(opened.as_raw_fd(), place.as_raw_fd())?;
                    drop(opened);
                    Ok(())
                });
                let errno =
                    placed.err().map(|error| error.downcast::<Errno>().unwrap_or(Errno::UnknownErrno));
                process::exit(errno.map_or(0, |errno| errno as i32))
            };
            match waitpid(nix::unistd::Pid::from_raw(child), None).context("wait")? {
                WaitStatus::Exited(_, 0) => {}
                WaitStatus::Exited(_, errno) => {
                    return Err(Errno::from_raw(errno)).context("open /dev/tty");
                }
                status => bail!("open /dev/tty: {status:?}"),
            }
            self.made.opened.insert(index, place);
        }
        Ok(())
    }
}

/// Does something in a process that leads a session with this controlling terminal for that time. All signals are
/// blocked: the kernel sends SIGHUP and SIGCONT to who lets go.
fn in_own_session<T>(slave: &OwnedFd, act: impl FnOnce() -> Result<T>) -> Result<T> {
    nix::unistd::setsid()?;
    tty::take_control(slave.as_fd())?;
    let done = act();
    // Its end as a leader would hang up the terminal (disassociate_ctty() of drivers/tty/tty_jobctrl.c).
    tty::let_go(slave.as_fd())?;
    done
}

/// Everything that the two ends have in common. What would be in the way of the rest comes last.
fn set_up(master: BorrowedFd<'_>, slave: Option<BorrowedFd<'_>>, live: &LivePty) -> Result<()> {
    tty::set_window(master, live.window).context("TIOCSWINSZ")?;
    let found = InFlight { input: live.input.clone(), output: live.output.clone(), flow: live.flow };
    flight::fill(master, slave, &live.settings, &found).map_err(|obstacle| match obstacle {
        Obstacle::Failed(errno) => anyhow!(errno).context("put back what was on its way"),
        obstacle => anyhow!("put back what was on its way: {obstacle:?}"),
    })?;
    tty::set_settings(master, &live.settings).context("TCSETS2")?;
    if !flight::is_unlocked(&live.locked_settings) {
        tty::lock_settings(master, &live.locked_settings).context("TIOCSLCKTRMIOS")?;
    }
    set_owner(master, live)?;
    if live.packet {
        tty::set_flag(master, tty::Flag::Packet, true).context("TIOCPKT")?;
    }
    if let Some(slave) = slave.filter(|_| live.exclusive) {
        tty::set_flag(slave, tty::Flag::Exclusive, true).context("TIOCEXCL")?;
    }
    if live.master_exclusive {
        tty::set_flag(master, tty::Flag::Exclusive, true).context("TIOCEXCL")?;
    }
    if live.locked {
        tty::set_flag(master, tty::Flag::Locked, true).context("TIOCSPTLCK")?;
    }
    Ok(())
}

/// Owner and mode of the slave's file.
fn set_owner(master: BorrowedFd<'_>, live: &LivePty) -> Result<()> {
    let file = tty::peer(master, (OFlag::O_PATH | OFlag::O_CLOEXEC).bits()).context("TIOCGPTPEER")?;
    let node = format!("/proc/self/fd/{}", file.as_raw_fd());
    let owner = (Uid::from_raw(live.uid), Gid::from_raw(live.gid));
    nix::unistd::chown(node.as_str(), Some(owner.0), Some(owner.1)).context("set its owner")?;
    let mode = Mode::from_bits_truncate(live.mode & 0o7777);
    nix::sys::stat::fchmodat(
        nix::fcntl::AT_FDCWD,
        node.as_str(),
        mode,
        nix::sys::stat::FchmodatFlags::FollowSymlink,
    )
    .context("set its mode")
}
