//! Page files written and read past the page cache (O_DIRECT): images that are large beside what memory is left would drive everything else out of
//! it, and who writes them would be made to wait for the disk in any case, when as much is dirty as the kernel allows.
//!
//! What is written is pages, by blocks, from pages and to multiples of a page, which suits every file system that can do it with sectors of a page or less.

use super::PAGE;
use super::available::available;
use super::pages::BLOCK_SIZE;
use crate::sys;
use anyhow::Result;
use nix::sys::statfs::fstatfs;
use std::fs::{File, OpenOptions};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};

const BLOCK: usize = 1 << 20;
const _: () = assert!(BLOCK as u64 == BLOCK_SIZE);

/// As much is not worth a thought.
const SMALL: u64 = 16 << 20;

/// When that is done (`--direct-io`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum DirectIo {
    /// If page contents have more bytes than half of the memory that is left.
    #[default]
    Auto,
    /// Wherever the file system can do it.
    Always,
    /// Never.
    Never,
}

impl DirectIo {
    /// Whether it is to be done for so many bytes.
    fn suits(self, bytes: u64) -> bool {
        match self {
            // What is left is looked for while the tree stands still.
            Self::Auto => bytes > SMALL && bytes > available() / 2,
            Self::Always => true,
            Self::Never => false,
        }
    }
}

/// Whether a file system can do it shows when it is tried: the file is opened once more. Files in memory are not for that.
fn open_again(file: &File, options: &mut OpenOptions) -> Option<File> {
    if sys::is_tmpfs(fstatfs(file)) == Ok(true) {
        return None;
    }
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    options.custom_flags(libc::O_DIRECT).open(path).inspect_err(|e| log::debug!("no direct I/O: {e}")).ok()
}

/// A page file for writing so, if it is to be and can be for so many bytes.
pub(super) fn for_writing(file: &File, wish: DirectIo, bytes: u64) -> Option<File> {
    wish.suits(bytes).then(|| open_again(file, OpenOptions::new().write(true))).flatten()
}

/// A page file for reading so, if it is to be and can be.
pub(super) fn for_reading(file: &File, wish: DirectIo) -> Option<File> {
    let bytes = file.metadata().ok()?.len();
    let direct = wish.suits(bytes).then(|| open_again(file, OpenOptions::new().read(true))).flatten()?;
    // Tasks could not read otherwise if the second page were refused: that is to show now.
    let mut room = Aligned::new(PAGE);
    let read = direct.read_at(room.bytes(), PAGE as u64);
    read.inspect_err(|e| log::debug!("no direct I/O: {e}")).is_ok().then_some(direct)
}

/// Room that begins with a page.
#[derive(Debug)]
pub(crate) struct Aligned {
    room: Vec<u8>,
    from: usize,
    len: usize,
}

impl Aligned {
    /// Of so many bytes, which cost nothing until they are touched.
    pub(crate) fn new(len: usize) -> Self {
        let room = vec![0; len + PAGE];
        let from = room.as_ptr().align_offset(PAGE).min(PAGE);
        Self { room, from, len }
    }

    /// All of it.
    pub(crate) fn bytes(&mut self) -> &mut [u8] {
        &mut self.room[self.from..self.from + self.len]
    }
}

/// Packed pages end anywhere: what does not fill a block yet waits here.
#[derive(Debug)]
pub(super) struct Tail {
    block: Aligned,
    /// Bytes that wait.
    len: usize,
    /// Where the block goes.
    place: u64,
}

impl Tail {
    pub(super) fn new() -> Self {
        Self { block: Aligned::new(BLOCK), len: 0, place: 0 }
    }

    /// Adds bytes, and has each block written that is full. Returns where the bytes are.
    pub(super) fn add(&mut self, mut bytes: &[u8], write: impl Fn(&[u8], u64) -> Result<()>) -> Result<u64> {
        let place = self.place + self.len as u64;
        while !bytes.is_empty() {
            let (now, later) = bytes.split_at(bytes.len().min(BLOCK - self.len));
            self.block.bytes()[self.len..][..now.len()].copy_from_slice(now);
            self.len += now.len();
            bytes = later;
            if self.len == BLOCK {
                write(self.block.bytes(), self.place)?;
                self.place += BLOCK_SIZE;
                self.len = 0;
            }
        }
        Ok(place)
    }

    /// Has the rest written, which is filled up to whole pages: the file is to be cut.
    pub(super) fn finish(&mut self, write: impl Fn(&[u8], u64) -> Result<()>) -> Result<()> {
        let end = self.len.next_multiple_of(PAGE);
        self.block.bytes()[self.len..end].fill(0);
        write(&self.block.bytes()[..end], self.place)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::RefCell;

    #[test]
    fn what_is_added_lies_side_by_side() {
        let written = RefCell::new(Vec::new());
        let write = |bytes: &[u8], place: u64| {
            assert_eq!((place, bytes.len() % PAGE), (written.borrow().len() as u64, 0));
            assert_eq!(bytes.as_ptr().align_offset(PAGE), 0);
            written.borrow_mut().extend_from_slice(bytes);
            Ok(())
        };
        let mut tail = Tail::new();
        let mut all = Vec::new();
        for (byte, len) in (1..).zip([0, 5000, BLOCK - 5000, 7, 3 * BLOCK, 123]) {
            assert_eq!(tail.add(&vec![byte; len], write).unwrap(), all.len() as u64);
            all.extend(vec![byte; len]);
        }
        tail.finish(write).unwrap();
        assert_eq!(written.borrow().len(), all.len().next_multiple_of(PAGE));
        assert!(written.borrow().starts_with(&all));
    }

    #[test]
    fn small_images_go_by_the_cache() {
        assert!(!DirectIo::Auto.suits(1 << 20) && DirectIo::Auto.suits(u64::MAX));
        assert!(DirectIo::Always.suits(0) && !DirectIo::Never.suits(u64::MAX));
    }
}
