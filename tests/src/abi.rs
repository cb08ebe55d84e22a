//! The two ABIs that every workload is built for.

use std::fmt;

/// An ABI.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Abi {
    /// 64-bit.
    X86_64,
    /// 32-bit.
    Ia32,
}

impl Abi {
    /// Both.
    pub const ALL: [Self; 2] = [Self::X86_64, Self::Ia32];

    /// The other one.
    #[must_use]
    pub fn other(self) -> Self {
        match self {
            Self::X86_64 => Self::Ia32,
            Self::Ia32 => Self::X86_64,
        }
    }

    /// What makes gcc build for it.
    #[must_use]
    pub fn gcc_flag(self) -> &'static str {
        match self {
            Self::X86_64 => "-m64",
            Self::Ia32 => "-m32",
        }
    }

    /// Its name in paths and messages.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::X86_64 => "x86_64",
            Self::Ia32 => "ia32",
        }
    }
}

impl fmt::Display for Abi {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
