//! Random damage: reading ends with an error or with a checkpoint that makes sense, never with a panic.

use super::sample::{Sample, damage, reseal};
use crate::store::{Checkpoint, check};
use images::container::{HEADER_SIZE, Kind, TRAILER_SIZE};
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use proptest::sample::{Index, select};
use std::path::Path;

/// Bytes to change, and where to cut.
type Damage = (Vec<(Index, u8)>, Option<Index>);

fn any_damage() -> impl Strategy<Value = Damage> {
    (vec((any::<Index>(), any::<u8>()), 1..6), option::weighted(0.2, any::<Index>()))
}

/// Applies damage to a part of a file; tells whether that changed anything.
fn apply(bytes: &mut Vec<u8>, from: usize, keep: usize, (changes, cut): &Damage) -> bool {
    let before = bytes.clone();
    let end = bytes.len() - keep;
    for (at, byte) in changes {
        bytes[from + at.index(end - from)] = *byte;
    }
    if let Some(cut) = cut {
        bytes.drain(from + cut.index(end - from)..end);
    }
    *bytes != before
}

/// Reading must fail, or give records that hold together.
fn read_or_refuse(dir: &Path) {
    if let Ok(read) = Checkpoint::read(dir) {
        check::records(&read.inventory, &read.tree, &read.files, &read.memory).unwrap();
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn damage_is_noticed(kind in select(Kind::ALL.as_slice()), wanted in any_damage()) {
        let dir = Sample::golden().written();
        let mut changed = false;
        damage(dir.path(), kind, |bytes| changed = apply(bytes, 0, 0, &wanted));
        prop_assert_eq!(Checkpoint::read(dir.path()).is_err(), changed);
    }

    #[test]
    fn damage_under_right_checksums_reaches_the_checks_and_no_further(
        kind in select([Kind::Inventory, Kind::Tree, Kind::Files, Kind::Memory].as_slice()),
        wanted in any_damage(),
    ) {
        let dir = Sample::golden().written();
        damage(dir.path(), kind, |bytes| {
            apply(bytes, HEADER_SIZE, TRAILER_SIZE, &wanted);
        });
        reseal(dir.path(), kind);
        read_or_refuse(dir.path());
    }
}
