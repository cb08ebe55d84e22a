//! Ops by what they are about, for those who want one of them to fail.

use super::Op;

/// What an op is about; the number goes into the control page, where 0 is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Family {
    /// Mapping memory.
    Map = 1,
    /// Reading page contents.
    Fill,
    /// Protection and advice.
    Protect,
    /// Locked memory.
    Lock,
    /// Memory policies and membarrier.
    Policy,
    /// The vDSO and the areas around it.
    Place,
    /// PR_SET_MM_MAP.
    Layout,
    /// Signal handlers.
    Action,
    /// Threads.
    Thread,
    /// prctl, arch_prctl, names, personality.
    Attribute,
    /// What the kernel is told of a thread's memory.
    Registration,
    /// Pending signals.
    Queue,
    /// Timers.
    Timer,
    /// Users, groups, capabilities.
    Credentials,
    /// Limits.
    Limit,
    /// Descriptors.
    File,
    /// The local descriptor table.
    Ldt,
    /// seccomp.
    Filter,
    /// Tasks that are cloned.
    Birth,
    /// What is said to the coordinator and to other threads.
    Word,
}

impl Op<'_> {
    /// What it is about.
    #[must_use]
    pub const fn family(&self) -> Family {
        match self {
            Self::Map { .. } | Self::Unmap { .. } | Self::Attach { .. } | Self::AttachParts { .. } => {
                Family::Map
            }
            Self::Fill { .. } | Self::Write { .. } => Family::Fill,
            Self::Protect { .. }
            | Self::AllocateKeys(_)
            | Self::FreeKeys(_)
            | Self::ProtectByKey { .. }
            | Self::Advise { .. }
            | Self::Populate { .. }
            | Self::Seal { .. }
            | Self::NameArea { .. } => Family::Protect,
            Self::Lock { .. } | Self::LockFuture(_) => Family::Lock,
            Self::MemoryPolicy { .. } | Self::Membarrier(_) => Family::Policy,
            Self::Place { .. } | Self::Settle { .. } | Self::Ways { .. } => Family::Place,
            Self::Layout { .. } => Family::Layout,
            Self::Action { .. } => Family::Action,
            Self::Thread { .. } => Family::Thread,
            Self::Prctl { .. } | Self::ArchPrctl { .. } | Self::Name(_) | Self::Personality(_) => {
                Family::Attribute
            }
            Self::AltStack { .. }
            | Self::RobustList { .. }
            | Self::ForeignRobustList { .. }
            | Self::TidAddress(_)
            | Self::Rseq { .. } => Family::Registration,
            Self::Queue { .. } => Family::Queue,
            Self::IntervalTimer { .. } | Self::TimerCreate { .. } | Self::TimerStart { .. } => Family::Timer,
            Self::Groups(_) | Self::Gid(_) | Self::Uid(_) | Self::Capabilities { .. } => Family::Credentials,
            Self::Limit { .. } => Family::Limit,
            Self::CloseOnExec(_) | Self::Receive { .. } => Family::File,
            Self::Ldt { .. } => Family::Ldt,
            Self::Programs(_) | Self::Filter { .. } => Family::Filter,
            Self::Birth(_) => Family::Birth,
            Self::AioContext { .. } => Family::Map,
            Self::Join | Self::There | Self::Hold | Self::Lazy { .. } => Family::Word,
        }
    }
}
