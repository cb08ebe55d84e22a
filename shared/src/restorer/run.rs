//! Following the ops: memory first, then what exec destroyed, then the threads, then parking.
//!
//! # Safety
//! See the parent module: the plan decides what is touched, and it never names the hole.

use super::fillers::{Fillers, Share};
use super::memory::Fills;
use super::receive::size;
use super::{Failure, Session, calls, family, fault, ids, late, seccomp};
use crate::abi::common::CloneArgs;
use crate::op::{self, Op};
use crate::proto::{Report, Stage, THREAD_STACK};
use crate::sys::{self, nr};
use core::sync::atomic::{AtomicU32, Ordering};

/// What a new thread is told: lies at the bottom of its own stack.
#[repr(C)]
struct Birth<'a> {
    session: &'a Session,
    tid: i32,
    ops: &'a [u8],
    count: &'a AtomicU32,
}

/// The program that was exec'd: follows its plan.
pub(super) fn program(session: &Session) -> ! {
    let start = &session.start;
    let (Ok(at), Ok(len)) = (size(start.plan_addr), size(start.plan_len)) else {
        session.fail(Stage::Receive, 0, 0, Failure::wrong(start.plan_addr));
    };
    // SAFETY: mapped read-only for the length of the plan, until the hole goes away with this code.
    let plan = unsafe { core::slice::from_raw_parts(at as *const u8, len) };
    task(session, plan, None)
}

/// The leader of a task: all ops, wait for the threads, answer, park. A task in the address space of another counts
/// itself there when it is done.
pub(super) fn task(session: &Session, ops: &[u8], counted: Option<&AtomicU32>) -> ! {
    let mut threads = 0;
    let mut fills = Fills::new();
    let leader = &mut Leader {
        fills: &mut fills,
        share: Share::ALL,
        fillers: None,
        threads: &mut threads,
        table: None,
    };
    follow(session, 0, ops, leader);
    let table = leader.table;
    join(session, threads);
    if let Some(count) = counted {
        count.fetch_add(1, Ordering::Release);
        sys::futex_wake(count);
    }
    let parked = Report {
        stage: Stage::Parked as u32,
        pid: session.pid,
        syscall_at: calls::syscall_address(),
        ..Report::default()
    };
    super::send(session.socket, &parked);
    if family::leaves_last(session, table) {
        for &fd in session.fds {
            sys::close(fd);
        }
        sys::close(session.socket);
    }
    park(session)
}

fn join(session: &Session, threads: u32) {
    loop {
        let ready = session.ready.load(Ordering::Acquire);
        if ready == threads {
            break;
        }
        sys::futex_wait(&session.ready, ready);
    }
}

extern "C" fn thread(birth: usize) -> ! {
    // SAFETY: the leader wrote it there before the thread existed, and nobody else uses this stack.
    let birth = unsafe { &*(birth as *const Birth<'_>) };
    follow(birth.session, birth.tid as u32, birth.ops, &mut Follower);
    birth.count.fetch_add(1, Ordering::Release);
    sys::futex_wake(birth.count);
    park(birth.session)
}

/// Waits to be taken over from outside. All signals are blocked.
fn park(session: &Session) -> ! {
    loop {
        sys::futex_wait(&session.control().parked, 0);
    }
}

/// Who follows the ops: some are for the leader alone.
trait Follow<'a> {
    /// Carries out an op, which is number `index` and the first of `list`.
    fn step(&mut self, session: &'a Session, op: &Op<'_>, list: &'a [u8], index: u32) -> Result<(), Failure>;
    fn end(&mut self, session: &Session) -> Result<(), Failure>;
}

pub(super) struct Leader<'a, 'b> {
    fills: &'b mut Fills,
    share: Share,
    fillers: Option<Fillers<'a>>,
    threads: &'b mut u32,
    /// Its file table has several users: the word that counts those who are done, and how many there are.
    table: Option<(u32, u32)>,
}

impl Leader<'_, '_> {
    /// All contents are in.
    fn flush(&mut self, session: &Session) -> Result<(), Failure> {
        self.fills.flush(session)?;
        if let Some(mut fillers) = self.fillers.take() {
            fillers.join();
        }
        Ok(())
    }

    /// One more is to be done before the end.
    pub(super) fn expect_one_more(&mut self) {
        *self.threads += 1;
    }

    /// Others use the file table too.
    pub(super) fn share_table(&mut self, word: u32, users: u32) {
        self.table = Some((word, users));
    }
}

/// Any other thread; its stack is small, so it carries no state.
struct Follower;

impl<'a> Follow<'a> for Leader<'a, '_> {
    fn step(&mut self, session: &'a Session, op: &Op<'_>, list: &'a [u8], index: u32) -> Result<(), Failure> {
        match *op {
            Op::Fill { addr, len, offset } => {
                if self.fillers.is_none() {
                    let (fillers, share) = Fillers::start(session, list, index);
                    (self.fillers, self.share) = (Some(fillers), share);
                }
                return self.share.add(session, self.fills, addr, len, offset);
            }
            Op::Thread { tid, stack, ops } => {
                self.flush(session)?;
                *self.threads += 1;
                return spawn(session, tid, stack, ops);
            }
            Op::Join => {
                join(session, *self.threads);
                return Ok(());
            }
            Op::There => {
                self.flush(session)?;
                late::there(session);
                return Ok(());
            }
            Op::Hold => {
                self.flush(session)?;
                return seccomp::hold(session);
            }
            Op::Birth(ref birth) => {
                self.flush(session)?;
                return family::step(session, self, birth);
            }
            // Fresh memory: what waits to be read goes elsewhere, or it would follow this op. But fillers know of nothing behind it.
            Op::Map { .. } if self.fillers.is_none() => {}
            // Contents must be in before protection takes the right to write away, and before anything reads them.
            _ => self.flush(session)?,
        }
        calls::call(session, op)
    }
    fn end(&mut self, session: &Session) -> Result<(), Failure> {
        self.flush(session)
    }
}

impl<'a> Follow<'a> for Follower {
    fn step(&mut self, session: &'a Session, op: &Op<'_>, _: &'a [u8], _: u32) -> Result<(), Failure> {
        calls::call(session, op)
    }
    fn end(&mut self, _session: &Session) -> Result<(), Failure> {
        Ok(())
    }
}

fn follow<'a>(session: &'a Session, tid: u32, mut list: &'a [u8], follower: &mut impl Follow<'a>) {
    let mut index = 0;
    loop {
        let (op, rest) = match op::next(list) {
            Ok(Some(next)) => next,
            Ok(None) => break,
            Err(_) => session.fail(Stage::Ops, tid, index, Failure::wrong(0)),
        };
        if let Err(failure) =
            fault::check(session, &op).and_then(|()| follower.step(session, &op, list, index))
        {
            session.fail(Stage::Ops, tid, index, failure);
        }
        list = rest;
        index += 1;
    }
    if let Err(failure) = follower.end(session) {
        session.fail(Stage::Ops, tid, index, failure);
    }
}

fn spawn(session: &Session, tid: i32, stack: u32, ops: &[u8]) -> Result<(), Failure> {
    // CLONE_VM | FS | FILES | SIGHAND | THREAD | SYSVSEM: what pthread_create shares.
    const FLAGS: u64 = 0x100 | 0x200 | 0x400 | 0x800 | 0x1_0000 | 0x4_0000;
    let birth = Birth { session, tid, ops, count: &session.ready };
    let stack = session.start.stacks_addr + u64::from(stack) * THREAD_STACK;
    let at = size(stack)? as *mut Birth<'_>;
    // SAFETY: the bottom of the thread's own stack, mapped, aligned, and unused; the references in it outlive the
    // thread's use of them, since the leader's frame stays until the hole goes away.
    unsafe { at.write(birth) };
    let args = CloneArgs { flags: FLAGS, stack, stack_size: THREAD_STACK, ..CloneArgs::default() };
    // SAFETY: the stack is the thread's alone.
    let cloned = unsafe { ids::clone(session, &args, tid, thread, at as usize) };
    cloned.map_err(|errno| Failure::new(errno, u64::from(tid as u32)))
}

const _: () = assert!(nr::__NR_clone3 == 435, "the number in the assembly of sys");
