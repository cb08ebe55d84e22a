//! Faults that are injected on purpose: whatever fails, a tree is as it was, or not there at all, and both dump and restore
//! work as soon as nothing fails any more.

use anyhow::{Context, ensure};
use std::collections::BTreeSet;
use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::FileTypeExt;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::Command;
use tests::abi::Abi;
use tests::case::{Running, Workload, nothing_left};
use tests::command::{self, Output};
use tests::isolate::isolated;
use tests::{Result, here, require_ia32, require_root};

/// A program, and faults that a dump or a restore of it comes to.
struct Trial {
    file: &'static str,
    case: &'static str,
    /// Options of the command.
    options: &'static [&'static str],
    faults: &'static [(&'static str, Then)],
}

/// What a fault leads to.
#[derive(Clone, Copy)]
enum Then {
    /// The command fails, and says this.
    Fails(&'static str),
    /// The same, or it does without what failed.
    Copes(&'static str),
    /// A dump fails with a thread on its way: it finds back by itself, and the area that it needs for that stays until the next dump.
    Leaves(&'static str),
    /// The command works all the same.
    Works,
    /// The restore fails when the tree is back, and says this.
    TooLate(&'static str),
    /// The command is killed.
    Killed,
    /// The restore is killed when the tree is as good as back.
    KilledLate,
}
use Then::{Copes, Fails, Killed, KilledLate, Leaves, TooLate, Works};

const fn trial(
    file: &'static str,
    case: &'static str,
    options: &'static [&'static str],
    faults: &'static [(&'static str, Then)],
) -> Trial {
    Trial { file, case, options, faults }
}

const IO_ERROR: &str = "Input/output error";

/// Faults of a dump that leaves the tree running.
const DUMP: &[Trial] = &[
    trial(
        "threads",
        "in_children",
        &[],
        &[
            ("seize", Fails("seize: EIO")),
            ("seize:3", Fails("seize: EIO")),
            ("interrupt", Fails("interrupt: EIO")),
            ("interrupt:4", Fails("interrupt: EIO")),
            ("resume", Fails("resume: EIO")),
            ("resume:2", Fails("resume: EIO")),
            ("resume:3", Leaves("resume: EIO")),
            ("get-registers", Fails("read registers: EIO")),
            ("get-registers:3", Fails("read registers: EIO")),
            ("set-registers", Fails("write registers: EIO")),
            ("set-registers:2", Leaves("write registers: EIO")),
            ("set-registers:3", Fails("write registers: EIO")),
            ("set-registers:4", Leaves("write registers: EIO")),
            ("get-xstate", Fails("read xstate: EIO")),
            ("get-mask", Fails("read signal mask: EIO")),
            ("get-mask:6", Fails("read signal mask: EIO")),
            ("set-mask", Fails("write signal mask: EIO")),
            ("set-mask:2", Leaves("write signal mask: EIO")),
            ("set-mask:3", Fails("write signal mask: EIO")),
            ("set-mask:4", Leaves("write signal mask: EIO")),
            ("peek-signals", Fails("read pending signals: EIO")),
            ("get-thread-area", Fails("read GDT entries: EIO")),
            ("proc-open", Copes(IO_ERROR)),
            ("proc-open:70", Copes(IO_ERROR)),
            ("proc-open:150", Copes(IO_ERROR)),
            ("proc-read", Copes(IO_ERROR)),
            ("proc-read:70", Copes(IO_ERROR)),
            ("proc-read:140", Copes(IO_ERROR)),
            ("proc-list", Copes(IO_ERROR)),
            ("proc-list:20", Fails("stop: Input/output error")),
            ("pidfd-open", Fails("pidfd_open: EMFILE")),
            ("pidfd-getfd", Fails("pidfd_getfd: EMFILE")),
            ("kcmp", Fails("compare file descriptors of threads: EIO")),
            ("kcmp:30", Fails("EIO")),
            ("read-memory", Fails("read the vDSO: EIO")),
            ("read-memory:25", Copes("EIO")),
            ("write-memory", Copes("EIO")),
            ("write-memory:4", Copes("EIO")),
            ("write-memory:25", Copes("EIO")),
            ("pagemap", Fails("look for pages: PAGEMAP_SCAN: EIO")),
            ("image-create", Fails("pages.img.tmp: EIO")),
            ("image-create:3", Fails("files.img.tmp: EIO")),
            ("image-write", Fails("write pages: Input/output error")),
            ("image-full", Fails("write pages: No space left on device")),
            ("image-write-short", Works),
            ("image-interrupted", Works),
            ("image-publish", Fails("pages.img: Input/output error")),
            ("image-publish:5", Fails("inventory.img: Input/output error")),
        ],
    ),
    trial(
        "seccomp",
        "threads",
        &[],
        &[
            ("trace-options", Fails("suspend seccomp: EIO")),
            ("fork", Fails("fork the process that dumps: EAGAIN")),
        ],
    ),
    // Of another user.
    trial("identity", "credentials", &[], &[("fork", Fails("to look for Landlock: EAGAIN"))]),
    trial(
        "inet",
        "connected",
        &["--tcp-established"],
        &[("fork", Fails("EAGAIN")), ("fork:2", Fails("EAGAIN"))],
    ),
];

/// Faults of a dump that lets the tree run on meanwhile (`--snapshot`).
const SNAPSHOT: &[Trial] = &[trial(
    "snapshot",
    "kinds",
    &["--snapshot"],
    &[
        ("clone-twin", Works),
        ("trace-options", Fails("hold it at its end: EIO")),
        ("image-full:20", Fails("write pages: No space left on device")),
        ("image-publish", Fails("pages.img: Input/output error")),
    ],
)];

/// Faults of a restore.
const RESTORE: &[Trial] = &[
    trial(
        "threads",
        "in_children",
        &[],
        &[
            ("image-open", Fails("inventory.img: EIO")),
            ("image-open:3", Fails("files.img: EIO")),
            ("image-read", Fails("inventory.img: Input/output error")),
            ("image-read:4", Fails("tree.img: Input/output error")),
            ("image-cut", Fails("inventory.img: is cut off")),
            ("image-cut:4", Fails("tree.img: has 32 bytes, by its header it must have")),
            ("image-corrupt", Fails("inventory.img: ")),
            ("image-corrupt:4", Fails("tree.img: is corrupt: checksum")),
            ("image-read-short", Works),
            ("image-interrupted", Works),
            // Without the pages that they shared.
            ("shared-tree", Works),
            ("open-file", Fails("open /dev/null again: EMFILE")),
            ("open-directory", Fails("open a directory: EIO")),
            ("listen", Fails("listen for the restoring tasks: EADDRINUSE")),
            ("fork", Fails("fork the root with pid")),
            ("fork:2", Fails("task ")),
            ("accept", Fails("accept a restoring task: EMFILE")),
            ("accept:2", Fails("accept a restoring task: EMFILE")),
            ("send-plan", Fails("send its plan: ENOBUFS")),
            ("read-answer", Fails("read its answer: EIO")),
            ("seize", Fails("take it over: thread")),
            ("seize:4", Fails("seize: EIO")),
            ("interrupt", Fails("interrupt: EIO")),
            ("trace-options:3", Fails("untie it from this process: EIO")),
            ("resume", Fails("resume: EIO")),
            ("resume:9", Fails("resume: EIO")),
            ("get-registers", Fails("read registers: EIO")),
            ("set-registers", Fails("write registers: EIO")),
            ("set-registers:9", Fails("write registers: EIO")),
            ("set-xstate", Fails("write xstate: EIO")),
            ("set-mask", Fails("write signal mask: EIO")),
            ("complete-events", Fails("have epolls watch: EIO")),
            ("release-traffic", Fails("let the traffic of TCP connections pass: EIO")),
            ("helper-dies-parked", Fails("gone")),
            ("helper-dies-held", Fails("gone")),
            ("killed-reading", Killed),
            ("killed-planned", Killed),
            ("killed-opened", Killed),
            ("killed-forked", Killed),
            ("killed-serving", Killed),
            ("killed-serving:3", Killed),
            ("killed-parked", Killed),
            ("killed-seized", Killed),
            ("killed-untied", Killed),
            ("killed-finished", Killed),
            ("killed-releasing", Killed),
            ("killed-releasing:5", Killed),
            ("killed-letting-go", KilledLate),
            ("killed-letting-go:5", KilledLate),
        ],
    ),
    // A single task, with nobody who dies with it and is heard of first.
    trial(
        "threads",
        "many",
        &[],
        &[
            ("executable", Fails("memfd_create: EMFILE")),
            ("shared-tree", Fails("map the control page: ENOMEM")),
            ("op-map", Fails("Map {")),
            ("op-map:10", Fails("Map {")),
            ("op-fill", Fails("Fill {")),
            ("op-protect", Fails("i/o error")),
            ("op-place", Fails("Place {")),
            ("op-layout", Fails("Layout {")),
            ("op-thread", Fails("Thread {")),
            ("op-thread:3", Fails("Thread {")),
            ("op-attribute", Fails("i/o error")),
            ("op-registration", Fails("i/o error")),
            ("op-word", Fails("Join")),
            ("helper-dies-early", Fails("died while it was restored")),
            ("helper-dies", Fails("died while it was restored")),
            ("helper-dies:10", Fails("died while it was restored")),
        ],
    ),
    trial("signals", "handlers", &[], &[("op-action", Fails("Action {"))]),
    trial(
        "harness",
        "idle",
        &[],
        &[
            ("place-file", Fails("put a file in its place, fd 0: too many open files")),
            ("enter-directory", Fails("change its root or current directory")),
            ("exec", Fails("exec the program that restores it")),
        ],
    ),
    trial(
        "harness",
        "idle",
        &["--new-pidns"],
        &[
            ("namespace", Fails("make a pid namespace: EIO")),
            ("mount-proc", Fails("mount /proc of the namespace: EIO")),
            ("init-dies", Fails("the namespace's init died")),
        ],
    ),
    trial("harness", "idle", &["--pidfile", "pid"], &[("pidfile", TooLate("the tree runs"))]),
    trial("tree", "family", &[], &[("set-group", Fails("set its process group"))]),
    trial("memory", "anonymous", &[], &[("put-pages", Fails("put pages in place: ENOMEM"))]),
    trial("memory", "locked", &[], &[("op-lock", Fails("Lock {"))]),
    trial("attributes", "area_policies", &[], &[("op-policy", Fails("MemoryPolicy {"))]),
    trial("segments", "ldt_entries", &[], &[("op-ldt", Fails("Ldt {"))]),
    // Where the task of the other ABI is the one with such an entry, too.
    trial("pipes", "between_abis", &[], &[("set-thread-area", Fails("write GDT entry: EIO"))]),
    trial("families", "chain", &[], &[("op-birth", Fails("i/o error"))]),
    trial("pending", "layouts", &[], &[("op-queue", Fails("Queue {"))]),
    trial("timers", "kinds", &[], &[("op-timer", Fails("Timer")), ("op-timer:3", Fails("Timer"))]),
    trial(
        "identity",
        "credentials",
        &[],
        &[("op-credentials", Fails("i/o error")), ("op-credentials:2", Fails("i/o error"))],
    ),
    trial("identity", "limits", &[], &[("op-limit", Fails("Limit {"))]),
    trial(
        "seccomp",
        "threads",
        &[],
        &[
            ("op-filter", Fails("i/o error")),
            ("op-filter:3", Fails("i/o error")),
            ("seize:2", Fails("hold it")),
        ],
    ),
    trial("files", "close_on_exec", &[], &[("op-file", Fails("CloseOnExec("))]),
    trial(
        "deleted",
        "file",
        &[],
        &[("recreate-file", Fails("make /")), ("op-map:4", Fails("Map {")), ("killed-parked", Killed)],
    ),
    trial("pipes", "contents", &[], &[("make-pipe", Fails("create: EMFILE"))]),
    trial(
        "unix_names",
        "accepted",
        &[],
        &[
            ("make-socket", Fails("make a socket: ENOBUFS")),
            ("make-socket:2", Fails("make a socket: ENOBUFS")),
            ("op-map", Fails("Map {")),
            ("release-traffic", Fails("let the traffic")),
        ],
    ),
    trial(
        "inet",
        "connected",
        &[],
        &[("make-connection", Fails("socket: ENOBUFS")), ("make-connection:3", Fails("socket: ENOBUFS"))],
    ),
    trial("ptys", "session", &[], &[("make-terminal", Fails("/dev/pts/")), ("op-map", Fails("Map {"))]),
    trial(
        "locks",
        "kinds",
        &[],
        &[
            ("take-lock", Fails("take its lock again: EAGAIN")),
            ("take-lock:2", Fails("take its lock again: EAGAIN")),
        ],
    ),
    trial("inotify", "all", &[], &[("add-watch", Fails("watch /"))]),
];

/// Ends of a dump that leaves the tree running.
const ENDS: &[&str] = &[
    "killed-starting",
    "killed-freezing",
    "killed-freezing:2",
    "killed-frozen",
    "killed-calling",
    "killed-calling:2",
    "killed-calling:3",
    "killed-asking",
    "killed-asking:2",
    "killed-asking:9",
    "killed-collected",
    "killed-copying",
    "killed-publishing",
    "killed-publishing:5",
    "killed-published",
];

/// Tasks that end during a dump.
const DEATHS: &[&str] =
    &["task-dies-unseized:2", "task-dies-frozen", "task-dies-asked", "task-dies-asked:3", "task-dies-copied"];

/// Faults that have a test of their own.
const ELSEWHERE: &[&str] = &[
    "ids-taken",
    "killed-cloning",
    "killed-disarming",
    "killed-killing",
    "killed-snapshot",
    "lazy-ahead",
    "nft",
    "stopped-starting",
    "task-dies-snapshot",
    "twin-dies",
    "twins-always",
    "vdso-differs",
    "vdso-immovable",
];

/// Marks the files of sockets.
const SOCKET: &str = " (socket)";

/// What a command could leave beside processes: mounts, tables of nftables, names.
fn surroundings(dir: &Path) -> Result<BTreeSet<String>> {
    let mut all: BTreeSet<String> =
        fs::read_to_string("/proc/self/mountinfo")?.lines().map(str::to_owned).collect();
    let nft = Command::new("nft").args(["list", "tables"]).output()?;
    ensure!(nft.status.success(), "nft: {}", String::from_utf8_lossy(&nft.stderr));
    all.extend(String::from_utf8(nft.stdout)?.lines().map(str::to_owned));
    let sockets = fs::read_to_string("/proc/net/unix")?;
    all.extend(sockets.lines().filter_map(|line| line.split_whitespace().nth(7)).map(str::to_owned));
    // What the harness itself makes there.
    let own = [dir.join("crr.stdout"), dir.join("crr.stderr")];
    let mut dirs = vec![dir.to_owned()];
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(dir)? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                dirs.push(entry.path());
            }
            if !own.contains(&entry.path()) {
                let kind = if entry.file_type()?.is_socket() { SOCKET } else { "" };
                all.insert(format!("{}{kind}", entry.path().display()));
            }
        }
    }
    Ok(all)
}

fn unchanged(before: &BTreeSet<String>, after: &BTreeSet<String>) -> Result {
    // What a dead socket was bound to is of no use to anybody.
    let gone: Vec<_> = before.difference(after).filter(|name| !name.ends_with(SOCKET)).collect();
    let new: Vec<_> = after.difference(before).collect();
    ensure!(gone.is_empty() && new.is_empty(), "gone: {gone:#?}, new: {new:#?}");
    Ok(())
}

/// Asks that the fault took effect, and what it leads to.
fn judge(output: Output, fault: &str, then: Then, running: &Running) -> Result {
    let told = format!("fault: {}\n", name(fault));
    // A child tells it by what is its standard error by then.
    let reached = output.stderr.contains(&told) || running.log()?.contains(&told);
    ensure!(reached, "it was not reached:\n{}", output.stderr);
    match then {
        Copes(_) if output.status.success() => Ok(()),
        Fails(what) | Copes(what) | Leaves(what) => output.code(1)?.says(what),
        TooLate(what) => output.code(3)?.says(what),
        Works => output.success().map(drop),
        Killed | KilledLate => {
            ensure!(output.status.signal() == Some(9), "{}\n{}", output.status, output.stderr);
            Ok(())
        }
    }
}

/// A fault without its count.
fn name(fault: &str) -> &str {
    fault.split_once(':').map_or(fault, |(name, _)| name)
}

/// What went wrong, to be told together.
#[derive(Default)]
struct Wrong(Vec<String>);

impl Wrong {
    fn note(&mut self, outcome: Result) {
        self.0.extend(outcome.err().map(|e| format!("{e:#}")));
    }

    fn none(self) -> Result {
        ensure!(self.0.is_empty(), "{}", self.0.join("\n\n"));
        Ok(())
    }
}

impl Trial {
    fn start(&self, dir: &Path, abi: Abi) -> Result<Running> {
        let own = format!("{}-{}-{}-{abi}", self.file, self.case, self.options.len());
        Workload::new(self.file, self.case).start(&dir.join(own), abi)
    }

    fn failed_dumps(&self, dir: &Path, abi: Abi) -> Result {
        let mut running = self.start(dir, abi)?;
        let before = running.snapshot()?;
        let around = surroundings(&running.dir)?;
        let mut wrong = Wrong::default();
        for &(fault, then) in self.faults {
            let mut one = || -> Result {
                let output = running.dump(&[&["-R", "--fault", fault], self.options].concat())?;
                let failed = !output.status.success();
                judge(output, fault, then, &running)?;
                command::none_left()?;
                // Fails if anything is in it.
                if failed { fs::remove_dir(running.images()) } else { fs::remove_dir_all(running.images()) }
                    .context("images")?;
                if matches!(then, Leaves(_)) {
                    running.dump(&[&["-R"], self.options].concat())?.success()?;
                    fs::remove_dir_all(running.images())?;
                }
                running.looks_like(&before)?;
                unchanged(&around, &surroundings(&running.dir)?)
            };
            let outcome = one();
            wrong.note(outcome.with_context(|| format!("{} {}, {abi}: {fault}", self.file, self.case)));
        }
        wrong.none()?;
        let options: Vec<&str> =
            self.options.iter().copied().filter(|&option| option != "--snapshot").collect();
        running.cycle_with(&before, &options)?;
        running.verify()
    }

    fn failed_restores(&self, dir: &Path, abi: Abi) -> Result {
        let mut running = self.start(dir, abi)?;
        let before = running.snapshot()?;
        running.dump(&[])?.success()?;
        nothing_left()?;
        let mut around = surroundings(&running.dir)?;
        let mut wrong = Wrong::default();
        for &(fault, then) in self.faults {
            let mut one = || -> Result {
                let output = running.restore(&[&["-d", "--fault", fault], self.options].concat())?;
                let is_back = output.status.success() || matches!(then, TooLate(_) | KilledLate);
                judge(output, fault, then, &running)?;
                if is_back {
                    running.looks_like(&before)?;
                    running.dump(&[])?.success()?;
                    nothing_left()?;
                    around = surroundings(&running.dir)?;
                }
                nothing_left()?;
                unchanged(&around, &surroundings(&running.dir)?)
            };
            let outcome = one().and(nothing_left());
            wrong.note(outcome.with_context(|| format!("{} {}, {abi}: {fault}", self.file, self.case)));
        }
        wrong.none()?;
        running.restore(&["-d"])?.success()?;
        running.looks_like(&before)?;
        running.verify()
    }
}

#[test]
fn failed_dumps_harm_nothing() {
    require_root!();
    require_ia32!();
    isolated(&here!(), |dir| every(DUMP, |trial, abi| trial.failed_dumps(dir, abi)));
}

#[test]
fn failed_snapshots_harm_nothing() {
    require_root!();
    require_ia32!();
    isolated(&here!(), |dir| every(SNAPSHOT, |trial, abi| trial.failed_dumps(dir, abi)));
}

#[test]
fn failed_restores_leave_nothing() {
    require_root!();
    require_ia32!();
    isolated(&here!(), |dir| every(RESTORE, |trial, abi| trial.failed_restores(dir, abi)));
}

/// Ends all other processes of the namespace that the test is the init of.
fn end_everyone() {
    assert_eq!(std::process::id(), 1, "not in a namespace of its own");
    let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(-1), nix::sys::signal::Signal::SIGKILL);
    let _ = nothing_left();
}

fn every(trials: &[Trial], run: impl Fn(&Trial, Abi) -> Result) -> Result {
    let mut wrong = Wrong::default();
    for trial in trials {
        Abi::ALL.into_iter().for_each(|abi| {
            let outcome = run(trial, abi).and(nothing_left());
            if outcome.is_err() {
                end_everyone();
            }
            wrong.note(outcome.with_context(|| format!("{} {}, {abi}", trial.file, trial.case)));
        });
    }
    wrong.none()
}

/// A dump that is killed where it could hurt most: every thread goes on, and the next dump finds all as it was.
#[test]
fn dumps_killed_at_each_stage_harm_nothing() {
    require_root!();
    require_ia32!();
    isolated(&here!(), |dir| {
        for abi in Abi::ALL {
            let mut running = Workload::new("busy", "tree").busy().start(&dir.join(abi.name()), abi)?;
            let before = running.snapshot()?;
            for &fault in ENDS {
                let output = running.dump(&["-R", "--fault", fault])?;
                let judged = judge(output, fault, Killed, &running).and_then(|()| running.is_alive());
                judged.with_context(|| format!("{abi}: {fault}"))?;
            }
            running.dump(&["-R"])?.success()?;
            running.looks_like(&before)?;
            running.cycle(&before)?;
            running.verify()?;
        }
        Ok(())
    });
}

/// Threads of a task are asked several at a time: killed then, a dump leaves an area for each, and the next one takes them all out. If the task dies then,
/// the dump fails.
#[test]
fn threads_that_are_asked_together_go_on_and_end_together() {
    require_root!();
    require_ia32!();
    isolated(&here!(), |dir| {
        for abi in Abi::ALL {
            let mut running = Workload::new("threads", "many").start(&dir.join(abi.name()), abi)?;
            let before = running.snapshot()?;
            for fault in ["killed-asking:5", "killed-asking:20", "killed-asking:40"] {
                let output = running.dump(&["-R", "--fault", fault])?;
                judge(output, fault, Killed, &running).with_context(|| format!("{abi}: {fault}"))?;
            }
            let maps = fs::read_to_string(format!("/proc/{}/maps", running.root))?;
            let areas = maps.lines().filter(|line| line.contains(" rwxs ")).count();
            ensure!(areas > 1, "{abi}: not asked together:\n{maps}");
            running.dump(&["-R"])?.success()?;
            running.looks_like(&before)?;
            running.cycle(&before)?;
            running.verify()?;

            let mut running =
                Workload::new("threads", "many").start(&dir.join(format!("{abi}-dies")), abi)?;
            let fault = "task-dies-asked:20";
            judge(running.dump(&["-R", "--fault", fault])?, fault, Fails("task "), &running)?;
            nothing_left()?;
        }
        Ok(())
    });
}

/// Killed when the checkpoint is complete and a task is killed already, the dump ends the others, too.
#[test]
fn a_dump_killed_while_it_kills_ends_the_tree() {
    require_root!();
    require_ia32!();
    isolated(&here!(), |dir| {
        for abi in Abi::ALL {
            let mut running = Workload::new("threads", "in_children").start(&dir.join(abi.name()), abi)?;
            let before = running.snapshot()?;
            let output = running.dump(&["--fault", "killed-killing"])?;
            judge(output, "killed-killing", Killed, &running)?;
            nothing_left()?;
            running.restore(&["-d"])?.success()?;
            running.looks_like(&before)?;
            running.verify()?;
        }
        Ok(())
    });
}

/// A task that ends during a dump: either the dump knows, or it fails; the others go on.
#[test]
fn a_task_that_dies_during_a_dump_is_no_obstacle_to_the_others() {
    require_root!();
    require_ia32!();
    isolated(&here!(), |dir| {
        for (abi, &fault) in Abi::ALL.iter().flat_map(|abi| DEATHS.iter().map(move |fault| (abi, fault))) {
            let dir = dir.join(format!("{abi}-{fault}"));
            let mut running = Workload::new("threads", "in_children").start(&dir, *abi)?;
            let pids = tests::snapshot::tree(running.root.as_raw())?;
            let output = running.dump(&["-R", "--fault", fault])?;
            judge(output, fault, Copes("task "), &running).with_context(|| format!("{abi}: {fault}"))?;
            let mut dead = 0;
            for &pid in &pids {
                let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
                dead += usize::from(status.contains("State:\tZ"));
                ensure!(status.contains("TracerPid:\t0\n"), "{abi}: {fault}: task {pid}:\n{status}");
                ensure!(!status.contains("State:\tt"), "{abi}: {fault}: task {pid}:\n{status}");
            }
            ensure!(dead == 1, "{abi}: {fault}: {dead} tasks are dead");
            for &pid in &pids {
                nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL)?;
            }
            nothing_left()?;
        }
        Ok(())
    });
}

/// Nothing is left of a task that ends right before it is seized, where nobody waits for it.
#[test]
fn a_task_that_is_gone_when_it_is_to_be_seized() {
    require_root!();
    require_ia32!();
    isolated(&here!(), |dir| {
        for abi in Abi::ALL {
            let mut running = Workload::new("zombies", "unmissed").start(&dir.join(abi.name()), abi)?;
            let fault = "task-dies-unseized:2";
            judge(running.dump(&["--fault", fault])?, fault, Works, &running)?;
            running.comes_back()?;
        }
        Ok(())
    });
}

/// The program that holds traffic cannot be run: the dump fails, and clients go on.
#[test]
fn traffic_that_cannot_be_held_is_not_lost() {
    require_root!();
    require_ia32!();
    isolated(&here!(), |dir| {
        for abi in Abi::ALL {
            let mut running = Workload::new("inet", "server").start(&dir.join(abi.name()), abi)?;
            let log = running.log()?;
            let port: u16 = log.split_whitespace().next().context("no port")?.parse()?;
            let mut client = TcpStream::connect(("127.0.0.1", port))?;
            client.set_read_timeout(Some(tests::wait::STEP))?;
            let before = running.snapshot()?;
            let output = running.dump(&["--tcp-established", "--fault", "nft"])?;
            judge(output, "nft", Fails("hold the traffic of TCP connections: nft: EIO"), &running)?;
            running.looks_like(&before)?;
            client.write_all(&[1])?;
            client.read_exact(&mut [0])?;
            running.verify()?;
        }
        Ok(())
    });
}

/// `crr check --faults` lists nothing that is not tried here.
#[test]
fn every_fault_is_tried() {
    let crr = tests::binaries::crr().unwrap();
    let output = Command::new(crr).args(["check", "--faults"]).output().unwrap();
    let listed = String::from_utf8(output.stdout).unwrap();
    let listed: BTreeSet<&str> = listed.lines().filter_map(|line| line.split(' ').next()).collect();
    let faults = DUMP
        .iter()
        .chain(SNAPSHOT)
        .chain(RESTORE)
        .flat_map(|trial| trial.faults)
        .map(|(fault, _)| name(fault));
    let others = [ENDS, DEATHS, ELSEWHERE].into_iter().flatten().map(|fault| name(fault));
    let tried: BTreeSet<&str> = faults.chain(others).collect();
    assert_eq!(listed, tried);
}
