//! Files whose reads and writes fail, are cut short or interrupted, as the points of images want it.

use super::{Point, is_due, is_set, point};
use std::fs::File;
use std::io::{ErrorKind, Read, Result, Write};
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, Ordering};

/// An image. It is written and read as the file, unless a fault is armed.
#[derive(Debug)]
pub struct Faulty<'a>(pub &'a File);

/// How many of `len` bytes a call is to move that may be a short one.
fn shortened(by: Point, len: usize) -> usize {
    if len > 1 && is_set(by) { len.div_ceil(2) } else { len }
}

/// Every other call is interrupted.
fn interrupted() -> Result<()> {
    static LAST: AtomicBool = AtomicBool::new(false);
    if is_set(Point::ImageInterrupted) && !LAST.fetch_xor(true, Ordering::Relaxed) {
        return Err(ErrorKind::Interrupted.into());
    }
    Ok(())
}

/// What is to happen before a write of `len` bytes; how many are to be written.
///
/// # Errors
/// As the write is to fail.
fn before_write(len: usize) -> Result<usize> {
    point(Point::ImageWrite)?;
    point(Point::ImageFull)?;
    interrupted()?;
    Ok(shortened(Point::ImageWriteShort, len))
}

fn before_read(len: usize) -> Result<usize> {
    point(Point::ImageRead)?;
    interrupted()?;
    if is_due(Point::ImageCut) {
        return Ok(0);
    }
    Ok(shortened(Point::ImageReadShort, len))
}

impl Write for Faulty<'_> {
    fn write(&mut self, bytes: &[u8]) -> Result<usize> {
        let len = before_write(bytes.len())?;
        self.0.write(&bytes[..len])
    }

    fn flush(&mut self) -> Result<()> {
        self.0.flush()
    }
}

impl Read for Faulty<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> Result<usize> {
        let len = before_read(buffer.len())?;
        let got = self.0.read(&mut buffer[..len])?;
        if got > 0 && is_due(Point::ImageCorrupt) {
            buffer[got - 1] ^= 1;
        }
        Ok(got)
    }
}

impl FileExt for Faulty<'_> {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> Result<usize> {
        let len = before_read(buffer.len())?;
        self.0.read_at(&mut buffer[..len], offset)
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> Result<usize> {
        let len = before_write(bytes.len())?;
        self.0.write_at(&bytes[..len], offset)
    }
}
