//! Real programs, not written to be checkpointed: i386 ones out of the tree that `ci/i386-root` makes,
//! 64-bit ones of the machine, alone and mixed. Each goes through several rounds of dump, gone, restore while
//! it works, and a client that knows what the right answers are asks it before and after.

mod world;

use anyhow::{Context, bail, ensure};
use std::fs;
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
    /// A parent with two children and three pipes.
    perl32_family in Namespace => |world| right_answers(world, &["/usr/bin/perl", "/scratch/family.pl"]);
    perl32_family_in_chroot in Chroot => |world| right_answers(world, &["/usr/bin/perl", "/scratch/family.pl"]);
    /// A pool of Java threads, with the just-in-time compilers and the collector beside them.
    java32_threads in Namespace => |world| right_answers(world, &["/usr/bin/java", "/scratch/Numbers.java"]);
    java32_threads_in_chroot in Chroot => |world| right_answers(world, &["/usr/bin/java", "/scratch/Numbers.java"]);
    /// A parent that forks and waits for children all the time, with alarms.
    php32_forks in Namespace => |world| right_answers(world, &["/usr/bin/php", "/scratch/forks.php"]);
    /// A stream through a pipeline of one i386 program.
    busybox32_pipeline in Namespace => |world| stream(world, &["/bin/busybox", "sh", "-c"], BUSYBOX);
    /// A stream through 64-bit bash, i386 python, i386 gzip, 64-bit sort, i386 gzip.
    mixed_pipeline in Namespace => |world| stream(world, BASH, MIXED);
    mixed_pipeline_in_chroot in Chroot => |world| stream(world, BASH, MIXED);
    /// A stream enciphered by an i386 program and deciphered by a 64-bit one.
    openssl_stream in Namespace => |world| stream(world, BASH, OPENSSL);
    /// An interactive shell on a pseudo terminal: 32-bit, 64-bit, and a terminal of the one ABI with a shell of the other.
    terminal32 in Namespace => |world| terminal(world, PYTHON32, "/bin/bash");
    terminal32_in_chroot in Chroot => |world| terminal(world, PYTHON32, "/bin/bash");
    terminal64 in Namespace => |world| terminal(world, PYTHON64, BASH64);
    terminal64_shell32 in Namespace => |world| terminal(world, PYTHON64, "/bin/bash");
    terminal32_shell64 in Chroot => |world| terminal(world, PYTHON32, BASH64);
    /// Numbers that live in SSE, AVX and x87 registers.
    numbers_ia32 in Namespace => |world| numbers(world, "-m32");
    numbers_x86_64 in Namespace => |world| numbers(world, "-m64");
    /// Six programs, each the child of the one before: 64, 32, 64, 32, 64, 32.
    chain_of_abis in Namespace => chain;
    chain_of_abis_in_chroot in Chroot => chain;
}

/// The shell of the mixed pipelines, which fail if one of their programs does.
const BASH: &[&str] = &[BASH64, "-o", "pipefail", "-c"];

const BUSYBOX: &str = "/usr/bin/python3 /scratch/lines.py COUNT PAUSE \
     | busybox grep -v '^00' | busybox sed 's/^/line /' | busybox awk '{ print NR, $2, $3 }' \
     | busybox gzip -1 | busybox gunzip | busybox sort | busybox md5sum >/scratch/out";

const MIXED: &str = "/usr/bin/python3 /scratch/lines.py COUNT PAUSE | /usr/bin/gzip -1 | /usr/bin/gzip -d \
     | /host/usr/bin/sort | /usr/bin/gzip -n >/scratch/out";

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
