//! All behavioural tests, one module per resource. One binary, so that they run beside each other.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod attributes;
mod commands;
mod deleted;
mod dispatch;
mod endurance;
mod events;
mod failures;
mod families;
mod files;
mod harness;
mod identity;
mod locks;
mod mapping;
mod memory;
mod modes;
mod pending;
mod pipes;
mod ptys;
mod refused;
mod registers;
mod relatives;
mod rights;
mod room;
mod seccomp;
mod signals;
mod stops;
mod syscalls;
mod terminal;
mod threads;
mod timers;
mod tree;
mod unix_names;
mod unix_sockets;
mod waits;
mod zombies;
