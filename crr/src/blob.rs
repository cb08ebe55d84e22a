//! The two freestanding programs that restored tasks exec, and moving them to where a task has room.

use crate::sys::exec;
use anyhow::{Context, Result, bail};
use images::Abi;
use object::read::elf::{ElfFile32, ElfFile64, FileHeader, ProgramHeader};
use object::{Endianness, Object, RelocationFlags, elf};
use shared::range::page_align;
use std::os::fd::OwnedFd;

static HELPER32: &[u8] = include_bytes!(env!("CRR_BLOB_HELPER32"));
static RESTORER64: &[u8] = include_bytes!(env!("CRR_BLOB_RESTORER64"));

/// A position-independent program linked at 0, with what is needed to put it elsewhere.
#[derive(Debug)]
pub struct Blob {
    abi: Abi,
    /// File contents up to the end of the last segment.
    bytes: Vec<u8>,
    /// End of the highest segment in memory.
    memory: u64,
    headers: Vec<HeaderAt>,
    relocations: Vec<Relocation>,
}

/// A program header: where it stands in the file and what it says.
#[derive(Clone, Copy, Debug)]
struct HeaderAt {
    at: usize,
    kind: elf::ProgramType,
    offset: u64,
    vaddr: u64,
    file_size: u64,
    memory_size: u64,
}

/// A word of the file that holds an address of the program.
#[derive(Clone, Copy, Debug)]
struct Relocation {
    at: usize,
    addend: u64,
}

impl Blob {
    /// The program for tasks of an ABI.
    ///
    /// # Errors
    /// If the embedded file is not what the build should have made.
    pub fn of(abi: Abi) -> Result<Self> {
        match abi {
            Abi::X86_64 => {
                let file = ElfFile64::<Endianness>::parse(RESTORER64).context("restorer64")?;
                Self::parse(abi, RESTORER64, file.elf_header(), &file)
            }
            Abi::Ia32 => {
                let file = ElfFile32::<Endianness>::parse(HELPER32).context("helper32")?;
                Self::parse(abi, HELPER32, file.elf_header(), &file)
            }
        }
    }

    fn parse<'data, H: FileHeader<Endian = Endianness>>(
        abi: Abi,
        data: &'static [u8],
        header: &H,
        file: &impl Object<'data>,
    ) -> Result<Self> {
        let endian = Endianness::Little;
        let first: u64 = header.e_phoff(endian).into();
        let step = usize::from(header.e_phentsize(endian));
        let mut headers = Vec::new();
        for (index, segment) in
            header.program_headers(endian, data).context("program headers")?.iter().enumerate()
        {
            headers.push(HeaderAt {
                at: usize::try_from(first)? + index * step,
                kind: segment.p_type(endian),
                offset: segment.p_offset(endian).into(),
                vaddr: segment.p_vaddr(endian).into(),
                file_size: segment.p_filesz(endian).into(),
                memory_size: segment.p_memsz(endian).into(),
            });
        }
        let loads = || headers.iter().filter(|header| header.kind == elf::PT_LOAD);
        let end = loads().map(|load| load.offset + load.file_size).max().unwrap_or(0);
        let memory = loads().map(|load| load.vaddr + load.memory_size).max().unwrap_or(0);
        let bytes = data[..usize::try_from(end)?].to_vec();
        let mut relocations = Vec::new();
        for (vaddr, relocation) in file.dynamic_relocations().into_iter().flatten() {
            let RelocationFlags::Elf { r_type } = relocation.flags() else { bail!("not an ELF relocation") };
            let relative = match abi {
                Abi::X86_64 => elf::R_X86_64_RELATIVE,
                Abi::Ia32 => elf::R_386_RELATIVE,
            };
            let load = loads().find(|load| (load.vaddr..load.vaddr + load.file_size).contains(&vaddr));
            let (true, Some(load)) = (r_type == relative, load) else {
                bail!("relocation of type {r_type} at {vaddr:#x}");
            };
            let at = usize::try_from(vaddr - load.vaddr + load.offset)?;
            let addend = if relocation.has_implicit_addend() {
                u64::from(u32::from_le_bytes(bytes[at..at + 4].try_into()?))
            } else {
                relocation.addend().cast_unsigned()
            };
            relocations.push(Relocation { at, addend });
        }
        Ok(Self { abi, bytes, memory: page_align(memory), headers, relocations })
    }

    /// Bytes of address space it takes.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.memory
    }

    /// Never.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.memory == 0
    }

    /// The ELF file of this program for a fixed place.
    #[must_use]
    pub fn at(&self, base: u64) -> Vec<u8> {
        let mut out = self.bytes.clone();
        for relocation in &self.relocations {
            put(&mut out, self.abi, relocation.at, base + relocation.addend);
        }
        // e_type, then e_entry; field offsets of Elf32_Ehdr and Elf64_Ehdr, elf(5).
        out[16..18].copy_from_slice(&elf::ET_EXEC.0.to_le_bytes());
        put(&mut out, self.abi, 24, base);
        let (vaddr, paddr, section_headers) = match self.abi {
            Abi::X86_64 => (16, 24, 40),
            Abi::Ia32 => (8, 12, 32),
        };
        put(&mut out, self.abi, section_headers, 0);
        let counts = match self.abi {
            Abi::X86_64 => 60,
            Abi::Ia32 => 48,
        };
        out[counts..counts + 4].fill(0);
        for header in &self.headers {
            if header.kind == elf::PT_LOAD {
                put(&mut out, self.abi, header.at + vaddr, base + header.vaddr);
                put(&mut out, self.abi, header.at + paddr, base + header.vaddr);
            } else if header.kind != elf::PT_GNU_STACK {
                out[header.at..header.at + 4].copy_from_slice(&elf::PT_NULL.0.to_le_bytes());
            }
        }
        out
    }

    /// A file of this program at a fixed place, ready for execveat.
    ///
    /// # Errors
    /// If no executable file can be made.
    pub fn executable(&self, base: u64) -> Result<OwnedFd> {
        let name = match self.abi {
            Abi::X86_64 => c"restorer64",
            Abi::Ia32 => c"helper32",
        };
        exec::executable(name, &self.at(base))
    }
}

/// Writes a word of the ABI.
fn put(out: &mut [u8], abi: Abi, at: usize, value: u64) {
    let bytes = value.to_le_bytes();
    let len = match abi {
        Abi::X86_64 => 8,
        Abi::Ia32 => 4,
    };
    out[at..at + len].copy_from_slice(&bytes[..len]);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_programs_parse_and_move() {
        for (abi, base) in [(Abi::X86_64, 0x5555_0000_0000), (Abi::Ia32, 0xe000_0000)] {
            let blob = Blob::of(abi).unwrap();
            assert!(blob.len() > 0x10_000, "{abi}: {}", blob.len());
            assert!(!blob.relocations.is_empty());
            let moved = blob.at(base);
            match abi {
                Abi::X86_64 => {
                    let file = ElfFile64::<Endianness>::parse(&*moved).unwrap();
                    assert_eq!(file.elf_header().e_entry(Endianness::Little), base);
                }
                Abi::Ia32 => {
                    let file = ElfFile32::<Endianness>::parse(&*moved).unwrap();
                    assert_eq!(u64::from(file.elf_header().e_entry(Endianness::Little)), base);
                }
            }
        }
    }
}
