//! The executor on real tasks of both ABIs, and what becomes of them when nobody traces them any more in the
//! middle of it.

use super::*;
use crate::proc::{auxv, smaps};
use crate::ptrace::{Seized, Waited};
use nix::sys::wait::WaitPidFlag;
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Duration;

/// Answers each line of input by the same line; built for both ABIs.
const ECHO: &str = "
#include <unistd.h>
int main(void) { char b[64]; long n; while ((n = read(0, b, 64)) > 0) if (write(1, b, n) != n) return 1; return 0; }";

/// The same by a second thread that is in the mode of the other ABI, and looks at a register that is not its task's.
const ECHO_IN_OTHER_MODE: &str = include_str!("echo_in_other_mode.c");

/// The same by the first of twenty threads, each with a time of its own that timers may be late.
const ECHO_BY_MANY: &str = "
#include <pthread.h>
#include <sys/prctl.h>
#include <unistd.h>
static pthread_barrier_t ready;
static void *wait(void *slack) { prctl(PR_SET_TIMERSLACK, (long)slack, 0, 0, 0); pthread_barrier_wait(&ready); for (;;) pause(); }
int main(void) {
    pthread_t thread;
    pthread_barrier_init(&ready, NULL, 20);
    for (long i = 1; i < 20; i++) if (pthread_create(&thread, NULL, wait, (void *)(1000 + i))) return 1;
    pthread_barrier_wait(&ready);
    char b[64]; long n; while ((n = read(0, b, 64)) > 0) if (write(1, b, n) != n) return 1; return 0; }";

/// A task that can be asked whether it is well.
struct Echo {
    child: Child,
    to: ChildStdin,
    from: BufReader<ChildStdout>,
    abi: Abi,
    _dir: tempfile::TempDir,
}

impl Echo {
    fn start(abi: Abi) -> Self {
        Self::of(ECHO, abi)
    }

    /// Needs a C compiler for both ABIs, as `ci/setup` installs it.
    fn of(text: &str, abi: Abi) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (source, program) = (dir.path().join("echo.c"), dir.path().join("echo"));
        std::fs::write(&source, text).unwrap();
        let width = if abi == Abi::X86_64 { "-m64" } else { "-m32" };
        let built = Command::new("cc")
            .arg(width)
            .arg(&source)
            .arg("-pthread")
            .arg("-o")
            .arg(&program)
            .status()
            .unwrap();
        assert!(built.success(), "cc {width} (gcc-multilib)");
        let mut child = Command::new(&program).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let to = child.stdin.take().unwrap();
        let from = BufReader::new(child.stdout.take().unwrap());
        let mut echo = Self { child, to, from, abi, _dir: dir };
        echo.assert_well();
        echo
    }

    fn pid(&self) -> Pid {
        Pid::try_from(self.child.id()).unwrap()
    }

    /// Where the executors of crrs that are gone lie.
    fn leftovers(&self) -> Vec<Addr> {
        let text = std::fs::read(format!("/proc/{}/smaps", self.pid())).unwrap();
        let mut found = Vec::new();
        smaps::parse(&text, |area| {
            found.extend(is_leftover(self.pid(), &area).then_some(Addr(area.start)));
            Ok::<_, crate::proc::Malformed>(())
        })
        .unwrap();
        found
    }

    fn assert_well(&mut self) {
        self.to.write_all(b"well\n").unwrap();
        let mut line = String::new();
        self.from.read_line(&mut line).unwrap();
        assert_eq!(line, "well\n");
    }

    fn maps(&self) -> String {
        std::fs::read_to_string(format!("/proc/{}/maps", self.pid())).unwrap()
    }

    fn stop(&self) -> (Stopped, Patience) {
        self.stop_thread(self.pid())
    }

    /// The thread that is not the leader.
    fn second(&self) -> Pid {
        let tids = crate::proc::Dir::task(self.pid()).unwrap().numbers::<Pid>("task").unwrap();
        tids.into_iter().find(|tid| *tid != self.pid()).unwrap()
    }

    /// Stops a thread that waits for the next line: it has answered the last one a little earlier.
    fn stop_thread(&self, tid: Pid) -> (Stopped, Patience) {
        let patience = Patience::new(Duration::from_secs(10));
        let stat = format!("/proc/{}/task/{tid}/stat", self.pid());
        while !std::fs::read_to_string(&stat).unwrap().contains(") S ") {
            patience.check(tid).unwrap();
            std::thread::yield_now();
        }
        let thread = Seized::seize(tid).unwrap();
        thread.interrupt().unwrap();
        let Waited::Stopped(thread) = thread.wait(&patience).unwrap() else { panic!("ended") };
        (thread.settle(&patience).unwrap(), patience)
    }

    fn stop_all(&self) -> (Vec<Stopped>, Patience) {
        let tids = crate::proc::Dir::task(self.pid()).unwrap().numbers::<Pid>("task").unwrap();
        let threads = tids.into_iter().map(|tid| self.stop_thread(tid).0).collect();
        (threads, Patience::new(Duration::from_secs(10)))
    }

    /// What [`crate::resource::memory::private_writable`] finds.
    fn writable(&self) -> Vec<Range<u64>> {
        let text = std::fs::read(format!("/proc/{}/smaps", self.pid())).unwrap();
        let mut areas = Vec::new();
        smaps::parse(&text, |area| {
            areas.extend((!area.shared && area.prot & 3 == 3).then_some(area.start..area.end));
            Ok::<_, crate::proc::Malformed>(())
        })
        .unwrap();
        areas
    }

    /// As the task was told at exec.
    fn vsyscall(&self) -> Option<Addr> {
        const AT_SYSINFO: u64 = 32;
        let vector = std::fs::read(format!("/proc/{}/auxv", self.pid())).unwrap();
        let at = auxv::entry(&vector, self.abi, AT_SYSINFO).map(Addr).filter(|_| self.abi == Abi::Ia32)?;
        assert!(is_vsyscall(self.pid(), at));
        Some(at)
    }

    fn target(&self) -> Target {
        let text = std::fs::read(format!("/proc/{}/smaps", self.pid())).unwrap();
        let mut areas = Vec::new();
        smaps::parse(&text, |area| {
            if area.prot & 4 != 0 {
                areas.push(CodeArea { start: Addr(area.start), size: area.end - area.start, key: None });
            }
            Ok::<_, crate::proc::Malformed>(())
        })
        .unwrap();
        areas.sort_by_key(|area| area.size);
        let gadget = Gadget::find(self.pid(), self.abi, &areas, &mut Cache::default()).unwrap();
        assert!(gadget.escape.is_some(), "libc has a way back");
        Target {
            pid: self.pid(),
            deputy: self.pid(),
            abi: self.abi,
            gadget,
            vsyscall: self.vsyscall(),
            ignored: 0,
            caught: 0,
            leftovers: Vec::new(),
        }
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        // A test that failed still traces threads, and the task is there for its parent only when they have been waited for.
        let flags = WaitPidFlag::__WALL | WaitPidFlag::__WNOTHREAD;
        let _ = self.child.kill();
        while !matches!(nix::sys::wait::waitpid(None, Some(flags)), Err(Errno::ECHILD)) {}
    }
}

/// Tasks of each ABI, those of ia32 without and with the quick way into the kernel.
const WAYS: [(Abi, bool); 3] = [(Abi::X86_64, false), (Abi::Ia32, false), (Abi::Ia32, true)];

fn target(echo: &Echo, quick: bool) -> Target {
    let target = echo.target();
    Target { vsyscall: target.vsyscall.filter(|_| quick), ..target }
}

/// No area is mapped yet.
fn unopened(echo: &Echo) -> Executor {
    Executor {
        target: echo.target(),
        way: Way::Area(Addr(0)),
        stop_came: Cell::new(false),
        adrift: Cell::new(false),
    }
}

/// Nothing can be mapped.
fn without_area(echo: &Echo) -> Executor {
    let way = Way::Single { memory: echo.writable(), fresh: Err(Errno::ENOMEM) };
    Executor { way, ..unopened(echo) }
}

/// For a task that an area can be mapped in.
fn open(target: Target, thread: &mut Stopped, patience: &Patience) -> Executor {
    let executor = Executor::open(target, thread, Vec::new, patience).unwrap();
    assert!(!executor.is_slow());
    executor
}

fn area(executor: &Executor) -> Addr {
    Addr(executor.fresh().unwrap().start)
}

fn batch(abi: Abi) -> (Batch, Handle, Handle) {
    const PR_GET_DUMPABLE: u64 = 3;
    let mut batch = Batch::new(abi);
    let dumpable = batch.call(Call::Prctl, &[Arg::Value(PR_GET_DUMPABLE)]);
    let bad = batch.call(Call::Prctl, &[Arg::Value(0xffff)]);
    (batch, dumpable, bad)
}

/// Runs a batch in a task of each ABI; `caught` chooses how its end is told.
fn run_in_both(caught: u64) {
    for (abi, quick) in WAYS {
        let mut echo = Echo::start(abi);
        let before = echo.maps();
        let (mut thread, patience) = echo.stop();
        assert_eq!(echo.leftovers(), []);
        let (regs, mask) = (thread.regs().unwrap(), thread.sigmask().unwrap());
        let target = Target { caught, ..target(&echo, quick) };
        let executor = open(target, &mut thread, &patience);
        let (batch, dumpable, bad) = batch(abi);
        let reply = executor.run(&mut thread, &batch, &patience).unwrap();
        assert_eq!(reply.result(dumpable), Ok(1), "{abi}");
        assert_eq!(reply.result(bad), Err(nix::errno::Errno::EINVAL), "{abi}");
        executor.close(&mut thread, &patience).unwrap();
        assert_eq!((thread.regs().unwrap(), thread.sigmask().unwrap()), (regs, mask), "{abi}");
        thread.detach(0).unwrap();
        assert_eq!(echo.maps(), before, "{abi}");
        echo.assert_well();
    }
}

#[test]
fn calls_are_made_and_nothing_is_left_behind() {
    run_in_both(0);
}

#[test]
fn a_task_that_handles_all_signals_is_stepped() {
    run_in_both(u64::MAX);
}

/// Each thread has its own answer, whether it tells of its end by a signal or is stepped.
#[test]
fn threads_make_calls_side_by_side() {
    const PR_GET_TIMERSLACK: u64 = 30;
    for ((abi, quick), caught) in WAYS.map(|way| (way, 0)).into_iter().chain([(WAYS[0], u64::MAX)]) {
        let mut echo = Echo::of(ECHO_BY_MANY, abi);
        let before = echo.maps();
        let (mut threads, patience) = echo.stop_all();
        let target = Target { caught, ..target(&echo, quick) };
        let executor = open(target, &mut threads[0], &patience);
        let own: Vec<(Regs, u64)> =
            threads.iter().map(|thread| (thread.regs().unwrap(), thread.sigmask().unwrap())).collect();
        let mut batch = Batch::new(abi);
        let slack = batch.call(Call::Prctl, &[Arg::Value(PR_GET_TIMERSLACK)]);
        let alone = |thread| executor.run(thread, &batch, &patience).unwrap().result(slack).unwrap();
        let expected: Vec<u64> = threads.iter_mut().map(alone).collect();
        assert!(expected.contains(&1001) && expected.contains(&1019), "{expected:?}");
        let batches = vec![batch.clone(); threads.len()];
        let replies = executor.run_all(&mut threads, &batches, &patience).unwrap();
        let together: Vec<u64> = replies.iter().map(|reply| reply.result(slack).unwrap()).collect();
        assert_eq!(together, expected, "{abi}");
        executor.close(&mut threads[0], &patience).unwrap();
        for (thread, own) in threads.into_iter().zip(own) {
            assert_eq!((thread.regs().unwrap(), thread.sigmask().unwrap()), own, "{abi}");
            thread.detach(0).unwrap();
        }
        assert_eq!(echo.maps(), before, "{abi}");
        echo.assert_well();
    }
}

/// SIGSTOP waits until all of a round stand still, and SIGCONT undoes it.
#[test]
fn a_stop_signal_is_kept_unless_it_is_undone() {
    let (stop, go_on) = (signal_bit(libc::SIGSTOP), signal_bit(libc::SIGCONT));
    let mut echo = Echo::of(ECHO_BY_MANY, Abi::X86_64);
    let (mut threads, patience) = echo.stop_all();
    let executor = open(echo.target(), &mut threads[0], &patience);
    let send = |signal| {
        let pid = nix::unistd::Pid::from_raw(echo.pid());
        nix::sys::signal::kill(pid, signal).unwrap();
    };
    let (one, ..) = batch(Abi::X86_64);
    let batches = vec![one; threads.len()];
    send(nix::sys::signal::Signal::SIGSTOP);
    executor.run_all(&mut threads, &batches, &patience).unwrap();
    assert_eq!(pending_mask(&threads[0], true).unwrap() & (stop | go_on), stop);
    // As if a thread had taken it.
    send(nix::sys::signal::Signal::SIGCONT);
    executor.stop_came.set(true);
    executor.run_all(&mut threads, &batches, &patience).unwrap();
    assert_eq!(pending_mask(&threads[0], true).unwrap() & (stop | go_on), go_on);
    executor.close(&mut threads[0], &patience).unwrap();
    threads.into_iter().for_each(|thread| thread.detach(0).unwrap());
    echo.assert_well();
}

/// The first pages of a batch may be all that is written.
#[test]
fn further_areas_are_known_from_the_first_moment() {
    for abi in [Abi::X86_64, Abi::Ia32] {
        let mut echo = Echo::start(abi);
        let (mut thread, patience) = echo.stop();
        let executor = open(echo.target(), &mut thread, &patience);
        let further = executor.map_further(5, &mut thread, &patience).unwrap();
        assert_eq!(further.len(), 5, "{abi}");
        for area in &further {
            vm::write_all(echo.pid(), area.offset(layout::TABLE), &[1; 64]).unwrap();
        }
        let mut all = [&further[..], &[area(&executor)]].concat();
        all.sort();
        assert_eq!(echo.leftovers(), all, "{abi}");
        executor.unmap_further(&further, &mut thread, &patience).unwrap();
        executor.close(&mut thread, &patience).unwrap();
        thread.detach(0).unwrap();
        echo.assert_well();
    }
}

#[test]
fn a_task_let_go_before_its_first_call_goes_on() {
    for (abi, quick) in WAYS {
        let mut echo = Echo::start(abi);
        let (thread, _) = echo.stop();
        let executor = Executor { target: target(&echo, quick), ..unopened(&echo) };
        let saved = Saved::of(&thread).unwrap();
        let args = [0, layout::SIZE, 7, 0x21, u64::MAX, 0];
        let frame = executor.place_frame(&thread, &saved, Addr(0)).unwrap();
        executor.lead_to_call(&thread, &saved, frame.as_ref(), Call::Mmap, args).unwrap();
        assert!(frame.is_some(), "{abi}: room below the stack");
        thread.detach(0).unwrap();
        echo.assert_well();
        let mask = std::fs::read_to_string(format!("/proc/{}/status", echo.pid())).unwrap();
        assert!(mask.contains("SigBlk:\t0000000000000000"), "{abi}: {mask}");
    }
}

#[test]
fn a_task_let_go_in_the_middle_of_a_batch_goes_on() {
    for (abi, quick) in WAYS {
        let mut echo = Echo::start(abi);
        let (mut thread, patience) = echo.stop();
        let executor = open(target(&echo, quick), &mut thread, &patience);
        let saved = Saved::of(&thread).unwrap();
        executor.start(area(&executor), &thread, &saved, &batch(abi).0, Some(libc::SIGURG)).unwrap();
        thread.detach(0).unwrap();
        echo.assert_well();
        let status = std::fs::read_to_string(format!("/proc/{}/status", echo.pid())).unwrap();
        assert!(status.contains("SigBlk:\t0000000000000000"), "{abi}: {status}");
    }
}

/// A batch in a thread of the other mode, whole and let go in the middle; the first call is made by the thread itself where it
/// can be.
#[test]
fn a_thread_in_the_mode_of_the_other_abi_makes_calls_and_goes_on() {
    for abi in [Abi::X86_64, Abi::Ia32] {
        let mut echo = Echo::of(ECHO_IN_OTHER_MODE, abi);
        let before = echo.maps();
        let (mut leader, patience) = echo.stop();
        let (mut thread, _) = echo.stop_thread(echo.second());
        let regs = thread.regs().unwrap();
        assert_ne!(regs::mode(&regs), abi);
        assert_eq!(finds_back(&regs, abi), abi == Abi::X86_64);
        let caller = if abi == Abi::X86_64 { &mut thread } else { &mut leader };
        let executor = open(echo.target(), caller, &patience);
        assert_eq!(executor.batch(&thread).unwrap().abi(), Abi::X86_64, "{abi}");
        let (all, dumpable, _) = batch(Abi::X86_64);
        assert_eq!(executor.run(&mut thread, &all, &patience).unwrap().result(dumpable), Ok(1), "{abi}");
        assert_eq!(thread.regs().unwrap(), regs, "{abi}");
        let left = area(&executor);
        let saved = Saved::of(&thread).unwrap();
        executor.start(area(&executor), &thread, &saved, &all, Some(libc::SIGURG)).unwrap();
        leader.detach(0).unwrap();
        thread.detach(0).unwrap();
        echo.assert_well();

        let (mut leader, _) = echo.stop();
        let (mut thread, _) = echo.stop_thread(echo.second());
        let found = thread.regs().unwrap();
        assert_eq!(regs::narrow(&found)[12..], regs::narrow(&regs)[12..], "{abi}: ip, cs, flags, sp, ss");
        let caller = if abi == Abi::X86_64 { &mut thread } else { &mut leader };
        let target = Target { leftovers: vec![left], ..echo.target() };
        open(target, caller, &patience).close(caller, &patience).unwrap();
        leader.detach(0).unwrap();
        thread.detach(0).unwrap();
        echo.assert_well();
        assert_eq!(echo.maps(), before, "{abi}");
    }
}

/// The frame of a thread in 32-bit code of a 64-bit task.
#[test]
fn a_thread_in_32_bit_code_let_go_before_its_first_call_goes_on() {
    let mut echo = Echo::of(ECHO_IN_OTHER_MODE, Abi::X86_64);
    let (thread, _) = echo.stop_thread(echo.second());
    let executor = unopened(&echo);
    let saved = Saved::of(&thread).unwrap();
    let args = [0, layout::SIZE, 7, 0x21, u64::MAX, 0];
    let frame = executor.place_frame(&thread, &saved, Addr(0)).unwrap();
    executor.lead_to_call(&thread, &saved, frame.as_ref(), Call::Mmap, args).unwrap();
    assert!(frame.is_some(), "room below the stack");
    thread.detach(0).unwrap();
    echo.assert_well();
}

/// What lies below the stack of a stopped thread, as far as the executor may write there.
fn below_stack(echo: &Echo, thread: &Stopped) -> Vec<u8> {
    let sp = regs::sp(&thread.regs().unwrap());
    let mut bytes = vec![0u8; 0x1_8000];
    vm::read_exact(echo.pid(), Addr(sp.0 - bytes.len() as u64), &mut bytes).unwrap();
    bytes
}

/// Every kind of answer: none, a small one, one as large as there is, all in one batch; twice, as nothing is left.
#[test]
fn calls_are_made_one_by_one_and_nothing_is_left_behind() {
    const PR_GET_TIMERSLACK: u64 = 30;
    const SET_SIZE: u64 = 8;
    for abi in [Abi::X86_64, Abi::Ia32] {
        let mut echo = Echo::start(abi);
        let before = echo.maps();
        let (mut thread, patience) = echo.stop();
        let (regs, mask, below) =
            (thread.regs().unwrap(), thread.sigmask().unwrap(), below_stack(&echo, &thread));
        let executor = without_area(&echo);
        for _again in 0..2 {
            let mut batch = executor.batch(&thread).unwrap();
            assert_eq!(batch.abi(), abi);
            let slack = batch.call(Call::Prctl, &[Arg::Value(PR_GET_TIMERSLACK)]);
            let bad = batch.call(Call::Prctl, &[Arg::Value(0xffff)]);
            let (old, untouched, stack) = (batch.buffer(8), batch.buffer(12), batch.buffer(24));
            let args = [Arg::Value(0), Arg::Value(0), Arg::Out(old), Arg::Value(SET_SIZE)];
            let masked = batch.call(Call::RtSigprocmask, &args);
            let altstack = batch.call(Call::Sigaltstack, &[Arg::Value(0), Arg::Out(stack)]);
            let table = batch.buffer(0x1_0000);
            let ldt = batch.call(Call::ModifyLdt, &[Arg::Value(0), Arg::Out(table), Arg::Value(0x1_0000)]);
            let reply = executor.run(&mut thread, &batch, &patience).unwrap();
            assert_eq!(reply.result(slack), Ok(50_000), "{abi}");
            assert_eq!(reply.result(bad), Err(Errno::EINVAL), "{abi}");
            assert_eq!((reply.result(masked), reply.u64(old, 0)), (Ok(0), !0x4_0100), "{abi}");
            assert_eq!((reply.result(altstack), reply.word(stack, 1)), (Ok(0), 2), "{abi}: SS_DISABLE");
            assert_eq!(reply.result(ldt), Ok(0), "{abi}: none");
            assert_eq!(reply.bytes(untouched), [0; 12]);
            assert_eq!((thread.regs().unwrap(), thread.sigmask().unwrap()), (regs.clone(), mask), "{abi}");
            assert!(below_stack(&echo, &thread) == below, "{abi}: below the stack");
        }
        executor.close(&mut thread, &patience).unwrap();
        thread.detach(0).unwrap();
        assert_eq!(echo.maps(), before, "{abi}");
        echo.assert_well();
    }
}

/// Before a call, on its way in, and on its way out.
#[test]
fn a_task_let_go_in_the_middle_of_a_call_without_an_area_goes_on() {
    for abi in [Abi::X86_64, Abi::Ia32] {
        for steps in 0..3 {
            let mut echo = Echo::start(abi);
            let (mut thread, patience) = echo.stop();
            let executor = without_area(&echo);
            let saved = Saved::of(&thread).unwrap();
            let memory = echo.writable();
            let (frame, _) = executor.borrow(&thread, &saved, &batch(abi).0, &memory).unwrap();
            executor.set_up_call(&thread, &saved, Some(&frame), Call::Prctl, [3, 0, 0, 0, 0, 0]).unwrap();
            thread.set_sigmask(u64::MAX).unwrap();
            for _ in 0..steps {
                assert_eq!(thread.advance_to_syscall(0, &patience).unwrap(), Stop::Syscall);
            }
            thread.detach(0).unwrap();
            echo.assert_well();
            let status = std::fs::read_to_string(format!("/proc/{}/status", echo.pid())).unwrap();
            assert!(status.contains("SigBlk:\t0000000000000000"), "{abi}, {steps} steps: {status}");
        }
    }
}

/// A thread in 32-bit code of a 64-bit task comes back by a frame. One in 64-bit code of an ia32 task does not, and is left alone.
#[test]
fn a_thread_in_the_mode_of_the_other_abi_makes_calls_without_an_area_if_it_comes_back() {
    for abi in [Abi::X86_64, Abi::Ia32] {
        let mut echo = Echo::of(ECHO_IN_OTHER_MODE, abi);
        let (mut thread, patience) = echo.stop_thread(echo.second());
        let regs = thread.regs().unwrap();
        let executor = without_area(&echo);
        let (all, dumpable, _) = batch(executor.batch(&thread).unwrap().abi());
        let reply = executor.run(&mut thread, &all, &patience);
        match abi {
            Abi::X86_64 => assert_eq!(reply.unwrap().result(dumpable), Ok(1)),
            Abi::Ia32 => assert!(reply.unwrap_err().is::<NoRoom>()),
        }
        assert_eq!(thread.regs().unwrap(), regs, "{abi}");
        thread.detach(0).unwrap();
        echo.assert_well();
    }
}

/// What lies below the area of a stack is not the stack's.
#[test]
fn a_stack_without_room_is_left_alone() {
    for abi in [Abi::X86_64, Abi::Ia32] {
        let mut echo = Echo::start(abi);
        let (mut thread, patience) = echo.stop();
        let below = below_stack(&echo, &thread);
        let sp = regs::sp(&thread.regs().unwrap()).0;
        let memory = std::iter::once(sp - 500..sp + 0x1000).collect();
        let executor = Executor { way: Way::Single { memory, fresh: Err(Errno::ENOMEM) }, ..unopened(&echo) };
        let refused = executor.run(&mut thread, &batch(abi).0, &patience).unwrap_err();
        assert!(refused.is::<NoRoom>(), "{abi}: {refused}");
        assert!(below_stack(&echo, &thread) == below, "{abi}");
        thread.detach(0).unwrap();
        echo.assert_well();
    }
}

/// Areas of crrs that were gone before the code was written, before a batch, and in the middle of one.
#[test]
fn what_is_left_is_taken_out_by_the_next() {
    for abi in [Abi::X86_64, Abi::Ia32] {
        let mut echo = Echo::start(abi);
        let before = echo.maps();
        let (mut thread, patience) = echo.stop();
        let next = |thread: &mut Stopped| open(echo.target(), thread, &patience);
        let untouched = next(&mut thread);
        let none = vec![0u8; usize::try_from(layout::SIZE).unwrap()];
        vm::write_all(echo.pid(), area(&untouched), &none).unwrap();
        let unused = next(&mut thread);
        let used = next(&mut thread);
        let saved = Saved::of(&thread).unwrap();
        used.start(area(&used), &thread, &saved, &batch(abi).0, Some(libc::SIGURG)).unwrap();
        let mut areas = [area(&untouched), area(&unused), area(&used)];
        areas.sort();
        assert!(in_leftover(&areas, regs::ip(&thread.regs().unwrap())), "{abi}: in the middle");
        thread.detach(0).unwrap();
        echo.assert_well();

        let (mut thread, patience) = echo.stop();
        let leftovers = echo.leftovers();
        assert_eq!(leftovers, areas, "{abi}");
        assert!(!in_leftover(&leftovers, regs::ip(&thread.regs().unwrap())), "{abi}: out of it");
        let executor = open(Target { leftovers, ..echo.target() }, &mut thread, &patience);
        assert_eq!(echo.leftovers(), [area(&executor)], "{abi}");
        executor.close(&mut thread, &patience).unwrap();
        thread.detach(0).unwrap();
        assert_eq!(echo.maps(), before, "{abi}");
        echo.assert_well();
    }
}
