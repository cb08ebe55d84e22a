//! `crr dedup`.

use super::Outcome;
use crate::progress::bytes;
use crate::store;
use clap::Args;
use std::path::PathBuf;
use std::process::ExitCode;

#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  crr dedup -D 3                      punch holes into the files of all that 3 builds on"
)]
pub(super) struct Dedup {
    /// Directory of the images that build on the others.
    #[arg(short = 'D', long, value_name = "DIR", default_value = ".")]
    images_dir: PathBuf,
}

impl Dedup {
    pub(super) fn run(&self, level: u8) -> Outcome {
        crate::log::start(None, level)?;
        let freed = store::dedup(&self.images_dir)?;
        log::info!("gave back {}", bytes(freed));
        Ok(ExitCode::SUCCESS)
    }
}
