//! What is on its way through a pseudo terminal, in both directions: taken out and put back.
//!
//! Nothing shows it otherwise. There is no way to look into the buffer of a line discipline (drivers/tty/n_tty.c) but to
//! read it, and a line that is still being typed is read by nobody before the terminal stops to work by lines. So it is all read, and put back the
//! way it came: input by TIOCSTI, byte by byte and with nothing that would edit, echo or signal; output by TIOCSTI on
//! the master, whose line discipline changes nothing (ptmx_open() leaves it raw, and settings of a master go to its slave).
//!
//! While it is out, it is in the memory of crr alone. So a tree with pseudo terminals is dumped by a guarded process
//! (`dump::guard`), which puts everything back if the one that was started is killed, and holds every signal back. What
//! is left is SIGKILL for that process itself within the time in between, about a microsecond for each byte.
//!
//! What does not fit into a line discipline waits before it (drivers/tty/tty_buffer.c) and follows as it is read. It goes back
//! there by an ordinary write to the other end.

use crate::sys::{pipe, tty};
use images::terminal::{Flow, Line, LineEnd, Settings};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::os::fd::{AsRawFd, BorrowedFd};

/// What a line discipline holds: N_TTY_BUF_SIZE less one.
pub(crate) const BUFFER_SIZE: usize = 4095;

/// A write that the buffers before a line discipline take as one if they have any room (TTYB_ALIGN_MASK).
const PIECE: usize = 256;

// include/uapi/asm-generic/termbits.h
const ICANON: u32 = 0o2;
const IXON: u32 = 0o2000;
const VEOF: usize = 4;
const VSTOP: usize = 9;
const VEOL: usize = 11;
const VEOL2: usize = 16;

/// Places in [`Settings::flags`].
const INPUT: usize = 0;
const OUTPUT: usize = 1;
const LOCAL: usize = 3;

/// What was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct InFlight {
    /// Towards the slave.
    pub(crate) input: Vec<Line>,
    /// Towards the master.
    pub(crate) output: Vec<u8>,
    /// Whether it is held up.
    pub(crate) flow: Flow,
}

/// What it takes to look.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ends<'a> {
    pub(super) master: BorrowedFd<'a>,
    /// None if nobody ever opened it: then nobody wrote to it, and opening it could be noticed.
    pub(super) slave: Option<BorrowedFd<'a>>,
    pub(super) settings: &'a Settings,
    pub(super) locked_settings: &'a Settings,
    pub(super) packet: bool,
}

/// Why it was left alone, or how it went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Obstacle {
    /// The master has a status of packet mode to read, which cannot be put back.
    Status,
    /// More was typed than the line discipline holds: what waits before it is still to be echoed and to send signals.
    TooMuchInput,
    /// Nothing can be written to the slave, for no reason that is known.
    Blocked,
    /// A system call failed.
    Failed(Errno),
}

impl From<Errno> for Obstacle {
    fn from(errno: Errno) -> Self {
        Self::Failed(errno)
    }
}

/// Does it work by lines?
pub(super) fn is_canonical(settings: &Settings) -> bool {
    settings.flags[LOCAL] & ICANON != 0
}

/// Are lines edited by whoever has the master?
pub(super) fn is_external(settings: &Settings) -> bool {
    const EXTPROC: u32 = 0o200_000;
    settings.flags[LOCAL] & EXTPROC != 0
}

/// Settings under which each byte stands for itself, and what is written goes through as it is.
pub(super) fn plain(settings: &Settings, canonical: bool) -> Settings {
    let mut plain = settings.clone();
    (plain.flags[INPUT], plain.flags[OUTPUT]) = (0, 0);
    plain.flags[LOCAL] = if canonical { ICANON } else { 0 };
    // No character edits, and a read waits for nothing (VMIN and VTIME are among them).
    plain.characters.fill(0);
    plain
}

/// Whether something can be read from (POLLIN), written to (POLLOUT) a terminal at once. Where there is nothing to read, what
/// is before the line discipline has been passed on to it: n_tty_poll() waits for that.
fn is(fd: BorrowedFd<'_>, event: PollFlags) -> nix::Result<bool> {
    let mut asked = [PollFd::new(fd, event)];
    poll(&mut asked, PollTimeout::ZERO)?;
    Ok(asked[0].revents().is_some_and(|found| found.contains(event)))
}

/// Looks, and leaves everything as it was.
pub(super) fn look(ends: Ends<'_>) -> Result<InFlight, Obstacle> {
    let Ends { master, slave, settings, locked_settings, packet } = ends;
    if packet && is(master, PollFlags::POLLPRI)? {
        return Err(Obstacle::Status);
    }
    let is_locked = !is_unlocked(locked_settings);
    if packet {
        tty::set_flag(master, tty::Flag::Packet, false)?;
    }
    if is_locked {
        tty::lock_settings(master, &plain_locks(locked_settings))?;
    }
    let looked = match slave {
        Some(slave) => look_at_both(master, slave, settings),
        None => {
            let output = read_output(master);
            output.and_then(|output| {
                write_output(master, None, &output)?;
                Ok(InFlight { input: Vec::new(), output, flow: Flow::Runs })
            })
        }
    };
    if is_locked {
        tty::lock_settings(master, locked_settings)?;
    }
    if packet {
        tty::set_flag(master, tty::Flag::Packet, true)?;
    }
    looked
}

/// Whether all of the settings can be changed.
pub(super) fn is_unlocked(locked: &Settings) -> bool {
    locked.flags == [0; 4] && locked.characters.iter().all(|bits| *bits == 0)
}

fn plain_locks(locked: &Settings) -> Settings {
    Settings { flags: [0; 4], characters: vec![0; locked.characters.len()], ..locked.clone() }
}

fn look_at_both(
    master: BorrowedFd<'_>,
    slave: BorrowedFd<'_>,
    settings: &Settings,
) -> Result<InFlight, Obstacle> {
    take_and_put_back(master, slave, settings).inspect_err(|_| {
        // All that can still be done.
        let _ = tty::set_settings(slave, settings);
    })
}

fn take_and_put_back(
    master: BorrowedFd<'_>,
    slave: BorrowedFd<'_>,
    settings: &Settings,
) -> Result<InFlight, Obstacle> {
    let canonical = is_canonical(settings);
    let mut output = read_output(master)?;
    let runs = is(slave, PollFlags::POLLOUT)?;
    // Whole lines under the settings as they are: those that follow are echoed, and send signals, as ever.
    let mut input = if canonical { read_lines(slave, settings)? } else { Vec::new() };
    tty::set_settings(slave, &plain(settings, false))?;
    let rest = read_all(slave)?;
    if !rest.is_empty() {
        input.push(Line { bytes: rest, end: LineEnd::Open });
    }
    let flow = if runs { Some(Flow::Runs) } else { let_run(slave)? };
    // Echoes that found no room (n_tty_write() begins with them).
    nix::unistd::write(slave, &[])?;
    output.extend(read_output(master)?);
    let typed: usize = input.iter().map(room_of).sum();
    write_input(master, slave, settings, &input)?;
    write_output(master, Some(slave), &output)?;
    set_flow(slave, settings, flow.unwrap_or(Flow::Runs))?;
    tty::set_settings(slave, settings)?;
    match flow {
        _ if typed > BUFFER_SIZE => Err(Obstacle::TooMuchInput),
        Some(flow) => Ok(InFlight { input, output, flow }),
        None => Err(Obstacle::Blocked),
    }
}

/// Puts into a terminal that is new what was found in another one. The settings that it has afterwards are not those it had.
pub(super) fn fill(
    master: BorrowedFd<'_>,
    slave: Option<BorrowedFd<'_>>,
    settings: &Settings,
    found: &InFlight,
) -> Result<(), Obstacle> {
    let Some(slave) = slave else { return write_output(master, None, &found.output) };
    tty::set_settings(slave, &plain(settings, is_canonical(settings)))?;
    write_input(master, slave, settings, &found.input)?;
    write_output(master, Some(slave), &found.output)?;
    Ok(set_flow(slave, settings, found.flow)?)
}

/// Bytes that a line takes in the buffer.
fn room_of(line: &Line) -> usize {
    line.bytes.len() + usize::from(line.end == LineEnd::EndOfFile)
}

/// Everything that a master can read.
fn read_output(master: BorrowedFd<'_>) -> Result<Vec<u8>, Obstacle> {
    let mut output = Vec::new();
    while is(master, PollFlags::POLLIN)? {
        let bytes = pipe::readable_bytes(master)?;
        let start = output.len();
        output.resize(start + bytes, 0);
        let got = nix::unistd::read(master, &mut output[start..])?;
        output.truncate(start + got);
        if got == 0 {
            break;
        }
    }
    Ok(output)
}

/// Lines that are complete, each by a read of its own.
fn read_lines(slave: BorrowedFd<'_>, settings: &Settings) -> Result<Vec<Line>, Obstacle> {
    let mut lines = Vec::new();
    let mut buffer = [0; 2 * BUFFER_SIZE];
    while is(slave, PollFlags::POLLIN)? {
        let got = nix::unistd::read(slave, &mut buffer)?;
        let bytes = buffer[..got].to_vec();
        let end = match bytes.last() {
            Some(&last) if ends_line(settings, last) => LineEnd::Own,
            _ => LineEnd::EndOfFile,
        };
        lines.push(Line { bytes, end });
    }
    Ok(lines)
}

fn ends_line(settings: &Settings, byte: u8) -> bool {
    let chosen = [VEOL, VEOL2].map(|place| settings.characters.get(place).copied().unwrap_or(0));
    byte == b'\n' || (byte != 0 && chosen.contains(&byte))
}

/// Everything that a slave can read under settings that have it wait for nothing.
fn read_all(slave: BorrowedFd<'_>) -> Result<Vec<u8>, Obstacle> {
    let mut all = Vec::new();
    let mut buffer = [0; BUFFER_SIZE + 1];
    loop {
        match nix::unistd::read(slave, &mut buffer) {
            Ok(0) | Err(Errno::EAGAIN) => return Ok(all),
            Ok(got) => all.extend(&buffer[..got]),
            Err(errno) => return Err(errno.into()),
        }
    }
}

/// What held up the output, which runs now. The settings until now had IXON, those that it has do not: by that the kernel has
/// let it run if it was the stop character (n_tty_set_termios()).
fn let_run(slave: BorrowedFd<'_>) -> Result<Option<Flow>, Obstacle> {
    if is(slave, PollFlags::POLLOUT)? {
        return Ok(Some(Flow::Stopped));
    }
    tty::hold_output(slave, false)?;
    Ok(is(slave, PollFlags::POLLOUT)?.then_some(Flow::Off))
}

/// Types input. The settings afterwards are plain ones.
fn write_input(
    master: BorrowedFd<'_>,
    slave: BorrowedFd<'_>,
    settings: &Settings,
    input: &[Line],
) -> Result<(), Obstacle> {
    let plain = plain(settings, is_canonical(settings));
    tty::set_settings(slave, &plain)?;
    let mut room = BUFFER_SIZE;
    let mut typed = |byte: u8| -> Result<(), Obstacle> {
        if room == 0 {
            return write_piece(master, &[byte]);
        }
        room -= 1;
        Ok(tty::insert(slave, byte)?)
    };
    for line in input {
        let (last, before) = match (line.end, line.bytes.split_last()) {
            (LineEnd::Own, Some((&last, before))) => (Some((VEOL, last)), before),
            (LineEnd::EndOfFile, _) => (Some((VEOF, 1)), &line.bytes[..]),
            _ => (None, &line.bytes[..]),
        };
        before.iter().try_for_each(|&byte| typed(byte))?;
        match last {
            None => {}
            Some((_, b'\n')) => typed(b'\n')?,
            Some((place, byte)) => {
                // A character that ends a line, for this moment only: the same may stand in the text.
                let mut ending = plain.clone();
                ending.characters[place] = byte;
                tty::set_settings(slave, &ending)?;
                typed(byte)?;
                tty::set_settings(slave, &plain)?;
            }
        }
    }
    Ok(())
}

/// Puts output where the master reads it next.
fn write_output(
    master: BorrowedFd<'_>,
    slave: Option<BorrowedFd<'_>>,
    output: &[u8],
) -> Result<(), Obstacle> {
    let (inside, before) = output.split_at(output.len().min(BUFFER_SIZE));
    inside.iter().try_for_each(|&byte| tty::insert(master, byte))?;
    let mut pieces = before.chunks(PIECE);
    pieces.try_for_each(|piece| slave.map_or(Err(Obstacle::Blocked), |slave| write_piece(slave, piece)))
}

fn write_piece(end: BorrowedFd<'_>, piece: &[u8]) -> Result<(), Obstacle> {
    // Anything else would block, and for good.
    if !is(end, PollFlags::POLLOUT)? || nix::unistd::write(end, piece)? != piece.len() {
        return Err(Obstacle::Blocked);
    }
    Ok(())
}

/// Holds up the output, whose settings are plain.
fn set_flow(slave: BorrowedFd<'_>, settings: &Settings, flow: Flow) -> nix::Result<()> {
    match flow {
        Flow::Runs => Ok(()),
        Flow::Off => tty::hold_output(slave, true),
        Flow::Stopped => {
            // The kernel does so for the stop character, and goes on when a change of settings takes IXON away.
            let mut stopping = plain(settings, is_canonical(settings));
            stopping.flags[INPUT] = IXON;
            stopping.characters[VSTOP] = 1;
            tty::set_settings(slave, &stopping)?;
            tty::insert(slave, 1)
        }
    }
}

/// Whether bytes can be put into terminals here: sysctl dev.tty.legacy_tiocsti, or CAP_SYS_ADMIN.
pub(super) fn can_insert(any_master: BorrowedFd<'_>) -> bool {
    let path = format!("/proc/self/fd/{}", any_master.as_raw_fd());
    let flags = nix::fcntl::OFlag::O_RDWR | nix::fcntl::OFlag::O_NOCTTY | nix::fcntl::OFlag::O_CLOEXEC;
    // Opening a master again makes another pair.
    let scratch = nix::fcntl::open(path.as_str(), flags, nix::sys::stat::Mode::empty());
    scratch.is_ok_and(|scratch| tty::insert(std::os::fd::AsFd::as_fd(&scratch), 0).is_ok())
}
