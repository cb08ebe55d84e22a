//! Records of the plainest task there can be.

use images::seccomp::Seccomp;
use images::sharing::Shares;
use images::signal::{AltStack, IntervalTimer};
use images::task::Task;
use images::thread::{Creds, Regs, Sched, Thread};
use images::{Abi, Addr, PathId};

/// Of a user without rights.
pub(crate) fn creds(uid: u32) -> Creds {
    Creds {
        uid: [uid; 4],
        gid: [0; 4],
        groups: Vec::new(),
        cap_inheritable: 0,
        cap_permitted: 0,
        cap_effective: 0,
        cap_bounding: 0,
        cap_ambient: 0,
        securebits: 0,
        no_new_privs: false,
    }
}

/// A thread that has nothing.
pub(crate) fn thread(tid: i32, seccomp: Seccomp) -> Thread {
    Thread {
        attributes: Default::default(),
        tid,
        comm: Vec::new(),
        regs: Regs([0; 27]),
        exited: None,
        time_left_ns: None,
        xstate: Vec::new(),
        tls: Vec::new(),
        sigmask: 0,
        pending: Vec::new(),
        altstack: AltStack { base: Addr(0), size: 0, flags: 2 },
        robust_list_64: None,
        robust_list_32: None,
        rseq: None,
        clear_child_tid: Addr(0),
        sched: Sched {
            policy: 0,
            flags: 0,
            nice: 0,
            priority: 0,
            runtime: 0,
            deadline: 0,
            period: 0,
            affinity: vec![1],
            io_priority: 0,
        },
        creds: creds(1000),
        parent_death_signal: 0,
        personality: None,
        timer_slack_ns: 0,
        seccomp,
        dispatch: None,
    }
}

/// A task that has nothing but threads.
pub(crate) fn task(threads: Vec<Thread>) -> Task {
    Task {
        attributes: Default::default(),
        pid: 10,
        ppid: 1,
        pgid: 10,
        sid: 10,
        exit_signal: 17,
        shares: Shares::default(),
        abi: Abi::X86_64,
        exe: PathId(0),
        cwd: PathId(0),
        root: PathId(0),
        umask: 0,
        personality: 0,
        dumpable: 1,
        child_subreaper: false,
        oom_score_adj: 0,
        coredump_filter: 0,
        login_uid: 1000,
        xcomp_permission: 0,
        rlimits: Vec::new(),
        actions: Vec::new(),
        pending: Vec::new(),
        stopped: None,
        locks: Vec::new(),
        ldt: Vec::new(),
        interval_timers: [IntervalTimer::default(); 3],
        timers: Vec::new(),
        fds: Vec::new(),
        threads,
    }
}
