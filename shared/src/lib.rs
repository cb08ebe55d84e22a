//! What the coordinator and the restoring tasks have in common.
//!
//! - [`abi`]: kernel layouts of the two ABIs under equal names;
//! - [`op`]: the instructions a restoring task follows, and [`proto`]: how it is told and how it reports;
//! - [`plan`]: pure code that turns image records into ops, before anything is touched;
//! - `restorer` (feature): the code that runs the ops inside the task, compiled once for each ABI.
#![no_std]

extern crate alloc;

pub mod abi;
pub mod op;
pub mod plan;
pub mod proto;
pub mod range;
#[cfg(feature = "restorer")]
pub mod restorer;
#[cfg(feature = "restorer")]
pub mod sys;
