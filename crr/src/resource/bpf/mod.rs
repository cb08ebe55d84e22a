//! BPF maps. One that is pinned in a bpf file system stays on the host, with whatever is in it and whoever else uses it, and is opened again by that
//! name. Any other is made again with what was in it; so nobody but the tree may hold it, or there would be two of them ([`holders`]).
//!
//! The kernel knows a map by an id, and so do its tools; one that is made again gets another.

mod contents;
mod holders;
mod pins;
pub(crate) mod recreate;

use super::Refuse;
use super::creds::{CAP_PERFMON, CAP_SYS_ADMIN};
use super::limits::Raised;
use crate::kernel;
use crate::proc::bpf as shown;
use crate::refusal::Refusals;
use crate::sys::bpf as sys;
use anyhow::{Context, Result};
use images::Pid;
use images::bpf::{BpfMap, FLAGS, can_be_made, kind};
use images::file::{Description, FdEntry, Target};
use images::task::Task;
use nix::errno::Errno;
use nix::fcntl::readlink;
use nix::sys::resource::Resource;
use std::collections::{HashMap, HashSet};
use std::ffi::CStr;
use std::fs;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;

/// BPF_F_NUMA_NODE.
const ON_A_NODE: u32 = 1 << 2;
/// Bytes that may be in a map that is made again. They are looked at entry by entry while the tree stands still.
const MOST: u64 = 1 << 30;
/// CAP_BPF, as a bit.
const CAP_BPF: u64 = 1 << 39;
const WITHOUT_CAP_BPF: &str = "making it again, as by a task without CAP_PERFMON, takes CAP_BPF";

/// A map of the tree.
#[derive(Debug)]
struct Found {
    record: BpfMap,
    info: sys::MapInfo,
    /// Open in both directions, whatever the tree's descriptions are.
    map: OwnedFd,
    /// Who has it.
    task: (Pid, String),
    object: String,
}

/// Those of a tree, being collected.
#[derive(Debug, Default)]
pub(crate) struct Table(Vec<Found>);

/// Whether a descriptor is one of a map, by its link in `/proc/PID/fd`.
pub(crate) fn is_map(link: &[u8]) -> bool {
    link == b"anon_inode:bpf-map"
}

/// Opens what is pinned under a name; `None` if it is something else than a map. What the kernel tells of a program or of a link would
/// be taken for a map's.
fn open_pinned(name: &CStr, access: u32) -> nix::Result<Option<OwnedFd>> {
    let pinned = sys::open_pinned(name, access)?;
    let link = readlink(format!("/proc/self/fd/{}", pinned.as_raw_fd()).as_str())?;
    Ok(is_map(link.as_bytes()).then_some(pinned))
}

/// Whether the kernel has CAP_BPF and CAP_PERFMON (Linux 5.8); before, CAP_SYS_ADMIN stands for both.
fn kernel_has_cap_bpf() -> Result<bool> {
    const LAST: &str = "/proc/sys/kernel/cap_last_cap";
    let last: u32 = fs::read_to_string(LAST).context(LAST)?.trim().parse().context(LAST)?;
    Ok(last >= CAP_BPF.trailing_zeros())
}

/// Whether somebody with these capabilities can make a map as a task without CAP_PERFMON: without CAP_SYS_ADMIN, then, which stands for it.
fn can_make_untrusted(capabilities: u64) -> Result<bool> {
    Ok(capabilities & CAP_BPF != 0 || !kernel_has_cap_bpf()?)
}

impl Table {
    /// The number of its record; `None` when it was refused.
    pub(crate) fn add(
        &mut self,
        (object, text): (String, &[u8]),
        copy: BorrowedFd<'_>,
        refuse: &mut Refuse<'_>,
    ) -> Result<Option<u32>> {
        let info = sys::map_info(copy).context("look at a BPF map")?;
        let index = match self.0.iter().position(|found| found.info.id == info.id) {
            Some(index) => index,
            None => {
                let map = match sys::open_by_id(sys::Kind::Map, info.id, 0) {
                    Err(Errno::EPERM) => {
                        let reason = "a BPF map, which crr may not look into (CAP_SYS_ADMIN)";
                        refuse.with_hint(object, reason, "run crr as root");
                        return Ok(None);
                    }
                    map => map.context("open a BPF map by its id")?,
                };
                let record = BpfMap {
                    kind: info.kind,
                    key_size: info.key_size,
                    value_size: info.value_size,
                    max_entries: info.max_entries,
                    flags: info.flags,
                    name: info.name.clone(),
                    frozen: shown::is_frozen(text)?,
                    ..BpfMap::default()
                };
                let task = (refuse.pid(), refuse.name().to_owned());
                self.0.push(Found { record, info, map, task, object });
                self.0.len() - 1
            }
        };
        Ok(Some(u32::try_from(index).context("too many BPF maps")?))
    }

    /// Finds out which are pinned, and refuses others that cannot be made again, or that somebody outside of the tree holds, once all of the
    /// tree are known.
    pub(crate) fn relate(
        &mut self,
        tree: &HashSet<Pid>,
        trusted: &HashSet<u32>,
        refusals: &mut Refusals,
    ) -> Result<()> {
        if self.0.is_empty() {
            return Ok(());
        }
        let pins = pins::find(tree)?;
        for (index, found) in (0..).zip(&mut self.0) {
            found.record.trusted = trusted.contains(&index);
            if let Some(pins::Pin::Here(name)) = pins.get(&found.info.id) {
                found.record.pin.clone_from(name);
            }
        }
        let own: HashMap<u32, u32> = (self.0.iter())
            .filter(|found| found.record.pin.is_empty())
            .map(|found| (found.info.id, found.info.flags))
            .collect();
        if own.is_empty() {
            return Ok(());
        }
        let can_make_untrusted = can_make_untrusted(kernel::own_capabilities()?)?;
        // Before Linux 5.11 the memory of programs, too, counts as locked, whatever the privileges.
        let _raised = Raised::new(Resource::RLIMIT_MEMLOCK)?;
        let mut outside = holders::find(&own, tree)?;
        for (id, pin) in pins {
            if let pins::Pin::Elsewhere(place) = pin {
                outside.entry(id).or_insert(place);
            }
        }
        for found in self.0.iter_mut().filter(|found| found.record.pin.is_empty()) {
            if found.record.is_per_processor() {
                found.record.processors = u32::try_from(super::aio::processors()?).context("processors")?;
            }
            let mut obstacle = found.obstacle()?;
            if let Some(holder) = outside.get(&found.info.id) {
                obstacle = Some(format!(
                    "a BPF map that {holder} holds, too: after a restore there would be two of it"
                ));
            } else if obstacle.is_none() {
                obstacle = found.exclusive()?.map(str::to_owned);
            }
            let task = (found.task.0, &*found.task.1);
            if let Some(reason) = obstacle {
                let hint = format!(
                    "pin it (bpftool map pin id {} /sys/fs/bpf/NAME), so that it stays on the host",
                    found.info.id
                );
                refusals.task(task, &found.object, reason, Some(&hint));
            }
            if !found.record.trusted && !can_make_untrusted {
                refusals.task(task, &found.object, WITHOUT_CAP_BPF, Some("run crr as root"));
            }
        }
        Ok(())
    }

    /// Records what is in those that are not pinned, if nothing else is in the way of the dump.
    pub(crate) fn look_into(&mut self) -> Result<()> {
        for found in self.0.iter_mut().filter(|found| found.record.pin.is_empty()) {
            contents::look(found.map.as_fd(), &found.info, &mut found.record)
                .with_context(|| found.object.clone())?;
        }
        Ok(())
    }

    pub(crate) fn into_records(self) -> Vec<BpfMap> {
        self.0.into_iter().map(|found| found.record).collect()
    }
}

impl Found {
    /// Why it cannot be made again.
    fn obstacle(&self) -> Result<Option<String>> {
        let info = &self.info;
        if let Some(reason) = kind_obstacle(info.kind) {
            return Ok(Some(reason));
        }
        let entry = self.record.value_bytes().saturating_add(info.key_size.into());
        let reason = if info.interface != 0 {
            "a BPF map that belongs to a network device is not supported"
        } else if info.has_types {
            "BPF maps with types (BTF) are not supported"
        } else if info.flags & ON_A_NODE != 0 {
            "a BPF map that was made for one node of memory, and for which is shown nowhere"
        } else if info.flags & !FLAGS != 0 || info.extra != 0 {
            return Ok(Some(format!(
                "BPF maps with flags {:#x} and map_extra {:#x} are not supported",
                info.flags, info.extra
            )));
        } else if u64::from(info.max_entries).saturating_mul(entry) > MOST {
            "a BPF map that could have more than 1 GiB in it"
        } else if matches!(info.kind, kind::QUEUE | kind::STACK)
            && !sys::Entries::of(self.map.as_fd(), info, info.value_size.into())?
                .is_empty()
                .context("look into a queue")?
        {
            "a BPF queue or stack that is not empty: what is in it can only be taken out"
        } else {
            return Ok(None);
        };
        Ok(Some(reason.to_owned()))
    }

    /// Why not all programs may use it, or none is known that may: the kernel tells when one is loaded (check_map_prog_compatibility() of
    /// kernel/bpf/verifier.c).
    fn exclusive(&self) -> Result<Option<&'static str>> {
        match sys::use_in_program(self.map.as_fd()) {
            Err(Errno::EACCES) => {
                Ok(Some("a BPF map for one program alone (excl_prog_hash), and for which is shown nowhere"))
            }
            Err(Errno::EPERM) => {
                Ok(Some("a BPF map, perhaps for one program alone: crr may load none that would tell"))
            }
            loaded => loaded.map(|()| None).context("load a BPF program that uses the map"),
        }
    }
}

/// The maps that a task with the privilege to do without protection from speculation has. Who made a map without it has programs that use the map protected from
/// what others could make them speculate on (bypass_spec_v1 of struct bpf_map), which is shown nowhere.
pub(crate) fn trusted(tasks: &[Task], descriptions: &[Description]) -> HashSet<u32> {
    let may = |task: &&Task| {
        task.threads.iter().any(|thread| thread.creds.cap_permitted & (CAP_PERFMON | CAP_SYS_ADMIN) != 0)
    };
    let map = |entry: &FdEntry| match descriptions.get(entry.description.0 as usize)?.target {
        Target::BpfMap(index) => Some(index),
        _ => None,
    };
    tasks.iter().filter(may).flat_map(|task| &task.fds).filter_map(map).collect()
}

/// Why maps of a type cannot be made again.
fn kind_obstacle(number: u32) -> Option<String> {
    // enum bpf_map_type.
    let name = match number {
        known if can_be_made(known) => return None,
        9 | 10 => {
            return Some(
                "a BPF map that drops what was not used for long (LRU), in an order that is shown nowhere"
                    .into(),
            );
        }
        3 => "of programs",
        4 => "of performance counters",
        7 => "of stack traces",
        12 | 13 => "of maps",
        15 | 18 | 20 => "of sockets",
        26 => "of operations (struct_ops)",
        27 | 31 => "that are rings",
        30 => "that are Bloom filters",
        33 => "that are arenas",
        other => return Some(format!("BPF maps of type {other} are not supported")),
    };
    Some(format!("BPF maps {name} are not supported"))
}

/// What messages call a map.
fn describe(map: &BpfMap) -> String {
    let name = if map.pin.is_empty() { &map.name } else { &map.pin };
    format!("BPF map {}", String::from_utf8_lossy(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn types_that_are_not_supported_are_named() {
        assert_eq!(kind_obstacle(kind::ARRAY), None);
        assert_eq!(kind_obstacle(12).as_deref(), Some("BPF maps of maps are not supported"));
        assert_eq!(kind_obstacle(99).as_deref(), Some("BPF maps of type 99 are not supported"));
    }

    #[test]
    fn who_has_cap_bpf_can_make_all_maps() {
        assert!(can_make_untrusted(CAP_BPF).unwrap());
        assert_eq!(can_make_untrusted(CAP_SYS_ADMIN | CAP_PERFMON).unwrap(), !kernel_has_cap_bpf().unwrap());
    }
}
