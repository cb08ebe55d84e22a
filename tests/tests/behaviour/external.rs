//! Files that stay outside of a checkpoint and are given to the tree when it is restored.

use nix::fcntl::OFlag;
use nix::pty::openpty;
use nix::sys::signal::Signal;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use tests::abi::Abi;
use tests::case::{Running, Workload, nothing_left};
use tests::command::{self, Output};
use tests::isolate::isolated;
use tests::{Result, here, require_ia32, require_root, wait};

fn pipe() -> Result<(OwnedFd, OwnedFd)> {
    Ok(nix::unistd::pipe2(OFlag::O_CLOEXEC)?)
}

/// A name of a descriptor of this process, for others.
fn name(fd: &impl AsRawFd) -> String {
    format!("/proc/{}/fd/{}", std::process::id(), fd.as_raw_fd())
}

/// Starts a case with the files of these names.
fn start(dir: &Path, abi: Abi, workload: &Workload, names: &[String]) -> Result<Running> {
    let dir = dir.join(abi.name());
    fs::create_dir_all(&dir)?;
    fs::write(dir.join("names"), names.join("\n"))?;
    workload.start(&dir, abi)
}

fn external(case: &'static str) -> Workload {
    Workload::new("external", case)
}

/// `crr restore -d` of the newest images by a shell with these redirections, and a key for each descriptor.
fn restore(running: &Running, redirections: &str, given: &[(u32, &str)]) -> Result<Output> {
    let images = running.images().display().to_string();
    let given: Vec<String> = given.iter().map(|(fd, key)| format!("fd[{fd}]:{key}")).collect();
    let given = given.iter().flat_map(|one| ["--inherit-fd", one.as_str()]);
    let args: Vec<&str> = ["restore", "-d", "-D", &images].into_iter().chain(given).collect();
    command::crr_under(&["sh", "-c", &format!("exec \"$@\" {redirections}"), "sh"], &running.dir, &args)
}

fn link(running: &Running, fd: i32) -> Result<PathBuf> {
    Ok(fs::read_link(format!("/proc/{}/fd/{fd}", running.root))?)
}

/// `file[MNT_ID:INODE]` of a descriptor.
fn file_key(running: &Running, fd: i32) -> Result<String> {
    let info = fs::read_to_string(format!("/proc/{}/fdinfo/{fd}", running.root))?;
    let mount: u32 = info.lines().find_map(|line| line.strip_prefix("mnt_id:")).unwrap().trim().parse()?;
    let ino = fs::metadata(format!("/proc/{}/fd/{fd}", running.root))?.ino();
    Ok(format!("file[{mount:x}:{ino:x}]"))
}

fn tty_key(running: &Running, fd: i32) -> Result<String> {
    let there = fs::metadata(format!("/proc/{}/fd/{fd}", running.root))?;
    Ok(format!("tty[{:x}:{:x}]", there.rdev(), there.dev()))
}

/// A pipe with an end outside is refused once, by name of who has it on both sides, with the way out; and taken that way.
#[test]
fn pipes() {
    require_root!();
    require_ia32!();
    isolated(&here!(), |dir| {
        for abi in Abi::ALL {
            let ((heard, said), (asked, told)) = (pipe()?, pipe()?);
            let names = [name(&said), name(&said), name(&asked)];
            let mut running = start(dir, abi, &external("pipes"), &names)?;
            let before = running.snapshot()?;
            // The first ones that the names led to are 4 to 6; 3 is a duplicate of 4.
            let [to, from] = [3, 6].map(|fd| link(&running, fd).unwrap().display().to_string());

            let output = running.dump(&[])?.code(1)?;
            for (fd, pipe) in [(3, &to), (6, &from)] {
                let task = format!("task {} (external): fd {fd} ({pipe})", running.root);
                output.says_with_hint(&format!("{task}: also open in task 1 ("))?;
                output.says(&format!("leave it outside with --external {pipe}"))?;
                assert_eq!(output.stderr.matches(&format!("({pipe})")).count(), 1, "{}", output.stderr);
            }
            running.looks_like(&before)?;

            // CRIU's spelling, and the one in /proc.
            let options = ["--external", &to.replace(':', ""), "--external", &from, "-v4"];
            running
                .dump(&options)?
                .success()?
                .says(&format!("--inherit-fd fd[N]:{to}, N open for writing"))?;
            nothing_left()?;
            refuses_what_does_not_fit(&running, &to, &from)?;
            drop((heard, said, asked, told));

            let ((mut heard, said), (asked, told)) = (pipe()?, pipe()?);
            let redirections = format!("7>{} 8<{}", name(&said), name(&asked));
            restore(&running, &redirections, &[(7, &to), (8, &from)])?.success()?;
            running.looks_like(&before)?;
            drop((said, asked));
            File::from(told).write_all(b"hello\n")?;
            running.verify()?;
            assert_eq!(read(&mut heard)?, "one two three\n");
        }
        Ok(())
    });
}

fn read(from: &mut OwnedFd) -> Result<String> {
    let mut text = String::new();
    File::from(from.try_clone()?).read_to_string(&mut text)?;
    Ok(text)
}

/// All reasons at once, and nothing is made.
fn refuses_what_does_not_fit(running: &Running, to: &str, from: &str) -> Result {
    let output = restore(running, "", &[])?.code(1)?;
    for (key, how) in [(to, "writing"), (from, "reading")] {
        output.says_with_hint(&format!("{key}: stayed outside, and nothing is given for it"))?;
        output.says(&format!(
            "--inherit-fd fd[N]:{key} gives it descriptor N, which is to be open for {how}"
        ))?;
    }
    let (pipe_to_read, _other_end) = pipe()?;
    let redirections = format!("7<{} 8<names", name(&pipe_to_read));
    let given = [(7, to), (8, from), (9, from), (7, "pipe:[1]")];
    let output = restore(running, &redirections, &given)?.code(1)?;
    output.says_with_hint(&format!("{to}: nothing that is given for it is open for writing"))?;
    output.says(&format!("fd[8]:{from}: is a regular file, not a pipe"))?;
    output.says_with_hint(&format!("fd[9]:{from}: this descriptor is not open"))?;
    output.says_with_hint("fd[7]:pipe:[1]: nothing in the checkpoint goes by this key")?;
    nothing_left()
}

/// A file by its key or its name, a terminal, a named pipe.
#[test]
fn files() {
    require_root!();
    require_ia32!();
    isolated(&here!(), |dir| {
        for abi in Abi::ALL {
            let at = |name: &str| dir.join(abi.name()).join(name);
            fs::create_dir_all(at(""))?;
            fs::write(at("journal"), "")?;
            let pty = openpty(None, None)?;
            nix::unistd::mkfifo(&at("fifo"), nix::sys::stat::Mode::S_IRWXU)?;
            let fifo = File::options().read(true).write(true).open(at("fifo"))?;
            let names =
                [at("journal").display().to_string(), name(&pty.slave), at("fifo").display().to_string()];
            let mut running = start(dir, abi, &external("files"), &names)?;

            let (log, tty) = (file_key(&running, 4)?, tty_key(&running, 5)?);
            let fifo_key = file_key(&running, 6)?;
            let output = running.dump(&[])?.code(1)?;
            for key in [&tty, &fifo_key] {
                output.says(&format!("leave it outside with --external {key}"))?;
            }
            let options = ["--external", &log, "--external", &tty, "--external", &fifo_key];
            running.dump(&options)?.success()?;
            nothing_left()?;
            drop((pty, fifo));
            let shown =
                command::crr(&running.dir, &["show", &running.images().display().to_string()])?.success()?;
            for key in [&log, &tty, &fifo_key] {
                assert!(shown.stdout.contains(&format!("--inherit-fd fd[N]:{key}")), "{}", shown.stdout);
            }

            let pty = openpty(None, None)?;
            let (mut heard, said) = pipe()?;
            fs::write(at("other journal"), "begun\n")?;
            let redirections = format!("3>>'other journal' 4<>{} 5>{}", name(&pty.slave), name(&said));
            // The terminal is what it was by its name, too.
            let log = at("journal").display().to_string();
            restore(&running, &redirections, &[(3, &log), (4, &tty), (5, &fifo_key)])?.success()?;
            drop(said);
            running.verify()?;
            assert_eq!(fs::read_to_string(at("journal"))?, "before\n");
            assert_eq!(fs::read_to_string(at("other journal"))?, "begun\nafter\n");
            let mut line = [0; 17];
            File::from(pty.master).read_exact(&mut line)?;
            assert_eq!(&line, b"to the terminal\r\n");
            assert_eq!(read(&mut heard)?, "to the pipe\n");
        }
        Ok(())
    });
}

/// In place of a file that would be opened by its name; it need not be there any more.
#[test]
fn named() {
    require_root!();
    require_ia32!();
    isolated(&here!(), |dir| {
        for abi in Abi::ALL {
            let mut running = start(dir, abi, &external("named"), &[])?;
            running.dump(&[])?.success()?;
            nothing_left()?;
            fs::remove_file(running.dir.join("old"))?;
            let key = running.dir.join("old").display().to_string();
            let output = restore(&running, "3>new", &[(3, &key)])?.code(1)?;
            output.says_with_hint(&format!("{key}: nothing that is given for it is open for reading"))?;
            nothing_left()?;
            // As CRIU takes it.
            let key = key.trim_start_matches('/').to_owned();
            restore(&running, "3>new 4<new", &[(3, &key), (4, &key)])?.success()?;
            let new = running.dir.join("new");
            running.verify()?;
            assert_eq!(fs::read_to_string(new)?, "written");
        }
        Ok(())
    });
}

/// A log program that writes what it reads to a file.
fn log_program(from: OwnedFd, to: &Path) -> Result<Child> {
    let to = File::create(to)?;
    Ok(Command::new("cat").stdin(from).stdout(to).stderr(Stdio::null()).spawn()?)
}

fn lines(log: &Path) -> Result<Vec<String>> {
    Ok(fs::read_to_string(log)?.lines().map(str::to_owned).collect())
}

/// Waits until there is something in a log.
fn grows(log: &Path) -> Result {
    wait::until(wait::STEP, "the service reports", || Ok((lines(log)?.len() > 20).then_some(())))
}

/// A service is restored into another journal program than it had: between the two, every line is there once.
#[test]
fn service() {
    require_root!();
    require_ia32!();
    isolated(&here!(), |dir| {
        for abi in Abi::ALL {
            let logs = [1, 2].map(|number| dir.join(format!("{}-log-{number}", abi.name())));
            let (heard, said) = pipe()?;
            let mut program = log_program(heard, &logs[0])?;
            let mut running = start(dir, abi, &external("service").busy(), &[name(&said)])?;
            drop(said);
            grows(&logs[0])?;
            let key = link(&running, 4)?.display().to_string();
            running.dump(&["--external", &key])?.success()?;
            // It comes to its end: nobody else can write any more.
            assert!(program.wait()?.success());
            nothing_left()?;

            let (heard, said) = pipe()?;
            let mut program = log_program(heard, &logs[1])?;
            restore(&running, &format!("9>{}", name(&said)), &[(9, &key)])?.success()?;
            drop(said);
            grows(&logs[1])?;
            running.signal(Signal::SIGUSR1)?;
            assert!(program.wait()?.success());
            running.passed()?;
            let mut all = [lines(&logs[0])?, lines(&logs[1])?].concat();
            assert_eq!(all.pop().as_deref(), Some("end"));
            let wrong = (0..).zip(&all).find(|(number, line)| **line != format!("line {number}"));
            assert_eq!(wrong, None, "of {} lines", all.len());
        }
        Ok(())
    });
}
