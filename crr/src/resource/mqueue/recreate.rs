//! Queues at the restore: those that are there are opened by name, those that are gone or have no name are made again, with what was in them.

use super::{contents, open_by_name};
use crate::refusal::{Refusal, Refusals};
use crate::resource::creds::CAP_SYS_RESOURCE;
use crate::resource::limits::Raised;
use crate::sys::mqueue as sys;
use anyhow::{Context, Result};
use images::file::{Description, Files, Target};
use images::mqueue::MessageQueue;
use nix::errno::Errno;
use nix::sys::resource::{Resource, getrlimit};
use nix::sys::stat::{Mode, fchmod, fstat};
use nix::unistd::{Gid, Uid, Whence, fchown, lseek64};
use std::collections::BTreeMap;
use std::ffi::CString;
use std::os::fd::{AsFd, OwnedFd};

fn name(queue: &MessageQueue) -> String {
    format!("message queue /{}", String::from_utf8_lossy(&queue.name))
}

/// What keeps queues from being there again: those whose messages are not known are to be there, and as they were made; and what has to be
/// made must be within the limits of the namespace (mq_attr_ok(), ipc/mqueue.c) and of crr ([`counted`]).
///
/// # Errors
/// If `/proc` does not tell these.
pub(crate) fn preflight(refusals: &mut Refusals, files: &Files, capabilities: u64) -> Result<()> {
    let may_exceed = capabilities & CAP_SYS_RESOURCE != 0;
    let mut to_make = Vec::new();
    for (index, queue) in files.message_queues.iter().enumerate() {
        let MessageQueue { name: short, messages, size, .. } = queue;
        let mut refuse = |reason, hint| {
            refusals.push(Refusal { task: None, object: name(queue), reason, hint: Some(hint) });
        };
        let make = format!("make it, for {messages} messages of {size} bytes");
        if !queue.unlinked {
            let found = open_by_name(short, libc::O_RDONLY);
            match found.and_then(|found| Ok((sys::limits(found.as_fd())?, fstat(&found)?.st_mode & 0o7777))) {
                Ok((limits, 0)) if limits == [*messages, *size] && queue.mode != 0 => {
                    let reason = "has no permissions, as one that a killed restore has left half made";
                    refuse(reason.to_owned(), "remove it".to_owned());
                    continue;
                }
                Ok((limits, _)) if limits == [*messages, *size] => {
                    let mut flags = descriptions_of(files, index).map(|(_, description)| description.flags);
                    if flags.any(|flags| open_by_name(short, flags.cast_signed()).is_err()) {
                        let reason = "may not be opened by crr as the tree has it open";
                        refuse(reason.to_owned(), "run crr as root".to_owned());
                    }
                    continue;
                }
                Ok(([messages, size], _)) => {
                    refuse(format!("takes {messages} messages of {size} bytes now"), make);
                    continue;
                }
                Err(Errno::ENOENT) if queue.contents.is_some() => {}
                Err(errno) => {
                    refuse(errno.desc().to_lowercase(), make);
                    continue;
                }
            }
        }
        to_make.push(queue);
        if may_exceed {
            continue;
        }
        for (wanted, limit) in [(*messages, "msg_max"), (*size, "msgsize_max")] {
            let path = format!("/proc/sys/fs/mqueue/{limit}");
            let text = std::fs::read_to_string(&path).with_context(|| path.clone())?;
            let highest: u64 = text.trim().parse().context(path)?;
            if wanted > highest {
                let reason = format!(
                    "was made for {messages} messages of {size} bytes, fs.mqueue.{limit} is {highest}, and \
                     CAP_SYS_RESOURCE is missing"
                );
                refuse(reason, format!("raise fs.mqueue.{limit}"));
            }
        }
    }
    if may_exceed {
        return Ok(());
    }
    let (_, hard) = getrlimit(Resource::RLIMIT_MSGQUEUE).context("getrlimit")?;
    let bytes = to_make.iter().map(|queue| counted(queue)).fold(0, u64::saturating_add);
    if bytes > hard {
        let object = to_make.into_iter().map(name).collect::<Vec<_>>().join(", ");
        let reason = format!(
            "takes {bytes} bytes, crr may have {hard} (the hard limit of RLIMIT_MSGQUEUE), and CAP_SYS_RESOURCE is \
             missing"
        );
        let hint = Some("raise the hard limit of the shell that runs crr (ulimit -q)".to_owned());
        refusals.push(Refusal { task: None, object, reason, hint });
    }
    Ok(())
}

/// What the kernel counts of a queue for RLIMIT_MSGQUEUE of its maker, whatever the privileges (mqueue_get_inode(), ipc/mqueue.c): its messages, with a
/// header each (struct msg_msg), and a node for each priority that they can have (struct posix_msg_tree_node).
fn counted(queue: &MessageQueue) -> u64 {
    const HEADER: u64 = 48;
    const NODE: u64 = 48;
    /// MQ_PRIO_MAX.
    const PRIORITIES: u64 = 32768;
    let nodes = queue.messages.min(PRIORITIES) * NODE;
    queue.messages.saturating_mul(queue.size.saturating_add(HEADER)).saturating_add(nodes)
}

/// The names of queues that a restore has made, which go when this value does unless they are to be kept.
#[derive(Debug, Default)]
pub(crate) struct Made(Vec<CString>);

impl Made {
    /// They are to stay.
    pub(crate) fn keep(&mut self) {
        self.0.clear();
    }
}

impl Drop for Made {
    fn drop(&mut self) {
        for name in &self.0 {
            let _ = sys::unlink(name);
        }
    }
}

/// The descriptions of a queue, with their indices.
fn descriptions_of(files: &Files, index: usize) -> impl Iterator<Item = (usize, &Description)> {
    let of_it = move |description: &Description| match description.target {
        Target::MessageQueue(queue) => queue as usize == index,
        _ => false,
    };
    files.descriptions.iter().enumerate().filter(move |(_, description)| of_it(description))
}

/// The queues of a tree, with all descriptions open.
#[derive(Debug, Default)]
pub(crate) struct Restored {
    descriptions: BTreeMap<usize, OwnedFd>,
    pub(crate) made: Made,
}

impl Restored {
    /// A description by its index.
    ///
    /// # Errors
    /// If it is none of a queue.
    pub(crate) fn open(&mut self, index: usize) -> Result<OwnedFd> {
        self.descriptions.remove(&index).context("a message queue that is not open")
    }

    /// Opens all descriptions of a queue by a name that it has now.
    fn open_all(&mut self, files: &Files, index: usize, by: &[u8]) -> Result<()> {
        for (number, description) in descriptions_of(files, index) {
            let opened = open_by_name(by, description.flags.cast_signed()).context("mq_open")?;
            if description.position != 0 {
                let position = i64::try_from(description.position)?;
                lseek64(&opened, position, Whence::SeekSet).context("seek")?;
            }
            self.descriptions.insert(number, opened);
        }
        Ok(())
    }
}

/// Opens all queues; makes first what has to be made. Those without a name have theirs until they are open, one after the other: several may have
/// had the same, as one may have it now that is still there.
///
/// # Errors
/// Names the one that fails; what was made goes again.
pub(crate) fn create_all(files: &Files) -> Result<Restored> {
    let mut restored = Restored::default();
    if files.message_queues.is_empty() {
        return Ok(restored);
    }
    let _raised = Raised::new(Resource::RLIMIT_MSGQUEUE)?;
    let queues = || files.message_queues.iter().enumerate();
    for (index, queue) in queues().filter(|(_, queue)| queue.unlinked) {
        create_unlinked(queue, index, files, &mut restored).with_context(|| name(queue))?;
    }
    for (index, queue) in queues().filter(|(_, queue)| !queue.unlinked) {
        create_named(queue, index, files, &mut restored).with_context(|| name(queue))?;
    }
    Ok(restored)
}

fn create_unlinked(queue: &MessageQueue, index: usize, files: &Files, restored: &mut Restored) -> Result<()> {
    let own = queue.name.clone();
    let other = format!("crr-{}-{index}", std::process::id()).into_bytes();
    let (made, by) = match make(queue, &own) {
        // What /proc shows is then another name than it had.
        Err(Errno::EEXIST) => (make(queue, &other), other),
        made => (made, own),
    };
    let made = made.context("make it again")?;
    let opened = complete(queue, &made).and_then(|()| restored.open_all(files, index, &by));
    let unlinked = sys::unlink(&CString::new(by)?).context("mq_unlink");
    opened.and(unlinked)
}

fn create_named(queue: &MessageQueue, index: usize, files: &Files, restored: &mut Restored) -> Result<()> {
    if matches!(open_by_name(&queue.name, libc::O_RDONLY), Err(Errno::ENOENT)) {
        let made = make(queue, &queue.name).context("make it again")?;
        restored.made.0.push(CString::new(queue.name.clone())?);
        complete(queue, &made)?;
    }
    restored.open_all(files, index, &queue.name)
}

/// Makes a queue that is for nobody yet.
fn make(queue: &MessageQueue, name: &[u8]) -> nix::Result<OwnedFd> {
    let name = CString::new(name).map_err(|_| Errno::EINVAL)?;
    sys::make(&name, [queue.messages, queue.size])
}

fn complete(queue: &MessageQueue, made: &OwnedFd) -> Result<()> {
    contents::fill(made.as_fd(), queue.contents.as_deref().unwrap_or_default())
        .context("send its messages")?;
    let owner = (Some(Uid::from_raw(queue.uid)), Some(Gid::from_raw(queue.gid)));
    fchown(made, owner.0, owner.1).context("owner")?;
    fchmod(made, Mode::from_bits_truncate(queue.mode)).context("permissions")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_kernel_counts() {
        let counted = |messages, size| {
            counted(&MessageQueue {
                name: Vec::new(),
                unlinked: false,
                mode: 0o600,
                uid: 0,
                gid: 0,
                messages,
                size,
                contents: None,
            })
        };
        assert_eq!(counted(10, 8192), 82880);
        assert_eq!(counted(65536, 128), 65536 * (128 + 48) + 32768 * 48);
        assert_eq!(counted(u64::MAX, 2), u64::MAX);
    }
}
