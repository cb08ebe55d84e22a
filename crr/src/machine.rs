//! What this kernel gives to a fresh task of an ABI: the vDSO and the areas around it.
//!
//! Never assumed: a program of that ABI is started and looked at.

use crate::blob::Blob;
use anyhow::{Context, Result, bail};
use images::Abi;
use shared::proto::SpecialArea;
use std::fs;
use std::io::{IoSliceMut, Read};
use std::os::fd::AsRawFd;
use std::process::{Command, Stdio};

/// The vDSO of one ABI on the running kernel.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Live {
    /// vvar, vvar_vclock, vdso, relative to the vDSO; length 0 where there is none.
    pub special: [SpecialArea; 3],
    /// Its code.
    pub image: Vec<u8>,
}

/// Names of the special areas in `/proc/PID/maps`, in the order of [`Live::special`].
pub const SPECIAL_NAMES: [&str; 3] = ["[vvar]", "[vvar_vclock]", "[vdso]"];

/// Looks at a fresh task.
///
/// # Errors
/// If a program of that ABI cannot be run.
pub fn live(abi: Abi) -> Result<Live> {
    if abi == Abi::X86_64 {
        let maps = fs::read_to_string("/proc/self/maps").context("/proc/self/maps")?;
        return look(&maps, i32::try_from(std::process::id())?);
    }
    /// Any place where a fresh task has nothing; the kernel's choices begin far above.
    const BASE: u64 = 0x10_0000;
    let file = Blob::of(abi)?.executable(BASE)?;
    // The child finds the file under the same number: it is closed by exec, after the kernel has opened it.
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    let mut child = Command::new(&path)
        .arg("probe")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .with_context(|| format!("this kernel does not run {abi} programs (IA32_EMULATION off?)"))?;
    let answer = (|| {
        let mut byte = [0];
        child.stdout.as_mut().context("stdout")?.read_exact(&mut byte).context("helper32 died when probed")?;
        let maps = fs::read_to_string(format!("/proc/{}/maps", child.id())).context("maps of helper32")?;
        look(&maps, i32::try_from(child.id())?)
    })();
    drop(child.stdin.take());
    child.wait().context("wait for helper32")?;
    answer
}

fn look(maps: &str, pid: i32) -> Result<Live> {
    let ranges = SPECIAL_NAMES.map(|name| maps.lines().find_map(|line| range_of(line, name)));
    let Some((vdso, end)) = ranges[2] else { return Ok(Live::default()) };
    let mut live = Live { special: [SpecialArea::default(); 3], image: vec![0; usize::try_from(end - vdso)?] };
    for (area, range) in live.special.iter_mut().zip(ranges) {
        if let Some((start, end)) = range {
            *area = SpecialArea { offset: i64::try_from(start)? - i64::try_from(vdso)?, len: end - start };
        }
    }
    let remote = nix::sys::uio::RemoteIoVec { base: usize::try_from(vdso)?, len: live.image.len() };
    let read = nix::sys::uio::process_vm_readv(
        nix::unistd::Pid::from_raw(pid),
        &mut [IoSliceMut::new(&mut live.image)],
        &[remote],
    )
    .context("read the vDSO")?;
    if read != live.image.len() {
        bail!("read {read} of {} bytes of the vDSO", live.image.len());
    }
    Ok(live)
}

fn range_of(line: &str, name: &str) -> Option<(u64, u64)> {
    if !line.ends_with(name) {
        return None;
    }
    let (start, rest) = line.split_once('-')?;
    let (end, _) = rest.split_once(' ')?;
    Some((u64::from_str_radix(start, 16).ok()?, u64::from_str_radix(end, 16).ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_abis_have_a_vdso_here() {
        for abi in [Abi::X86_64, Abi::Ia32] {
            let live = live(abi).unwrap();
            assert!(live.image.starts_with(b"\x7fELF"), "{abi}");
            assert!(live.special[0].len > 0 && live.special[0].offset < 0, "{abi}: {:?}", live.special);
        }
    }
}
