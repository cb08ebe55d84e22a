//! Tasks that a program clones, as ops: what they do in place of a forked child of the coordinator, and all that their
//! own plan says.
//!
//! The order is that of a forked child: session, own children, process group. The children come first in the plan of
//! their maker, when its address space holds no more than the hole; those that share its pages come when these are there
//! ([`super::cow`]).

use super::cow::Base;
use super::family::Making;
use super::{LATE_PERSONALITY, Need, Planner};
use crate::op::birth::Birth;
use crate::op::{self, Op};
use alloc::collections::BTreeMap;
use alloc::vec::Vec;
use images::file::FdEntry;
use images::sharing::Object;
use images::task::Task;

/// Stacks in the hole: of the address space that is being planned, and of all that are copies of it.
#[derive(Debug, Default)]
pub(super) struct Stacks {
    /// The next that is free.
    pub(super) next: u32,
}

fn push(ops: &mut Vec<u8>, birth: &Birth<'_>) {
    op::push(ops, &Op::Birth(*birth));
}

impl Planner<'_> {
    /// What a task does first: where others use what it has, how they agree, and its children but for those that share its
    /// pages.
    pub(super) fn begin(&mut self, ops: &mut Vec<u8>, index: usize, stacks: &mut Stacks, base: &Base) {
        if let Some((word, users)) = self.table(index) {
            push(ops, &Birth::Table { word, users });
        }
        for child in self.forest.clones_with(index, false) {
            self.clone_task(ops, child, stacks, base);
        }
    }

    /// All of a task's children are there.
    pub(super) fn join_group(&self, ops: &mut Vec<u8>, index: usize) {
        if self.forest.joins_late(index) {
            let [led, _, cloned] = self.forest.gatherings;
            push(ops, &Birth::Group { pgid: self.forest.group(index), led, cloned });
        }
    }

    /// A task that is cloned when the address space of its maker holds the base.
    pub(super) fn clone_task(&mut self, ops: &mut Vec<u8>, index: usize, stacks: &mut Stacks, base: &Base) {
        let Making::Cloned { by, flags, exec, .. } = self.forest.makings[index] else { return };
        let task = &self.forest.tasks[index];
        let stack = stacks.next;
        let mut own = Vec::new();
        self.settle(&mut own, task, by);
        if exec {
            let program = self.slots.slot(Need::Program(index));
            let socket = self.slots.slot(Need::Socket(index));
            let (soft, hard) = self.stack_limit(task);
            if (soft, hard) != self.stack_limit(&self.forest.tasks[self.members[0]]) {
                op::push(&mut own, &Op::Limit { resource: super::STACK, soft, hard });
            }
            push(&mut own, &Birth::Exec { program, socket });
        } else {
            self.members.push(index);
            if task.shares.memory.is_some() {
                stacks.next += 1;
                self.task(&mut own, index, stacks, base);
            } else {
                // A copy of the address space: what is used there is free here again.
                let mut copy = Stacks { next: stack + 1 };
                self.task(&mut own, index, &mut copy, base);
            }
        }
        self.stacks = self.stacks.max(stack + 1);
        let exit_signal = u32::from(task.exit_signal);
        push(ops, &Birth::Task { pid: task.pid, parent: task.ppid, flags, exit_signal, stack, ops: &own });
    }

    /// What a forked child of the coordinator does before it execs. The new task has what its maker has.
    fn settle(&mut self, ops: &mut Vec<u8>, task: &Task, by: usize) {
        let maker = &self.forest.tasks[by];
        let session = task.sid == task.pid;
        let controlled = session && self.forest.controlled.contains(&task.sid);
        let terminal = controlled.then(|| self.slots.slot(Need::Terminal(task.sid)));
        push(ops, &Birth::Lead { session, group: task.pgid == task.pid && !session, terminal });
        if task.shares.files.is_none() {
            self.files(ops, &task.fds, self.forest.fds_of(by));
        }
        if task.shares.directories.is_none() {
            if task.root != maker.root {
                let root = self.slots.slot(Need::Directory(task.root));
                push(ops, &Birth::Root(root));
            }
            let directory = self.slots.slot(Need::Directory(task.cwd));
            push(ops, &Birth::Directory(directory));
            push(ops, &Birth::Umask(task.umask));
        }
        if (task.personality ^ maker.personality) & !LATE_PERSONALITY != 0 {
            op::push(ops, &Op::Personality(task.personality & !LATE_PERSONALITY));
        }
    }

    /// Makes a copy of the maker's file table the task's own.
    fn files(&mut self, ops: &mut Vec<u8>, wanted: &[FdEntry], inherited: &[FdEntry]) {
        let there: BTreeMap<u32, &FdEntry> = inherited.iter().map(|entry| (entry.fd.0, entry)).collect();
        let stays: BTreeMap<u32, &FdEntry> = wanted.iter().map(|entry| (entry.fd.0, entry)).collect();
        for fd in there.keys().filter(|fd| !stays.contains_key(fd)) {
            push(ops, &Birth::Close(*fd));
        }
        for (&fd, entry) in &stays {
            match there.get(&fd) {
                // The maker, or one who shares its table, may have set the flag by now.
                Some(same) if same.description == entry.description => {
                    if same.close_on_exec {
                        push(ops, &Birth::Keep(fd));
                    }
                }
                _ => {
                    let file = self.slots.slot(Need::Description(entry.description));
                    push(ops, &Birth::Place { file, fd });
                }
            }
        }
    }

    /// The word that counts the users of a task's file table, and how many there are, if it is not the only one.
    fn table(&mut self, index: usize) -> Option<(u32, u32)> {
        let users = self.forest.users(index, Object::Files);
        (users > 1).then(|| (self.word(self.forest.holder(index, Object::Files), Object::Files), users))
    }

    /// The word by which the tasks in an address space come to terms, and how many others there are, if there are any.
    pub(super) fn mates(&mut self, index: usize) -> Option<(u32, u32)> {
        let users = self.forest.users(index, Object::Memory);
        (users > 1).then(|| (self.word(self.forest.holder(index, Object::Memory), Object::Memory), users - 1))
    }

    /// The word of an object, by the task that holds it.
    fn word(&mut self, holder: usize, object: Object) -> u32 {
        let known = self.words.iter().position(|&word| word == (holder, object));
        let at = known.unwrap_or_else(|| {
            self.words.push((holder, object));
            self.words.len() - 1
        });
        u32::try_from(at).unwrap_or(u32::MAX)
    }
}
