//! Features of the kernel that crr is told to do without (`--disable-feature`): for tests of what stands in for them, and where one makes
//! trouble.

use std::sync::OnceLock;

/// A feature that something stands in for, or whose lack is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Switch {
    /// clone3(2) with set_tid; `ns_last_pid` is written.
    Clone3SetTid,
    /// pidfd_getfd(2); tasks send their descriptors.
    PidfdGetfd,
    /// kcmp(2); dumps are refused.
    Kcmp,
    /// PR_TIMER_CREATE_RESTORE_IDS; timers are made until the number comes.
    TimerRestoreIds,
    /// PAGEMAP_SCAN; pagemap is read.
    PagemapScan,
    /// PTRACE_GET_RSEQ_CONFIGURATION; threads are asked.
    PtraceRseq,
    /// PTRACE_GET_SYSCALL_INFO; the instruction tells.
    PtraceSyscallInfo,
    /// CLOSE_RANGE_CLOEXEC; descriptors are marked one by one.
    CloseRange,
    /// userfaultfd(2); tasks read their memory themselves.
    Userfaultfd,
    /// memfds that can be executed; unnamed files are.
    MemfdExec,
    /// Asynchronous protection by userfaultfd; soft-dirty bits tell what was written.
    UffdWpAsync,
    /// SO_PEEK_OFF of TCP sockets; some urgent data is refused.
    TcpPeekOffset,
}

impl Switch {
    const ALL: [Self; 12] = [
        Self::Kcmp,
        Self::TimerRestoreIds,
        Self::Clone3SetTid,
        Self::PidfdGetfd,
        Self::PagemapScan,
        Self::PtraceRseq,
        Self::PtraceSyscallInfo,
        Self::CloseRange,
        Self::Userfaultfd,
        Self::MemfdExec,
        Self::UffdWpAsync,
        Self::TcpPeekOffset,
    ];

    /// What `crr check` calls it.
    const fn name(self) -> &'static str {
        match self {
            Self::Clone3SetTid => "clone3-set-tid",
            Self::PidfdGetfd => "pidfd-getfd",
            Self::Kcmp => "kcmp",
            Self::TimerRestoreIds => "timer-restore-ids",
            Self::PagemapScan => "pagemap-scan",
            Self::PtraceRseq => "ptrace-rseq",
            Self::PtraceSyscallInfo => "ptrace-syscall-info",
            Self::CloseRange => "close-range-cloexec",
            Self::Userfaultfd => "userfaultfd",
            Self::MemfdExec => "memfd-exec",
            Self::UffdWpAsync => "uffd-wp-async",
            Self::TcpPeekOffset => "tcp-peek-offset",
        }
    }
}

static DISABLED: OnceLock<Vec<Switch>> = OnceLock::new();

/// Does without these from now on.
///
/// # Errors
/// The first name of something that crr cannot do without, or that does not exist, with those that can be given.
pub fn disable(names: &[String]) -> Result<(), String> {
    let find = |name: &String| {
        let found = Switch::ALL.into_iter().find(|switch| switch.name() == name);
        found.ok_or_else(|| {
            let names = Switch::ALL.map(Switch::name).join(", ");
            format!("feature `{name}` cannot be disabled\n  hint: these can: {names}")
        })
    };
    let switches = names.iter().map(find).collect::<Result<_, _>>()?;
    DISABLED.get_or_init(|| switches);
    Ok(())
}

/// Whether to do without.
pub(crate) fn is_disabled(switch: Switch) -> bool {
    DISABLED.get().is_some_and(|disabled| disabled.contains(&switch))
}

/// Whether a feature by this name is disabled.
pub(super) fn is_named(name: &str) -> bool {
    DISABLED.get().into_iter().flatten().any(|switch| switch.name() == name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_features() {
        for switch in Switch::ALL {
            assert!(super::super::FEATURES.iter().any(|entry| entry.name == switch.name()), "{switch:?}");
        }
        assert!(
            disable(&["ptrace".to_owned()]).unwrap_err().starts_with("feature `ptrace` cannot be disabled")
        );
    }
}
