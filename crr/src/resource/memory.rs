//! Address spaces: which areas there are, what is behind them, and which can be restored.

use super::Refuse;
use super::aio;
use super::file::kinds;
use super::hugetlb;
use super::path::{Lost, Paths, UNMAP, file_type, link_of};
use super::sysv;
use super::there::Bars;
use super::view::Use;
use crate::kernel;
use crate::lazy;
use crate::proc::smaps::{Area, parse_maps};
use crate::proc::tasks::outside;
use crate::proc::{Dir, Malformed};
use crate::refusal::{Refusal, Refusals};
use crate::remote::CodeArea;
use crate::sys::userfaultfd;
use crate::track::instance;
use crate::track::keeper::{self, Keeper};
use anyhow::{Context, Result};
use images::file::Path;
use images::memory::{AreaName, Backing, Memory, Space, Vma, vm};
use images::sysv::Object;
use images::{Addr, PathId, Pid, SharedId, VdsoId};
use nix::sys::stat::{SFlag, major, minor};
use std::cell::OnceCell;
use std::collections::{BTreeSet, HashMap, HashSet};
use std::fs::File;
use std::ops::Range;
use std::os::fd::{AsFd, OwnedFd};

/// An object of shared memory without a file, open for reading.
#[derive(Debug)]
pub(crate) struct SharedObject {
    pub(crate) ino: u64,
    pub(crate) file: File,
    /// It is a segment of System V, which was made with this key.
    pub(crate) key: Option<i32>,
    /// What is known of that segment, and the size that it was made with.
    pub(crate) segment: Option<(Object, u64)>,
    /// Areas of the tree that show it.
    pub(crate) areas: u64,
}

/// A mapped file as smaps shows it: device, inode, name.
type Shown = (Vec<u8>, u64, Vec<u8>);

/// What the areas of a tree refer to, collected over all tasks.
#[derive(Debug, Default)]
pub(crate) struct Backings {
    /// Mapped files by what smaps shows of them, so that ten thousand areas of one library cost one stat, with what keeps them from being mapped again.
    files: HashMap<Shown, Result<Mapped, Lost>>,
    shared_ids: HashMap<(u64, u64), SharedId>,
    segments: sysv::Kind,
    /// Shared memory without a file, by id.
    pub(crate) shared: Vec<SharedObject>,
    /// Who tracks areas for pre-dumps: that ends with the dump, and is no part of them.
    pub(crate) keepers: Vec<Keeper>,
    /// Areas of the task that is being looked at which are tracked by somebody; those that touch as one.
    tracked: Vec<Range<u64>>,
    /// Restored tasks somewhere wait for memory.
    to_come: OnceCell<bool>,
}

/// What a mapped file is.
#[derive(Clone, Copy, Debug)]
enum Mapped {
    File(PathId, Bars),
    Shared(SharedId),
}

/// A code of `VmFlags` in smaps, and what it means for a restore.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Flag {
    /// Follows from the rest of the record, or says nothing about the area itself.
    Implied,
    /// One of the [`vm`] bits.
    Kept(u32),
    /// Of special mappings only.
    Special,
    /// Not restored.
    Refused(&'static str),
}

/// Why an area is refused that userfaultfd is used on: by the program, or by what is left of a pre-dump.
pub(crate) const WATCHED: &str = "watched by userfaultfd";

/// The same of one that others use it on for sure. It begins otherwise: here it is of no use to end what is left of a pre-dump.
const WATCHED_BY_OTHERS: &str = "is watched by userfaultfd, and not by a pre-dump";

/// Why an area is refused in which pages are missing that the program has all the same. Flags are looked at before pages, so nobody
/// takes one for zeros that comes in between.
const TO_COME: &str = "is memory that is still to come (crr restore --lazy-pages)";

/// show_smap_vma_flags() of fs/proc/task_mmu.c.
fn flag(code: [u8; 2]) -> Flag {
    match &code {
        b"rd" | b"wr" | b"ex" | b"sh" | b"mr" | b"me" | b"ms" | b"sd" => Flag::Implied,
        // Until 5.14: of programs, by exec. No mapping that a task asks for gets it.
        b"dw" => Flag::Implied,
        // Of which size, the size of its pages tells.
        b"ht" => Flag::Implied,
        // It may have guard pages, which the page map tells.
        b"gu" => Flag::Implied,
        b"gd" => Flag::Kept(vm::GROWS_DOWN),
        b"lo" => Flag::Kept(vm::LOCKED),
        b"lf" => Flag::Kept(vm::LOCK_ON_FAULT),
        b"sr" => Flag::Kept(vm::SEQUENTIAL),
        b"rr" => Flag::Kept(vm::RANDOM),
        b"dc" => Flag::Kept(vm::DONT_FORK),
        b"dd" => Flag::Kept(vm::DONT_DUMP),
        b"wf" => Flag::Kept(vm::WIPE_ON_FORK),
        b"nr" => Flag::Kept(vm::NO_RESERVE),
        b"hg" => Flag::Kept(vm::HUGE_PAGE),
        b"nh" => Flag::Kept(vm::NO_HUGE_PAGE),
        b"mg" => Flag::Kept(vm::MERGEABLE),
        b"ac" => Flag::Kept(vm::ACCOUNTED),
        b"mw" => Flag::Kept(vm::MAY_WRITE),
        b"sl" => Flag::Kept(vm::SEALED),
        b"dp" => Flag::Kept(vm::DROPPABLE),
        b"io" | b"pf" | b"de" | b"mm" => Flag::Special,
        b"um" | b"uw" | b"ui" => Flag::Refused(WATCHED),
        b"ss" => Flag::Refused("a user shadow stack"),
        b"sf" => Flag::Refused("synchronous (MAP_SYNC)"),
        _ => Flag::Refused("has a flag that crr does not know"),
    }
}

/// The [`vm`] bits of an area; what is not restored goes to `refused`.
fn flags(codes: &[u8], special: bool, mut refused: impl FnMut(&'static str, [u8; 2])) -> u32 {
    let mut bits = 0;
    let huge = is_huge(codes);
    for code in codes.split(|&b| b == b' ') {
        let &[a, b] = code else { continue };
        match flag([a, b]) {
            // hugetlbfs_file_mmap() of fs/hugetlbfs/inode.c.
            Flag::Special if huge && code == b"de" => {}
            // A kernel that seals them would not let them move to their places.
            Flag::Kept(vm::SEALED) if special => refused("sealed (mseal)", [a, b]),
            Flag::Implied => {}
            Flag::Kept(bit) => bits |= bit,
            Flag::Special if special => {}
            Flag::Special => refused("a device or another special mapping", [a, b]),
            Flag::Refused(reason) => refused(reason, [a, b]),
        }
    }
    bits
}

/// Whether an area is made of huge pages.
fn is_huge(codes: &[u8]) -> bool {
    has_code(codes, b"ht")
}

fn has_code(codes: &[u8], wanted: &[u8; 2]) -> bool {
    codes.split(|&b| b == b' ').any(|code| code == wanted)
}

/// The areas of one task that the kernel provides.
fn special(name: &[u8]) -> Option<Backing> {
    match name {
        // Which one it is, the task tells.
        b"[vdso]" => Some(Backing::Vdso(VdsoId::default())),
        b"[vvar]" => Some(Backing::Vvar),
        b"[vvar_vclock]" => Some(Backing::VvarVclock),
        _ => None,
    }
}

/// Whether an area is private memory without a file.
pub(crate) fn is_anonymous(area: &Area<'_>) -> bool {
    let name = matches!(area.name, b"" | b"[heap]" | b"[stack]") || name_of_private(area.name).is_some();
    area.ino == 0 && name && !area.shared
}

/// Whether it is shared memory without a file, if it is one at all: its file has the name that a task could have made for itself.
fn is_shared_anonymous(name: &[u8]) -> bool {
    name == b"/dev/zero (deleted)" || name == HUGE || name_of_shared(name).is_some()
}

/// What memory of huge pages without a file shows (hugetlb_file_setup() of fs/hugetlbfs/inode.c).
const HUGE: &[u8] = b"/anon_hugepage (deleted)";

/// The name that a task has given to an area, which is shown unless it is that of the heap or the stack
/// (get_vma_name() of fs/proc/task_mmu.c).
fn name_of_private(shown: &[u8]) -> Option<&[u8]> {
    shown.strip_prefix(b"[anon:")?.strip_suffix(b"]")
}

/// The same of shared memory without a file (Linux 6.2).
fn name_of_shared(shown: &[u8]) -> Option<&[u8]> {
    shown.strip_prefix(b"[anon_shmem:")?.strip_suffix(b"]")
}

/// The record of an area's name. An empty one says nothing more than none.
pub(crate) fn dump_name(area: &Area<'_>) -> Option<AreaName> {
    let name =
        name_of_private(area.name).or_else(|| name_of_shared(area.name)).filter(|name| !name.is_empty())?;
    Some(AreaName { start: Addr(area.start), end: Addr(area.end), name: name.to_vec() })
}

/// Areas whose names this kernel cannot give are restored without, which no program can tell but by /proc.
pub(crate) fn take_names_off(memory: &mut Memory) {
    let count = |memory: &Memory| memory.spaces.iter().map(|space| space.names.len()).sum::<usize>();
    let before = count(memory);
    if before == 0 {
        return;
    }
    let [private, shared] = kernel::area_names();
    for Space { vmas, names, .. } in &mut memory.spaces {
        names.retain(|name| {
            let at = vmas.partition_point(|vma| vma.end <= name.start);
            let is_private = vmas.get(at).is_some_and(|vma| vma.backing == Backing::Anonymous);
            if is_private { private } else { shared }
        });
    }
    let lost = before - count(memory);
    if lost > 0 {
        log::warn!("{lost} areas of memory lose their names: this kernel has none (CONFIG_ANON_VMA_NAME)");
    }
}

/// How an area is named in messages.
fn describe(area: &Area<'_>) -> String {
    let range = format!("{:#x}-{:#x}", area.start, area.end);
    match area.name {
        b"" => range,
        name => format!("{range} ({})", String::from_utf8_lossy(name)),
    }
}

impl Backings {
    pub(crate) fn new(keepers: Vec<Keeper>) -> Self {
        Self { keepers, ..Self::default() }
    }

    /// The record of an area, `None` for [vsyscall], which belongs to the kernel, and for what was refused.
    pub(crate) fn dump_area(
        &mut self,
        area: &Area<'_>,
        dir: &Dir,
        paths: &mut Paths,
        refuse: &mut Refuse<'_>,
    ) -> Result<Option<Vma>> {
        if area.name == b"[vsyscall]" {
            return Ok(None);
        }
        let kernel = special(area.name);
        let backing = match kernel {
            Some(backing) => Ok(backing),
            None => self.backing(area, dir, paths)?,
        };
        let backing = match backing {
            Ok(backing) => backing,
            Err((reason, hint)) => {
                refuse.with_hint(describe(area), reason, hint);
                return Ok(None);
            }
        };
        let is_ring = backing == Backing::AioRing;
        let bits = flags(area.flags, kernel.is_some(), |reason, code| {
            if code == *b"uw" && !self.keepers.is_empty() {
                match self.tracked.last_mut() {
                    Some(last) if last.end == area.start => last.end = area.end,
                    _ => self.tracked.push(area.start..area.end),
                }
                return;
            }
            // VM_DONTEXPAND (aio_ring_mmap() of fs/aio.c).
            if is_ring && code == *b"de" {
                return;
            }
            if code == *b"um" && *self.to_come.get_or_init(lazy::is_at_work) {
                refuse.with_hint(describe(area), TO_COME, lazy::WAIT);
                return;
            }
            let code = String::from_utf8_lossy(&code).into_owned();
            let hint = "start the program so that it does without";
            refuse.with_hint(describe(area), format!("{reason} (smaps flag {code})"), hint);
        });
        let huge = if backing.is_private() && is_huge(area.flags) {
            let page = hugetlb::of_size(area.page_size).context("huge pages of an unknown size")?;
            page.bit()
        } else {
            0
        };
        let flags = bits | huge | area.pkey << vm::KEY_SHIFT;
        Ok(Some(Vma { start: Addr(area.start), end: Addr(area.end), prot: area.prot, flags, backing }))
    }

    /// Refuses areas of a task that are tracked by others than the keepers: what their pages tell was not meant for crr. To be called when all areas of the
    /// task are dumped.
    pub(crate) fn refuse_watched(&mut self, refuse: &mut Refuse<'_>) -> Result<()> {
        if self.tracked.is_empty() {
            return Ok(());
        }
        let task = instance(refuse.pid())?;
        let mut descriptors = Vec::new();
        for keeper in &self.keepers {
            descriptors.extend(keeper.descriptors_for_memory(task)?);
        }
        let mut looked_for_others = false;
        for Range { start, end } in std::mem::take(&mut self.tracked) {
            // Nothing changes where an area is under the descriptor already (userfaultfd_register() of fs/userfaultfd.c), and each is under one. If that is
            // another one: EBUSY, or no address space to be found any more, where the task has run another program.
            let is_its = |descriptor: &OwnedFd| userfaultfd::track(descriptor.as_fd(), start, end).is_ok();
            if descriptors.iter().any(is_its) {
                continue;
            }
            // That of a series that was begun later, of this task alone, say.
            if !looked_for_others {
                looked_for_others = true;
                for other in keeper::of_tasks(&HashSet::from([task.pid]))? {
                    if self.keepers.iter().all(|known| known.pid() != other.pid()) {
                        descriptors.extend(other.descriptors_for_memory(task)?);
                        self.keepers.push(other);
                    }
                }
                if descriptors.iter().any(is_its) {
                    continue;
                }
            }
            let reason = format!("{WATCHED_BY_OTHERS} (smaps flag uw)");
            let hint =
                "have whoever watches it close the userfaultfd, or start the program so that it does without";
            refuse.with_hint(format!("{start:#x}-{end:#x}"), reason, hint);
        }
        Ok(())
    }

    fn backing(
        &mut self,
        area: &Area<'_>,
        dir: &Dir,
        paths: &mut Paths,
    ) -> Result<Result<Backing, Unmappable>> {
        if area.name == HUGE && !area.shared {
            return Ok(Ok(Backing::HugePages(area.offset)));
        }
        if is_anonymous(area) {
            return Ok(Ok(Backing::Anonymous));
        }
        if !area.name.starts_with(b"/") && name_of_shared(area.name).is_none() {
            let unmappable = match area.name {
                b"anon_inode:[io_uring]" => ("io_uring is not supported", kinds::WITHOUT_RING),
                b"anon_inode:[perf_event]" => ("performance counters are not supported", UNMAP),
                b"anon_inode:bpf-map" => ("mapped BPF maps are not supported", UNMAP),
                _ => ("mappings of this kind are not supported", UNMAP),
            };
            return Ok(Err((unmappable.0.into(), unmappable.1)));
        }
        if aio::is_shown(area, dir)? {
            return Ok(Ok(Backing::AioRing));
        }
        let key = (area.dev.to_vec(), area.ino, area.name.to_vec());
        let mapped = match self.files.get(&key) {
            Some(mapped) => *mapped,
            None => {
                let mapped = self.mapped_file(area, dir, paths)?;
                self.files.insert(key, mapped);
                mapped
            }
        };
        if let Ok(Mapped::File(_, bars)) = mapped {
            const PROT_EXEC: u32 = 4;
            let writes = area.shared && has_code(area.flags, b"mw");
            if let Some(lost) = bars.mapping(writes, area.prot & PROT_EXEC != 0) {
                return Ok(Err((lost.to_string(), lost.unmap())));
            }
        }
        Ok(match mapped {
            Ok(Mapped::File(path, _)) if area.shared => Ok(Backing::SharedFile(path, area.offset)),
            Ok(Mapped::File(path, _)) => Ok(Backing::PrivateFile(path, area.offset)),
            Ok(Mapped::Shared(id)) if area.shared => {
                self.shared[id.0 as usize].areas += 1;
                Ok(Backing::Shared(id, area.offset))
            }
            Ok(Mapped::Shared(_)) => Err(("a private mapping of shared memory".into(), UNMAP)),
            Err(lost) => Err(unmappable(area.name, lost)),
        })
    }

    /// Looks through the link in `map_files`, which leads to the file itself.
    fn mapped_file(&mut self, area: &Area<'_>, dir: &Dir, paths: &mut Paths) -> Result<Result<Mapped, Lost>> {
        let link = format!("map_files/{:x}-{:x}", area.start, area.end);
        let open = dir.stat(&link).with_context(|| format!("stat {link}"))?;
        let segment = self.segments.key(area.name, &open)?;
        let is_regular = file_type(open.st_mode) == SFlag::S_IFREG;
        if segment.is_some() || (is_shared_anonymous(area.name) && is_regular) {
            let key = (open.st_dev, open.st_ino);
            if let Some(&id) = self.shared_ids.get(&key) {
                return Ok(Ok(Mapped::Shared(id)));
            }
            let file = File::from(dir.open(&link).with_context(|| format!("open {link}"))?);
            let id = SharedId(u32::try_from(self.shared.len()).unwrap_or(u32::MAX));
            self.shared.push(SharedObject { ino: open.st_ino, file, key: segment, segment: None, areas: 0 });
            self.shared_ids.insert(key, id);
            return Ok(Ok(Mapped::Shared(id)));
        }
        let name = link_of(dir, &link).with_context(|| format!("read {link}"))?;
        let reopen = || dir.open(&link);
        if file_type(open.st_mode) != SFlag::S_IFREG && !is_zero_device((open.st_mode, open.st_rdev)) {
            return Ok(Err(Lost::Unreachable));
        }
        let found = paths.resolve(&name, &open, Use::Mapped, reopen);
        Ok(found.map(|path| Mapped::File(path, paths.bars(path))))
    }
}

impl Backings {
    /// Refuses anonymous shared memory that a task outside of the tree has mapped too: after a restore they
    /// would no longer see each other's writes.
    pub(crate) fn refuse_outsiders(&self, tree: &HashSet<Pid>, refusals: &mut Refusals) -> Result<()> {
        let anonymous = || self.shared.iter().filter(|object| object.key.is_none());
        if anonymous().next().is_none() {
            return Ok(());
        }
        let mut text = Vec::new();
        for other in outside(tree)? {
            if other.dir.read("maps", &mut text).is_err() {
                continue;
            }
            for object in anonymous().filter(|object| maps_object(&text, object.ino)) {
                refusals.push(Refusal {
                    task: None,
                    object: format!("anonymous shared memory (inode {})", object.ino),
                    reason: format!("also mapped by {other}, outside of the tree"),
                    hint: Some("dump a tree that holds all tasks that share it".into()),
                });
            }
        }
        Ok(())
    }
}

/// Whether a file is /dev/zero. A private mapping of it is anonymous memory that shows the name (mmap_zero() of
/// drivers/char/mem.c); a shared one does not show it.
fn is_zero_device((mode, rdev): (u32, u64)) -> bool {
    file_type(mode) == SFlag::S_IFCHR && (major(rdev), minor(rdev)) == (1, 5)
}

/// Which paths are /dev/zero.
pub(crate) fn zero_devices(paths: &[Path]) -> BTreeSet<PathId> {
    let all = (0..).map(PathId).zip(paths);
    all.filter(|(_, path)| is_zero_device((path.mode, path.rdev))).map(|(id, _)| id).collect()
}

/// Whether a maps file shows an object of anonymous shared memory.
fn maps_object(maps: &[u8], ino: u64) -> bool {
    let mut found = false;
    let looked = parse_maps(maps, |area| -> Result<(), Malformed> {
        found |= area.shared && area.ino == ino && is_shared_anonymous(area.name);
        Ok(())
    });
    looked.is_ok() && found
}

/// Why something that is mapped cannot be mapped again, and the way out.
type Unmappable = (String, &'static str);

fn unmappable(name: &[u8], lost: Lost) -> Unmappable {
    let kind = |prefix: &[u8]| name.starts_with(prefix);
    let (reason, hint) = if kind(b"/secretmem") {
        ("secret memory (memfd_secret) is for the eyes of the task alone", UNMAP)
    } else if kind(b"/dev/") && lost == Lost::Unreachable {
        ("mappings of devices are not supported", UNMAP)
    } else if lost == Lost::Unreachable {
        ("mappings of this kind are not supported", UNMAP)
    } else {
        return (lost.to_string(), lost.unmap());
    };
    (reason.into(), hint)
}

/// Bytes of areas that are locked, to tell whether a fresh area is (mlockall(MCL_FUTURE)).
pub(crate) fn locked_bytes(vmas: &[Vma]) -> u64 {
    vmas.iter().filter(|vma| vma.flags & vm::LOCKED != 0).map(|vma| vma.end.0 - vma.start.0).sum()
}

/// The code of a task, small areas first: the vDSO, then ld.so, have what [`crate::remote::Gadget`] looks for.
pub(crate) fn code_areas(vmas: &[Vma]) -> Vec<CodeArea> {
    const PROT_EXEC: u32 = 4;
    let area = |vma: &Vma| CodeArea {
        start: vma.start,
        size: vma.end.0 - vma.start.0,
        key: match vma.backing {
            Backing::PrivateFile(path, offset) => Some((path.0, offset)),
            _ => None,
        },
    };
    let mut code: Vec<CodeArea> = vmas.iter().filter(|vma| vma.prot & PROT_EXEC != 0).map(area).collect();
    code.sort_by_key(|area| area.size);
    code
}

/// The private memory that a task can write: a range for each area.
pub(crate) fn private_writable(vmas: &[Vma]) -> Vec<Range<u64>> {
    const PROT_READ_WRITE: u32 = 3;
    let of = |vma: &Vma| {
        (vma.backing.is_private() && vma.prot & PROT_READ_WRITE == PROT_READ_WRITE)
            .then_some(vma.start.0..vma.end.0)
    };
    vmas.iter().filter_map(of).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(codes: &[u8], special: bool) -> Vec<&'static str> {
        let mut reasons = Vec::new();
        flags(codes, special, |reason, _| reasons.push(reason));
        reasons
    }

    #[test]
    fn shared_objects_are_found_in_maps() {
        let maps = b"f7e00000-f7f00000 rw-s 00000000 00:01 77                 /dev/zero (deleted)\n\
            f7f00000-f7f01000 rw-s 00000000 00:01 78                         /memfd:x (deleted)\n";
        assert!(maps_object(maps, 77));
        assert!(!maps_object(maps, 78));
        assert!(!maps_object(maps, 7));
    }

    #[test]
    fn names_are_told_from_kinds() {
        let area = |name, shared, ino| Area {
            start: 0x1000,
            end: 0x2000,
            prot: 3,
            shared,
            offset: 0,
            dev: b"00:00",
            ino,
            name,
            flags: b"rd",
            pkey: 0,
            page_size: 4096,
            has_common_pages: false,
        };
        let name = |area: &Area<'_>| dump_name(area).map(|name| name.name);
        let private = area(b"[anon:Go: heap]", false, 0);
        assert!(is_anonymous(&private));
        assert_eq!(name(&private).as_deref(), Some(&b"Go: heap"[..]));
        let shared = area(b"[anon_shmem:a name]", true, 77);
        assert!(!is_anonymous(&shared) && is_shared_anonymous(shared.name));
        assert_eq!(name(&shared).as_deref(), Some(&b"a name"[..]));
        for (unnamed, anonymous) in
            [(&b"[heap]"[..], true), (b"", true), (b"/[anon:x]", false), (b"[vdso]", false)]
        {
            let area = area(unnamed, false, 0);
            assert_eq!((name(&area), is_anonymous(&area)), (None, anonymous));
        }
        let maps = b"f7e00000-f7f00000 rw-s 00000000 00:01 77                 [anon_shmem:x]\n";
        assert!(maps_object(maps, 77));
    }

    #[test]
    fn a_kernel_without_names_takes_them_off() {
        let vma = |start: u64, backing| Vma {
            start: Addr(start),
            end: Addr(start + 0x1000),
            prot: 3,
            flags: 0,
            backing,
        };
        let name =
            |start: u64| AreaName { start: Addr(start), end: Addr(start + 0x1000), name: b"x".to_vec() };
        let space = Space {
            vmas: vec![vma(0x1000, Backing::Anonymous), vma(0x3000, Backing::Shared(SharedId(0), 0))],
            names: vec![name(0x1000), name(0x3000)],
            ..Space::default()
        };
        let mut memory = Memory { spaces: vec![space], ..Memory::default() };
        take_names_off(&mut memory);
        let [private, shared] = kernel::area_names();
        let left: Vec<u64> = memory.spaces[0].names.iter().map(|name| name.start.0).collect();
        let expected = [(private, 0x1000), (shared, 0x3000)];
        assert_eq!(left, expected.into_iter().filter_map(|(has, at)| has.then_some(at)).collect::<Vec<_>>());
    }

    #[test]
    fn known_flags_become_bits() {
        let bits = flags(b"rd wr mr mw me gd ac lo lf", false, |reason, _| panic!("{reason}"));
        assert_eq!(bits, vm::MAY_WRITE | vm::GROWS_DOWN | vm::ACCOUNTED | vm::LOCKED | vm::LOCK_ON_FAULT);
    }

    #[test]
    fn what_is_not_restored_is_named() {
        assert_eq!(refused(b"rd de", false), ["a device or another special mapping"]);
        assert_eq!(refused(b"rd de ht", false), [""; 0]);
        assert_eq!(refused(b"rd um zz", false).len(), 2);
        assert_eq!(refused(b"rd io pf de dd", false).len(), 3);
        assert_eq!(refused(b"rd mr pf io de dd sd", true), [""; 0]);
        // Flags that matter are refused on special mappings too.
        assert_eq!(refused(b"rd sl", true), ["sealed (mseal)"]);
    }
}
