//! `siginfo_t` of an ia32 task from the x86_64 form that a 64-bit tracer reads.

use images::signal::SIGINFO_SIZE;

/// A `siginfo_t` in either layout.
pub type SigInfo = [u8; SIGINFO_SIZE];

const SIGILL: i32 = 4;
const SIGTRAP: i32 = 5;
const SIGBUS: i32 = 7;
const SIGFPE: i32 = 8;
const SIGSEGV: i32 = 11;
const SIGCHLD: i32 = 17;
const SIGPOLL: i32 = 29;
const SIGSYS: i32 = 31;
/// Codes up to here are fields of the signals above; beyond stand SI_USER (0), SI_KERNEL (0x80) and negatives.
const NSIGPOLL: i32 = 6;

/// Which arm of the `_sifields` union a siginfo uses: `siginfo_layout`, kernel/signal.c.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Layout {
    Kill,
    Timer,
    Poll,
    Rt,
    Child,
    Fault,
    Perf,
    System,
}

fn layout(signo: i32, code: i32) -> Layout {
    const SI_TIMER: i32 = -2;
    const SI_SIGIO: i32 = -5;
    const TRAP_PERF: i32 = 6;
    match (signo, code) {
        (SIGTRAP, TRAP_PERF) => Layout::Perf,
        (SIGILL | SIGFPE | SIGSEGV | SIGBUS | SIGTRAP, 1..=0x7f) => Layout::Fault,
        (SIGCHLD, 1..=0x7f) => Layout::Child,
        (SIGPOLL, 1..=0x7f) => Layout::Poll,
        (SIGSYS, 1..=0x7f) => Layout::System,
        (_, 1..=NSIGPOLL) => Layout::Poll,
        (_, SI_TIMER) => Layout::Timer,
        (_, SI_SIGIO) => Layout::Poll,
        (_, code) if code < 0 => Layout::Rt,
        _ => Layout::Kill,
    }
}

fn word(from: &SigInfo, at: usize) -> [u8; 4] {
    [from[at], from[at + 1], from[at + 2], from[at + 3]]
}

fn int(from: &SigInfo, at: usize) -> i32 {
    i32::from_le_bytes(word(from, at))
}

/// The ia32 form (`compat_siginfo_t`, `copy_siginfo_to_external32` of kernel/signal.c) of an x86_64 siginfo.
///
/// In both forms signo, errno and code come first; the union starts at byte 16 in x86_64 and 12 in ia32, where
/// pointers and longs take four bytes.
#[must_use]
pub fn to_ia32(from: &SigInfo) -> SigInfo {
    let mut to = [0u8; SIGINFO_SIZE];
    to[..12].copy_from_slice(&from[..12]);
    let mut put = |at: usize, from_at: usize| to[at..at + 4].copy_from_slice(&word(from, from_at));
    match layout(int(from, 0), int(from, 8)) {
        // pid, uid
        Layout::Kill => {
            put(12, 16);
            put(16, 20);
        }
        // timer id, overrun, value
        Layout::Timer | Layout::Rt => {
            put(12, 16);
            put(16, 20);
            put(20, 24);
        }
        // band (long), fd
        Layout::Poll => {
            put(12, 16);
            put(16, 24);
        }
        // pid, uid, status, utime (long), stime (long)
        Layout::Child => {
            put(12, 16);
            put(16, 20);
            put(20, 24);
            put(24, 32);
            put(28, 40);
        }
        // address; then, by code, address lsb (short) or bounds or protection key
        Layout::Fault => {
            put(12, 16);
            put(16, 24);
            put(20, 32);
            put(24, 40);
        }
        // address, data (long), type, flags
        Layout::Perf => {
            put(12, 16);
            put(16, 24);
            put(20, 32);
            put(24, 36);
        }
        // call address, system call, architecture
        Layout::System => {
            put(12, 16);
            put(16, 24);
            put(20, 28);
        }
    }
    to
}

#[cfg(test)]
mod tests {
    use super::*;

    fn info(signo: i32, code: i32, fields: &[(usize, i32)]) -> SigInfo {
        let mut out = [0u8; SIGINFO_SIZE];
        for (at, value) in [(0, signo), (8, code)].iter().chain(fields) {
            out[*at..at + 4].copy_from_slice(&value.to_le_bytes());
        }
        out
    }

    #[test]
    fn sigqueue_keeps_pid_uid_and_value() {
        assert_eq!(
            to_ia32(&info(34, -1, &[(16, 7), (20, 8), (24, 9)])),
            info(34, -1, &[(12, 7), (16, 8), (20, 9)])
        );
    }

    #[test]
    fn kill_has_no_value() {
        assert_eq!(to_ia32(&info(15, 0, &[(16, 7), (20, 8), (24, 9)])), info(15, 0, &[(12, 7), (16, 8)]));
    }

    #[test]
    fn a_child_keeps_its_times() {
        let from = info(17, 1, &[(16, 100), (20, 1), (24, 3), (32, 50), (40, 60)]);
        assert_eq!(to_ia32(&from), info(17, 1, &[(12, 100), (16, 1), (20, 3), (24, 50), (28, 60)]));
    }

    #[test]
    fn a_seccomp_trap_keeps_address_call_and_architecture() {
        let from = info(31, 1, &[(16, 0x1000), (24, 3), (28, 0x4000_0003)]);
        assert_eq!(to_ia32(&from), info(31, 1, &[(12, 0x1000), (16, 3), (20, 0x4000_0003)]));
    }

    #[test]
    fn a_breakpoint_of_perf_keeps_data_type_and_flags() {
        let from = info(5, 6, &[(16, 0x1000), (24, 2), (32, 3), (36, 4)]);
        assert_eq!(to_ia32(&from), info(5, 6, &[(12, 0x1000), (16, 2), (20, 3), (24, 4)]));
    }

    #[test]
    fn band_is_a_long() {
        assert_eq!(to_ia32(&info(29, 1, &[(16, 65), (24, 5)])), info(29, 1, &[(12, 65), (16, 5)]));
    }
}
