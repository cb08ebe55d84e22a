//! Pseudo terminals of which the tree has both ends: which they are, their settings, their sessions.
//!
//! What is on its way through them is for [`flight`], the way back for [`recreate`].

mod flight;
pub(crate) mod recreate;

use super::Refuse;
use super::device;
use super::external::Key;
use super::path::{CLOSE, Paths};
use super::pipe::Object;
use super::tree::Standing;
use super::unix_socket::Holder;
use super::view::Use;
use crate::dump::guard::Unguarded;
use crate::refusal::Refusals;
use crate::sys::tty;
use anyhow::{Context, Result, bail};
use flight::{Ends, InFlight, Obstacle};
use images::Pid;
use images::file::Target;
use images::terminal::{Control, Flow, LivePty, Pty, PtyEnd};
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::stat::{FileStat, fstat, makedev, stat};
use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;

/// Bytes of input that a terminal holds, the ends of lines not counted.
pub(crate) const INPUT_MAX: usize = flight::BUFFER_SIZE;

/// UNIX98_PTY_SLAVE_MAJOR of include/uapi/linux/major.h: the minor number is that of the pseudo terminal.
const SLAVE: u64 = 136;
/// `/dev/tty` and `/dev/ptmx`: Documentation/admin-guide/devices.txt.
const CONTROLLING: (u64, u64) = (5, 0);
const MULTIPLEXER: (u64, u64) = (5, 2);

/// Ways out.
const SHELL_JOB: &str = "use --shell-job to restore it on the terminal of crr restore";
const OTHER_END: &str = "dump a tree that holds both ends";
const TO_DEFAULT: &str = "have the program set it back to the default before the dump";
const WAIT: &str = "dump again when the program has read it";

/// The number in the name of a slave's file, wherever devpts is mounted.
pub(crate) fn number_in(link: &[u8]) -> Option<u32> {
    let at = link.windows(5).rposition(|part| part == b"/pts/")?;
    crate::proc::decimal(&link[at + 5..])
}

/// A device number in the kernel's 32-bit form, as /proc shows it: minor bits 0-7, major bits 8-19, more minor bits above.
fn encoded(rdev: u64) -> u32 {
    let (major, minor) = device::number(rdev);
    u32::try_from((minor & 0xff) | major << 8 | (minor & 0xfff00) << 12).unwrap_or(0)
}

/// Major and minor number of one in that form.
fn decoded(device: u32) -> (u64, u32) {
    ((device >> 8 & 0xfff).into(), device & 0xff | device >> 12 & 0xf_ff00)
}

/// The number of the pseudo terminal with this device number.
fn number_of(device: u32) -> Option<u32> {
    let (major, number) = decoded(device);
    (major == SLAVE).then_some(number)
}

/// A descriptor that is to be looked at.
#[derive(Debug)]
pub(crate) struct Open<'a> {
    pub(crate) copy: OwnedFd,
    pub(crate) link: &'a [u8],
    pub(crate) stat: &'a FileStat,
    pub(crate) holder: Holder,
}

/// What a descriptor turned out to be.
#[derive(Debug)]
pub(crate) enum Kind {
    /// The terminal of the shell job.
    ShellJob,
    /// An end of a pseudo terminal.
    Pty(Target),
    /// One that has been refused.
    Refused,
    /// Some other terminal, as [`device::terminal`] calls it.
    Other(&'static str),
}

/// A pseudo terminal with descriptors of ours on it.
#[derive(Debug)]
struct Found {
    number: u32,
    /// st_dev of its devpts, as its slave shows it.
    dev: Option<u64>,
    master: Option<OwnedFd>,
    slave: Option<OwnedFd>,
    /// Who leads to a slave that is not hung up.
    slave_holders: Vec<Holder>,
    first: Holder,
    live: Option<LivePty>,
}

/// The pseudo terminals of a tree, being collected.
#[derive(Debug, Default)]
pub(crate) struct Terminals {
    found: Vec<Found>,
    by_number: BTreeMap<u32, usize>,
}

impl Terminals {
    /// Notes a descriptor of a terminal or master. `shell_job` is the device number of that one's terminal.
    pub(crate) fn add(
        &mut self,
        open: Open<'_>,
        shell_job: Option<u32>,
        paths: &mut Paths,
        refuse: &mut Refuse<'_>,
    ) -> Result<Kind> {
        let Open { copy, link, stat, holder } = open;
        let device = device::number(stat.st_rdev);
        let (number, end) = match device {
            MULTIPLEXER => (tty::number(copy.as_fd()).context("TIOCGPTN")?, PtyEnd::Master),
            CONTROLLING => match tty::device(copy.as_fd()) {
                Ok(tty) if shell_job == Some(tty) => return Ok(Kind::ShellJob),
                Ok(tty) => match number_of(tty) {
                    Some(number) => (number, PtyEnd::Controlling),
                    None => {
                        let (major, minor) = decoded(tty);
                        return Ok(Kind::Other(device::terminal((major, minor.into()))));
                    }
                },
                Err(Errno::EIO) => {
                    refuse.with_hint(
                        holder.object,
                        "its terminal is hung up, which hides which one it was",
                        CLOSE,
                    );
                    return Ok(Kind::Refused);
                }
                Err(errno) => return Err(errno).context("TIOCGDEV"),
            },
            (SLAVE, number) => {
                if shell_job == Some(encoded(stat.st_rdev)) {
                    return Ok(Kind::ShellJob);
                }
                let number = u32::try_from(number).context("number of a pseudo terminal")?;
                (number, if is_hung_up(copy.as_fd())? { PtyEnd::HungUp } else { PtyEnd::Slave })
            }
            _ if shell_job == Some(encoded(stat.st_rdev)) => return Ok(Kind::ShellJob),
            _ => return Ok(Kind::Other(device::terminal(device))),
        };
        let path = match end {
            PtyEnd::HungUp => Ok(paths.terminal(link.strip_suffix(b" (deleted)").unwrap_or(link), stat)),
            // A device that is gone is not made again, whatever it was.
            _ => paths.resolve(link, stat, Use::Open(0), || Err(std::io::ErrorKind::Unsupported.into())),
        };
        let path = match path {
            Ok(path) => path,
            Err(lost) => {
                refuse.with_hint(holder.object, lost.to_string(), CLOSE);
                return Ok(Kind::Refused);
            }
        };
        let pty = self.note(number, end, copy, stat, holder);
        Ok(Kind::Pty(Target::Pty { pty, end, path }))
    }

    fn note(&mut self, number: u32, end: PtyEnd, copy: OwnedFd, stat: &FileStat, holder: Holder) -> u32 {
        let index = *self.by_number.entry(number).or_insert_with(|| {
            self.found.push(Found {
                number,
                dev: None,
                master: None,
                slave: None,
                slave_holders: Vec::new(),
                first: holder.clone(),
                live: None,
            });
            self.found.len() - 1
        });
        let found = &mut self.found[index];
        match end {
            PtyEnd::Master => found.master = Some(copy),
            PtyEnd::Slave => {
                found.dev = Some(stat.st_dev);
                found.slave_holders.push(holder);
                found.slave = Some(copy);
            }
            PtyEnd::Controlling => {
                found.slave_holders.push(holder);
                found.slave.get_or_insert(copy);
            }
            PtyEnd::HungUp => found.dev = Some(stat.st_dev),
        }
        u32::try_from(index).unwrap_or(u32::MAX)
    }

    /// Finds out about settings and sessions, once all descriptors are known. The device numbers of those that are complete.
    ///
    /// # Errors
    /// [`Unguarded`] if there are any and this process is not `guarded`.
    pub(crate) fn relate(
        &mut self,
        tasks: &[Standing],
        shell_job: bool,
        guarded: bool,
        refusals: &mut Refusals,
    ) -> Result<Vec<u32>> {
        if !guarded && self.found.iter().any(|found| found.master.is_some()) {
            bail!(Unguarded);
        }
        let mut complete = Vec::new();
        for found in &mut self.found {
            let Some(master) = &found.master else {
                refuse_slaves(found, shell_job, refusals);
                continue;
            };
            let device = encoded(makedev(SLAVE, found.number.into()));
            complete.push(device);
            let name = format!("/dev/pts/{}", found.number);
            let refuse = &mut Refuse::new(refusals, found.first.pid, &found.first.name);
            let has_slave = found.slave.is_some();
            let Some(node) = look_up(master.as_fd(), found.dev, &name, refuse)? else { continue };
            found.dev = Some(node.st_dev);
            let mut live = look(master.as_fd(), found.slave.as_ref().map(AsFd::as_fd), &node)
                .with_context(|| name.clone())?;
            live.closed = !has_slave && is_closed(master.as_fd())?;
            refuse_odd(master.as_fd(), &live, &name, refuse)?;
            live.control = control(master.as_fd(), device, tasks, &name, refuse)?;
            found.live = Some(live);
        }
        Ok(complete)
    }

    /// Those that live, with their masters.
    pub(crate) fn living(&self) -> impl Iterator<Item = (Object, BorrowedFd<'_>)> {
        let living = self.found.iter().filter(|found| found.live.is_some());
        living
            .filter_map(|found| Some((Object::Pty(found.dev?, found.number), found.master.as_ref()?.as_fd())))
    }

    /// Looks what is on its way through them. Nobody but the tree, which stands still, may have them open, and this process is
    /// to be one that nobody kills meanwhile (`dump::guard`).
    pub(crate) fn look_into(&mut self, refusals: &mut Refusals) -> Result<()> {
        let mut masters = self.found.iter().filter_map(|found| found.master.as_ref());
        if masters.next().is_some_and(|master| !flight::can_insert(master.as_fd())) {
            for found in self.found.iter().filter(|found| found.live.is_some()) {
                let refuse = &mut Refuse::new(refusals, found.first.pid, &found.first.name);
                let reason = "crr could not put back what it finds on its way through it (TIOCSTI)";
                let hint = "run crr as root, or set the sysctl dev.tty.legacy_tiocsti to 1";
                refuse.with_hint(format!("/dev/pts/{}", found.number), reason, hint);
            }
            return Ok(());
        }
        let mut slaves = Vec::with_capacity(self.found.len());
        for found in &self.found {
            // Where somebody has had it open, nobody notices: it is closed again, and blocks nobody.
            slaves.push(match (&found.master, &found.live) {
                (Some(master), Some(live)) if live.closed || found.slave.is_some() => {
                    Some(recreate::open_slave(master.as_fd(), live.locked)?)
                }
                _ => None,
            });
        }
        for (found, slave) in self.found.iter_mut().zip(slaves) {
            let (Some(master), Some(live)) = (&found.master, &mut found.live) else { continue };
            let ends = Ends {
                master: master.as_fd(),
                slave: slave.as_ref().map(AsFd::as_fd),
                settings: &live.settings,
                locked_settings: &live.locked_settings,
                packet: live.packet,
            };
            match flight::look(ends) {
                Ok(InFlight { input, output, flow }) => {
                    (live.input, live.output, live.flow) = (input, output, flow);
                }
                Err(obstacle) => {
                    let refuse = &mut Refuse::new(refusals, found.first.pid, &found.first.name);
                    refuse_obstacle(obstacle, format!("/dev/pts/{}", found.number), refuse)?;
                }
            }
        }
        Ok(())
    }

    /// All records.
    pub(crate) fn into_records(self) -> Vec<Pty> {
        self.found.into_iter().map(|found| Pty { number: found.number, live: found.live }).collect()
    }
}

/// Whether a slave is hung up: it answers nothing then (hung_up_tty_fops, drivers/tty/tty_io.c).
fn is_hung_up(slave: BorrowedFd<'_>) -> Result<bool> {
    match tty::settings(slave) {
        Err(Errno::EIO) => Ok(true),
        settings => settings.map(|_| false).context("TCGETS2"),
    }
}

/// Whether a slave that nobody has open was open before: TTY_OTHER_CLOSED, which n_tty_poll() shows.
fn is_closed(master: BorrowedFd<'_>) -> Result<bool> {
    let mut asked = [PollFd::new(master, PollFlags::empty())];
    poll(&mut asked, PollTimeout::ZERO).context("poll")?;
    Ok(asked[0].revents().is_some_and(|events| events.contains(PollFlags::POLLHUP)))
}

fn refuse_slaves(found: &mut Found, shell_job: bool, refusals: &mut Refusals) {
    let stat = found.slave.as_ref().and_then(|slave| fstat(slave).ok());
    let key = stat.and_then(|stat| Key::all_of(b"", &stat, 0).pop());
    let outside = key.map(|key| format!("leave it outside with --external {key}"));
    for Holder { pid, name, object } in found.slave_holders.drain(..) {
        let mut refuse = Refuse::new(refusals, pid, &name);
        if shell_job {
            let hint = outside.as_deref().unwrap_or(CLOSE);
            refuse.with_hint(object, "a terminal other than that of the shell job", hint);
        } else {
            let hint =
                outside.iter().fold(SHELL_JOB.to_owned(), |hint, outside| format!("{hint}, or {outside}"));
            refuse.with_hint(object, "a terminal", &hint);
        }
    }
}

/// The file of the slave, if crr sees it under its name.
fn look_up(
    master: BorrowedFd<'_>,
    dev: Option<u64>,
    name: &str,
    refuse: &mut Refuse<'_>,
) -> Result<Option<FileStat>> {
    let node = tty::peer(master, (OFlag::O_PATH | OFlag::O_CLOEXEC).bits()).context("TIOCGPTPEER")?;
    let link =
        nix::fcntl::readlink(format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&node)).as_str())?;
    let node = fstat(&node).context("fstat")?;
    let there =
        stat(link.as_os_str()).is_ok_and(|there| (there.st_dev, there.st_ino) == (node.st_dev, node.st_ino));
    if !there || dev.is_some_and(|dev| dev != node.st_dev) || number_in(link.as_bytes()).is_none() {
        refuse.because(name, "belongs to a devpts that crr does not see under this name");
        return Ok(None);
    }
    Ok(Some(node))
}

/// Everything that a stopped tree leaves unchanged.
fn look(master: BorrowedFd<'_>, slave: Option<BorrowedFd<'_>>, node: &FileStat) -> Result<LivePty> {
    let flag = |flag| tty::flag(master, flag);
    Ok(LivePty {
        settings: tty::settings(master).context("TCGETS2")?,
        locked_settings: tty::locked_settings(master).context("TIOCGLCKTRMIOS")?,
        window: tty::window(master).context("TIOCGWINSZ")?,
        locked: flag(tty::Flag::Locked).context("TIOCGPTLCK")?,
        packet: flag(tty::Flag::Packet).context("TIOCGPKT")?,
        exclusive: match slave {
            Some(slave) => tty::flag(slave, tty::Flag::Exclusive).context("TIOCGEXCL")?,
            None => false,
        },
        master_exclusive: flag(tty::Flag::Exclusive).context("TIOCGEXCL")?,
        closed: false,
        flow: Flow::Runs,
        mode: node.st_mode,
        uid: node.st_uid,
        gid: node.st_gid,
        control: None,
        input: Vec::new(),
        output: Vec::new(),
    })
}

/// Refuses what is not brought back.
fn refuse_odd(master: BorrowedFd<'_>, live: &LivePty, name: &str, refuse: &mut Refuse<'_>) -> Result<()> {
    let discipline = tty::discipline(master).context("TIOCGETD")?;
    if discipline != 0 {
        let reason = format!("has line discipline {discipline}; only N_TTY (0) is supported");
        refuse.with_hint(name, reason, TO_DEFAULT);
    }
    if flight::is_external(&live.settings) {
        refuse.with_hint(name, "lines are edited elsewhere (EXTPROC)", TO_DEFAULT);
    }
    Ok(())
}

/// The session that a terminal controls, with what of it can be made again.
fn control(
    master: BorrowedFd<'_>,
    device: u32,
    tasks: &[Standing],
    name: &str,
    refuse: &mut Refuse<'_>,
) -> Result<Option<Control>> {
    let Some(sid) = tty::session(master).context("TIOCGSID")? else { return Ok(None) };
    let members: Vec<&Standing> = tasks.iter().filter(|task| task.place.sid == sid).collect();
    let Some(leader) = members.iter().find(|task| task.place.pid == sid && task.tty == device) else {
        let reason = format!("controls session {sid}, which no task of the tree leads");
        refuse.with_hint(name, reason, OTHER_END);
        return Ok(None);
    };
    let without: Vec<Pid> = members.iter().filter(|task| task.tty == 0).map(|task| task.place.pid).collect();
    if !without.is_empty() && members.iter().any(|task| task.place.cloned) {
        let reason = format!(
            "controls session {sid}, which has tasks without a terminal beside some that can only be cloned"
        );
        refuse.because(name, reason);
    }
    let foreground = tty::foreground(master).context("TIOCGPGRP")?;
    let is_late = |task: &&&Standing| {
        let leads = |leader: &Standing| leader.place.pid == task.place.pgid && leader.place.cloned;
        task.place.cloned || tasks.iter().any(leads)
    };
    let mut group = members.iter().filter(|task| task.place.pgid == foreground).peekable();
    if group.peek().is_none() {
        let reason = format!("has process group {foreground} in the foreground, which has ended");
        refuse.with_hint(name, reason, "have its shell notice that, as before the next prompt");
    } else if group.all(|task| is_late(&task)) && !(leader.place.cloned && foreground == sid) {
        // That of a leader is there from the start (proc_set_tty() of drivers/tty/tty_jobctrl.c).
        let reason = format!(
            "has process group {foreground} in the foreground, whose tasks can only be cloned by others"
        );
        refuse.because(name, reason);
    }
    Ok(Some(Control { sid, foreground, without }))
}

fn refuse_obstacle(obstacle: Obstacle, name: String, refuse: &mut Refuse<'_>) -> Result<()> {
    match obstacle {
        Obstacle::Status => {
            refuse.with_hint(name, "its master has still to be told of a change (packet mode)", WAIT);
        }
        Obstacle::TooMuchInput => {
            let reason = format!("more than {INPUT_MAX} bytes of input wait in it");
            refuse.with_hint(name, reason, WAIT);
        }
        Obstacle::Blocked => refuse.because(name, "takes no output, for a reason that crr does not know"),
        Obstacle::Failed(errno) => {
            return Err(errno).with_context(|| format!("{name}: look what is on its way"));
        }
    }
    Ok(())
}
