//! One file a resource: how it is dumped, and the part of its restore that 64-bit code does.

pub mod file;
pub mod pipe;
pub mod shared_memory;
