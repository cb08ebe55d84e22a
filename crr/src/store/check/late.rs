//! Files that stand for tasks: that these are of the tree, and that nobody needs the files before.

use super::{Check, ensure, inside};
use crate::resource::task_file;
use crate::resource::zombie::is_deadly;
use crate::sys::pidfd::THREAD;
use images::DescriptionId;
use images::file::{Files, Target};
use images::late::Process;
use images::task::{End, Tree};

/// The longest name in procfs is far from that.
const NAME_MAX: usize = 1024;

pub(super) fn check_target(target: &Target, files: &Files) -> Check {
    match *target {
        Target::Pidfd(Process::Gone { end: Some(End::Killed(signal)), .. }) => {
            ensure!(is_deadly(signal), "a process that was killed by signal {signal}");
        }
        Target::TaskFile(index) => {
            let task_files = files.task_files.len();
            ensure!((index as usize) < task_files, "task file#{index} of {task_files} task files");
        }
        _ => {}
    }
    Ok(())
}

fn check_name(name: &[u8]) -> Check {
    ensure!(!name.contains(&0) && name.len() < NAME_MAX, "is no name");
    let mut parts = name.split(|&byte| byte == b'/');
    let below = name.is_empty() || parts.all(|part| ![&b""[..], b".", b".."].contains(&part));
    ensure!(below, "leads elsewhere");
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
    for (index, file) in files.task_files.iter().enumerate() {
        ensure!(is_absolute(&file.procfs), "task file#{index}: is in no procfs");
        check_name(&file.name).map_err(inside(format_args!("task file#{index}")))?;
        let known = task_file::is_known(file, &tree.tasks, &tree.zombies);
        ensure!(known, "task file#{index}: of task {}, or a thread, which is not in the tree", file.pid);
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

fn is_absolute(path: &[u8]) -> bool {
    path.first() == Some(&b'/') && !path.contains(&0)
}

/// Whether a process is in the tree, or any thread of one.
fn is_known(tree: &Tree, pid: images::Pid, thread: bool) -> bool {
    let of_task = |task: &images::task::Task| {
        task.pid == pid || thread && task.threads.iter().any(|thread| thread.tid == pid)
    };
    tree.tasks.iter().any(of_task) || tree.zombies.iter().any(|zombie| zombie.pid == pid)
}
