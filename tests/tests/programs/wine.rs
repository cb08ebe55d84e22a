//! Windows programs under Wine, out of the tree that `ci/debian-tree` makes for `ci/wine`: a command processor at its prompt, another that counts
//! beside it, the server and the services.

use crate::world::{Running, World};
use anyhow::{Context, ensure};
use nix::mount::{MsFlags, mount};
use nix::unistd::Pid;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use tests::{Result, binaries, wait};

/// Rounds of dump and restore.
const ROUNDS: u32 = 5;

/// Counts in a file, for ever.
const COUNT: &str = r#"start /b cmd /q /c "for /l %i in (1,1,2000000000) do @echo %i>Z:\scratch\count""#;

/// What was typed before a round is known after it, and what was at work goes on.
pub(crate) fn prompt(dir: &Path, program: &str) -> Result {
    let world = enter(dir)?;
    let mut running = start(&world, program)?;
    running.ask("type set rounds=0")?;
    running.ask(&format!("type {COUNT}"))?;
    let mut counted = 0;
    for round in 0..=ROUNDS {
        if round > 0 {
            running.round()?;
            let answer = running.ask("type set /a rounds=%rounds%+1")?;
            ensure!(answer == round.to_string(), "round {round}: the prompt answers {answer:?}");
        }
        let goes_on = wait::until(wait::STEP, "the other one counts on", || {
            running.still_runs()?;
            let text = fs::read_to_string(dir.join("count")).unwrap_or_default();
            let now = text.trim().parse::<u64>().unwrap_or(counted);
            let more = now > counted + 10;
            counted = if more { now } else { counted };
            Ok(more.then_some(()))
        });
        goes_on.with_context(|| format!("round {round}"))?;
    }
    Ok(())
}

/// The tree of Wine with what it needs mounted; crr and its root process stay outside.
fn enter(dir: &Path) -> Result<World> {
    let tree = PathBuf::from(std::env::var_os("CRR_WINE_ROOT").context("run ci/wine")?);
    let programs = Path::new(env!("CARGO_MANIFEST_DIR")).join("programs");
    for name in ["desk.py", "prompt.py"] {
        fs::copy(programs.join(name), dir.join(name))?;
    }
    let none = None::<&str>;
    mount(Some("proc"), &tree.join("proc"), Some("proc"), MsFlags::empty(), none)?;
    mount(Some("/dev"), &tree.join("dev"), none, MsFlags::MS_BIND | MsFlags::MS_REC, none)?;
    mount(Some("tmpfs"), &tree.join("tmp"), Some("tmpfs"), MsFlags::empty(), none)?;
    mount(Some(dir), &tree.join("scratch"), none, MsFlags::MS_BIND, none)?;
    let (crr, script) = (binaries::crr()?, dir.join("prompt.py"));
    Ok(World { root: tree, dir: dir.to_owned(), host: "/".into(), host_dir: dir.to_owned(), script, crr })
}

fn start<'a>(world: &'a World, program: &str) -> Result<Running<'a>> {
    let log = File::create(world.dir.join("log"))?;
    let child = Command::new("setsid")
        .args(["python3".as_ref(), world.script.as_path(), &world.root])
        .arg(program)
        .env("SCRATCH", &world.dir)
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .spawn()?;
    let root = Pid::from_raw(i32::try_from(child.id())?);
    Ok(Running { world, root, dumps: 0, asked: 0 })
}
