//! Work for all processors.

use crate::sys::limits;
use anyhow::Result;
use std::cell::Cell;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

/// More threads than this only wait for memory.
const MAX_THREADS: usize = 8;

/// Files that a thread has open at a time, at most, but for those that it hands over.
const FILES_OF_A_THREAD: usize = 8;

/// How many processors crr may use. Finding out takes a dozen system calls: a dump has that done before the tree stands still.
pub(crate) fn processors() -> usize {
    static PROCESSORS: OnceLock<usize> = OnceLock::new();
    *PROCESSORS.get_or_init(|| thread::available_parallelism().map_or(1, usize::from))
}

/// How many threads are worth having for some units of work, two of which take longer than starting one.
pub(crate) fn threads(units: usize) -> usize {
    match units / 2 {
        0 | 1 => 1,
        worth => processors().min(MAX_THREADS).min(worth),
    }
}

thread_local! {
    /// This thread is a worker: what it does in parallel again, it does by itself.
    static IS_WORKER: Cell<bool> = const { Cell::new(false) };
}

/// Marks a thread as a worker until it is dropped.
struct Worker(bool);

impl Worker {
    fn begin() -> Self {
        Self(IS_WORKER.replace(true))
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        IS_WORKER.set(self.0);
    }
}

/// Starts the other threads of so many that do the same. Where there cannot be as many (RLIMIT_NPROC, pids.max), fewer do.
pub(crate) fn others<'scope, T: Send + 'scope>(
    scope: &'scope thread::Scope<'scope, '_>,
    threads: usize,
    work: impl Fn() -> T + Copy + Send + 'scope,
) -> Vec<thread::ScopedJoinHandle<'scope, T>> {
    let spawn = |_| thread::Builder::new().spawn_scoped(scope, work);
    (1..threads).map_while(|number| spawn(number).ok()).collect()
}

/// Calls `each` with every number below a count, from several threads (see [`threads`]); stops at the first error.
pub(crate) fn in_parallel(count: u64, each: impl Fn(u64) -> Result<()> + Sync) -> Result<()> {
    let next = AtomicU64::new(0);
    let failed = AtomicBool::new(false);
    let work = || -> Result<()> {
        let _worker = Worker::begin();
        while !failed.load(Ordering::Relaxed) {
            let number = next.fetch_add(1, Ordering::Relaxed);
            if number >= count {
                break;
            }
            let done = each(number);
            if done.is_err() {
                failed.store(true, Ordering::Relaxed);
                return done;
            }
        }
        Ok(())
    };
    let threads = if IS_WORKER.get() { 1 } else { threads(usize::try_from(count).unwrap_or(MAX_THREADS)) };
    if threads > 1 {
        limits::make_room_for_files(threads * FILES_OF_A_THREAD);
    }
    thread::scope(|scope| {
        // The calling thread is one of the workers.
        let others = others(scope, threads, work);
        let own = work();
        others.into_iter().fold(own, |result, other| {
            result.and(other.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
        })
    })
}

/// Items that one thread takes at a time in [`map`]: starting a thread costs as much as some fifty system calls.
const CHUNK: usize = 32;

/// Whether several threads are taken for so many items, of which each takes so many at a time.
fn is_worth(items: usize, chunk: usize) -> bool {
    items > chunk && threads(items.div_ceil(chunk)) > 1
}

/// As [`map`], where a file of every item stays open. Room for them is made before there are threads.
pub(crate) fn map_to_files<T: Sync, R: Send + Sync>(
    items: &[T],
    each: impl Fn(&T) -> Result<R> + Sync,
) -> Result<Vec<R>> {
    if is_worth(items.len(), CHUNK) {
        limits::make_room_for_files(items.len());
    }
    map(items, each)
}

/// What `each` makes of every item, in their order: by several threads if there are many items, each of which costs a few system calls.
pub(crate) fn map<T: Sync, R: Send + Sync>(
    items: &[T],
    each: impl Fn(&T) -> Result<R> + Sync,
) -> Result<Vec<R>> {
    map_by_chunks(items, CHUNK, each)
}

/// As [`map`], of items each of which is worth a thread.
pub(crate) fn map_large<T: Sync, R: Send + Sync>(
    items: &[T],
    each: impl Fn(&T) -> Result<R> + Sync,
) -> Result<Vec<R>> {
    map_by_chunks(items, 1, each)
}

fn map_by_chunks<T: Sync, R: Send + Sync>(
    items: &[T],
    chunk: usize,
    each: impl Fn(&T) -> Result<R> + Sync,
) -> Result<Vec<R>> {
    if !is_worth(items.len(), chunk) {
        return items.iter().map(each).collect();
    }
    let chunks: Vec<(&[T], OnceLock<Vec<R>>)> =
        items.chunks(chunk).map(|chunk| (chunk, OnceLock::new())).collect();
    in_parallel(chunks.len() as u64, |number| {
        if let Some((chunk, done)) = usize::try_from(number).ok().and_then(|number| chunks.get(number)) {
            let results = chunk.iter().map(&each).collect::<Result<_>>()?;
            done.get_or_init(|| results);
        }
        Ok(())
    })?;
    Ok(chunks.into_iter().filter_map(|(_, done)| done.into_inner()).flatten().collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::bail;

    #[test]
    fn order_is_kept_and_the_first_error_ends_it() {
        for count in [0, 1, 64, 65, 1000] {
            let items: Vec<u32> = (0..count).collect();
            let expected: Vec<u64> = items.iter().map(|&item| u64::from(item) * 2).collect();
            assert_eq!(map(&items, |&item| Ok(u64::from(item) * 2)).unwrap(), expected);
            assert_eq!(map_large(&items, |&item| Ok(u64::from(item) * 2)).unwrap(), expected);
            let failed = map(&items, |&item| if item == count / 2 { bail!("{item}") } else { Ok(()) });
            assert_eq!(failed.is_err(), count > 0, "{count}");
        }
    }
}
