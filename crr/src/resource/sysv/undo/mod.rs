//! What a task would have undone at its end (SEM_UNDO): lists of sums that the kernel adds to semaphores when the last user of a list ends.
//!
//! The kernel shows them nowhere. But it refuses an operation that would take a sum out of its range, and an operation that fails changes
//! nothing. So a task is asked to make operations that cannot succeed ([`Question`]): they take the value to 0, then the sum as far up or down as it
//! can go for a given result, and at last ask for more than is there. ERANGE says that the sum is beyond that result; EAGAIN that
//! it is not, or that somebody has changed the value meanwhile.
//!
//! What is in a list is taken out of it before the kill ([`disarm`]), and put into that of the restored task ([`restore`]); by operations that leave the value
//! as it is. So a semaphore that a task holds stays taken while the task is gone.

pub(crate) mod disarm;
mod operations;
pub(crate) mod restore;
mod search;

use super::semaphores::{self, Sets};
use crate::proc::sysvipc::SemaphoreSet as Row;
use crate::ptrace::{Patience, Stopped};
use crate::refusal::{Refusal, Refusals};
use crate::remote::{Arg, Batch, Call, Executor, Handle, Target};
use crate::resource::Refuse;
use crate::resource::tree::Strangers;
use crate::sys::kcmp::{Kind, kcmp};
use crate::sys::sysv::semaphores as sys;
use anyhow::{Context, Result, bail};
use images::Pid;
use images::sysv::{SemaphoreSet, UndoList, UndoSum};
use nix::errno::Errno;
pub(crate) use operations::Operations;
use search::{Question, Search};
use std::cmp::Ordering;

/// Calls that are made at once.
const AT_ONCE: usize = 250;
/// How often a value may change under the question.
const TRIES: u32 = 100;

/// The lists of a tree, as far as its tasks have been asked.
#[derive(Debug, Default)]
pub(crate) struct Lists {
    /// A thread for each list, and its task, in the kernel's order.
    seen: Vec<(Pid, Pid)>,
    /// Those that are not empty.
    found: Vec<UndoList>,
    /// How their tasks make calls.
    ways: Vec<Target>,
    apart: Vec<Pid>,
}

/// What a tree has of lists.
#[derive(Debug, Default)]
pub(crate) struct Found {
    pub(crate) lists: Vec<UndoList>,
    pub(crate) apart: Vec<Pid>,
    /// For each of the lists, how its task makes calls.
    pub(crate) ways: Vec<Target>,
}

impl Found {
    /// Leaves out the sets that are not among these, which have gone since: nothing is undone there.
    pub(in crate::resource::sysv) fn keep_to(&mut self, sets: &[SemaphoreSet]) {
        let both = self.lists.drain(..).zip(self.ways.drain(..));
        let kept = both.filter_map(|(mut list, way)| {
            list.sums.retain(|sum| sets.iter().any(|set| set.object.id == sum.set));
            (!list.sums.is_empty()).then_some((list, way))
        });
        let (lists, ways) = kept.unzip();
        (self.lists, self.ways) = (lists, ways);
    }
}

impl Lists {
    /// Finds what the threads of a task have to be undone.
    ///
    /// # Errors
    /// If one is gone, or cannot be asked.
    pub(crate) fn find(
        &mut self,
        sets: &mut Sets,
        executor: &Executor,
        threads: &mut [Stopped],
        refuse: &mut Refuse<'_>,
        patience: &Patience,
    ) -> Result<()> {
        // Nobody has anything to undo at a set that nobody has ever operated on.
        let mut sets = sets.now()?.iter().filter(|set| set.operated_at != 0).peekable();
        if sets.peek().is_none() && threads.len() < 2 {
            return Ok(());
        }
        // A thread without a list. It gets one whenever it makes another thread.
        sys::forget_undo().context("unshare")?;
        let none = nix::unistd::gettid().as_raw();
        let mut common = None;
        for (index, thread) in threads.iter_mut().enumerate() {
            let tid = thread.tid();
            let is_common = match common {
                Some(deputy) => is_same(tid, deputy)?,
                None => false,
            };
            if is_common {
                continue;
            }
            if index > 0 {
                self.apart.push(tid);
            }
            // Who has never had anything to undo, nor made a thread, has no list: nor one in common with others like it.
            if is_same(tid, none)? {
                continue;
            }
            if index == 0 {
                common = Some(tid);
            }
            if !self.note(tid, refuse)? {
                continue;
            }
            let mut sums = Vec::new();
            for set in sets.clone() {
                let of_set = sums_of_set(set, executor, thread, refuse, patience);
                sums.extend(of_set.with_context(|| semaphores::name(set.object.id))?);
            }
            if !sums.is_empty() {
                sums.sort_unstable_by_key(|sum: &UndoSum| (sum.set, sum.semaphore));
                self.found.push(UndoList { task: refuse.pid(), thread: tid, sums });
                self.ways.push(executor.target().clone());
            }
        }
        Ok(())
    }

    /// Notes the list of a thread. One that was seen before belongs to two tasks, or to threads apart from the rest of theirs: it cannot be put back, and is refused.
    fn note(&mut self, tid: Pid, refuse: &mut Refuse<'_>) -> Result<bool> {
        let mut failure = None;
        let place = self.seen.binary_search_by(|&(seen, _)| {
            kcmp(Kind::Undo, (seen, 0), (tid, 0)).unwrap_or_else(|errno| {
                failure = Some(errno);
                Ordering::Equal
            })
        });
        if let Some(errno) = failure {
            return Err(errno).context("kcmp");
        }
        match place {
            Ok(place) => {
                let (thread, task) = self.seen[place];
                let reason = format!(
                    "has a list of semaphores to undo (SEM_UNDO) with thread {thread} of task {task}"
                );
                let hint = "end one of them before the dump, or have it leave the list (unshare)";
                refuse.with_hint(format!("thread {tid}"), reason, hint);
                Ok(false)
            }
            Err(place) => {
                self.seen.insert(place, (tid, refuse.pid()));
                Ok(true)
            }
        }
    }

    /// What was found. A list that somebody outside of the tree has too is refused: it would be two after a restore.
    ///
    /// # Errors
    /// If kcmp(2) fails.
    pub(crate) fn finish(self, strangers: &Strangers, refusals: &mut Refusals) -> Result<Found> {
        let Self { mut found, ways, mut apart, .. } = self;
        for list in &found {
            for (stranger, deputy) in strangers.deputies() {
                match is_same(list.thread, deputy) {
                    Ok(false) => {}
                    Ok(true) => refusals.push(Refusal {
                        task: None,
                        object: format!("thread {}", list.thread),
                        reason: format!("has a list of semaphores to undo (SEM_UNDO) with task {stranger}, outside of the tree"),
                        hint: Some("dump a tree that has both, or have one of them leave the list (unshare)".to_owned()),
                    }),
                    Err(e) => match e.downcast_ref() {
                        // Gone, or not for us to look at: then it has more rights than the tree.
                        Some(Errno::ESRCH | Errno::EPERM) => {}
                        _ => return Err(e),
                    },
                }
            }
        }
        apart.sort_unstable();
        let mut both: Vec<(UndoList, Target)> = found.drain(..).zip(ways).collect();
        both.sort_unstable_by_key(|(list, _)| list.thread);
        let (lists, ways) = both.into_iter().unzip();
        Ok(Found { lists, apart, ways })
    }
}

fn is_same(tid: Pid, other: Pid) -> Result<bool> {
    Ok(kcmp(Kind::Undo, (tid, 0), (other, 0)).context("kcmp")? == Ordering::Equal)
}

/// What a thread would have undone at the semaphores of a set.
fn sums_of_set(
    set: &Row,
    executor: &Executor,
    thread: &mut Stopped,
    refuse: &mut Refuse<'_>,
    patience: &Patience,
) -> Result<Vec<UndoSum>> {
    let id = set.object.id;
    let mut open: Vec<Search> = (0..set.count).map(Search::new).collect();
    let mut sums = Vec::new();
    let mut tries = 0;
    while !open.is_empty() {
        let (values, is_readable) = match sys::values(id, set.count) {
            Err(Errno::EINVAL | Errno::EIDRM) => return Ok(Vec::new()),
            // Without privileges. The task may not use most such sets either, which it says whatever the value.
            Err(Errno::EACCES) => (vec![0; usize::from(set.count)], false),
            values => (values.context("GETALL")?, true),
        };
        let mut has_learnt = false;
        let most = open.iter().map(|search| search.questions().len()).max().unwrap_or(1);
        for some in open.chunks_mut(AT_ONCE / most) {
            match ask(id, some, &values, executor, thread, patience)? {
                Answer::Learnt(more) => has_learnt |= more,
                // It has gone meanwhile.
                Answer::Error(Errno::EINVAL | Errno::EIDRM) => return Ok(Vec::new()),
                Answer::Error(Errno::EACCES) => {
                    let reason = "may be to be undone (SEM_UNDO), and the task may not use it any more";
                    for number in 0..set.count {
                        if sys::last_user(id, number) == Ok(refuse.pid()) {
                            name(id, number, reason, refuse);
                        }
                    }
                    return Ok(Vec::new());
                }
                Answer::Error(errno) => bail!("semop: {errno}"),
            }
        }
        open.retain(|search| {
            let Some(sum) = search.sum() else { return true };
            if sum != 0 {
                sums.push(UndoSum { set: id, semaphore: search.number, sum });
            }
            false
        });
        if !is_readable && (!sums.is_empty() || !open.is_empty()) {
            let reason = "may be to be undone (SEM_UNDO), and may not be read by crr";
            refuse.with_hint(semaphores::name(id), reason, "run crr as root");
            return Ok(Vec::new());
        }
        tries = if has_learnt { 0 } else { tries + 1 };
        if tries == TRIES {
            let reason = "changes all the time, and does not tell whether it is to be undone (SEM_UNDO)";
            open.iter().for_each(|search| name(id, search.number, reason, refuse));
            return Ok(Vec::new());
        }
    }
    Ok(sums)
}

fn name(id: i32, number: u16, reason: &str, refuse: &mut Refuse<'_>) {
    let object = format!("System V semaphore {number} of set {id}");
    refuse.with_hint(object, reason, "have the program put its value back itself before the dump");
}

/// What comes of a round of questions.
enum Answer {
    /// Whether more is known.
    Learnt(bool),
    /// There is no answer to be had.
    Error(Errno),
}

/// Asks about several semaphores of a set.
fn ask(
    id: i32,
    searches: &mut [Search],
    values: &[u16],
    executor: &Executor,
    thread: &mut Stopped,
    patience: &Patience,
) -> Result<Answer> {
    let mut batch = executor.batch(thread)?;
    let mut asked: Vec<(usize, Question, Handle)> = Vec::new();
    for (index, search) in searches.iter().enumerate() {
        for question in search.questions() {
            let operations = question.operations(search.number, values[usize::from(search.number)]);
            asked.push((index, question, operate(&mut batch, id, &operations)));
        }
    }
    let reply = executor.run(thread, &batch, patience)?;
    let mut has_learnt = false;
    for (index, question, handle) in asked {
        match reply.result(handle) {
            Err(Errno::ERANGE) => has_learnt |= searches[index].learn(question),
            Err(Errno::EAGAIN) => {}
            Err(errno) => return Ok(Answer::Error(errno)),
            Ok(_) => bail!("semop: has done what cannot be done"),
        }
    }
    Ok(Answer::Learnt(has_learnt))
}

/// The call of a batch that operates on a set.
fn operate(batch: &mut Batch, id: i32, operations: &Operations) -> Handle {
    let data = batch.data(&operations.bytes());
    let args = [Arg::Value(u64::from(id.cast_unsigned())), Arg::Out(data), Arg::Value(operations.count())];
    batch.call(Call::Semtimedop, &args)
}
