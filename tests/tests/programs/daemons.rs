//! More servers with clients outside of the tree, some of which are programs themselves.

use super::servers::{
    Turns, ask_for, beside_rounds, beside_rounds_of, connect, download, large, make_readable, requests,
    requests_of_many,
};
use crate::ROUNDS;
use crate::world::{Running, World};
use anyhow::{Context, ensure};
use nix::sys::signal::{Signal, kill};
use std::fs;
use std::io::{BufRead, BufReader, Lines, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use tests::{Result, wait};

/// memcached with its threads: values of many sizes, set and got on one connection, counted on another.
pub(crate) fn memcached(world: &World) -> Result {
    let program =
        ["/usr/bin/memcached", "-u", "root", "-l", "127.0.0.1", "-p", "11300", "-U", "11300", "-t", "3"];
    beside_rounds(world, &program, 11300, &[&values, &increments])
}

fn values(port: u16, turns: &Turns) -> Result {
    let mut stream = connect(port)?;
    let mut answers = BufReader::new(stream.try_clone()?);
    let mut line = move || -> Result<String> {
        let mut line = String::new();
        answers.read_line(&mut line)?;
        Ok(line)
    };
    let mut count = 0u64;
    while turns.next() {
        let value = format!("{count}-").repeat(usize::try_from(count * 7919 % 5000)? + 1);
        write!(stream, "set key 0 0 {}\r\n{value}\r\nget key\r\n", value.len())?;
        let stored = line()?;
        ensure!(stored == "STORED\r\n", "{count}: {stored:?}");
        let (header, got, end) = (line()?, line()?, line()?);
        ensure!(
            header == format!("VALUE key 0 {}\r\n", value.len()) && end == "END\r\n",
            "{count}: {header:?}"
        );
        ensure!(got.trim_end() == value, "value {count} is another one");
        count += 1;
    }
    Ok(())
}

fn increments(port: u16, turns: &Turns) -> Result {
    let mut stream = connect(port)?;
    let mut answers = BufReader::new(stream.try_clone()?).lines();
    let mut next = || -> Result<String> { Ok(answers.next().context("closed")??) };
    stream.write_all(b"set counter 0 0 1\r\n0\r\n")?;
    ensure!(next()? == "STORED");
    let mut count = 0u64;
    while turns.next() {
        stream.write_all(&b"incr counter 1\r\n".repeat(20))?;
        for _ in 0..20 {
            count += 1;
            let answer = next()?;
            ensure!(answer == count.to_string(), "answer {count} is {answer}");
        }
    }
    Ok(())
}

/// Apache with processes that each serve one client at a time.
pub(crate) fn apache(world: &World) -> Result {
    let config = "ServerRoot /scratch\nServerName here\nPidFile apache.pid\nDefaultRuntimeDir /scratch\nErrorLog errors\n\
        LoadModule mpm_prefork_module /usr/lib/apache2/modules/mod_mpm_prefork.so\n\
        LoadModule authz_core_module /usr/lib/apache2/modules/mod_authz_core.so\n\
        User www-data\nGroup www-data\nListen 127.0.0.1:8083\nListen 127.0.0.1:8084\nDocumentRoot /scratch\n\
        StartServers 3\nKeepAlive On\nMaxKeepAliveRequests 0\nKeepAliveTimeout 300\n";
    fs::write(world.dir.join("apache.conf"), config)?;
    fs::write(world.dir.join("small"), "small")?;
    fs::write(world.dir.join("large"), large())?;
    make_readable(world)?;
    let program = ["/usr/sbin/apache2", "-D", "FOREGROUND", "-f", "/scratch/apache.conf"];
    beside_rounds(world, &program, 8083, &[&download, &requests, &|_, turns| requests(8084, turns)])
}

/// asyncio with hundreds of connections.
pub(crate) fn many_connections(world: &World) -> Result {
    beside_rounds(world, &[super::PYTHON32, "/scratch/echo.py"], 7007, &[&crowd])
}

fn crowd(port: u16, turns: &Turns) -> Result {
    const CLIENTS: usize = 300;
    let clients = (0..CLIENTS).map(|_| connect(port)).collect::<Result<Vec<_>>>()?;
    let mut answers: Vec<_> = clients.iter().map(BufReader::new).collect();
    let mut turn = 0;
    while turns.next() {
        for (number, mut client) in clients.iter().enumerate() {
            writeln!(client, "turn {turn} of {number}")?;
        }
        for (number, answer) in answers.iter_mut().enumerate() {
            let mut line = String::new();
            answer.read_line(&mut line)?;
            ensure!(
                line == format!("turn {turn} of {number}\n"),
                "client {number} got {line:?} in turn {turn}"
            );
        }
        turn += 1;
    }
    Ok(())
}

/// node as server and client.
pub(crate) fn node(world: &World) -> Result {
    beside_rounds(
        world,
        &["/usr/bin/node", "/scratch/web.js"],
        8081,
        &[&requests, &requests_of_many, &own_client],
    )
}

/// Sees that the client within the server goes on, after the rounds, too.
fn own_client(port: u16, turns: &Turns) -> Result {
    let mut stream = connect(port)?;
    let mut count = || -> Result<u64> {
        let (mut answer, length) = ask_for(&mut stream, "count")?;
        let mut text = vec![0; length];
        answer.read_exact(&mut text)?;
        Ok(String::from_utf8(text)?.parse()?)
    };
    while turns.next() {
        count()?;
    }
    let before = count()?;
    wait::until(wait::STEP, "the client within the server has an answer", || {
        Ok((count()? > before).then_some(()))
    })?;
    Ok(())
}

/// A server of the JDK.
pub(crate) fn java(world: &World) -> Result {
    // It closes those of its connections that are idle when there are more than 200.
    let program = ["/usr/bin/java", "-Dsun.net.httpserver.maxIdleConnections=1000", "/scratch/Web.java"];
    beside_rounds(world, &program, 8082, &[&requests, &requests_of_many])
}

/// The same, restored with memory that comes later.
pub(crate) fn java_lazily(world: &World) -> Result {
    let program = ["/usr/bin/java", "/scratch/Web.java"];
    beside_rounds_of(Running::round_lazily, world, &program, 8082, &[&requests, &requests])
}

/// A program that answers each line with one.
struct Session {
    child: Child,
    input: ChildStdin,
    answers: Lines<BufReader<ChildStdout>>,
}

impl Session {
    fn start(command: &mut Command) -> Result<Self> {
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let input = child.stdin.take().context("no input")?;
        let answers = BufReader::new(child.stdout.take().context("no output")?).lines();
        Ok(Self { child, input, answers })
    }

    fn ask(&mut self, line: &str) -> Result<String> {
        writeln!(self.input, "{line}")?;
        Ok(self.answers.next().context("the session has ended")??)
    }

    fn end(self) -> Result {
        let Self { mut child, input, .. } = self;
        drop(input);
        let status = wait::until(wait::STEP, "the session ends", || Ok(child.try_wait()?))?;
        ensure!(status.success(), "the session ended with {status}");
        Ok(())
    }
}

/// sshd: a session with a loop in a shell, without a terminal and with one, and a port that is forwarded to a server outside.
pub(crate) fn sshd(world: &World) -> Result {
    fs::create_dir_all(world.root.join("run/sshd"))?;
    for key in ["host", "user"] {
        let made = Command::new("chroot")
            .arg(&world.root)
            .args(["/usr/bin/ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", &format!("/scratch/{key}")])
            .status()?;
        ensure!(made.success(), "ssh-keygen: {made}");
    }
    let config = "Port 2200\nListenAddress 127.0.0.1\nHostKey /scratch/host\nAuthorizedKeysFile /scratch/user.pub\n\
        StrictModes no\nPidFile none\nUsePAM no\nPermitRootLogin yes\nPrintMotd no\nPrintLastLog no\n";
    fs::write(world.dir.join("sshd.conf"), config)?;
    let behind = TcpListener::bind(("127.0.0.1", 0))?;
    let port = behind.local_addr()?.port();
    std::thread::spawn(move || behind.incoming().flatten().try_for_each(|client| send_back(&client)));
    let dir = world.dir.clone();
    let lines =
        |options: &[&str], command: &str, turns: &Turns| lines_over_ssh(&dir, options, command, turns);
    const COUNT: &str = "n=0; while read -r line; do n=$((n + 1)); echo \"$n $line\"; done";
    let clients: [&crate::servers::Client<'_>; 3] = [
        &|_, turns| lines(&[], COUNT, turns),
        &|_, turns| lines(&["-tt"], &format!("stty -echo -onlcr; echo; {COUNT}"), turns),
        &|_, turns| {
            let forward = format!("2201:127.0.0.1:{port}");
            let ssh = Session::start(&mut ssh(&dir, &["-L", &forward], "echo there; cat"))?;
            send_lines(&connect(2201)?, turns)?;
            ssh.end()?;
            Ok(())
        },
    ];
    beside_rounds_of(
        Running::round_among_others,
        world,
        &["/usr/sbin/sshd", "-D", "-e", "-f", "/scratch/sshd.conf"],
        2200,
        &clients,
    )
}

fn ssh(dir: &Path, options: &[&str], command: &str) -> Command {
    let mut ssh = Command::new("ssh");
    ssh.args(["-p", "2200", "-i"]).arg(dir.join("user"));
    ssh.args([
        "-o",
        "StrictHostKeyChecking=no",
        "-o",
        "UserKnownHostsFile=/dev/null",
        "-o",
        "LogLevel=ERROR",
    ]);
    ssh.args(options).args(["root@127.0.0.1", command]);
    ssh
}

/// Sends each line back, until the client has no more.
fn send_back(client: &TcpStream) -> std::io::Result<()> {
    let mut answers = client;
    BufReader::new(client)
        .lines()
        .map_while(std::io::Result::ok)
        .try_for_each(|line| writeln!(answers, "{line}"))
}

fn send_lines(stream: &TcpStream, turns: &Turns) -> Result {
    let (mut input, mut answers) = (stream, BufReader::new(stream).lines());
    let mut count = 0;
    while turns.next() {
        writeln!(input, "line {count}")?;
        let answer = answers.next().context("closed")??;
        ensure!(answer == format!("line {count}"), "answer {count} is {answer}");
        count += 1;
    }
    Ok(())
}

fn lines_over_ssh(dir: &Path, options: &[&str], command: &str, turns: &Turns) -> Result {
    let mut session = Session::start(&mut ssh(dir, options, command))?;
    if options.contains(&"-tt") {
        // What comes before the terminal does not show what is typed any more.
        while !session.answers.next().context("the session has ended")??.is_empty() {}
    }
    let mut count = 0u64;
    while turns.next() {
        count += 1;
        let answer = session.ask(&format!("line {count}"))?;
        ensure!(answer == format!("{count} line {count}"), "answer {count} is {answer:?}");
    }
    if options.contains(&"-tt") {
        // The end of input, as somebody types it.
        session.input.write_all(&[4])?;
    }
    session.end()?;
    Ok(())
}

/// mariadbd: rows go in by one connection and are counted by another.
pub(crate) fn mariadb(world: &World) -> Result {
    let log = fs::File::create(world.dir.join("install"))?;
    let made = Command::new("chroot")
        .arg(&world.root)
        .args([
            "/usr/bin/mariadb-install-db",
            "--no-defaults",
            "--user=root",
            "--datadir=/scratch/db",
            "--skip-name-resolve",
        ])
        .args(["--auth-root-authentication-method=normal", "--skip-test-db"])
        .stdout(log.try_clone()?)
        .stderr(log)
        .status()?;
    ensure!(made.success(), "mariadb-install-db: {made}\n{}", world.read("install")?);
    let program = [
        "/usr/sbin/mariadbd",
        "--no-defaults",
        "--user=root",
        "--datadir=/scratch/db",
        "--socket=/scratch/db.sock",
        "--bind-address=127.0.0.1",
        "--port=3400",
        "--skip-name-resolve",
        "--innodb-linux-aio=aio",
        "--innodb-buffer-pool-size=16M",
        "--innodb-log-file-size=8M",
    ];
    let root = world.root.clone();
    let session = || {
        let mut client = Command::new("chroot");
        client.arg(&root).args([
            "/usr/bin/mariadb",
            "--no-defaults",
            "-h",
            "127.0.0.1",
            "-P",
            "3400",
            "-u",
            "root",
        ]);
        Session::start(client.args(["--batch", "--skip-column-names", "--unbuffered", "--skip-reconnect"]))
    };
    let writer = |_, turns: &Turns| -> Result {
        let mut session = session()?;
        let aio = session.ask("select concat(@@innodb_use_native_aio, ' ', @@innodb_linux_aio);")?;
        ensure!(aio == "ON aio", "the server does without AIO contexts: {aio}");
        ensure!(
            session.ask(
                "create database numbers; create table numbers.all_of_them (n int primary key); select 0;"
            )? == "0"
        );
        let mut count = 0u64;
        while turns.next() {
            count += 1;
            let line = format!(
                "insert into numbers.all_of_them values ({count}); select sum(n) from numbers.all_of_them;"
            );
            let (sum, expected) = (session.ask(&line)?, count * (count + 1) / 2);
            ensure!(sum == expected.to_string(), "the sum of {count} numbers is {sum}");
        }
        session.end()?;
        Ok(())
    };
    let computer = |_, turns: &Turns| -> Result {
        let mut session = session()?;
        ensure!(session.ask("set @n = 0; select @n;")? == "0");
        let mut count = 0u64;
        while turns.next() {
            count += 1;
            let n = session.ask("set @n = @n + 1; select @n;")?;
            ensure!(n == count.to_string(), "{n} instead of {count}");
        }
        session.end()?;
        Ok(())
    };
    beside_rounds_of(Running::round_among_others, world, &program, 3400, &[&writer, &computer])
}

/// A program that sends an echo request five times a second and tells of each answer: none comes twice, and none is missing but for what
/// was on its way when it was dumped.
pub(crate) fn ping(world: &World, host: &str) -> Result {
    let mut running = world.start(&["/bin/busybox", "ping", "-i", "0.2", host])?;
    let answered = || -> Result<Vec<u32>> {
        let log = world.read("log")?;
        let lines = log.lines().filter(|line| line.contains(" ttl=64 "));
        let numbers = lines.filter_map(|line| line.split_once(" seq=")?.1.split(' ').next());
        numbers.map(|number| number.parse().context("a sequence number")).collect()
    };
    for _ in 0..ROUNDS {
        let before = answered()?.len();
        wait::until(wait::STEP, "two more answers", || {
            running.still_runs()?;
            Ok((answered()?.len() >= before + 2).then_some(()))
        })?;
        running.round_with(&["--skip-in-flight"])?;
    }
    let last = answered()?.len();
    wait::until(wait::STEP, "an answer after the last restore", || {
        Ok((answered()?.len() > last).then_some(()))
    })?;
    kill(running.root, Signal::SIGINT)?;
    running.finish()?;
    let numbers = answered()?;
    ensure!(numbers.is_sorted_by(|one, next| one < next), "answers {numbers:?}");
    let missing = numbers.last().map_or(0, |last| *last as usize + 1) - numbers.len();
    ensure!(missing <= ROUNDS as usize, "{missing} answers are missing of {numbers:?}");
    Ok(())
}
