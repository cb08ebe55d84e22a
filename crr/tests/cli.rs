//! The command line from outside: exit codes, what goes to which stream, and the words people read.
#![allow(clippy::unwrap_used)] // A failed step is a failed test.

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::fs;
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;

fn crr(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_crr")).args(arguments).stdin(Stdio::null()).output().unwrap()
}

fn stdout(output: &Output) -> &str {
    std::str::from_utf8(&output.stdout).unwrap()
}

fn stderr(output: &Output) -> &str {
    std::str::from_utf8(&output.stderr).unwrap()
}

fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../images/tests/golden")
}

/// A copy of the golden checkpoint with one byte of a file changed.
fn corrupt(name: &str) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    for entry in fs::read_dir(golden()).unwrap() {
        let path = entry.unwrap().path();
        fs::copy(&path, dir.path().join(path.file_name().unwrap())).unwrap();
    }
    let path = dir.path().join(name);
    let mut bytes = fs::read(&path).unwrap();
    bytes[60] ^= 1;
    fs::write(path, bytes).unwrap();
    dir
}

#[test]
fn mistakes_on_the_command_line_exit_with_2() {
    let mistakes: [&[&str]; 28] = [
        &[],
        &["undump"],
        &["dump"],
        &["dump", "-t"],
        &["dump", "-t", "0"],
        &["dump", "-t", "-5"],
        &["dump", "-t", "init"],
        &["dump", "-t", "1", "--leave-running", "--leave-stopped"],
        &["dump", "-t", "1", "--timeout", "soon"],
        &["dump", "-t", "1", "-D", "-", "--prev-images-dir", "a", "--auto-dedup"],
        &["pre-dump", "-t", "1", "-D", "-", "--prev-images-dir", "a", "--auto-dedup"],
        &["dump", "-t", "1", "--page-server", "host"],
        &["dump", "-t", "1", "--page-server", "host:0x1"],
        &["dump", "-t", "1", "-D", "-", "--page-server", "host:1"],
        &["dump", "-t", "1", "--page-server", "host:1", "--tls"],
        &[
            "dump",
            "-t",
            "1",
            "--page-server",
            "host:1",
            "--tls-cacert",
            "a",
            "--tls-cert",
            "b",
            "--tls-key",
            "c",
        ],
        &["dump", "-t", "1", "--tls", "--tls-cacert", "a", "--tls-cert", "b", "--tls-key", "c"],
        &["pre-dump", "-t", "1", "--insecure"],
        &["page-server", "--tls", "--insecure"],
        &["page-server", "--tls-key", "a"],
        &["page-server", "-D", "-"],
        &["restore", "-D", "-", "--inherit-fd", "fd[0]:pipe:[1]"],
        &["restore", "--restore-sibling"],
        &["restore", "surplus"],
        &["show", "a", "b"],
        &["show", "a", "-D", "b"],
        &["check", "--feature", "mseal", "--json"],
        &["completions", "csh"],
    ];
    for arguments in mistakes {
        let output = crr(arguments);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        assert_eq!(stdout(&output), "", "{arguments:?}");
        assert!(!stderr(&output).is_empty(), "{arguments:?}");
    }
}

/// What is for a pipe or a file makes no sense of a terminal.
#[test]
fn a_stream_does_not_come_from_a_terminal_or_go_to_one() {
    let pair = nix::pty::openpty(None, None).unwrap();
    for arguments in [&["dump", "-t", "1", "-D", "-"][..], &["restore", "-D", "-"], &["show", "-"]] {
        let [input, output] = [(); 2].map(|()| Stdio::from(pair.slave.try_clone().unwrap()));
        let mut command = Command::new(env!("CARGO_BIN_EXE_crr"));
        let run = command.args(arguments).stdin(input).stdout(output).stderr(Stdio::piped());
        let output = run.spawn().unwrap().wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(1), "{arguments:?}");
        assert!(stderr(&output).contains("terminal"), "{}", stderr(&output));
        assert!(stderr(&output).contains("hint: "), "{}", stderr(&output));
    }
}

/// What tasks have in memory is nobody else's business, unless that is said.
#[test]
fn a_page_server_is_for_this_machine_alone() {
    let dir = tempfile::tempdir().unwrap();
    for address in ["0.0.0.0", "::", "192.0.2.1"] {
        let output = crr(&["page-server", "-D", dir.path().to_str().unwrap(), "--address", address]);
        assert_eq!((output.status.code(), stdout(&output)), (Some(1), ""), "{address}");
        assert!(stderr(&output).contains("\n  hint: use --tls"), "{}", stderr(&output));
    }
}

/// A server of which nobody can be told does not stay.
#[test]
fn a_page_server_that_cannot_tell_ends() {
    let dir = tempfile::tempdir().unwrap();
    let images = dir.path().to_str().unwrap();
    for wrong in [["--pidfile", "missing/pid"], ["--status-fd", "77"]] {
        let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let port = free.port().to_string();
        let output = crr(&[&["page-server", "-D", images, "-d", "--port", &port], &wrong[..]].concat());
        assert_eq!((output.status.code(), stdout(&output)), (Some(1), ""), "{wrong:?}");
        let started = Instant::now();
        while TcpStream::connect(free).is_ok() {
            assert!(started.elapsed() < Duration::from_secs(60), "{wrong:?}");
        }
    }
}

/// One in the background has nothing of its starter: whoever waits for the end of a pipe of that sees it.
#[test]
fn a_page_server_in_the_background_keeps_nothing_open() {
    let dir = tempfile::tempdir().unwrap();
    let script = "\"$0\" page-server -D \"$1\" -d --pidfile pid 3>&1 >/dev/null";
    let bash = Command::new("bash")
        .args(["-c", script, env!("CARGO_BIN_EXE_crr")])
        .arg(dir.path())
        .stdout(Stdio::piped())
        .spawn();
    let mut bash = bash.unwrap();
    assert!(bash.wait().unwrap().success());
    let pipe = bash.stdout.unwrap();
    let ended = poll(&mut [PollFd::new(pipe.as_fd(), PollFlags::empty())], PollTimeout::from(60_000_u16));
    let pid = fs::read_to_string(dir.path().join("pid")).unwrap();
    kill(Pid::from_raw(pid.parse().unwrap()), Signal::SIGTERM).unwrap();
    assert_eq!(ended, Ok(1));
}

#[test]
fn a_stream_is_shown() {
    let archive = tempfile::tempfile().unwrap();
    let tar = Command::new("tar")
        .args(["c", "-C"])
        .arg(golden())
        .arg(".")
        .stdout(archive.try_clone().unwrap())
        .status();
    assert!(tar.unwrap().success());
    std::io::Seek::rewind(&mut &archive).unwrap();
    let shown = Command::new(env!("CARGO_BIN_EXE_crr")).args(["show", "-"]).stdin(archive).output().unwrap();
    let dir = golden();
    assert_eq!(stdout(&shown), stdout(&crr(&["show", dir.to_str().unwrap()])), "{}", stderr(&shown));
}

#[test]
fn unknown_features_exit_with_2_and_name_the_known() {
    let output = crr(&["check", "--feature", "teleport"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(
        stderr(&output)
            .starts_with("crr: error: there is no feature `teleport`\n  hint: features are ptrace, ")
    );
    assert_eq!(stderr(&output).matches("teleport").count(), 1);
}

#[test]
fn unknown_faults_exit_with_2_and_the_known_are_listed() {
    for arguments in [["--fault", "earthquake"], ["--fault", "seize,earthquake:2"]] {
        let output = crr(&[&["check"][..], &arguments].concat());
        assert_eq!(output.status.code(), Some(2));
        assert_eq!(
            stderr(&output),
            "crr: error: there is no fault `earthquake`\n  hint: `crr check --faults` lists them\n"
        );
    }
    let mut command = Command::new(env!("CARGO_BIN_EXE_crr"));
    let output = command.args(["check", "--faults"]).env("CRR_FAULT", "seize:0").output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr(&output).contains("seize:0"));
    let output = crr(&["check", "--faults"]);
    assert_eq!(output.status.code(), Some(0));
    assert!(stdout(&output).lines().any(|line| line.starts_with("seize ")));
}

#[test]
fn help_goes_to_stdout_and_has_examples() {
    for command in ["dump", "pre-dump", "dedup", "restore", "check", "show", "completions", "man"] {
        let output = crr(&[command, "--help"]);
        assert_eq!(output.status.code(), Some(0));
        assert!(stdout(&output).contains(&format!("Usage: crr {command}")), "{command}");
        assert!(stdout(&output).contains("Example"), "{command}");
        assert_eq!(stderr(&output), "");
    }
}

#[test]
fn options_are_spelled_as_in_criu() {
    let help =
        [crr(&["dump", "--help"]), crr(&["restore", "--help"])].map(|output| stdout(&output).to_owned());
    let common =
        ["-D, --images-dir", "-W, --work-dir", "-o, --log-file", "-v", "-j, --shell-job", "--timeout"];
    for option in common.iter().chain(&["-t, --tree", "-R, --leave-running", "-s, --leave-stopped"]) {
        assert!(help[0].contains(option), "dump {option}");
    }
    let restore =
        ["-d, --restore-detached", "-S, --restore-sibling", "--pidfile", "-r, --root", "--new-pidns"];
    for option in common.iter().chain(&restore) {
        assert!(help[1].contains(option), "restore {option}");
    }
}

#[test]
fn version_is_that_of_the_package() {
    assert_eq!(stdout(&crr(&["--version"])), concat!("crr ", env!("CARGO_PKG_VERSION"), "\n"));
}

const SUMMARY: &str = "\
crr 0.1.0, kernel 6.18.0, 2026-09-21 14:13:20 UTC, SIZE
2 tasks (1 x86_64, 1 ia32), 4 threads, 6 pages

PID     COMMAND            ABI       THREADS  MAPPED   SAVED     FDS
100     sh                 x86_64    2        3.0 MiB  12.0 KiB  4
├─ 101  counter (stopped)  ia32      2        3.0 MiB  12.0 KiB  4
├─ 102  gone               exited 3
└─ 103  gone               killed 9

FILE                                              MODE  OFFSET                HELD AS (PID: FDS)
/dev/pts/3 (terminal)                             rw    0                     100: 0, 101: 0
pipe#0                                            r     0                     100: 3, 101: 3
pipe#0                                            w     0                     100: 1, 101: 1
/tmp/café (deleted)                               w     12                    100: 7, 101: 7
socket#0                                          rw    0
/dev/ptmx (pty#0)                                 rw    0
/dev/pts/8 (pty#1)                                rw    0
eventfd: 3                                        rw    0
timerfd on clock 0                                rw    0
signalfd: 0x10000                                 rw    0
epoll of 1                                        rw    0
inet#0                                            rw    0
netlink socket of protocol 15, port 4711          rw    0
/run/control (pipe#1)                             r     0
pipe:[7001] (external)                            w     0
/dev/pts/4 (external)                             rw    0
/var/log/shell (external)                         r     7
inotify of 1                                      r     0
pidfd of 1100                                     rw    0
pidfd of a process that is gone                   rw    0
/proc/1100/mem                                    r     18446744073709547520
namespace net                                     r     0
message queue /jobs, 2 messages                   rw    0
socket:[7004] (external)                          rw    0
packet socket of protocol 0x0800, interface eth0  rw    0
BPF map hits, 2 entries                           rw    0
BPF map /sys/fs/bpf/events                        w     0
fanotify of 3                                     rw    0

PIPE    CAPACITY  UNREAD
pipe#0  64.0 KiB  9 B
pipe#1  4.0 KiB   8 B

OUTSIDE         TO BE GIVEN AT RESTORE
pipe:[7001]     --inherit-fd fd[N]:pipe:[7001], N open for writing
/dev/pts/4      --inherit-fd fd[N]:tty[8804:18], N open for reading and writing
/var/log/shell  --inherit-fd fd[N]:file[1d:4d2], N open for reading
socket:[7004]   --inherit-fd fd[N]:unix[7004], N open for reading and writing

SOCKET    TYPE            ADDRESS     PEER                UNREAD  FILES ON THEIR WAY
socket#0  unix stream     run/server  socket#1            9 B     2
socket#1  unix stream     run/server  socket#0            9 B     2
socket#2  unix seqpacket  run/server  closed              9 B     2
socket#3  unix datagram   @abstract   -                   9 B     2
socket#4  unix stream     run/server  listens, 1 waiting  0 B     0
socket#5  unix stream     -           socket#4, waiting   0 B     0
socket#6  unix stream     run/server  again @bus          0 B     0

SOCKET  PROTOCOL  ADDRESS           PEER             STATE                 UNREAD  UNACKED
inet#0  tcp       127.0.0.1:80      127.0.0.1:40000  to inet#1             4 B     8 B
inet#1  tcp       127.0.0.1:40000   127.0.0.1:80     to inet#0             4 B     8 B
inet#2  tcp       127.0.0.1:80      127.0.0.1:40000  connected             4 B     8 B
inet#3  tcp       127.0.0.1:80      -                listens, backlog 128  0 B     0 B
inet#4  tcp       127.0.0.1:80      -                ended                 10 B    0 B
inet#5  udp6      [fe80::1%2]:5353  -                -                     4 B     0 B
inet#6  ping      127.0.0.1:80      -                -                     0 B     0 B
inet#7  raw 89    127.0.0.1:80      -                -                     0 B     0 B

Traffic of its connections is held by the nftables table inet crr-0123456789abcdef until the restore.

PTY    NUMBER       WINDOW  SESSION  FOREGROUND  INPUT  OUTPUT
pty#0  7            80x24   -        -           6 B    7 B
pty#1  8 (hung up)

SYSTEM V          KEY         OWNER      CONTENTS
semaphores 32769  0x5eed0001  1000:1001  2 semaphores, 2 to undo
queue 3           -           1000:1001  2 messages, 5 B
";

/// The summary with the size of the golden files that the inventory lists.
fn summary() -> String {
    let files = ["tree.img", "files.img", "memory.img", "pages.img"].map(|name| golden().join(name));
    let bytes: u64 = files.iter().map(|file| file.metadata().unwrap().len()).sum();
    let tenths = bytes * 10 / 1024;
    SUMMARY.replace("SIZE", &format!("{}.{} KiB", tenths / 10, tenths % 10))
}

#[test]
fn show_draws_the_tree_and_lists_files() {
    let output = crr(&["show", golden().to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(0));
    assert_eq!(stderr(&output), "");
    assert_eq!(stdout(&output), summary());
}

#[test]
fn show_takes_the_directory_as_the_other_commands_do() {
    assert_eq!(stdout(&crr(&["show", "-D", golden().to_str().unwrap()])), summary());
}

#[test]
fn show_starts_in_the_current_directory() {
    let output = Command::new(env!("CARGO_BIN_EXE_crr")).arg("show").current_dir(golden()).output().unwrap();
    assert_eq!(stdout(&output), summary());
}

#[test]
fn show_with_v_adds_threads_and_areas() {
    let output = crr(&["show", "-v", golden().to_str().unwrap()]);
    let shown = stdout(&output);
    assert!(shown.starts_with(&summary()));
    for line in [
        "threads of 101",
        "1101  counter  32-bit  f7f01234     f7f01234",
        "memory of 101",
        "08048000-08058000  r-x   4.0 KiB  /bin/sh +0x0",
        "0a000000-0a004000  rw-   0 B      shared#0 +0x0",
        "f7fc6000-f7fc7000  r-x   0 B      [vdso]",
    ] {
        assert!(shown.lines().any(|shown| shown == line), "{line} is not in\n{shown}");
    }
}

#[test]
fn show_json_has_all_records() {
    let output = crr(&["show", "--json", golden().to_str().unwrap()]);
    let json: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(json["inventory"]["root"], 100);
    assert_eq!(json["tree"]["tasks"][1]["abi"], "Ia32");
    assert_eq!(json["tree"]["tasks"][1]["threads"][0]["comm"], "counter");
    assert_eq!(json["files"]["paths"][4]["path"], "/tmp/caf\u{e9}");
    assert_eq!(json["files"]["pipes"][0]["contents"], "in flight");
    assert_eq!(json["memory"]["vdsos"][0]["image"].as_str().unwrap().len(), 2 * 4096);
    assert_eq!(json["memory"]["page_count"], 6);
}

#[test]
fn a_reader_that_has_seen_enough_is_no_error() {
    let mut child = Command::new(env!("CARGO_BIN_EXE_crr"))
        .args(["show", "--json", golden().to_str().unwrap()])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!((output.status.code(), stderr(&output)), (Some(0), ""));
}

#[test]
fn corrupt_images_are_named_once() {
    for name in ["inventory.img", "tree.img", "files.img", "memory.img"] {
        let dir = corrupt(name);
        let output = crr(&["show", dir.path().to_str().unwrap()]);
        assert_eq!(output.status.code(), Some(1), "{name}");
        assert_eq!(stdout(&output), "", "{name}");
        let start = format!("crr: error: checkpoint {}: {name}: is corrupt: checksum ", dir.path().display());
        assert!(stderr(&output).starts_with(&start), "{}", stderr(&output));
        assert_eq!(stderr(&output).lines().count(), 1);
    }
}

#[test]
fn restore_of_corrupt_images_fails_before_anything_is_made() {
    // That of pages is found when they are put in place: memory::corrupt_pages of the behaviour tests.
    for name in ["inventory.img", "tree.img", "files.img", "memory.img"] {
        let dir = corrupt(name);
        let output = crr(&["restore", "-d", "-D", dir.path().to_str().unwrap(), "--pidfile", "pid"]);
        assert_eq!(output.status.code(), Some(1), "{name}");
        assert!(stderr(&output).contains(&format!("{name}: is corrupt: ")), "{}", stderr(&output));
        assert!(!dir.path().join("pid").exists(), "{name}");
    }
}

#[test]
fn a_directory_that_is_missing_is_named() {
    for arguments in [&["dump", "-t", "1", "-D", "/nonexistent"][..], &["restore", "-D", "/nonexistent"]] {
        let output = crr(arguments);
        assert_eq!(output.status.code(), Some(1));
        let expected = "crr: error: /nonexistent: is not a directory\n  hint: create it first\n";
        assert_eq!(stderr(&output), expected);
    }
}

#[test]
fn a_log_file_starts_from_the_work_dir_and_gets_the_error_too() {
    let (images, work) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let [images_dir, work_dir] = [&images, &work].map(|dir| dir.path().to_str().unwrap());
    let output = crr(&["restore", "-D", images_dir, "-W", work_dir, "-v4", "-o", "restore.log"]);
    assert_eq!(output.status.code(), Some(1));
    let error = stderr(&output).strip_prefix("crr: error: ").unwrap();
    let log = fs::read_to_string(work.path().join("restore.log")).unwrap();
    assert!(log.ends_with(&format!("] error: {error}")), "{log}");
}

#[test]
fn check_tells_what_works_and_its_json_parses() {
    let output = crr(&["check"]);
    let text = stdout(&output);
    assert!(text.starts_with("kernel ") && text.contains("clone3-set-tid"), "{text}");
    let json: serde_json::Value = serde_json::from_slice(&crr(&["check", "--json"]).stdout).unwrap();
    let features = json["features"].as_array().unwrap();
    let usable = features.iter().all(|feature| feature["present"] == true || feature["required"] == false);
    assert_eq!(output.status.code(), Some(if usable { 0 } else { 1 }));
    for feature in features {
        let name = feature["name"].as_str().unwrap();
        let asked = crr(&["check", "--feature", name]);
        assert_eq!(asked.status.code(), Some(if feature["present"] == true { 0 } else { 1 }), "{name}");
        assert_eq!((stdout(&asked), stderr(&asked)), ("", ""), "{name}");
    }
}

#[test]
fn completions_and_manual_pages_are_generated() {
    for shell in ["bash", "zsh", "fish"] {
        let output = crr(&["completions", shell]);
        assert_eq!(output.status.code(), Some(0));
        assert!(stdout(&output).contains("leave-running"), "{shell}");
    }
    let dir = tempfile::tempdir().unwrap();
    let output = crr(&["man", dir.path().to_str().unwrap()]);
    assert_eq!((output.status.code(), stdout(&output)), (Some(0), ""));
    for page in ["crr.1", "crr-dump.1", "crr-restore.1", "crr-check.1", "crr-show.1"] {
        let text = fs::read_to_string(dir.path().join(page)).unwrap();
        assert!(text.contains(".SH"), "{page}");
    }
}
