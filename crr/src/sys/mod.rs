//! Thin wrappers around the system calls that nix lacks or gets wrong for 32-bit tracees.

pub mod exec;
pub mod process;
