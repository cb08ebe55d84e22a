//! Sets of semaphores.

use super::objects::{self, Here, Kind, Made, PERMISSIONS};
use super::undo;
use crate::proc::sysvipc::{self, SemaphoreSet as Row};
use crate::refusal::Refusals;
use crate::resource::unix_socket::maker::in_process;
use crate::sys::sysv::{SELF, semaphores as sys};
use anyhow::{Context, Result};
use images::Pid;
use images::sysv::{Ipc, Semaphore, SemaphoreSet};
use nix::errno::Errno;
use nix::time::{ClockId, clock_gettime};
use std::collections::{BTreeSet, HashSet};

/// The sets that there are. What is in them, and who used it last, takes several calls for each of the whole namespace: that is looked at
/// before the tree stands still, and again only where something may have changed since.
#[derive(Debug)]
pub(crate) struct Sets {
    before: Vec<(Row, Vec<Semaphore>)>,
    /// When that look began.
    since: u64,
    /// Those that are there when the tree stands still.
    now: Option<Vec<Row>>,
}

impl Sets {
    /// The look before.
    ///
    /// # Errors
    /// If `/proc` does not tell which there are.
    pub(crate) fn look() -> Result<Self> {
        let since = seconds().context("clock")?;
        let looked = all()?.into_iter().filter_map(|row| {
            let semaphores = look(&row).ok()?;
            Some((row, semaphores))
        });
        Ok(Self { before: looked.collect(), since, now: None })
    }

    /// Those that are there now, when the tree stands still: read once.
    pub(super) fn now(&mut self) -> Result<&[Row]> {
        let rows = match self.now.take() {
            Some(rows) => rows,
            None => all()?,
        };
        Ok(self.now.insert(rows))
    }

    /// What is in a set. Who changes anything of a set has the second noted in it (set_semotime() and its callers, semctl_setval(),
    /// semctl_main() of ipc/sem.c): one whose times are before the first look, and the same as then, was not changed since. If the clock was set
    /// back meanwhile, nothing is known.
    fn semaphores(&self, row: &Row, now: u64) -> nix::Result<Vec<Semaphore>> {
        let is_old = now >= self.since && row.operated_at.max(row.changed_at) < self.since;
        match self.before.iter().find(|(before, _)| is_old && before == row) {
            Some((_, semaphores)) => Ok(semaphores.clone()),
            None => look(row),
        }
    }
}

/// The clock by which the kernel notes when sets are changed (ktime_get_real_seconds()).
fn seconds() -> nix::Result<u64> {
    let now = clock_gettime(ClockId::CLOCK_REALTIME_COARSE)?;
    Ok(u64::try_from(now.tv_sec()).unwrap_or(0))
}

/// All sets that there are.
fn all() -> Result<Vec<Row>> {
    const FILE: &str = "/proc/sysvipc/sem";
    if !sys::are_any() {
        return Ok(Vec::new());
    }
    let text = std::fs::read(FILE).context(FILE)?;
    Ok(sysvipc::semaphore_sets(&text)?)
}

pub(super) fn name(id: i32) -> String {
    format!("System V semaphores {id}")
}

/// Those that a tree uses, or waits at, or has something to undo at: `named` are the last two. Who used one is told to those alone who may read it: what crr may not read, without privileges, and nobody of
/// the tree waits at, is taken for one of others.
pub(super) fn dump(
    sets: &mut Sets,
    tree: &HashSet<Pid>,
    named: &BTreeSet<i32>,
    refusals: &mut Refusals,
) -> Result<Vec<SemaphoreSet>> {
    let mut found = Vec::new();
    let now = seconds().context("clock")?;
    sets.now()?;
    for row in sets.now.iter().flatten() {
        let id = row.object.id;
        let semaphores = match sets.semaphores(row, now) {
            // It has gone meanwhile.
            Err(Errno::EINVAL | Errno::EIDRM) => continue,
            Err(Errno::EACCES) => {
                if named.contains(&id) {
                    objects::refuse_unreadable(name(id), refusals);
                }
                continue;
            }
            semaphores => semaphores.with_context(|| name(id))?,
        };
        let users = semaphores.iter().map(|semaphore| semaphore.last_user).collect();
        if objects::is_used(&name(id), &users, tree, named.contains(&id)) {
            let (object, was_used) = (row.object.clone(), row.operated_at != 0);
            found.push(SemaphoreSet { object, was_used, semaphores });
        }
    }
    found.sort_unstable_by_key(|set| set.object.id);
    Ok(found)
}

fn look(row: &Row) -> nix::Result<Vec<Semaphore>> {
    let id = row.object.id;
    let values = sys::values(id, row.count)?;
    let numbered = (0..row.count).zip(values);
    numbered.map(|(number, value)| Ok(Semaphore { value, last_user: sys::last_user(id, number)? })).collect()
}

pub(super) fn preflight(here: Here, ipc: &Ipc, refusals: &mut Refusals) -> Result<()> {
    let rows = all()?;
    for set in &ipc.semaphore_sets {
        let id = set.object.id;
        let count = |id| rows.iter().find(|row| row.object.id == id).map(|row| usize::from(row.count));
        let fits = |object: &images::sysv::Object| count(object.id) == Some(set.semaphores.len());
        let obstacle = here.obstacle(&set.object, rows.iter().map(|row| &row.object), fits);
        if let Some((reason, other)) = obstacle {
            objects::refuse(name(id), reason, &objects::remove_it("-s", other), refusals);
        } else if count(id).is_some() {
            undo::restore::preflight(ipc, set, refusals)?;
        }
    }
    Ok(())
}

pub(super) fn put_back(sets: &[SemaphoreSet], made: &mut Made) -> Result<()> {
    if sets.is_empty() {
        return Ok(());
    }
    let rows = all()?;
    for set in sets.iter().filter(|set| !rows.iter().any(|row| row.object.id == set.object.id)) {
        make(set, made).with_context(|| name(set.object.id))?;
    }
    Ok(())
}

const KIND: Kind =
    Kind { name: "sem", make_any: || sys::make(libc::IPC_PRIVATE, 1, 0, SELF), remove: sys::remove };

fn make(set: &SemaphoreSet, made: &mut Made) -> Result<()> {
    let object = &set.object;
    let creator = (object.creator_uid, object.creator_gid);
    // Nobody finds it by its key before it is complete.
    let make = || sys::make(object.key, set.semaphores.len(), 0, creator);
    objects::make_under_id(&KIND, object.id, make)?;
    made.sets.push(object.id);
    let users: BTreeSet<Pid> = set.semaphores.iter().map(|semaphore| semaphore.last_user).collect();
    for user in users {
        let set_values = || set_values(set, user);
        if user == 0 {
            set_values().context("set its values")?;
        } else {
            in_process(user, 0, set_values).context("set its values")?;
        }
    }
    sys::set_owner(object.id, (object.uid, object.gid), object.mode & PERMISSIONS).context("owner")
}

/// Sets the values that this user set last, which has it noted as that. If the set was used, it does something with one of them, which has the time noted.
fn set_values(set: &SemaphoreSet, user: Pid) -> nix::Result<()> {
    let own = |semaphore: &Semaphore| semaphore.last_user == user;
    let is_to_note = set.was_used && (user != 0 || set.semaphores.iter().all(own));
    let mut used = None;
    for (number, semaphore) in (0..).zip(&set.semaphores).filter(|(_, semaphore)| own(semaphore)) {
        if user != 0 || semaphore.value != 0 {
            sys::set_value(set.object.id, number, semaphore.value)?;
        }
        used = is_to_note.then_some((number, semaphore.value));
    }
    let Some((number, value)) = used else { return Ok(()) };
    let there_and_back = if value == 0 { [1, -1] } else { [-1, 1] };
    let flags = i16::try_from(libc::IPC_NOWAIT).unwrap_or(0);
    let mut operations =
        there_and_back.map(|change| libc::sembuf { sem_num: number, sem_op: change, sem_flg: flags });
    sys::operate(set.object.id, &mut operations)
}

#[cfg(test)]
mod tests {
    use super::*;
    use images::sysv::Object;

    #[test]
    fn what_may_have_changed_is_asked_again() {
        let object = Object { id: -1, key: 0, mode: 0o600, uid: 0, gid: 0, creator_uid: 0, creator_gid: 0 };
        let row = Row { object, count: 1, operated_at: 90, changed_at: 80 };
        let before = vec![Semaphore { value: 3, last_user: 7 }];
        let answer = |since, now, row: &Row| {
            let before = vec![(Row { operated_at: 90, ..row.clone() }, before.clone())];
            Sets { before, since, now: None }.semaphores(row, now)
        };
        // There is no set with such an id.
        let asked = Err(Errno::EINVAL);
        assert_eq!(answer(91, 91, &row), Ok(before.clone()));
        assert_eq!(answer(90, 91, &row), asked);
        assert_eq!(answer(91, 90, &row), asked);
        assert_eq!(answer(91, 92, &Row { changed_at: 91, ..row.clone() }), asked);
        assert_eq!(answer(91, 92, &Row { operated_at: 89, ..row }), asked);
    }
}
