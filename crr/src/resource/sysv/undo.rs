//! What a task would have undone at its end (SEM_UNDO): the dump's kill would set it off, and a restored task would have none. It is refused.
//!
//! The kernel shows it nowhere. But it refuses an operation that would take the sum of what is to be undone out of its range, and an operation
//! that fails changes nothing (perform_atomic_semop_slow(), ipc/sem.c). So a task is asked to make operations that cannot succeed: they take
//! the value to 0, then the sum as far up or down as it can go for a given result, and at last ask for more than is there. ERANGE says that the
//! sum is beyond that result; EAGAIN that it is not, or that somebody has changed the value meanwhile.

use super::semaphores::Sets;
use crate::proc::sysvipc::SemaphoreSet;
use crate::ptrace::{Patience, Stopped};
use crate::remote::{Arg, Batch, Buffer, Call, Executor, Handle};
use crate::resource::Refuse;
use crate::sys::kcmp::{Kind, kcmp};
use crate::sys::sysv::semaphores as sys;
use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use std::cmp::Ordering;

/// SEMVMX and SEMAEM of include/uapi/linux/sem.h: the highest value, and the highest sum; the lowest is one below its opposite.
const HIGHEST: i64 = 32767;
/// Semaphores that are asked about at once.
const AT_ONCE: usize = 64;
/// How often a value may change under the question.
const TRIES: u32 = 100;

/// What a sum turns out to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sum {
    Zero,
    Other,
    /// The task may not operate on the set, or that is gone.
    NotAsked(Errno),
    /// The value was another one.
    Unclear,
}

/// Refuses what the threads of a task have to be undone.
pub(crate) fn refuse(
    sets: &mut Sets,
    executor: &Executor,
    threads: &mut [Stopped],
    refuse: &mut Refuse<'_>,
    patience: &Patience,
) -> Result<()> {
    let sets = sets.now()?;
    // Nobody has anything to undo at one that nobody has ever operated on.
    let is_used = |set: &&SemaphoreSet| set.operated_at != 0;
    let Some((deputy, others)) = threads.split_first_mut().filter(|_| sets.iter().any(|set| is_used(&set)))
    else {
        return Ok(());
    };
    // Who has never had anything to undo has no list, as this thread has none from here on.
    sys::forget_undo().context("unshare")?;
    let own = nix::unistd::gettid().as_raw();
    let same = |tid, other| Ok::<_, Errno>(kcmp(Kind::Undo, (tid, 0), (other, 0))? == Ordering::Equal);
    for thread in others {
        let tid = thread.tid();
        if !same(tid, own).context("kcmp")? && !same(tid, deputy.tid()).context("kcmp")? {
            let reason = "has a list of semaphores to undo (SEM_UNDO) apart from that of its task";
            refuse.with_hint(format!("thread {tid}"), reason, "end that thread before the dump");
        }
    }
    if same(deputy.tid(), own).context("kcmp")? {
        return Ok(());
    }
    for set in sets.iter().filter(is_used) {
        refuse_of_set(set, executor, deputy, refuse, patience)
            .with_context(|| format!("System V semaphores {}", set.object.id))?;
    }
    Ok(())
}

fn refuse_of_set(
    set: &SemaphoreSet,
    executor: &Executor,
    deputy: &mut Stopped,
    refuse: &mut Refuse<'_>,
    patience: &Patience,
) -> Result<()> {
    let mut unclear: Vec<u16> = (0..set.count).collect();
    for _ in 0..TRIES {
        let (values, is_readable) = match sys::values(set.object.id, set.count) {
            Err(Errno::EINVAL | Errno::EIDRM) => return Ok(()),
            // Without privileges. The task may not use most such sets either, which it says whatever the value.
            Err(Errno::EACCES) => (vec![0; usize::from(set.count)], false),
            values => (values.context("GETALL")?, true),
        };
        let asked = std::mem::take(&mut unclear);
        for numbers in asked.chunks(AT_ONCE) {
            let mut batch = executor.batch(deputy)?;
            let asks: Vec<Ask> = numbers
                .iter()
                .map(|&number| Ask::new(&mut batch, set.object.id, number, values[usize::from(number)]))
                .collect();
            let reply = executor.run(deputy, &batch, patience)?;
            for (ask, &number) in asks.iter().zip(numbers) {
                match ask.sum(|handle| reply.result(handle))? {
                    Sum::Zero => {}
                    Sum::Unclear if !is_readable => {
                        let object = format!("System V semaphores {}", set.object.id);
                        let reason = "may be to be undone (SEM_UNDO), and may not be read by crr";
                        refuse.with_hint(object, reason, "run crr as root");
                    }
                    Sum::Unclear => unclear.push(number),
                    Sum::Other => name(set, number, "is to be undone when the task ends (SEM_UNDO)", refuse),
                    Sum::NotAsked(Errno::EACCES)
                        if sys::last_user(set.object.id, number) == Ok(refuse.pid()) =>
                    {
                        name(
                            set,
                            number,
                            "may be to be undone (SEM_UNDO), and the task may not use it any more",
                            refuse,
                        );
                    }
                    Sum::NotAsked(_) => {}
                }
            }
        }
        if unclear.is_empty() {
            return Ok(());
        }
    }
    for number in unclear {
        name(
            set,
            number,
            "changes all the time, and does not tell whether it is to be undone (SEM_UNDO)",
            refuse,
        );
    }
    Ok(())
}

fn name(set: &SemaphoreSet, number: u16, reason: &str, refuse: &mut Refuse<'_>) {
    let object = format!("System V semaphore {number} of set {}", set.object.id);
    refuse.with_hint(object, reason, "have the program put its value back itself before the dump");
}

/// The part of a batch that asks about one semaphore.
struct Ask {
    at_most_0: Handle,
    at_least_0: Handle,
    below_0: Handle,
    above_0: Handle,
}

impl Ask {
    fn new(batch: &mut Batch, id: i32, number: u16, value: u16) -> Self {
        let mut ask = |operations: Vec<u8>| {
            let count = operations.len() / OPERATION;
            let data: Buffer = batch.data(&operations);
            let args = [Arg::Value(u64::from(id.cast_unsigned())), Arg::Out(data), Arg::Value(count as u64)];
            batch.call(Call::Semtimedop, &args)
        };
        Self {
            at_most_0: ask(at_most(number, value, 0)),
            at_least_0: ask(at_least(number, value, 0)),
            below_0: ask(at_most(number, value, -1)),
            above_0: ask(at_least(number, value, 1)),
        }
    }

    fn sum(&self, result: impl Fn(Handle) -> nix::Result<u64>) -> Result<Sum> {
        let mut said = [false; 4];
        for (said, handle) in
            said.iter_mut().zip([self.at_most_0, self.at_least_0, self.below_0, self.above_0])
        {
            *said = match result(handle) {
                Err(Errno::ERANGE) => true,
                Err(Errno::EAGAIN) => false,
                Err(errno @ (Errno::EACCES | Errno::EINVAL | Errno::EIDRM)) => {
                    return Ok(Sum::NotAsked(errno));
                }
                Err(errno) => bail!("semop: {errno}"),
                Ok(_) => bail!("semop: has done what cannot be done"),
            };
        }
        Ok(match said {
            [true, true, ..] => Sum::Zero,
            [_, _, below, above] if below || above => Sum::Other,
            _ => Sum::Unclear,
        })
    }
}

/// Bytes of a `struct sembuf`.
const OPERATION: usize = 6;

/// Operations that answer ERANGE if the sum is at most `most`.
fn at_most(number: u16, value: u16, most: i64) -> Vec<u8> {
    // What takes a sum of `most` one below the lowest.
    operations(number, value, most + HIGHEST + 2, [(1, true), (-1, false)])
}

/// Operations that answer ERANGE if the sum is at least `least`.
fn at_least(number: u16, value: u16, least: i64) -> Vec<u8> {
    operations(number, value, HIGHEST + 1 - least, [(1, false), (-1, true)])
}

/// Takes the value to 0; up and down again, by `total` as a whole, one of which is to be undone; and at last below 0.
fn operations(number: u16, value: u16, total: i64, up_and_down: [(i64, bool); 2]) -> Vec<u8> {
    let mut list = Vec::new();
    let mut operation = |change: i64, undo: bool| {
        let flags = libc::IPC_NOWAIT | if undo { libc::SEM_UNDO } else { 0 };
        list.extend(number.to_le_bytes());
        list.extend(i16::try_from(change).unwrap_or(0).to_le_bytes());
        list.extend(i16::try_from(flags).unwrap_or(0).to_le_bytes());
    };
    if value != 0 {
        operation(-i64::from(value), false);
    }
    // Waits for 0, so that the value was the one that was given.
    operation(0, false);
    let mut left = total;
    while left > 0 {
        let step = left.min(HIGHEST);
        for (sign, undo) in up_and_down {
            operation(sign * step, undo);
        }
        left -= step;
    }
    operation(-1, false);
    list
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the kernel does with operations on one semaphore.
    fn run(list: &[u8], mut value: i64, mut sum: i64) -> Errno {
        for operation in list.chunks(OPERATION) {
            let word = |at: usize| i64::from(i16::from_le_bytes([operation[at], operation[at + 1]]));
            let (change, undo) = (word(2), word(4) & i64::from(libc::SEM_UNDO) != 0);
            if (change == 0 && value != 0) || value + change < 0 {
                return Errno::EAGAIN;
            }
            value += change;
            assert!(value <= HIGHEST, "a value out of range would say the same as the sum");
            sum -= if undo { change } else { 0 };
            if !(-HIGHEST - 1..=HIGHEST).contains(&sum) {
                return Errno::ERANGE;
            }
        }
        panic!("it succeeded");
    }

    #[test]
    fn sums_are_told() {
        for value in [0u16, 1, 2, 32766, 32767] {
            for sum in [-32768, -32767, -2, -1, 0, 1, 2, 32766, 32767] {
                for bound in [-1, 0, 1] {
                    let says = |list: Vec<u8>| run(&list, i64::from(value), sum) == Errno::ERANGE;
                    assert_eq!(says(at_most(7, value, bound)), sum <= bound, "{value} {sum} {bound}");
                    assert_eq!(says(at_least(7, value, bound)), sum >= bound, "{value} {sum} {bound}");
                }
            }
        }
    }

    #[test]
    fn another_value_says_nothing() {
        for there in [0, 1, 3, 32767] {
            assert_eq!(run(&at_most(0, 2, 0), there, 0), Errno::EAGAIN);
            assert_eq!(run(&at_least(0, 2, 0), there, 0), Errno::EAGAIN);
        }
    }
}
