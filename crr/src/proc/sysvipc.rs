//! `/proc/sysvipc`: shared memory and semaphores of an IPC namespace.

use super::{Malformed, decimal};
use images::sysv::Segment;

/// A segment of shared memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// What an image records of it.
    pub segment: Segment,
    /// Bytes.
    pub size: u64,
    /// Areas of all tasks that show it.
    pub attached: u64,
}

/// All segments (`shm`), by the columns of sysvipc_shm_proc_show() (ipc/shm.c): key, id, permissions in octal, size, process ids of creator and last
/// user, areas, owner and group, creator and group; then times.
///
/// # Errors
/// [`Malformed`].
pub fn segments(text: &[u8]) -> Result<Vec<Row>, Malformed> {
    text.split(|&byte| byte == b'\n').skip(1).filter(|line| !line.is_empty()).map(row).collect()
}

/// A set of semaphores.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SemaphoreSet {
    /// Its id.
    pub id: i32,
    /// Semaphores in it.
    pub count: u16,
    /// Somebody has operated on it, or has ended with something to be undone.
    pub was_used: bool,
}

/// All sets of semaphores (`sem`), by the columns of sysvipc_sem_proc_show() (ipc/sem.c): key, id, permissions, number, owner and group, creator
/// and group, time of the last operation.
///
/// # Errors
/// [`Malformed`].
pub fn semaphore_sets(text: &[u8]) -> Result<Vec<SemaphoreSet>, Malformed> {
    let bad = |field| Malformed { file: "sysvipc/sem", field };
    let set = |line: &[u8]| {
        let words = words(line);
        Ok(SemaphoreSet {
            id: words.get(1).and_then(|word| decimal(word)).ok_or(bad("semid"))?,
            count: words.get(3).and_then(|word| decimal(word)).ok_or(bad("nsems"))?,
            was_used: words.get(8).and_then(|word| decimal::<u64>(word)).ok_or(bad("otime"))? != 0,
        })
    };
    text.split(|&byte| byte == b'\n').skip(1).filter(|line| !line.is_empty()).map(set).collect()
}

fn words(line: &[u8]) -> Vec<&[u8]> {
    line.split(|&byte| byte == b' ').filter(|word| !word.is_empty()).collect()
}

fn row(line: &[u8]) -> Result<Row, Malformed> {
    let words = words(line);
    let bad = |field| Malformed { file: "sysvipc/shm", field };
    let word = |index: usize, field| words.get(index).copied().ok_or(bad(field));
    let id = |index, field| word(index, field).and_then(|word| decimal::<u32>(word).ok_or(bad(field)));
    let mode = std::str::from_utf8(word(2, "perms")?).ok().and_then(|mode| u32::from_str_radix(mode, 8).ok());
    Ok(Row {
        segment: Segment {
            id: decimal(word(1, "shmid")?).ok_or(bad("shmid"))?,
            key: decimal(word(0, "key")?).ok_or(bad("key"))?,
            mode: mode.ok_or(bad("perms"))?,
            uid: id(7, "uid")?,
            gid: id(8, "gid")?,
            creator_uid: id(9, "cuid")?,
            creator_gid: id(10, "cgid")?,
        },
        size: decimal(word(3, "size")?).ok_or(bad("size"))?,
        attached: decimal(word(6, "nattch")?).ok_or(bad("nattch"))?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &[u8] = b"       key      shmid perms                  size  cpid  lpid nattch   uid   gid  cuid  cgid      atime      dtime      ctime                   rss                  swap
 -12345678      65536   640                 65001 23641 23642      3     0     0  1000  1001 1795894978          0 1795894978                  8192                     0
         0          3  3600                  4096 23641 23641      1     0     0     0     0 1795894978          0 1795894978                     0                     0
";

    #[test]
    fn captured_text() {
        let rows = segments(TEXT).unwrap();
        let first = Segment {
            id: 65536,
            key: -12_345_678,
            mode: 0o640,
            uid: 0,
            gid: 0,
            creator_uid: 1000,
            creator_gid: 1001,
        };
        assert_eq!(rows[0], Row { segment: first, size: 65001, attached: 3 });
        assert_eq!(rows[1].segment.mode, Segment::REMOVED | Segment::LOCKED | 0o600);
        assert_eq!(rows.len(), 2);
    }

    #[test]
    fn captured_sets() {
        let text = b"       key      semid perms      nsems   uid   gid  cuid  cgid      otime      ctime
         0      65558   600          2     0     0     0     0          0 1795888828
 305419896      32785   600         17     0     0     0     0 1795888829 1795888828
";
        let sets = semaphore_sets(text).unwrap();
        assert_eq!(sets[0], SemaphoreSet { id: 65558, count: 2, was_used: false });
        assert_eq!(sets[1], SemaphoreSet { id: 32785, count: 17, was_used: true });
        assert!(semaphore_sets(&text[..120]).is_err());
    }

    #[test]
    fn cut_text_is_an_error() {
        assert!(segments(&TEXT[..TEXT.len() - 140]).is_err());
        assert_eq!(segments(b"key\n").unwrap(), []);
    }
}
