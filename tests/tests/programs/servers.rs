//! Servers with clients outside of the tree, which stay connected and do not notice more than that an answer takes long.

use crate::ROUNDS;
use crate::world::{Running, World};
use anyhow::{Context, ensure};
use nix::sys::signal::{Signal, kill};
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;
use tests::{Result, case, wait};

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

/// What a client and who dumps its server tell each other.
#[derive(Debug, Default)]
pub(super) struct Turns {
    taken: AtomicU64,
    over: AtomicBool,
}

impl Turns {
    /// Whether the client is to take another turn, after all that it began have been answered.
    pub(super) fn next(&self) -> bool {
        self.taken.fetch_add(1, Ordering::Relaxed);
        !self.over.load(Ordering::Relaxed)
    }
}

/// A client of the server at a port: it takes turns until the rounds are over.
pub(super) type Client<'a> = dyn Fn(u16, &Turns) -> Result + Sync + 'a;

/// Runs clients beside five rounds of dump and restore.
pub(super) fn beside_rounds(world: &World, program: &[&str], port: u16, clients: &[&Client<'_>]) -> Result {
    beside_rounds_of(Running::round_with, world, program, port, clients)
}

/// [`beside_rounds`] of this kind.
pub(super) fn beside_rounds_of<'w>(
    round: fn(&mut Running<'w>, &[&str]) -> Result,
    world: &'w World,
    program: &[&str],
    port: u16,
    clients: &[&Client<'_>],
) -> Result {
    let mut running = world.start(program)?;
    drop(connect(port).with_context(|| world.read("log").unwrap_or_default())?);
    let turns: Vec<Turns> = clients.iter().map(|_| Turns::default()).collect();
    thread::scope(|scope| {
        let clients: Vec<_> = (clients.iter().zip(&turns))
            .map(|(client, turns)| (turns, scope.spawn(move || client(port, turns))))
            .collect();
        let rounds = (0..ROUNDS).try_for_each(|_| {
            // Each round finds every client with something that it has had since the last one.
            for (turns, client) in &clients {
                let goal = turns.taken.load(Ordering::Relaxed) + 3;
                wait::until(wait::STEP, "a client is served", || {
                    Ok((turns.taken.load(Ordering::Relaxed) >= goal || client.is_finished()).then_some(()))
                })?;
            }
            round(&mut running, &["--tcp-established"])
        });
        turns.iter().for_each(|turns| turns.over.store(true, Ordering::Relaxed));
        for (index, (_, client)) in clients.into_iter().enumerate() {
            let ended = client.join().map_err(|_| anyhow::anyhow!("client {index} panicked"))?;
            ended.with_context(|| format!("client {index}"))?;
        }
        rounds
    })?;
    running.end()
}

/// redis with a file that it appends to: requests in bursts, each answered once and in order; a subscriber gets every message.
pub(crate) fn redis(world: &World) -> Result {
    let program =
        ["/usr/bin/redis-server", "--port", "6400", "--appendonly", "yes", "--dir", "/scratch", "--save", ""];
    beside_rounds(world, &program, 6400, &[&counter, &subscriber])
}

/// redis with a client by a unix socket outside of the tree: that one is told the end, and the next one is served.
pub(crate) fn redis_with_a_local_client(world: &World) -> Result {
    let options = ["--port", "6405", "--unixsocket", "/scratch/local", "--dir", "/scratch", "--save", ""];
    let mut running = world.start(&[&["/usr/bin/redis-server"], &options[..]].concat())?;
    drop(connect(6405).with_context(|| world.read("log").unwrap_or_default())?);
    std::env::set_current_dir(&world.dir)?;
    for round in 1..=ROUNDS {
        let mut client = UnixStream::connect("local")?;
        client.set_read_timeout(Some(PATIENCE))?;
        client.write_all(b"INCR count\r\n")?;
        let mut answer = BufReader::new(client);
        let mut line = String::new();
        answer.read_line(&mut line)?;
        ensure!(line == format!(":{round}\r\n"), "round {round}: the answer is {line:?}");
        running.round_with(&["--unix-half", "close"])?;
        let rest = answer.read_line(&mut line)?;
        ensure!(rest == 0, "round {round}: more is heard: {line:?}");
    }
    running.end()
}

/// redis with data that changes between the rounds of an incremental dump.
pub(crate) fn redis_in_rounds(world: &World) -> Result {
    let program = ["/usr/bin/redis-server", "--port", "6401", "--dir", "/scratch", "--save", ""];
    let running = world.start(&program)?;
    let root = running.root.to_string();
    let mut keys = Keys::of_server(6401);
    let mut previous: Option<String> = None;
    for round in 1..=4u32 {
        keys.set_some(round).with_context(|| world.read("log").unwrap_or_default())?;
        let images = world.dir.join(format!("round-{round}"));
        fs::create_dir(&images)?;
        let images = images.to_string_lossy();
        let mut args = vec![if round == 4 { "dump" } else { "pre-dump" }, "-t", &root, "-D", &images];
        args.extend(previous.iter().flat_map(|previous| ["--prev-images-dir", previous.as_str()]));
        // A connection that was closed just now is there for a minute.
        args.extend((round == 4).then_some("--tcp-established"));
        world.crr(&args)?;
        previous = Some(format!("../round-{round}"));
    }
    case::nothing_left()?;
    world.crr(&["restore", "-D", &world.dir.join("round-4").to_string_lossy(), "-d"])?;
    keys.check()?;
    running.end()
}

/// redis that is asked, changes its data and forks to save it before all of that is in its memory.
pub(crate) fn redis_lazily(world: &World) -> Result {
    let program = ["/usr/bin/redis-server", "--port", "6402", "--dir", "/scratch", "--save", ""];
    let mut running = world.start(&program)?;
    let mut keys = Keys::of_server(6402);
    keys.set_some(1).with_context(|| world.read("log").unwrap_or_default())?;
    for round in 2..=4 {
        running.round_lazily(&["--tcp-established"])?;
        let mut stream = connect(6402)?;
        let mut answers = BufReader::new(stream.try_clone()?);
        stream.write_all(b"BGSAVE\r\n")?;
        let mut answer = String::new();
        answers.read_line(&mut answer)?;
        ensure!(answer == "+Background saving started\r\n", "BGSAVE answers {answer:?}");
        keys.set_some(round)?;
        keys.check()?;
        wait::until(wait::STEP, "the data are saved", || {
            stream.write_all(b"INFO persistence\r\n")?;
            let mut length = String::new();
            answers.read_line(&mut length)?;
            let length: usize = length.trim_start_matches('$').trim_end().parse()?;
            let mut info = vec![0; length + 2];
            answers.read_exact(&mut info)?;
            let info = String::from_utf8_lossy(&info);
            ensure!(info.contains("rdb_last_bgsave_status:ok"), "{info}");
            Ok(info.contains("rdb_bgsave_in_progress:0").then_some(()))
        })?;
    }
    case::memory_arrives()?;
    running.end()
}

/// redis that takes writes while a snapshot of it is copied: what comes back is the moment at which it stood still, not one of the moments after.
pub(crate) fn redis_in_snapshots(world: &World) -> Result {
    let program = ["/usr/bin/redis-server", "--port", "6403", "--dir", "/scratch", "--save", ""];
    let mut running = world.start(&program)?;
    let mut keys = Keys::of_server(6403);
    keys.set_some(1).with_context(|| world.read("log").unwrap_or_default())?;
    for round in 2..=4 {
        let images = world.dir.join(format!("snapshot-{round}"));
        fs::create_dir(&images)?;
        let (root, images) = (running.root.to_string(), images.to_string_lossy());
        let (over, pushed) = (AtomicBool::new(false), AtomicU64::new(0));
        let (before, after, seen) = thread::scope(|scope| {
            // Both lists grow by one request: at no moment they differ.
            let writer = scope.spawn(|| -> Result<u64> {
                let mut stream = connect(6403)?;
                let mut answers = BufReader::new(stream.try_clone()?).lines();
                while !over.load(Ordering::Relaxed) {
                    stream.write_all(
                        b"EVAL \"redis.call('RPUSH', 'a', '0'); return redis.call('RPUSH', 'b', '0')\" 0\r\n",
                    )?;
                    let answer = answers.next().context("closed")??;
                    pushed.store(answer.trim_start_matches(':').parse()?, Ordering::Relaxed);
                }
                Ok(pushed.load(Ordering::Relaxed))
            });
            let began = wait::until(wait::STEP, "it is written to", || {
                let seen = pushed.load(Ordering::Relaxed);
                Ok((seen > 0 || writer.is_finished()).then_some(seen))
            });
            let dumped = world.crr(&["dump", "-t", &root, "-D", &images, "-R", "--snapshot", "--tcp-close"]);
            let seen = pushed.load(Ordering::Relaxed);
            let goes_on = wait::until(wait::STEP, "it is written to", || {
                Ok((pushed.load(Ordering::Relaxed) > seen || writer.is_finished()).then_some(()))
            });
            over.store(true, Ordering::Relaxed);
            let last = writer.join().map_err(|_| anyhow::anyhow!("the writer panicked"))??;
            dumped?;
            goes_on?;
            Ok::<_, anyhow::Error>((began?, last, seen))
        })?;
        ensure!(after > seen, "{after} pushes, {seen} when it was dumped");
        kill(running.root, Signal::SIGKILL)?;
        case::nothing_left()?;
        world.crr(&["restore", "-D", &images, "-d"])?;
        running.dumps += 1;
        let [a, b] = ["a", "b"].map(|list| length(6403, list));
        let (a, b) = (a?, b?);
        // One may have been carried out whose answer was still on its way.
        ensure!(a == b && (before..=seen + 1).contains(&a), "{a} and {b} pushes, of {before} to {seen}");
        keys.check()?;
        keys.set_some(round)?;
    }
    running.end()
}

/// redis with a GiB of data, in one round: it has the same digest of all that before and after.
pub(crate) fn redis_with_a_gigabyte(world: &World) -> Result {
    let program =
        ["/usr/bin/redis-server", "--port", "6404", "--save", "", "--enable-debug-command", "local"];
    let mut running = world.start(&program)?;
    let mut stream = connect(6404)?;
    stream.set_read_timeout(Some(wait::STEP))?;
    let mut answers = BufReader::new(stream.try_clone()?).lines();
    let mut ask = |request: &str| -> Result<String> {
        stream.write_all(format!("{request}\r\n").as_bytes())?;
        Ok(answers.next().context("closed")??)
    };
    let made = ask("DEBUG POPULATE 262144 key 4096")?;
    ensure!(made == "+OK", "DEBUG POPULATE answers {made:?}");
    let before = ask("DEBUG DIGEST")?;
    running.round_with(&["--tcp-established"])?;
    let after = ask("DEBUG DIGEST")?;
    ensure!(before == after && before.len() > 40, "its digest is {after:?}, not {before:?}");
    Ok(())
}

/// How long a list of a redis is.
fn length(port: u16, list: &str) -> Result<u64> {
    let mut stream = connect(port)?;
    let mut answer = String::new();
    let mut answers = BufReader::new(stream.try_clone()?);
    stream.write_all(format!("LLEN {list}\r\n").as_bytes())?;
    answers.read_line(&mut answer)?;
    answer.trim().trim_start_matches(':').parse().with_context(|| answer)
}

/// Keys of a redis, with what each is to hold.
struct Keys {
    port: u16,
    /// The round in which each was set last.
    values: Vec<u32>,
}

impl Keys {
    fn of_server(port: u16) -> Self {
        Self { port, values: vec![0; 20_000] }
    }

    /// Sets every key in the first round, some of them later.
    fn set_some(&mut self, round: u32) -> Result {
        let mut stream = connect(self.port)?;
        let mut answers = BufReader::new(stream.try_clone()?).lines();
        for (key, last) in
            (0..).zip(&mut self.values).filter(|(key, _)| round == 1 || (key * 7 + round) % 29 == 0)
        {
            *last = round;
            stream.write_all(format!("SET key-{key} {}\r\n", value(key, round)).as_bytes())?;
            let answer = answers.next().context("closed")??;
            ensure!(answer == "+OK", "SET answers {answer:?}");
        }
        Ok(())
    }

    fn check(&self) -> Result {
        let mut stream = connect(self.port)?;
        let mut answers = BufReader::new(stream.try_clone()?).lines();
        for (key, &round) in (0..).zip(&self.values) {
            stream.write_all(format!("GET key-{key}\r\n").as_bytes())?;
            let length = answers.next().context("closed")??;
            let answer = answers.next().context("closed")??;
            let expected = value(key, round);
            ensure!(answer == expected, "key {key} is {answer:?} ({length:?}), not {expected:?}");
        }
        Ok(())
    }
}

/// What a key holds since a round.
fn value(key: u32, round: u32) -> String {
    format!("{round}-{key}-{}", "x".repeat((key % 300) as usize))
}

fn counter(port: u16, turns: &Turns) -> Result {
    const BURST: usize = 40;
    let mut stream = connect(port)?;
    let mut answers = BufReader::new(stream.try_clone()?);
    let mut count = 0u64;
    while turns.next() {
        stream.write_all("INCR counter\r\n".repeat(BURST).as_bytes())?;
        for _ in 0..BURST {
            let mut line = String::new();
            answers.read_line(&mut line)?;
            count += 1;
            ensure!(line == format!(":{count}\r\n"), "answer {count} is {line:?}");
        }
    }
    Ok(())
}

fn subscriber(port: u16, turns: &Turns) -> Result {
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
    while turns.next() {
        count += 1;
        write!(stream, "PUBLISH news item-{count}\r\n")?;
        let (mut line, message) = (String::new(), next(7)?);
        ensure!(message == format!("item-{count}"), "message {count} is {message:?}");
        answers.read_line(&mut line)?;
        ensure!(line == ":1\r\n", "message {count} has {line:?} receivers");
    }
    Ok(())
}

/// nginx, a master with two workers: a long download and an upload go on, and one connection serves request after request.
pub(crate) fn nginx(world: &World) -> Result {
    let config = "daemon off; worker_processes 2; pid /scratch/nginx.pid; error_log /scratch/errors;
        events { worker_connections 64; }
        http { access_log off; keepalive_requests 1000000; 
            server { listen 127.0.0.1:8080; root /scratch;
                location /uploaded { dav_methods PUT; client_max_body_size 64m; root /scratch/uploads; } } }";
    let uploads = world.dir.join("uploads");
    fs::create_dir(&uploads)?;
    // The workers run as another user.
    fs::set_permissions(&uploads, std::os::unix::fs::PermissionsExt::from_mode(0o777))?;
    fs::write(world.dir.join("nginx.conf"), config)?;
    fs::write(world.dir.join("small"), "small")?;
    fs::write(world.dir.join("large"), large())?;
    make_readable(world)?;
    let program = ["/usr/sbin/nginx", "-c", "/scratch/nginx.conf", "-e", "/scratch/errors"];
    beside_rounds(world, &program, 8080, &[&download, &upload, &requests])?;
    ensure!(fs::read(uploads.join("uploaded"))? == large(), "the upload differs");
    Ok(())
}

/// Sends slowly, until the rounds are over; then the rest.
fn upload(port: u16, turns: &Turns) -> Result {
    let mut stream = connect(port)?;
    let contents = large();
    write!(stream, "PUT /uploaded HTTP/1.1\r\nHost: here\r\nContent-Length: {}\r\n\r\n", contents.len())?;
    for part in contents.chunks(32 << 10) {
        stream.write_all(part)?;
        if turns.next() {
            thread::sleep(Duration::from_millis(3));
        }
    }
    let mut answer = String::new();
    BufReader::new(stream).read_line(&mut answer)?;
    ensure!(answer.starts_with("HTTP/1.1 201"), "the answer is {answer:?}");
    Ok(())
}

/// Lets the users that servers run as find files.
pub(super) fn make_readable(world: &World) -> Result {
    Ok(fs::set_permissions(&world.dir, std::os::unix::fs::PermissionsExt::from_mode(0o755))?)
}

/// More than fits into any buffers on the way.
pub(super) fn large() -> Vec<u8> {
    (0..24u32 << 20).map(|n| (n.wrapping_mul(2_654_435_761) >> 24).to_le_bytes()[0]).collect()
}

pub(super) fn ask_for(stream: &mut TcpStream, name: &str) -> Result<(BufReader<TcpStream>, usize)> {
    send_request(stream, name)?;
    answer_to(stream)
}

fn send_request(stream: &mut TcpStream, name: &str) -> Result {
    Ok(write!(stream, "GET /{name} HTTP/1.1\r\nHost: here\r\n\r\n")?)
}

fn answer_to(stream: &TcpStream) -> Result<(BufReader<TcpStream>, usize)> {
    let mut answer = BufReader::new(stream.try_clone()?);
    let mut length = 0;
    for number in 0.. {
        let mut line = String::new();
        answer.read_line(&mut line)?;
        ensure!(number > 0 || line.starts_with("HTTP/1.1 200"), "the answer is {line:?}");
        if let Some(value) = line.to_lowercase().strip_prefix("content-length: ") {
            length = value.trim().parse()?;
        }
        if line.trim().is_empty() {
            break;
        }
    }
    Ok((answer, length))
}

/// Reads slowly, until the rounds are over; then to the end.
pub(super) fn download(port: u16, turns: &Turns) -> Result {
    let mut stream = connect(port)?;
    let (mut answer, length) = ask_for(&mut stream, "large")?;
    let mut bytes = vec![0; length];
    for part in bytes.chunks_mut(32 << 10) {
        answer.read_exact(part)?;
        // About as long as the rounds take.
        if turns.next() {
            thread::sleep(Duration::from_millis(3));
        }
    }
    ensure!(bytes == large(), "the download differs");
    Ok(())
}

pub(super) fn requests(port: u16, turns: &Turns) -> Result {
    let mut stream = connect(port)?;
    let mut count = 0;
    while turns.next() {
        let (mut answer, length) = ask_for(&mut stream, "small")?;
        let mut bytes = vec![0; length];
        answer.read_exact(&mut bytes)?;
        ensure!(bytes == b"small", "answer {count} is {bytes:?}");
        count += 1;
    }
    Ok(())
}

/// Hundreds of connections that stay open, all of which wait for an answer at a time.
pub(super) fn requests_of_many(port: u16, turns: &Turns) -> Result {
    const CLIENTS: usize = 250;
    let mut streams = (0..CLIENTS).map(|_| connect(port)).collect::<Result<Vec<_>>>()?;
    while turns.next() {
        for (number, stream) in streams.iter_mut().enumerate() {
            send_request(stream, &format!("of-{number}"))?;
        }
        for (number, stream) in streams.iter().enumerate() {
            let (mut answer, length) = answer_to(stream)?;
            let mut bytes = vec![0; length];
            answer.read_exact(&mut bytes)?;
            ensure!(bytes == format!("of-{number}").as_bytes(), "client {number} got {bytes:?}");
        }
    }
    Ok(())
}
