//! Pre-dumps, and what a checkpoint builds on.

use super::table::Table;
use super::{made, packed, printable};
use crate::progress::bytes;
use crate::store::Round;
use anyhow::Result;
use images::container::Kind;
use images::id::PAGE_SIZE;
use images::inventory::Inventory;
use serde_json::json;
use std::fmt::Write;

/// A line for each, the next one first.
pub(super) fn chain(inventory: &Inventory, ancestors: &[Round]) -> String {
    let mut out = String::new();
    let children = ancestors.iter().skip(1).map(|round| &round.inventory).chain([inventory]);
    for (child, round) in children.zip(ancestors).collect::<Vec<_>>().into_iter().rev() {
        let dir = child.parent.as_ref().map_or(&[][..], |parent| &parent.dir);
        let stored = round.inventory.files.iter().find(|entry| entry.kind == Kind::Pages);
        let stored = bytes(stored.map_or(0, |entry| entry.size));
        // Writing to a string cannot fail.
        let _ = writeln!(out, "builds on {}: {} pages, {stored}", printable(dir), round.memory.page_count);
    }
    out
}

/// A pre-dump.
pub(super) fn round(round: &Round, json: bool) -> Result<String> {
    let Round { inventory, memory, .. } = round;
    if json {
        return Ok(serde_json::to_string_pretty(&json!({ "inventory": inventory, "memory": memory }))? + "\n");
    }
    let pre_dump = round.pre_dump()?;
    let mut out = made(inventory);
    let packed = packed(memory, inventory);
    let _ = writeln!(out, "pre-dump of {} tasks, {} pages{packed}", pre_dump.tasks.len(), memory.page_count);
    if let Some(parent) = &inventory.parent {
        let _ = writeln!(out, "builds on {}", printable(&parent.dir));
    }
    let mut table = Table::new(["PID", "KNOWN", "NEW"]);
    for (task, space) in pre_dump.tasks.iter().zip(&memory.spaces) {
        let (known, new): (Vec<_>, _) = space.runs.iter().partition(|run| run.first_page < memory.first_page);
        let size =
            |runs: Vec<&images::memory::Run>| bytes(runs.iter().map(|run| run.pages * PAGE_SIZE).sum());
        table.row([task.pid.to_string(), size(known), size(new)]);
    }
    let _ = write!(out, "\n{table}");
    Ok(out)
}
