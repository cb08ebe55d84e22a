//! All behavioural tests, one module per resource. One binary, so that they run beside each other.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod harness;
mod mapping;
mod memory;
mod registers;
mod signals;
mod syscalls;
mod threads;
