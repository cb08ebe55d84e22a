//! Packing page contents: a chunk at a time, so that every processor takes part in both directions and a page can be had without
//! what lies around it.

use super::PAGE;
use anyhow::{Context, Result, anyhow, bail};
use images::id::PAGE_SIZE;
use images::memory::{CHUNK_PAGES, Chunk, Method, Packing};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::str::FromStr;

/// Bytes of a chunk before it is packed.
pub(super) const CHUNK_SIZE: usize = 32 * PAGE;
const _: () = assert!(CHUNK_SIZE as u64 == CHUNK_PAGES * PAGE_SIZE);

/// How a dump packs: `--compress`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Compression {
    /// The method.
    pub method: Method,
    /// Of Zstandard: how much time it takes to get smaller.
    pub level: i32,
}

impl Default for Compression {
    /// LZ4: what it takes away is written sooner than a slow disk would take it.
    fn default() -> Self {
        Self { method: Method::Lz4, level: 0 }
    }
}

impl FromStr for Compression {
    type Err = String;

    /// `lz4`, `zstd`, `zstd:LEVEL`.
    fn from_str(text: &str) -> Result<Self, String> {
        let (method, level) =
            text.split_once(':').map_or((text, None), |(method, level)| (method, Some(level)));
        match (method, level) {
            ("lz4", None) => Ok(Self::default()),
            ("lz4", Some(_)) => Err("lz4 has no levels".to_owned()),
            ("zstd", level) => {
                let known = zstd::compression_level_range();
                let parsed = level.map_or(Ok(1), str::parse).ok().filter(|level| known.contains(level));
                let level = parsed
                    .ok_or_else(|| format!("levels of zstd are {} to {}", known.start(), known.end()))?;
                Ok(Self { method: Method::Zstd, level })
            }
            _ => Err("neither lz4 nor zstd".to_owned()),
        }
    }
}

/// Packs chunks, with room of its own: one for each thread.
pub(crate) struct Packer {
    zstd: Option<zstd::bulk::Compressor<'static>>,
    room: Vec<u8>,
}

impl Packer {
    /// # Errors
    /// If the library takes no level of this.
    pub(crate) fn new(compression: Compression) -> Result<Self> {
        let (zstd, bound) = match compression.method {
            Method::Lz4 => (None, lz4_flex::block::get_maximum_output_size(CHUNK_SIZE)),
            Method::Zstd => {
                let compressor = zstd::bulk::Compressor::new(compression.level).context("zstd")?;
                (Some(compressor), zstd::zstd_safe::compress_bound(CHUNK_SIZE))
            }
        };
        Ok(Self { zstd, room: vec![0; bound] })
    }

    /// The bytes to be stored: those of the pages themselves if they do not get smaller.
    ///
    /// # Errors
    /// If the library fails.
    pub(crate) fn pack<'a>(&'a mut self, pages: &'a [u8]) -> Result<&'a [u8]> {
        let size = match &mut self.zstd {
            Some(zstd) => zstd.compress_to_buffer(pages, &mut self.room).context("zstd")?,
            None => lz4_flex::block::compress_into(pages, &mut self.room).context("lz4")?,
        };
        Ok(if size < pages.len() { &self.room[..size] } else { pages })
    }
}

/// Gets chunks of a page file, with room of its own: one for each thread.
pub(super) struct Unpacker<'a> {
    file: &'a File,
    packing: &'a Packing,
    zstd: Option<zstd::bulk::Decompressor<'static>>,
    room: Vec<u8>,
}

impl<'a> Unpacker<'a> {
    pub(super) fn new(file: &'a File, packing: &'a Packing) -> Result<Self> {
        let zstd = match packing.method {
            Method::Lz4 => None,
            Method::Zstd => Some(zstd::bulk::Decompressor::new().context("zstd")?),
        };
        Ok(Self { file, packing, zstd, room: vec![0; CHUNK_SIZE] })
    }

    /// Fills `pages` with those of a chunk, which has as many.
    pub(super) fn chunk(&mut self, number: u64, pages: &mut [u8]) -> Result<()> {
        let Chunk { place, size } = *usize::try_from(number)
            .ok()
            .and_then(|number| self.packing.chunks.get(number))
            .context("a chunk that is not there")?;
        let size = usize::try_from(size)?;
        if size == pages.len() {
            return self.file.read_exact_at(pages, place).with_context(|| format!("read at {place:#x}"));
        }
        let packed = self.room.get_mut(..size).context("a chunk that is too large")?;
        self.file.read_exact_at(packed, place).with_context(|| format!("read at {place:#x}"))?;
        let unpacked = match &mut self.zstd {
            Some(zstd) => zstd.decompress_to_buffer(packed, pages).map_err(|e| anyhow!(e)),
            None => lz4_flex::block::decompress_into(packed, pages).map_err(|e| anyhow!(e)),
        };
        match unpacked {
            Ok(size) if size == pages.len() => Ok(()),
            Ok(size) => bail!("is corrupt: {size} bytes of {} in the chunk at {place:#x}", pages.len()),
            Err(e) => Err(e.context(format!("is corrupt: the chunk at {place:#x}"))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn methods_and_levels_are_told() {
        let zstd = |level| Ok(Compression { method: Method::Zstd, level });
        assert_eq!("lz4".parse(), Ok(Compression::default()));
        assert_eq!(["zstd", "zstd:19", "zstd:-5"].map(str::parse), [zstd(1), zstd(19), zstd(-5)]);
        for wrong in ["", "gzip", "lz4:3", "zstd:", "zstd:99", "zstd:x"] {
            assert!(wrong.parse::<Compression>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn chunks_come_back() {
        let text: Vec<u8> = (0..CHUNK_SIZE).map(|at| u8::try_from(at / 100 % 251).unwrap()).collect();
        // Numbers without a pattern do not get smaller.
        let noise: Vec<u8> = (0u64..)
            .flat_map(|n| {
                (n.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ n << 7)
                    .rotate_left(23)
                    .wrapping_mul(n | 1)
                    .to_le_bytes()
            })
            .take(CHUNK_SIZE)
            .collect();
        for method in ["lz4", "zstd"] {
            let compression: Compression = method.parse().unwrap();
            let mut packer = Packer::new(compression).unwrap();
            let file = tempfile::tempfile().unwrap();
            let mut packing = Packing { method: compression.method, chunks: Vec::new() };
            let mut place = 0;
            for pages in [&text[..], &noise, &text[..3 * 4096]] {
                let packed = packer.pack(pages).unwrap();
                file.write_all_at(packed, place).unwrap();
                packing.chunks.push(Chunk { place, size: u32::try_from(packed.len()).unwrap() });
                place += packed.len() as u64;
            }
            assert!(
                packing.chunks[0].size < 10_000 && packing.chunks[1].size as usize == CHUNK_SIZE,
                "{method}"
            );
            let mut unpacker = Unpacker::new(&file, &packing).unwrap();
            for (number, pages) in (0..).zip([&text[..], &noise, &text[..3 * 4096]]) {
                let mut back = vec![0; pages.len()];
                unpacker.chunk(number, &mut back).unwrap();
                assert!(back == pages, "{method}: chunk {number}");
            }
            // Bytes that are wrong are found, if not by the method then by the checksum of the pages.
            let mut wrong = vec![0; 4096];
            assert!(unpacker.chunk(2, &mut wrong).is_err(), "{method}");
        }
    }
}
