//! Kernel layouts of both ABIs under equal names, so that code above them is written once.
//!
//! A restoring program uses the one of its own target, [`native`]; the coordinator can name either.

pub mod common;
pub mod ia32;
pub mod siginfo;
pub mod x86_64;

#[cfg(target_arch = "x86")]
pub use ia32 as native;
#[cfg(target_arch = "x86_64")]
pub use x86_64 as native;
