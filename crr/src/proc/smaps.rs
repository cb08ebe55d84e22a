//! `/proc/PID/smaps`: memory areas with their flags.
//!
//! A task may have ten thousand areas of 25 lines each, so this parser allocates nothing and looks at no more
//! than the first byte of the lines that it does not need.

use super::{Malformed, hex};
use anyhow::Context;
use std::io::{ErrorKind, Read};

/// One area. Borrows the text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Area<'a> {
    /// First byte.
    pub start: u64,
    /// One past the last.
    pub end: u64,
    /// PROT_READ 1, PROT_WRITE 2, PROT_EXEC 4.
    pub prot: u32,
    /// MAP_SHARED.
    pub shared: bool,
    /// Byte offset in the file.
    pub offset: u64,
    /// The file's device as the kernel shows it: `fe:00`.
    pub dev: &'a [u8],
    /// The file's inode number; 0 without a file.
    pub ino: u64,
    /// Path or `[name]`; newlines are escaped.
    pub name: &'a [u8],
    /// Two-letter codes, separated by blanks.
    pub flags: &'a [u8],
    /// Protection key; 0 where the processor has none.
    pub pkey: u32,
    /// Bytes of a page that the kernel would use here.
    pub page_size: u64,
    /// Some of its pages, anonymous ones perhaps, are others' too: by fork, or by KSM.
    pub has_common_pages: bool,
}

/// Calls `each` for every area of a file while that is read: of a task with as many areas as it may have, the whole text would take 50 MiB.
/// `buffer` is room for it.
///
/// # Errors
/// If it cannot be read; as [`parse`].
pub fn read(
    mut file: impl Read,
    buffer: &mut Vec<u8>,
    mut each: impl FnMut(Area<'_>) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    /// Some twenty areas, so that it stays in the nearest cache: more is no faster, and to be touched first.
    const ROOM: usize = 16 << 10;
    /// seq files hand out at most one page a read.
    const PAGE: usize = 4096;
    if buffer.is_empty() {
        // By calloc, which need not touch it: `resize` would fill it.
        *buffer = vec![0; ROOM];
    }
    buffer.resize(ROOM, 0);
    let mut len = 0;
    loop {
        if buffer.len() < len + PAGE {
            let whole = last_header(&buffer[..len]);
            parse(&buffer[..whole], &mut each)?;
            buffer.copy_within(whole..len, 0);
            len -= whole;
            // What is left can be one area that fills it.
            buffer.resize(ROOM.max(len + 2 * PAGE), 0);
        }
        match file.read(&mut buffer[len..]) {
            Ok(0) => return parse(&buffer[..len], each),
            Ok(got) => len += got,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error).context("read smaps"),
        }
    }
}

/// Areas that are kept until somebody has time for them.
#[derive(Debug, Default)]
pub struct Kept {
    /// Without their texts, and how long these are.
    areas: Vec<(Area<'static>, [usize; 3])>,
    /// Device, name and flags of one after the other.
    texts: Vec<u8>,
}

impl Kept {
    /// Bytes that they take.
    #[must_use]
    pub fn size(&self) -> usize {
        size_of_val(&*self.areas) + self.texts.len()
    }

    /// Adds one behind all others.
    pub fn push(&mut self, area: &Area<'_>) {
        let &Area { dev, name, flags, .. } = area;
        let (none, texts) = (&b""[..], [dev, name, flags]);
        let bare = Area { dev: none, name: none, flags: none, ..*area };
        self.areas.push((bare, texts.map(<[u8]>::len)));
        texts.iter().for_each(|text| self.texts.extend_from_slice(text));
    }

    /// Calls `each` for every one, in order.
    ///
    /// # Errors
    /// The first of `each`.
    pub fn for_each<E>(&self, mut each: impl FnMut(Area<'_>) -> Result<(), E>) -> Result<(), E> {
        let mut texts = &self.texts[..];
        self.areas.iter().try_for_each(|&(bare, lengths)| {
            let [dev, name, flags] = lengths.map(|length| {
                let (text, rest) = texts.split_at(length);
                texts = rest;
                text
            });
            each(Area { dev, name, flags, ..bare })
        })
    }
}

/// Where the last area begins, which may not be there as a whole.
fn last_header(text: &[u8]) -> usize {
    let begins = |&at: &usize| {
        matches!(text.get(at), Some(b'0'..=b'9' | b'a'..=b'f')) && (at == 0 || text[at - 1] == b'\n')
    };
    (0..text.len()).rev().find(begins).unwrap_or(0)
}

/// Calls `each` for every area, by rising address.
///
/// # Errors
/// [`Malformed`], or the first error of `each`.
pub fn parse<'a, E: From<Malformed>>(
    text: &'a [u8],
    mut each: impl FnMut(Area<'a>) -> Result<(), E>,
) -> Result<(), E> {
    const NONE: &[u8] = b" 0 kB";
    let mut area: Option<Area<'a>> = None;
    let mut swap: &[u8] = b"";
    for line in lines(text) {
        match line.first() {
            Some(b'0'..=b'9' | b'a'..=b'f') => {
                if let Some(done) = area.replace(header(line)?) {
                    each(complete(done)?)?;
                }
            }
            Some(b'V') => {
                if let (Some(flags), Some(area)) = (line.strip_prefix(b"VmFlags: "), &mut area) {
                    area.flags = flags.trim_ascii();
                }
            }
            Some(b'K') if line.starts_with(b"KSM:") && !line.ends_with(NONE) => {
                if let Some(area) = &mut area {
                    area.has_common_pages = true;
                }
            }
            Some(b'K') => {
                if let (Some(size), Some(area)) = (line.strip_prefix(b"KernelPageSize:"), &mut area) {
                    let size = size.strip_suffix(b" kB").and_then(super::decimal::<u64>);
                    area.page_size = size.ok_or(bad("KernelPageSize"))? << 10;
                }
            }
            // Counts of pages; most are none.
            Some(b'S') if line.starts_with(b"Shared_") && !line.ends_with(NONE) => {
                if let Some(area) = &mut area {
                    area.has_common_pages = true;
                }
            }
            Some(b'S') if line.starts_with(b"Swap:") => swap = line[5..].trim_ascii_start(),
            // Shared out among all who have a page there: less than the whole, if others do.
            Some(b'S') if line.starts_with(b"SwapPss:") && line[8..].trim_ascii_start() != swap => {
                if let Some(area) = &mut area {
                    area.has_common_pages = true;
                }
            }
            Some(b'A') if line.starts_with(b"Anonymous:") && line.ends_with(NONE) => {
                if let Some(area) = &mut area {
                    area.has_common_pages = false;
                }
            }
            Some(b'P') => {
                if let (Some(key), Some(area)) = (line.strip_prefix(b"ProtectionKey:"), &mut area) {
                    area.pkey = super::decimal(key).ok_or(bad("ProtectionKey"))?;
                }
            }
            _ => {}
        }
    }
    match area {
        Some(last) => each(complete(last)?),
        None => Ok(()),
    }
}

/// Calls `each` for every area of `/proc/PID/maps`, which has the same lines and neither flags nor keys. It is there much sooner:
/// no page is looked at.
///
/// # Errors
/// As [`parse`].
pub fn parse_maps<'a, E: From<Malformed>>(
    text: &'a [u8],
    mut each: impl FnMut(Area<'a>) -> Result<(), E>,
) -> Result<(), E> {
    lines(text).filter(|line| !line.is_empty()).try_for_each(|line| each(header(line)?))
}

/// The lines of a text, the last one also if nothing ends it. Most are there to be passed over.
fn lines(text: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut from = 0;
    let ends = memchr::memchr_iter(b'\n', text).chain(std::iter::once(text.len()));
    ends.map(move |end| &text[std::mem::replace(&mut from, end + 1)..end])
}

const fn bad(field: &'static str) -> Malformed {
    Malformed { file: "smaps", field }
}

/// An area that ends without flags was cut off.
fn complete(area: Area<'_>) -> Result<Area<'_>, Malformed> {
    if area.flags.is_empty() && area.name != b"[vsyscall]" { Err(bad("VmFlags")) } else { Ok(area) }
}

/// `start-end perms offset dev inode   name`.
fn header(line: &[u8]) -> Result<Area<'_>, Malformed> {
    let mut rest = line;
    let mut word = |end: u8| {
        let at = rest.iter().position(|&b| b == end).unwrap_or(rest.len());
        let (word, tail) = rest.split_at(at);
        rest = tail.get(1..).unwrap_or_default();
        word
    };
    let start = hex(word(b'-')).ok_or(bad("start"))?;
    let end = hex(word(b' ')).ok_or(bad("end"))?;
    let &[r, w, x, s] = word(b' ') else { return Err(bad("permissions")) };
    let offset = hex(word(b' ')).ok_or(bad("offset"))?;
    let dev = word(b' ');
    let ino = super::decimal(word(b' ')).ok_or(bad("inode"))?;
    let prot = u32::from(r == b'r') | u32::from(w == b'w') << 1 | u32::from(x == b'x') << 2;
    let name = rest.trim_ascii_start();
    Ok(Area {
        start,
        end,
        prot,
        shared: s == b's',
        offset,
        dev,
        ino,
        name,
        flags: b"",
        pkey: 0,
        page_size: 4096,
        has_common_pages: false,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of an ia32 task, cut to the lines that matter.
    const IA32: &[u8] =
        b"08048000-08049000 r-xp 00001000 fe:00 325843                             /tmp/a b\\012c
Size:                  4 kB
Pss_Dirty:             0 kB
VmFlags: rd ex mr mw me 
f7ee9000-f7ef3000 rw-p 00000000 00:00 0 
Size:                 40 kB
ProtectionKey:         3
VmFlags: rd wr mr mw me ac 
f7f04000-f7f06000 r-xp 00000000 00:00 0                                  [vdso]
VmFlags: rd ex mr mw me de 
ffd3a000-ffd5b000 rw-s 00000000 00:01 77                                 /dev/zero (deleted)
VmFlags: rd wr mr mw me gd ac 
";

    fn all(text: &[u8]) -> Result<Vec<Area<'_>>, Malformed> {
        let mut areas = Vec::new();
        parse(text, |area| {
            areas.push(area);
            Ok::<_, Malformed>(())
        })?;
        Ok(areas)
    }

    #[test]
    fn captured_text() {
        let areas = all(IA32).unwrap();
        assert_eq!(areas.len(), 4);
        assert_eq!((areas[0].start, areas[0].end, areas[0].prot), (0x0804_8000, 0x0804_9000, 5));
        assert_eq!((areas[0].offset, areas[0].dev, areas[0].ino), (0x1000, &b"fe:00"[..], 325_843));
        assert_eq!(areas[0].name, b"/tmp/a b\\012c");
        assert_eq!((areas[1].name, areas[1].pkey, areas[1].flags), (&b""[..], 3, &b"rd wr mr mw me ac"[..]));
        assert_eq!(areas[2].name, b"[vdso]");
        assert!(areas[3].shared && !areas[2].shared);
        assert_eq!(areas[3].name, b"/dev/zero (deleted)");
    }

    #[test]
    fn pages_that_others_have_too() {
        let has = |shared: &str, anonymous: &str, ksm: &str, swap: &str, swap_pss: &str| {
            let text = format!(
                "10000-20000 rw-p 0 00:00 0 \nShared_Clean:          0 kB\nShared_Dirty:{shared:>11} kB\n\
                 Anonymous:{anonymous:>14} kB\nKSM:{ksm:>20} kB\nSwap:{swap:>19} kB\nSwapPss:{swap_pss:>16} kB\nVmFlags: rd wr\n"
            );
            all(text.as_bytes()).unwrap()[0].has_common_pages
        };
        assert!(!has("0", "40", "0", "0", "0") && has("4", "40", "0", "0", "0"));
        // A file's alone.
        assert!(!has("4", "0", "0", "0", "0"));
        assert!(has("0", "40", "4", "0", "0"));
        assert!(!has("0", "40", "0", "8", "8") && has("0", "0", "0", "8", "4"));
    }

    /// A file that gives a few bytes at a time.
    struct Slow<'a>(&'a [u8], usize);

    impl Read for Slow<'_> {
        fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
            let (now, later) = self.0.split_at(self.0.len().min(self.1).min(buffer.len()));
            buffer[..now.len()].copy_from_slice(now);
            self.0 = later;
            Ok(now.len())
        }
    }

    #[test]
    fn text_of_any_length_is_read() {
        // One that does not fit into the room for all, and one that does not either for itself.
        let long = format!("fe000000-fe001000 r-xp 0 fe:00 1 {}\nVmFlags: rd \n", "x".repeat(300_000));
        let text = [&IA32.repeat(1000), long.as_bytes(), IA32].concat();
        let expected = all(&text).unwrap();
        for step in [1000, 4096, usize::MAX] {
            let mut left = expected.iter();
            let mut buffer = Vec::new();
            read(Slow(&text, step), &mut buffer, |area| {
                assert_eq!(Some(&area), left.next());
                Ok(())
            })
            .unwrap();
            assert_eq!(left.len(), 0);
        }
        assert!(read(Slow(&text[..text.len() - 40], 4096), &mut Vec::new(), |_| Ok(())).is_err());
    }

    #[test]
    fn maps_have_the_same_areas() {
        let lines =
            IA32.split(|&b| b == b'\n').filter(|line| line.first().is_some_and(u8::is_ascii_hexdigit));
        let maps = lines.filter(|line| line[0].is_ascii_digit() || line[0].is_ascii_lowercase());
        let maps = maps.map(|line| [line, b"\n"].concat()).collect::<Vec<_>>().concat();
        let mut found = Vec::new();
        parse_maps(&maps, |area| {
            found.push(area);
            Ok::<_, Malformed>(())
        })
        .unwrap();
        let bare = |area: Area<'static>| Area { flags: b"", pkey: 0, ..area };
        assert_eq!(found, all(IA32).unwrap().into_iter().map(bare).collect::<Vec<_>>());
    }

    #[test]
    fn what_is_kept_is_as_it_was() {
        let areas = all(IA32).unwrap();
        let mut kept = Kept::default();
        assert_eq!(kept.size(), 0);
        areas.iter().for_each(|area| kept.push(area));
        assert!((200..4000).contains(&kept.size()), "{}", kept.size());
        let mut left = areas.iter();
        kept.for_each(|area| if left.next() == Some(&area) { Ok(()) } else { Err(area.start) }).unwrap();
        assert_eq!(left.len(), 0);
        assert_eq!(kept.for_each(|area| Err(area.start)), Err(areas[0].start));
    }

    #[test]
    fn cut_text_is_an_error() {
        let cut = IA32.len() - 40;
        assert_eq!(all(&IA32[..cut]).unwrap_err().field, "VmFlags");
        assert!(all(b"08048000 r-xp\n").is_err());
        assert_eq!(all(b"").unwrap().len(), 0);
    }
}
