//! A checkpoint as one stream.

use super::sample::{Sample, golden_dir};
use crate::store::stream::{GivenUp, Stream};
use crate::store::{Checkpoint, DirectIo, Left, Source, Spool, Writer};
use images::container::Kind;
use images::id::PAGE_SIZE;
use images::memory::{Chunk, Method, Packing};
use nix::fcntl::{FallocateFlags, fallocate};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::fs::{self, File};
use std::io::{Read, Seek};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::process::{Command, Stdio};
use std::thread;

impl Sample {
    /// The bytes of it as a stream, as a dump would write them, its blocks in the order that is given.
    fn streamed(&self, blocks: &[u64]) -> Vec<u8> {
        let mut file = tempfile::tempfile().unwrap();
        self.write_to(file.try_clone().unwrap(), blocks).unwrap();
        let mut bytes = Vec::new();
        file.rewind().unwrap();
        file.read_to_end(&mut bytes).unwrap();
        bytes
    }

    fn write_to(&self, out: File, blocks: &[u64]) -> anyhow::Result<u64> {
        let writer = Writer::stream(Stream::to(out.into())?);
        writer.pages().begin(self.pages.len() as u64, false, DirectIo::Never)?;
        // Each by a thread of its own: a later one waits for its turn.
        thread::scope(|scope| {
            let put = |block: u64| {
                let bytes = self.pages.chunks(256 * 4096).nth(usize::try_from(block)?).unwrap();
                writer.pages().put(bytes, block * 256 * PAGE_SIZE).inspect_err(|_| writer.pages().give_up())
            };
            let writers: Vec<_> = blocks.iter().map(|&block| scope.spawn(move || put(block))).collect();
            writers.into_iter().try_for_each(|writer| writer.join().unwrap())
        })?;
        writer.finish(self.inventory.clone(), &self.tree, &self.files, &self.memory)
    }
}

fn received(stream: &[u8]) -> anyhow::Result<Checkpoint> {
    let spool = Spool::receive(stream, &std::env::temp_dir())?;
    Checkpoint::read_showing(&Source::Stream(spool), false)
}

fn error(stream: &[u8]) -> String {
    format!("{:#}", received(stream).unwrap_err())
}

#[test]
fn what_is_written_is_read() {
    let sample = Sample::golden().with_pages(600);
    let read = received(&sample.streamed(&[2, 1, 0])).unwrap();
    assert_eq!((&read.tree, &read.files, &read.memory), (&sample.tree, &sample.files, &sample.memory));
    let mut pages = vec![0; sample.pages.len()];
    read.pages.read_exact_at(&mut pages, 0).unwrap();
    assert!(pages == sample.pages);
}

/// Packed pages come in parts, in whatever order they were ready.
#[test]
fn parts_are_put_together() {
    let mut sample = Sample::golden().with_pages(40);
    let out = tempfile::tempfile().unwrap();
    let writer = Writer::stream(Stream::to(out.try_clone().unwrap().into()).unwrap());
    writer.pages().begin(0, true, DirectIo::Never).unwrap();
    let (first, second) = sample.pages.split_at(32 * 4096);
    let chunk = |bytes: &[u8]| Chunk {
        place: writer.pages().append(bytes).unwrap(),
        size: u32::try_from(bytes.len()).unwrap(),
    };
    let (second, first) = (chunk(second), chunk(first));
    sample.memory.packing = Some(Packing { method: Method::Lz4, chunks: vec![first, second] });
    writer.finish(sample.inventory.clone(), &sample.tree, &sample.files, &sample.memory).unwrap();
    let mut bytes = vec![0; usize::try_from(out.metadata().unwrap().len()).unwrap()];
    out.read_exact_at(&mut bytes, 0).unwrap();
    let read = received(&bytes).unwrap();
    let mut pages = vec![0; sample.pages.len()];
    read.pages.read_exact_at(&mut pages, 0).unwrap();
    assert!(pages == sample.pages);
}

/// Kept images are in a directory of their own, and gone when tasks run or when pages have been given back.
#[test]
fn what_is_kept_is_whole() {
    let stream = Sample::golden().with_pages(600).streamed(&[0, 1, 2]);
    // In memory, where pages are given back.
    let room = tempfile::tempdir_in("/dev/shm").unwrap();
    let kept = || {
        let mut spool = Spool::receive(&stream[..], room.path()).unwrap();
        spool.keep(room.path()).unwrap();
        spool
    };
    let spool = kept();
    let Left::All(dir) = spool.left() else { panic!("{:?}", spool.left()) };
    assert_eq!(fs::metadata(&dir).unwrap().mode() & 0o777, 0o700);
    Checkpoint::read(&dir).unwrap();
    spool.release(true);
    assert!(matches!(spool.left(), Left::Nothing));
    assert_eq!(fs::read_dir(room.path()).unwrap().count(), 0);
    let spool = kept();
    let Left::All(dir) = spool.left() else { panic!("{:?}", spool.left()) };
    drop(spool);
    Checkpoint::read(&dir).unwrap();
    fs::remove_dir_all(dir).unwrap();
    let spool = kept();
    let hole = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
    fallocate(spool.open(Kind::Pages).unwrap(), hole, 0, 1 << 20).unwrap();
    assert!(matches!(spool.left(), Left::Parts));
    assert_eq!(fs::read_dir(room.path()).unwrap().count(), 0);
}

/// Wherever it is cut off, down to the last byte.
#[test]
fn a_stream_that_is_cut_off_is_refused() {
    let whole = Sample::golden().streamed(&[0]);
    received(&whole).unwrap();
    for len in (0..whole.len()).step_by(511).chain([whole.len() - 1]) {
        let error = error(&whole[..len]);
        assert!(error.contains("is cut off"), "{len} of {}: {error}", whole.len());
    }
}

#[test]
fn a_byte_that_changed_is_found() {
    let whole = Sample::golden().streamed(&[0]);
    let used = whole.len() - 1024;
    for at in (0..used).step_by(97) {
        let mut changed = whole.clone();
        changed[at] ^= 0x10;
        // Of padding and of headers, not all has to be as it was: then what is read is.
        if let Ok(read) = received(&changed) {
            let golden = Checkpoint::read(&golden_dir()).unwrap();
            assert_eq!(
                (read.tree, read.files, read.memory),
                (golden.tree, golden.files, golden.memory),
                "{at}"
            );
        }
    }
}

/// tar(1) unpacks what a dump writes, and what it packs is read.
#[test]
fn other_tools_can_have_it() {
    let sample = Sample::golden().with_pages(300);
    let dir = tempfile::tempdir().unwrap();
    let archive = dir.path().join("a.tar");
    fs::write(&archive, sample.streamed(&[1, 0])).unwrap();
    let images = dir.path().join("images");
    fs::create_dir(&images).unwrap();
    let tar = |arguments: &[&str]| {
        let output = Command::new("tar").current_dir(dir.path()).args(arguments).output().unwrap();
        assert!(
            output.status.success() && output.stderr.is_empty(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        output.stdout
    };
    tar(&["xf", "a.tar", "-C", "images"]);
    assert_eq!(Checkpoint::read(&images).unwrap().memory, sample.memory);
    fs::write(images.join("notes"), "mine").unwrap();
    for arguments in [&["c", "images"][..], &["c", "--format=pax", "-C", "images", "."]] {
        assert_eq!(received(&tar(arguments)).unwrap().memory, sample.memory);
    }
    // One with two checkpoints in it is none.
    let error = error(&tar(&["c", "--hard-dereference", "images", "./images/pages.img"]));
    assert!(error.contains("there are two of these"), "{error}");
}

#[test]
fn what_is_none_is_named() {
    assert!(error(b"").contains("is cut off"), "{}", error(b""));
    let text = [b'x'; 4096];
    assert!(error(&text).contains("is none of crr's, or damaged"), "{}", error(&text));
    assert!(error(&[0; 1024]).contains("there are no images in it"), "{}", error(&[0; 1024]));
}

/// A reader that goes away while everything is on its way in the pipe has not got it, and so it is said.
#[test]
fn a_reader_that_goes_away_is_noticed() {
    for taken in [0, 512, 5000] {
        let (read, write) = nix::unistd::pipe().unwrap();
        let reader = thread::spawn(move || {
            let mut buffer = vec![0; taken];
            File::from(read).read_exact(&mut buffer).unwrap();
        });
        let error = Sample::golden().write_to(write.into(), &[0]).unwrap_err();
        assert!(format!("{error:#}").contains("has gone away"), "{taken}: {error:#}");
        reader.join().unwrap();
    }
    let mut cat = Command::new("cat").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let (input, mut output) = (cat.stdin.take().unwrap(), cat.stdout.take().unwrap());
    let writer = thread::spawn(move || {
        let input = std::os::fd::OwnedFd::from(input);
        Sample::golden().write_to(input.into(), &[0])
    });
    let mut bytes = Vec::new();
    output.read_to_end(&mut bytes).unwrap();
    assert!(writer.join().unwrap().is_ok() && cat.wait().unwrap().success());
    received(&bytes).unwrap();
}

/// When another thread fails, a write that waits for the reader ends, and so does one that waits for its turn.
#[test]
fn nobody_waits_when_another_has_failed() {
    let (reader, pipe) = nix::unistd::pipe().unwrap();
    let stream = Stream::to(pipe).unwrap();
    thread::scope(|scope| {
        let writers = [0, 2 << 20].map(|place| {
            let stream = &stream;
            scope.spawn(move || stream.put(&[0; 1 << 20], place))
        });
        // As much as there is room for: the first is about to wait, with the lock.
        while poll(&mut [PollFd::new(reader.as_fd(), PollFlags::POLLIN)], PollTimeout::NONE) != Ok(1) {}
        stream.give_up();
        for writer in writers {
            assert!(writer.join().unwrap().unwrap_err().is::<GivenUp>());
        }
    });
    assert!(stream.append(&[1]).unwrap_err().is::<GivenUp>());
}
