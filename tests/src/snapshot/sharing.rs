//! Which tasks have one kernel object without being threads of each other.

use super::{Rule, Snapshot};
use crate::sys::{KCMP_SHARED, same_object};

/// Larger trees are not compared task by task with all others.
const MOST: usize = 40;

pub(super) fn add(snapshot: &mut Snapshot, pids: &[i32]) -> crate::Result {
    if pids.len() > MOST {
        return Ok(());
    }
    for (kind, what) in KCMP_SHARED {
        let mut lines = Vec::new();
        for (index, &pid) in pids.iter().enumerate() {
            for &other in &pids[..index] {
                if same_object(kind, other, pid)? {
                    lines.push(format!("task {pid} with task {other}"));
                    break;
                }
            }
        }
        snapshot.insert(format!("shared {what}"), Rule::Equal, lines);
    }
    Ok(())
}
