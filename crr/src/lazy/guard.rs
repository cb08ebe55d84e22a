//! The guard over those who wait for pages, and what becomes of them when nobody brings any more.

use super::serve::serve;
use super::source::Source;
use super::{READY, Work, userfaultfd};
use crate::proc::{smaps, tasks};
use crate::sys::{limits, pidfd, process};
use crate::track::instance;
use crate::track::keeper::Tracked;
use anyhow::{Context, Result, anyhow};
use images::Pid;
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags};
use nix::sys::signal::{Signal, kill};
use std::fs::{self, File};
use std::io::{Read, Seek, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use userfaultfd::Message;

/// What the processes are given.
#[derive(Debug)]
pub(crate) struct Given {
    /// The page file.
    pub(crate) pages: OwnedFd,
    /// A file that says what is to be brought to each task that has a descriptor.
    pub(crate) work: OwnedFd,
    /// Who is told that pages are brought from now on.
    pub(crate) ready: OwnedFd,
    /// All tasks.
    pub(crate) tasks: Vec<Tracked>,
    /// The descriptors of those that have one, in the same order.
    pub(crate) descriptors: Vec<OwnedFd>,
}

/// Starts the process that brings pages, and watches over it.
///
/// # Errors
/// If it does not come to its end: the tasks have been killed then.
pub(crate) fn run(given: Given) -> Result<()> {
    // As many address spaces may come by fork.
    limits::raise_open_files()?;
    let mut work = Vec::new();
    let mut file = File::from(given.work);
    file.rewind().and_then(|()| file.read_to_end(&mut work)).context("read what is to come")?;
    let Work { runs, page_count, unchecked, in_memory, absent } =
        postcard::from_bytes(&work).context("read what is to come")?;
    let victims = given.tasks.iter().filter_map(|tracked| open(*tracked)).collect();
    let (heard, finished) = nix::unistd::pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK).context("pipe")?;
    let watch = Watch { victims, heard, finished };
    let file = File::from(given.pages);
    // A signal for everything that has this name ends who brings pages, and the guard tells what comes of that.
    let before = process::block_all_signals().context("block signals")?;
    let guard = pidfd::open(std::process::id().cast_signed()).context("pidfd of the guard")?;
    let Some(server) = process::fork(process::CLONE_FILES).context("fork")? else {
        let spaces = given.descriptors.into_iter().zip(runs).collect();
        let ready = File::from(given.ready);
        let serving = AssertUnwindSafe(|| {
            process::set_signal_mask(before).context("let signals through")?;
            nix::sys::prctl::set_name(c"crr-lazy-pages").context("prctl")?;
            // Who has started this hears why nothing comes.
            let source =
                Source::new(file, page_count, unchecked, in_memory, absent).inspect_err(|error| {
                    let _ = (&ready).write_all(format!("{error:#}").as_bytes());
                })?;
            serve(source, spaces, (guard, &watch), || {
                (&ready).write_all(&[READY]).context("tell that pages are brought")?;
                drop(ready);
                Ok(())
            })?;
            nix::unistd::write(&watch.finished, &[FINISHED]).context("tell the guard")
        });
        let status = match catch_unwind(serving) {
            Ok(Ok(_)) => 0,
            Ok(Err(e)) => {
                log::error!("lazy-pages: {e:#}");
                1
            }
            Err(_) => 1,
        };
        process::exit(status)
    };
    // All descriptors are the other's, too: it closes those that are done with, and none is closed here.
    std::mem::forget((given.descriptors, given.ready, file, guard));
    watch.keep(&pidfd::open(server).context("pidfd of crr-lazy-pages")?)
}

/// What is said when all pages are there.
const FINISHED: u8 = b'f';

/// What a guard has: the tasks, and a pipe by which it hears that all pages are there.
pub(super) struct Watch {
    victims: Vec<(Pid, OwnedFd)>,
    heard: OwnedFd,
    finished: OwnedFd,
}

impl Watch {
    /// Guards until the process that brings pages ends.
    fn keep(&self, server: &OwnedFd) -> Result<()> {
        nix::sys::prctl::set_name(c"crr-lazy-guard").context("prctl")?;
        loop {
            match poll(&mut [PollFd::new(server.as_fd(), PollFlags::POLLIN)], PollTimeout::NONE) {
                Err(Errno::EINTR) => {}
                polled => {
                    polled.context("wait for crr-lazy-pages")?;
                    break;
                }
            }
        }
        if nix::unistd::read(&self.heard, &mut [0]).is_ok_and(|said| said == 1) {
            return Ok(());
        }
        let pids: Vec<String> = self.victims.iter().map(|(pid, _)| pid.to_string()).collect();
        log::error!(
            "lazy-pages: crr-lazy-pages ended before all pages were there: killing the restored tasks, whose memory is incomplete: {}",
            pids.join(" ")
        );
        for (_, task) in &self.victims {
            let _ = pidfd::kill(task.as_fd(), Signal::SIGKILL as i32);
        }
        end_copies()?;
        Err(anyhow!("the tasks were killed"))
    }

    /// Another guard in place of one that was ended: a child of the calling process, which has one thread.
    ///
    /// # Errors
    /// If there is none: memory is short.
    pub(super) fn renew(&self) -> Result<OwnedFd> {
        let own = pidfd::open(std::process::id().cast_signed()).context("pidfd")?;
        let before = process::block_all_signals().context("block signals")?;
        let forked = process::fork(process::CLONE_FILES);
        if let Ok(None) = forked {
            let kept = catch_unwind(AssertUnwindSafe(|| self.keep(&own)));
            process::exit(i32::from(!matches!(kept, Ok(Ok(())))))
        }
        process::set_signal_mask(before).context("let signals through")?;
        // The new guard's, too.
        std::mem::forget(own);
        pidfd::open(forked.context("fork")?.unwrap_or_default()).context("pidfd of the guard")
    }
}

/// A task, if it is still the one that was restored.
fn open(tracked: Tracked) -> Option<(Pid, OwnedFd)> {
    let task = pidfd::open(tracked.task.pid).ok()?;
    instance(tracked.task.pid).is_ok_and(|now| now == tracked.task).then_some((tracked.task.pid, task))
}

/// Kills who waits for a page in an address space that is a copy: whose it is only shows by that. Ends when none is left, of
/// the killed ones either, which keep theirs for a moment.
fn end_copies() -> Result<()> {
    const STEP: u16 = 200;
    let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).context("epoll")?;
    let mut left = descriptors()?;
    for (number, fd) in left.iter().enumerate() {
        epoll.add(fd, EpollEvent::new(EpollFlags::EPOLLIN, number as u64)).context("epoll")?;
    }
    while left.iter().any(|fd| !userfaultfd::is_gone(fd.as_fd())) {
        let mut events = [EpollEvent::empty(); 16];
        let ready = epoll.wait(&mut events, STEP).unwrap_or(0);
        for event in &events[..ready] {
            let Some(fd) = usize::try_from(event.data()).ok().and_then(|number| left.get(number)) else {
                continue;
            };
            match userfaultfd::read(fd.as_fd()) {
                Ok(Some(Message::Fault { address, thread })) => kill_who_waits(address, thread)?,
                Ok(Some(Message::Fork(copy))) => {
                    epoll
                        .add(&copy, EpollEvent::new(EpollFlags::EPOLLIN, left.len() as u64))
                        .context("epoll")?;
                    left.push(copy);
                }
                _ => {}
            }
        }
    }
    Ok(())
}

/// All userfaultfds of this process. They become its own: nobody else uses them any more.
fn descriptors() -> Result<Vec<OwnedFd>> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc/self/fd").context("/proc/self/fd")? {
        let entry = entry.context("/proc/self/fd")?;
        let is_one =
            fs::read_link(entry.path()).is_ok_and(|link| link.as_os_str() == "anon_inode:[userfaultfd]");
        if let Some(number) = entry.file_name().to_str().and_then(|name| name.parse().ok()).filter(|_| is_one)
        {
            found.push(process::own_fd(number));
        }
    }
    Ok(found)
}

/// Kills the process one of whose threads has this id in its own pid namespace, and that has an area under a userfaultfd at this
/// address.
fn kill_who_waits(address: u64, thread: u32) -> Result<()> {
    for pid in tasks::all()? {
        if has_thread(pid, thread) && waits_at(pid, address) {
            log::error!("lazy-pages: killing task {pid}, which waits for a page that nobody brings");
            let _ = kill(nix::unistd::Pid::from_raw(pid), Signal::SIGKILL);
        }
    }
    Ok(())
}

fn has_thread(pid: Pid, thread: u32) -> bool {
    let Ok(threads) = fs::read_dir(format!("/proc/{pid}/task")) else { return false };
    threads.flatten().any(|entry| {
        let status = fs::read_to_string(entry.path().join("status")).unwrap_or_default();
        let innermost =
            |line: &str| line.strip_prefix("NSpid:")?.split_whitespace().next_back()?.parse().ok();
        status.lines().find_map(innermost) == Some(thread)
    })
}

fn waits_at(pid: Pid, address: u64) -> bool {
    let Ok(text) = fs::read(format!("/proc/{pid}/smaps")) else { return false };
    let mut waits = false;
    let _ = smaps::parse(&text, |area| {
        waits |= (area.start..area.end).contains(&address)
            && area.flags.split(|&byte| byte == b' ').any(|flag| flag == b"um");
        Ok::<(), crate::proc::Malformed>(())
    });
    waits
}
