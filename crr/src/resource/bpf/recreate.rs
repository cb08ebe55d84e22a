//! Maps at the restore: those that are pinned are opened by name, others are made again, with what was in them.

use super::{WITHOUT_CAP_BPF, can_make_untrusted, contents, describe, kernel_has_cap_bpf};
use crate::refusal::{Refusal, Refusals};
use crate::resource::creds::{CAP_PERFMON, CAP_SYS_ADMIN};
use crate::resource::limits::Raised;
use crate::sys::{bpf as sys, process};
use anyhow::{Context, Result};
use images::bpf::BpfMap;
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::libc;
use nix::sys::resource::Resource;
use std::ffi::CString;
use std::os::fd::{AsFd, OwnedFd};

/// What keeps maps from being there again.
///
/// # Errors
/// If the machine does not tell how many processors it may have, or capabilities.
pub(crate) fn preflight(refusals: &mut Refusals, maps: &[BpfMap], capabilities: u64) -> Result<()> {
    for map in maps {
        let mut refuse = |reason: String, hint: Option<&str>| {
            let hint = hint.map(str::to_owned);
            refusals.push(Refusal { task: None, object: describe(map), reason, hint });
        };
        if capabilities & CAP_SYS_ADMIN == 0 {
            refuse("opening it takes CAP_SYS_ADMIN".to_owned(), Some("run crr as root"));
        } else if !map.pin.is_empty() {
            if let Err(reason) = open_pinned(map) {
                refuse(reason, Some("pin one like it there (bpftool map pin)"));
            }
        } else if !map.trusted && !can_make_untrusted(capabilities)? {
            refuse(WITHOUT_CAP_BPF.to_owned(), Some("run crr as root"));
        } else if map.processors != 0 {
            let here = crate::resource::aio::processors()?;
            if here != u64::from(map.processors) {
                let there = map.processors;
                refuse(format!("has values for {there} processors, and this machine may have {here}"), None);
            }
        }
    }
    Ok(())
}

/// Opens a map by the name that it had, or says why it is not the one.
fn open_pinned(map: &BpfMap) -> Result<OwnedFd, String> {
    let name = CString::new(map.pin.as_slice()).map_err(|_| "not a path".to_owned())?;
    let told = |errno: nix::Error| errno.desc().to_lowercase();
    let pinned = super::open_pinned(&name, 0).map_err(told)?.ok_or("is no map now")?;
    let now = sys::map_info(pinned.as_fd()).map_err(told)?;
    let same = (now.kind, now.key_size, now.value_size, now.max_entries, now.flags)
        == (map.kind, map.key_size, map.value_size, map.max_entries, map.flags);
    if same { Ok(pinned) } else { Err("is a map of another kind or size now".to_owned()) }
}

/// The maps of a tree.
#[derive(Debug)]
pub(crate) struct Maps(Vec<OwnedFd>);

impl Maps {
    /// A description of its own for a map.
    ///
    /// # Errors
    /// EMFILE.
    pub(crate) fn open(&self, index: u32, flags: u32) -> Result<OwnedFd> {
        let access = match flags.cast_signed() & libc::O_ACCMODE {
            libc::O_RDONLY => sys::READ_ONLY,
            libc::O_WRONLY => sys::WRITE_ONLY,
            _ => 0,
        };
        let map = self.0[index as usize].as_fd();
        let id = sys::map_info(map).context("look at a BPF map")?.id;
        let opened = sys::open_by_id(sys::Kind::Map, id, access).context("open a BPF map by its id")?;
        let flags = OFlag::from_bits_retain(flags.cast_signed());
        fcntl(&opened, FcntlArg::F_SETFL(flags)).context("set flags")?;
        Ok(opened)
    }
}

/// Opens or makes all maps.
///
/// # Errors
/// Names the one that fails.
pub(crate) fn create_all(maps: &[BpfMap]) -> Result<Maps> {
    if maps.is_empty() {
        return Ok(Maps(Vec::new()));
    }
    // Before Linux 5.11 their memory counts as locked, whatever the privileges.
    let _raised = Raised::new(Resource::RLIMIT_MEMLOCK)?;
    let create = |map: &BpfMap| {
        let made = if map.pin.is_empty() { make(map) } else { open_pinned(map).map_err(anyhow::Error::msg) };
        made.with_context(|| describe(map))
    };
    Ok(Maps(maps.iter().map(create).collect::<Result<_>>()?))
}

fn make(map: &BpfMap) -> Result<OwnedFd> {
    let BpfMap { kind, key_size, value_size, max_entries, flags, .. } = *map;
    let new = sys::NewMap { kind, key_size, value_size, max_entries, flags, name: &map.name };
    let made = if map.trusted {
        sys::create(new)
    } else {
        // CAP_BPF is enough to make one.
        match process::without_capabilities(CAP_PERFMON | CAP_SYS_ADMIN, || sys::create(new))? {
            // Where there is none, and only CAP_SYS_ADMIN may make such a map, nobody without it has programs that could use it either.
            Err(Errno::EPERM) if !kernel_has_cap_bpf()? => sys::create(new),
            made => made,
        }
    };
    let made = made.context("make it again")?;
    let info = sys::map_info(made.as_fd()).context("look at it")?;
    contents::fill(made.as_fd(), &info, map)?;
    if map.frozen {
        sys::freeze(made.as_fd()).context("freeze it")?;
    }
    Ok(made)
}
