//! The format does not change by accident: today's encoder writes the files checked in, byte for byte, and
//! today's decoder reads them.
//!
//! A wanted change bumps the kind's version, and in the same commit the files are written anew by
//! `cargo test -p images --test golden -- --ignored`, FORMAT.md and CHANGELOG.md are changed.
#![allow(clippy::unwrap_used)] // A failed step is a failed test.

mod sample;

use images::container::{Kind, TRAILER_SIZE, crc32c, decode};
use images::file::Files;
use images::inventory::Inventory;
use images::memory::Memory;
use images::task::Tree;
use std::path::{Path, PathBuf};

fn golden(kind: Kind) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(kind.file_name())
}

fn read(kind: Kind) -> Vec<u8> {
    std::fs::read(golden(kind)).unwrap()
}

#[test]
fn the_encoder_writes_the_golden_files() {
    for (kind, bytes) in sample::files_of_checkpoint() {
        let golden = read(kind);
        let differs = golden.iter().zip(&bytes).position(|(golden, today)| golden != today);
        assert_eq!(differs, None, "{}: first byte that differs", kind.file_name());
        assert_eq!(golden.len(), bytes.len(), "{}", kind.file_name());
    }
}

#[test]
fn the_decoder_reads_the_golden_files() {
    let inventory: Inventory = decode(Kind::Inventory, &read(Kind::Inventory)).unwrap();
    let tree: Tree = decode(Kind::Tree, &read(Kind::Tree)).unwrap();
    let files: Files = decode(Kind::Files, &read(Kind::Files)).unwrap();
    let memory: Memory = decode(Kind::Memory, &read(Kind::Memory)).unwrap();
    assert_eq!(tree.tasks.iter().map(|task| task.pid).collect::<Vec<_>>(), [100, 101]);
    assert_eq!(files.paths[1].path, b"/bin/sh");
    assert_eq!(memory.block_crcs, [crc32c(&read(Kind::Pages))]);
    assert_eq!(inventory.files.len(), 4);
    for entry in &inventory.files {
        let bytes = read(entry.kind);
        assert_eq!(entry.size, bytes.len() as u64);
        if entry.kind != Kind::Pages {
            assert_eq!(entry.crc, crc32c(&bytes[..bytes.len() - TRAILER_SIZE]));
        }
    }
}

/// An example of FORMAT.md, kept true here.
#[test]
fn the_example_of_the_format_description_is_right() {
    let expected = [
        b"crrimage".as_slice(),
        &[2, 0, 8, 0, 62, 0, 0, 0],
        &[9, 0, 0, 0, 0, 0, 0, 0],
        &[0; 8],
        // No tasks, no shell job, no zombies, no filters; no namespace, no semaphores, no message queues, nothing to undo, nobody apart.
        &[0; 9],
    ]
    .concat();
    let tree = Tree::default();
    let bytes = images::container::encode(Kind::Tree, &tree).unwrap();
    assert_eq!(bytes[..41], expected);
    assert_eq!(bytes[41..], crc32c(&expected).to_le_bytes());
}

#[test]
#[ignore = "writes the golden files instead of testing against them"]
fn write_the_golden_files() {
    for (kind, bytes) in sample::files_of_checkpoint() {
        std::fs::write(golden(kind), bytes).unwrap();
    }
}
