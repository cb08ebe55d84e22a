//! Faults that are injected on purpose, so that tests see what becomes of a tree when something fails halfway.
//!
//! `CRR_FAULT=NAME[:COUNT][,NAME...]`, or `--fault`, arms points of the table below: the point fails, or does whatever it is there for, when it is
//! passed for the COUNTth time (the first, without a count), once. `crr check --faults` lists them. Each process counts for itself; a
//! child that is forked begins with the count of its parent. That a fault took effect is told by a warning with its name.
//!
//! The armed faults are the one global beside the logger: where they take effect is below every interface of crr, and an
//! argument that is handed down to each system call would change what is to be tested. Nothing is looked up unless some fault is armed.

use images::Pid;
use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

/// What becomes of it when an armed point is passed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// The system call fails with this error.
    Fails(Errno),
    /// crr is killed.
    Killed,
    /// The process that the point is about is killed.
    Victim,
    /// What the code asks for by [`is_set`] or [`is_due`].
    Differs,
}

use Effect::{Differs, Fails, Killed, Victim};

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
        Victim | Differs => {}
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
    FAULTS.get().is_some_and(|faults| tell(faults, point))
}

#[cold]
fn tell(faults: &Faults, point: Point) -> bool {
    let due = faults.is_due(point);
    if due {
        log::warn!("fault: {}", point.name());
    }
    due
}

/// Whether a fault is armed that lasts: its count means nothing.
#[inline]
#[must_use]
pub fn is_set(point: Point) -> bool {
    FAULTS.get().is_some_and(|faults| faults.get(point).is_some())
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
        assert!(faults.get(Point::Seize).is_some() && faults.get(Point::Interrupt).is_none());
        assert_eq!([(); 4].map(|()| faults.is_due(Point::Seize)), [false, true, false, false]);
        assert!(!faults.is_due(Point::Interrupt));
    }
}
