//! The probes of the 64-bit side, one function each.
//!
//! # Safety
//! Each system call is given buffers that are borrowed across it and whose sizes it is told, or no pointer.
#![allow(unsafe_code)]

use super::Found;
use super::tracee::Tracee;
use crate::resource::socket::peek_offset;
use crate::sys::last_pid::{self, LastPid};
use crate::sys::userfaultfd::LATE_FEATURES;
use crate::sys::{ptrace, xsave};
use linux_raw_sys::general::{
    MFD_CLOEXEC, MFD_EXEC, UFFD_API, UFFD_FEATURE_WP_ASYNC, UFFD_USER_MODE_ONLY, clone_args, page_region,
    pm_scan_arg, procmap_query, uffdio_api,
};
use linux_raw_sys::ioctl::UFFDIO_API;
use linux_raw_sys::prctl::{
    PR_SET_MM, PR_SET_MM_MAP_SIZE, PR_SET_VMA, PR_SET_VMA_ANON_NAME, PR_TIMER_CREATE_RESTORE_IDS,
    PR_TIMER_CREATE_RESTORE_IDS_GET,
};
use nix::errno::Errno;
use nix::sys::mman::{MapFlags, ProtFlags, mmap_anonymous, munmap};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
use nix::sys::uio::{RemoteIoVec, process_vm_readv};
use std::ffi::{c_int, c_long};
use std::fs::{self, File};
use std::io::IoSliceMut;
use std::num::NonZeroUsize;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::{FileExt, PermissionsExt};

const PAGE: u64 = images::id::PAGE_SIZE;

// include/uapi/linux/ptrace.h.
const PTRACE_GET_SYSCALL_INFO: u32 = 0x420e;
const PTRACE_GET_RSEQ_CONFIGURATION: u32 = 0x420f;
const PTRACE_SET_SYSCALL_INFO: u32 = 0x4212;

/// KCMP_FILE of include/uapi/linux/kcmp.h.
const KCMP_FILE: u64 = 0;

const PAGEMAP_SCAN: libc::Ioctl = nix::request_code_readwrite!(b'f', 16, size_of::<pm_scan_arg>());
const PROCMAP_QUERY: libc::Ioctl = nix::request_code_readwrite!(b'f', 17, size_of::<procmap_query>());

/// PM_PRESENT and PM_SOFT_DIRTY of Documentation/admin-guide/mm/pagemap.rst.
const PM_PRESENT: u64 = 1 << 63;
const PM_SOFT_DIRTY: u64 = 1 << 55;

/// A system call, with the reason of its failure named.
///
/// # Safety
/// As the system call demands of its arguments.
unsafe fn call(name: &str, number: c_long, arguments: [u64; 5]) -> Result<c_long, String> {
    let [a, b, c, d, e] = arguments;
    // SAFETY: the caller vouches for the arguments.
    let result = unsafe { libc::syscall(number, a, b, c, d, e) };
    Errno::result(result).map_err(|errno| format!("{name}: {errno}"))
}

/// A system call whose result is a new descriptor.
///
/// # Safety
/// As [`call`]; a result that is no error is a descriptor that nobody else owns.
unsafe fn open(name: &str, number: c_long, arguments: [u64; 5]) -> Result<OwnedFd, String> {
    // SAFETY: the caller vouches for the arguments.
    let fd = unsafe { call(name, number, arguments) }?;
    let fd = c_int::try_from(fd).map_err(|_| format!("{name}: returned {fd}"))?;
    // SAFETY: the kernel has just made it for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// An ioctl that reads and writes one structure.
fn ioctl<T>(
    name: &str,
    file: &impl AsRawFd,
    request: libc::Ioctl,
    argument: &mut T,
) -> Result<c_int, String> {
    // SAFETY: each request used here names a structure of the size of T, and `argument` is borrowed for the call.
    let result = unsafe { libc::ioctl(file.as_raw_fd(), request, std::ptr::from_mut(argument)) };
    Errno::result(result).map_err(|errno| format!("{name}: {errno}"))
}

fn read(path: &str) -> Result<File, String> {
    File::open(path).map_err(|error| format!("{path}: {error}"))
}

fn address_of<T: ?Sized>(object: &T) -> u64 {
    std::ptr::from_ref(object).addr() as u64
}

pub(super) fn ptrace() -> Found {
    Tracee::stopped().map(|_| "a child was seized and stopped".to_owned())
}

/// Asks for pid 1, which is taken: with the right to choose, and only then, the answer is EEXIST (alloc_pid() in kernel/pid.c), and no process is made.
/// The kernel comes to that only when it has made all else of the child: sharing the memory, it copies no page tables for that.
pub(super) fn clone3_set_tid() -> Found {
    /// Below where anything can be mapped: a child, were there one, would die of its first step.
    const NOWHERE: u64 = 16;
    // One that nobody is in yet is not shown (pidns_for_children_get() of kernel/pid_namespace.c).
    let children_have_another = |kind: &str| {
        let namespace = |name: &str| fs::read_link(format!("/proc/self/ns/{name}")).ok();
        let own = namespace(kind);
        own.is_some() && own != namespace(&format!("{kind}_for_children"))
    };
    if children_have_another("pid") {
        return Err("clone3: children come into another pid namespace, in which pid 1 may be free".to_owned());
    }
    // Before Linux 6.1 memory is not shared with a child in another time namespace.
    let shares = !children_have_another("time");
    let wanted: [i32; 1] = [1];
    let arguments = clone_args {
        flags: if shares { libc::CLONE_VM as u64 } else { 0 },
        pidfd: 0,
        child_tid: 0,
        parent_tid: 0,
        exit_signal: u64::from(libc::SIGCHLD.unsigned_abs()),
        stack: NOWHERE,
        stack_size: NOWHERE,
        tls: 0,
        set_tid: address_of(&wanted),
        set_tid_size: 1,
        cgroup: 0,
    };
    let size = size_of::<clone_args>() as u64;
    // SAFETY: the arguments are borrowed for the call; a child, were there one, would have no stack to do anything with.
    let result = unsafe { libc::syscall(libc::SYS_clone3, &raw const arguments, size) };
    match Errno::result(result) {
        Err(Errno::EEXIST) => Ok("pids can be chosen".to_owned()),
        Err(Errno::EPERM) => Err("not permitted: CAP_CHECKPOINT_RESTORE is missing".to_owned()),
        Err(Errno::ENOSYS) => Err("there is no clone3 (Linux 5.3, or a filter of a container)".to_owned()),
        Err(Errno::E2BIG) => Err("clone3 does not know set_tid (Linux 5.5)".to_owned()),
        Err(errno) => Err(format!("clone3: {errno}")),
        Ok(pid) => Err(format!("clone3: made process {pid} instead of pid 1")),
    }
}

/// Writes what is there, which changes nothing.
pub(super) fn ns_last_pid() -> Found {
    let Some(last) = LastPid::try_claim().map_err(|error| format!("{error:#}"))? else {
        return Ok("in use by another process".to_owned());
    };
    last.try_write().map_err(|errno| format!("{}: {}", last_pid::PATH, errno.desc().to_lowercase()))?;
    Ok("can be written".to_owned())
}

fn pidfd() -> Result<OwnedFd, String> {
    // SAFETY: pidfd_open takes no pointer.
    unsafe { open("pidfd_open", libc::SYS_pidfd_open, [std::process::id().into(), 0, 0, 0, 0]) }
}

pub(super) fn pidfd_open() -> Found {
    pidfd().map(|_| "opened one of this process".to_owned())
}

pub(super) fn pidfd_getfd() -> Found {
    let pidfd = pidfd()?;
    let fd = u64::from(pidfd.as_raw_fd().unsigned_abs());
    // SAFETY: pidfd_getfd takes no pointer.
    unsafe { open("pidfd_getfd", libc::SYS_pidfd_getfd, [fd, fd, 0, 0, 0]) }
        .map(|_| "took a descriptor by it".to_owned())
}

pub(super) fn pidfd_thread() -> Found {
    let own = nix::unistd::gettid().as_raw();
    match crate::sys::pidfd::open_thread(own) {
        Ok(_) => Ok(format!("opened thread {own}")),
        Err(errno) => Err(format!("pidfd_open: {errno}")),
    }
}

pub(super) fn unix_diag() -> Found {
    match crate::resource::unix_socket::diag::query() {
        Ok(sockets) => Ok(format!("{} unix sockets", sockets.len())),
        Err(error) => Err(format!("{error:#}")),
    }
}

/// Before 6.10 sockets of TCP had no SO_PEEK_OFF.
pub(super) fn tcp_peek_offset() -> Found {
    let made = socket(AddressFamily::Inet, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)
        .map_err(|errno| format!("socket: {errno}"))?;
    match peek_offset::get(made.as_fd()) {
        Ok(_) => Ok("SO_PEEK_OFF of TCP sockets".to_owned()),
        Err(errno) => Err(format!("SO_PEEK_OFF of TCP sockets: {errno}")),
    }
}

pub(super) fn kcmp() -> Found {
    let null = read("/dev/null")?;
    let fd = u64::from(null.as_raw_fd().unsigned_abs());
    let own = u64::from(std::process::id());
    // SAFETY: KCMP_FILE takes two descriptor numbers, no pointer.
    match unsafe { call("kcmp", libc::SYS_kcmp, [own, own, KCMP_FILE, fd, fd]) }? {
        0 => Ok("a file compares equal to itself".to_owned()),
        other => Err(format!("kcmp: a file compares as {other} to itself")),
    }
}

/// Before 6.3 MFD_EXEC is unknown and every memfd executable; later, vm.memfd_noexec can forbid it.
pub(super) fn memfd_exec() -> Found {
    let name = c"crr-check";
    let create = |flags: u32| {
        let arguments = [name.as_ptr().addr() as u64, flags.into(), 0, 0, 0];
        // SAFETY: the name is a C string of static life.
        unsafe { open("memfd_create", libc::SYS_memfd_create, arguments) }
    };
    let file = create(MFD_CLOEXEC | MFD_EXEC).or_else(|_| create(MFD_CLOEXEC))?;
    let mode = File::from(file).metadata().map_err(|error| error.to_string())?.permissions().mode();
    if mode & 0o111 == 0 { Err("vm.memfd_noexec forbids it".to_owned()) } else { Ok("allowed".to_owned()) }
}

pub(super) fn mm_map() -> Found {
    let mut size = 0u32;
    let out = (&raw mut size).addr() as u64;
    let arguments = [PR_SET_MM.into(), PR_SET_MM_MAP_SIZE.into(), out, 0, 0];
    // SAFETY: PR_SET_MM_MAP_SIZE writes an int to the place it is given.
    unsafe { call("PR_SET_MM_MAP_SIZE", libc::SYS_prctl, arguments) }?;
    Ok(format!("PR_SET_MM_MAP takes {size} bytes"))
}

/// The child of a fork has our memory at our addresses.
pub(super) fn process_vm() -> Found {
    let wanted = *b"sixteen bytes ok";
    let tracee = Tracee::stopped()?;
    let mut found = [0u8; 16];
    let remote = RemoteIoVec { base: std::ptr::from_ref(&wanted).addr(), len: wanted.len() };
    let read = process_vm_readv(tracee.pid(), &mut [IoSliceMut::new(&mut found)], &[remote])
        .map_err(|errno| format!("process_vm_readv: {errno}"))?;
    if read == wanted.len() && found == wanted {
        Ok("read the memory of a child".to_owned())
    } else {
        Err("process_vm_readv: other bytes than were there".to_owned())
    }
}

pub(super) fn vdso() -> Found {
    let maps = fs::read_to_string("/proc/self/maps").map_err(|error| format!("/proc/self/maps: {error}"))?;
    let areas = vdso_areas(&maps);
    let shape: Vec<_> = areas.iter().map(|(name, pages)| format!("{name} {pages}")).collect();
    if areas.iter().any(|(name, _)| *name == "[vdso]") {
        Ok(format!("pages by rising address: {}", shape.join(", ")))
    } else {
        Err("none is mapped".to_owned())
    }
}

/// The kernel's areas around the vDSO in `/proc/PID/maps`, with their sizes in pages, by rising address.
fn vdso_areas(maps: &str) -> Vec<(&str, u64)> {
    let area = |line: &'_ str| -> Option<(usize, u64)> {
        let (range, _) = line.split_once(' ')?;
        let (start, end) = range.split_once('-')?;
        let [start, end] = [start, end].map(|address| u64::from_str_radix(address, 16).ok());
        Some((line.rfind('[')?, end?.checked_sub(start?)? / PAGE))
    };
    maps.lines()
        .filter_map(|line| area(line).map(|(at, pages)| (&line[at..], pages)))
        .filter(|(name, _)| name.starts_with("[vvar") || *name == "[vdso]")
        .collect()
}

pub(super) fn ptrace_syscall_info() -> Found {
    let info = Tracee::stopped()?.request(PTRACE_GET_SYSCALL_INFO, &mut [0u8; 128]);
    info.map(|len| format!("{len} bytes")).map_err(|errno| errno.to_string())
}

/// A buffer too short is told from an unknown request: EINVAL and EIO (ptrace_request() in kernel/ptrace.c).
pub(super) fn ptrace_set_syscall_info() -> Found {
    match Tracee::stopped()?.request(PTRACE_SET_SYSCALL_INFO, &mut []) {
        Err(Errno::EINVAL) | Ok(_) => Ok("known".to_owned()),
        Err(errno) => Err(errno.to_string()),
    }
}

pub(super) fn ptrace_rseq() -> Found {
    let configuration = Tracee::stopped()?.request(PTRACE_GET_RSEQ_CONFIGURATION, &mut [0u8; 24]);
    configuration.map(|len| format!("{len} bytes")).map_err(|errno| errno.to_string())
}

/// Gives a child other rights to memory with keys, and looks whether it has them. Kernels from Linux 5.14 on ignore what is written, until they have commit
/// 4a804c4f8356 ("x86/fpu: Allow PKRU to be (once again) written by ptrace", 6.2).
pub(super) fn key_rights() -> Found {
    if crate::sys::process::enabled_xfeatures() >> xsave::PKRU & 1 == 0 {
        return Err("the processor, or kernel, has no protection keys".to_owned());
    }
    /// Both bits of key 1.
    const CHANGED: u8 = 0b1100;
    let tracee = Tracee::stopped()?;
    let tid = tracee.pid().as_raw();
    let place = xsave::component(xsave::PKRU).offset as usize;
    let read = || {
        let mut area = vec![0u8; 16384];
        let len = ptrace::get_regset(tid, ptrace::NT_X86_XSTATE, &mut area);
        area.truncate(len.map_err(|errno| format!("PTRACE_GETREGSET: {errno}"))?);
        area.get(place).is_some().then_some(area).ok_or_else(|| "PTRACE_GETREGSET: too little".to_owned())
    };
    let mut area = read()?;
    area[place] ^= CHANGED;
    area[xsave::XSTATE_BV + usize::from(xsave::PKRU / 8)] |= 1 << (xsave::PKRU % 8);
    ptrace::set_regset(tid, ptrace::NT_X86_XSTATE, &area)
        .map_err(|errno| format!("PTRACE_SETREGSET: {errno}"))?;
    match read()?[place] == area[place] {
        true => Ok("their rights can be set".to_owned()),
        false => Err("ptrace leaves the rights to keys as they are (Linux 5.14 to 6.1)".to_owned()),
    }
}

pub(super) fn close_range() -> Found {
    // No descriptor has so high a number.
    match crate::sys::process::close_range_on_exec(u32::MAX) {
        Ok(()) => Ok("works".to_owned()),
        Err(errno) => Err(format!("close_range: {}", errno.desc())),
    }
}

pub(super) fn pagemap_scan() -> Found {
    let here = address_of(&PAGE) & !(PAGE - 1);
    let found = page_region { start: 0, end: 0, categories: 0 };
    let mut scan = pm_scan_arg {
        size: size_of::<pm_scan_arg>() as u64,
        flags: 0,
        start: here,
        end: here + PAGE,
        walk_end: 0,
        vec: address_of(&found),
        vec_len: 1,
        max_pages: 0,
        category_inverted: 0,
        category_mask: 0,
        category_anyof_mask: PRESENT_OR_SWAPPED,
        return_mask: PRESENT_OR_SWAPPED,
    };
    ioctl("PAGEMAP_SCAN", &read("/proc/self/pagemap")?, PAGEMAP_SCAN, &mut scan)?;
    Ok("scanned a page of this process".to_owned())
}
/// PAGE_IS_PRESENT and PAGE_IS_SWAPPED of include/uapi/linux/fs.h.
const PRESENT_OR_SWAPPED: u64 = 1 << 3 | 1 << 4;

pub(super) fn procmap_query() -> Found {
    let mut query = procmap_query {
        size: size_of::<procmap_query>() as u64,
        query_flags: 0,
        query_addr: address_of(&PAGE),
        vma_start: 0,
        vma_end: 0,
        vma_flags: 0,
        vma_page_size: 0,
        vma_offset: 0,
        inode: 0,
        dev_major: 0,
        dev_minor: 0,
        vma_name_size: 0,
        build_id_size: 0,
        vma_name_addr: 0,
        build_id_addr: 0,
    };
    ioctl("PROCMAP_QUERY", &read("/proc/self/maps")?, PROCMAP_QUERY, &mut query)?;
    Ok("looked up an address of this process".to_owned())
}

pub(super) fn map_files() -> Found {
    let dir = "/proc/self/map_files";
    let mut entries = fs::read_dir(dir).map_err(|error| format!("{dir}: {error}"))?;
    let first = entries.next().ok_or_else(|| format!("{dir}: is empty"))?;
    let path = first.map_err(|error| format!("{dir}: {error}"))?.path();
    File::open(&path).map_err(|error| format!("{}: {error}", path.display()))?;
    Ok("opened a mapped file".to_owned())
}

pub(super) fn timer_restore_ids() -> Found {
    let arguments = [PR_TIMER_CREATE_RESTORE_IDS.into(), PR_TIMER_CREATE_RESTORE_IDS_GET.into(), 0, 0, 0];
    // SAFETY: this query takes no pointer.
    unsafe { call("PR_TIMER_CREATE_RESTORE_IDS", libc::SYS_prctl, arguments) }?;
    Ok("known".to_owned())
}

/// Sealing nothing succeeds where there is sealing.
pub(super) fn mseal() -> Found {
    // SAFETY: an empty range is not accessed.
    unsafe { call("mseal", libc::SYS_mseal, [0; 5]) }?;
    Ok("known".to_owned())
}

pub(super) fn area_names() -> Found {
    name_a_page(MapFlags::MAP_PRIVATE)
}

pub(super) fn shared_area_names() -> Found {
    name_a_page(MapFlags::MAP_SHARED)
}

/// Gives a page of memory a name.
fn name_a_page(flags: MapFlags) -> Found {
    let size = NonZeroUsize::new(4096).ok_or("a page has bytes")?;
    // SAFETY: a new mapping at a place of the kernel's choice, which nothing else knows.
    let page = unsafe { mmap_anonymous(None, size, ProtFlags::PROT_READ, flags) };
    let page = page.map_err(|errno| format!("mmap: {errno}"))?;
    let at = page.as_ptr().addr() as u64;
    let arguments = [PR_SET_VMA.into(), PR_SET_VMA_ANON_NAME.into(), at, PAGE, address_of(c"crr")];
    // SAFETY: the kernel copies the name, a constant.
    let named = unsafe { call("PR_SET_VMA", libc::SYS_prctl, arguments) };
    // SAFETY: the mapping made above, to which no reference exists.
    unsafe { munmap(page, size.get()) }.map_err(|errno| format!("munmap: {errno}"))?;
    named.map(|_| "known".to_owned())
}

/// Opens a userfaultfd and asks for features; the answer is all that there are.
fn userfaultfd_with(flags: u32, features: u64) -> Result<u64, String> {
    let flags = u64::from(flags) | u64::from(libc::O_CLOEXEC.unsigned_abs());
    // SAFETY: userfaultfd takes no pointer.
    let fd = unsafe { open("userfaultfd", libc::SYS_userfaultfd, [flags, 0, 0, 0, 0]) }?;
    let mut api = uffdio_api { api: UFFD_API.into(), features, ioctls: 0 };
    ioctl("UFFDIO_API", &fd, UFFDIO_API.into(), &mut api)?;
    Ok(api.features)
}

pub(super) fn userfaultfd() -> Found {
    userfaultfd_with(UFFD_USER_MODE_ONLY, 0).map(|features| format!("features {features:#x}"))
}

/// Takes the right to stop faults of the kernel, too.
pub(super) fn uffd_events() -> Found {
    userfaultfd_with(0, LATE_FEATURES).map(|_| "granted".to_owned())
}

pub(super) fn uffd_wp_async() -> Found {
    userfaultfd_with(UFFD_USER_MODE_ONLY, UFFD_FEATURE_WP_ASYNC.into()).map(|_| "granted".to_owned())
}

/// A page that was just written to is dirty where dirt is tracked at all.
pub(super) fn soft_dirty() -> Found {
    let size = NonZeroUsize::new(4096).ok_or("a page has bytes")?;
    let flags = MapFlags::MAP_PRIVATE | MapFlags::MAP_POPULATE;
    // SAFETY: a new mapping at a place of the kernel's choice, which nothing else knows.
    let page = unsafe { mmap_anonymous(None, size, ProtFlags::PROT_READ | ProtFlags::PROT_WRITE, flags) };
    let page = page.map_err(|errno| format!("mmap: {errno}"))?;
    let entry = pagemap_entry(page.as_ptr().addr() as u64);
    // SAFETY: the mapping made above, to which no reference exists.
    unsafe { munmap(page, size.get()) }.map_err(|errno| format!("munmap: {errno}"))?;
    match entry? {
        entry if entry & PM_PRESENT == 0 => Err("pagemap does not show a populated page".to_owned()),
        entry if entry & PM_SOFT_DIRTY == 0 => Err("not tracked by this kernel".to_owned()),
        _ => Ok("tracked".to_owned()),
    }
}

fn pagemap_entry(address: u64) -> Result<u64, String> {
    let mut entry = [0u8; 8];
    let read = read("/proc/self/pagemap")?.read_exact_at(&mut entry, address / PAGE * 8);
    read.map_err(|error| format!("/proc/self/pagemap: {error}"))?;
    Ok(u64::from_ne_bytes(entry))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn areas_around_the_vdso_are_found_whatever_their_number() {
        let with_clock = "\
5581c0000000-5581c0001000 r--p 00000000 08:01 77 /bin/[vdso] not
7fff29dea000-7fff29dee000 r--p 00000000 00:00 0                          [vvar]
7fff29dee000-7fff29df0000 r--p 00000000 00:00 0                          [vvar_vclock]
7fff29df0000-7fff29df2000 r-xp 00000000 00:00 0                          [vdso]
ffffffffff600000-ffffffffff601000 --xp 00000000 00:00 0                  [vsyscall]
";
        assert_eq!(vdso_areas(with_clock), [("[vvar]", 4), ("[vvar_vclock]", 2), ("[vdso]", 2)]);
        let ia32 = "f7f5a000-f7f5e000 r--p 00000000 00:00 0  [vvar]\nf7f5e000-f7f60000 r-xp 00000000 00:00 0  [vdso]\n";
        assert_eq!(vdso_areas(ia32), [("[vvar]", 4), ("[vdso]", 2)]);
        assert_eq!(vdso_areas(""), []);
    }

    #[test]
    fn request_numbers_are_those_of_the_kernel() {
        // include/uapi/linux/fs.h: _IOWR('f', 16, struct pm_scan_arg) and _IOWR('f', 17, struct procmap_query).
        assert_eq!((PAGEMAP_SCAN, PROCMAP_QUERY), (0xc060_6610, 0xc068_6611));
    }
}
