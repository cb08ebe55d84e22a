//! What a pre-dump and a dump are told of the pre-dumps before them, and of how page contents are stored.

use super::Usage;
use crate::progress::bytes;
use crate::store::{self, Compression, Destination, DirectIo};
use anyhow::Result;
use clap::Args;
use std::path::PathBuf;

/// The flags.
#[derive(Debug, Args)]
pub(super) struct Rounds {
    /// The pre-dump before this one: only what was written since is recorded. As seen from the directory of the images.
    #[arg(long, value_name = "DIR")]
    pub(super) prev_images_dir: Option<PathBuf>,

    /// Taken for the sake of those who are used to it: a pre-dump has writes tracked in any case.
    #[arg(long, hide = true)]
    track_mem: bool,

    /// Give back the room of pages that the pre-dumps before hold and this one has anew, as crr dedup does.
    #[arg(long, requires = "prev_images_dir")]
    auto_dedup: bool,

    /// Make page contents smaller: with "lz4", or "zstd" and a level, 1 if none is given. A dump stops the tree for longer then.
    #[arg(long, value_name = "METHOD[:LEVEL]", num_args = 0..=1, require_equals = true, default_missing_value = "lz4")]
    pub(super) compress: Option<Compression>,

    /// When page contents are written to the disk past the page cache: "auto" if they are larger than half of the memory that is left.
    #[arg(long, value_name = "WHEN", default_value = "auto", value_enum)]
    pub(super) direct_io: DirectIo,
}

impl Rounds {
    /// Looks that what is asked for can be had of such images.
    pub(super) fn check(&self, destination: &Destination) -> Result<()> {
        if self.auto_dedup && !matches!(destination, Destination::Dir(_)) {
            return Err(Usage("--auto-dedup needs all images in a directory\n  hint: use crr dedup where they are put together".to_owned()).into());
        }
        Ok(())
    }

    /// What follows the images. These are whole already, so what fails is no failure of the dump.
    pub(super) fn dedup(&self, destination: &Destination) {
        if !self.auto_dedup {
            return;
        }
        match store::dedup(destination.dir()) {
            Ok(freed) => log::info!("gave back {}", bytes(freed)),
            Err(error) => log::warn!("--auto-dedup: {error:#}"),
        }
    }
}
