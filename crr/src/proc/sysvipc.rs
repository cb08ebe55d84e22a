//! `/proc/sysvipc`: shared memory, semaphores and message queues of an IPC namespace.

use super::{Malformed, decimal};
use images::Pid;
use images::sysv::Object;

/// A segment of shared memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Segment {
    /// What an image records of it.
    pub object: Object,
    /// Bytes.
    pub size: u64,
    /// Areas of all tasks that show it.
    pub attached: u64,
}

/// A set of semaphores.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SemaphoreSet {
    /// What an image records of it.
    pub object: Object,
    /// Semaphores in it.
    pub count: u16,
    /// When somebody operated on it last, or ended with something to be undone, in seconds since 1970; 0 for never.
    pub operated_at: u64,
    /// When it was made, or last changed otherwise.
    pub changed_at: u64,
}

/// A message queue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Queue {
    /// What an image records of it.
    pub object: Object,
    /// Messages in it.
    pub count: u64,
    /// Who sent the last one; 0 for nobody.
    pub last_sender: Pid,
    /// Who received the last one; 0 for nobody.
    pub last_receiver: Pid,
}

/// All segments (`shm`), by the columns of sysvipc_shm_proc_show() (ipc/shm.c): key, id, permissions in octal, size, process ids of creator and last
/// user, areas, owner and group, creator and group; then times.
///
/// # Errors
/// [`Malformed`].
pub fn segments(text: &[u8]) -> Result<Vec<Segment>, Malformed> {
    rows(text, |line| {
        let row = Row::new(line, "sysvipc/shm");
        Ok(Segment {
            object: row.object(7)?,
            size: row.number(3, "size")?,
            attached: row.number(6, "nattch")?,
        })
    })
}

/// All sets of semaphores (`sem`), by the columns of sysvipc_sem_proc_show() (ipc/sem.c): key, id, permissions, number, owner and group, creator
/// and group, times of the last operation and the last change.
///
/// # Errors
/// [`Malformed`].
pub fn semaphore_sets(text: &[u8]) -> Result<Vec<SemaphoreSet>, Malformed> {
    rows(text, |line| {
        let row = Row::new(line, "sysvipc/sem");
        Ok(SemaphoreSet {
            object: row.object(4)?,
            count: row.number(3, "nsems")?,
            operated_at: row.number(8, "otime")?,
            changed_at: row.number(9, "ctime")?,
        })
    })
}

/// All message queues (`msg`), by the columns of sysvipc_msg_proc_show() (ipc/msg.c): key, id, permissions, bytes and messages in it, process ids
/// of last sender and last receiver, owner and group, creator and group; then times.
///
/// # Errors
/// [`Malformed`].
pub fn queues(text: &[u8]) -> Result<Vec<Queue>, Malformed> {
    rows(text, |line| {
        let row = Row::new(line, "sysvipc/msg");
        Ok(Queue {
            object: row.object(7)?,
            count: row.number(4, "qnum")?,
            last_sender: row.number(5, "lspid")?,
            last_receiver: row.number(6, "lrpid")?,
        })
    })
}

/// What `read` makes of each line but the first one, which has the names of the columns.
fn rows<T>(text: &[u8], read: impl Fn(&[u8]) -> Result<T, Malformed>) -> Result<Vec<T>, Malformed> {
    text.split(|&byte| byte == b'\n').skip(1).filter(|line| !line.is_empty()).map(read).collect()
}

/// The words of a line.
struct Row<'a> {
    words: Vec<&'a [u8]>,
    file: &'static str,
}

impl<'a> Row<'a> {
    fn new(line: &'a [u8], file: &'static str) -> Self {
        Self { words: line.split(|&byte| byte == b' ').filter(|word| !word.is_empty()).collect(), file }
    }

    fn word(&self, index: usize, field: &'static str) -> Result<&'a [u8], Malformed> {
        self.words.get(index).copied().ok_or(Malformed { file: self.file, field })
    }

    fn number<T: std::str::FromStr>(&self, index: usize, field: &'static str) -> Result<T, Malformed> {
        decimal(self.word(index, field)?).ok_or(Malformed { file: self.file, field })
    }

    /// What all kinds have: key, id and permissions in front, and, from `owner` on, four ids of users and groups.
    fn object(&self, owner: usize) -> Result<Object, Malformed> {
        let mode = std::str::from_utf8(self.word(2, "perms")?).ok();
        let mode = mode.and_then(|mode| u32::from_str_radix(mode, 8).ok());
        Ok(Object {
            id: self.number(1, "id")?,
            key: self.number(0, "key")?,
            mode: mode.ok_or(Malformed { file: self.file, field: "perms" })?,
            uid: self.number(owner, "uid")?,
            gid: self.number(owner + 1, "gid")?,
            creator_uid: self.number(owner + 2, "cuid")?,
            creator_gid: self.number(owner + 3, "cgid")?,
        })
    }
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
        let first = Object {
            id: 65536,
            key: -12_345_678,
            mode: 0o640,
            uid: 0,
            gid: 0,
            creator_uid: 1000,
            creator_gid: 1001,
        };
        assert_eq!(rows[0], Segment { object: first, size: 65001, attached: 3 });
        assert_eq!(rows[1].object.mode, Object::REMOVED | Object::LOCKED | 0o600);
        assert_eq!(rows.len(), 2);
    }

    #[test]
    fn captured_sets() {
        let text = b"       key      semid perms      nsems   uid   gid  cuid  cgid      otime      ctime
         0      65558   600          2     0     0     0     0          0 1795888828
 305419896      32785   600         17     0     0     0     0 1795888829 1795888828
";
        let sets = semaphore_sets(text).unwrap();
        let seen = |set: &SemaphoreSet| (set.object.id, set.object.key, set.count);
        assert_eq!(seen(&sets[0]), (65558, 0, 2));
        assert_eq!(seen(&sets[1]), (32785, 305_419_896, 17));
        assert_eq!((sets[0].operated_at, sets[0].changed_at), (0, 1_795_888_828));
        assert_eq!((sets[1].operated_at, sets[1].changed_at), (1_795_888_829, 1_795_888_828));
        assert!(semaphore_sets(&text[..120]).is_err());
    }

    #[test]
    fn captured_queues() {
        let text = b"       key      msqid perms      cbytes       qnum lspid lrpid   uid   gid  cuid  cgid      stime      rtime      ctime
 305419896          1   640          17          3   441   442     1     2     3     4 1795888829 1795888829 1795888828
";
        let queue = queues(text).unwrap().remove(0);
        assert_eq!((queue.count, queue.last_sender, queue.last_receiver), (3, 441, 442));
        let object = queue.object;
        assert_eq!((object.id, object.mode, object.uid, object.creator_gid), (1, 0o640, 1, 4));
    }

    #[test]
    fn cut_text_is_an_error() {
        assert!(segments(&TEXT[..TEXT.len() - 140]).is_err());
        assert_eq!(segments(b"key\n").unwrap(), []);
    }
}
