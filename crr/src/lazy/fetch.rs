//! Pages that a page server has: those that somebody waits for first, the others meanwhile.
//!
//! A connection answers in order, so those that somebody waits for have connections of their own, and take a block that is on its way over
//! the other one, too: whichever comes first counts. Blocks come whole, since their checksums are of whole ones.

use crate::page_server::Listed;
use crate::page_server::client::Peer;
use crate::page_server::fetch::Fetcher;
use crate::store::{BLOCK_SIZE, piece};
use anyhow::{Context, Result, anyhow};
use nix::sys::eventfd::{EfdFlags, EventFd};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeSet, VecDeque};
use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;

/// So many blocks that somebody waits for can be on their way at once.
const URGENT: usize = 4;

/// What is to be fetched.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Absent {
    pub(super) server: Peer,
    pub(super) file: Listed,
    pub(super) blocks: BTreeSet<u64>,
}

/// The connections.
#[derive(Debug)]
pub(super) struct Fetch {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    /// Tells that somebody waits for a block.
    asked: Condvar,
    /// Tells that a block has come, or that none will.
    news: EventFd,
    /// Where they go.
    file: File,
    /// Its bytes.
    size: u64,
}

#[derive(Debug, Default)]
struct State {
    /// Blocks that have not come.
    absent: BTreeSet<u64>,
    /// Blocks before this one have been asked for in turn.
    next: u64,
    /// Blocks that somebody waits for.
    urgent: BTreeSet<u64>,
    /// Those of them that have not been asked for.
    queue: VecDeque<u64>,
    failed: Option<anyhow::Error>,
}

impl Fetch {
    /// Connects; blocks that nobody waits for are brought only `ahead`.
    ///
    /// # Errors
    /// If the server is not there any more, or is another one.
    pub(super) fn start(
        Absent { server, file: listed, blocks }: Absent,
        file: File,
        ahead: bool,
    ) -> Result<Self> {
        let news = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK).context("eventfd")?;
        let state = Mutex::new(State { absent: blocks, ..State::default() });
        let shared = Arc::new(Shared { state, asked: Condvar::new(), news, file, size: listed.size });
        let start = |urgent: bool| -> Result<()> {
            let mut fetcher = Fetcher::again(&server)?;
            let number = fetcher.find(&listed)?;
            let shared = Arc::clone(&shared);
            let work = move || {
                let work = || {
                    if urgent {
                        shared.fetch_urgent(&mut fetcher, number)
                    } else {
                        shared.fetch_ahead(&mut fetcher, number)
                    }
                };
                let done = catch_unwind(AssertUnwindSafe(work));
                if let Err(error) = done.unwrap_or_else(|_| Err(anyhow!("a thread has panicked"))) {
                    shared.lock().failed = Some(error);
                    shared.tell();
                }
            };
            thread::Builder::new().name("fetch".to_owned()).spawn(work).context("start a thread")?;
            Ok(())
        };
        (0..URGENT).try_for_each(|_| start(true))?;
        if ahead {
            start(false)?;
        }
        Ok(Self { shared })
    }

    /// What tells that something has changed.
    pub(super) fn news(&self) -> &EventFd {
        &self.shared.news
    }

    /// Takes note of what was told.
    pub(super) fn hear(&self) {
        // Nothing has been told: as good.
        let _ = self.shared.news.read();
    }

    /// Whether blocks are here.
    ///
    /// # Errors
    /// If no more come.
    pub(super) fn has(&self, blocks: Range<u64>, urgent: bool) -> Result<bool> {
        let mut state = self.shared.lock();
        if let Some(error) = state.failed.take() {
            return Err(error);
        }
        let missing: Vec<u64> = state.absent.range(blocks).copied().collect();
        for &block in missing.iter().filter(|_| urgent) {
            if state.urgent.insert(block) {
                state.queue.push_back(block);
                self.shared.asked.notify_one();
            }
        }
        Ok(missing.is_empty())
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Brings what somebody waits for, for ever.
    fn fetch_urgent(&self, fetcher: &mut Fetcher, number: u32) -> Result<()> {
        loop {
            let mut state = self.lock();
            let block = loop {
                match state.queue.pop_front() {
                    Some(block) => break block,
                    None => state = self.asked.wait(state).unwrap_or_else(PoisonError::into_inner),
                }
            };
            drop(state);
            fetcher.fetch(number, [piece(block, self.size)], |place, bytes| self.arrive(place, bytes))?;
        }
    }

    /// Brings what nobody waits for, in turn.
    fn fetch_ahead(&self, fetcher: &mut Fetcher, number: u32) -> Result<()> {
        let next = || {
            let mut state = self.lock();
            let State { absent, urgent, next, .. } = &mut *state;
            let block = absent.range(*next..).find(|block| !urgent.contains(block)).copied()?;
            *next = block + 1;
            Some(piece(block, self.size))
        };
        fetcher.fetch(number, std::iter::from_fn(next), |place, bytes| self.arrive(place, bytes))
    }

    /// Takes a block. One that comes for the second time has been checked, and maybe given back, already.
    fn arrive(&self, place: u64, bytes: &[u8]) -> Result<()> {
        let mut state = self.lock();
        let block = place / BLOCK_SIZE;
        if state.absent.contains(&block) {
            self.file.write_all_at(bytes, place).context("pages in memory")?;
            state.absent.remove(&block);
            self.tell();
        }
        Ok(())
    }

    fn tell(&self) {
        // It cannot be full: it is read when anything is in it.
        let _ = self.news.write(1);
    }
}
