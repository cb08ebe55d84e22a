//! Servers with clients outside of the tree, which stay connected and do not notice more than that an answer takes long.

use crate::ROUNDS;
use crate::world::World;
use anyhow::{Context, ensure};
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;
use tests::{Result, wait};

/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(30);

pub(crate) fn connect(port: u16) -> Result<TcpStream> {
    let stream = wait::until(wait::STEP, &format!("port {port} answers"), || {
        Ok(TcpStream::connect(("127.0.0.1", port)).ok())
    })?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    Ok(stream)
}

/// Runs clients beside five rounds of dump and restore, until these are over. Each says how much it did.
fn beside_rounds(
    world: &World,
    program: &[&str],
    port: u16,
    clients: &[fn(u16, &AtomicBool) -> Result<u64>],
) -> Result {
    let mut running = world.start(program)?;
    drop(connect(port).with_context(|| world.read("log").unwrap_or_default())?);
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        let clients: Vec<_> = clients.iter().map(|client| scope.spawn(|| client(port, &over))).collect();
        let rounds = (0..ROUNDS).try_for_each(|_| {
            thread::sleep(Duration::from_millis(200));
            running.round_with(&["--tcp-established"])
        });
        over.store(true, Ordering::Relaxed);
        for (index, client) in clients.into_iter().enumerate() {
            let done = client.join().map_err(|_| anyhow::anyhow!("client {index} panicked"))?;
            let done = done.with_context(|| format!("client {index}"))?;
            ensure!(done > u64::from(ROUNDS), "client {index} has had {done} answers");
        }
        rounds
    })?;
    running.end()
}

/// redis with a file that it appends to: requests in bursts, each answered once and in order; a subscriber gets every message.
pub(crate) fn redis(world: &World) -> Result {
    let program =
        ["/usr/bin/redis-server", "--port", "6400", "--appendonly", "yes", "--dir", "/scratch", "--save", ""];
    beside_rounds(world, &program, 6400, &[counter, subscriber])
}

fn counter(port: u16, over: &AtomicBool) -> Result<u64> {
    const BURST: usize = 40;
    let mut stream = connect(port)?;
    let mut answers = BufReader::new(stream.try_clone()?);
    let mut count = 0u64;
    while !over.load(Ordering::Relaxed) {
        stream.write_all("INCR counter\r\n".repeat(BURST).as_bytes())?;
        for _ in 0..BURST {
            let mut line = String::new();
            answers.read_line(&mut line)?;
            count += 1;
            ensure!(line == format!(":{count}\r\n"), "answer {count} is {line:?}");
        }
    }
    Ok(count)
}

fn subscriber(port: u16, over: &AtomicBool) -> Result<u64> {
    let mut subscribed = connect(port)?;
    subscribed.write_all(b"SUBSCRIBE news\r\n")?;
    let mut heard = BufReader::new(subscribed.try_clone()?).lines();
    let mut next = |lines: usize| -> Result<String> {
        let mut last = String::new();
        for _ in 0..lines {
            last = heard.next().context("closed")??;
        }
        Ok(last)
    };
    next(6)?;
    let mut stream = connect(port)?;
    let mut answers = BufReader::new(stream.try_clone()?);
    let mut count = 0;
    while !over.load(Ordering::Relaxed) {
        count += 1;
        write!(stream, "PUBLISH news item-{count}\r\n")?;
        let (mut line, message) = (String::new(), next(7)?);
        ensure!(message == format!("item-{count}"), "message {count} is {message:?}");
        answers.read_line(&mut line)?;
        ensure!(line == ":1\r\n", "message {count} has {line:?} receivers");
    }
    Ok(count)
}

/// nginx, a master with two workers: a long download goes on, and one connection serves request after request.
pub(crate) fn nginx(world: &World) -> Result {
    let config = "daemon off; worker_processes 2; pid /scratch/nginx.pid; error_log /scratch/errors;
        events { worker_connections 64; }
        http { access_log off; keepalive_requests 1000000; server { listen 127.0.0.1:8080; root /scratch; } }";
    fs::write(world.dir.join("nginx.conf"), config)?;
    fs::write(world.dir.join("small"), "small")?;
    fs::write(world.dir.join("large"), large())?;
    fs::set_permissions(&world.dir, std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
    let program = ["/usr/sbin/nginx", "-c", "/scratch/nginx.conf", "-e", "/scratch/errors"];
    beside_rounds(world, &program, 8080, &[download, requests])
}

/// More than fits into any buffers on the way.
fn large() -> Vec<u8> {
    (0..24u32 << 20).map(|n| (n.wrapping_mul(2_654_435_761) >> 24).to_le_bytes()[0]).collect()
}

fn ask_for(stream: &mut TcpStream, name: &str) -> Result<(BufReader<TcpStream>, usize)> {
    write!(stream, "GET /{name} HTTP/1.1\r\nHost: here\r\n\r\n")?;
    let mut answer = BufReader::new(stream.try_clone()?);
    let mut length = 0;
    for number in 0.. {
        let mut line = String::new();
        answer.read_line(&mut line)?;
        ensure!(number > 0 || line.starts_with("HTTP/1.1 200"), "the answer is {line:?}");
        if let Some(value) = line.strip_prefix("Content-Length: ") {
            length = value.trim().parse()?;
        }
        if line.trim().is_empty() {
            break;
        }
    }
    Ok((answer, length))
}

/// Reads slowly, until the rounds are over; then to the end.
fn download(port: u16, over: &AtomicBool) -> Result<u64> {
    let mut stream = connect(port)?;
    let (mut answer, length) = ask_for(&mut stream, "large")?;
    let mut bytes = vec![0; length];
    let mut parts = 0;
    for part in bytes.chunks_mut(32 << 10) {
        answer.read_exact(part)?;
        parts += 1;
        // About as long as the rounds take.
        if !over.load(Ordering::Relaxed) {
            thread::sleep(Duration::from_millis(3));
        }
    }
    ensure!(bytes == large(), "the download differs");
    Ok(parts)
}

fn requests(port: u16, over: &AtomicBool) -> Result<u64> {
    let mut stream = connect(port)?;
    let mut count = 0;
    while !over.load(Ordering::Relaxed) {
        let (mut answer, length) = ask_for(&mut stream, "small")?;
        let mut bytes = vec![0; length];
        answer.read_exact(&mut bytes)?;
        ensure!(bytes == b"small", "answer {count} is {bytes:?}");
        count += 1;
    }
    Ok(count)
}
