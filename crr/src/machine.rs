//! What this kernel gives to a fresh task of an ABI: the vDSO and the areas around it.
//!
//! Never assumed: a program of that ABI is started and looked at.

use crate::blob::Blob;
use crate::fault::{self, Point};
use crate::restore::plain::as_bytes;
use crate::sys::process;
use anyhow::{Context, Result, bail};
use images::Abi;
use shared::proto::{ProbeReport, ProbeRequest, SpecialArea};
use std::fs;
use std::io::{IoSliceMut, Read, Write};
use std::os::fd::AsRawFd;
use std::process::{Child, Command, Stdio};

/// What tells this boot of the machine from all others.
///
/// # Errors
/// If /proc does not answer.
pub(crate) fn boot_id() -> Result<String> {
    const FILE: &str = "/proc/sys/kernel/random/boot_id";
    Ok(fs::read_to_string(FILE).context(FILE)?.trim_end().to_owned())
}

/// The vDSO of one ABI on the running kernel.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Live {
    /// vvar, vvar_vclock, vdso, relative to the vDSO; length 0 where there is none.
    pub special: [SpecialArea; 3],
    /// Its code.
    pub image: Vec<u8>,
    /// Whether a task can move all this, and lives on. What is not there can be moved.
    pub moves: bool,
}

/// Names of the special areas in `/proc/PID/maps`, in the order of [`Live::special`].
pub const SPECIAL_NAMES: [&str; 3] = ["[vvar]", "[vvar_vclock]", "[vdso]"];

/// Looks at a fresh task.
///
/// # Errors
/// If a program of that ABI cannot be run.
pub fn live(abi: Abi) -> Result<Live> {
    let mut live = match abi {
        Abi::X86_64 => own()?,
        Abi::Ia32 => {
            let (live, report, survived) = probe()?;
            let moves = survived && report.move_each >= 0;
            Live { moves: moves || live.image.is_empty(), ..live }
        }
    };
    live.moves &= live.image.is_empty() || !fault::is_set(Point::VdsoImmovable);
    Ok(live)
}

/// What this process has.
fn own() -> Result<Live> {
    let maps = fs::read_to_string("/proc/self/maps").context("/proc/self/maps")?;
    let live = look(&maps, i32::try_from(std::process::id())?)?;
    let Some((vdso, _)) = maps.lines().find_map(|line| range_of(line, SPECIAL_NAMES[2])) else {
        return Ok(live);
    };
    let areas = live.special.iter().filter(|area| area.len != 0);
    let areas: Vec<_> = areas.map(|area| (vdso.wrapping_add_signed(area.offset), area.len)).collect();
    let moves = process::can_move(&areas).context("try to move the vDSO")?;
    Ok(Live { moves, ..live })
}

/// Has a fresh ia32 task try what a restore needs. `None` in the second place: it died after the first answers,
/// moving its vDSO.
///
/// # Errors
/// If no ia32 program can be run.
pub fn probe() -> Result<(Live, ProbeReport, bool)> {
    let mut fresh = Fresh::start(Abi::Ia32)?;
    let request = ProbeRequest { special: fresh.live.special };
    let stdin = fresh.child.stdin.as_mut().context("stdin")?;
    stdin.write_all(&[1]).and_then(|()| stdin.write_all(as_bytes(&request))).context("ask helper32")?;
    let stdout = fresh.child.stdout.as_mut().context("stdout")?;
    let mut report = [0i64; size_of::<ProbeReport>() / 8];
    read_words(stdout, &mut report).context("helper32 gave no answer")?;
    let mut whole = report;
    let survived = read_words(stdout, &mut whole).is_ok();
    let live = fresh.live.clone();
    fresh.end()?;
    Ok((live, ProbeReport::from_words(if survived { whole } else { report }), survived))
}

fn read_words<const N: usize>(from: &mut impl Read, words: &mut [i64; N]) -> std::io::Result<()> {
    for word in words {
        let mut bytes = [0; 8];
        from.read_exact(&mut bytes)?;
        *word = i64::from_le_bytes(bytes);
    }
    Ok(())
}

/// The program that restores tasks of an ABI, started only to be looked at.
struct Fresh {
    child: Child,
    live: Live,
}

impl Fresh {
    fn start(abi: Abi) -> Result<Self> {
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
        let looked = (|| {
            let mut byte = [0];
            child
                .stdout
                .as_mut()
                .context("stdout")?
                .read_exact(&mut byte)
                .context("helper32 died when probed")?;
            let maps =
                fs::read_to_string(format!("/proc/{}/maps", child.id())).context("maps of helper32")?;
            look(&maps, i32::try_from(child.id())?)
        })();
        match looked {
            Ok(live) => Ok(Self { child, live }),
            Err(error) => {
                drop(child.stdin.take());
                child.wait().context("wait for helper32")?;
                Err(error)
            }
        }
    }

    fn end(mut self) -> Result<()> {
        drop(self.child.stdin.take());
        self.child.wait().context("wait for helper32").map(drop)
    }
}

fn look(maps: &str, pid: i32) -> Result<Live> {
    let ranges = SPECIAL_NAMES.map(|name| maps.lines().find_map(|line| range_of(line, name)));
    let Some((vdso, end)) = ranges[2] else { return Ok(Live { moves: true, ..Live::default() }) };
    let mut live = Live {
        special: [SpecialArea::default(); 3],
        image: vec![0; usize::try_from(end - vdso)?],
        moves: true,
    };
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
            assert!(live.moves, "{abi}");
        }
    }
}
