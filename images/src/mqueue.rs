//! POSIX message queues.

use alloc::vec::Vec;
use serde::{Deserialize, Serialize};

/// A queue.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MessageQueue {
    /// Its name, without the slash.
    #[serde(serialize_with = "crate::readable::text")]
    pub name: Vec<u8>,
    /// It has lost that (mq_unlink(3)), and ends with the last description.
    pub unlinked: bool,
    /// Permissions.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Its group.
    pub gid: u32,
    /// `mq_maxmsg`: messages that fit.
    pub messages: u64,
    /// `mq_msgsize`: bytes of the longest message.
    pub size: u64,
    /// What is in it, in the order in which it is received; nothing where others used it too, which only one with a name may have.
    pub contents: Option<Vec<Message>>,
}

/// A message in a queue.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Message {
    /// Higher ones are received first.
    pub priority: u32,
    /// What it says.
    #[serde(serialize_with = "crate::readable::text")]
    pub bytes: Vec<u8>,
}
