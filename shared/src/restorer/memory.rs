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

/// A segment from this size on is read in pieces.
const LARGE: usize = 64 << 10;
/// Bytes of a piece.
const PIECE: usize = 512 << 10;

/// Fills that were asked for and not yet carried out.
#[derive(Debug)]
pub(super) struct Fills {
    iov: [IoVec; BATCH],
    count: usize,
    offset: u64,
    bytes: u64,
    /// Bytes that the current piece leaves of its segment.
    cut: Word,
}

impl Fills {
    pub(super) const fn new() -> Self {
        Self { iov: [IoVec { base: 0, len: 0 }; BATCH], count: 0, offset: 0, bytes: 0, cut: 0 }
    }

    /// Adds one, after carrying out the others if it does not continue them in the page file. If it continues the last one in memory, too, both are
    /// one segment: areas that lie side by side then have their pages made at once, however small they are.
    pub(super) fn add(&mut self, session: &Session, addr: u64, len: u64, offset: u64) -> Result<(), Failure> {
        if self.count > 0 && offset != self.offset + self.bytes {
            self.flush(session)?;
        }
        let word = |value: u64| Word::try_from(value).map_err(|_| Failure::wrong(value));
        let (base, size) = (word(addr)?, word(len)?);
        match self.iov[..self.count].last_mut() {
            Some(last) if last.base.checked_add(last.len) == Some(base) => last.len += size,
            _ => {
                if self.count == BATCH {
                    self.flush(session)?;
                }
                if self.count == 0 {
                    self.offset = offset;
                }
                self.iov[self.count] = IoVec { base, len: size };
                self.count += 1;
            }
        }
        self.bytes += len;
        Ok(())
    }

    /// Carries out what is left. The kernel may read less than asked for (2 GiB at most a call): it goes on there.
    pub(super) fn flush(&mut self, session: &Session) -> Result<(), Failure> {
        let fd = session.fds[SLOT_PAGES as usize];
        let mut first = 0;
        while first < self.count {
            let count = self.prepare(first);
            // SAFETY: the plan mapped these ranges writable, for the task alone.
            let got = unsafe { sys::preadv(fd, &self.iov[first..first + count], self.offset) };
            self.restore_length(first);
            let got = got.map_err(|errno| Failure::new(errno, self.offset))?;
            if got == 0 {
                return Err(Failure::wrong(self.offset));
            }
            if session.start.pages_once != 0 {
                sys::punch_hole(fd, self.offset, got as u64);
            }
            self.offset += got as u64;
            first = self.advance(first, got);
        }
        self.count = 0;
        self.bytes = 0;
        Ok(())
    }

    /// How many segments the next read takes. One that is large is cut to a piece, and its pages are made at once
    /// rather than by a fault each; a piece small enough that they are still in the cache when they are read into.
    fn prepare(&mut self, first: usize) -> usize {
        const MADV_POPULATE_WRITE: usize = 23;
        let segment = &mut self.iov[first];
        self.cut = 0;
        if (segment.len as usize) < LARGE {
            let small = self.iov[first..self.count].iter().position(|segment| segment.len as usize >= LARGE);
            return small.unwrap_or(self.count - first);
        }
        if segment.len as usize > PIECE {
            self.cut = segment.len - PIECE as Word;
            segment.len = PIECE as Word;
        }
        // SAFETY: makes pages of memory that the plan mapped writable. It only saves time: kernels before 5.14 do
        // not know the advice, and then each page comes by a fault.
        let _ = unsafe {
            sys::call(
                sys::nr::__NR_madvise,
                &[segment.base as usize, segment.len as usize, MADV_POPULATE_WRITE],
            )
        };
        1
    }

    fn restore_length(&mut self, first: usize) {
        self.iov[first].len += self.cut;
        self.cut = 0;
    }

    /// Takes `got` bytes off the front; the first segment that has bytes left.
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
