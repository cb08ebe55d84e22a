//! Page contents: consecutive fills become few large reads.
//!
//! # Safety
//! Writes only where the plan mapped writable memory for the task.

use super::{Failure, Session};
use crate::abi::native::{IoVec, Word};
use crate::proto::SLOT_PAGES;
use crate::sys;

/// Segments of one read; the kernel's UIO_MAXIOV is 1024.
const BATCH: usize = 256;

/// Fills that were asked for and not yet carried out.
#[derive(Debug)]
pub(super) struct Fills {
    iov: [IoVec; BATCH],
    count: usize,
    offset: u64,
    bytes: u64,
}

impl Fills {
    pub(super) const fn new() -> Self {
        Self { iov: [IoVec { base: 0, len: 0 }; BATCH], count: 0, offset: 0, bytes: 0 }
    }

    /// Adds one, after carrying out the others if it does not continue them in the page file.
    pub(super) fn add(&mut self, session: &Session, addr: u64, len: u64, offset: u64) -> Result<(), Failure> {
        if self.count == BATCH || (self.count > 0 && offset != self.offset + self.bytes) {
            self.flush(session)?;
        }
        if self.count == 0 {
            self.offset = offset;
        }
        let word = |value: u64| Word::try_from(value).map_err(|_| Failure::wrong(value));
        self.iov[self.count] = IoVec { base: word(addr)?, len: word(len)? };
        self.count += 1;
        self.bytes += len;
        Ok(())
    }

    /// Carries out what is left. The kernel may read less than asked for (2 GiB at most a call): it goes on there.
    pub(super) fn flush(&mut self, session: &Session) -> Result<(), Failure> {
        let fd = session.fds[SLOT_PAGES as usize];
        let mut first = 0;
        while first < self.count {
            // SAFETY: the plan mapped these ranges writable, for the task alone.
            let got = unsafe { sys::preadv(fd, &self.iov[first..self.count], self.offset) }
                .map_err(|errno| Failure::new(errno, self.offset))?;
            if got == 0 {
                return Err(Failure::wrong(self.offset));
            }
            self.offset += got as u64;
            first = self.advance(first, got);
        }
        self.count = 0;
        self.bytes = 0;
        Ok(())
    }

    /// Takes `got` bytes off the front; the first segment that has bytes left.
    #[allow(clippy::cast_possible_truncation)] // A segment is no longer than the address space, which a word covers.
    fn advance(&mut self, mut first: usize, mut got: usize) -> usize {
        while first < self.count {
            let segment = &mut self.iov[first];
            if got < segment.len as usize {
                segment.base += got as Word;
                segment.len -= got as Word;
                break;
            }
            got -= segment.len as usize;
            first += 1;
        }
        first
    }
}
