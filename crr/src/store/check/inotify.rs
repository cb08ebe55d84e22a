//! inotify groups: that each is open once, that watches have numbers and events that the kernel takes.

use super::{Check, ensure, inside, path};
use images::file::{Files, Target};
use images::inotify::Inotify;
use std::collections::BTreeSet;

/// IN_ALL_EVENTS, IN_EXCL_UNLINK, IN_ONESHOT.
const MASK: u32 = 0x8400_0fff;

pub(super) fn check(files: &Files) -> Check {
    let mut open = BTreeSet::new();
    for description in &files.descriptions {
        if let Target::Inotify(index) = description.target {
            ensure!(open.insert(index), "inotify#{index} has two descriptions");
        }
    }
    ensure!(open.len() == files.inotifies.len(), "an inotify group has no description");
    for (index, group) in files.inotifies.iter().enumerate() {
        check_group(group, files).map_err(inside(format_args!("inotify#{index}")))?;
    }
    Ok(())
}

fn check_group(group: &Inotify, files: &Files) -> Check {
    let is_number = |wd: u32| wd > 0 && i32::try_from(wd).is_ok();
    ensure!(is_number(group.next), "its next watch is {}", group.next);
    let mut seen = BTreeSet::new();
    for watch in &group.watches {
        let wd = watch.wd;
        ensure!(is_number(wd), "watch {wd}");
        ensure!(seen.insert(wd), "watch {wd} twice");
        ensure!(watch.mask & !MASK == 0, "watch {wd}: for events {:#x}", watch.mask);
        path(files, watch.path).map_err(inside(format_args!("watch {wd}")))?;
    }
    Ok(())
}
