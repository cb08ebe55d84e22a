//! Files that stand for tasks: that these are of the tree, and that nobody needs the files before.

use super::{Check, ensure, inside};
use crate::resource::zombie::is_deadly;
use crate::sys::pidfd::THREAD;
use images::DescriptionId;
use images::file::{Files, Target};
use images::late::Process;
use images::task::{End, Tree};

pub(super) fn check_process(process: Process) -> Check {
    if let Process::Gone { end: Some(End::Killed(signal)), .. } = process {
        ensure!(is_deadly(signal), "a process that was killed by signal {signal}");
    }
    Ok(())
}

/// What takes the tasks to know.
pub(super) fn check_with(tree: &Tree, files: &Files) -> Check {
    for (id, description) in (0..).map(DescriptionId).zip(&files.descriptions) {
        if let Target::Pidfd(Process::InTree(pid)) = description.target {
            let is_thread = description.flags & THREAD != 0;
            ensure!(is_known(tree, pid, is_thread), "{id}: of task {pid}, which is not in the tree");
        }
    }
    for (index, socket) in files.unix_sockets.iter().enumerate() {
        for id in socket.queue.iter().flat_map(|message| &message.descriptions) {
            let late = files.descriptions.get(id.0 as usize).is_some_and(|file| file.target.is_late());
            ensure!(
                !late,
                "{}",
                inside(format_args!("socket#{index}"))(format!(
                    "{id} stands for a task, and is in its queue"
                ))
            );
        }
    }
    Ok(())
}

/// Whether a process is in the tree, or any thread of one.
fn is_known(tree: &Tree, pid: images::Pid, thread: bool) -> bool {
    let of_task = |task: &images::task::Task| {
        task.pid == pid || thread && task.threads.iter().any(|thread| thread.tid == pid)
    };
    tree.tasks.iter().any(of_task) || tree.zombies.iter().any(|zombie| zombie.pid == pid)
}
