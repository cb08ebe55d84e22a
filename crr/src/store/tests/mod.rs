//! Tests of the image directory: what is written is read, and whatever else lies there is named.

mod sample;

use super::*;
use sample::Sample;

/// Writes a checkpoint into a new directory.
fn written(sample: &Sample) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    sample.write(dir.path()).unwrap();
    dir
}

#[test]
fn what_is_written_is_read() {
    let sample = sample::mixed();
    let dir = written(&sample);
    let read = Checkpoint::read(dir.path()).unwrap();
    assert_eq!(read.tree, sample.tree);
    assert_eq!(read.files, sample.files);
    assert_eq!(read.memory, sample.memory);
    assert_eq!(read.inventory.files.len(), 4);
}
