//! Pages that are packed, and pages of other checkpoints.

use super::sample::{Sample, damage, error};
use crate::page_server::client::Server;
use crate::store::{Checkpoint, Compression, Destination, PAGE, Packer, Round, Writer, dedup};
use images::container::{Kind, TRAILER_SIZE};
use images::id::PAGE_SIZE;
use images::inventory::{Instance, Parent, PreDump, Tracking};
use images::memory::{Chunk, Packing, Space};
use std::fs;
use std::path::Path;
use tempfile::TempDir;

/// Packs the pages of a sample, as a dump would.
fn packed(mut sample: Sample, how: &str) -> Sample {
    let how: Compression = how.parse().unwrap();
    let mut packer = Packer::new(how).unwrap();
    let (mut chunks, mut stored) = (Vec::new(), Vec::new());
    for pages in sample.pages.chunks(32 * PAGE) {
        let packed = packer.pack(pages).unwrap();
        chunks.push(Chunk { place: stored.len() as u64, size: u32::try_from(packed.len()).unwrap() });
        stored.extend_from_slice(packed);
    }
    sample.memory.packing = Some(Packing { method: how.method, chunks });
    sample.pages = stored;
    sample
}

fn contents(checkpoint: &Checkpoint, first: u64, count: u64) -> Vec<u8> {
    let mut pages = vec![0; usize::try_from(count * PAGE_SIZE).unwrap()];
    checkpoint.pages.read_exact_at(&mut pages, first * PAGE_SIZE).unwrap();
    pages
}

#[test]
fn packed_pages_come_back() {
    for how in ["lz4", "zstd", "zstd:9"] {
        let sample = Sample::golden().with_pages(600);
        let dir = packed(sample.clone(), how).written();
        assert!(fs::metadata(dir.path().join("pages.img")).unwrap().len() < 600 * PAGE_SIZE, "{how}");
        let checkpoint = Checkpoint::read(dir.path()).unwrap();
        assert!(contents(&checkpoint, 0, 600) == sample.pages, "{how}");
    }
}

#[test]
fn a_packed_page_that_changed_is_found() {
    for how in ["lz4", "zstd"] {
        let dir = packed(Sample::golden().with_pages(600), how).written();
        damage(dir.path(), Kind::Pages, |bytes| bytes[77] ^= 4);
        let error = error(dir.path());
        assert!(error.contains("pages.img") && error.contains("is corrupt"), "{how}: {error}");
    }
}

/// Two pre-dumps and a checkpoint that builds on them, each in a directory of its own; a page's bytes are all its number.
struct Chain {
    dir: TempDir,
}

fn pages(first: u8, count: u8) -> Vec<u8> {
    (first..first + count).flat_map(|page| vec![page; PAGE]).collect()
}

fn trailer(dir: &Path) -> u32 {
    let bytes = fs::read(dir.join("inventory.img")).unwrap();
    u32::from_le_bytes(*bytes.last_chunk::<TRAILER_SIZE>().unwrap())
}

fn write_round(dir: &Path, round: Sample) {
    let writer = Writer::create(&dir.into()).unwrap();
    writer.pages().put(&round.pages, 0).unwrap();
    writer.finish_round(round.inventory, &round.memory).unwrap();
}

impl Chain {
    fn write() -> Self {
        let chain = Self { dir: tempfile::tempdir().unwrap() };
        let golden = Sample::golden();
        for (name, parent, first, count) in [("1", None, 0, 40), ("2", Some("1"), 40, 3)] {
            let mut round = golden.clone();
            round.memory.spaces = vec![Space { runs: Vec::new(), ..round.memory.spaces.remove(0) }];
            (round.memory.shared, round.memory.vdsos) = (Vec::new(), Vec::new());
            round.inventory.parent = parent.map(|name| chain.parent(name));
            let task = Instance { pid: 100, start_time: 5 };
            round.inventory.pre_dump =
                Some(PreDump { tracking: Tracking::WriteProtected(task), tasks: vec![task] });
            round.pages = pages(first, count);
            chain.number(&mut round, first, 1);
            fs::create_dir(chain.of(name)).unwrap();
            let round = if name == "1" { packed(round, "lz4") } else { round };
            write_round(&chain.of(name), round);
        }
        let mut last = golden;
        last.inventory.parent = Some(chain.parent("2"));
        last.pages = pages(43, 6);
        chain.number(&mut last, 43, 256);
        // Of the oldest, the next, its own.
        for (run, page) in last.memory.spaces[0].runs.iter_mut().zip([7, 41, 43]) {
            run.first_page = page;
        }
        fs::create_dir(chain.of("3")).unwrap();
        last.write(&chain.of("3")).unwrap();
        chain
    }

    fn of(&self, name: &str) -> std::path::PathBuf {
        self.dir.path().join(name)
    }

    fn parent(&self, name: &str) -> Parent {
        Parent { dir: format!("../{name}").into(), crc: trailer(&self.of(name)) }
    }

    fn number(&self, sample: &mut Sample, first: u8, block_pages: u64) {
        let memory = &mut sample.memory;
        (memory.first_page, memory.block_pages) = (first.into(), block_pages);
        memory.page_count = (sample.pages.len() / PAGE) as u64;
        let block = usize::try_from(block_pages).unwrap() * PAGE;
        memory.block_crcs = sample.pages.chunks(block).map(crc32c::crc32c).collect();
    }

    fn error(&self) -> String {
        error(&self.of("3"))
    }
}

/// As many as there may be, each named as seen from the next: at the end of the chain no name is too long. One more is refused when it is to be made.
#[test]
fn the_longest_chain() {
    const MOST: u32 = 4096;
    // In memory, if that can be: there will be thousands of files.
    let home = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap();
    let dir = |number: u32| home.path().join(number.to_string());
    let parent =
        |number: u32| Some(Parent { dir: format!("../{number}").into(), crc: trailer(&dir(number)) });
    let mut round = Sample::golden();
    round.memory.spaces = vec![Space { runs: Vec::new(), ..round.memory.spaces.remove(0) }];
    (round.memory.shared, round.memory.vdsos) = (Vec::new(), Vec::new());
    (round.pages, round.memory.page_count, round.memory.block_crcs) = (Vec::new(), 0, Vec::new());
    round.memory.block_pages = 1;
    let task = Instance { pid: 100, start_time: 5 };
    round.inventory.pre_dump = Some(PreDump { tracking: Tracking::WriteProtected(task), tasks: vec![task] });
    for number in 1..=MOST + 1 {
        fs::create_dir(dir(number)).unwrap();
        write_round(&dir(number), round.clone());
        round.inventory.parent = parent(number);
    }
    let last = dir(0);
    fs::create_dir(&last).unwrap();
    let open = |number: u32| {
        let destination = Destination::Dir(last.clone());
        Round::open_for(&destination, Path::new(&format!("../{number}"))).map(|(_, chain)| chain.len())
    };
    let mut dump = Sample::golden();
    dump.inventory.parent = parent(MOST);
    assert_eq!(open(MOST).unwrap(), MOST as usize - 1);
    dump.write(&last).unwrap();
    assert_eq!(Checkpoint::read(&last).unwrap().ancestors.len(), MOST as usize);
    let refused = format!("{:#}", open(MOST + 1).unwrap_err());
    assert!(refused.contains("more than 4096") && refused.contains("hint: "), "{refused}");
    dump.inventory.parent = parent(MOST + 1);
    dump.write(&last).unwrap();
    assert!(error(&last).contains("more than 4096"), "{}", error(&last));
}

/// A long name is made whole as the kernel finds it: behind a symbolic link, `..` is above of where that leads.
#[test]
fn long_names_lead_through_links() {
    let chain = Chain::write();
    let elsewhere = chain.of("elsewhere");
    fs::create_dir(&elsewhere).unwrap();
    for name in ["1", "2", "3"] {
        fs::rename(chain.of(name), elsewhere.join(name)).unwrap();
    }
    std::os::unix::fs::symlink(elsewhere.join("3"), chain.of("link")).unwrap();
    let long = chain.of(&format!("link{}", "/../3".repeat(300)));
    assert_eq!(Checkpoint::read(&long).unwrap().ancestors.len(), 2);
}

/// Where the next one's pages go elsewhere, those of a round may be elsewhere, too; what is there has to be whole.
#[test]
fn pages_that_are_elsewhere_are_not_missed() {
    let chain = Chain::write();
    let open = |destination: Destination| Round::open_for(&destination, Path::new("../2"));
    let dir = chain.of("3");
    let server = Server { host: String::new(), port: 0, tls: None, insecure: false };
    let to_server = || Destination::Server(dir.clone(), server.clone());
    for round in ["1", "2"] {
        let pages = chain.of(round).join("pages.img");
        let whole = fs::read(&pages).unwrap();
        fs::write(&pages, &whole[1..]).unwrap();
        let error = format!("{:#}", open(to_server()).unwrap_err());
        assert!(error.contains("pages.img: is cut off"), "{error}");
        fs::remove_file(&pages).unwrap();
        open(to_server()).unwrap();
        let error = format!("{:#}", open(Destination::Dir(dir.clone())).unwrap_err());
        assert!(error.contains("pages.img: is missing"), "{error}");
        fs::write(&pages, whole).unwrap();
    }
    open(Destination::Dir(dir.clone())).unwrap();
}

#[test]
fn pages_are_had_from_where_they_are() {
    let chain = Chain::write();
    let checkpoint = Checkpoint::read(&chain.of("3")).unwrap();
    assert_eq!(checkpoint.ancestors.len(), 2);
    // They are all in one file by now.
    assert!(checkpoint.ancestors.iter().all(|round| round.pages.is_none()));
    for page in [7, 41, 43, 48] {
        assert!(contents(&checkpoint, page.into(), 1) == vec![page; PAGE], "page {page}");
    }
    // Nothing uses it.
    assert!(contents(&checkpoint, 8, 1) == vec![0; PAGE]);
}

#[test]
fn what_nothing_uses_may_be_gone() {
    let chain = Chain::write();
    damage(&chain.of("2"), Kind::Pages, |bytes| bytes[..PAGE].fill(0));
    Checkpoint::read(&chain.of("3")).unwrap();
}

#[test]
fn what_is_not_used_is_given_back() {
    use std::os::unix::fs::MetadataExt;
    let chain = Chain::write();
    let blocks = |name: &str| fs::metadata(chain.of(name).join("pages.img")).unwrap().blocks();
    let before = ["1", "2", "3"].map(blocks);
    // Of the second, one page of three is used; of the first, which is packed, one chunk of two.
    assert!(dedup(&chain.of("3")).unwrap() >= 2 * PAGE_SIZE);
    let after = ["1", "2", "3"].map(blocks);
    assert!(after[1] < before[1] && after[0] <= before[0] && after[2] == before[2], "{before:?} {after:?}");
    let checkpoint = Checkpoint::read(&chain.of("3")).unwrap();
    for page in [7, 41, 43] {
        assert!(contents(&checkpoint, page.into(), 1) == vec![page; PAGE], "page {page}");
    }
}

#[test]
fn damaged_missing_and_foreign_parents_are_named() {
    let chain = Chain::write();
    damage(&chain.of("2"), Kind::Pages, |bytes| bytes[PAGE] ^= 1);
    assert!(chain.error().contains("2/pages.img: is corrupt: bytes from 0x1000"), "{}", chain.error());
    damage(&chain.of("2"), Kind::Pages, |bytes| bytes[PAGE] ^= 1);
    damage(&chain.of("1"), Kind::Pages, |bytes| bytes[3] ^= 0x55);
    assert!(chain.error().contains("1/pages.img: is corrupt"), "{}", chain.error());
    fs::remove_file(chain.of("1").join("pages.img")).unwrap();
    assert!(chain.error().contains("1: pages.img: is missing"), "{}", chain.error());
    // Another one in its place.
    let other = Chain::write();
    fs::write(other.of("1").join("inventory.img"), "").unwrap();
    assert!(other.error().contains("1: inventory.img: is cut off"), "{}", other.error());
    fs::rename(chain.of("3"), other.of("4")).unwrap();
    fs::remove_dir_all(other.of("2")).unwrap();
    assert!(error(&other.of("4")).contains("builds on others"), "{}", error(&other.of("4")));
    Sample::golden().write(&other.of("1")).unwrap();
    fs::create_dir(other.of("2")).unwrap();
    Sample::golden().write(&other.of("2")).unwrap();
    assert!(other.error().contains("is no pre-dump"), "{}", other.error());
}

#[test]
fn another_pre_dump_in_the_same_place_is_noticed() {
    let chain = Chain::write();
    for name in ["memory.img", "inventory.img", "pages.img"] {
        fs::copy(chain.of("2").join(name), chain.of("1").join(name)).unwrap();
    }
    assert!(chain.error().contains("is another one by now"), "{}", chain.error());
}

#[test]
fn a_pre_dump_is_not_restored() {
    let chain = Chain::write();
    assert!(error(&chain.of("2")).contains("is a pre-dump"), "{}", error(&chain.of("2")));
}
