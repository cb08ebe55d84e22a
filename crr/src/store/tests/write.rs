//! Writing: whole or not at all.

use super::sample::{Sample, error, golden_dir};
use crate::store::{Checkpoint, Writer, block_crcs};
use images::container::Kind;
use std::fs;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::Path;

fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

const ALL: [&str; 5] = ["files.img", "inventory.img", "memory.img", "pages.img", "tree.img"];

#[test]
fn what_is_written_is_read() {
    let sample = Sample::golden().with_pages(600);
    let dir = tempfile::tempdir().unwrap();
    let bytes = sample.write(dir.path()).unwrap();
    let read = Checkpoint::read(dir.path()).unwrap();
    assert_eq!((&read.tree, &read.files, &read.memory), (&sample.tree, &sample.files, &sample.memory));
    assert_eq!(names(dir.path()), ALL);
    let sizes = ALL.iter().map(|name| fs::metadata(dir.path().join(name)).unwrap().len());
    assert_eq!(bytes, sizes.sum::<u64>());
    assert_eq!(fs::read(dir.path().join("pages.img")).unwrap(), sample.pages);
}

#[test]
fn the_golden_checkpoint_is_written_as_it_was_read() {
    let sample = Sample::golden();
    let dir = sample.written();
    for name in ALL {
        let [golden, written] = [&golden_dir(), dir.path()].map(|dir| fs::read(dir.join(name)).unwrap());
        assert_eq!(golden, written, "{name}");
    }
}

#[test]
fn a_checkpoint_without_pages_is_one() {
    let mut sample = Sample::golden();
    (sample.memory.page_count, sample.pages) = (0, Vec::new());
    sample.memory.block_crcs.clear();
    sample.memory.shared.iter_mut().for_each(|shared| shared.runs.clear());
    sample.memory.spaces.iter_mut().for_each(|space| space.runs.clear());
    let copies =
        sample.files.paths.iter_mut().flat_map(|path| path.deleted.iter_mut().chain(&mut path.embedded));
    copies.for_each(|file| file.runs.clear());
    Checkpoint::read(sample.written().path()).unwrap();
}

#[test]
fn files_are_for_their_owner_only() {
    let dir = Sample::golden().written();
    for name in ALL {
        assert_eq!(
            fs::metadata(dir.path().join(name)).unwrap().permissions().mode() & 0o777,
            0o600,
            "{name}"
        );
    }
}

#[test]
fn an_abandoned_writer_leaves_nothing_behind() {
    let dir = tempfile::tempdir().unwrap();
    let writer = Writer::create(&dir.path().into()).unwrap();
    writer.pages().put(b"half a page", 0).unwrap();
    drop(writer);
    assert_eq!(names(dir.path()), [""; 0]);
}

#[test]
fn an_older_checkpoint_stays_until_the_new_one_is_whole() {
    let old = Sample::golden();
    let dir = old.written();
    let writer = Writer::create(&dir.path().into()).unwrap();
    writer.pages().put(b"half a page", 0).unwrap();
    Checkpoint::read(dir.path()).unwrap();
    drop(writer);
    Checkpoint::read(dir.path()).unwrap();

    let mut new = old.with_pages(10);
    new.inventory.kernel_release = "6.19.0".to_owned();
    new.write(dir.path()).unwrap();
    assert_eq!(Checkpoint::read(dir.path()).unwrap().inventory.kernel_release, "6.19.0");
    assert_eq!(names(dir.path()), ALL);
}

#[test]
fn what_could_not_be_restored_is_not_written() {
    let old = Sample::golden();
    let dir = old.written();
    let mut new = old;
    new.tree.tasks[1].ppid = 4711;
    let error = format!("{:#}", new.write(dir.path()).unwrap_err());
    assert!(error.contains("tree.img: is inconsistent: task 101: its parent 4711"), "{error}");
    Checkpoint::read(dir.path()).unwrap();
    assert_eq!(names(dir.path()), ALL);
}

#[test]
fn two_dumps_do_not_share_a_directory() {
    let dir = tempfile::tempdir().unwrap();
    let first = Writer::create(&dir.path().into()).unwrap();
    let error = format!("{:#}", Writer::create(&dir.path().into()).unwrap_err());
    assert!(error.contains("another crr dump is writing to it"), "{error}");
    drop(first);
    Writer::create(&dir.path().into()).unwrap();
}

#[test]
fn what_a_killed_dump_left_is_replaced_and_never_followed() {
    let dir = tempfile::tempdir().unwrap();
    let elsewhere = dir.path().join("precious");
    fs::write(&elsewhere, "precious").unwrap();
    std::os::unix::fs::symlink(&elsewhere, dir.path().join("pages.img.tmp")).unwrap();
    fs::write(dir.path().join("tree.img.tmp"), "half").unwrap();
    Sample::golden().write(dir.path()).unwrap();
    assert_eq!(fs::read(elsewhere).unwrap(), b"precious");
    Checkpoint::read(dir.path()).unwrap();
}

/// A dump killed while it renames: the inventory goes first and comes last.
#[test]
fn a_directory_without_inventory_is_an_unfinished_dump() {
    let dir = Sample::golden().written();
    fs::remove_file(dir.path().join(Kind::Inventory.file_name())).unwrap();
    assert!(
        error(dir.path()).ends_with("there is no inventory.img: the dump did not finish, or a file was lost")
    );
}

#[test]
fn checksums_cover_whole_and_broken_blocks() {
    let file = tempfile::tempfile().unwrap();
    file.set_len(300 * 4096).unwrap();
    file.write_all_at(b"x", 299 * 4096).unwrap();
    let mut last = vec![0; 44 * 4096];
    last[43 * 4096] = b'x';
    let expected = [images::container::crc32c(&vec![0; 256 * 4096]), images::container::crc32c(&last)];
    assert_eq!(block_crcs(&file, 300).unwrap(), expected);
    assert!(block_crcs(&file, 0).unwrap().is_empty());
    assert!(block_crcs(&file, 301).is_err());
}
