//! Numbers of descriptors that no task of the tree has.

use anyhow::{Context, Result, bail};
use images::task::Task;
use nix::sys::resource::{Resource, getrlimit};
use std::collections::BTreeSet;

/// Where there is room for descriptors that are in no task's way.
#[derive(Debug)]
pub(super) struct Numbers {
    used: BTreeSet<u32>,
}

impl Numbers {
    pub(super) fn of(tasks: &[Task]) -> Self {
        Self { used: tasks.iter().flat_map(|task| &task.fds).map(|entry| entry.fd.0).chain(0..3).collect() }
    }

    /// The first of as many numbers in a row as it takes to move `count` descriptors there one by one: the places that
    /// some of them have already are skipped, and so is that of the socket.
    ///
    /// # Errors
    /// If they are beyond RLIMIT_NOFILE.
    pub(super) fn free(&self, count: u64) -> Result<u64> {
        let wanted = 2 * count + 1;
        let mut from = 0;
        for &used in &self.used {
            if u64::from(used) >= from + wanted {
                break;
            }
            from = u64::from(used) + 1;
        }
        let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).context("getrlimit")?;
        if from + wanted > hard {
            bail!(
                "{wanted} file descriptors from {from} on are needed, this process may have {hard} (RLIMIT_NOFILE)"
            );
        }
        Ok(from)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gaps_between_numbers_are_used() {
        let numbers = |used: &[u32]| Numbers { used: used.iter().copied().chain(0..3).collect() };
        assert_eq!(numbers(&[]).free(1).unwrap(), 3);
        assert_eq!(numbers(&[6]).free(1).unwrap(), 3);
        assert_eq!(numbers(&[5]).free(1).unwrap(), 6);
        assert_eq!(numbers(&[5, 8, 20]).free(2).unwrap(), 9);
    }
}
