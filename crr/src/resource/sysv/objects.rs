//! Sets of semaphores and message queues: which of them are a tree's, and which have to be made again.
//!
//! Nobody has them open: what tells of a user is that the kernel notes who used each of them last, and that a waiting call names it.
//! They outlive the tree. So what is still there at the restore, as the same object, is left as it is, whoever used it
//! meanwhile; what is gone is made again with what the image has of it. To be the same takes the same id and key, the same creator, and
//! the same IPC namespace of the same boot, since others give out the same ids.

use super::undo;
use super::{queues, semaphores};
use crate::machine;
use crate::refusal::{Refusal, Refusals};
use crate::remote::Target;
use crate::resource::creds::CAP_SYS_RESOURCE;
use crate::restore::environment::Environment;
use crate::sys::process;
use crate::sys::sysv::{queues as queue_calls, semaphores as set_calls};
use anyhow::{Context, Result, bail};
use images::Pid;
use images::inventory::Inventory;
use images::sysv::{Ipc, Object};
use std::collections::{BTreeSet, HashSet};
use std::os::unix::fs::MetadataExt;

pub(crate) use super::semaphores::Sets;
pub(crate) use super::waits::Waits;

/// Permissions proper.
pub(super) const PERMISSIONS: u32 = 0o777;

/// Records what a tree uses, which has these process ids. With it comes, for each list of what is to be undone, how its task makes calls.
///
/// # Errors
/// If `/proc` does not tell which there are, or one cannot be looked at.
pub(crate) fn dump(
    sets: &mut Sets,
    tree: &HashSet<Pid>,
    waits: &Waits,
    mut undo: undo::Found,
    refusals: &mut Refusals,
) -> Result<(Ipc, Vec<Target>)> {
    let namespace = namespace()?;
    let undone = undo.lists.iter().flat_map(|list| &list.sums).map(|sum| sum.set);
    let named = waits.sets.iter().copied().chain(undone).collect();
    let semaphore_sets = semaphores::dump(sets, tree, &named, refusals)?;
    let queues = queues::dump(tree, &waits.queues, refusals)?;
    undo.keep_to(&semaphore_sets);
    let undo::Found { lists: undo_lists, apart, ways } = undo;
    Ok((Ipc { namespace, semaphore_sets, queues, undo_lists, apart }, ways))
}

/// The inode of the present IPC namespace; 0 where the kernel has but one.
fn namespace() -> Result<u64> {
    const FILE: &str = "/proc/self/ns/ipc";
    match std::fs::metadata(FILE) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(0),
        file => Ok(file.context(FILE)?.ino()),
    }
}

/// Whether one is the tree's, by who used it last, or by what else names it: calls that wait at it, what is to be undone. Who else uses it is told: it is not to be expected at another
/// place.
pub(super) fn is_used(name: &str, users: &BTreeSet<Pid>, tree: &HashSet<Pid>, is_named: bool) -> bool {
    let is_used = is_named || users.iter().any(|pid| tree.contains(pid));
    for pid in users.iter().filter(|pid| is_used && !tree.contains(pid) && **pid > 0) {
        if process::exists(*pid) {
            log::warn!("{name}: process {pid}, which is outside of the tree, uses it too");
        }
    }
    is_used
}

/// What there is to know of the place of a restore: whether an object that is there can be the recorded one, and what can be made.
#[derive(Clone, Copy, Debug)]
pub(super) struct Here {
    /// This is the IPC namespace of the dump.
    is_same: bool,
    /// CAP_SYS_RESOURCE is to be had.
    pub(super) may_exceed: bool,
}

impl Here {
    fn look(inventory: &Inventory, ipc: &Ipc, environment: &Environment) -> Result<Self> {
        Ok(Self {
            is_same: machine::boot_id()? == inventory.boot_id && namespace()? == ipc.namespace,
            may_exceed: environment.creds.cap_effective & CAP_SYS_RESOURCE != 0,
        })
    }

    /// Why a recorded object can neither be made again nor is still there, if so, and the id of what is in the way. `fits` tells what else it takes to
    /// be the same.
    pub(super) fn obstacle<'a>(
        self,
        wanted: &Object,
        there: impl Iterator<Item = &'a Object> + Clone,
        fits: impl Fn(&Object) -> bool,
    ) -> Option<(String, i32)> {
        let known_by = |object: &Object| (object.key, object.creator_uid, object.creator_gid);
        let is_it = |object: &Object| {
            // A restore that was killed leaves one that is not complete without permissions.
            let is_complete = object.mode != 0 || wanted.mode == 0;
            self.is_same && is_complete && known_by(object) == known_by(wanted) && fits(object)
        };
        match there.clone().find(|object| object.id == wanted.id) {
            Some(object) if is_it(object) => return None,
            Some(_) => return Some(("another one has its id now".to_owned(), wanted.id)),
            None => {}
        }
        let by_key = |object: &&Object| wanted.key != 0 && object.key == wanted.key;
        if let Some(object) = there.clone().find(by_key) {
            return Some((format!("its key {:#x} is that of {} now", wanted.key, object.id), object.id));
        }
        let by_place = |object: &&Object| place(object.id) == place(wanted.id);
        let object = there.clone().find(by_place)?;
        Some((format!("{} is at its place in the kernel's table", object.id), object.id))
    }
}

/// The part of an id that is a place in a table; the rest is a sequence number (IPCMNI_SHIFT, ipc/util.h). The boot parameter ipcmni_extend makes it
/// longer, which matters from the 32768th object on.
const fn place(id: i32) -> i32 {
    id & 0x7fff
}

/// Objects that keep those of the tree from being put back.
///
/// # Errors
/// If `/proc` does not tell what there is.
pub(crate) fn preflight(
    inventory: &Inventory,
    ipc: &Ipc,
    environment: &Environment,
    refusals: &mut Refusals,
) -> Result<()> {
    if ipc.semaphore_sets.is_empty() && ipc.queues.is_empty() {
        return Ok(());
    }
    let here = Here::look(inventory, ipc, environment)?;
    semaphores::preflight(here, ipc, refusals)?;
    queues::preflight(here, &ipc.queues, refusals)
}

/// The way out where this one is in the way, which `ipcrm` takes by this option. One that an earlier restore has made is not known for that in another
/// boot or namespace.
pub(super) fn remove_it(option: &str, id: i32) -> String {
    format!("have its users remove it, or remove it (ipcrm {option} {id}) if an earlier restore has made it")
}

/// One of the tree that crr, without privileges, cannot record.
pub(super) fn refuse_unreadable(name: String, refusals: &mut Refusals) {
    refuse(name, "may not be read by crr".to_owned(), "run crr as root", refusals);
}

pub(super) fn refuse(name: String, reason: String, hint: &str, refusals: &mut Refusals) {
    refusals.push(Refusal { task: None, object: name, reason, hint: Some(hint.to_owned()) });
}

/// Objects that a restore has made, which go when this value does unless they are to be kept.
#[derive(Debug, Default)]
pub(crate) struct Made {
    pub(super) sets: Vec<i32>,
    pub(super) queues: Vec<i32>,
    /// What was filled into lists, in that order, from when it may be undone.
    pub(crate) adjusted: Vec<Adjusted>,
}

/// A semaphore at which a restored task has something to be undone.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Adjusted {
    pub(super) set: i32,
    pub(super) number: u16,
    pub(super) user: Pid,
    /// Its value before the restore.
    pub(super) before: u16,
    /// Its value when the kernel has undone this, and what was filled in before this.
    pub(super) undone: u16,
}

impl Made {
    /// They are to stay.
    pub(crate) fn keep(&mut self) {
        self.sets.clear();
        self.queues.clear();
        self.adjusted.clear();
    }
}

impl Drop for Made {
    fn drop(&mut self) {
        // The tasks are dead. The last that one of them has done tells the value, and who has got it in that moment has it.
        for adjusted in self.adjusted.iter().rev() {
            undo::restore::take_back(adjusted);
        }
        for id in &self.sets {
            let _ = set_calls::remove(*id);
        }
        for id in &self.queues {
            let _ = queue_calls::remove(*id);
        }
    }
}

/// Makes what is gone, before there is any task, so that its process ids are free: the kernel notes who does what.
///
/// # Errors
/// Names the one that fails; what was made goes again.
pub(crate) fn put_back(ipc: &Ipc) -> Result<Made> {
    let mut made = Made::default();
    semaphores::put_back(&ipc.semaphore_sets, &mut made)?;
    queues::put_back(&ipc.queues, &mut made)?;
    Ok(made)
}

/// What is made under an id.
#[derive(Debug)]
pub(super) struct Kind {
    /// sem, msg or shm.
    pub(super) name: &'static str,
    /// Makes the smallest one, without a key.
    pub(super) make_any: fn() -> nix::Result<i32>,
    pub(super) remove: fn(i32) -> nix::Result<()>,
}

/// Makes something under its old id, which takes a word to the kernel first (ipc_idr_alloc(), ipc/util.c).
pub(super) fn make_under_id(kind: &Kind, id: i32, make: impl FnOnce() -> nix::Result<i32>) -> Result<()> {
    let next_id = format!("/proc/sys/kernel/{}_next_id", kind.name);
    std::fs::write(&next_id, id.to_string()).with_context(|| next_id.clone())?;
    let made = make();
    if made.is_err() {
        take_back(kind, &next_id);
    }
    let made = made.context("make it again")?;
    if made != id {
        let _ = (kind.remove)(made);
        bail!("cannot have its id: another one is at that place");
    }
    Ok(())
}

/// Takes the word back, where nothing was made by it: else the next who makes one gets the id. No number stands for none (the least one that can be
/// written is 0, ipc/ipc_sysctl.c), so one is made to use it up.
fn take_back(kind: &Kind, next_id: &str) {
    let is_set = std::fs::read_to_string(next_id).is_ok_and(|text| text.trim() != "-1");
    if is_set {
        let _ = (kind.make_any)().and_then(kind.remove);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object(id: i32, key: i32) -> Object {
        Object { id, key, mode: 0o600, uid: 1, gid: 2, creator_uid: 3, creator_gid: 4 }
    }

    #[test]
    fn what_is_in_the_way_is_told() {
        let wanted = object(0x8003, 7);
        let says = |is_same, there: &[Object]| {
            let here = Here { is_same, may_exceed: false };
            here.obstacle(&wanted, there.iter(), |_| true).map(|(reason, _)| reason)
        };
        assert_eq!(says(true, &[object(1, 0)]), None);
        assert_eq!(says(true, &[object(0x8003, 7)]), None);
        assert_eq!(says(false, &[object(0x8003, 7)]).unwrap(), "another one has its id now");
        assert_eq!(says(true, &[object(0x8003, 8)]).unwrap(), "another one has its id now");
        assert_eq!(says(true, &[object(1, 7)]).unwrap(), "its key 0x7 is that of 1 now");
        assert_eq!(says(true, &[object(3, 0)]).unwrap(), "3 is at its place in the kernel's table");
        let incomplete = Object { mode: 0, ..object(0x8003, 7) };
        assert_eq!(says(true, &[incomplete]).unwrap(), "another one has its id now");
        let here = Here { is_same: true, may_exceed: false };
        let in_the_way = |there: Object| here.obstacle(&wanted, [there].iter(), |_| true).unwrap().1;
        assert_eq!([in_the_way(object(1, 7)), in_the_way(object(3, 0))], [1, 3]);
        let smaller = here.obstacle(&wanted, [object(0x8003, 7)].iter(), |_| false);
        assert!(smaller.is_some());
    }
}
