//! The small types that name things across records.

use core::fmt;
use serde::{Deserialize, Serialize};

/// A process or thread id, as seen in the pid namespace that `crr dump` ran in.
pub type Pid = i32;

/// The bytes of a page on x86, in both ABIs.
pub const PAGE_SIZE: u64 = 4096;

/// The ABI of a task: what the kernel decided at exec for its memory (address limit, vDSO, mmap base).
///
/// Not to be confused with the mode of a thread, which is the code segment it stands in now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Abi {
    /// 64-bit.
    X86_64,
    /// 32-bit x86 (i386) under IA32_EMULATION.
    Ia32,
}

impl Abi {
    /// One past the highest address a task of this ABI can map: `TASK_SIZE_MAX`, and `IA32_PAGE_OFFSET` of
    /// arch/x86/include/asm/page_64_types.h. Five-level 64-bit tasks are limited to the four-level range.
    #[must_use]
    pub const fn task_size(self) -> u64 {
        match self {
            Self::X86_64 => 0x7fff_ffff_f000,
            Self::Ia32 => 0xffff_e000,
        }
    }

    /// Bytes of a pointer.
    #[must_use]
    pub const fn word(self) -> u64 {
        match self {
            Self::X86_64 => 8,
            Self::Ia32 => 4,
        }
    }
}

impl fmt::Display for Abi {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::X86_64 => "x86_64",
            Self::Ia32 => "ia32",
        })
    }
}

macro_rules! id {
    ($(#[$doc:meta])* $name:ident($inner:ty), $fmt:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub $inner);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, $fmt, self.0)
            }
        }
    };
}

id! {
    /// An address in a task, whatever its ABI.
    Addr(u64), "{:#x}"
}
id! {
    /// A file descriptor number of a task.
    TaskFd(u32), "{}"
}
id! {
    /// Index into [`crate::file::Files::paths`].
    PathId(u32), "path#{}"
}
id! {
    /// Index into [`crate::file::Files::descriptions`].
    DescriptionId(u32), "description#{}"
}
id! {
    /// Index into [`crate::task::Tree::filters`].
    FilterId(u32), "filter#{}"
}
id! {
    /// Index into [`crate::memory::Memory::shared`].
    SharedId(u32), "shared#{}"
}

id! {
    /// Index into [`crate::memory::Memory::vdsos`].
    VdsoId(u32), "vdso#{}"
}

impl Addr {
    /// The address `bytes` above this one; wraps like the processor does.
    #[must_use]
    pub const fn offset(self, bytes: u64) -> Self {
        Self(self.0.wrapping_add(bytes))
    }
}
