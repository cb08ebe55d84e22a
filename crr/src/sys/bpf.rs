//! BPF maps, and who holds them: bpf(2), which the C library does not have.
//!
//! # Safety
//! Attributes are those that a command reads, in words of the kernel's layout (`union bpf_attr` of include/uapi/linux/bpf.h); what they
//! point to is live, and as large as the map or the kind of information says. Descriptors that a successful call returns are new and ours.
#![allow(unsafe_code)]

use super::{check, halves};
use nix::errno::Errno;
use std::ffi::CStr;
use std::fmt;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

// enum bpf_cmd.
const MAP_CREATE: libc::c_int = 0;
const MAP_LOOKUP_ELEM: libc::c_int = 1;
const MAP_UPDATE_ELEM: libc::c_int = 2;
const MAP_GET_NEXT_KEY: libc::c_int = 4;
const PROG_LOAD: libc::c_int = 5;
const OBJ_GET: libc::c_int = 7;
const OBJ_GET_INFO_BY_FD: libc::c_int = 15;
const MAP_FREEZE: libc::c_int = 22;
const MAP_LOOKUP_BATCH: libc::c_int = 24;

/// Access modes of a description: BPF_F_RDONLY, BPF_F_WRONLY.
pub const READ_ONLY: u32 = 1 << 3;
/// See [`READ_ONLY`].
pub const WRITE_ONLY: u32 = 1 << 4;

/// What has an id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Programs.
    Program,
    /// Maps.
    Map,
    /// Links.
    Link,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Program => "program",
            Self::Map => "map",
            Self::Link => "link",
        })
    }
}

impl Kind {
    /// BPF_*_GET_NEXT_ID and BPF_*_GET_FD_BY_ID.
    const fn commands(self) -> (libc::c_int, libc::c_int) {
        match self {
            Self::Program => (11, 13),
            Self::Map => (12, 14),
            Self::Link => (31, 30),
        }
    }
}

/// What a map is: `struct bpf_map_info`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MapInfo {
    /// BPF_MAP_TYPE_*.
    pub kind: u32,
    /// Its number, which no other map has until the machine restarts.
    pub id: u32,
    /// Bytes of a key.
    pub key_size: u32,
    /// Bytes of a value.
    pub value_size: u32,
    /// Entries that fit.
    pub max_entries: u32,
    /// BPF_F_*.
    pub flags: u32,
    /// Its name, without zero bytes.
    pub name: Vec<u8>,
    /// The network device that has it; 0 for one in memory.
    pub interface: u32,
    /// Keys or values have types (BTF).
    pub has_types: bool,
    /// What some types of maps have beside.
    pub extra: u64,
}

/// How a map is made.
#[derive(Clone, Copy, Debug)]
pub struct NewMap<'a> {
    /// BPF_MAP_TYPE_*.
    pub kind: u32,
    /// Bytes of a key.
    pub key_size: u32,
    /// Bytes of a value.
    pub value_size: u32,
    /// Entries that fit.
    pub max_entries: u32,
    /// BPF_F_*.
    pub flags: u32,
    /// At most 15 letters, digits, `_` and `.`.
    pub name: &'a [u8],
}

/// Two words of 32 bits, as one of 64.
fn pair(first: u32, second: u32) -> u64 {
    u64::from(first) | u64::from(second) << 32
}

fn number(fd: BorrowedFd<'_>) -> u32 {
    fd.as_raw_fd().cast_unsigned()
}

/// Calls bpf(2); the kernel takes what is not there of the attributes for zeros.
///
/// # Safety
/// Whatever the command reads or writes through these attributes is live and large enough.
unsafe fn call(command: libc::c_int, attributes: &mut [u64]) -> nix::Result<libc::c_int> {
    let (start, size) = (attributes.as_mut_ptr(), size_of_val(attributes));
    // SAFETY: as the caller says; the attributes themselves are ours.
    let answer = check(unsafe { libc::syscall(libc::SYS_bpf, command, start, size) })?;
    libc::c_int::try_from(answer).map_err(|_| Errno::EOVERFLOW)
}

fn own(fd: libc::c_int) -> OwnedFd {
    // SAFETY: all callers pass what the kernel has just made for us.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

/// BPF_OBJ_GET_INFO_BY_FD: fills in what the kernel knows of it.
fn info(object: BorrowedFd<'_>, words: &mut [u32]) -> nix::Result<()> {
    let size = u32::try_from(size_of_val(words)).map_err(|_| Errno::EINVAL)?;
    let mut attributes = [pair(number(object), size), words.as_mut_ptr() as u64];
    // SAFETY: the kernel reads and writes `size` bytes.
    unsafe { call(OBJ_GET_INFO_BY_FD, &mut attributes) }.map(drop)
}

fn name_in(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_ne_bytes()).take_while(|&byte| byte != 0).collect()
}

/// What a map is, of a descriptor that is known to be one of a map: of programs and links the kernel tells something else in the same place.
///
/// # Errors
/// EBADF, EINVAL for what is not of BPF.
pub fn map_info(map: BorrowedFd<'_>) -> nix::Result<MapInfo> {
    let mut words = [0; 22];
    info(map, &mut words)?;
    let [kind, id, key_size, value_size, max_entries, flags, ..] = words;
    let (name, extra) = (name_in(&words[6..10]), u64::from(words[20]) | u64::from(words[21]) << 32);
    // btf_vmlinux_value_type_id, btf_id, btf_key_type_id, btf_value_type_id.
    let has_types = [11, 16, 17, 18].into_iter().any(|at| words[at] != 0);
    Ok(MapInfo {
        kind,
        id,
        key_size,
        value_size,
        max_entries,
        flags,
        name,
        interface: words[10],
        has_types,
        extra,
    })
}

/// The name of a program, and the maps that it uses, by their ids.
///
/// # Errors
/// EBADF.
pub fn program_info(program: BorrowedFd<'_>) -> nix::Result<(Vec<u8>, Vec<u32>)> {
    let mut words = [0; 20];
    info(program, &mut words)?;
    let count = words[13];
    let mut maps = vec![0u32; count as usize];
    let mut asked = [0; 20];
    let [low, high] = halves(maps.as_mut_ptr() as u64);
    // nr_map_ids and map_ids of struct bpf_prog_info.
    (asked[13], asked[14], asked[15]) = (count, low, high);
    info(program, &mut asked)?;
    Ok((name_in(&asked[16..20]), maps))
}

/// The map that an iterator goes through, by its id, if a link is one for that.
///
/// # Errors
/// EBADF.
pub fn iterated_map(link: BorrowedFd<'_>) -> nix::Result<Option<u32>> {
    /// BPF_LINK_TYPE_ITER.
    const ITERATOR: u32 = 4;
    let mut words = [0; 8];
    info(link, &mut words)?;
    // iter.map.map_id of struct bpf_link_info, behind the name of what it goes through, which is not asked for.
    Ok(Some(words[7]).filter(|&id| words[0] == ITERATOR && id != 0))
}

/// The lowest id above one that is in use.
///
/// # Errors
/// ENOENT if there is none, EPERM without CAP_SYS_ADMIN, EINVAL where the kernel has no such objects.
pub fn next_id(kind: Kind, id: u32) -> nix::Result<u32> {
    let mut attributes = [pair(id, 0)];
    // SAFETY: numbers only; the kernel writes the next one into the attributes.
    unsafe { call(kind.commands().0, &mut attributes) }?;
    u32::try_from(attributes[0] >> 32).map_err(|_| Errno::EOVERFLOW)
}

/// A descriptor of its own for an object. `access` is for maps: nothing, [`READ_ONLY`] or [`WRITE_ONLY`].
///
/// # Errors
/// ENOENT if it is gone, EPERM without CAP_SYS_ADMIN.
pub fn open_by_id(kind: Kind, id: u32, access: u32) -> nix::Result<OwnedFd> {
    let mut attributes = [pair(id, 0), access.into()];
    // SAFETY: numbers only.
    unsafe { call(kind.commands().1, &mut attributes) }.map(own)
}

/// Opens what is pinned under a name of a bpf file system.
///
/// # Errors
/// ENOENT, EACCES; EINVAL for what is no such name.
pub fn open_pinned(name: &CStr, access: u32) -> nix::Result<OwnedFd> {
    let mut attributes = [name.as_ptr() as u64, pair(0, access)];
    // SAFETY: the name ends with its NUL.
    unsafe { call(OBJ_GET, &mut attributes) }.map(own)
}

/// Makes a map, open in both directions.
///
/// # Errors
/// EPERM without CAP_BPF, E2BIG, ENOMEM, EINVAL where the kernel has no such maps.
pub fn create(new: NewMap<'_>) -> nix::Result<OwnedFd> {
    let mut name = [0; 16];
    name.get_mut(..new.name.len()).ok_or(Errno::ENAMETOOLONG)?.copy_from_slice(new.name);
    let word = |at: usize| u32::from_ne_bytes([name[at], name[at + 1], name[at + 2], name[at + 3]]);
    let mut attributes = [
        pair(new.kind, new.key_size),
        pair(new.value_size, new.max_entries),
        pair(new.flags, 0),
        pair(0, word(0)),
        pair(word(4), word(8)),
        pair(word(12), 0),
    ];
    // SAFETY: numbers and a name only.
    unsafe { call(MAP_CREATE, &mut attributes) }.map(own)
}

/// Takes from all that have it the right to change a map.
///
/// # Errors
/// EBUSY if it is frozen already.
pub fn freeze(map: BorrowedFd<'_>) -> nix::Result<()> {
    // SAFETY: numbers only.
    unsafe { call(MAP_FREEZE, &mut [number(map).into()]) }.map(drop)
}

/// A map with buffers for one of its entries.
#[derive(Debug)]
pub struct Entries<'a> {
    map: BorrowedFd<'a>,
    key: Vec<u8>,
    next: Vec<u8>,
    value: Vec<u8>,
    started: bool,
}

impl<'a> Entries<'a> {
    /// Of a map with keys and values of so many bytes, as its system calls have them.
    ///
    /// # Errors
    /// Never where the sizes are those that the kernel tells.
    pub fn of(map: BorrowedFd<'a>, info: &MapInfo, value_bytes: u64) -> nix::Result<Self> {
        let bytes = |size: u64| usize::try_from(size).map(|size| vec![0; size]).map_err(|_| Errno::E2BIG);
        let key = bytes(info.key_size.into())?;
        Ok(Self { map, next: key.clone(), key, value: bytes(value_bytes)?, started: false })
    }

    /// The next one: key and value.
    ///
    /// # Errors
    /// As bpf(2).
    pub fn next_entry(&mut self) -> nix::Result<Option<(&[u8], &[u8])>> {
        loop {
            let before = if self.started { self.key.as_ptr() as u64 } else { 0 };
            let mut attributes = [number(self.map).into(), before, self.next.as_mut_ptr() as u64];
            // SAFETY: both keys are as large as those of the map.
            match unsafe { call(MAP_GET_NEXT_KEY, &mut attributes) } {
                Err(Errno::ENOENT) => return Ok(None),
                found => found?,
            };
            std::mem::swap(&mut self.key, &mut self.next);
            self.started = true;
            match self.look_up() {
                // A place in an array of maps that has none.
                Err(Errno::ENOENT) => {}
                found => return found.map(|()| Some((&self.key[..], &self.value[..]))),
            }
        }
    }

    /// The value of a key.
    ///
    /// # Errors
    /// ENOENT if there is none, EINVAL for a key of another size.
    pub fn value_of(&mut self, key: &[u8]) -> nix::Result<&[u8]> {
        if key.len() != self.key.len() {
            return Err(Errno::EINVAL);
        }
        self.key.copy_from_slice(key);
        self.look_up()?;
        Ok(&self.value)
    }

    fn look_up(&mut self) -> nix::Result<()> {
        // A map without keys wants none.
        let key = if self.key.is_empty() { 0 } else { self.key.as_ptr() as u64 };
        let mut attributes = [number(self.map).into(), key, self.value.as_mut_ptr() as u64];
        // SAFETY: key and value are as large as those of the map.
        unsafe { call(MAP_LOOKUP_ELEM, &mut attributes) }.map(drop)
    }

    /// Whether a queue or stack has nothing in it.
    ///
    /// # Errors
    /// As bpf(2).
    pub fn is_empty(&mut self) -> nix::Result<bool> {
        match self.look_up() {
            Err(Errno::ENOENT) => Ok(true),
            found => found.map(|()| false),
        }
    }

    /// Puts an entry into the map.
    ///
    /// # Errors
    /// E2BIG, ENOMEM; EINVAL for sizes that are not those of the map.
    pub fn put(&self, key: &[u8], value: &[u8]) -> nix::Result<()> {
        if (key.len(), value.len()) != (self.key.len(), self.value.len()) {
            return Err(Errno::EINVAL);
        }
        let mut attributes = [number(self.map).into(), key.as_ptr() as u64, value.as_ptr() as u64];
        // SAFETY: key and value are as large as those of the map.
        unsafe { call(MAP_UPDATE_ELEM, &mut attributes) }.map(drop)
    }
}

/// The entries of a map, many by one call: since Linux 5.6, or later for some types of maps.
#[derive(Debug)]
pub struct Batches<'a> {
    map: BorrowedFd<'a>,
    sizes: (usize, usize),
    /// Entries that there is room for.
    count: u32,
    keys: Vec<u8>,
    values: Vec<u8>,
    /// Where the kernel goes on, in words of its own: a key, or the number of a place in a hash table.
    place: Vec<u8>,
    started: bool,
    ended: bool,
}

impl<'a> Batches<'a> {
    /// Of a map with keys and values of so many bytes.
    ///
    /// # Errors
    /// Never where the sizes are those that the kernel tells.
    pub fn of(map: BorrowedFd<'a>, info: &MapInfo, value_bytes: u64) -> nix::Result<Self> {
        const ROOM: u64 = 1 << 20;
        const MOST: u64 = 1 << 12;
        let number = |size: u64| usize::try_from(size).map_err(|_| Errno::E2BIG);
        let count = (ROOM / (u64::from(info.key_size) + value_bytes).max(1)).clamp(1, MOST);
        let sizes = (number(info.key_size.into())?, number(value_bytes)?);
        let (keys, values) = (vec![0; sizes.0 * number(count)?], vec![0; sizes.1 * number(count)?]);
        let place = vec![0; sizes.0.max(size_of::<u32>())];
        let count = u32::try_from(count).map_err(|_| Errno::E2BIG)?;
        Ok(Self { map, sizes, count, keys, values, place, started: false, ended: false })
    }

    /// The next ones, in the order of [`Entries::next_entry`]: their keys, and their values. `None` after the last.
    ///
    /// # Errors
    /// As bpf(2), if this kernel does not do so for such a map; ENOSPC if there is no room for those that lie in one place of a hash table.
    pub fn next_batch(&mut self) -> nix::Result<Option<(&[u8], &[u8])>> {
        if self.ended {
            return Ok(None);
        }
        let place = self.place.as_mut_ptr() as u64;
        let mut attributes = [
            if self.started { place } else { 0 },
            place,
            self.keys.as_mut_ptr() as u64,
            self.values.as_mut_ptr() as u64,
            pair(self.count, number(self.map)),
        ];
        // SAFETY: there is room for `count` keys and values of the map, and for what tells where to go on.
        match unsafe { call(MAP_LOOKUP_BATCH, &mut attributes) } {
            // The end was reached, mostly not without some.
            Err(Errno::ENOENT) => self.ended = true,
            found => drop(found?),
        }
        self.started = true;
        let [found, _] = halves(attributes[4]);
        let found = usize::try_from(found.min(self.count)).map_err(|_| Errno::E2BIG)?;
        Ok(Some((&self.keys[..found * self.sizes.0], &self.values[..found * self.sizes.1])))
    }
}

/// Loads a program that does nothing but name a map, and lets it go.
///
/// # Errors
/// EACCES if the map is for one other program alone (excl_prog_hash), EPERM without CAP_BPF, or before Linux 5.11 beyond RLIMIT_MEMLOCK.
pub fn use_in_program(map: BorrowedFd<'_>) -> nix::Result<()> {
    const SOCKET_FILTER: u32 = 1;
    // r1 = the map (BPF_PSEUDO_MAP_FD); r0 = 0; exit.
    let code = [0x18 | 1 << 8 | 1 << 12 | u64::from(number(map)) << 32, 0, 0xb7, 0x95];
    let mut attributes = [pair(SOCKET_FILTER, 4), code.as_ptr() as u64, c"GPL".as_ptr() as u64];
    // SAFETY: four instructions, and a name that ends with its NUL.
    unsafe { call(PROG_LOAD, &mut attributes) }.map(own).map(drop)
}
