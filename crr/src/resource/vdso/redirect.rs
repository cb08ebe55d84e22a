//! The code of a vDSO of another kernel, with every entry point leading to that of the running one.
//!
//! What the code itself would read, the kernel's data beside it, is not there any more; so each function is left by a jump right where it
//! begins. What a function of another kernel could disagree about with its caller, and what the running one lacks, becomes a system
//! call. What neither has stays as it was, and so does code that is no more than system calls.

use super::symbols::{Function, Functions, functions};
use anyhow::{Context, Result, ensure};
use images::Abi;
use std::collections::BTreeMap;

/// The vDSO of the running kernel, and where it lies in the task.
#[derive(Clone, Copy, Debug)]
pub(super) struct Target<'a> {
    pub(super) functions: &'a Functions,
    pub(super) at: u64,
}

/// How far a jump from one vDSO to another reaches.
pub(super) const REACH: u64 = 1 << 30;

/// Calls of the kernel that stand for functions, by number in x86_64 and ia32.
const CALLS: [(&str, Option<u32>, Option<u32>); 7] = [
    ("clock_gettime", Some(228), Some(265)),
    ("clock_gettime64", None, Some(403)),
    ("clock_getres", Some(229), Some(266)),
    ("clock_getres_time64", None, Some(406)),
    ("gettimeofday", Some(96), Some(78)),
    ("time", Some(201), Some(13)),
    ("getcpu", Some(309), Some(318)),
];

/// By it ia32 code enters the kernel.
const KERNEL_VSYSCALL: &str = "__kernel_vsyscall";
/// `int 0x80`: by it a call is made again, and behind it lies where the kernel returns to.
pub(super) const INT_80: [u8; 2] = [0xcd, 0x80];

/// What an entry point is made to do.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Way {
    /// Go on elsewhere.
    Jump(u64),
    /// This code.
    Code(Vec<u8>),
    /// What it did.
    Keep,
}

/// An entry point: its names lead to the same place.
#[derive(Clone, Debug)]
struct Entry {
    offset: u64,
    /// Bytes that are its own.
    room: u64,
    way: Way,
}

/// The image as it is to lie at `at`, for a kernel whose vDSO is `live`.
///
/// # Errors
/// If an entry point has no room for a jump.
pub(super) fn redirect(abi: Abi, image: &[u8], at: u64, live: Option<Target<'_>>) -> Result<Vec<u8>> {
    let functions = functions(image)?;
    let entries = entries(abi, image, &functions, live)?;
    let mut out = image.to_vec();
    let mut padding = Padding::of(image, &functions);
    for entry in &entries {
        let code_at = |from: u64| match &entry.way {
            Way::Jump(to) => jump(abi, at + from, *to),
            Way::Code(code) => Ok(code.clone()),
            Way::Keep => Ok(Vec::new()),
        };
        let code = code_at(entry.offset)?;
        if code.len() as u64 <= entry.room {
            put(&mut out, entry.offset, &code)?;
            continue;
        }
        // Two bytes lead to padding nearby.
        let island = (entry.room >= 2).then(|| padding.take(entry.offset + 2, code.len() as u64)).flatten();
        let island =
            island.with_context(|| format!("no room for a jump at its entry point {:#x}", entry.offset))?;
        put(&mut out, island, &code_at(island)?)?;
        let distance = i8::try_from(island.cast_signed() - (entry.offset + 2).cast_signed())?;
        put(&mut out, entry.offset, &[0xeb, distance.cast_unsigned()])?;
    }
    Ok(out)
}

fn put(out: &mut [u8], at: u64, code: &[u8]) -> Result<()> {
    let at = usize::try_from(at)?;
    out.get_mut(at..at + code.len()).context("an entry point outside")?.copy_from_slice(code);
    Ok(())
}

/// `jmp rel32`. In 32-bit code it reaches everything, since addresses wrap.
fn jump(abi: Abi, from: u64, to: u64) -> Result<Vec<u8>> {
    let distance = to.wrapping_sub(from + 5).cast_signed();
    if abi == Abi::X86_64 {
        ensure!(i32::try_from(distance).is_ok(), "{to:#x} is too far from {from:#x} for a jump");
    }
    let [a, b, c, d, ..] = distance.to_le_bytes();
    Ok(vec![0xe9, a, b, c, d])
}

/// All entry points by rising offset.
fn entries(abi: Abi, image: &[u8], functions: &Functions, live: Option<Target<'_>>) -> Result<Vec<Entry>> {
    let mut places: BTreeMap<u64, (u64, Vec<&str>)> = BTreeMap::new();
    for (name, &Function { offset, size }) in functions {
        let (longest, names) = places.entry(offset).or_default();
        *longest = size.max(*longest);
        names.push(name);
    }
    let mut entries = Vec::with_capacity(places.len());
    let mut next = places.keys().copied().skip(1);
    for (&offset, (size, names)) in &places {
        let end = next.next().unwrap_or(image.len() as u64);
        let mut room = if *size == 0 { end - offset } else { (offset + size).min(end) - offset };
        let way = way_of(abi, names, live);
        if names.contains(&KERNEL_VSYSCALL) {
            let code = usize::try_from(offset)
                .ok()
                .and_then(|at| image.get(at..))
                .context("an entry point outside")?;
            let call = code.windows(2).position(|bytes| bytes == INT_80).context("no int 0x80")?;
            // Whoever is in a call finds its way back behind it.
            room = room.min(call as u64);
        }
        entries.push(Entry { offset, room, way });
    }
    Ok(entries)
}

fn way_of(abi: Abi, names: &[&str], live: Option<Target<'_>>) -> Way {
    let plain = |name: &str| name.trim_start_matches("__vdso_").to_owned();
    // Its state was sized by the kernel that made it.
    if abi == Abi::X86_64 && names.iter().any(|name| plain(name) == "getrandom") {
        return Way::Code(GETRANDOM.to_vec());
    }
    if names.iter().any(|name| name.ends_with("sigreturn")) {
        return Way::Keep;
    }
    if let Some(target) = live
        && let Some(function) = names.iter().find_map(|&name| target.functions.get(name))
    {
        return Way::Jump(target.at + function.offset);
    }
    let number = names.iter().find_map(|name| {
        let (_, x86_64, ia32) = CALLS.iter().find(|(call, ..)| *call == plain(name))?;
        if abi == Abi::X86_64 { *x86_64 } else { *ia32 }
    });
    number.map_or(Way::Keep, |number| Way::Code(call(abi, number)))
}

/// A function that is a system call of up to three arguments.
fn call(abi: Abi, number: u32) -> Vec<u8> {
    let number = number.to_le_bytes();
    match abi {
        // mov eax, number; syscall; ret
        Abi::X86_64 => [&[0xb8], &number[..], &[0x0f, 0x05, 0xc3]].concat(),
        // push ebx; mov ebx, [esp + 8]; mov ecx, [esp + 12]; mov edx, [esp + 16]; mov eax, number; int 0x80; pop ebx; ret
        Abi::Ia32 => [
            &[0x53, 0x8b, 0x5c, 0x24, 0x08, 0x8b, 0x4c, 0x24, 0x0c, 0x8b, 0x54, 0x24, 0x10, 0xb8],
            &number[..],
            &[0xcd, 0x80, 0x5b, 0xc3],
        ]
        .concat(),
    }
}

/// `__vdso_getrandom` as the call alone: -ENOSYS for who asks how large a state is (an `opaque_len` of all ones).
#[rustfmt::skip]
const GETRANDOM: [u8; 22] = [
    0x49, 0x83, 0xf8, 0xff,                   // cmp r8, -1
    0x74, 0x08,                               // je 1f
    0xb8, 0x3e, 0x01, 0, 0, 0x0f, 0x05, 0xc3, // mov eax, 318; syscall; ret
    0x48, 0xc7, 0xc0, 0xda, 0xff, 0xff, 0xff, // 1: mov rax, -38
    0xc3,                                     // ret
];

/// What the compiler put between functions.
struct Padding {
    /// Ranges that are still free.
    free: Vec<(u64, u64)>,
}

impl Padding {
    fn of(image: &[u8], functions: &Functions) -> Self {
        let is_in_function = |at: u64| {
            functions
                .values()
                .any(|function| (function.offset..function.offset + function.size).contains(&at))
        };
        let mut free: Vec<(u64, u64)> = Vec::new();
        for (at, _) in (0u64..).zip(image).filter(|(_, byte)| matches!(byte, 0x90 | 0xcc)) {
            if is_in_function(at) {
                continue;
            }
            match free.last_mut() {
                Some((_, end)) if *end == at => *end += 1,
                _ => free.push((at, at + 1)),
            }
        }
        Self { free }
    }

    /// Takes `len` bytes that a short jump reaches which ends at `from`.
    fn take(&mut self, from: u64, len: u64) -> Option<u64> {
        let reach = from.saturating_sub(128)..from + 128;
        let found = self.free.iter_mut().find_map(|(start, end)| {
            let first = (*start).max(reach.start);
            (first + len <= *end && reach.contains(&first)).then_some((start, first))
        });
        let (start, first) = found?;
        // What lies before it is given up.
        *start = first + len;
        Some(first)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::live;

    const AT: u64 = 0xf000_0000;
    const LIVE_AT: u64 = 0xf010_0000;

    /// Where a jump at `from` (an address) leads.
    fn lands(image: &[u8], from: u64) -> u64 {
        let code = &image[usize::try_from(from - AT).unwrap()..];
        match code[0] {
            0xe9 => {
                let distance = i32::from_le_bytes([code[1], code[2], code[3], code[4]]);
                (from + 5).wrapping_add_signed(i64::from(distance))
            }
            0xeb => lands(image, (from + 2).wrapping_add_signed(i64::from(code[1].cast_signed()))),
            other => panic!("{other:#x} at {from:#x} is no jump"),
        }
    }

    #[test]
    fn every_function_leads_to_that_of_the_running_kernel() {
        for abi in [Abi::X86_64, Abi::Ia32] {
            let image = live(abi).unwrap().image;
            let own = functions(&image).unwrap();
            let target = Target { functions: &own, at: LIVE_AT };
            let out = redirect(abi, &image, AT, Some(target)).unwrap();
            assert_eq!(out.len(), image.len());
            for (name, function) in &own {
                let at = usize::try_from(function.offset).unwrap();
                if name.ends_with("sigreturn") || name.contains("getrandom") {
                    continue;
                }
                assert_eq!(lands(&out, AT + function.offset), LIVE_AT + function.offset, "{abi} {name}");
                if name == KERNEL_VSYSCALL {
                    let call = image[at..].windows(2).position(|bytes| bytes == INT_80).unwrap();
                    assert_eq!(out[at + call..at + call + 6], image[at + call..at + call + 6]);
                }
            }
            let kept = functions(&out).unwrap();
            assert_eq!(kept, own, "{abi}: its symbols are as they were");
        }
    }

    #[test]
    fn what_the_running_kernel_lacks_is_a_call_or_stays() {
        for abi in [Abi::X86_64, Abi::Ia32] {
            let image = live(abi).unwrap().image;
            let own = functions(&image).unwrap();
            let bytes = |image: &[u8], name: &str, len: usize| {
                let at = usize::try_from(own[name].offset).unwrap();
                image[at..at + len].to_vec()
            };
            let mut fewer = own.clone();
            fewer.retain(|name, _| !name.contains("time"));
            let out = redirect(abi, &image, AT, Some(Target { functions: &fewer, at: LIVE_AT })).unwrap();
            let time = call(abi, if abi == Abi::X86_64 { 201 } else { 13 });
            assert_eq!(bytes(&out, "__vdso_time", time.len()), time);
            if abi == Abi::Ia32 {
                let sigreturn = "__kernel_rt_sigreturn";
                assert_eq!(bytes(&out, sigreturn, 7), bytes(&image, sigreturn, 7));
            }
        }
        assert_eq!(way_of(Abi::X86_64, &["__vdso_sgx_enter_enclave"], None), Way::Keep);
        assert_eq!(
            way_of(Abi::X86_64, &["__vdso_getrandom", "getrandom"], None),
            Way::Code(GETRANDOM.to_vec())
        );
    }

    /// An image that is nothing but these functions, as bytes of one kind.
    fn functions_at(places: &[(u64, u64)]) -> (Vec<u8>, Functions) {
        let mut image = vec![0xcc; 0x200];
        let mut all = Functions::new();
        for (index, &(offset, size)) in places.iter().enumerate() {
            put(&mut image, offset, &vec![0x40; usize::try_from(size).unwrap()]).unwrap();
            all.insert(format!("f{index}"), Function { offset, size });
        }
        (image, all)
    }

    #[test]
    fn close_entry_points_go_by_way_of_padding() {
        let (image, all) = functions_at(&[(0x100, 2), (0x102, 3), (0x105, 40)]);
        let mut padding = Padding::of(&image, &all);
        let first = padding.take(0x102, 5).unwrap();
        let second = padding.take(0x104, 5).unwrap();
        assert!(first + 5 <= second || second + 5 <= first);
        for (island, from) in [(first, 0x102), (second, 0x104)] {
            assert!(island.abs_diff(from) <= 128);
            assert!(all.values().all(|f| island + 5 <= f.offset || f.offset + f.size <= island));
        }
        let (full, all) = functions_at(&[(0, 0x1f0)]);
        assert_eq!(Padding::of(&full, &all).take(0x10, 5), None);
    }
}
