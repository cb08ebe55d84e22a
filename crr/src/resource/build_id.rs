//! Build-ids of programs and libraries: the note of the linker by which one build is told from another.

use object::read::elf::{FileHeader, ProgramHeader};
use object::{Endianness, FileKind, ReadCache, ReadRef, elf};
use std::fs::File;
use std::os::unix::fs::FileExt;

/// As much as most files need: the program headers, and the notes right behind them.
const HEAD: usize = 4096;

/// The build-id of a file, empty if it has none or is no ELF file. Reads a page of most.
pub(crate) fn read(file: &File) -> Vec<u8> {
    let mut head = [0; HEAD];
    let Ok(len) = file.read_at(&mut head, 0) else { return Vec::new() };
    let head = &head[..len];
    if !head.starts_with(&elf::ELFMAG) {
        return Vec::new();
    }
    of(head).or_else(|| of(&ReadCache::new(file))).unwrap_or_default()
}

/// The build-id of a file that begins like this, empty if it is not in there.
pub(crate) fn of_head(head: &[u8]) -> Vec<u8> {
    of(head).unwrap_or_default()
}

fn of<'data, R: ReadRef<'data>>(data: R) -> Option<Vec<u8>> {
    match FileKind::parse(data).ok()? {
        FileKind::Elf32 => of_class::<elf::FileHeader32<Endianness>, R>(data),
        FileKind::Elf64 => of_class::<elf::FileHeader64<Endianness>, R>(data),
        _ => None,
    }
}

fn of_class<'data, H: FileHeader<Endian = Endianness>, R: ReadRef<'data>>(data: R) -> Option<Vec<u8>> {
    let header = H::parse(data).ok()?;
    let endian = header.endian().ok()?;
    for segment in header.program_headers(endian, data).ok()? {
        let Ok(Some(mut notes)) = segment.notes(endian, data) else { continue };
        while let Ok(Some(note)) = notes.next() {
            if note.name() == elf::ELF_NOTE_GNU && note.n_type(endian) == elf::NT_GNU_BUILD_ID {
                return Some(note.desc().to_vec());
            }
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_note_is_found_wherever_it_lies() {
        let own = File::open("/proc/self/exe").unwrap();
        let mut whole = Vec::new();
        std::io::Read::read_to_end(&mut File::open("/proc/self/exe").unwrap(), &mut whole).unwrap();
        // What the linker makes here by default: a SHA-1 hash.
        let found = read(&own);
        assert_eq!(found.len(), 20);
        assert!(whole.windows(20).any(|bytes| bytes == found));
        assert_eq!(of(&ReadCache::new(&own)), Some(found));
        assert!(read(&File::open("/proc/self/maps").unwrap()).is_empty());
    }
}
