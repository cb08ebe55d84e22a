//! Servers that go down and come back ten times under the benchmarks that they come with: these stay connected, and every request is carried out, once.

use crate::postgres;
use crate::servers::{connect, make_readable};
use crate::world::{Running, World};
use anyhow::{Context, ensure};
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, Command, Stdio};
use tests::{Result, wait};

const OUTAGES: u64 = 10;

/// A benchmark beside a server, as long as it is needed.
struct Benchmark<'w> {
    world: &'w World,
    child: Child,
}

impl<'w> Benchmark<'w> {
    fn start(world: &'w World, program: &[&str]) -> Result<Self> {
        let said = File::create(world.dir.join("benchmark"))?;
        let child = Command::new(&world.script)
            .arg("--start")
            .arg(&world.root)
            .args(program)
            .env_clear()
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .stdin(Stdio::null())
            .stdout(said.try_clone()?)
            .stderr(said)
            .spawn()?;
        Ok(Self { world, child })
    }

    fn said(&self) -> String {
        self.world.read("benchmark").unwrap_or_default()
    }

    /// Takes the server down and up again, each time when more has been done, and waits for the end. `done` asks the server how many requests of
    /// `requests` it has carried out.
    fn survives(
        mut self,
        running: &mut Running<'_>,
        requests: u64,
        mut done: impl FnMut() -> Result<u64>,
    ) -> Result<String> {
        for outage in 1..=OUTAGES {
            let goal = requests * outage / (OUTAGES + OUTAGES / 2);
            wait::until(wait::STEP, "the server gets on", || Ok((done()? >= goal).then_some(())))
                .with_context(|| self.said())?;
            ensure!(self.child.try_wait()?.is_none(), "it has ended before outage {outage}: {}", self.said());
            running.round_among_others(&["--tcp-established"])?;
        }
        let ended = wait::until(wait::STEP, "the benchmark ends", || Ok(self.child.try_wait()?));
        let status = ended.with_context(|| self.said())?;
        ensure!(status.success(), "{status}: {}", self.said());
        let done = done()?;
        ensure!(done == requests, "{done} of {requests} requests were carried out");
        Ok(self.said())
    }
}

impl Drop for Benchmark<'_> {
    fn drop(&mut self) {
        // It has ended, unless something went wrong.
        let _ = self.child.kill();
    }
}

/// redis-benchmark: ten connections that increment a counter.
pub(crate) fn redis(world: &World) -> Result {
    const REQUESTS: u64 = 400_000;
    let program = ["/usr/bin/redis-server", "--port", "6403", "--dir", "/scratch", "--save", ""];
    let mut running = world.start(&program)?;
    let mut stream = connect(6403).with_context(|| world.read("log").unwrap_or_default())?;
    let mut answers = BufReader::new(stream.try_clone()?).lines();
    let requests = REQUESTS.to_string();
    let benchmark =
        ["/usr/bin/redis-benchmark", "-p", "6403", "-c", "10", "-n", &requests, "-q", "INCR", "count"];
    let said = Benchmark::start(world, &benchmark)?.survives(&mut running, REQUESTS, || {
        stream.write_all(b"GET count\r\n")?;
        let length = answers.next().context("closed")??;
        if length == "$-1" {
            return Ok(0);
        }
        Ok(answers.next().context("closed")??.parse()?)
    })?;
    ensure!(!said.to_lowercase().contains("err"), "{said}");
    drop((stream, answers));
    running.end()
}

/// ab against nginx, a master with two workers: twenty connections that stay open, and not one more.
pub(crate) fn nginx(world: &World) -> Result {
    const REQUESTS: u64 = 200_000;
    // A line of two bytes for each request.
    let config = "daemon off; worker_processes 2; pid /scratch/nginx.pid; error_log /scratch/errors;
        events { worker_connections 64; }
        http { log_format tick .; access_log /scratch/access tick; keepalive_requests 1000000; keepalive_timeout 300;
            server { listen 127.0.0.1:8083; root /scratch; } }";
    fs::write(world.dir.join("nginx.conf"), config)?;
    fs::write(world.dir.join("small"), "small")?;
    make_readable(world)?;
    let mut running =
        world.start(&["/usr/sbin/nginx", "-c", "/scratch/nginx.conf", "-e", "/scratch/errors"])?;
    drop(connect(8083).with_context(|| world.read("log").unwrap_or_default())?);
    let requests = REQUESTS.to_string();
    let benchmark = ["/usr/bin/ab", "-k", "-q", "-c", "20", "-n", &requests, "http://127.0.0.1:8083/small"];
    let access = world.dir.join("access");
    let said = Benchmark::start(world, &benchmark)?
        .survives(&mut running, REQUESTS, || Ok(fs::metadata(&access)?.len() / 2))?;
    for line in ["Failed requests: 0", &format!("Keep-Alive requests: {requests}")] {
        let words = said.split_whitespace().collect::<Vec<_>>().join(" ");
        ensure!(words.contains(line), "not {line:?}:\n{said}");
    }
    running.end()
}

/// pgbench: two sessions with transactions over four tables.
pub(crate) fn postgres(world: &World) -> Result {
    const CLIENTS: u64 = 2;
    const TRANSACTIONS: u64 = 4000;
    let mut running = postgres::start(world)?;
    let mut session = postgres::first_session(&running)?;
    let port = postgres::PORT.to_string();
    let pgbench = format!("{}/pgbench", postgres::BIN);
    let to = [pgbench.as_str(), "-h", "127.0.0.1", "-p", &port, "-U", "postgres"];
    let mut made = Benchmark::start(world, &[&to[..], &["-i", "-q", "postgres"]].concat())?;
    let ended = wait::until(wait::STEP, "the tables are made", || Ok(made.child.try_wait()?))?;
    ensure!(ended.success(), "{ended}: {}", made.said());
    let (clients, transactions) = (CLIENTS.to_string(), TRANSACTIONS.to_string());
    // What counts is how many transactions there are, not how fast the disk is.
    let database = "dbname=postgres options='-c synchronous_commit=off'";
    let work = ["-n", "-c", &clients, "-t", &transactions, database];
    let benchmark = Benchmark::start(world, &[&to[..], &work].concat())?;
    let said = benchmark.survives(&mut running, CLIENTS * TRANSACTIONS, || {
        Ok(session.value("SELECT count(*) FROM pgbench_history")?.parse()?)
    })?;
    ensure!(said.contains("number of failed transactions: 0 "), "{said}");
    let sums =
        "SELECT (SELECT sum(delta) FROM pgbench_history) = (SELECT sum(abalance) FROM pgbench_accounts)";
    ensure!(session.value(sums)? == "t", "the accounts do not tally");
    drop(session);
    running.end()
}
