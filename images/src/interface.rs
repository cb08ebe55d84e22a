//! Network interfaces that sockets have to do with.

use alloc::vec::Vec;
use serde::{Deserialize, Serialize};

/// A network interface: sockets know it by a number, which can be another one's after the next start of the machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Interface {
    /// Its number at dump, as sockets have it.
    pub number: u32,
    /// Its name, by which it is found again.
    #[serde(serialize_with = "crate::readable::text")]
    pub name: Vec<u8>,
}
