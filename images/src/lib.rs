//! The on-disk format of a crr checkpoint: what is recorded, and how the records become bytes.
//!
//! An image directory holds a handful of files. Each metadata file is one [`container`]: a fixed header, one
//! postcard-encoded record tree and a checksum. Page contents are raw and page-aligned in a file of their
//! own, so that they can be read and written without being looked at. `FORMAT.md` beside this crate describes
//! every byte.
//!
//! Nothing here does I/O, holds a pointer or depends on the width of the machine word: the same crate is
//! compiled for the coordinator, for the helper and for anyone who wants to read an image.
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

pub mod aio;
pub mod attribute;
pub mod bpf;
pub mod container;
pub mod event;
pub mod external;
pub mod fanotify;
pub mod file;
pub mod id;
pub mod inet;
pub mod inotify;
pub mod interface;
pub mod inventory;
pub mod late;
pub mod lock;
pub mod memory;
pub mod mqueue;
pub mod netlink;
pub mod packet;
pub mod pipe;
mod readable;
pub mod seccomp;
pub mod sharing;
pub mod signal;
pub mod socket;
pub mod socket_option;
pub mod sysv;
pub mod task;
pub mod terminal;
pub mod thread;
pub mod timer;

pub use container::{Error, Kind};
pub use id::{Abi, Addr, DescriptionId, FilterId, PathId, Pid, SharedId, TaskFd, VdsoId};
