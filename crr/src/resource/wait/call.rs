//! The calls that the kernel continues by restart_syscall(2), and where each has its time limit.

use crate::ptrace::regs::low_half;
use crate::remote::Call;
use crate::remote::{SLEEPS_32, SLEEPS_64};
use crate::sys::vm;
use images::{Abi, Addr, Pid};

const NANOSECONDS: u64 = 1_000_000_000;

/// How a time is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    /// Milliseconds in the argument itself.
    Millis,
    /// The argument points to seconds and nanoseconds of 32 bits.
    Narrow,
    /// The argument points to seconds and nanoseconds of 64 bits.
    Wide,
}

impl Form {
    /// Bytes of a time in memory.
    fn size(self) -> usize {
        match self {
            Self::Millis => 0,
            Self::Narrow => 8,
            Self::Wide => 16,
        }
    }

    /// Nanoseconds; `None` for what is no time.
    fn decode(self, bytes: &[u8]) -> Option<u64> {
        let half = self.size() / 2;
        let seconds = match *bytes.get(..half)? {
            [a, b, c, d] => i64::from(i32::from_le_bytes([a, b, c, d])),
            [a, b, c, d, e, f, g, h] => i64::from_le_bytes([a, b, c, d, e, f, g, h]),
            _ => return None,
        };
        // The kernel looks at 32 bits of the nanoseconds of an ia32 task (get_timespec64), and more are never valid.
        let nanos = u32::from_le_bytes(bytes.get(half..half + 4)?.try_into().ok()?);
        Some(u64::try_from(seconds).ok()?.saturating_mul(NANOSECONDS).saturating_add(u64::from(nanos)))
    }

    /// The bytes of a time, rounded up where the form cannot tell it; empty for milliseconds.
    pub(super) fn encode(self, nanoseconds: u64) -> Vec<u8> {
        let (seconds, nanos) = (nanoseconds / NANOSECONDS, nanoseconds % NANOSECONDS);
        match self {
            Self::Millis => Vec::new(),
            Self::Narrow => {
                let seconds = i32::try_from(seconds).unwrap_or(i32::MAX);
                [seconds.to_le_bytes(), low_half(nanos).to_le_bytes()].concat()
            }
            Self::Wide => [seconds.to_le_bytes(), nanos.to_le_bytes()].concat(),
        }
    }
}

/// The time limit of a call that is in progress.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Limit {
    /// Which argument says it.
    pub(super) argument: usize,
    /// The value of that argument.
    value: u64,
    /// How it is written.
    pub(super) form: Form,
    /// Where the kernel writes what is left.
    rest: Option<Addr>,
    /// It runs out while nothing happens, as it does not where processor time is counted.
    pub(super) runs_on_wall_clock: bool,
}

impl Limit {
    /// The limit as it was given, in nanoseconds; `None` for endless.
    pub(super) fn read(&self, pid: Pid) -> nix::Result<Option<u64>> {
        match self.form {
            Form::Millis => {
                let millis = i32::from_ne_bytes(low_half(self.value).to_ne_bytes());
                Ok(u64::try_from(millis).ok().map(|millis| millis * 1_000_000))
            }
            _ => self.read_at(pid, Addr(self.value)),
        }
    }

    /// What the kernel wrote when it interrupted the call; `None` for a call with no place for it.
    pub(super) fn read_rest(&self, pid: Pid) -> nix::Result<Option<u64>> {
        self.rest.map_or(Ok(None), |rest| self.read_at(pid, rest))
    }

    fn read_at(&self, pid: Pid, at: Addr) -> nix::Result<Option<u64>> {
        let mut bytes = [0u8; 16];
        let bytes = &mut bytes[..self.form.size()];
        vm::read_exact(pid, at, bytes)?;
        Ok(self.form.decode(bytes))
    }
}

/// The relative limit of a call, if it has one. Absolute ones need no help: the call starts over with the same.
pub(super) fn limit(mode: Abi, number: u32, args: [u64; 6]) -> Option<Limit> {
    const TIMER_ABSTIME: u64 = 1;
    const FUTEX_WAIT: u64 = 0;
    /// FUTEX_PRIVATE_FLAG and FUTEX_CLOCK_REALTIME.
    const FUTEX_FLAGS: u64 = 128 | 256;
    let native = match mode {
        Abi::X86_64 => Form::Wide,
        Abi::Ia32 => Form::Narrow,
    };
    let wall = Limit { argument: 0, value: 0, form: native, rest: None, runs_on_wall_clock: true };
    let sleep = |argument: usize, form| Limit {
        argument,
        value: args[argument],
        form,
        rest: Some(Addr(args[argument + 1])).filter(|rest| rest.0 != 0),
        ..wall
    };
    let clock_sleep = |form| {
        let clock = i32::from_ne_bytes(low_half(args[0]).to_ne_bytes());
        // CLOCK_PROCESS_CPUTIME_ID, CLOCK_THREAD_CPUTIME_ID, and those of clock_getcpuclockid(3).
        let runs_on_wall_clock = !matches!(clock, ..0 | 2 | 3);
        (args[1] & TIMER_ABSTIME == 0).then(|| Limit { runs_on_wall_clock, ..sleep(2, form) })
    };
    let futex = |form| {
        let relative = args[1] & !FUTEX_FLAGS == FUTEX_WAIT && args[3] != 0;
        relative.then(|| Limit { argument: 3, value: args[3], form, ..wall })
    };
    let poll = Limit { argument: 2, value: args[2], form: Form::Millis, ..wall };
    match (mode, number) {
        (Abi::X86_64, 35) | (Abi::Ia32, 162) => Some(sleep(0, native)),
        (Abi::X86_64, 230) | (Abi::Ia32, 267) => clock_sleep(native),
        (Abi::Ia32, 407) => clock_sleep(Form::Wide),
        (Abi::X86_64, 7) | (Abi::Ia32, 168) => Some(poll),
        (Abi::X86_64, 202) | (Abi::Ia32, 240) => futex(native),
        (Abi::Ia32, 422) => futex(Form::Wide),
        _ => None,
    }
}

fn calls(mode: Abi) -> &'static [u32] {
    match mode {
        Abi::X86_64 => SLEEPS_64,
        Abi::Ia32 => SLEEPS_32,
    }
}

/// A small number, from 1, for a call with a restart block.
pub(super) fn kind(mode: Abi, number: u32) -> Option<u8> {
    let at = calls(mode).iter().position(|&known| known == number)?;
    u8::try_from(at + 1).ok()
}

/// The call of a [`kind`].
pub(super) fn number(mode: Abi, kind: u8) -> Option<u32> {
    calls(mode).get(usize::from(kind).checked_sub(1)?).copied()
}

/// The number of restart_syscall.
pub(super) fn restart_syscall(mode: Abi) -> u32 {
    low_half(Call::RestartSyscall.number(mode))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_relative_limits_count() {
        let argument = |mode, number, args| limit(mode, number, args).map(|limit| limit.argument);
        assert_eq!(argument(Abi::X86_64, 230, [1, 0, 8, 0, 0, 0]), Some(2));
        assert_eq!(argument(Abi::X86_64, 230, [1, 1, 8, 0, 0, 0]), None);
        assert_eq!(argument(Abi::X86_64, 202, [8, 128, 0, 8, 0, 0]), Some(3));
        assert_eq!(argument(Abi::X86_64, 202, [8, 128, 0, 0, 0, 0]), None);
        // FUTEX_WAIT_BITSET is absolute.
        assert_eq!(argument(Abi::Ia32, 422, [8, 9 | 128, 0, 8, 0, 0]), None);
        assert_eq!(argument(Abi::Ia32, 168, [8, 1, 50, 0, 0, 0]), Some(2));
        assert_eq!(argument(Abi::X86_64, 168, [8, 1, 50, 0, 0, 0]), None);
    }

    #[test]
    fn processor_time_is_not_wall_time() {
        let on_wall = |clock: i32| {
            let clock = u64::from(u32::from_ne_bytes(clock.to_ne_bytes()));
            limit(Abi::Ia32, 407, [clock, 0, 8, 8, 0, 0]).unwrap().runs_on_wall_clock
        };
        assert!(on_wall(0) && on_wall(1) && on_wall(7) && on_wall(11));
        assert!(!on_wall(2) && !on_wall(3) && !on_wall(-6));
    }

    #[test]
    fn times_round_trip_in_memory() {
        for form in [Form::Narrow, Form::Wide] {
            assert_eq!(form.decode(&form.encode(7_000_000_009)), Some(7_000_000_009));
        }
        assert_eq!(Form::Narrow.decode(&[0xff; 8]), None);
        assert_eq!(Form::Narrow.encode(u64::MAX)[..4], i32::MAX.to_le_bytes());
    }
}
