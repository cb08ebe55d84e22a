//! Every way a directory can fail to be a checkpoint, each with its own message.

use super::sample::{Sample, damage, error, reseal};
use images::container::Kind;
use std::fs;
use std::path::Path;

const METADATA: [Kind; 4] = [Kind::Inventory, Kind::Tree, Kind::Files, Kind::Memory];

/// Checks that the message names the checkpoint, the file and ends as expected.
#[track_caller]
fn assert_error(dir: &Path, kind: Kind, end: &str) {
    let (error, name) = (error(dir), kind.file_name());
    let start = format!("checkpoint {}: {name}: ", dir.display());
    assert!(error.starts_with(&start) && error.contains(end), "{error}\ndoes not end: {name}: {end}");
}

#[test]
fn a_missing_directory() {
    assert_eq!(
        error(Path::new("/nonexistent")),
        "checkpoint /nonexistent: No such file or directory (os error 2)"
    );
}

#[test]
fn an_empty_directory() {
    let dir = tempfile::tempdir().unwrap();
    assert!(error(dir.path()).ends_with(": the directory is empty"));
}

#[test]
fn a_directory_of_other_things() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("photo.jpg"), "x").unwrap();
    assert!(error(dir.path()).ends_with("there is no inventory.img: this is not a checkpoint"));
}

#[test]
fn a_checkpoint_of_criu() {
    let dir = tempfile::tempdir().unwrap();
    // The head of an inventory of CRIU 4: magic, size of the entry, entry.
    let image = [0x16, 0x31, 0x31, 0x58, 4, 0, 0, 0, 8, 2, 0x10, 1];
    fs::write(dir.path().join("inventory.img"), image).unwrap();
    assert_error(dir.path(), Kind::Inventory, "is an inventory of CRIU, whose images crr does not restore");
}

#[test]
fn missing_files() {
    for kind in [Kind::Tree, Kind::Files, Kind::Memory, Kind::Pages] {
        let dir = Sample::golden().written();
        fs::remove_file(dir.path().join(kind.file_name())).unwrap();
        assert_error(dir.path(), kind, "is missing");
    }
}

#[test]
fn files_that_are_no_files() {
    for kind in Kind::ALL {
        let dir = Sample::golden().written();
        let path = dir.path().join(kind.file_name());
        fs::remove_file(&path).unwrap();
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRUSR).unwrap();
        assert_error(dir.path(), kind, "is not a regular file");
    }
}

#[test]
fn cut_files() {
    for kind in [Kind::Tree, Kind::Files, Kind::Memory, Kind::Pages] {
        let dir = Sample::golden().written();
        let mut size = 0;
        damage(dir.path(), kind, |bytes| {
            size = bytes.len();
            bytes.pop();
        });
        assert_error(dir.path(), kind, &format!("is cut off: it has {} bytes of {size}", size - 1));
    }
}

#[test]
fn empty_files() {
    for kind in METADATA {
        let dir = Sample::golden().written();
        damage(dir.path(), kind, Vec::clear);
        assert_error(dir.path(), kind, "is cut off: its 0 bytes are not even a header");
    }
}

#[test]
fn a_cut_inventory() {
    let dir = Sample::golden().written();
    damage(dir.path(), Kind::Inventory, |bytes| bytes.truncate(100));
    assert_error(dir.path(), Kind::Inventory, "has 100 bytes, by its header it must have ");
}

#[test]
fn oversized_files() {
    for kind in [Kind::Tree, Kind::Files, Kind::Memory, Kind::Pages] {
        let dir = Sample::golden().written();
        damage(dir.path(), kind, |bytes| bytes.push(0));
        assert_error(dir.path(), kind, "is oversized: it has ");
    }
}

/// Sparse, so that reading it whole would show.
#[test]
fn an_oversized_inventory() {
    let dir = Sample::golden().written();
    let path = dir.path().join("inventory.img");
    fs::OpenOptions::new().write(true).open(path).unwrap().set_len(1 << 40).unwrap();
    assert_error(dir.path(), Kind::Inventory, "is oversized: it has 1099511627776 bytes");
}

#[test]
fn swapped_files() {
    let dir = Sample::golden().written();
    let [tree, files, spare] = ["tree.img", "files.img", "spare"].map(|name| dir.path().join(name));
    fs::rename(&tree, &spare).unwrap();
    fs::rename(&files, &tree).unwrap();
    fs::rename(&spare, &files).unwrap();
    assert_error(dir.path(), Kind::Tree, "is a files image, not a tree image");
}

#[test]
fn files_of_another_checkpoint() {
    let sample = Sample::golden();
    for kind in [Kind::Tree, Kind::Files, Kind::Memory] {
        let mut other = sample.clone();
        other.tree.tasks[0].oom_score_adj = 0o77;
        other.files.pipes[0].contents[0] = b'I';
        other.memory.shared[0].ino = 1;
        let (dir, other) = (sample.written(), other.written());
        fs::copy(other.path().join(kind.file_name()), dir.path().join(kind.file_name())).unwrap();
        assert_error(dir.path(), kind, "is of another checkpoint: checksum ");
    }
}

#[test]
fn pages_of_another_checkpoint() {
    let dir = Sample::golden().written();
    damage(dir.path(), Kind::Pages, |bytes| bytes.rotate_left(4096));
    assert_error(dir.path(), Kind::Pages, "is corrupt: bytes from 0x0: checksum ");
}

#[test]
fn corrupt_metadata() {
    for kind in METADATA {
        let dir = Sample::golden().written();
        damage(dir.path(), kind, |bytes| bytes[50] ^= 4);
        assert_error(dir.path(), kind, "is corrupt: checksum ");
    }
}

#[test]
fn corrupt_pages_in_every_block() {
    let sample = Sample::golden().with_pages(700);
    for (at, block) in [(0, "0x0"), (256 * 4096 + 17, "0x100000"), (700 * 4096 - 1, "0x200000")] {
        let dir = sample.written();
        damage(dir.path(), Kind::Pages, |bytes| bytes[at] ^= 1);
        assert_error(dir.path(), Kind::Pages, &format!("is corrupt: bytes from {block}: checksum "));
    }
}

#[test]
fn newer_versions() {
    for kind in METADATA {
        let dir = Sample::golden().written();
        damage(dir.path(), kind, |bytes| bytes[10] = 99);
        reseal(dir.path(), kind);
        let known = kind.version();
        assert_error(dir.path(), kind, &format!("has format version 99; this crr reads version {known}"));
    }
}

#[test]
fn other_architectures() {
    for kind in METADATA {
        let dir = Sample::golden().written();
        damage(dir.path(), kind, |bytes| bytes[12] = 183);
        reseal(dir.path(), kind);
        assert_error(dir.path(), kind, "records tasks of another architecture (ELF machine 183)");
    }
}

#[test]
fn unknown_flags() {
    for kind in METADATA {
        let dir = Sample::golden().written();
        damage(dir.path(), kind, |bytes| bytes[14] = 1);
        reseal(dir.path(), kind);
        assert_error(dir.path(), kind, "uses format flags 0x1 that this crr does not know");
    }
}

#[test]
fn files_that_are_something_else() {
    for kind in METADATA {
        let dir = Sample::golden().written();
        damage(dir.path(), kind, |bytes| bytes[..9].copy_from_slice(b"#!/bin/sh"));
        assert_error(dir.path(), kind, "is not a crr image (wrong magic)");
    }
}
