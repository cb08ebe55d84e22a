//! Semaphores and message queues of System V.

use super::table::Table;
use crate::progress::bytes;
use images::sysv::{Ipc, Object};

pub(super) fn ipc(ipc: &Ipc) -> String {
    let mut table = Table::new(["SYSTEM V", "KEY", "OWNER", "CONTENTS"]);
    let mut row = |what: &str, object: &Object, contents| {
        let key = if object.key == 0 { "-".to_owned() } else { format!("{:#010x}", object.key) };
        table.row([format!("{what} {}", object.id), key, format!("{}:{}", object.uid, object.gid), contents]);
    };
    for set in &ipc.semaphore_sets {
        let sums = ipc.undo_lists.iter().flat_map(|list| &list.sums);
        let undo = match sums.filter(|sum| sum.set == set.object.id).count() {
            0 => String::new(),
            count => format!(", {count} to undo"),
        };
        row("semaphores", &set.object, format!("{} semaphores{undo}", set.semaphores.len()));
    }
    for queue in &ipc.queues {
        let size: usize = queue.messages.iter().map(|message| message.bytes.len()).sum();
        row("queue", &queue.object, format!("{} messages, {}", queue.messages.len(), bytes(size as u64)));
    }
    table.to_string()
}
