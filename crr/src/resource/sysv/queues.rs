//! Message queues.

use super::objects::{self, Here, Kind, Made, PERMISSIONS};
use crate::proc::sysvipc::{self, Queue as Row};
use crate::refusal::Refusals;
use crate::resource::unix_socket::maker::in_process;
use crate::sys::sysv::{SELF, queues as sys};
use anyhow::{Context, Result};
use images::Pid;
use images::sysv::{Message, Queue};
use nix::errno::Errno;
use std::collections::{BTreeSet, HashSet};

/// All queues that there are.
fn all() -> Result<Vec<Row>> {
    const FILE: &str = "/proc/sysvipc/msg";
    if !sys::are_any() {
        return Ok(Vec::new());
    }
    let text = std::fs::read(FILE).context(FILE)?;
    Ok(sysvipc::queues(&text)?)
}

fn name(id: i32) -> String {
    format!("System V message queue {id}")
}

/// A limit of this IPC namespace.
fn limit(name: &str) -> Result<u64> {
    let path = format!("/proc/sys/kernel/{name}");
    let text = std::fs::read_to_string(&path).with_context(|| path.clone())?;
    text.trim().parse().context(path)
}

/// Those that a tree uses, or waits at.
pub(super) fn dump(
    tree: &HashSet<Pid>,
    waited_at: &BTreeSet<i32>,
    refusals: &mut Refusals,
) -> Result<Vec<Queue>> {
    let mut found = Vec::new();
    for row in all()? {
        let id = row.object.id;
        let users = BTreeSet::from([row.last_sender, row.last_receiver]);
        if !objects::is_used(&name(id), &users, tree, waited_at.contains(&id)) {
            continue;
        }
        match look(&row).with_context(|| name(id))? {
            Look::Queue { capacity, messages } => found.push(Queue {
                object: row.object,
                capacity,
                last_sender: row.last_sender,
                last_receiver: row.last_receiver,
                messages,
            }),
            Look::TooLong => {
                let reason = "has a message that is longer than kernel.msgmax is now".to_owned();
                objects::refuse(name(id), reason, "raise kernel.msgmax", refusals);
            }
            Look::Unreadable => objects::refuse_unreadable(name(id), refusals),
            Look::Gone => {}
        }
    }
    found.sort_unstable_by_key(|queue| queue.object.id);
    Ok(found)
}

/// What a look into a queue shows.
enum Look {
    Queue {
        capacity: u64,
        messages: Vec<Message>,
    },
    /// A message is longer than the kernel would copy.
    TooLong,
    /// To crr, without privileges.
    Unreadable,
    /// It has gone meanwhile.
    Gone,
}

fn look(row: &Row) -> Result<Look> {
    let id = row.object.id;
    let capacity = match sys::capacity(id) {
        Err(Errno::EINVAL | Errno::EIDRM) => return Ok(Look::Gone),
        Err(Errno::EACCES) => return Ok(Look::Unreadable),
        capacity => capacity.context("IPC_STAT")?,
    };
    let mut messages = Vec::new();
    if row.count == 0 {
        return Ok(Look::Queue { capacity, messages });
    }
    let mut buffer = sys::Buffer::new(usize::try_from(limit("msgmax")?)?);
    loop {
        match sys::peek(id, messages.len() as u64, &mut buffer) {
            Ok((kind, bytes)) => messages.push(Message { kind, bytes }),
            Err(Errno::ENOMSG) => return Ok(Look::Queue { capacity, messages }),
            Err(Errno::EIDRM) => return Ok(Look::Gone),
            Err(Errno::EINVAL) if sys::capacity(id).is_err() => return Ok(Look::Gone),
            Err(Errno::EINVAL | Errno::E2BIG) => return Ok(Look::TooLong),
            Err(Errno::EACCES) => return Ok(Look::Unreadable),
            Err(errno) => return Err(errno).context("MSG_COPY (needs CONFIG_CHECKPOINT_RESTORE)"),
        }
    }
}

/// The room that a queue needs while it is filled: it may have been made smaller than what was in it (ss_add and msg_fits_inqueue(), ipc/msg.c).
fn room(queue: &Queue) -> u64 {
    let bytes: usize = queue.messages.iter().map(|message| message.bytes.len()).sum();
    queue.capacity.max(bytes as u64).max(queue.messages.len() as u64).max(1)
}

pub(super) fn preflight(here: Here, queues: &[Queue], refusals: &mut Refusals) -> Result<()> {
    let rows = all()?;
    let (longest, largest) = (limit("msgmax")?, limit("msgmnb")?);
    for queue in queues {
        let id = queue.object.id;
        let there = rows.iter().map(|row| &row.object);
        if let Some((reason, other)) = here.obstacle(&queue.object, there.clone(), |_| true) {
            objects::refuse(name(id), reason, &objects::remove_it("-q", other), refusals);
        }
        if there.clone().any(|object| object.id == id) {
            continue;
        }
        let text = queue.messages.iter().map(|message| message.bytes.len()).max().unwrap_or(0) as u64;
        if text > longest {
            let reason = format!("has a message of {text} bytes, and kernel.msgmax is {longest}");
            objects::refuse(name(id), reason, "raise kernel.msgmax", refusals);
        }
        if room(queue) > largest && !here.may_exceed {
            let reason = format!(
                "takes {} bytes, kernel.msgmnb is {largest}, and CAP_SYS_RESOURCE is missing",
                room(queue)
            );
            objects::refuse(name(id), reason, "raise kernel.msgmnb", refusals);
        }
    }
    Ok(())
}

pub(super) fn put_back(queues: &[Queue], made: &mut Made) -> Result<()> {
    if queues.is_empty() {
        return Ok(());
    }
    let rows = all()?;
    for queue in queues.iter().filter(|queue| !rows.iter().any(|row| row.object.id == queue.object.id)) {
        make(queue, made).with_context(|| name(queue.object.id))?;
    }
    Ok(())
}

const KIND: Kind =
    Kind { name: "msg", make_any: || sys::make(libc::IPC_PRIVATE, 0, SELF), remove: sys::remove };

fn make(queue: &Queue, made: &mut Made) -> Result<()> {
    let object = &queue.object;
    let id = object.id;
    let creator = (object.creator_uid, object.creator_gid);
    // Nobody finds it by its key before it is complete.
    objects::make_under_id(&KIND, id, || sys::make(object.key, 0, creator))?;
    made.queues.push(id);
    let owner = (object.uid, object.gid);
    sys::set(id, owner, 0, room(queue)).context("its size")?;
    if queue.last_receiver != 0 {
        // So that there is something to be received.
        let message = sys::Outgoing::new(1, &[]);
        by(queue.last_sender, || sys::send(id, &message)).context("send a message")?;
        by(queue.last_receiver, || sys::receive_empty(id)).context("receive a message")?;
    }
    if !queue.messages.is_empty() {
        let outgoing = |message: &Message| sys::Outgoing::new(message.kind, &message.bytes);
        let messages: Vec<_> = queue.messages.iter().map(outgoing).collect();
        let send_all = || messages.iter().try_for_each(|message| sys::send(id, message));
        by(queue.last_sender, send_all).context("send its messages")?;
    }
    sys::set(id, owner, object.mode & PERMISSIONS, queue.capacity).context("owner")
}

/// Does something as the process that is to be noted for it; 0 stands for none that can be seen.
fn by(who: Pid, act: impl FnOnce() -> nix::Result<()>) -> Result<()> {
    if who == 0 { Ok(act()?) } else { in_process(who, 0, act).map(drop) }
}
