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
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitStatus, waitpid};
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

/// Watches over the process that brings pages.
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
    let victims: Vec<(Pid, OwnedFd)> = given.tasks.iter().filter_map(|tracked| open(*tracked)).collect();
    let file = File::from(given.pages);
    let Some(server) = process::fork(process::CLONE_FILES).context("fork")? else {
        let spaces = given.descriptors.into_iter().zip(runs).collect();
        let ready = File::from(given.ready);
        let serving = AssertUnwindSafe(|| {
            nix::sys::prctl::set_name(c"crr-lazy-pages").context("prctl")?;
            // Who has started this hears why nothing comes.
            let source =
                Source::new(file, page_count, unchecked, in_memory, absent).inspect_err(|error| {
                    let _ = (&ready).write_all(format!("{error:#}").as_bytes());
                })?;
            serve(source, spaces, || {
                (&ready).write_all(&[READY]).context("tell that pages are brought")?;
                drop(ready);
                Ok(())
            })
        });
        let status = match catch_unwind(serving) {
            Ok(Ok(())) => 0,
            Ok(Err(e)) => {
                log::error!("lazy-pages: {e:#}");
                1
            }
            Err(_) => 1,
        };
        process::exit(status)
    };
    nix::sys::prctl::set_name(c"crr-lazy-guard").context("prctl")?;
    // All descriptors are the other's, too: it closes those that are done with, and none is closed here.
    std::mem::forget((given.descriptors, given.ready, file));
    let status = waitpid(nix::unistd::Pid::from_raw(server), None).context("wait for crr-lazy-pages")?;
    if status == WaitStatus::Exited(nix::unistd::Pid::from_raw(server), 0) {
        return Ok(());
    }
    let pids: Vec<String> = victims.iter().map(|(pid, _)| pid.to_string()).collect();
    log::error!(
        "lazy-pages: {status:?} before all pages were there: killing the restored tasks, whose memory is incomplete: {}",
        pids.join(" ")
    );
    for (_, task) in &victims {
        let _ = pidfd::kill(task.as_fd(), Signal::SIGKILL as i32);
    }
    end_copies()?;
    Err(anyhow!("the tasks were killed"))
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
            log::error!(
                "lazy-pages: killing task {pid}, a child of the restored tasks that needs a page of theirs"
            );
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
