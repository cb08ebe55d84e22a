//! Operations on one semaphore.
//!
//! Those of one semop(2) are made one after the other, all or none of them, and nobody sees what is between
//! (perform_atomic_semop_slow(), ipc/sem.c). One with SEM_UNDO takes from the sum of its list what it adds to the value.
//! A sum that would leave its range is ERANGE; a value that would fall below 0, or is to be 0 and is not, EAGAIN; then nothing is changed.

/// SEMVMX and SEMAEM of include/uapi/linux/sem.h: the highest value, and the highest sum; the lowest is one below its opposite.
pub(super) const HIGHEST: i64 = 32767;
/// The lowest sum.
pub(super) const LOWEST: i64 = -HIGHEST - 1;
/// Bytes of a `struct sembuf`.
const OPERATION: usize = 6;

/// What one semop(2) does to one semaphore.
#[derive(Clone, Debug)]
pub(crate) struct Operations {
    number: u16,
    /// What each adds to the value, and whether that is to be undone.
    changes: Vec<(i16, bool)>,
}

impl Operations {
    /// Answers ERANGE if the sum is at most `most`; EAGAIN if not, or if the value is another one.
    pub(super) fn at_most(number: u16, value: u16, most: i64) -> Self {
        // What takes a sum of `most` one below the lowest.
        Self::vain(number, value, most - LOWEST + 1)
    }

    /// Answers ERANGE if the sum is at least `least`; EAGAIN if not, or if the value is another one.
    pub(super) fn at_least(number: u16, value: u16, least: i64) -> Self {
        Self::vain(number, value, least - HIGHEST - 1)
    }

    /// Takes so much from the sum, and at last the value below 0.
    fn vain(number: u16, value: u16, taken: i64) -> Self {
        let mut operations = Self::from_zero(number, value, -taken);
        operations.add(-1, false);
        operations
    }

    /// Adds `sum` to the sum, and makes the value `to` of `from`; EAGAIN if it is another one.
    pub(crate) fn adjust(number: u16, from: u16, sum: i32, to: u16) -> Self {
        let mut operations = Self::from_zero(number, from, sum.into());
        if to != 0 {
            operations.add(to.into(), false);
        }
        operations
    }

    /// Takes a value to 0, and adds `sum` to the sum by ups and downs.
    fn from_zero(number: u16, value: u16, sum: i64) -> Self {
        let mut operations = Self { number, changes: Vec::new() };
        if value != 0 {
            operations.add(-i64::from(value), false);
        }
        // Waits for 0, so that the value was the one that was given.
        operations.add(0, false);
        let mut left = sum.abs();
        while left > 0 {
            let step = left.min(HIGHEST);
            operations.add(step, sum < 0);
            operations.add(-step, sum > 0);
            left -= step;
        }
        operations
    }

    fn add(&mut self, change: i64, undo: bool) {
        self.changes.push((i16::try_from(change).unwrap_or(0), undo));
    }

    /// How many they are.
    pub(crate) fn count(&self) -> u64 {
        self.changes.len() as u64
    }

    /// As the kernel takes them.
    pub(super) fn list(&self) -> Vec<libc::sembuf> {
        let flags = |undo| libc::IPC_NOWAIT | if undo { libc::SEM_UNDO } else { 0 };
        let operation = |&(change, undo): &(i16, bool)| libc::sembuf {
            sem_num: self.number,
            sem_op: change,
            sem_flg: i16::try_from(flags(undo)).unwrap_or(0),
        };
        self.changes.iter().map(operation).collect()
    }

    /// As they lie in the memory of a task of either ABI.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(self.changes.len() * OPERATION);
        for operation in self.list() {
            bytes.extend(operation.sem_num.to_le_bytes());
            bytes.extend(operation.sem_op.to_le_bytes());
            bytes.extend(operation.sem_flg.to_le_bytes());
        }
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::errno::Errno;

    const VALUES: [u16; 7] = [0, 1, 2, 16384, 32765, 32766, 32767];
    const SUMS: [i16; 11] = [-32768, -32767, -16384, -2, -1, 0, 1, 2, 16384, 32766, 32767];

    /// What the kernel makes of a value and a sum.
    fn run(operations: &Operations, mut value: i64, mut sum: i64) -> Result<(i64, i64), Errno> {
        for operation in operations.list() {
            let change = i64::from(operation.sem_op);
            if (change == 0 && value != 0) || value + change < 0 {
                return Err(Errno::EAGAIN);
            }
            value += change;
            assert!(value <= HIGHEST, "a value out of range would say the same as the sum");
            let undo = i32::from(operation.sem_flg) & libc::SEM_UNDO != 0;
            sum -= if undo { change } else { 0 };
            if !(LOWEST..=HIGHEST).contains(&sum) {
                return Err(Errno::ERANGE);
            }
        }
        Ok((value, sum))
    }

    #[test]
    fn sums_are_told() {
        for value in VALUES {
            for sum in SUMS.map(i64::from) {
                for bound in SUMS.map(i64::from) {
                    let says =
                        |operations| run(&operations, i64::from(value), sum).unwrap_err() == Errno::ERANGE;
                    let what = format!("{value} {sum} {bound}");
                    assert_eq!(says(Operations::at_most(7, value, bound)), sum <= bound, "{what}");
                    assert_eq!(says(Operations::at_least(7, value, bound)), sum >= bound, "{what}");
                }
            }
        }
    }

    #[test]
    fn sums_and_values_are_set() {
        for from in VALUES {
            for (to, sum) in VALUES.into_iter().flat_map(|to| SUMS.map(|sum| (to, sum))) {
                let done = run(&Operations::adjust(3, from, sum.into(), to), from.into(), 0);
                assert_eq!(done, Ok((i64::from(to), i64::from(sum))), "{from} {to}");
                let back = run(&Operations::adjust(3, to, -i32::from(sum), from), to.into(), sum.into());
                assert_eq!(back, Ok((from.into(), 0)), "{to} {from} {sum}");
            }
        }
    }

    #[test]
    fn another_value_says_nothing() {
        for there in [0, 1, 3, 32767] {
            for operations in
                [Operations::at_most(0, 2, 0), Operations::at_least(0, 2, 0), Operations::adjust(0, 2, 5, 2)]
            {
                assert_eq!(run(&operations, there, 0), Err(Errno::EAGAIN));
            }
        }
    }

    #[test]
    fn bytes_are_those_of_the_kernel() {
        let bytes = Operations::adjust(0x102, 0, 1, 0).bytes();
        let first = [0x02, 0x01, 0, 0, 0, 0x08];
        let (up, down) = ([0x02, 0x01, 1, 0, 0, 0x08], [0x02, 0x01, 0xff, 0xff, 0, 0x18]);
        assert_eq!(bytes, [first, up, down].concat());
    }
}
