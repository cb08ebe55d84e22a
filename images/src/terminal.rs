//! Pseudo terminals: their settings, whose they are, and what is on its way through them.

use crate::id::Pid;
use alloc::vec::Vec;
use serde::{Deserialize, Serialize};

/// A pseudo terminal: a pair of ends with a number.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pty {
    /// The N of `/dev/pts/N`.
    pub number: u32,
    /// Nothing if its master is closed: whoever still has it open then has a terminal that is hung up.
    pub live: Option<LivePty>,
}

/// A pseudo terminal whose master is open.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LivePty {
    /// TCGETS2.
    pub settings: Settings,
    /// TIOCGLCKTRMIOS: bits set here cannot be changed. Without speeds.
    pub locked_settings: Settings,
    /// TIOCGWINSZ: rows, columns, and the size in pixels.
    pub window: [u16; 4],
    /// TIOCGPTLCK: the slave cannot be opened.
    pub locked: bool,
    /// TIOCGPKT: the master is told what happens at the slave.
    pub packet: bool,
    /// TIOCGEXCL of the slave.
    pub exclusive: bool,
    /// TIOCGEXCL of the master.
    pub master_exclusive: bool,
    /// The slave was open once, and nobody has it open now.
    pub closed: bool,
    /// Whether output is held up.
    pub flow: Flow,
    /// `st_mode` of the slave's file.
    pub mode: u32,
    /// Its owner.
    pub uid: u32,
    /// Its group.
    pub gid: u32,
    /// Whose controlling terminal it is.
    pub control: Option<Control>,
    /// What the master has written and the slave has not read, oldest first.
    pub input: Vec<Line>,
    /// What was written to the slave, or echoed, and the master has not read.
    #[serde(serialize_with = "crate::readable::text")]
    pub output: Vec<u8>,
}

/// `struct termios2` of Linux, the same for both ABIs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Settings {
    /// c_iflag, c_oflag, c_cflag, c_lflag.
    pub flags: [u32; 4],
    /// c_line.
    pub line: u8,
    /// c_cc, 19 of them.
    pub characters: Vec<u8>,
    /// c_ispeed, c_ospeed.
    pub speeds: [u32; 2],
}

/// Whether what is written to a slave goes to its master.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Flow {
    /// It does.
    Runs,
    /// Not since the stop character came (Ctrl-S).
    Stopped,
    /// Not since tcflow(3).
    Off,
}

/// A session that a terminal controls.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Control {
    /// The session.
    pub sid: Pid,
    /// The process group in the foreground.
    pub foreground: Pid,
    /// Tasks of the session that have no controlling terminal.
    pub without: Vec<Pid>,
}

/// Input as the slave would read it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Line {
    /// What was typed.
    #[serde(serialize_with = "crate::readable::text")]
    pub bytes: Vec<u8>,
    /// How it ends.
    pub end: LineEnd,
}

/// The end of a line of input.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum LineEnd {
    /// The last byte ends it: a newline or a character that was chosen for that.
    Own,
    /// The end-of-file character, which is not read.
    EndOfFile,
    /// Not at all: the line is still being typed, or there are no lines.
    Open,
}

/// Which end of a pseudo terminal a description is open on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum PtyEnd {
    /// The master.
    Master,
    /// The slave, by its own name.
    Slave,
    /// The slave, hung up since.
    HungUp,
    /// The slave, as `/dev/tty` of a session that it controls.
    Controlling,
}
