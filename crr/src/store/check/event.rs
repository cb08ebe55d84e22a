//! Event files: that clocks and counters exist, that epolls watch what can be watched, that owners are of the tree.

use super::{Check, ensure, inside};
use crate::resource::event::{is_known, signals};
use images::DescriptionId;
use images::event::{Epoll, Notify, Timerfd};
use images::file::{Files, Target};
use images::task::Tree;
use std::collections::BTreeSet;

/// Clocks with timerfds: realtime, monotonic, boottime, and the two that wake the machine.
const CLOCKS: [u32; 5] = [0, 1, 7, 8, 9];
/// What timerfd_settime(2) takes (TFD_SETTIME_FLAGS).
const SETTIME_FLAGS: u32 = 3;
const SIGNALS: u32 = 64;
/// EP_MAX_NESTS of fs/eventpoll.c, and one more that watches.
const DEPTH_MAX: usize = 5;

pub(super) fn check_target(target: &Target, files: &Files) -> Check {
    match *target {
        Target::Eventfd(event) => {
            ensure!(event.count < u64::MAX, "has counted to {:#x}", event.count);
        }
        Target::Timerfd(timer) => check_timer(&timer)?,
        Target::Epoll(index) => {
            let epolls = files.epolls.len();
            ensure!((index as usize) < epolls, "epoll#{index} of {epolls} epolls");
        }
        _ => {}
    }
    Ok(())
}

fn check_timer(timer: &Timerfd) -> Check {
    ensure!(CLOCKS.contains(&timer.clock), "goes by clock {}", timer.clock);
    ensure!(timer.flags & !SETTIME_FLAGS == 0, "was set with flags {:#x}", timer.flags);
    for time in [timer.interval_ns, timer.next_ns] {
        ensure!(i64::try_from(time).is_ok(), "has a time of {time} ns");
    }
    Ok(())
}

pub(super) fn check(files: &Files) -> Check {
    for (index, epoll) in files.epolls.iter().enumerate() {
        check_epoll(epoll, files).map_err(inside(format_args!("epoll#{index}")))?;
        let depth = depth(index, files, DEPTH_MAX);
        ensure!(depth.is_some(), "epoll#{index}: epolls watch each other more than {DEPTH_MAX} deep");
    }
    let mut open = BTreeSet::new();
    for description in &files.descriptions {
        if let Target::Epoll(index) = description.target {
            ensure!(open.insert(index), "epoll#{index} has two descriptions");
        }
    }
    ensure!(open.len() == files.epolls.len(), "an epoll has no description");
    Ok(())
}

fn check_epoll(epoll: &Epoll, files: &Files) -> Check {
    let mut seen = BTreeSet::new();
    for watch in &epoll.watches {
        let (fd, id) = (watch.fd, watch.description);
        ensure!(i32::try_from(fd).is_ok(), "watches fd {fd}");
        let known = files.descriptions.len();
        ensure!((id.0 as usize) < known, "watches {id} of {known} descriptions");
        ensure!(seen.insert((fd, id)), "watches {id} as fd {fd} twice");
    }
    Ok(())
}

/// How deep epolls watch each other, if it is no deeper than a limit.
fn depth(epoll: usize, files: &Files, limit: usize) -> Option<usize> {
    let limit = limit.checked_sub(1)?;
    let mut deepest = 0;
    for watch in &files.epolls[epoll].watches {
        if let Target::Epoll(inner) = files.descriptions[watch.description.0 as usize].target {
            deepest = deepest.max(depth(inner as usize, files, limit)?);
        }
    }
    Some(deepest + 1)
}

/// What takes the tasks to know.
pub(super) fn check_with(tree: &Tree, files: &Files) -> Check {
    for (id, description) in (0..).map(DescriptionId).zip(&files.descriptions) {
        if let Some(notify) = &description.notify {
            check_owner(notify, tree).map_err(inside(id))?;
        }
        let Target::Epoll(epoll) = description.target else { continue };
        for watch in &files.epolls[epoll as usize].watches {
            let signals = signals::is_signalfd(&files.descriptions, watch.description);
            ensure!(
                !signals || signals::adder(&tree.tasks, id, watch).is_some(),
                "epoll#{epoll}: watches a signalfd that no task can have added"
            );
        }
    }
    Ok(())
}

fn check_owner(notify: &Notify, tree: &Tree) -> Check {
    let Notify { kind, owner, signal, .. } = notify;
    ensure!(*kind <= 2, "has an owner of kind {kind}");
    ensure!(*signal <= SIGNALS, "signals {signal}");
    let known = is_known(notify, &tree.tasks, &tree.zombies);
    ensure!(known, "has owner {owner}, which is not in the tree");
    Ok(())
}
