//! PostgreSQL as it is installed, with sessions of clients outside of the tree. It uses a segment of System V, POSIX shared memory in
//! /dev/shm, anonymous shared memory with semaphores, epolls, signalfds, and latches.

use crate::ROUNDS;
use crate::servers::connect;
use crate::world::{Running, World};
use anyhow::{Context, bail, ensure};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;
use tests::{Result, wait};

pub(crate) const PORT: u16 = 5440;
pub(crate) const BIN: &str = "/usr/lib/postgresql/15/bin";

/// A session: the frontend's part of protocol 3.0 that queries in text take.
pub(crate) struct Session {
    stream: TcpStream,
    /// Payloads of notifications not asked for yet.
    notified: Vec<String>,
}

impl Session {
    fn new() -> Result<Self> {
        const PROTOCOL: u32 = 3 << 16;
        let mut session = Self { stream: connect(PORT)?, notified: Vec::new() };
        let startup = [&PROTOCOL.to_be_bytes()[..], b"user\0postgres\0database\0postgres\0\0"].concat();
        session.send(&startup)?;
        session.answer()?;
        Ok(session)
    }

    fn send(&mut self, message: &[u8]) -> Result {
        let length = u32::try_from(message.len() + 4)?;
        self.stream.write_all(&[&length.to_be_bytes()[..], message].concat())?;
        Ok(())
    }

    /// Rows of the answer, with blanks between columns.
    fn query(&mut self, query: &str) -> Result<Vec<String>> {
        self.stream.write_all(b"Q")?;
        self.send(&[query.as_bytes(), b"\0"].concat())?;
        self.answer().with_context(|| query.to_owned())
    }

    /// The one value of the answer.
    pub(crate) fn value(&mut self, query: &str) -> Result<String> {
        let mut rows = self.query(query)?;
        ensure!(rows.len() == 1, "{query}: {rows:?}");
        Ok(rows.remove(0))
    }

    /// Everything up to ReadyForQuery.
    fn answer(&mut self) -> Result<Vec<String>> {
        let (mut rows, mut error) = (Vec::new(), None);
        loop {
            let mut header = [0; 5];
            self.stream.read_exact(&mut header)?;
            let length = u32::from_be_bytes([header[1], header[2], header[3], header[4]]);
            let mut body = vec![0; length as usize - 4];
            self.stream.read_exact(&mut body)?;
            match header[0] {
                b'D' => rows.push(columns(&body).context("a row")?),
                b'A' => {
                    // The process id of who notified, the channel, the payload.
                    let payload = body[4..].split(|&byte| byte == 0).nth(1).unwrap_or_default();
                    self.notified.push(String::from_utf8_lossy(payload).into_owned());
                }
                b'E' => error = Some(String::from_utf8_lossy(&body).replace('\0', " ")),
                b'Z' => break,
                _ => {}
            }
        }
        match error {
            Some(error) => bail!("{error}"),
            None => Ok(rows),
        }
    }
}

fn columns(row: &[u8]) -> Option<String> {
    let mut rest = row.get(2..)?;
    let mut columns = Vec::new();
    while let Some((length, tail)) = rest.split_first_chunk::<4>() {
        let length = usize::try_from(i32::from_be_bytes(*length)).unwrap_or(0);
        columns.push(String::from_utf8_lossy(tail.get(..length)?).into_owned());
        rest = tail.get(length..)?;
    }
    Some(columns.join(" "))
}

/// Makes the database and starts the server.
pub(crate) fn start(world: &World) -> Result<Running<'_>> {
    std::fs::set_permissions(&world.dir, std::fs::Permissions::from_mode(0o777))?;
    let as_postgres = ["/usr/bin/setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups"];
    let initdb = format!("{BIN}/initdb");
    let made = Command::new(&world.script)
        .arg("--start")
        .arg(&world.root)
        .args(as_postgres)
        .args([&initdb, "-D", "/scratch/data", "--no-sync", "-A", "trust", "-E", "UTF8", "--locale=C"])
        .env_clear()
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
        .output()?;
    ensure!(made.status.success(), "initdb: {}", String::from_utf8_lossy(&made.stderr));
    let (postgres, port) = (format!("{BIN}/postgres"), PORT.to_string());
    let server = [&postgres, "-D", "/scratch/data", "-k", "/scratch", "-p", &port];
    world.start(&[&as_postgres[..], &server].concat())
}

/// A session of a server that has just been started: it says that it starts up until it has.
pub(crate) fn first_session(running: &Running<'_>) -> Result<Session> {
    let first = wait::until(wait::STEP, "the server answers", || {
        running.still_runs()?;
        Ok(Session::new().ok())
    });
    first.with_context(|| running.world.read("log").unwrap_or_default())
}

/// A transaction with an open cursor and what it has not committed, a lock that it holds, a listener, queries with parallel workers.
pub(crate) fn sessions(world: &World) -> Result {
    let mut running = start(world)?;
    let mut writer = first_session(&running)?;
    let (mut listener, mut other) = (Session::new()?, Session::new()?);
    writer.query("CREATE TABLE numbers AS SELECT generate_series(1, 5000) AS n")?;
    writer.query("BEGIN")?;
    writer.query("DECLARE walk CURSOR FOR SELECT n FROM numbers ORDER BY n")?;
    writer.query("SELECT pg_advisory_lock(7)")?;
    listener.query("LISTEN news")?;
    other.query("SET force_parallel_mode = on")?;
    for round in 1..=ROUNDS {
        running.round_with(&["--tcp-established"])?;
        let next = writer.value("FETCH 1 FROM walk")?;
        ensure!(next == round.to_string(), "round {round}: the cursor is at {next}");
        writer.query(&format!("INSERT INTO numbers VALUES (-{round})"))?;
        let count = other.value("SELECT count(*) FROM numbers")?;
        ensure!(count == "5000", "round {round}: {count} numbers are seen from outside of the transaction");
        let locked = other.value("SELECT pg_try_advisory_lock(7)")?;
        ensure!(locked == "f", "round {round}: the lock is not held");
        other.query(&format!("NOTIFY news, 'round {round}'"))?;
        let heard = wait::until(wait::STEP, "a notification", || {
            listener.query("")?;
            Ok(listener.notified.pop())
        })?;
        ensure!(heard == format!("round {round}"), "round {round}: heard {heard}");
    }
    writer.query("COMMIT")?;
    let sum = other.value("SELECT sum(n) FROM numbers")?;
    let expected = 5000 * 5001 / 2 - ROUNDS * (ROUNDS + 1) / 2;
    ensure!(sum == expected.to_string(), "the sum is {sum}");
    drop((writer, listener, other));
    running.end()
}
