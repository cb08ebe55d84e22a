//! `/proc/PID/status` and `/proc/PID/task/TID/status`: identity, signals and flags of a thread.

use super::{Malformed, decimal, hex, octal};
use images::Pid;

/// The lines that are used. Those that a kernel may lack are optional.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Status {
    /// Name, escapes undone.
    pub comm: Vec<u8>,
    /// File mode creation mask. A thread that has ended has none, nor has one that is about to: it is still called running then.
    pub umask: Option<u32>,
    /// State letter.
    pub state: u8,
    /// Thread group.
    pub tgid: Pid,
    /// Who traces it, 0 for nobody.
    pub tracer: Pid,
    /// Real, effective, saved, file system.
    pub uid: [u32; 4],
    /// Real, effective, saved, file system.
    pub gid: [u32; 4],
    /// Supplementary groups.
    pub groups: Vec<u32>,
    /// Locked memory in KiB.
    pub locked_kib: u64,
    /// Memory in KiB that is pinned for good.
    pub pinned_kib: u64,
    /// Resident memory in KiB.
    pub resident_kib: u64,
    /// Private memory that differs from its files in KiB, in swap or not.
    pub private_kib: u64,
    /// Memory nodes that it may use: bit n of word m is node 64 m + n. Empty without CONFIG_CPUSETS.
    pub memory_nodes: Vec<u64>,
    /// False after PR_SET_THP_DISABLE.
    pub thp_enabled: Option<bool>,
    /// Address bits that the processor looks at (LAM).
    pub untag_mask: Option<u64>,
    /// Blocked signals.
    pub blocked: u64,
    /// Ignored signals.
    pub ignored: u64,
    /// Signals with a handler.
    pub caught: u64,
    /// Signals pending for the thread.
    pub pending: u64,
    /// Signals pending for the task.
    pub shared_pending: u64,
    /// Inheritable, permitted, effective, bounding, ambient capabilities.
    pub caps: [u64; 5],
    /// PR_SET_NO_NEW_PRIVS.
    pub no_new_privs: bool,
    /// How often it gave its processor away by itself.
    pub voluntary_switches: u64,
    /// Seccomp mode.
    pub seccomp: u32,
    /// How many filters of seccomp it has.
    pub seccomp_filters: usize,
    /// `Speculation_Store_Bypass` or `SpeculationIndirectBranch` is forbidden to the thread for good.
    pub speculation_forbidden: bool,
    /// `x86_Thread_features`: `shstk` and the like.
    pub thread_features: Vec<u8>,
}

/// Undoes the escapes of `Name:`: `\n` and `\\`, by string_escape_str() of fs/proc/array.c.
fn unescape(name: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(name.len());
    let mut bytes = name.iter();
    while let Some(&byte) = bytes.next() {
        match (byte, bytes.as_slice().first()) {
            (b'\\', Some(b'n')) => out.push(b'\n'),
            (b'\\', Some(b'\\')) => out.push(b'\\'),
            _ => {
                out.push(byte);
                continue;
            }
        }
        bytes.next();
    }
    out
}

fn numbers<T: std::str::FromStr>(text: &[u8]) -> Option<Vec<T>> {
    text.split(u8::is_ascii_whitespace).filter(|word| !word.is_empty()).map(decimal).collect()
}

/// A mask as `%*pb` prints it: words of 32 bits, the highest first, with commas between.
fn nodes(mask: &[u8]) -> Option<Vec<u64>> {
    let words: Option<Vec<u64>> = mask.rsplit(|&byte| byte == b',').map(hex).collect();
    Some(words?.chunks(2).map(|pair| pair[0] | pair.get(1).unwrap_or(&0) << 32).collect())
}

/// Parses the file.
///
/// # Errors
/// [`Malformed`] with the line.
pub fn parse(text: &[u8]) -> Result<Status, Malformed> {
    let mut status = Status::default();
    let mut seen = 0;
    for line in text.split(|&b| b == b'\n') {
        let Some(colon) = line.iter().position(|&b| b == b':') else { continue };
        let value = line[colon + 1..].strip_prefix(b"\t").unwrap_or(&line[colon + 1..]);
        let known = set(&mut status, &line[..colon], value)?;
        seen += u32::from(known);
    }
    // Every line that is not optional; a kernel without one of them is not one that crr knows.
    const NEEDED: u32 = 17;
    if seen < NEEDED { Err(Malformed { file: "status", field: "set of lines" }) } else { Ok(status) }
}

/// Takes over one line. True when it is one of the lines that every kernel writes.
fn set(status: &mut Status, key: &[u8], value: &[u8]) -> Result<bool, Malformed> {
    let bad = |field| Malformed { file: "status", field };
    let ids = |field| numbers(value).and_then(|ids| ids.try_into().ok()).ok_or_else(|| bad(field));
    let mask = |field| hex(value).ok_or_else(|| bad(field));
    match key {
        b"Name" => status.comm = unescape(value),
        b"State" => status.state = *value.first().ok_or_else(|| bad("State"))?,
        b"Tgid" => status.tgid = decimal(value).ok_or_else(|| bad("Tgid"))?,
        b"TracerPid" => status.tracer = decimal(value).ok_or_else(|| bad("TracerPid"))?,
        b"Uid" => status.uid = ids("Uid")?,
        b"Gid" => status.gid = ids("Gid")?,
        b"Groups" => status.groups = numbers(value).ok_or_else(|| bad("Groups"))?,
        b"SigPnd" => status.pending = mask("SigPnd")?,
        b"ShdPnd" => status.shared_pending = mask("ShdPnd")?,
        b"SigIgn" => status.ignored = mask("SigIgn")?,
        b"SigCgt" => status.caught = mask("SigCgt")?,
        b"CapInh" => status.caps[0] = mask("CapInh")?,
        b"CapPrm" => status.caps[1] = mask("CapPrm")?,
        b"CapEff" => status.caps[2] = mask("CapEff")?,
        b"CapBnd" => status.caps[3] = mask("CapBnd")?,
        b"CapAmb" => status.caps[4] = mask("CapAmb")?,
        b"NoNewPrivs" => status.no_new_privs = value == b"1",
        _ => {
            set_optional(status, key, value)?;
            return Ok(false);
        }
    }
    Ok(true)
}

/// Lines that zombies, kernel threads or some kernels lack.
fn set_optional(status: &mut Status, key: &[u8], value: &[u8]) -> Result<(), Malformed> {
    let bad = |field| Malformed { file: "status", field };
    match key {
        b"Umask" => status.umask = Some(octal(value).ok_or_else(|| bad("Umask"))?),
        b"VmLck" => {
            let kib = value.trim_ascii().strip_suffix(b" kB").and_then(decimal);
            status.locked_kib = kib.ok_or_else(|| bad("VmLck"))?;
        }
        b"VmPin" => {
            let kib = value.trim_ascii().strip_suffix(b" kB").and_then(decimal);
            status.pinned_kib = kib.ok_or_else(|| bad("VmPin"))?;
        }
        b"VmRSS" => {
            let kib = value.trim_ascii().strip_suffix(b" kB").and_then(decimal);
            status.resident_kib = kib.ok_or_else(|| bad("VmRSS"))?;
        }
        b"RssAnon" | b"VmSwap" => {
            let kib: Option<u64> = value.trim_ascii().strip_suffix(b" kB").and_then(decimal);
            status.private_kib += kib.ok_or_else(|| bad("RssAnon"))?;
        }
        b"Mems_allowed" => status.memory_nodes = nodes(value).ok_or_else(|| bad("Mems_allowed"))?,
        b"THP_enabled" => status.thp_enabled = Some(value == b"1"),
        b"untag_mask" => {
            let mask = value.strip_prefix(b"0x").and_then(hex);
            status.untag_mask = Some(mask.ok_or_else(|| bad("untag_mask"))?);
        }
        b"SigBlk" => status.blocked = hex(value).ok_or_else(|| bad("SigBlk"))?,
        b"Seccomp_filters" => {
            status.seccomp_filters = decimal(value).ok_or_else(|| bad("Seccomp_filters"))?;
        }
        b"Seccomp" => status.seccomp = decimal(value).ok_or_else(|| bad("Seccomp"))?,
        b"Speculation_Store_Bypass" | b"SpeculationIndirectBranch" => {
            // "thread force mitigated", "conditional force disabled".
            status.speculation_forbidden |= value.windows(5).any(|word| word == b"force");
        }
        b"voluntary_ctxt_switches" => {
            status.voluntary_switches = decimal(value).ok_or_else(|| bad("voluntary_ctxt_switches"))?;
        }
        b"x86_Thread_features" => status.thread_features = value.trim_ascii().to_vec(),
        _ => {}
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const CAPTURED: &[u8] =
        b"Name:\ta\\\\b\\nc\nUmask:\t0022\nState:\tS (sleeping)\nTgid:\t14901\nNgid:\t0\n\
        Pid:\t14902\nPPid:\t14899\nTracerPid:\t7\nUid:\t1000\t0\t0\t1001\nGid:\t0\t0\t0\t5\nFDSize:\t256\n\
        Groups:\t4 24 1000 \nKthread:\t0\nVmLck:\t      12 kB\nVmPin:\t      16 kB\nVmRSS:\t    1500 kB\nRssAnon:\t     700 kB\nVmSwap:\t      20 kB\nTHP_enabled:\t1\n\
        untag_mask:\t0xffffffffffffffff\nThreads:\t1\nSigQ:\t0/96365\nSigPnd:\t0000000000000200\n\
        ShdPnd:\t0000000000000000\nSigBlk:\t0000000000010000\nSigIgn:\t0000000000000006\n\
        SigCgt:\t0000000180000002\nCapInh:\t0000000000000000\nCapPrm:\t000001fffeffffff\n\
        CapEff:\t000001fffeffffff\nCapBnd:\t000001fffeffffff\nCapAmb:\t0000000000000001\nNoNewPrivs:\t1\n\
        Seccomp:\t2\nSeccomp_filters:\t1\nSpeculation_Store_Bypass:\tthread force mitigated\n\
        SpeculationIndirectBranch:\tconditional enabled\nx86_Thread_features:\tshstk \nx86_Thread_features_locked:\t\n\
        Mems_allowed:\t00000000,00000010,00000003\nvoluntary_ctxt_switches:\t150\n";

    #[test]
    fn captured_text() {
        let status = parse(CAPTURED).unwrap();
        assert_eq!(status.comm, b"a\\b\nc");
        assert_eq!((status.umask, status.state, status.tgid, status.tracer), (Some(0o22), b'S', 14901, 7));
        assert_eq!((status.uid, status.gid), ([1000, 0, 0, 1001], [0, 0, 0, 5]));
        assert_eq!(status.groups, [4, 24, 1000]);
        assert_eq!(status.blocked, 0x1_0000);
        assert_eq!(
            (status.locked_kib, status.pinned_kib, status.ignored, status.pending),
            (12, 16, 6, 0x200)
        );
        assert_eq!((status.resident_kib, status.memory_nodes), (1500, vec![0x10_0000_0003, 0]));
        assert_eq!(status.private_kib, 720);
        assert_eq!(status.caught, 0x1_8000_0002);
        assert_eq!(status.caps, [0, 0x1ff_feff_ffff, 0x1ff_feff_ffff, 0x1ff_feff_ffff, 1]);
        assert!(status.no_new_privs && status.speculation_forbidden);
        assert_eq!((status.seccomp, status.seccomp_filters, status.thp_enabled), (2, 1, Some(true)));
        assert_eq!(status.untag_mask, Some(u64::MAX));
        assert_eq!(status.thread_features, b"shstk");
        assert_eq!(status.voluntary_switches, 150);
    }

    #[test]
    fn a_thread_about_to_end_has_no_umask() {
        let text = String::from_utf8(CAPTURED.to_vec()).unwrap().replace("Umask:\t0022\n", "");
        assert_eq!(parse(text.as_bytes()).unwrap().umask, None);
    }

    #[test]
    fn a_missing_line_is_noticed() {
        let cut = CAPTURED.len() - 300;
        assert!(parse(&CAPTURED[..cut]).is_err());
        assert!(parse(b"").is_err());
    }
}
