//! Plans: what a restoring task will do, from records alone.
//!
//! Pure code. Everything that can be decided is decided here, before anything is touched; what depends on the
//! running kernel comes in as plain values ([`Machine`]).

pub mod aio;
pub mod attribute;
mod birth;
mod cow;
pub mod creds;
mod extents;
pub mod family;
mod forest;
pub mod hole;
mod huge;
mod inherited;
pub mod kin;
pub mod lazy;
pub mod ldt;
pub mod loan;
pub mod memory;
pub mod pkey;
pub mod seccomp;
pub mod segment;
pub mod signal;
pub mod thread;
pub mod timer;
pub mod tree;
mod vdso;

use crate::op::birth::Birth;
use crate::op::{self, Op, Slot};
use crate::proto::{SLOT_FILES, SpecialArea, Vdso};
use alloc::vec::Vec;
use birth::Stacks;
use cow::Base;
pub use forest::{Forest, Written};
use images::attribute::{TaskAttributes, ThreadAttributes};
use images::sharing::Object;
use images::task::Task;
use images::thread::{Creds, Thread};
use images::{Abi, DescriptionId, PathId, Pid, SharedId};
use seccomp::Programs;

/// READ_IMPLIES_EXEC: memory that a task maps to be read can be executed.
pub const READ_IMPLIES_EXEC: u32 = 0x040_0000;
/// MMAP_PAGE_ZERO: exec maps the page at address 0, and seals it from Linux 6.10 on (load_elf_binary() of fs/binfmt_elf.c).
const MMAP_PAGE_ZERO: u32 = 0x010_0000;
/// Bits of the personality that are set last: they would have their say in what restores the task.
pub const LATE_PERSONALITY: u32 = READ_IMPLIES_EXEC | MMAP_PAGE_ZERO;

const PR_SET_PDEATHSIG: u32 = 1;
const PR_SET_DUMPABLE: u32 = 4;
const PR_SET_CHILD_SUBREAPER: u32 = 36;
const ARCH_REQ_XCOMP_PERM: u32 = 0x1023;
/// XTILEDATA, the one state component that needs permission.
const XFEATURE_XTILEDATA: u32 = 18;

/// What the running kernel and the coordinator bring along.
#[derive(Clone, Debug)]
pub struct Machine {
    /// Special areas of this kernel for the ABI of the task: vvar, vvar_vclock, vdso.
    pub special: [SpecialArea; 3],
    /// Whether these can be moved.
    pub vdso_moves: bool,
    /// What a task has after the coordinator's fork and exec.
    pub creds: Creds,
    /// Its limits then, in the order of `RLIMIT_*`.
    pub rlimits: Vec<(u64, u64)>,
    /// Its timer slack then.
    pub timer_slack_ns: u64,
    /// Its settings then.
    pub task_attributes: TaskAttributes,
    /// Those of its thread.
    pub thread_attributes: ThreadAttributes,
    /// What it has to say about memory.
    pub rules: memory::Rules,
}

/// A file that ops refer to by slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Need {
    /// A path, opened for reading or for reading and writing.
    Path {
        /// Which.
        path: PathId,
        /// Opened for writing too.
        writable: bool,
    },
    /// A shared anonymous memory object.
    Shared(SharedId),
    /// An open file description of the tree.
    Description(DescriptionId),
    /// A current or root directory.
    Directory(PathId),
    /// The program that a task execs, by the index of that task.
    Program(usize),
    /// The other end of the socket that such a task is restored by, by the index of that task.
    Socket(usize),
    /// The terminal that controls a session, by the id of that.
    Terminal(Pid),
    /// `/proc/sys/kernel/ns_last_pid`, where ids are chosen by it.
    LastPid,
}

/// The working fds of one task, in slot order after the fixed ones.
#[derive(Debug, Default)]
pub struct Slots {
    needs: Vec<Need>,
}

impl Slots {
    /// All that was asked for, in slot order.
    #[must_use]
    pub fn into_needs(self) -> Vec<Need> {
        self.needs
    }

    /// The slot of a file, the same for the same need.
    #[allow(clippy::cast_possible_truncation)] // Files of one task: far below 2^32.
    pub fn slot(&mut self, need: Need) -> Slot {
        // Neighbouring areas mostly map the same file.
        let found = self.needs.iter().rposition(|&known| known == need);
        let index = found.unwrap_or_else(|| {
            self.needs.push(need);
            self.needs.len() - 1
        });
        SLOT_FILES + index as u32
    }
}

/// What one program will do: for the task that execs it, and for those that it clones.
#[derive(Clone, Debug)]
pub struct ProgramPlan {
    /// Encoded ops of the leader, with those of threads and further tasks inside.
    pub ops: Vec<u8>,
    /// Working fds from [`SLOT_FILES`] on.
    pub needs: Vec<Need>,
    /// Stacks of threads and cloned tasks.
    pub stacks: u32,
    /// Words that its tasks share.
    pub words: u32,
    /// The tasks that it restores, by index: the one that execs it first.
    pub members: Vec<usize>,
    /// What becomes of the vDSO that exec makes.
    pub vdso: Vdso,
}

/// Plans the program that a task execs.
#[must_use]
pub fn program(machine: &Machine, forest: &Forest<'_>, index: usize) -> ProgramPlan {
    let mut planner = Planner {
        machine,
        forest,
        slots: Slots::default(),
        stacks: 0,
        words: Vec::new(),
        members: alloc::vec![index],
    };
    let mut ops = Vec::new();
    planner.task(&mut ops, index, &mut Stacks::default(), &Base::empty(machine));
    let vdso = vdso::becomes(machine, forest, &planner.members);
    if vdso == Vdso::Stays {
        let program = planner.slots.slot(Need::Program(index));
        ops.splice(0..0, vdso::settle(forest, &planner.members, program));
    }
    ProgramPlan {
        ops,
        vdso,
        needs: planner.slots.into_needs(),
        stacks: planner.stacks,
        words: u32::try_from(planner.words.len()).unwrap_or(u32::MAX),
        members: planner.members,
    }
}

/// What is gathered while a program is planned.
struct Planner<'a> {
    machine: &'a Machine,
    forest: &'a Forest<'a>,
    slots: Slots,
    stacks: u32,
    /// Objects that several tasks have, by the holder.
    words: Vec<(usize, Object)>,
    members: Vec<usize>,
}

impl Planner<'_> {
    /// Plans one task, in the address space whose stacks are given, and which holds the base when it starts.
    fn task(&mut self, ops: &mut Vec<u8>, index: usize, stacks: &mut Stacks, base: &Base) {
        let (machine, task) = (self.machine, &self.forest.tasks[index]);
        let first_stack = stacks.next;
        let programs = Programs::of(task, self.forest.filters);
        programs.op(ops);
        self.begin(ops, index, stacks, base);
        self.memory(ops, index, stacks, base);
        self.join_group(ops, index);
        if task.xcomp_permission & (1 << XFEATURE_XTILEDATA) != 0 && task.abi == Abi::X86_64 {
            op::push(ops, &Op::ArchPrctl { option: ARCH_REQ_XCOMP_PERM, arg: u64::from(XFEATURE_XTILEDATA) });
        }
        for record in &task.threads[1..] {
            let mut own = Vec::new();
            thread::ops(&mut own, machine, task.abi, record);
            attribute::policy(&mut own, &task.threads[0].attributes.policy, &record.attributes.policy);
            late_personality(&mut own, task, record);
            programs.install(&mut own, task, record);
            creds::ops(&mut own, &machine.creds, &record.creds);
            last_of_thread(&mut own, record);
            op::push(ops, &Op::Thread { tid: record.tid, stack: stacks.next, ops: &own });
            stacks.next += 1;
        }
        self.stacks = self.stacks.max(stacks.next);
        if self.forest.has_late() {
            op::push(ops, &Op::There);
        }
        let leader = &task.threads[0];
        thread::ops(ops, machine, task.abi, leader);
        signal::pending(ops, task.abi, &task.pending, false);
        timer::create(ops, &task.timers);
        for entry in task.fds.iter().filter(|entry| entry.close_on_exec) {
            op::push(ops, &Op::CloseOnExec(entry.fd.0));
        }
        // While there are neither limits nor filters.
        for entry in self.forest.late_fds(index) {
            op::push(ops, &Op::Receive { fd: entry.fd.0, close_on_exec: entry.close_on_exec });
        }
        if task.child_subreaper {
            op::push(ops, &Op::Prctl { option: PR_SET_CHILD_SUBREAPER, args: [1, 0, 0] });
        }
        if task.shares.memory.is_none() {
            attribute::before_limits(ops, task);
        }
        self.limits(ops, task, Moment::Privileged);
        late_personality(ops, task, leader);
        programs.install(ops, task, leader);
        creds::ops(ops, &machine.creds, &leader.creds);
        // A change of credentials resets dumpable for the whole address space (commit_creds, kernel/cred.c), so those of
        // all others in it come first.
        if stacks.next > first_stack {
            op::push(ops, &Op::Join);
        }
        self.limits(ops, task, Moment::SignalsQueued);
        if task.shares.memory.is_none() {
            op::push(ops, &Op::Prctl { option: PR_SET_DUMPABLE, args: [u64::from(task.dumpable), 0, 0] });
        }
        op::push(ops, &Op::Prctl { option: PR_SET_PDEATHSIG, args: [u64::from(TIE), 0, 0] });
        last_of_thread(ops, leader);
        attribute::last(ops, machine, task);
        signal::timers(ops, &task.interval_timers);
        timer::start(ops, task);
    }

    /// The address space and the handlers, if they are the task's own.
    fn memory(&mut self, ops: &mut Vec<u8>, index: usize, stacks: &mut Stacks, base: &Base) {
        let task = &self.forest.tasks[index];
        let mates = self.mates(index);
        if let (Some(_), Some((word, _))) = (task.shares.memory, mates) {
            op::push(ops, &Op::Birth(Birth::AwaitMapped(word)));
            pkey::allow(ops, &self.forest.spaces[self.forest.holder(index, Object::Memory)]);
            attribute::policy(ops, &base.policy, &task.threads[0].attributes.policy);
        } else {
            if let Some((word, tasks)) = mates {
                op::push(ops, &Op::Birth(Birth::AwaitMates { word, tasks }));
            }
            let space = &self.forest.spaces[index];
            attribute::before_memory(ops, (&base.attributes, &base.policy), task);
            let makes_none = self.forest.clones_with(index, true).next().is_none();
            if makes_none && (base.is_empty() || !kin::is_plain(space, self.forest.shared)) {
                base.clone().clear(ops);
                let disabled = task.attributes.thp_disable;
                let (shared, rules) = (self.forest.shared, self.machine.rules);
                memory::ops(ops, &mut self.slots, task.exe, space, shared, rules, disabled);
            } else {
                self.related_memory(ops, index, stacks, base.clone());
            }
            for written in self.forest.written(index) {
                vdso::write(ops, written);
            }
            aio::ops(ops, &self.forest.spaces[index]);
            if let Some(flags) = self.forest.lazy_flags(index) {
                op::push(ops, &Op::Lazy { flags });
            }
            attribute::after_memory(ops, task, space);
            attribute::before_threads(ops, task);
            ldt::ops(ops, &task.ldt);
            if let Some((word, _)) = mates {
                op::push(ops, &Op::Birth(Birth::Mapped(word)));
            }
        }
        signal::actions(ops, &task.actions);
    }
}

/// The signal that ends a restoring task when its parent ends, so that a restore which fails or is killed leaves nobody
/// behind. Its leader asks for it again after the last change of credentials, which clears it (`commit_creds`, kernel/cred.c),
/// and what the threads had asked for comes at the takeover (`restore::takeover`).
pub const TIE: u32 = 9;

/// What would stand in the way of a change of credentials.
fn last_of_thread(ops: &mut Vec<u8>, thread: &Thread) {
    const PR_SET_NO_NEW_PRIVS: u32 = 38;
    if thread.creds.no_new_privs {
        op::push(ops, &Op::Prctl { option: PR_SET_NO_NEW_PRIVS, args: [1, 0, 0] });
    }
}

/// The personality of each thread, which is at first that of the one that clones it (dup_task_struct(), kernel/fork.c): that of the task without
/// the bits that are set last.
fn late_personality(ops: &mut Vec<u8>, task: &Task, thread: &Thread) {
    let wanted = thread.personality.unwrap_or(task.personality);
    if wanted != task.personality & !LATE_PERSONALITY {
        op::push(ops, &Op::Personality(wanted));
    }
}

/// When a limit can be set.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Moment {
    /// While there is the privilege to raise it.
    Privileged,
    /// When all threads have queued their signals: more can be pending than the limit allows by now.
    SignalsQueued,
}

const STACK: u32 = 3;
/// The place of RLIMIT_STACK among limits.
pub const RLIMIT_STACK: usize = STACK as usize;

/// The limits of the stack with which a program is executed, from those of who executes it. How much room the kernel leaves below the stack for
/// the whole life of an address space is decided by the soft one of that moment (mmap_base(), arch/x86/mm/mmap.c), so it is that of the
/// task; or the usual one if that is larger, which any program can start with. The hard one is raised only where it comes to be as high anyway.
#[must_use]
pub fn stack_limit_at_exec((soft, hard): (u64, u64), task: &Task) -> (u64, u64) {
    /// _STK_LIM, include/uapi/linux/resource.h
    const USUAL: u64 = 8 << 20;
    let wanted = task.rlimits.get(RLIMIT_STACK).map_or(soft, |limit| limit.0.max(USUAL.min(hard)));
    (wanted, hard.max(wanted))
}

impl Planner<'_> {
    /// The limits of its stack with which a task execs a program.
    fn stack_limit(&self, task: &Task) -> (u64, u64) {
        let own = self.machine.rlimits.get(RLIMIT_STACK).copied().unwrap_or_default();
        stack_limit_at_exec(own, task)
    }

    fn limits(&self, ops: &mut Vec<u8>, task: &Task, moment: Moment) {
        const RLIMIT_SIGPENDING: u32 = 11;
        let inherited = self.machine.rlimits.iter().zip(&task.rlimits);
        let leader = &self.forest.tasks[self.members[0]];
        for (resource, (&now, &(soft, hard))) in (0u32..).zip(inherited) {
            let now = if resource == STACK { self.stack_limit(leader) } else { now };
            // Lowering needs no privilege.
            let late = resource == RLIMIT_SIGPENDING && hard <= now.1;
            if now != (soft, hard) && late == (moment == Moment::SignalsQueued) {
                op::push(ops, &Op::Limit { resource, soft, hard });
            }
        }
    }
}
