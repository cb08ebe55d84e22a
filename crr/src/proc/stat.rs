//! `/proc/PID/stat`: where the task stands in the tree, and the fields of its memory layout.

use super::{Malformed, decimal};
use images::memory::Layout;
use images::{Addr, Pid};

/// PF_KTHREAD of include/linux/sched.h.
pub const PF_KTHREAD: u64 = 0x0020_0000;
/// PF_IO_WORKER and PF_USER_WORKER: a thread that the kernel has put into a task.
pub const PF_WORKER: u64 = 0x10 | 0x4000;
/// What PR_SET_IO_FLUSHER sets: PF_MEMALLOC_NOIO | PF_LOCAL_THROTTLE.
const PF_IO_FLUSHER: u64 = 0x0008_0000 | 0x0010_0000;

/// The fields that are used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stat {
    /// Name, as the kernel cuts it.
    pub comm: Vec<u8>,
    /// `R`, `S`, `D`, `T`, `t`, `Z`, `X`, `I`.
    pub state: u8,
    /// Parent.
    pub ppid: Pid,
    /// Process group.
    pub pgid: Pid,
    /// Session.
    pub sid: Pid,
    /// Controlling terminal, 0 for none.
    pub tty: u32,
    /// PF_* flags.
    pub flags: u64,
    /// When it began, in clock ticks since boot.
    pub start_time: u64,
    /// Signal to the parent on exit.
    pub exit_signal: i32,
    /// The processor it last ran on.
    pub processor: usize,
    /// Wait status of a task that has ended; of one that is stopped, the signal that its parent has not been told of.
    pub exit_code: u32,
    /// All but `brk`, which is not shown here.
    pub layout: Layout,
}

impl Stat {
    /// Whether the thread is an I/O flusher.
    #[must_use]
    pub fn is_io_flusher(&self) -> bool {
        self.flags & PF_IO_FLUSHER == PF_IO_FLUSHER
    }
}

/// Parses the one line.
///
/// # Errors
/// [`Malformed`] with the field.
pub fn parse(text: &[u8]) -> Result<Stat, Malformed> {
    let bad = |field| Malformed { file: "stat", field };
    let open = text.iter().position(|&b| b == b'(').ok_or_else(|| bad("name"))?;
    // The name may hold parentheses and blanks itself; nothing after it does.
    let close = text.iter().rposition(|&b| b == b')').filter(|&c| c > open).ok_or_else(|| bad("name"))?;
    let fields: Vec<&[u8]> = text[close + 1..].trim_ascii().split(|&b| b == b' ').collect();
    // Numbers as in proc(5), where the state is field 3.
    let field = |number: usize| fields.get(number - 3).copied().unwrap_or_default();
    let pid = |number, name| decimal::<Pid>(field(number)).ok_or_else(|| bad(name));
    let addr = |number, name| decimal::<u64>(field(number)).map(Addr).ok_or_else(|| bad(name));
    let tty = decimal::<i32>(field(7)).ok_or_else(|| bad("tty_nr"))?;
    Ok(Stat {
        comm: text[open + 1..close].to_vec(),
        state: *field(3).first().ok_or_else(|| bad("state"))?,
        ppid: pid(4, "ppid")?,
        pgid: pid(5, "pgrp")?,
        sid: pid(6, "session")?,
        tty: u32::from_ne_bytes(tty.to_ne_bytes()),
        flags: decimal(field(9)).ok_or_else(|| bad("flags"))?,
        start_time: decimal(field(22)).ok_or_else(|| bad("starttime"))?,
        exit_signal: pid(38, "exit_signal")?,
        processor: decimal(field(39)).ok_or_else(|| bad("processor"))?,
        exit_code: decimal(field(52)).ok_or_else(|| bad("exit_code"))?,
        layout: Layout {
            start_code: addr(26, "startcode")?,
            end_code: addr(27, "endcode")?,
            start_stack: addr(28, "startstack")?,
            start_data: addr(45, "start_data")?,
            end_data: addr(46, "end_data")?,
            start_brk: addr(47, "start_brk")?,
            brk: Addr(0),
            arg_start: addr(48, "arg_start")?,
            arg_end: addr(49, "arg_end")?,
            env_start: addr(50, "env_start")?,
            env_end: addr(51, "env_end")?,
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const CAPTURED: &[u8] = b"14901 (a) b(c) S 14899 14899 3711 34816 -1 4194304 130 0 1 0 0 0 0 0 20 0 1 0 \
        177027 2990080 393 18446744073709551615 94546505486336 94546505504265 140729075721120 0 0 0 0 6 0 1 \
        0 0 17 0 0 0 0 0 0 94546505518352 94546505519616 94547291983872 140729075727081 140729075727090 \
        140729075727090 140729075728361 0\n";

    #[test]
    fn a_name_may_hold_anything() {
        let stat = parse(CAPTURED).unwrap();
        assert_eq!(stat.comm, b"a) b(c");
        assert_eq!((stat.state, stat.ppid, stat.pgid, stat.sid), (b'S', 14899, 14899, 3711));
        assert_eq!((stat.tty, stat.exit_signal, stat.processor), (0x8800, 17, 0));
        assert_eq!(stat.layout.start_code, Addr(94_546_505_486_336));
        assert_eq!(stat.layout.start_brk, Addr(94_547_291_983_872));
        assert_eq!(stat.layout.env_end, Addr(140_729_075_728_361));
    }

    #[test]
    fn a_cut_line_is_an_error() {
        assert_eq!(parse(&CAPTURED[..60]).unwrap_err().file, "stat");
        assert!(parse(b"").is_err());
        assert!(parse(b")(").is_err());
    }
}
