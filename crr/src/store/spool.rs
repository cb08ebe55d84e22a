//! What a stream had, in files without names: a restore reads pages in any order, from several tasks at once.

use super::available::available;
use super::kept::Kept;
use super::stream::part_number;
use crate::sys;
use anyhow::{Context, Result, anyhow, bail};
use images::container::Kind;
use nix::sys::statfs::fstatfs;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{ErrorKind, Read, Seek, Write};
use std::path::{Path, PathBuf};
use tar::{Archive, EntryType};

/// Bytes read at a time.
const STEP: usize = 256 << 10;
/// What ends an archive are two blocks of zeros; the reader of members has taken the first.
const END: u64 = 512;

/// The files of a checkpoint that came as one stream.
#[derive(Debug)]
pub struct Spool {
    files: BTreeMap<Kind, File>,
    kept: Option<Kept>,
}

/// What is left of the images of a restore that has failed.
#[derive(Debug)]
pub enum Left {
    /// Nothing that had a name.
    Nothing,
    /// All of them, in this directory.
    All(PathBuf),
    /// They have been removed, since pages of them had been given back for want of memory.
    Parts,
}

impl Spool {
    /// Reads a stream to its end, with its files going to `dir`, unnamed: they are gone with crr, unless they are kept.
    ///
    /// # Errors
    /// If it is none, was cut off, or there is no room for it.
    pub fn receive(stream: impl Read, dir: &Path) -> Result<Self> {
        Self::receive_members(stream, dir).context("the stream")
    }

    fn receive_members(stream: impl Read, dir: &Path) -> Result<Self> {
        let mut receiver = Receiver { dir, files: BTreeMap::new(), parts: 0, buffer: vec![0; STEP] };
        let mut archive = Archive::new(stream);
        let read = receiver.read(&mut archive);
        let mut stream = archive.into_inner();
        // A dump that has got rid of everything kills the tree: of what fails here, no more is taken.
        match read {
            Err(Failure::Other(e)) => return Err(e),
            Err(Failure::Stream(_)) if has_ended(&mut stream) => bail!("is cut off"),
            Err(Failure::Stream(e)) => return Err(anyhow!(e).context("is none of crr's, or damaged")),
            Ok(()) => {}
        }
        if std::io::copy(&mut stream, &mut std::io::sink())? < END {
            bail!("is cut off: the dump did not finish");
        }
        Ok(Self { files: receiver.files, kept: None })
    }

    /// Gives the files names in a new directory in `dir`, until [`Self::release`].
    ///
    /// # Errors
    /// If they cannot have any.
    pub fn keep(&mut self, dir: &Path) -> Result<()> {
        self.kept = Some(Kept::new(&self.files, dir)?);
        Ok(())
    }

    /// The tasks run: nothing is to be kept any more, nor to take room, unless pages are still to come from here.
    pub(super) fn release(&self, all_there: bool) {
        self.kept.iter().for_each(Kept::remove);
        for file in self.files.values().filter(|_| all_there) {
            // Else there is less room until crr ends.
            let _ = file.set_len(0);
        }
    }

    /// What is left when a restore has failed.
    pub fn left(&self) -> Left {
        match self.kept.as_ref().and_then(|kept| Some((kept, kept.path()?))) {
            None => Left::Nothing,
            Some((kept, path)) if !self.lies_in_memory() || kept.is_complete(&self.files) => {
                Left::All(path.to_owned())
            }
            Some((kept, _)) => {
                kept.remove();
                Left::Parts
            }
        }
    }

    /// One of the files, to be read from its start.
    pub(super) fn open(&self, kind: Kind) -> Result<File> {
        let file = self.files.get(&kind).ok_or_else(|| std::io::Error::from(ErrorKind::NotFound))?;
        let mut file = file.try_clone()?;
        file.rewind()?;
        Ok(file)
    }

    /// Whether its pages take memory where they are, which tasks are to give back: what is kept stays, as long as there is room for both.
    pub(super) fn is_in_memory(&self) -> bool {
        let size = || {
            self.files
                .get(&Kind::Pages)
                .and_then(|pages| pages.metadata().ok())
                .map_or(0, |pages| pages.len())
        };
        let has_room = || size() + size() / 8 < available();
        self.lies_in_memory() && !(self.kept.is_some() && has_room())
    }

    fn lies_in_memory(&self) -> bool {
        self.files.get(&Kind::Pages).is_some_and(|pages| sys::is_tmpfs(fstatfs(pages)) == Ok(true))
    }

    /// Whether it has any file at all.
    pub(super) fn is_empty(&self) -> bool {
        self.files.is_empty()
    }
}

/// Whether nothing comes any more.
fn has_ended(stream: &mut impl Read) -> bool {
    stream.read_exact(&mut [0]).is_err_and(|e| e.kind() == ErrorKind::UnexpectedEof)
}

/// Sorts members into files.
struct Receiver<'a> {
    dir: &'a Path,
    files: BTreeMap<Kind, File>,
    /// How many parts of packed pages there were.
    parts: u32,
    buffer: Vec<u8>,
}

/// Why members cannot be had.
enum Failure {
    /// By what the stream is like.
    Stream(std::io::Error),
    Other(anyhow::Error),
}

impl Receiver<'_> {
    /// Takes what there is up to the first block of zeros.
    fn read<R: Read>(&mut self, archive: &mut Archive<R>) -> Result<(), Failure> {
        for member in archive.entries().map_err(Failure::Stream)? {
            let mut member = member.map_err(Failure::Stream)?;
            // Of an archive that was made of a directory, there may be anything else.
            if matches!(member.header().entry_type(), EntryType::Regular | EntryType::Continuous) {
                self.take(&mut member).map_err(Failure::Other)?;
            }
        }
        Ok(())
    }

    fn take<R: Read>(&mut self, member: &mut tar::Entry<'_, R>) -> Result<()> {
        let path = member.path().context("a name")?.into_owned();
        let Some(name) = path.file_name().and_then(|name| name.to_str()) else { return Ok(()) };
        let part = part_number(name);
        let kind = match part {
            Some(_) => Kind::Pages,
            None => match Kind::ALL.into_iter().find(|kind| kind.file_name() == name) {
                Some(kind) => kind,
                None => return Ok(()),
            },
        };
        match part {
            Some(number) if number != self.parts || self.parts == 0 && self.files.contains_key(&kind) => {
                bail!("{}: is not what is to follow", path.display())
            }
            Some(_) => self.parts += 1,
            None if self.files.contains_key(&kind) => bail!("{}: there are two of these", path.display()),
            None => {}
        }
        if !self.files.contains_key(&kind) {
            let file = tempfile::tempfile_in(self.dir);
            self.files.insert(kind, file.with_context(|| format!("{}: make a file", self.dir.display()))?);
        }
        let file = self.files.get_mut(&kind).context("its file")?;
        let mut left = member.size();
        while left > 0 {
            let got = member.read(&mut self.buffer).with_context(|| name.to_owned())?;
            if got == 0 {
                bail!("is cut off in {}", path.display());
            }
            let room = || format!("{}: write {name}", self.dir.display());
            file.write_all(&self.buffer[..got]).with_context(room)?;
            left = left.saturating_sub(got as u64);
        }
        Ok(())
    }
}
