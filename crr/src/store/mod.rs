//! The image directory, or stream: writing a checkpoint so that it is whole or absent, reading it trusting nothing.
//!
//! [`Writer`] is used by dump, [`Checkpoint`] by restore and show. Both run the same cross checks ([`check`]):
//! what restore would refuse to read, dump refuses to write.

mod assemble;
mod available;
mod chain;
pub mod check;
mod contents;
mod dedup;
mod direct;
mod kept;
mod offer;
mod packing;
mod pages;
mod place;
mod reader;
mod sink;
mod spool;
mod stream;
mod unchecked;
mod writer;

pub use chain::Round;
pub use contents::Pages;
pub(crate) use contents::{give_back, piece};
pub use dedup::dedup;
pub(crate) use direct::Aligned;
pub use direct::DirectIo;
pub use offer::{Offered, offer};
pub use packing::Compression;
pub(crate) use packing::Packer;
pub use pages::block_crcs;
pub(crate) use pages::{BLOCK_SIZE, verify_block, verify_bytes};
pub use place::{Destination, STREAM, Source};
pub use reader::Checkpoint;
pub use sink::Sink;
pub use spool::{Left, Spool};
pub(crate) use stream::GivenUp;
pub(crate) use unchecked::Unchecked;
pub use writer::Writer;

/// Bytes of a page, as a length in memory.
pub(crate) const PAGE: usize = 4096;
const _: () = assert!(PAGE as u64 == images::id::PAGE_SIZE);

#[cfg(test)]
mod tests;
