//! System V IPC. Every test has an IPC namespace of its own.

use crate::rights::dump_as_user;
use std::path::Path;
use std::process::Command;
use tests::abi::Abi;
use tests::case::{Running, Workload, nothing_left};
use tests::isolate::isolated_for_both;
use tests::{Result, here, require_ia32, require_root};

const fn sysv(case: &'static str) -> Workload {
    Workload::new("sysv", case)
}

tests::survives! {
    attached => sysv("attached");
    removed => sysv("removed");
    parts => sysv("parts");
    between_abis => sysv("between_abis");
    semaphores => sysv("semaphores");
    sets => sysv("sets");
    queues => sysv("queues");
    messages_between_abis => sysv("messages_between_abis");
}

fn run(program: &str, args: &[&str]) -> Result<String> {
    let output = Command::new(program).args(args).output()?;
    anyhow::ensure!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8(output.stdout)?)
}

/// Ids of all segments.
fn segments() -> Result<Vec<String>> {
    ids("shm")
}

/// Ids of all objects of a kind, as `/proc/sysvipc` has it.
fn ids(kind: &str) -> Result<Vec<String>> {
    let text = std::fs::read_to_string(format!("/proc/sysvipc/{kind}"))?;
    Ok(text.lines().skip(1).filter_map(|line| line.split_whitespace().nth(1)).map(str::to_owned).collect())
}

fn dumped(dir: &Path, abi: Abi) -> Result<Running> {
    let mut running = sysv("attached").start(dir, abi)?;
    running.dump(&[])?.success()?;
    nothing_left()?;
    Ok(running)
}

/// As after a restart of the machine: all of them are gone, the removed ones with the tree.
#[test]
fn what_is_gone_is_made_again() {
    require_root!();
    require_ia32!();
    isolated_for_both(&here!(), |dir, abi| {
        let mut running = sysv("attached").start(dir, abi)?;
        let before = running.snapshot()?;
        running.dump(&[])?.success()?;
        nothing_left()?;
        for id in segments()? {
            run("ipcrm", &["-m", &id])?;
        }
        running.restore(&["-d"])?.success()?;
        running.looks_like(&before)?;
        running.verify()
    });
}

/// Takes all sets of semaphores and all message queues away.
fn remove_all() -> Result {
    for (kind, option) in [("sem", "-s"), ("msg", "-q")] {
        for id in ids(kind)? {
            run("ipcrm", &[option, &id])?;
        }
    }
    Ok(())
}

/// As after a restart of the machine: semaphores and queues are made again with all that was in them, and the next dump knows them for the tree's.
#[test]
fn semaphores_and_queues_that_are_gone_are_made_again() {
    require_root!();
    require_ia32!();
    isolated_for_both(&here!(), |dir, abi| {
        for case in ["sets", "queues", "messages_between_abis"] {
            let mut running = sysv(case).start(&dir.join(case), abi)?;
            let before = running.snapshot()?;
            for _ in 0..2 {
                running.dump(&[])?.success()?;
                nothing_left()?;
                remove_all()?;
                running.restore(&["-d"])?.success()?;
                running.looks_like(&before)?;
            }
            running.verify()?;
        }
        Ok(())
    });
}

/// What an ordinary user may not read is nothing to a dump of his, if the tree does not use it; else it is named.
#[test]
fn what_may_not_be_read() {
    require_root!();
    require_ia32!();
    isolated_for_both(&here!(), |dir, abi| {
        let mut beside = sysv("beside_private").start(&dir.join("beside"), abi)?;
        let before = beside.snapshot()?;
        dump_as_user(&mut beside, &["checkpoint_restore"])?.success()?;
        beside.looks_like(&before)?;
        beside.verify()?;
        remove_all()?;
        let mut user = sysv("not_to_read").start(&dir.join("user"), abi)?;
        let before = user.snapshot()?;
        let refused = dump_as_user(&mut user, &["checkpoint_restore"])?.code(1)?;
        for (kind, name) in [("sem", "System V semaphores"), ("msg", "System V message queue")] {
            for id in ids(kind)? {
                refused.says_with_hint(&format!("{name} {id}: may not be read by crr"))?;
            }
        }
        user.looks_like(&before)?;
        user.verify()?;
        remove_all()
    });
}

/// A message that was sent before kernel.msgmax was lowered cannot be looked at.
#[test]
fn messages_beyond_the_limit_are_named() {
    const LIMIT: &str = "/proc/sys/kernel/msgmax";
    require_root!();
    require_ia32!();
    isolated_for_both(&here!(), |dir, abi| {
        let mut running = sysv("queues").start(dir, abi)?;
        let before = running.snapshot()?;
        let limit = std::fs::read_to_string(LIMIT)?;
        // The buffer of a look is a whole number of words: one that fits into that, and one that does not.
        for lowered in ["1999", "100"] {
            std::fs::write(LIMIT, lowered)?;
            running
                .dump(&[])?
                .code(1)?
                .says_with_hint("has a message that is longer than kernel.msgmax is now")?;
        }
        std::fs::write(LIMIT, limit)?;
        running.looks_like(&before)?;
        running.verify()
    });
}

/// An object that cannot be made leaves nobody else its id.
#[test]
fn an_id_that_was_not_used_is_taken_back() {
    const LIMITS: &str = "/proc/sys/kernel/sem";
    require_root!();
    require_ia32!();
    isolated_for_both(&here!(), |dir, abi| {
        let mut running = sysv("sets").start(dir, abi)?;
        let before = running.snapshot()?;
        running.dump(&[])?.success()?;
        nothing_left()?;
        remove_all()?;
        let limits = std::fs::read_to_string(LIMITS)?;
        let (_, others) = limits.split_once('\t').unwrap_or_default();
        std::fs::write(LIMITS, format!("1\t{others}"))?;
        running.restore(&["-d"])?.code(1)?.says("make it again")?;
        let next = std::fs::read_to_string("/proc/sys/kernel/sem_next_id")?;
        anyhow::ensure!(next.trim() == "-1", "the next set gets the id {next}");
        anyhow::ensure!(ids("sem")?.is_empty(), "left: {:?}", ids("sem")?);
        std::fs::write(LIMITS, limits)?;
        running.restore(&["-d"])?.success()?;
        running.looks_like(&before)?;
        running.verify()
    });
}

/// Another object under an id, a key or at a place is left alone and named, all of them at once; so are all that there are after a restart of the machine.
#[test]
fn other_semaphores_and_queues_are_named() {
    require_root!();
    require_ia32!();
    isolated_for_both(&here!(), |dir, abi| {
        let mut running = sysv("queues").start(dir, abi)?;
        running.dump(&[])?.success()?;
        nothing_left()?;
        let mut there = ids("msg")?;
        there.sort_unstable_by_key(|id| id.parse::<i32>().unwrap_or(0));
        let [keyed, empty, full] = there.as_slice() else { anyhow::bail!("{there:?}") };
        let name = |id: &str| format!("System V message queue {id}: ");
        let boot_id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
        let other = dir.join("boot_id");
        std::fs::write(&other, boot_id.replace(|c: char| c.is_ascii_digit(), "f"))?;
        let other_boot = ["sh", "-c", r#"mount --bind "$0" /proc/sys/kernel/random/boot_id && exec "$@""#];
        let unshare = [&["unshare", "-m"][..], &other_boot, &[other.to_str().unwrap_or_default()]].concat();
        let refused = running.restore_under(&unshare, &["-d"])?.code(1)?;
        for id in &there {
            refused.says_with_hint(&(name(id) + "another one has its id now"))?;
        }
        let key = std::fs::read_to_string("/proc/sysvipc/msg")?;
        let key = key.lines().find(|line| line.split_whitespace().nth(1) == Some(keyed.as_str()));
        let key = key.and_then(|line| line.split_whitespace().next()).unwrap_or_default().to_owned();
        remove_all()?;
        // One under a key, one under an id, one at a place.
        let make = |id: i32, key: &str| {
            std::fs::write("/proc/sys/kernel/msg_next_id", id.to_string())?;
            let program = tests::binaries::workload("sysv", abi)?;
            run(program.to_str().unwrap_or_default(), &["make_queue", key])
        };
        let by_place = full.parse::<i32>()? + (7 << 15);
        make(1000, &key)?;
        make(empty.parse()?, "4711")?;
        make(by_place, "0")?;
        let mut others = ids("msg")?;
        others.sort_unstable();
        let refused = running.restore(&["-d"])?.code(1)?;
        refused.says_with_hint(&format!("{}its key", name(keyed)))?;
        refused.says(&format!("ipcrm -q {by_place}"))?;
        refused.says_with_hint(&(name(empty) + "another one has its id now"))?;
        refused.says_with_hint(&format!("{}{by_place} is at its place", name(full)))?;
        let mut left = ids("msg")?;
        left.sort_unstable();
        anyhow::ensure!(left == others, "{left:?}, not {others:?}");
        remove_all()?;
        // A restore that fails takes what it has made away again.
        running.restore(&["-d", "--fault", "listen"])?.code(1)?;
        anyhow::ensure!(ids("msg")?.is_empty(), "left: {:?}", ids("msg")?);
        running.restore(&["-d"])?.success()?;
        running.verify()
    });
}

/// What a restore has made goes again when it fails, and a segment that somebody else has, or another one under its id or key, is left alone.
#[test]
fn conflicts_are_named() {
    require_root!();
    require_ia32!();
    isolated_for_both(&here!(), |dir, abi| {
        let running = dumped(dir, abi)?;
        let ids = segments()?;
        anyhow::ensure!(ids.len() == 3, "{ids:?}");
        let program = tests::binaries::workload("sysv", abi)?;
        let mut holder =
            Command::new(program).args(["hold", &ids[1]]).stdout(std::process::Stdio::piped()).spawn()?;
        tests::wait::until(tests::wait::STEP, "the segment is attached", || {
            Ok(run("ipcs", &["-m", "-i", &ids[1]])?.contains("nattch=1").then_some(()))
        })?;
        let refused = running.restore(&["-d"])?.code(1)?;
        refused
            .says_with_hint(&format!("System V shared memory {}: is attached by somebody else", ids[1]))?;
        holder.kill()?;
        holder.wait()?;
        run("ipcrm", &["-m", &ids[1]])?;
        std::fs::write("/proc/sys/kernel/shm_next_id", &ids[1])?;
        let other = run("ipcmk", &["-M", "100"])?;
        anyhow::ensure!(other.trim_end().ends_with(&ids[1]), "{other}");
        let refused = running.restore(&["-d"])?.code(1)?;
        refused.says_with_hint(&format!("System V shared memory {}: is another segment now", ids[1]))?;
        let mut there = segments()?;
        there.sort_unstable();
        let mut expected = ids.clone();
        expected.sort_unstable();
        anyhow::ensure!(there == expected, "{there:?}");
        run("ipcrm", &["-m", &ids[1]])?;
        running.restore(&["-d"])?.success()?;
        running.verify()
    });
}

/// Attached by somebody outside of the tree: refused, also when that one cannot be seen.
#[test]
fn shared_with_the_outside() {
    require_root!();
    require_ia32!();
    isolated_for_both(&here!(), |dir, abi| {
        let mut running = sysv("attached").start(dir, abi)?;
        let before = running.snapshot()?;
        let id = segments()?.swap_remove(0);
        let program = tests::binaries::workload("sysv", abi)?;
        let mut holder =
            Command::new(program).args(["hold", &id]).stdout(std::process::Stdio::piped()).spawn()?;
        tests::wait::until(tests::wait::STEP, "the segment is attached", || {
            Ok(run("ipcs", &["-m", "-i", &id])?.contains("nattch=4").then_some(()))
        })?;
        let refused = running.dump(&[])?.code(1)?;
        refused.says_with_hint(&format!(
            "System V shared memory {id}: is attached 4 times, 3 of them in the tree"
        ))?;
        holder.kill()?;
        holder.wait()?;
        running.looks_like(&before)?;
        running.verify()
    });
}

/// An area that is larger than its segment cannot be attached: refused.
#[test]
fn an_area_that_has_grown() {
    require_root!();
    require_ia32!();
    isolated_for_both(&here!(), |dir, abi| {
        let mut running = sysv("grown").start(dir, abi)?;
        let before = running.snapshot()?;
        let refused = running.dump(&[])?.code(1)?;
        refused.says_with_hint("reaches beyond the 8 KiB of its segment of System V")?;
        running.looks_like(&before)?;
        running.verify()
    });
}
