//! crr: checkpoint and restore of x86_64 and ia32 process trees.
//!
//! [`dump`] observes a running tree and writes it to an image directory ([`store`]); [`restore`] plans a
//! tree from the images, forks it and has every task restored by an exec'd program of its own ABI.

pub mod blob;
pub mod changed;
pub mod cli;
pub mod dump;
pub mod fault;
mod keeper;
pub mod kernel;
mod lazy;
pub mod log;
pub mod machine;
pub mod page_server;
mod parallel;
pub mod proc;
pub mod progress;
pub mod ptrace;
pub mod refusal;
pub mod remote;
pub mod resource;
pub mod restore;
mod stats;
pub mod store;
pub mod sys;
pub mod track;
