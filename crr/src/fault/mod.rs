//! Faults that are injected on purpose, so that tests see what becomes of a tree when something fails halfway.
//!
//! `CRR_FAULT=NAME[:COUNT][,NAME...]`, or `--fault`, arms points of the table below: the point fails, or does whatever it is there for, when it is
//! passed for the COUNTth time (the first, without a count); once, but for what is said to be so every time. `crr check --faults` lists them. Each process counts for itself; a
//! child that is forked begins with the count of its parent. That a fault took effect is told by a warning with its name.
//!
//! The armed faults are the one global beside the logger: where they take effect is below every interface of crr, and an
//! argument that is handed down to each system call would change what is to be tested. Nothing is looked up unless some fault is armed.

pub mod io;

use images::Pid;
use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use shared::op::Family;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

/// What becomes of it when an armed point is passed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// The system call fails with this error.
    Fails(Errno),
    /// crr is killed.
    Killed,
    /// crr is stopped until it gets SIGCONT.
    Stopped,
    /// The process that the point is about is killed.
    Victim,
    /// An op of this family fails in the program that restores a task; the program dies if there is no error.
    Op(Family, Option<Errno>),
    /// What the code asks for by [`is_set`], which lasts, or [`is_due`].
    Differs,
}

use Effect::{Differs, Fails, Killed, Op, Stopped, Victim};
const OP_FAILS: Option<Errno> = Some(Errno::EIO);

/// Names all points: `Point = "name", effect, "what it does"`.
macro_rules! points {
    ($($point:ident = $name:literal, $effect:expr, $what:literal;)*) => {
        /// Where a fault can be injected.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Point {
            $(#[doc = $what] $point,)*
        }

        impl Point {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$point),*];

            /// What it is called.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $(Self::$point => $name,)* }
            }

            /// What becomes of it.
            #[must_use]
            pub const fn effect(self) -> Effect {
                match self { $(Self::$point => $effect,)* }
            }

            /// A line for people.
            #[must_use]
            pub const fn what(self) -> &'static str {
                match self { $(Self::$point => $what,)* }
            }
        }
    };
}

points! {
    // Threads, by ptrace(2).
    Seize = "seize", Fails(Errno::EIO), "seizing a thread fails";
    Interrupt = "interrupt", Fails(Errno::EIO), "asking a thread to stop fails";
    TraceOptions = "trace-options", Fails(Errno::EIO), "setting what becomes of a traced thread fails";
    Resume = "resume", Fails(Errno::EIO), "letting a stopped thread run, as crr wants it to, fails";
    GetRegisters = "get-registers", Fails(Errno::EIO), "reading registers fails";
    SetRegisters = "set-registers", Fails(Errno::EIO), "writing registers fails";
    GetXstate = "get-xstate", Fails(Errno::EIO), "reading vector registers fails";
    SetXstate = "set-xstate", Fails(Errno::EIO), "writing vector registers fails";
    GetMask = "get-mask", Fails(Errno::EIO), "reading a signal mask fails";
    SetMask = "set-mask", Fails(Errno::EIO), "writing a signal mask fails";
    PeekSignals = "peek-signals", Fails(Errno::EIO), "reading pending signals fails";
    GetThreadArea = "get-thread-area", Fails(Errno::EIO), "reading an entry of the GDT fails";
    SetThreadArea = "set-thread-area", Fails(Errno::EIO), "writing an entry of the GDT fails";
    // What else tells of tasks, and changes them.
    ProcOpen = "proc-open", Fails(Errno::EIO), "opening a file of /proc fails";
    ProcRead = "proc-read", Fails(Errno::EIO), "reading a file of /proc fails";
    ProcList = "proc-list", Fails(Errno::EIO), "reading a directory of /proc fails";
    PidfdOpen = "pidfd-open", Fails(Errno::EMFILE), "getting a descriptor for a process fails";
    PidfdGetFd = "pidfd-getfd", Fails(Errno::EMFILE), "getting a copy of a descriptor of a task fails";
    Kcmp = "kcmp", Fails(Errno::EIO), "comparing what two tasks have fails";
    ReadMemory = "read-memory", Fails(Errno::EIO), "reading a task's memory fails";
    WriteMemory = "write-memory", Fails(Errno::EIO), "writing a task's memory fails";
    Pagemap = "pagemap", Fails(Errno::EIO), "asking for the pages of a task fails";
    Nft = "nft", Fails(Errno::EIO), "the program that holds traffic cannot be run";
    TwinsAlways = "twins-always", Differs, "each task makes a twin, however little it has";
    CloneTwin = "clone-twin", Fails(Errno::EAGAIN), "a task cannot make a twin";
    Fork = "fork", Fails(Errno::EAGAIN), "forking a process fails";
    // Images.
    ImageCreate = "image-create", Fails(Errno::EIO), "creating an image fails";
    ImageWrite = "image-write", Fails(Errno::EIO), "a write to an image fails";
    ImageFull = "image-full", Fails(Errno::ENOSPC), "a write to an image finds no room";
    ImageWriteShort = "image-write-short", Differs, "every write to an image takes less than it was given";
    ImageInterrupted = "image-interrupted", Differs, "every other read and write of an image is interrupted";
    ImagePublish = "image-publish", Fails(Errno::EIO), "giving an image its name fails";
    ImageOpen = "image-open", Fails(Errno::EIO), "opening an image fails";
    ImageRead = "image-read", Fails(Errno::EIO), "a read of an image fails";
    ImageReadShort = "image-read-short", Differs, "every read of an image gives less than it was asked for";
    ImageCut = "image-cut", Differs, "a read of an image finds its end too early";
    ImageCorrupt = "image-corrupt", Differs, "a read of an image gives a wrong byte";
    // What a restore makes.
    Executable = "executable", Fails(Errno::EMFILE), "making a file for the program that restores a task fails";
    SharedTree = "shared-tree", Fails(Errno::ENOMEM), "mapping what the tasks share during a restore fails";
    OpenFile = "open-file", Fails(Errno::EMFILE), "opening a file of a task again fails";
    MakePipe = "make-pipe", Fails(Errno::EMFILE), "making a pipe fails";
    MakeSocket = "make-socket", Fails(Errno::ENOBUFS), "making a unix socket fails";
    MakeConnection = "make-connection", Fails(Errno::ENOBUFS), "making an internet socket fails";
    MakeTerminal = "make-terminal", Fails(Errno::ENOSPC), "making a pseudo terminal fails";
    RecreateFile = "recreate-file", Fails(Errno::ENOSPC), "making a file anew that was deleted fails";
    OpenDirectory = "open-directory", Fails(Errno::EIO), "opening a root or current directory fails";
    Namespace = "namespace", Fails(Errno::EIO), "making the namespaces of --new-pidns fails";
    MountProc = "mount-proc", Fails(Errno::EIO), "mounting the /proc of --new-pidns fails";
    Listen = "listen", Fails(Errno::EADDRINUSE), "listening for the restoring tasks fails";
    Accept = "accept", Fails(Errno::EMFILE), "accepting a restoring task fails";
    SendPlan = "send-plan", Fails(Errno::ENOBUFS), "sending a task its plan fails";
    ReadAnswer = "read-answer", Fails(Errno::EIO), "reading what a restoring task says fails";
    PutPages = "put-pages", Fails(Errno::ENOMEM), "putting pages of a task in place fails";
    SetGroup = "set-group", Fails(Errno::EPERM), "a forked task cannot join its process group";
    PlaceFile = "place-file", Fails(Errno::EMFILE), "a forked task cannot put a file under its number";
    EnterDirectory = "enter-directory", Fails(Errno::EACCES), "a forked task cannot enter its directory";
    Exec = "exec", Fails(Errno::ENOEXEC), "a forked task cannot exec the program that restores it";
    TakeLock = "take-lock", Fails(Errno::EAGAIN), "taking a file lock or a lease again fails";
    CompleteEvents = "complete-events", Fails(Errno::EIO), "having an epoll watch, or a timer run, fails";
    AddWatch = "add-watch", Fails(Errno::ENOSPC), "adding a watch of inotify, or a mark of fanotify, fails";
    ReleaseTraffic = "release-traffic", Fails(Errno::EIO), "letting the traffic of TCP connections pass fails";
    Pidfile = "pidfile", Fails(Errno::ENOSPC), "writing the file with the pid of the root fails";
    // Ops, in the program that restores a task.
    OpMap = "op-map", Op(Family::Map, OP_FAILS), "the op of a restoring task fails that is about mapping memory";
    OpFill = "op-fill", Op(Family::Fill, OP_FAILS), "the op of a restoring task fails that is about reading page contents";
    OpProtect = "op-protect", Op(Family::Protect, OP_FAILS), "the op of a restoring task fails that is about protecting memory";
    OpLock = "op-lock", Op(Family::Lock, OP_FAILS), "the op of a restoring task fails that is about locking memory";
    OpPolicy = "op-policy", Op(Family::Policy, OP_FAILS), "the op of a restoring task fails that is about setting a memory policy";
    OpPlace = "op-place", Op(Family::Place, OP_FAILS), "the op of a restoring task fails that is about moving the vDSO";
    OpLayout = "op-layout", Op(Family::Layout, OP_FAILS), "the op of a restoring task fails that is about setting the layout of the address space";
    OpAction = "op-action", Op(Family::Action, OP_FAILS), "the op of a restoring task fails that is about setting a signal handler";
    OpThread = "op-thread", Op(Family::Thread, OP_FAILS), "the op of a restoring task fails that is about making a thread";
    OpAttribute = "op-attribute", Op(Family::Attribute, OP_FAILS), "the op of a restoring task fails that is about setting an attribute";
    OpRegistration = "op-registration", Op(Family::Registration, OP_FAILS), "the op of a restoring task fails that is about registering what a thread has";
    OpQueue = "op-queue", Op(Family::Queue, OP_FAILS), "the op of a restoring task fails that is about queueing a pending signal";
    OpTimer = "op-timer", Op(Family::Timer, OP_FAILS), "the op of a restoring task fails that is about making or starting a timer";
    OpCredentials = "op-credentials", Op(Family::Credentials, OP_FAILS), "the op of a restoring task fails that is about setting users, groups and capabilities";
    OpLimit = "op-limit", Op(Family::Limit, OP_FAILS), "the op of a restoring task fails that is about setting a limit";
    OpFile = "op-file", Op(Family::File, OP_FAILS), "the op of a restoring task fails that is about putting a descriptor in order";
    OpLdt = "op-ldt", Op(Family::Ldt, OP_FAILS), "the op of a restoring task fails that is about making an entry of the local descriptor table";
    OpFilter = "op-filter", Op(Family::Filter, OP_FAILS), "the op of a restoring task fails that is about installing a filter of seccomp";
    OpBirth = "op-birth", Op(Family::Birth, OP_FAILS), "the op of a restoring task fails that is about cloning a task";
    OpWord = "op-word", Op(Family::Word, OP_FAILS), "the op of a restoring task fails that is about waiting for the coordinator or for threads";
    LazyAhead = "lazy-ahead", Differs, "memory that comes when the tasks run comes when it is used, and not meanwhile";
    // Ends.
    TaskDiesUnseized = "task-dies-unseized", Victim, "a task is killed before it is seized";
    TaskDiesFrozen = "task-dies-frozen", Victim, "a task is killed when the tree is stopped";
    TaskDiesAsked = "task-dies-asked", Victim, "a task is killed while it makes system calls for the dump";
    TaskDiesCopied = "task-dies-copied", Victim, "a task is killed before its pages are copied";
    TwinDies = "twin-dies", Victim, "the twin of a task is killed before it does anything";
    TaskDiesSnapshot = "task-dies-snapshot", Victim, "a task is killed when the tree runs on and its twin is copied";
    HelperDiesEarly = "helper-dies-early", Victim, "a restoring task is killed before it has its plan";
    HelperDies = "helper-dies", Op(Family::Map, None), "a restoring task dies while it maps memory";
    HelperDiesParked = "helper-dies-parked", Victim, "a restored task is killed when all wait to be taken over";
    HelperDiesHeld = "helper-dies-held", Victim, "a restored task is killed when crr holds all its threads";
    KilledStarting = "killed-starting", Killed, "a dump is killed before it stops anything";
    StoppedStarting = "stopped-starting", Stopped, "a dump is stopped before it stops anything";
    KilledFreezing = "killed-freezing", Killed, "a dump is killed when a task has stopped";
    KilledFrozen = "killed-frozen", Killed, "a dump is killed when the tree is stopped";
    KilledCalling = "killed-calling", Killed, "a dump is killed when a task is about to make a system call at an instruction of its own";
    KilledAsking = "killed-asking", Killed, "a dump is killed when a task is about to make a list of system calls";
    KilledCollected = "killed-collected", Killed, "a dump is killed when all is known";
    KilledCloning = "killed-cloning", Killed, "a dump is killed when a task has made a twin";
    KilledSnapshot = "killed-snapshot", Killed, "a dump is killed when the tree runs on and twins are copied";
    KilledCopying = "killed-copying", Killed, "a dump is killed while it copies pages";
    KilledPublishing = "killed-publishing", Killed, "a dump is killed while it gives the images their names";
    KilledPublished = "killed-published", Killed, "a dump is killed when the images are complete";
    KilledDisarming = "killed-disarming", Killed, "a dump is killed when it is about to keep the kernel from undoing what a task has done to semaphores";
    KilledKilling = "killed-killing", Killed, "a dump is killed when it has killed a task of the tree";
    KilledReading = "killed-reading", Killed, "a restore is killed when it has read the images";
    KilledPlanned = "killed-planned", Killed, "a restore is killed when everything is planned";
    KilledOpened = "killed-opened", Killed, "a restore is killed when all files are open";
    KilledForked = "killed-forked", Killed, "a restore is killed when it has forked the first task";
    KilledServing = "killed-serving", Killed, "a restore is killed when it has sent a task its plan";
    KilledParked = "killed-parked", Killed, "a restore is killed when all tasks wait to be taken over";
    KilledSeized = "killed-seized", Killed, "a restore is killed when it holds all threads";
    KilledUntied = "killed-untied", Killed, "a restore is killed when no task dies with its parent any more";
    KilledFinished = "killed-finished", Killed, "a restore is killed when all threads have their state";
    KilledReleasing = "killed-releasing", Killed, "a restore is killed when a thread does not die with it any more";
    KilledLettingGo = "killed-letting-go", Killed, "a restore is killed when it has let a thread go";
    InitDies = "init-dies", Differs, "the init of --new-pidns ends when the tree is back";
    // The kernel, as it might be.
    VdsoDiffers = "vdso-differs", Differs, "a restore takes the vDSO of this kernel for another one than that of the dump";
    IdsTaken = "ids-taken", Differs, "without clone3, others take the id of each process and thread first";
    VdsoImmovable = "vdso-immovable", Differs, "a restore takes the vDSO of this kernel for one that cannot be moved";
}

/// Armed points.
#[derive(Debug)]
struct Faults(Vec<Armed>);

/// A point with a fault.
#[derive(Debug)]
struct Armed {
    point: Point,
    /// Passes until it takes effect; 0 afterwards.
    left: AtomicU32,
}

static FAULTS: OnceLock<Faults> = OnceLock::new();

/// A list of faults that makes no sense.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// There is no such point.
    #[error("there is no fault `{0}`\n  hint: `crr check --faults` lists them")]
    Unknown(String),
    /// Not a number above 0.
    #[error("fault `{0}`: not NAME or NAME:COUNT, with a count from 1")]
    Count(String),
}

impl Faults {
    fn parse(list: &str) -> Result<Self, Error> {
        let parse = |text: &str| {
            let (name, count) = text.split_once(':').unwrap_or((text, "1"));
            let count = count.parse().ok().filter(|&count: &u32| count > 0);
            let count = count.ok_or_else(|| Error::Count(text.to_owned()))?;
            let point = Point::ALL.iter().copied().find(|point| point.name() == name);
            let point = point.ok_or_else(|| Error::Unknown(name.to_owned()))?;
            Ok(Armed { point, left: AtomicU32::new(count) })
        };
        list.split(',').map(parse).collect::<Result<_, _>>().map(Self)
    }

    fn get(&self, point: Point) -> Option<&Armed> {
        self.0.iter().find(|armed| armed.point == point)
    }

    fn is_due(&self, point: Point) -> bool {
        let count_down = |armed: &Armed| {
            let left = &armed.left;
            left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)) == Ok(1)
        };
        self.get(point).is_some_and(count_down)
    }

    fn is_past(&self, point: Point) -> bool {
        self.get(point).is_some_and(|armed| armed.left.load(Ordering::Relaxed) == 0)
    }
}

/// Arms the faults of a list, for as long as this process runs. A second list changes nothing.
///
/// # Errors
/// If the list makes no sense; nothing is armed then.
pub fn arm(list: &str) -> Result<(), Error> {
    let faults = Faults::parse(list)?;
    FAULTS.get_or_init(|| faults);
    Ok(())
}

/// Passes a point: it fails, or kills this process, if a fault is due there.
///
/// # Errors
/// That of the point.
#[inline]
pub fn point(point: Point) -> nix::Result<()> {
    if !is_due(point) {
        return Ok(());
    }
    match point.effect() {
        Fails(errno) => return Err(errno),
        // It has hit when the call returns.
        Killed => drop(kill(nix::unistd::getpid(), Signal::SIGKILL)),
        Stopped => drop(kill(nix::unistd::getpid(), Signal::SIGSTOP)),
        Victim | Op(..) | Differs => {}
    }
    Ok(())
}

/// Passes a point at which a process can be killed; returns when it is dead.
#[inline]
pub fn strike(point: Point, victim: Pid) {
    if is_due(point) && kill(nix::unistd::Pid::from_raw(victim), Signal::SIGKILL).is_ok() {
        while !crate::proc::has_ended(victim) {
            std::thread::yield_now();
        }
    }
}

/// Passes a point whose effect is up to the caller; whether a fault is due.
#[inline]
#[must_use]
pub fn is_due(point: Point) -> bool {
    FAULTS.get().is_some_and(|faults| pass(faults, point))
}

#[cold]
fn pass(faults: &Faults, point: Point) -> bool {
    let due = faults.is_due(point);
    if due {
        tell(point);
    }
    due
}

/// Passes a point with a fault that lasts; whether it is there, from its COUNTth pass on.
#[inline]
#[must_use]
pub fn is_set(point: Point) -> bool {
    FAULTS.get().is_some_and(|faults| pass(faults, point) || faults.is_past(point))
}

/// An op that is to fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FailingOp {
    /// By which point.
    pub point: Point,
    /// What it is about.
    pub family: Family,
    /// With what it fails; the program dies if there is nothing.
    pub errno: Option<Errno>,
    /// The how manieth of its family it is.
    pub count: u32,
}

/// The op that is to fail: the first of those that are armed, since programs that restore tasks look for one only.
#[must_use]
pub fn op() -> Option<FailingOp> {
    FAULTS.get()?.0.iter().find_map(|armed| match armed.point.effect() {
        Op(family, errno) => {
            let count = armed.left.load(Ordering::Relaxed);
            Some(FailingOp { point: armed.point, family, errno, count })
        }
        _ => None,
    })
}

/// Tells that a fault took effect.
pub fn tell(point: Point) {
    log::warn!("fault: {}", point.name());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_their_own_and_spelled_alike() {
        let mut names: Vec<_> = Point::ALL.iter().map(|point| point.name()).collect();
        let spelled = |name: &&str| name.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'-');
        assert!(names.iter().all(spelled), "{names:?}");
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), Point::ALL.len());
    }

    #[test]
    fn a_list_has_names_with_counts() {
        let faults = Faults::parse("seize,interrupt:12").unwrap();
        let armed: Vec<_> =
            faults.0.into_iter().map(|armed| (armed.point, armed.left.into_inner())).collect();
        assert_eq!(armed, [(Point::Seize, 1), (Point::Interrupt, 12)]);
        for wrong in ["", "sieze", "Seize", " seize"] {
            assert_eq!(Faults::parse(wrong).unwrap_err(), Error::Unknown(wrong.to_owned()));
        }
        for wrong in ["seize:", "seize:0", "seize:-1", "seize:x", "seize:1:2"] {
            assert_eq!(Faults::parse(wrong).unwrap_err(), Error::Count(wrong.to_owned()));
        }
        assert!(Faults::parse("seize,nonsense").is_err());
    }

    #[test]
    fn a_fault_takes_effect_once_at_its_count() {
        let faults = Faults::parse("seize:2").unwrap();
        assert!(!faults.is_past(Point::Seize));
        assert_eq!([(); 4].map(|()| faults.is_due(Point::Seize)), [false, true, false, false]);
        assert!(faults.is_past(Point::Seize));
        assert!(!faults.is_due(Point::Interrupt) && !faults.is_past(Point::Interrupt));
    }
}
