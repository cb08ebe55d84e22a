//! What the coordinator and the restoring tasks have in common.
#![no_std]
extern crate alloc;
