//! Whatever the records hold, they come back; whatever the bytes are, decoding ends with a record or an error.
#![allow(clippy::unwrap_used)] // A failed step is a failed test.

mod arbitrary;
mod sample;
mod seal;

use images::container::{Error, HEADER_SIZE, Kind, TRAILER_SIZE, decode, encode};
use images::file::Files;
use images::inventory::Inventory;
use images::memory::Memory;
use images::task::Tree;
use images::thread::Regs;
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::Index;
use seal::seal;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::collections::HashSet;
use std::fmt::Debug;
use std::mem::discriminant;

/// What a record tree needs to be tested.
trait Record: Serialize + DeserializeOwned + PartialEq + Debug {}
impl<T: Serialize + DeserializeOwned + PartialEq + Debug> Record for T {}

/// Makes up a record and sends it through the format.
fn round_trip<T: Record>(kind: Kind, seed: &[u8]) {
    let record: T = arbitrary::record(seed);
    let bytes = encode(kind, &record).unwrap();
    assert_eq!(decode::<T>(kind, &bytes), Ok(record));
}

/// Bytes that decode to some record: it must come back as itself, however the bytes came about.
fn error_or_record<T: Record>(kind: Kind, bytes: &[u8]) -> Result<(), Error> {
    let record: T = decode(kind, bytes)?;
    assert_eq!(decode::<T>(kind, &encode(kind, &record).unwrap()), Ok(record));
    Ok(())
}

fn decode_as(kind: Kind, bytes: &[u8]) -> Result<(), Error> {
    match kind {
        Kind::Inventory => error_or_record::<Inventory>(kind, bytes),
        Kind::Tree => error_or_record::<Tree>(kind, bytes),
        Kind::Files => error_or_record::<Files>(kind, bytes),
        Kind::Memory | Kind::Pages => error_or_record::<Memory>(Kind::Memory, bytes),
    }
}

/// One of the sample's metadata files.
fn sample_file() -> impl Strategy<Value = (Kind, Vec<u8>)> {
    proptest::sample::select(sample::files_of_checkpoint())
        .prop_filter("pages have no header", |(kind, _)| *kind != Kind::Pages)
}

/// The property below would hold of empty records too: these are not.
#[test]
fn made_up_records_have_all_parts() {
    let mut random = 1u64;
    let seed: Vec<u8> = (0..1 << 20)
        .map(|_| {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            random.to_be_bytes()[0]
        })
        .collect();
    let trees: Vec<Tree> = seed.chunks(4096).map(arbitrary::record).collect();
    let threads = || trees.iter().flat_map(|tree| &tree.tasks).flat_map(|task| &task.threads);
    assert!(threads().any(|thread| thread.regs != Regs([0; 27]) && thread.rseq.is_some()));
    assert!(threads().any(|thread| !thread.tls.is_empty()));
    let memories = seed.chunks(4096).map(arbitrary::record::<Memory>);
    let backings: HashSet<_> = memories
        .flat_map(|memory| memory.spaces)
        .flat_map(|space| space.vmas)
        .map(|vma| discriminant(&vma.backing))
        .collect();
    assert_eq!(backings.len(), 9);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    #[test]
    fn any_record_comes_back(seed in vec(any::<u8>(), 0..4096)) {
        round_trip::<Inventory>(Kind::Inventory, &seed);
        round_trip::<Tree>(Kind::Tree, &seed);
        round_trip::<Files>(Kind::Files, &seed);
        round_trip::<Memory>(Kind::Memory, &seed);
    }

    #[test]
    fn any_bytes_are_no_image(bytes in vec(any::<u8>(), 0..256)) {
        for kind in Kind::ALL {
            prop_assert!(decode_as(kind, &bytes).is_err());
        }
    }

    #[test]
    fn any_payload_is_decoded_or_refused(payload in vec(any::<u8>(), 0..512)) {
        for kind in Kind::ALL {
            // Either is right: this is about not panicking, and about records that come back.
            let _ = decode_as(kind, &seal(kind, &payload));
        }
    }

    #[test]
    fn changed_bytes_are_noticed((kind, file) in sample_file(), at in any::<Index>(), change in 1..=255u8) {
        let mut changed = file;
        let at = at.index(changed.len());
        changed[at] ^= change;
        prop_assert!(decode_as(kind, &changed).is_err());
    }

    #[test]
    fn cut_files_are_noticed((kind, file) in sample_file(), at in any::<Index>()) {
        prop_assert!(decode_as(kind, &file[..at.index(file.len())]).is_err());
    }

    #[test]
    fn changed_records_under_a_right_checksum_are_decoded_or_refused(
        (kind, file) in sample_file(),
        changes in vec((any::<Index>(), any::<u8>()), 1..8),
        cut in proptest::option::of(any::<Index>()),
    ) {
        let mut payload = file[HEADER_SIZE..file.len() - TRAILER_SIZE].to_vec();
        for (at, byte) in changes {
            let at = at.index(payload.len());
            payload[at] = byte;
        }
        if let Some(cut) = cut {
            payload.truncate(cut.index(payload.len()));
        }
        let _ = decode_as(kind, &seal(kind, &payload));
    }
}
