//! POSIX message queues, which stay on the host as they are.

use alloc::vec::Vec;
use serde::{Deserialize, Serialize};

/// A queue that has a name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MessageQueue {
    /// Its name, without the slash.
    #[serde(serialize_with = "crate::readable::text")]
    pub name: Vec<u8>,
    /// `mq_maxmsg`: messages that fit.
    pub messages: u64,
    /// `mq_msgsize`: bytes of the longest message.
    pub size: u64,
}
