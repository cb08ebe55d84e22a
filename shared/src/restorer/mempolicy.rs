//! Memory policies of threads and of address ranges.

use super::Failure;
use super::calls::plain;
use super::receive::size;
use crate::sys::nr;

/// set_mempolicy, or mbind of a range given by address and length; `nodes` as in [`crate::op::Op::MemoryPolicy`].
pub(super) fn set(range: Option<(u64, u64)>, mode: u32, nodes: &[u8]) -> Result<(), Failure> {
    // One more than there are: get_nodes() of mm/mempolicy.c takes one off.
    let bits = nodes.len() * 8 + 1;
    let nodes = if nodes.is_empty() { 0 } else { nodes.as_ptr() as usize };
    match range {
        None => plain(nr::__NR_set_mempolicy, 0, &[mode as usize, nodes, bits]),
        Some((addr, len)) => {
            plain(nr::__NR_mbind, addr, &[size(addr)?, size(len)?, mode as usize, nodes, bits, 0])
        }
    }
}
