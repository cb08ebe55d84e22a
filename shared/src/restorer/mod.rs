//! The restorer: what runs inside a task to make it the one that was dumped.
//!
//! Compiled once for each ABI and exec'd, it starts in an address space of the right kind, lying in the hole
//! that the plan chose. It receives its plan ([`receive`]), makes room ([`clear`]), follows the ops ([`run`]) and
//! parks; the coordinator then takes over each thread from outside. Nothing here allocates, unwinds or panics.
//!
//! # Safety
//! This program rewrites the address space it runs in. That is sound only because the plan puts nothing of the
//! task into the hole, where all of the program's own memory lies once [`clear`] is done.
#![allow(unsafe_code)]
// Words, addresses and fd numbers of the program's own ABI change between u32, usize and c_int at every call; what comes
// from the plan is narrowed by checks.
#![allow(clippy::cast_possible_truncation, clippy::cast_possible_wrap, clippy::cast_sign_loss)]

mod aio;
mod calls;
mod clear;
mod family;
mod fault;
mod fillers;
mod ids;
mod late;
mod lazy;
mod ldt;
mod memory;
mod mempolicy;
mod pkey;
mod probe;
mod receive;
mod run;
mod seccomp;
mod sysv;
mod timer;
mod vdso;

use crate::proto::{Control, Report, Stage, Start};
use crate::sys::{self, Errno, nr};
use core::ffi::c_int;
use core::sync::atomic::{AtomicU32, AtomicUsize};

/// What went wrong, before it becomes a [`Report`].
#[derive(Clone, Copy, Debug)]
pub(crate) struct Failure {
    pub(crate) errno: u32,
    pub(crate) value: u64,
}

impl Failure {
    pub(crate) const fn new(errno: Errno, value: u64) -> Self {
        Self { errno: errno.0, value }
    }
    /// The kernel said yes, but not what it was asked for.
    pub(crate) const fn wrong(value: u64) -> Self {
        Self { errno: 0, value }
    }
}

/// What all code of a restoring task works with; lives on the main stack until the end.
#[derive(Debug)]
pub(crate) struct Session {
    pub(crate) socket: c_int,
    pub(crate) start: Start,
    /// Working fds by slot, in the scratch memory.
    pub(crate) fds: &'static [c_int],
    /// The task, if it was cloned by the program of another; else 0.
    pub(crate) pid: u32,
    /// Threads, and tasks in the same address space, that have followed their ops.
    pub(crate) ready: AtomicU32,
    /// Not 0 once the coordinator holds all threads.
    pub(crate) held: AtomicU32,
    /// Address of the programs of seccomp.
    pub(crate) programs: AtomicUsize,
    /// Where exec put the vDSO; 0 if there was none.
    pub(crate) vdso: usize,
}

impl Session {
    pub(crate) const fn new(
        socket: c_int,
        start: Start,
        fds: &'static [c_int],
        pid: u32,
        vdso: usize,
    ) -> Self {
        let (ready, held, programs) = (AtomicU32::new(0), AtomicU32::new(0), AtomicUsize::new(0));
        Self { socket, start, fds, pid, ready, held, programs, vdso }
    }

    /// The page that all tasks of the restore share.
    pub(crate) fn control(&self) -> &Control {
        // SAFETY: mapped when the plan was received, valid for any bytes, and it stays until the hole goes away with this code.
        unsafe { &*(self.start.control_addr as usize as *const Control) }
    }

    /// Reports and ends the task.
    pub(crate) fn fail(&self, stage: Stage, tid: u32, op: u32, failure: Failure) -> ! {
        fail(
            self.socket,
            Report { stage: stage as u32, pid: self.pid, tid, op, ..Report::default() },
            failure,
        )
    }
}

/// Where a segment of this program lies.
#[derive(Clone, Copy, Debug)]
pub struct Segment {
    /// First byte.
    pub start: usize,
    /// One past the last byte.
    pub end: usize,
    /// PROT_*.
    pub prot: u32,
}

/// What the shell around this crate tells about itself.
#[derive(Clone, Copy, Debug)]
pub struct Program {
    /// The stack pointer the kernel started the program with.
    pub initial_stack: usize,
    /// Its file-backed segments.
    pub segments: [Segment; 2],
}

/// Restores the task. Never returns: it parks, or reports and exits.
pub fn main(program: &Program) -> ! {
    let Arguments { argument, vdso, sysinfo } = arguments(program.initial_stack);
    let socket = match argument {
        Argument::Socket(socket) => socket,
        Argument::Probe => probe::probe(vdso, sysinfo),
        Argument::None => sys::exit_group(2),
    };
    let mut start = Start::default();
    let fds = match receive::receive(socket, &mut start) {
        Ok(fds) => fds,
        Err(failure) => fail_early(socket, Stage::Receive, failure),
    };
    if let Err(failure) = clear::clear(program, &start, vdso, sysinfo) {
        fail_early(socket, Stage::Clear, failure);
    }
    run::program(&Session::new(socket, start, fds, 0, vdso))
}

/// The first argument.
enum Argument {
    /// The number of the socket to the coordinator, in decimal.
    Socket(c_int),
    /// `probe`: to be looked at from outside.
    Probe,
    None,
}

/// What the kernel told the program.
struct Arguments {
    argument: Argument,
    /// AT_SYSINFO_EHDR: the vDSO; 0 if there is none.
    vdso: usize,
    /// AT_SYSINFO: the ia32 vDSO's system call entry; 0 if there is none.
    sysinfo: usize,
}

fn arguments(stack: usize) -> Arguments {
    const AT_SYSINFO: usize = 32;
    const AT_SYSINFO_EHDR: usize = 33;
    // SAFETY: the kernel lays out argc, argv, envp and auxv as words from the initial stack pointer upward, each
    // list ended by a zero (the psABI's process initialization); nothing has written there.
    let word =
        |index: usize| unsafe { core::ptr::read((stack + index * size_of::<usize>()) as *const usize) };
    let argc = word(0);
    let mut at = 1 + argc + 1;
    while word(at) != 0 {
        at += 1;
    }
    at += 1;
    let (mut vdso, mut sysinfo) = (0, 0);
    while word(at) != 0 {
        match word(at) {
            AT_SYSINFO => sysinfo = word(at + 1),
            AT_SYSINFO_EHDR => vdso = word(at + 1),
            _ => {}
        }
        at += 2;
    }
    let argument = if argc < 2 { Argument::None } else { parse(word(2) as *const u8) };
    Arguments { argument, vdso, sysinfo }
}

fn parse(mut text: *const u8) -> Argument {
    let mut number: c_int = 0;
    loop {
        // SAFETY: an argument is a string that ends with a zero byte, which is looked for byte by byte.
        let byte = unsafe { core::ptr::read(text) };
        match byte {
            0 => return Argument::Socket(number),
            b'0'..=b'9' => number = number.wrapping_mul(10).wrapping_add(c_int::from(byte - b'0')),
            b'p' => return Argument::Probe,
            _ => return Argument::None,
        }
        text = text.wrapping_add(1);
    }
}

/// Reports and ends the task, which follows no ops yet.
fn fail_early(socket: c_int, stage: Stage, failure: Failure) -> ! {
    fail(socket, Report { stage: stage as u32, ..Report::default() }, failure)
}

fn fail(socket: c_int, report: Report, failure: Failure) -> ! {
    send(socket, &Report { errno: failure.errno, value: failure.value, ..report });
    sys::exit_group(1)
}

/// Sends the task's one answer.
pub(crate) fn send(socket: c_int, report: &Report) {
    let at = core::ptr::from_ref(report) as usize;
    // SAFETY: the kernel reads the record.
    let _ = unsafe { sys::call(nr::__NR_write, &[socket as usize, at, size_of::<Report>()]) };
}

/// The allocator of a program that never allocates: crates it is linked with could, so it has to name one.
#[derive(Debug)]
pub struct NoMemory;

// SAFETY: handing out nothing is always allowed.
unsafe impl core::alloc::GlobalAlloc for NoMemory {
    unsafe fn alloc(&self, _: core::alloc::Layout) -> *mut u8 {
        core::ptr::null_mut()
    }
    unsafe fn dealloc(&self, _: *mut u8, _: core::alloc::Layout) {}
}

/// What the two programs have in common beside their entry points and memory functions: the stack, the segments as the
/// linker script names them, and what becomes of a panic. The entry point calls `entry` with the kernel's stack pointer.
#[macro_export]
macro_rules! program {
    () => {
        #[global_allocator]
        static ALLOCATOR: $crate::restorer::NoMemory = $crate::restorer::NoMemory;

        // Links again when the script changes.
        const _: &str = $crate::restorer::LINKER_SCRIPT;

        #[repr(C, align(4096))]
        struct Stack([u8; 65536]);
        #[unsafe(no_mangle)]
        static mut STACK: Stack = Stack([0; 65536]);

        unsafe extern "C" {
            static __code_start: u8;
            static __code_end: u8;
            static __data_start: u8;
            static __data_end: u8;
        }

        extern "C" fn entry(initial_stack: usize) -> ! {
            let segment = |start: *const u8, end: *const u8, prot| $crate::restorer::Segment {
                start: start as usize,
                end: end as usize,
                prot,
            };
            $crate::restorer::main(&$crate::restorer::Program {
                initial_stack,
                segments: [
                    segment(&raw const __code_start, &raw const __code_end, 5),
                    segment(&raw const __data_start, &raw const __data_end, 3),
                ],
            })
        }

        #[panic_handler]
        fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
            $crate::sys::exit_group(101)
        }
    };
}

/// The linker script of both programs; compiled in nowhere, but a change of it is a change of this crate.
pub const LINKER_SCRIPT: &str = include_str!("../../blob.ld");
