//! Programs that draw on a terminal: tmux with windows in it, and less.

use crate::ROUNDS;
use crate::world::{Running, World};
use anyhow::{Context, ensure};
use std::fmt::Write;
use std::fs;
use tests::{Result, wait};

/// Rows of a terminal whose size nobody has set.
const ROWS: usize = 24;

/// Writes a text of numbered lines to page through.
fn write_text(world: &World) -> Result {
    let mut text = String::new();
    for number in 1..=1000 {
        writeln!(text, "line {number} of the text")?;
    }
    fs::write(world.dir.join("text"), text)?;
    Ok(())
}

/// What less shows on a page, counted from 0: the last row is its prompt.
fn page(number: usize) -> String {
    let first = number * (ROWS - 1) + 1;
    (first..first + ROWS - 1).fold(String::new(), |page, line| page + &format!("line {line} of the text\n"))
}

/// Waits until an answer to a command contains a text.
fn contains(running: &mut Running<'_>, command: &str, text: &str) -> Result {
    let mut answer = String::new();
    let shown = wait::until(wait::STEP, &format!("{command} contains {text:?}"), || {
        answer = running.ask(command)?;
        Ok(answer.contains(text).then_some(()))
    });
    shown.with_context(|| answer)
}

/// tmux with a shell, a pager and an editor below a shell, dumped with a client and without one: what its windows show stays, and
/// each works on, with keys from tmux itself and from a client, which was attached before the dump or is so after it.
pub(crate) fn tmux(world: &World) -> Result {
    write_text(world)?;
    // What comes faster than a millisecond after the key before would be text that is pasted, and not a key to tmux.
    let settings = "set -g status off\nset -g escape-time 0\nset -g assume-paste-time 0\n";
    fs::write(world.dir.join("tmux.conf"), settings)?;
    let mut running = world.start(&["/usr/bin/python3", "/scratch/windows.py"])?;
    let shell = "/bin/bash --norc --noprofile";
    running.ask(&format!("tmux new-session -d -x 80 -y {ROWS} env PS1=prompt> {shell}"))?;
    running.ask("tmux new-window /usr/bin/less /scratch/text")?;
    running.ask(&format!("tmux new-window env PS1=prompt> {shell}"))?;
    running.ask("tmux send-keys -t :0 name=$(tty) Enter")?;
    running.ask("tmux send-keys -t :2 vi Space -u Space NONE Space /scratch/edited Enter")?;
    contains(&mut running, "tmux capture-pane -p -t :2", "/scratch/edited")?;
    contains(&mut running, "tmux capture-pane -p -t :1", &page(0))?;

    let mut lines = String::new();
    for round in 1..=ROUNDS {
        let attached = round % 2 == 0;
        if attached {
            attach(&mut running)?;
        }
        let all = ["tmux capture-pane -p -t :0", "tmux capture-pane -p -t :1", "tmux capture-pane -p -t :2"];
        let before = all.map(|window| running.ask(window));
        running.round()?;
        for (window, before) in all.into_iter().zip(before) {
            let (before, after) = (before?, running.ask(window)?);
            ensure!(before == after, "round {round}: {window} gives\n{after}\nafter\n{before}");
        }
        // By tmux.
        running.ask("tmux send-keys -t :1 Space")?;
        contains(&mut running, all[1], &page(round as usize))?;
        // By a client: to the editor, which is stopped and continued by the shell that it is under, ...
        if !attached {
            attach(&mut running)?;
        }
        for key in [2, b'2', b'o'] {
            running.ask(&format!("key {key}"))?;
        }
        running.ask(&format!("half a line of round {round}"))?;
        running.ask("key 27")?;
        running.ask("half :w")?;
        running.ask("key 13")?;
        lines += &format!("a line of round {round}\n");
        wait::until(wait::STEP, "the editor writes its file", || {
            Ok(world.read("edited").is_ok_and(|edited| edited.trim_start() == lines).then_some(()))
        })?;
        running.ask("key 26")?;
        contains(&mut running, all[2], "Stopped")?;
        running.ask("half fg")?;
        running.ask("key 13")?;
        contains(&mut running, all[2], &lines)?;
        // ... and to the shell.
        running.ask("key 2")?;
        running.ask("key 48")?;
        running.ask(&format!("half echo round-$((100 + {round}))-$name"))?;
        running.ask("key 13")?;
        contains(&mut running, "screen", &format!("round-{}-/dev/pts/", 100 + round))?;
        running.ask("key 2")?;
        running.ask("key 50")?;
        running.ask("detach")?;
    }
    running.ask("tmux kill-server")?;
    Ok(())
}

/// A client of tmux that has drawn the editor: what is typed before that is lost.
fn attach(running: &mut Running<'_>) -> Result {
    running.ask("attach")?;
    contains(running, "screen", "~  ")
}

/// less on a terminal of its own: pages on, searches, and shows the same page again.
pub(crate) fn less(world: &World, python: &str) -> Result {
    write_text(world)?;
    let program = ["/usr/bin/env", "TERM=vt100", "/usr/bin/less", "/scratch/text"];
    let mut running = world.start(&[&[python, "/scratch/shell.py"], &program[..]].concat())?;
    let drawn = |number| page(number).replace('\n', "|");
    contains(&mut running, "screen", &drawn(0))?;
    for round in 1..=ROUNDS {
        running.ask("half /")?;
        running.round()?;
        running.ask(&format!("type line {}00", round + 3))?;
        contains(&mut running, "screen", &format!("line {}05 of the text", round + 3))?;
        running.round()?;
        // Back to where it was.
        running.ask("half ''")?;
        running.ask("key 32")?;
        contains(&mut running, "screen", &drawn(round as usize))?;
    }
    Ok(())
}
