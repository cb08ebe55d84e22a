//! Which blocks of pages are checked when they are used.

use super::sample::Sample;
use crate::store::Checkpoint;
use images::Addr;
use images::memory::{BLOCK_PAGES, Run};
use shared::plan::lazy::Lazy;

/// Whatever images say: nobody reads what has not been checked.
#[test]
fn what_others_than_tasks_have_is_checked_before() {
    let dir = Sample::golden().with_pages(4 * BLOCK_PAGES).written();
    let mut checkpoint = Checkpoint::read(dir.path()).unwrap();
    let run = |first_page, pages| Run { start: Addr(0x10_0000), pages, first_page };
    checkpoint.memory.shared.iter_mut().for_each(|shared| shared.runs.clear());
    for path in &mut checkpoint.files.paths {
        path.deleted.iter_mut().chain(&mut path.embedded).for_each(|copy| copy.runs.clear());
    }
    let late = |checkpoint: &Checkpoint| {
        let lazy = Lazy { areas: Vec::new(), runs: vec![run(0, 4 * BLOCK_PAGES)] };
        checkpoint.unchecked(&[lazy]).into_keys().collect::<Vec<u64>>()
    };
    assert_eq!(late(&checkpoint), [0, 1, 2, 3]);
    checkpoint.memory.shared.first_mut().unwrap().runs = vec![run(BLOCK_PAGES + 3, 1)];
    assert_eq!(late(&checkpoint), [0, 2, 3]);
    let path = checkpoint.files.paths.iter_mut().find(|path| path.deleted.is_some()).unwrap();
    path.embedded = path.deleted.clone();
    path.embedded.as_mut().unwrap().runs = vec![run(2 * BLOCK_PAGES - 1, 2)];
    assert_eq!(late(&checkpoint), [0, 3]);
    let deleted = checkpoint.files.paths.iter_mut().find_map(|path| path.deleted.as_mut());
    deleted.unwrap().runs = vec![run(0, 1)];
    assert_eq!(late(&checkpoint), [3]);
}
