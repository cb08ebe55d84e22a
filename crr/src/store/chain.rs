//! The checkpoints that one builds on, of which it uses pages.

use super::check;
use super::place::{Destination, Source};
use super::reader::{open_pages, open_pages_if, place, read_inventory, read_listed};
use anyhow::{Context, Result, anyhow, bail};
use images::container::Kind;
use images::inventory::{Inventory, Parent, PreDump};
use images::memory::Memory;
use std::ffi::OsStr;
use std::fs::File;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// More than this is no chain that anybody has made.
const MAX_LENGTH: usize = 4096;

/// What was saved of a tree while it ran (`crr pre-dump`).
#[derive(Debug)]
pub struct Round {
    /// Where it is, or where it is to be unpacked if it came as a stream.
    pub dir: PathBuf,
    /// See [`Inventory`]; it has a `pre_dump`.
    pub inventory: Inventory,
    /// See [`Memory`]: of the spaces there are only runs.
    pub memory: Memory,
    /// The page file, open for reading; there may be none if contents are not wanted, or not any more.
    pub pages: Option<File>,
    /// The checksum by which another one names this.
    pub crc: u32,
}

impl Round {
    /// Reads one, not those that it builds on.
    ///
    /// # Errors
    /// Names the file and what is wrong with it.
    pub fn open(source: &Source) -> Result<Self> {
        Self::open_files(source, true).with_context(|| place(source))
    }

    /// Reads one if it is there, and no checkpoint is.
    ///
    /// # Errors
    /// As [`Round::open`].
    pub fn open_if(source: &Source) -> Result<Option<Self>> {
        let is_one = read_inventory(source).is_ok_and(|(inventory, _)| inventory.pre_dump.is_some());
        is_one.then(|| Self::open(source)).transpose()
    }

    /// Reads one as far as it says what it has: the pages may be elsewhere, but those that are there have to be whole.
    ///
    /// # Errors
    /// As [`Round::open`].
    pub fn open_records(source: &Source) -> Result<Self> {
        Self::open_files(source, false).with_context(|| place(source))
    }

    fn open_files(source: &Source, contents: bool) -> Result<Self> {
        let (inventory, crc) = read_inventory(source)?;
        if inventory.pre_dump.is_none() {
            bail!("is no pre-dump: only those keep track of what is written afterwards");
        }
        let [memory, pages] = check::round_entries(&inventory)
            .context(Kind::Inventory.file_name())
            .map(|found| found.map(Clone::clone))?;
        let memory = read_listed(source, &memory)?;
        let pages =
            if contents { open_pages(source, &pages).map(Some) } else { open_pages_if(source, &pages) };
        let pages = pages.context(Kind::Pages.file_name())?;
        check::round(&inventory, &memory)?;
        Ok(Self { dir: source.dir().to_owned(), inventory, memory, pages, crc })
    }

    /// Reads one that images in another directory are to build on, and looks that all is there which these will need; the pages too, if these
    /// go there as well. Returns what it builds on, too, the oldest first.
    ///
    /// # Errors
    /// Names the one that is missing or another, or that these images would take the place of.
    pub fn open_for(destination: &Destination, dir: &Path) -> Result<(Self, Vec<Self>)> {
        let images_dir = destination.dir();
        let open = if matches!(destination, Destination::Dir(_)) { Self::open } else { Self::open_records };
        let round = open(&Source::Dir(images_dir.join(dir)))?;
        let identity = |dir: &Path| std::fs::metadata(dir).map(|dir| (dir.dev(), dir.ino()));
        let own = identity(images_dir).with_context(|| images_dir.display().to_string())?;
        // The new one is to be restored: it builds on all of these and the round.
        let chain = ancestors_by(open, &round.dir, &round.inventory, &round.memory, MAX_LENGTH - 1)?;
        for dir in chain.iter().chain([&round]).map(|round| &round.dir) {
            if identity(dir).with_context(|| dir.display().to_string())? == own {
                let dir = dir.display();
                bail!(
                    "{dir} would be replaced by what builds on it\n  hint: give each round a directory of its own"
                );
            }
        }
        Ok((round, chain))
    }

    /// Its tasks, and who keeps track of them.
    ///
    /// # Errors
    /// Never: [`Round::open`] has looked.
    pub fn pre_dump(&self) -> Result<&PreDump> {
        self.inventory.pre_dump.as_ref().context("no pre-dump")
    }
}

/// The directory of a parent.
fn directory(child: &Path, parent: &Parent) -> PathBuf {
    /// A name that has grown as long, link by link, is made whole. The kernel takes up to 4095 bytes.
    const LONG: usize = 1024;
    let dir = child.join(OsStr::from_bytes(&parent.dir));
    if dir.as_os_str().len() <= LONG {
        return dir;
    }
    // As the kernel finds it: `..` behind a symbolic link is above of where that leads. What is not there is named as it is.
    dir.canonicalize().unwrap_or(dir)
}

/// What a checkpoint in `dir` builds on, the oldest first, as far as to the end of the chain.
///
/// # Errors
/// Names the one that is missing, damaged or another.
pub(super) fn ancestors(dir: &Path, inventory: &Inventory, memory: &Memory) -> Result<Vec<Round>> {
    ancestors_by(Round::open, dir, inventory, memory, MAX_LENGTH)
}

/// [`ancestors`], of which pages may be elsewhere.
pub(super) fn ancestors_but_for_pages(
    dir: &Path,
    inventory: &Inventory,
    memory: &Memory,
) -> Result<Vec<Round>> {
    ancestors_by(Round::open_records, dir, inventory, memory, MAX_LENGTH)
}

/// Fails if there are more than `most`.
fn ancestors_by(
    open: impl Fn(&Source) -> Result<Round>,
    dir: &Path,
    inventory: &Inventory,
    memory: &Memory,
    most: usize,
) -> Result<Vec<Round>> {
    let mut found: Vec<Round> = Vec::new();
    let mut next = inventory.parent.as_ref().map(|parent| (directory(dir, parent), parent.crc));
    let mut first_page = memory.first_page;
    while let Some((dir, crc)) = next {
        if found.len() == most {
            bail!(
                "more than {MAX_LENGTH} pre-dumps, each on the one before\n  hint: begin a new series, by a pre-dump without --prev-images-dir"
            );
        }
        let source = Source::Dir(dir);
        let round = open(&source).context("builds on others, which have to be there")?;
        let end = round.memory.first_page.checked_add(round.memory.page_count);
        if round.crc != crc || end != Some(first_page) {
            let (is, was) = (round.crc, crc);
            return Err(anyhow!("its inventory has checksum {is:08x}, that of the dump {was:08x}"))
                .with_context(|| format!("{} is another one by now", place(&source)));
        }
        first_page = round.memory.first_page;
        next = round.inventory.parent.as_ref().map(|parent| (directory(&round.dir, parent), parent.crc));
        found.push(round);
    }
    if first_page != 0 {
        bail!("{first_page} pages of others, and there are none");
    }
    found.reverse();
    Ok(found)
}
