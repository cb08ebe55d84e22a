//! fanotify groups: that each is open once, that marks have events and flags that the kernel takes.

use super::{Check, ensure, inside, path};
use images::fanotify::{Fanotify, Scope};
use images::file::{Files, Target};
use std::collections::BTreeSet;

/// FAN_CLASS_CONTENT, FAN_CLASS_PRE_CONTENT.
const JUDGES: u32 = 0xc;
/// FAN_MARK_IGNORED_SURV_MODIFY, FAN_MARK_EVICTABLE, FAN_MARK_IGNORE.
const FLAGS: u32 = 0x640;
/// FAN_MARK_EVICTABLE.
const EVICTABLE: u32 = 0x200;

pub(super) fn check(files: &Files) -> Check {
    let mut open = BTreeSet::new();
    for description in &files.descriptions {
        if let Target::Fanotify(index) = description.target {
            ensure!(open.insert(index), "fanotify#{index} has two descriptions");
        }
    }
    ensure!(open.len() == files.fanotifies.len(), "a fanotify group has no description");
    for (index, group) in files.fanotifies.iter().enumerate() {
        check_group(group, files).map_err(inside(format_args!("fanotify#{index}")))?;
    }
    Ok(())
}

fn check_group(group: &Fanotify, files: &Files) -> Check {
    ensure!(group.flags & JUDGES == 0, "has flags {:#x}", group.flags);
    for (index, mark) in group.marks.iter().enumerate() {
        path(files, mark.path).map_err(inside(format_args!("mark {index}")))?;
        ensure!(mark.flags & !FLAGS == 0, "mark {index} has flags {:#x}", mark.flags);
        let can_be_evicted = mark.scope == Scope::Inode || mark.flags & EVICTABLE == 0;
        ensure!(can_be_evicted, "mark {index} is no file, and can be evicted");
    }
    Ok(())
}
