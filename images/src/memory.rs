//! Memory: the layout of each task's address space and where its page contents lie in `pages.img`.

use crate::aio::AioContext;
use crate::attribute::AreaPolicy;
use crate::id::{Abi, Addr, PAGE_SIZE, PathId, SharedId, VdsoId};
use crate::sysv::Object;
use alloc::vec::Vec;
use serde::{Deserialize, Serialize};

/// The payload of `memory.img`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Memory {
    /// One address space a task, in the order of [`crate::task::Tree::tasks`].
    pub spaces: Vec<Space>,
    /// Memory without a file that tasks share.
    pub shared: Vec<Shared>,
    /// The vDSOs that dumped tasks had, each once: of an ABI there are several where a restore has put one beside another.
    pub vdsos: Vec<Vdso>,
    /// Pages of the checkpoints that this one builds on. They are numbered from 0 on, those of the oldest first.
    pub first_page: u64,
    /// Pages in `pages.img`, numbered from `first_page` on.
    pub page_count: u64,
    /// Pages under one checksum: [`BLOCK_PAGES`], or 1 where others build on this, which use single pages.
    pub block_pages: u64,
    /// CRC-32C of each `block_pages` pages of `pages.img`, the last block possibly shorter.
    pub block_crcs: Vec<u32>,
    /// How the pages are packed, if they are.
    pub packing: Option<Packing>,
}

/// Pages covered by one checksum: 1 MiB.
pub const BLOCK_PAGES: u64 = 256;

/// Pages of a [`Chunk`]: 128 KiB, so that a processor packs what is still in its cache, and a page can be had without much around it.
pub const CHUNK_PAGES: u64 = 32;

/// Page contents that were made smaller.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Packing {
    /// How.
    pub method: Method,
    /// Where each [`CHUNK_PAGES`] pages lie, the last ones possibly fewer. They fill `pages.img`, in any order.
    pub chunks: Vec<Chunk>,
}

/// How a chunk is packed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Method {
    /// A block of LZ4, without a frame.
    Lz4,
    /// A frame of Zstandard.
    Zstd,
}

/// Some pages in `pages.img`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Chunk {
    /// Its first byte.
    pub place: u64,
    /// Its bytes: as many as the pages have if these could not be made smaller and are there as they are.
    pub size: u32,
}

/// One address space; empty where it is another task's.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Space {
    /// By rising address, not overlapping.
    pub vmas: Vec<Vma>,
    /// Page contents of private memory, by rising address. Pages that tasks share copy-on-write lie in `pages.img` once, wherever
    /// the first of these tasks has them.
    pub runs: Vec<Run>,
    /// Memory policies of areas, by rising address, not overlapping.
    pub policies: Vec<AreaPolicy>,
    /// Guard pages (MADV_GUARD_INSTALL), by rising address, not overlapping.
    pub guards: Vec<Guard>,
    /// Names of areas (PR_SET_VMA_ANON_NAME), by rising address, not overlapping.
    pub names: Vec<AreaName>,
    /// Contexts of asynchronous I/O, by rising address, one for each of their rings.
    pub aio: Vec<AioContext>,
    /// Protection keys that are allocated (pkey_alloc): bits 1 to 15.
    pub keys: u16,
    /// What `/proc/PID/stat` and brk(2) tell of the layout.
    pub layout: Layout,
    /// `/proc/PID/auxv`, as bytes in the layout of the task's ABI.
    #[serde(serialize_with = "crate::readable::hex")]
    pub auxv: Vec<u8>,
}

/// The fields of `struct prctl_mm_map` that are addresses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Layout {
    /// Text.
    pub start_code: Addr,
    /// Text.
    pub end_code: Addr,
    /// Data.
    pub start_data: Addr,
    /// Data.
    pub end_data: Addr,
    /// Heap.
    pub start_brk: Addr,
    /// Heap: the current break.
    pub brk: Addr,
    /// Stack.
    pub start_stack: Addr,
    /// Arguments (`/proc/PID/cmdline`).
    pub arg_start: Addr,
    /// Arguments.
    pub arg_end: Addr,
    /// Environment.
    pub env_start: Addr,
    /// Environment.
    pub env_end: Addr,
}

/// A virtual memory area.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Vma {
    /// First byte.
    pub start: Addr,
    /// One past the last byte.
    pub end: Addr,
    /// PROT_READ 1, PROT_WRITE 2, PROT_EXEC 4.
    pub prot: u32,
    /// [`vm`] bits that have to be set again.
    pub flags: u32,
    /// What is behind it.
    pub backing: Backing,
}

/// What is behind a VMA. Closed: a new kind must be taught to dump, plan and restore.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Backing {
    /// Private anonymous memory.
    Anonymous,
    /// MAP_PRIVATE of a file, from a byte offset.
    PrivateFile(PathId, u64),
    /// MAP_SHARED of a file, from a byte offset.
    SharedFile(PathId, u64),
    /// MAP_SHARED | MAP_ANONYMOUS memory or an attached segment of System V, from a byte offset of the object.
    Shared(SharedId, u64),
    /// The kernel's code page(s), as exec mapped them or as a restore put the code of another kernel in their place.
    Vdso(VdsoId),
    /// The kernel's data pages beside it.
    Vvar,
    /// The kernel's paravirtual clock pages beside it (6.13 and later).
    VvarVclock,
    /// MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB memory, from a byte offset of what was mapped by one call.
    HugePages(u64),
    /// The ring of a context of [`Space::aio`].
    AioRing,
}

/// Pages of the hugetlb pools, of the sizes that the processor has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum HugePage {
    /// 2 MiB.
    Mib2,
    /// 1 GiB.
    Gib1,
}

impl HugePage {
    /// All sizes.
    pub const ALL: [Self; 2] = [Self::Mib2, Self::Gib1];

    /// Its size is two to the power of this.
    #[must_use]
    pub const fn shift(self) -> u32 {
        match self {
            Self::Mib2 => 21,
            Self::Gib1 => 30,
        }
    }

    /// Its size in bytes.
    #[must_use]
    pub const fn size(self) -> u64 {
        1 << self.shift()
    }

    /// The bit of [`Vma::flags`].
    #[must_use]
    pub const fn bit(self) -> u32 {
        match self {
            Self::Mib2 => vm::HUGE_2_MIB,
            Self::Gib1 => vm::HUGE_1_GIB,
        }
    }
}

impl Vma {
    /// The pages that private memory is made of, if they are huge.
    #[must_use]
    pub fn huge(&self) -> Option<HugePage> {
        HugePage::ALL.into_iter().find(|page| self.flags & page.bit() != 0)
    }

    /// Its protection key.
    #[must_use]
    pub const fn key(&self) -> u32 {
        (self.flags & vm::KEY) >> vm::KEY_SHIFT
    }
}

impl Backing {
    /// Whether it is memory of the task's own: anonymous, of huge pages or not, or a private mapping of a file.
    #[must_use]
    pub const fn is_private(self) -> bool {
        matches!(self, Self::Anonymous | Self::PrivateFile(..) | Self::HugePages(_))
    }
}

/// Bits of [`Vma::flags`], from the two-letter codes of `/proc/PID/smaps`.
pub mod vm {
    /// `gd`: grows down.
    pub const GROWS_DOWN: u32 = 1 << 0;
    /// `lo`: locked.
    pub const LOCKED: u32 = 1 << 1;
    /// `lf`: locked on fault.
    pub const LOCK_ON_FAULT: u32 = 1 << 2;
    /// `sr`: MADV_SEQUENTIAL.
    pub const SEQUENTIAL: u32 = 1 << 3;
    /// `rr`: MADV_RANDOM.
    pub const RANDOM: u32 = 1 << 4;
    /// `dc`: MADV_DONTFORK.
    pub const DONT_FORK: u32 = 1 << 5;
    /// `dd`: MADV_DONTDUMP.
    pub const DONT_DUMP: u32 = 1 << 6;
    /// `wf`: MADV_WIPEONFORK.
    pub const WIPE_ON_FORK: u32 = 1 << 7;
    /// `nr`: MAP_NORESERVE.
    pub const NO_RESERVE: u32 = 1 << 8;
    /// `hg`: MADV_HUGEPAGE.
    pub const HUGE_PAGE: u32 = 1 << 9;
    /// `nh`: MADV_NOHUGEPAGE.
    pub const NO_HUGE_PAGE: u32 = 1 << 10;
    /// `mg`: MADV_MERGEABLE.
    pub const MERGEABLE: u32 = 1 << 11;
    /// `ac`: accounted against the commit limit.
    pub const ACCOUNTED: u32 = 1 << 12;
    /// `mw`: may be made writable, so a shared mapping came from a writable file.
    pub const MAY_WRITE: u32 = 1 << 13;
    /// `sl`: sealed (mseal).
    pub const SEALED: u32 = 1 << 14;
    /// `dp`: MAP_DROPPABLE.
    pub const DROPPABLE: u32 = 1 << 15;
    /// `ht`: private memory of huge pages (MAP_HUGETLB), of 2 MiB.
    pub const HUGE_2_MIB: u32 = 1 << 17;
    /// The same, of 1 GiB.
    pub const HUGE_1_GIB: u32 = 1 << 18;
    /// No code of smaps: of the vDSO and the areas around it, put there by a restore on another kernel than that of the
    /// dump, beside those that the task had.
    pub const PARKED: u32 = 1 << 16;
    /// The protection key (`ProtectionKey` of smaps), a number of four bits.
    pub const KEY: u32 = 15 << KEY_SHIFT;
    /// The lowest of these.
    pub const KEY_SHIFT: u32 = 24;
}

/// Consecutive pages with their place in `pages.img`, or in that of a checkpoint that this one builds on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Run {
    /// Address of the first page; for shared memory and files, the byte offset in the object.
    pub start: Addr,
    /// Number of pages, at least 1.
    pub pages: u64,
    /// Number of the first page: [`Memory::first_page`] is the first of `pages.img`.
    pub first_page: u64,
}

impl Run {
    /// One past the last byte.
    #[must_use]
    pub const fn end(&self) -> u64 {
        self.start.0 + self.pages * PAGE_SIZE
    }

    /// Its parts that lie in one block of [`BLOCK_PAGES`] pages each, with the numbers of these.
    pub fn by_blocks(self) -> impl Iterator<Item = (u64, Self)> {
        let mut done = 0;
        core::iter::from_fn(move || {
            let first_page = self.first_page + done;
            let pages = (BLOCK_PAGES - first_page % BLOCK_PAGES).min(self.pages - done);
            let start = self.start.offset(done * PAGE_SIZE);
            done += pages;
            (pages > 0).then_some((first_page / BLOCK_PAGES, Self { start, pages, first_page }))
        })
    }
}

/// Pages of one VMA that may not be touched, whatever its protection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Guard {
    /// First byte.
    pub start: Addr,
    /// One past the last byte.
    pub end: Addr,
}

/// The name that a task gave to a VMA without a file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AreaName {
    /// First byte.
    pub start: Addr,
    /// One past the last byte.
    pub end: Addr,
    /// At most [`AREA_NAME_MAX`] bytes, printable ASCII.
    #[serde(serialize_with = "crate::readable::text")]
    pub name: Vec<u8>,
}

/// ANON_VMA_NAME_MAX_LEN of mm/madvise.c, without the zero at the end.
pub const AREA_NAME_MAX: usize = 79;

/// An object of shared memory without a file: anonymous, or a segment of System V.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shared {
    /// Its size in bytes; of a segment, the one that it was made with.
    pub size: u64,
    /// Its inode number at dump, for messages only.
    pub ino: u64,
    /// Its contents; what lies between was never touched.
    pub runs: Vec<Run>,
    /// The pages that it is made of, if they are huge.
    pub huge: Option<HugePage>,
    /// What it is as a segment of System V, if it is one.
    pub segment: Option<Object>,
}

impl Shared {
    /// Bytes of an area that shows all of it.
    #[must_use]
    pub const fn mapped_size(&self) -> u64 {
        let page = match self.huge {
            Some(page) => page.size(),
            None => PAGE_SIZE,
        };
        self.size.next_multiple_of(page)
    }
}

/// The code of a vDSO.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Vdso {
    /// Whose.
    pub abi: Abi,
    /// The ELF image, whole pages.
    #[serde(serialize_with = "crate::readable::hex")]
    pub image: Vec<u8>,
}
