//! The local descriptor table, entry by entry.

use crate::op::{self, Op};
use alloc::vec::Vec;
use images::thread::UserDesc;

/// Appends the ops that make a table. The kernel copies the table for each entry, to one that is large enough: the last
/// entry first, so that it does not grow each time.
pub fn ops(list: &mut Vec<u8>, entries: &[UserDesc]) {
    for &UserDesc { entry, base, limit, flags } in entries.iter().rev() {
        op::push(list, &Op::Ldt { entry, base, limit, flags });
    }
}
