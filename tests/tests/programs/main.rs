//! Real programs, not written to be checkpointed: i386 ones out of the tree that `ci/debian-tree` makes,
//! 64-bit ones of the machine, alone and mixed. Each goes through several rounds of dump, gone, restore while
//! it works, and a client that knows what the right answers are asks it before and after.

mod daemons;
mod outages;
mod postgres;
mod screens;
mod servers;
mod wine;
mod world;

use anyhow::{Context, bail, ensure};
use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::Command;
use tests::{Result, isolate, require_root, wait};
use world::{LIMIT, Place, Running, World, i386_root};

/// Rounds of dump and restore that each program goes through.
const ROUNDS: u32 = 5;

/// 64-bit programs, by their names inside of the world.
const PYTHON64: &str = "/host/usr/bin/python3";
const BASH64: &str = "/host/usr/bin/bash";
/// i386 ones.
const PYTHON32: &str = "/usr/bin/python3";

/// Whether the i386 tree is there and its programs run.
fn have_programs() -> bool {
    i386_root().is_some_and(|root| {
        Command::new("chroot").arg(root).arg("true").status().is_ok_and(|status| status.success())
    })
}

/// Skips the test where the i386 programs are missing; fails in CI.
macro_rules! require_programs {
    ($test:expr) => {
        if !tests::needs::has($test, have_programs(), "the i386 tree of ci/setup") {
            return;
        }
    };
}

/// A test of the given name that runs `$body` in a world.
macro_rules! programs {
    ($($(#[$meta:meta])* $name:ident in $place:ident => $body:expr;)*) => {$(
        $(#[$meta])*
        #[test]
        fn $name() {
            require_root!();
            require_programs!(stringify!($name));
            isolate::isolated_for(LIMIT, stringify!($name), |dir| {
                let body: fn(&World) -> Result = $body;
                body(&World::enter(dir, Place::$place)?)
            });
        }
    )*};
}

programs! {
    /// Six threads that grow dictionaries, lists, byte strings and big integers.
    python32_threads in Namespace => |world| threads(world, PYTHON32);
    python32_threads_in_chroot in Chroot => |world| threads(world, PYTHON32);
    python64_threads in Namespace => |world| threads(world, PYTHON64);
    /// multiprocessing over pipes.
    python32_workers in Namespace => |world| right_answers(world, &[PYTHON32, "/scratch/workers.py"]);
    python64_workers in Chroot => |world| right_answers(world, &[PYTHON64, "/scratch/workers.py"]);
    /// A prefork server whose workers share what their parent has loaded.
    python32_prefork in Namespace => |world| prefork(world, PYTHON32);
    python64_prefork in Namespace => |world| prefork(world, PYTHON64);
    /// asyncio: an event loop with sockets, pipes, timers, an eventfd and signals.
    python32_loop in Namespace => |world| right_answers(world, &[PYTHON32, "/scratch/loop.py"]);
    python64_loop in Namespace => |world| right_answers(world, &[PYTHON64, "/scratch/loop.py"]);
    /// asyncio with children that it watches by pidfds in its epoll.
    python32_children in Namespace => |world| right_answers(world, &[PYTHON32, "/scratch/children.py"]);
    python64_children in Namespace => |world| right_answers(world, &[PYTHON64, "/scratch/children.py"]);
    /// Ruby with threads, forks and a timer.
    ruby32_loop in Namespace => |world| right_answers(world, &["/usr/bin/ruby", "/scratch/loop.rb"]);
    ruby32_loop_in_chroot in Chroot => |world| right_answers(world, &["/usr/bin/ruby", "/scratch/loop.rb"]);
    /// SQLite on disk.
    python32_sqlite in Namespace => |world| sqlite(world, PYTHON32);
    python64_sqlite in Namespace => |world| sqlite(world, PYTHON64);
    /// SQLite with a transaction that is open at the dump: on disk, and in memory.
    python32_transactions in Namespace => |world| transactions(world, PYTHON32);
    python64_transactions in Namespace => |world| transactions(world, PYTHON64);
    /// A disk in a memfd.
    python32_ramdisk in Namespace => |world| right_answers(world, &[PYTHON32, "/scratch/ramdisk.py"]);
    python64_ramdisk in Namespace => |world| right_answers(world, &[PYTHON64, "/scratch/ramdisk.py"]);
    /// SQLite and a locked file, for which processes of both ABIs fight.
    mixed_sqlite in Namespace => |world| right_answers(world, &[PYTHON64, "/scratch/fight.py"]);
    mixed_sqlite_in_chroot in Chroot => |world| right_answers(world, &[PYTHON32, "/scratch/fight.py"]);
    /// A parent with two children and three pipes.
    perl32_family in Namespace => |world| right_answers(world, &["/usr/bin/perl", "/scratch/family.pl"]);
    perl32_family_in_chroot in Chroot => |world| right_answers(world, &["/usr/bin/perl", "/scratch/family.pl"]);
    /// A pool of Java threads, with the just-in-time compilers and the collector beside them.
    java32_threads in Namespace => |world| right_answers(world, &["/usr/bin/java", "/scratch/Numbers.java"]);
    /// Java with a large heap.
    #[ignore = "a gigabyte of images: for ci/stress"]
    java32_heap in Namespace => |world| right_answers(world, &["/usr/bin/java", "-Xmx300m", "/scratch/Heap.java"]);
    java32_threads_in_chroot in Chroot => |world| right_answers(world, &["/usr/bin/java", "/scratch/Numbers.java"]);
    /// A parent that forks and waits for children all the time, with alarms.
    php32_forks in Namespace => |world| right_answers(world, &["/usr/bin/php", "/scratch/forks.php"]);
    /// Workers that take turns by a semaphore of System V, some of which end with it.
    php32_semaphores in Namespace => |world| right_answers(world, &["/usr/bin/php", "/scratch/turns.php"]);
    /// A stream through a pipeline of one i386 program.
    busybox32_pipeline in Namespace => |world| stream(world, &["/bin/busybox", "sh", "-c"], BUSYBOX);
    /// A stream through 64-bit bash, i386 python, i386 gzip, 64-bit sort, i386 gzip.
    mixed_pipeline in Namespace => |world| stream(world, BASH, MIXED);
    mixed_pipeline_in_chroot in Chroot => |world| stream(world, BASH, MIXED);
    /// A stream through named pipes: from one ABI to the other and back, by `dd` of both and by that of busybox.
    fifo_stream in Namespace => |world| stream(world, BASH, FIFOS);
    fifo_stream_in_chroot in Chroot => |world| stream(world, BASH, FIFOS);
    /// A stream enciphered by an i386 program and deciphered by a 64-bit one.
    openssl_stream in Namespace => |world| stream(world, BASH, OPENSSL);
    /// An interactive shell on a pseudo terminal: 32-bit, 64-bit, and a terminal of the one ABI with a shell of the other.
    terminal32 in Namespace => |world| terminal(world, PYTHON32, "/bin/bash");
    terminal32_in_chroot in Chroot => |world| terminal(world, PYTHON32, "/bin/bash");
    terminal64 in Namespace => |world| terminal(world, PYTHON64, BASH64);
    terminal64_shell32 in Namespace => |world| terminal(world, PYTHON64, "/bin/bash");
    terminal32_shell64 in Chroot => |world| terminal(world, PYTHON32, BASH64);
    /// Windows of tmux with shells, an editor and a pager; a pager on its own.
    tmux32 in Namespace => screens::tmux;
    tmux32_in_chroot in Chroot => screens::tmux;
    less32 in Namespace => |world| screens::less(world, PYTHON32);
    less32_on_terminal64 in Chroot => |world| screens::less(world, PYTHON64);
    /// Servers with clients that stay connected.
    redis32_clients in Chroot => servers::redis;
    redis32_local_client in Chroot => servers::redis_with_a_local_client;
    nginx32_clients in Chroot => servers::nginx;
    memcached32_clients in Chroot => daemons::memcached;
    apache32_clients in Chroot => daemons::apache;
    python32_connections in Chroot => daemons::many_connections;
    node32_clients in Chroot => daemons::node;
    java32_clients in Chroot => daemons::java;
    sshd32_clients in Chroot => daemons::sshd;
    mariadb32_clients in Chroot => daemons::mariadb;
    /// i386 servers and clients of both ABIs, in one tree.
    mixed_clients in Namespace => |world| right_answers(world, &[PYTHON64, "/scratch/clients.py"]);
    mixed_clients_in_chroot in Chroot => |world| right_answers(world, &[PYTHON32, "/scratch/clients.py"]);
    /// Ten outages under a benchmark, without a request that fails.
    redis32_outages in Chroot => outages::redis;
    nginx32_outages in Chroot => outages::nginx;
    postgres32_outages in Chroot => outages::postgres;
    /// Echo requests, by a raw socket.
    busybox32_pings in Chroot => |world| daemons::ping(world, "127.0.0.1");
    busybox32_pings_by_ipv6 in Chroot => |world| daemons::ping(world, "::1");
    /// As much as a 32-bit program can well have, and more: `cargo test -- --ignored gigabyte`.
    #[ignore = "takes gigabytes of memory and of disk"]
    redis32_gigabyte in Chroot => servers::redis_with_a_gigabyte;
    #[ignore = "takes gigabytes of memory and of disk"]
    python64_gigabytes in Namespace => hoard;
    /// Recorded in rounds while it works.
    redis32_in_rounds in Chroot => servers::redis_in_rounds;
    /// Copied while it works.
    redis32_in_snapshots in Chroot => servers::redis_in_snapshots;
    /// Restored with memory that comes later.
    redis32_lazily in Chroot => servers::redis_lazily;
    java32_lazily in Chroot => daemons::java_lazily;
    postgres32_sessions in Chroot => postgres::sessions;
    /// Directories and files that are watched.
    inotifywait32 in Namespace => |world| watching(world, "/usr/bin/inotifywait");
    inotifywait32_in_chroot in Chroot => |world| watching(world, "/usr/bin/inotifywait");
    inotifywait64 in Namespace => |world| watching(world, "/host/usr/bin/inotifywait");
    tail32 in Namespace => |world| following(world, "/usr/bin/tail");
    tail64 in Chroot => |world| following(world, "/host/usr/bin/tail");
    /// Following a log that is rotated: by its name, and by what is open.
    busybox32_follows in Namespace => |world| follow(world, &["/bin/busybox", "tail", "-n", "+1", "-s", "1", "-F"]);
    tail64_follows in Namespace => |world| {
        follow(world, &["/host/usr/bin/tail", "-n", "+1", "-s", "0.05", "---disable-inotify", "-F"])
    };
    tail64_follows_deleted in Namespace => |world| {
        follow_deleted(world, &["/host/usr/bin/tail", "-n", "+1", "-s", "0.05", "---disable-inotify", "-f"])
    };
    /// A build of several files at once, dumped in the middle.
    make_builds in Chroot => build;
    /// A video encoder with several threads.
    ffmpeg32_encodes in Namespace => encode;
    /// Numbers that live in SSE, AVX and x87 registers.
    numbers_ia32 in Namespace => |world| numbers(world, "-m32");
    numbers_x86_64 in Namespace => |world| numbers(world, "-m64");
    /// Six programs, each the child of the one before: 64, 32, 64, 32, 64, 32.
    chain_of_abis in Namespace => chain;
    chain_of_abis_in_chroot in Chroot => chain;
}

/// Command processors of Windows.
#[test]
#[ignore = "ci/wine makes their tree"]
fn wine32_prompt() {
    require_root!();
    isolate::isolated_for(LIMIT, "wine32_prompt", |dir| wine::prompt(dir, r"C:\windows\syswow64\cmd.exe"));
}

#[test]
#[ignore = "ci/wine makes their tree"]
fn wine64_prompt() {
    require_root!();
    isolate::isolated_for(LIMIT, "wine64_prompt", |dir| wine::prompt(dir, r"C:\windows\system32\cmd.exe"));
}

/// The shell of the mixed pipelines, which fail if one of their programs does.
const BASH: &[&str] = &[BASH64, "-o", "pipefail", "-c"];

const BUSYBOX: &str = "/usr/bin/python3 /scratch/lines.py COUNT PAUSE \
     | busybox grep -v '^00' | busybox sed 's/^/line /' | busybox awk '{ print NR, $2, $3 }' \
     | busybox gzip -1 | busybox gunzip | busybox sort | busybox md5sum >/scratch/out";

const MIXED: &str = "/usr/bin/python3 /scratch/lines.py COUNT PAUSE | /usr/bin/gzip -1 | /usr/bin/gzip -d \
     | /host/usr/bin/sort | /usr/bin/gzip -n >/scratch/out";

const FIFOS: &str = "cd /scratch; rm -f there back on; mkfifo there back on; \
     /usr/bin/python3 /scratch/lines.py COUNT PAUSE >there & \
     /host/usr/bin/dd if=there of=back bs=1000 status=none & /usr/bin/dd if=back of=on bs=777 status=none & \
     /bin/busybox dd if=on bs=4k 2>/dev/null | /host/usr/bin/sha256sum >/scratch/out; wait";

const OPENSSL: &str = "/usr/bin/python3 /scratch/lines.py COUNT PAUSE \
     | /usr/bin/openssl enc -aes-256-ctr -K 0f1e2d3c -iv 00112233 2>/dev/null \
     | /host/usr/bin/openssl enc -d -aes-256-ctr -K 0f1e2d3c -iv 00112233 2>/dev/null \
     | /usr/bin/openssl dgst -sha512 >/scratch/out";

/// `programs/growing.py`: after every round it has gone on, and its hash is the one of a replay.
fn threads(world: &World, python: &str) -> Result {
    let mut running = world.start(&[python, "/scratch/growing.py"])?;
    let mut before = 0;
    for round in 0..=ROUNDS {
        if round > 0 {
            running.round()?;
        }
        let answer = running.ask("check")?;
        let (steps, hash) = answer.split_once(' ').with_context(|| answer.clone())?;
        let count: u64 = steps.parse()?;
        ensure!(count > before, "round {round}: {count} steps after {before}");
        before = count;
        // The control is the machine's own Python, of the other ABI or not: the hash does not depend on that.
        let control = Command::new(world.root.join(&PYTHON64[1..]))
            .arg(world.dir.join("growing.py"))
            .arg(steps)
            .output()?;
        let control = String::from_utf8(control.stdout)?;
        ensure!(control.trim() == hash, "round {round}: {steps} steps give {control}, not {hash}");
    }
    Ok(())
}

/// A program that answers `check` by how much it did and how much of it was wrong.
fn right_answers(world: &World, program: &[&str]) -> Result {
    let mut running = world.start(program)?;
    let mut before = 0;
    for round in 0..=ROUNDS {
        if round > 0 {
            running.round()?;
        }
        let goes_on = wait::until(wait::STEP, "the program goes on", || {
            let answer = running.ask_numbers("check")?;
            let &[done, wrong] = &answer[..] else { bail!("two numbers expected: {answer:?}") };
            ensure!(wrong == 0, "{wrong} of {done} are wrong");
            let more = done > before + 10;
            before = if more { done } else { before };
            Ok(more.then_some(()))
        });
        goes_on.with_context(|| format!("round {round}"))?;
    }
    Ok(())
}

/// `programs/hoard.py` with 3 GiB, in one round.
fn hoard(world: &World) -> Result {
    let mut running = world.start(&[PYTHON64, "/scratch/hoard.py", "3072"])?;
    let before = running.ask_numbers("check")?;
    running.round()?;
    let after = running.ask_numbers("check")?;
    ensure!(before[1] == 0 && after[1] == 0 && after[0] > before[0], "{before:?}, then {after:?}");
    Ok(())
}

/// `programs/prefork.py`: after each round the answers are right, and the family needs no more memory than at first.
fn prefork(world: &World, python: &str) -> Result {
    let mut running = world.start(&[python, "/scratch/prefork.py"])?;
    let (mut before, mut memory) = (0, 0);
    for round in 0..=ROUNDS {
        if round > 0 {
            running.round()?;
        }
        let goes_on = wait::until(wait::STEP, "the program goes on", || {
            let answer = running.ask_numbers("check")?;
            let &[done, wrong, kib] = &answer[..] else { bail!("three numbers expected: {answer:?}") };
            ensure!(wrong == 0, "{wrong} of {done} are wrong");
            if done <= before + 2000 {
                return Ok(None);
            }
            before = done;
            if memory == 0 {
                memory = kib;
            }
            ensure!(kib * 100 <= memory * 105, "{memory} KiB at first, {kib} KiB now");
            Ok(Some(()))
        });
        goes_on.with_context(|| format!("round {round}"))?;
    }
    Ok(())
}

/// `programs/ledger.py`: rows go in before and after each round; the file is asked by another SQLite too.
fn sqlite(world: &World, python: &str) -> Result {
    let mut running = world.start(&[python, "/scratch/ledger.py"])?;
    let mut rows = 0u64;
    for round in 0..=ROUNDS {
        if round > 0 {
            running.round()?;
        }
        rows += 700;
        ensure!(running.ask_numbers("insert 700")? == [rows], "round {round}: rows got lost");
        let total: u64 = (1..=rows).map(|id| id * 37 % 1009).sum();
        let answer = running.ask("check")?;
        ensure!(answer == format!("{rows} {total} {rows} ok"), "round {round}: {answer}");
        let other = Command::new(world.root.join(&PYTHON64[1..]))
            .args([world.dir.join("ledger_sum.py"), world.dir.join("ledger.sqlite")])
            .output()?;
        let other = String::from_utf8(other.stdout)?;
        ensure!(other.trim() == format!("{rows} {total}"), "round {round}: the file has {other}");
    }
    Ok(())
}

/// `programs/transaction.py`: what was begun before a round is committed after it, and nobody else sees or changes anything meanwhile.
fn transactions(world: &World, python: &str) -> Result {
    const BEGIN: &str = "import sqlite3, sys; sqlite3.connect(sys.argv[1], 0).execute('BEGIN IMMEDIATE')";
    let mut running = world.start(&[python, "/scratch/transaction.py"])?;
    let host_python = world.root.join(&PYTHON64[1..]);
    let elsewhere = |name: &str| -> Result<String> {
        let file = world.dir.join(name);
        let asked = Command::new(&host_python).arg(world.dir.join("ledger_sum.py")).arg(file).output()?;
        ensure!(asked.status.success(), "{name}: {}", String::from_utf8_lossy(&asked.stderr));
        Ok(String::from_utf8(asked.stdout)?.trim().to_owned())
    };
    let sums = |rows: u64| (1..=rows).map(|id| id * 37 % 1009).sum::<u64>();
    let files = ["rollback.sqlite", "wal.sqlite"];
    let (mut rows, mut committed) = (0, "0 None".to_owned());
    for round in 1..=ROUNDS {
        rows += 300;
        ensure!(running.ask_numbers("open 300")? == [rows], "round {round}: rows got lost");
        running.round()?;
        for name in files {
            let seen = elsewhere(name)?;
            ensure!(seen == committed, "round {round}: {name} shows {seen}, not {committed}");
            let locked = Command::new(&host_python).args(["-c", BEGIN]).arg(world.dir.join(name)).output()?;
            let said = String::from_utf8_lossy(&locked.stderr);
            ensure!(said.contains("database is locked"), "round {round}: {name}: {said}");
        }
        ensure!(running.ask_numbers("commit")? == [rows; 3], "round {round}: rows got lost");
        committed = format!("{rows} {}", sums(rows));
        let answer = running.ask("check")?;
        let expected = [format!("{committed} ok").as_str(); 3].join(" ");
        ensure!(answer == expected, "round {round}: {answer}");
        for name in files {
            let seen = elsewhere(name)?;
            ensure!(seen == committed, "round {round}: {name} has {seen}, not {committed}");
        }
    }
    Ok(())
}

/// `programs/shell.py`: what is typed before a round is carried out after it, and the shell knows all that it knew.
fn terminal(world: &World, python: &str, shell: &str) -> Result {
    let mut running = world.start(&[python, "/scratch/shell.py", shell, "--norc", "--noprofile", "-i"])?;
    /// Waits until the terminal has shown a text.
    fn shows(running: &mut Running<'_>, text: &str) -> Result {
        let mut screen = String::new();
        let shown = wait::until(wait::STEP, &format!("the terminal shows {text:?}"), || {
            screen = running.ask("screen")?;
            Ok(screen.contains(text).then_some(()))
        });
        shown.with_context(|| screen)
    }
    running.ask("type name=$(tty) count=0; sleep 1000 &")?;
    running.ask("type echo started-$name-$((count + 0))-$-")?;
    shows(&mut running, "started-/dev/pts/0-0-")?;
    for round in 1..=ROUNDS {
        // A job that reads in the foreground, with half a line typed for it.
        running.ask("type count=$((count + 1)); read -r line; echo round-$count-$line-$(tty)")?;
        running.ask("half to")?;
        running.round()?;
        running.ask("type gether")?;
        shows(&mut running, &format!("round-{round}-together-/dev/pts/0"))?;
        // A foreground job that is a process of its own.
        running.ask("type cat | tr a-z A-Z")?;
        running.ask(&format!("type upper case {round}"))?;
        running.round()?;
        running.ask("key 4")?;
        shows(&mut running, &format!("UPPER CASE {round}"))?;
        running.ask(&format!("type echo jobs-$((300 + {round}))-$(jobs | grep -c Running)"))?;
        shows(&mut running, &format!("jobs-{}-1", 300 + round))?;
        running.ask(&format!("type sleep 1000; echo interrupted-$((100 + {round}))"))?;
        running.round()?;
        running.ask("key 3")?;
        running.ask(&format!("type echo after-$((200 + {round}))"))?;
        shows(&mut running, &format!("after-{}", 200 + round))?;
        // A job that is stopped by a key, in the background by its reading there, and finishes in the foreground.
        running.ask(&format!("type sh -c 'echo run-$((500 + {round})); read line; echo got-$line'"))?;
        shows(&mut running, &format!("run-{}", 500 + round))?;
        let stopped = |running: &mut Running<'_>| {
            Ok::<_, anyhow::Error>(running.ask("screen")?.matches("Stopped").count())
        };
        let before = stopped(&mut running)?;
        running.ask("key 26")?;
        // What is typed before that could still be read by the job.
        wait::until(wait::STEP, "the shell tells of the stop", || {
            Ok((stopped(&mut running)? > before).then_some(()))
        })?;
        running.ask(&format!("type echo stopped-$((400 + {round}))-$(jobs -s | grep -c run)"))?;
        shows(&mut running, &format!("stopped-{}-1", 400 + round))?;
        running.round()?;
        running.ask("type bg")?;
        running.round()?;
        // Until it has been stopped there, bringing it to the foreground would not continue it.
        wait::until(wait::STEP, "the job is stopped in the background", || {
            running.ask(&format!("type echo halted-$((600 + {round}))-$(jobs -s | grep -c run)"))?;
            std::thread::sleep(std::time::Duration::from_millis(50));
            Ok(running.ask("screen")?.contains(&format!("halted-{}-1", 600 + round)).then_some(()))
        })?;
        running.ask("type fg")?;
        running.ask(&format!("type line-{round}"))?;
        shows(&mut running, &format!("got-line-{round}"))?;
    }
    running.ask("type kill %1; wait %1; echo killed-$?-$(history | grep -c 'read -r line')")?;
    shows(&mut running, "killed-143-6")?;
    let screen = running.ask("screen")?;
    ensure!(!screen.contains("interrupted-1"), "sleep was not interrupted: {screen}");
    Ok(())
}

/// A pipeline on a stream of COUNT chunks with a PAUSE after each: dumped and restored all along its way, it
/// writes to `out` what it writes when it is left alone. That is so only if no byte is lost or doubled.
fn stream(world: &World, shell: &[&str], pipeline: &str) -> Result {
    const CHUNKS: u32 = 200;
    let run = |pause| {
        let pipeline = pipeline.replace("COUNT", &CHUNKS.to_string()).replace("PAUSE", pause);
        world.start(&[shell, &[&pipeline]].concat())
    };
    run("0")?.finish().context("the control run")?;
    let control = fs::read(world.dir.join("out"))?;
    ensure!(!control.is_empty(), "the control run wrote nothing");
    fs::remove_file(world.dir.join("out"))?;
    fs::remove_file(world.dir.join("progress"))?;

    let mut running = run("0.01")?;
    for round in 1..=ROUNDS {
        running.wait_for_progress(round * CHUNKS / (ROUNDS + 2))?;
        running.round()?;
    }
    running.finish()?;
    let out = fs::read(world.dir.join("out"))?;
    ensure!(
        out == control,
        "what came out differs from the control run: {} and {} bytes",
        out.len(),
        control.len()
    );
    ensure!(world.read("log")?.is_empty(), "the programs complained:\n{}", world.read("log")?);
    Ok(())
}

/// ffmpeg with x264: the file is, to the byte, the one of a run without checkpoints.
fn encode(world: &World) -> Result {
    let out = world.dir.join("out.mkv");
    let size = || fs::metadata(&out).map_or(0, |file| file.len());
    let start = || {
        let input = ["-f", "lavfi", "-i", "testsrc2=size=320x240:rate=25:duration=20"];
        // What an encoder with threads decides depends on their number, not on who is first.
        let output = ["-c:v", "libx264", "-preset", "slow", "-threads", "4", "-flush_packets", "1"];
        let exact = ["-flags", "+bitexact", "-fflags", "+bitexact", "/scratch/out.mkv"];
        let quiet = ["/usr/bin/ffmpeg", "-nostdin", "-loglevel", "error"];
        world.start(&[&quiet[..], &input, &output, &exact].concat())
    };
    start()?.finish().context("the control run")?;
    let control = fs::read(&out)?;
    ensure!(control.len() > 100_000, "the control run wrote {} bytes", control.len());
    fs::remove_file(&out)?;

    let mut running = start()?;
    for round in 1..=u64::from(ROUNDS) {
        wait::until(wait::STEP, "the encoder goes on", || {
            running.still_runs()?;
            Ok((size() >= round * control.len() as u64 / (u64::from(ROUNDS) + 2)).then_some(()))
        })?;
        running.round()?;
    }
    running.finish()?;
    ensure!(fs::read(&out)? == control, "the video differs from that of the control run");
    ensure!(world.read("log")?.is_empty(), "the encoder complained:\n{}", world.read("log")?);
    Ok(())
}

/// `programs/crunch.c`: the result is, to the bit, that of a run without checkpoints.
fn numbers(world: &World, abi: &str) -> Result {
    const STEPS: u32 = 6000;
    // The compiler is the host's, and needs the host's tree around it.
    let built = Command::new("chroot")
        .args([&world.host, Path::new("gcc")])
        .args(["-O2", "-Wall", "-Wextra", "-Werror", "-pthread", abi, "-o"])
        .args([world.host_dir.join("crunch"), world.host_dir.join("crunch.c")])
        .status()?;
    ensure!(built.success(), "build crunch.c {abi}: {built}");
    let steps = STEPS.to_string();
    let program = ["/scratch/crunch", &steps];
    world.start(&program)?.finish().context("the control run")?;
    let control = world.read("log")?;
    ensure!(control.lines().count() == 27 && !control.contains("nan"), "the control run gives:\n{control}");
    fs::remove_file(world.dir.join("progress"))?;

    let mut running = world.start(&program)?;
    for round in 1..=ROUNDS {
        running.wait_for_progress(round * STEPS / (ROUNDS + 2))?;
        running.round()?;
    }
    running.finish()?;
    let log = world.read("log")?;
    ensure!(log == control, "the numbers differ; alone:\n{control}with checkpoints:\n{log}");
    Ok(())
}

/// `programs/chain`: each line passes all six programs, and each counts it.
fn chain(world: &World) -> Result {
    let mut running = world.start(&[BASH64, "/scratch/chain/first.bash", "bash64-root"])?;
    let counted = world.dir.join("counted");
    let lines = || fs::read_to_string(&counted).unwrap_or_default().lines().count();
    for round in 0..=ROUNDS {
        if round > 0 {
            running.round()?;
        }
        let before = lines();
        wait::until(wait::STEP, "the chain counts on", || {
            running.still_runs()?;
            Ok((lines() >= before + 30).then_some(()))
        })
        .with_context(|| format!("round {round}"))?;
    }
    for (number, line) in fs::read_to_string(&counted)?.split_inclusive('\n').enumerate() {
        let count = (number + 1).to_string();
        let right =
            line.split_whitespace().filter(|word| word.split_once('=').is_some_and(|(_, n)| n == count));
        // The last one may be half written.
        ensure!(right.count() == 6 || !line.ends_with('\n'), "line {count} is wrong: {line}");
    }
    ensure!(world.read("log")?.is_empty(), "the programs complained:\n{}", world.read("log")?);
    Ok(())
}

/// inotifywait: what happens to files in a directory before and after each round, and nothing else.
fn watching(world: &World, program: &str) -> Result {
    fs::create_dir_all(world.dir.join("watched/below"))?;
    let mut running = world.start(&[program, "-m", "-r", "--format", "%e %w%f", "/scratch/watched"])?;
    shows(&running, "Watches established.")?;
    let mut expected = Vec::new();
    for round in 0..=ROUNDS {
        if round > 0 {
            running.round()?;
        }
        for (dir, number) in [("watched", 0), ("watched/below", 1)] {
            let name = format!("{dir}/{round}-{number}");
            fs::write(world.dir.join(&name), "")?;
            fs::remove_file(world.dir.join(&name))?;
            expected.push(format!("CREATE /scratch/{name}"));
            expected.push(format!("DELETE /scratch/{name}"));
            shows(&running, &expected[expected.len() - 1])?;
        }
    }
    let log = world.read("log")?;
    let told: Vec<&str> =
        log.lines().filter(|line| line.starts_with("CREATE ") || line.starts_with("DELETE ")).collect();
    ensure!(told == expected, "it told:\n{log}");
    ensure!(!log.contains("OVERFLOW"), "it told:\n{log}");
    Ok(())
}

/// tail -F: lines that are written before and after each round, to a log that is rotated in between.
fn following(world: &World, program: &str) -> Result {
    let name = world.dir.join("followed");
    fs::write(&name, "")?;
    let mut running = world.start(&[program, "-n", "+1", "-F", "/scratch/followed"])?;
    for round in 0..=ROUNDS {
        if round > 0 {
            running.round()?;
        }
        let mut file = fs::File::options().append(true).open(&name)?;
        writeln!(file, "line {round}")?;
        shows(&running, &format!("line {round}"))?;
        if round % 2 == 0 {
            fs::rename(&name, name.with_extension("old"))?;
            fs::write(&name, format!("rotated {round}\n"))?;
            shows(&running, &format!("rotated {round}"))?;
        }
    }
    Ok(())
}

/// Waits until a program has printed a line.
fn shows(running: &world::Running<'_>, line: &str) -> Result {
    let printed = wait::until(wait::STEP, &format!("the program prints {line}"), || {
        running.still_runs()?;
        Ok(running.world.read("log")?.lines().any(|printed| printed == line).then_some(()))
    });
    printed.with_context(|| running.world.read("log").unwrap_or_default())
}

/// `tail -F` on a log that is renamed, with a new one in its place, right before each dump and right after each restore: every line comes
/// out once, in order.
fn follow(world: &World, program: &[&str]) -> Result {
    let name = world.dir.join("app.log");
    let mut number = 0;
    let mut write = |lines: u32| -> Result<String> {
        let mut log = fs::File::options().create(true).append(true).open(&name)?;
        for _ in 0..lines {
            number += 1;
            writeln!(log, "line {number}")?;
        }
        Ok(format!("line {number}"))
    };
    let rotate = |to: &str| fs::rename(&name, world.dir.join(to));
    let mut last = write(3)?;
    let mut running = world.start(&[program, &["/scratch/app.log"]].concat())?;
    shows(&running, &last)?;
    for round in 1..=ROUNDS {
        // What is open has another name by now, and its own is gone or that of another file.
        last = write(5)?;
        shows(&running, &last)?;
        rotate(&format!("app.log.{round}"))?;
        if round % 2 == 0 {
            last = write(2)?;
        }
        running.round()?;
        last = if round % 2 == 0 { last } else { write(2)? };
        shows(&running, &last).with_context(|| format!("round {round}"))?;
    }
    in_order(world, number)
}

/// The log is deleted while it is followed, with another name of it left in an archive.
fn follow_deleted(world: &World, program: &[&str]) -> Result {
    let (name, archive) = (world.dir.join("app.log"), world.dir.join("archive"));
    fs::create_dir(&archive)?;
    fs::write(&name, "line 1\n")?;
    fs::hard_link(&name, archive.join("app.log"))?;
    let mut running = world.start(&[program, &["/scratch/app.log"]].concat())?;
    shows(&running, "line 1")?;
    fs::remove_file(&name)?;
    for round in 2..=ROUNDS + 1 {
        running.round_with(&["--link-remap"])?;
        let mut log = fs::File::options().append(true).open(archive.join("app.log"))?;
        writeln!(log, "line {round}")?;
        shows(&running, &format!("line {round}"))?;
    }
    ensure!(fs::read_dir(&archive)?.count() == 1 && !name.exists(), "something is left of the dumps");
    in_order(world, ROUNDS + 1)
}

fn in_order(world: &World, count: u32) -> Result {
    let log = world.read("log")?;
    let lines = log.lines().filter(|line| line.starts_with("line "));
    let wanted: Vec<String> = (1..=count).map(|number| format!("line {number}")).collect();
    ensure!(lines.eq(wanted.iter()), "the program printed:\n{log}");
    Ok(())
}

/// `make -j2` of programs that it compiles, links and runs: the result is that of a build without checkpoints.
fn build(world: &World) -> Result {
    const PARTS: u32 = 12;
    let dir = world.host_dir.join("build");
    let rules = "all: sum\n\t./sum > result\nsum: $(patsubst %.c,%.o,$(wildcard *.c))\n\tgcc -o $@ $^\n\
        %.o: %.c\n\tgcc -O2 -c -o $@ $<\n\techo $@ >> ../built\n";
    fs::create_dir(&dir)?;
    fs::write(dir.join("Makefile"), rules)?;
    for part in 0..PARTS {
        let table: Vec<String> = (0..4000u32).map(|at| (at * at % (part + 7)).to_string()).collect();
        let table = table.join(",");
        let code = format!(
            "int part{part}(int n) {{ static int t[] = {{{table}}}; int s = 0; while (n--) s += t[n]; return s; }}"
        );
        fs::write(dir.join(format!("part{part}.c")), code)?;
    }
    let declared: String = (0..PARTS).map(|part| format!("int part{part}(int);")).collect();
    let sum: Vec<String> = (0..PARTS).map(|part| format!("part{part}(4000)")).collect();
    let main =
        format!("#include <stdio.h>\n{declared} int main(void) {{ printf(\"%d\\n\", {}); }}", sum.join("+"));
    fs::write(dir.join("main.c"), main)?;
    let wanted: u32 = (0..PARTS).flat_map(|part| (0..4000u32).map(move |at| at * at % (part + 7))).sum();

    // The compiler is the host's, and needs the host's tree around it.
    let place = dir.to_string_lossy();
    let mut running = world.start(&["/usr/sbin/chroot", "/host", "/usr/bin/make", "-j2", "-C", &place])?;
    for round in 1..=ROUNDS {
        wait::until(wait::STEP, "the build goes on", || {
            running.still_runs()?;
            let built = world.read("built").unwrap_or_default().lines().count();
            Ok((built >= (round * 2) as usize).then_some(()))
        })?;
        running.round()?;
    }
    running.finish()?;
    let result = fs::read_to_string(dir.join("result"))?;
    ensure!(result.trim() == wanted.to_string(), "the program gives {result}, not {wanted}");
    Ok(())
}
