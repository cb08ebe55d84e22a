//! The entry points of a vDSO: its dynamic symbols. It has no section headers to rely on, so they are found as a dynamic linker finds
//! them, by way of PT_DYNAMIC.

use anyhow::{Context, Result, ensure};
use object::elf;
use object::read::elf::{Dyn, FileHeader, GnuHashTable, HashTable, ProgramHeader, Sym};
use object::{Endianness, FileKind, ReadRef, StringTable};
use std::collections::BTreeMap;

/// Where a function lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Function {
    /// From the first byte of the image on.
    pub(super) offset: u64,
    /// Bytes, as the symbol says.
    pub(super) size: u64,
}

/// The functions of a vDSO by their names.
pub(super) type Functions = BTreeMap<String, Function>;

/// Finds all functions of an image.
///
/// # Errors
/// If it is not what a kernel makes.
pub(super) fn functions(image: &[u8]) -> Result<Functions> {
    match FileKind::parse(image).context("no ELF image")? {
        FileKind::Elf32 => of_class::<elf::FileHeader32<Endianness>>(image),
        FileKind::Elf64 => of_class::<elf::FileHeader64<Endianness>>(image),
        other => anyhow::bail!("no ELF image, but {other:?}"),
    }
}

fn of_class<H: FileHeader<Endian = Endianness>>(image: &[u8]) -> Result<Functions> {
    let header = H::parse(image)?;
    let endian = header.endian()?;
    let mut dynamic = None;
    // Its addresses are offsets: it is linked at 0, and one segment is all of it.
    for segment in header.program_headers(endian, image)? {
        dynamic = dynamic.or(segment.dynamic(endian, image)?);
    }
    let dynamic = dynamic.context("no dynamic segment")?;
    let entry = |tag| dynamic.iter().find(|entry| entry.d_tag(endian) == tag);
    let place = |tag| entry(tag).map(|entry| entry.d_val(endian).into());
    let from =
        |at: u64| usize::try_from(at).ok().and_then(|at| image.get(at..)).context("an address outside");
    let count = match (place(elf::DT_HASH), place(elf::DT_GNU_HASH)) {
        (Some(hash), _) => HashTable::<H>::parse(endian, from(hash)?)?.symbol_table_length(),
        (None, Some(hash)) => GnuHashTable::<H>::parse(endian, from(hash)?)?
            .symbol_table_length(endian)
            .context("an empty table of symbols")?,
        (None, None) => anyhow::bail!("no table of symbols"),
    };
    ensure!(count as usize <= image.len() / size_of::<H::Sym>(), "more symbols than bytes");
    let table = place(elf::DT_SYMTAB).context("no symbols")?;
    let symbols: &[H::Sym] = image.read_slice_at(table, count as usize).ok().context("symbols outside")?;
    let names = place(elf::DT_STRTAB).context("no names of symbols")?;
    let names = StringTable::new(image, names, image.len() as u64);
    let mut functions = Functions::new();
    for symbol in
        symbols.iter().filter(|symbol| !symbol.is_undefined(endian) && symbol.st_type() == elf::STT_FUNC)
    {
        let name = symbol.name(endian, names)?;
        let function =
            Function { offset: symbol.st_value(endian).into(), size: symbol.st_size(endian).into() };
        functions.insert(String::from_utf8_lossy(name).into_owned(), function);
    }
    Ok(functions)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::live;
    use images::Abi;

    #[test]
    fn the_entry_points_of_this_kernel_are_found() {
        for (abi, expected) in [
            (Abi::X86_64, ["__vdso_clock_gettime", "clock_gettime", "__vdso_gettimeofday", "__vdso_time"]),
            (Abi::Ia32, ["__kernel_vsyscall", "__kernel_sigreturn", "__vdso_clock_gettime64", "__vdso_time"]),
        ] {
            let image = live(abi).unwrap().image;
            let found = functions(&image).unwrap();
            for name in expected {
                let function = found.get(name).unwrap_or_else(|| panic!("{abi}: no {name} in {found:?}"));
                assert!(function.offset + function.size <= image.len() as u64, "{abi}: {name} {function:?}");
            }
        }
    }

    #[test]
    fn what_is_no_vdso_is_an_error() {
        assert!(functions(b"no").is_err());
        let mut image = live(Abi::X86_64).unwrap().image;
        image.truncate(64);
        assert!(functions(&image).is_err());
    }
}
