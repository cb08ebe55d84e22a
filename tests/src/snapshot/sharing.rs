//! Which tasks have one kernel object without being threads of each other.

use super::{Rule, Snapshot, deputy};
use crate::sys::{KCMP_SHARED, same_object};

/// Larger trees are not compared task by task with all others.
const MOST: usize = 40;

pub(super) fn add(snapshot: &mut Snapshot, pids: &[i32]) -> crate::Result {
    if pids.len() > MOST {
        return Ok(());
    }
    let deputies = pids.iter().map(|&pid| deputy(pid)).collect::<crate::Result<Vec<i32>>>()?;
    for (kind, what) in KCMP_SHARED {
        let mut lines = Vec::new();
        for (index, &pid) in pids.iter().enumerate() {
            for before in 0..index {
                if same_object(kind, deputies[before], deputies[index])? {
                    lines.push(format!("task {pid} with task {}", pids[before]));
                    break;
                }
            }
        }
        snapshot.insert(format!("shared {what}"), Rule::Equal, lines);
    }
    Ok(())
}
