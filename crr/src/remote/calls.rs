//! The system calls that a task is asked to make, and their numbers in both ABIs.

use images::Abi;

macro_rules! calls {
    ($($(#[$doc:meta])* $name:ident = $x86_64:literal, $ia32:literal;)*) => {
        /// A system call that exists in both ABIs.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Call {
            $($(#[$doc])* $name,)*
        }

        impl Call {
            /// Its number: arch/x86/entry/syscalls/syscall_64.tbl and syscall_32.tbl.
            #[must_use]
            pub const fn number(self, abi: Abi) -> u64 {
                match (self, abi) {
                    $((Self::$name, Abi::X86_64) => $x86_64, (Self::$name, Abi::Ia32) => $ia32,)*
                }
            }
        }
    };
}

calls! {
    /// write.
    Write = 1, 4;
    /// close.
    Close = 3, 6;
    /// mmap; mmap2 of ia32 counts the offset in pages, which is 0 here.
    Mmap = 9, 192;
    /// munmap.
    Munmap = 11, 91;
    /// brk.
    Brk = 12, 45;
    /// rt_sigaction.
    RtSigaction = 13, 174;
    /// rt_sigprocmask.
    RtSigprocmask = 14, 175;
    /// rt_sigreturn.
    RtSigreturn = 15, 173;
    /// sched_yield.
    SchedYield = 24, 158;
    /// madvise.
    Madvise = 28, 219;
    /// socket.
    Socket = 41, 359;
    /// sendmsg.
    Sendmsg = 46, 370;
    /// clone; the order of its last two arguments, 0 here, is that of the ABI.
    Clone = 56, 120;
    /// exit.
    Exit = 60, 1;
    /// exit_group.
    ExitGroup = 231, 252;
    /// wait4.
    Wait4 = 61, 114;
    /// chdir.
    Chdir = 80, 12;
    /// setsid.
    Setsid = 112, 66;
    /// getitimer.
    Getitimer = 36, 105;
    /// sigaltstack.
    Sigaltstack = 131, 186;
    /// munlock.
    Munlock = 150, 151;
    /// modify_ldt.
    ModifyLdt = 154, 123;
    /// prctl.
    Prctl = 157, 172;
    /// personality.
    Personality = 135, 136;
    /// arch_prctl.
    ArchPrctl = 158, 384;
    /// semtimedop; semtimedop_time64 of ia32.
    Semtimedop = 220, 420;
    /// io_submit.
    IoSubmit = 209, 248;
    /// eventfd2.
    Eventfd2 = 290, 328;
    /// rseq.
    Rseq = 334, 386;
    /// timer_gettime; timer_gettime64 of ia32.
    TimerGettime = 224, 408;
    /// timer_getoverrun.
    TimerGetoverrun = 225, 262;
    /// restart_syscall.
    RestartSyscall = 219, 0;
    /// tgkill.
    Tgkill = 234, 270;
    /// membarrier.
    Membarrier = 324, 375;
    /// waitid.
    Waitid = 247, 284;
    /// keyctl.
    Keyctl = 250, 288;
    /// userfaultfd.
    Userfaultfd = 323, 374;
    /// kcmp.
    Kcmp = 312, 349;
    /// get_mempolicy.
    GetMempolicy = 239, 275;
    /// close_range.
    CloseRange = 436, 436;
    /// io_uring_enter.
    IoUringEnter = 426, 426;
    /// pkey_mprotect.
    PkeyMprotect = 329, 380;
}
