//! Pseudo terminals: their numbers, whom they control, and what waits in them.

use super::table::Table;
use crate::progress::bytes;
use images::terminal::Pty;

pub(super) fn ptys(ptys: &[Pty]) -> String {
    let mut table = Table::new(["PTY", "NUMBER", "WINDOW", "SESSION", "FOREGROUND", "INPUT", "OUTPUT"]);
    for (index, pty) in ptys.iter().enumerate() {
        let (name, number) = (format!("pty#{index}"), pty.number.to_string());
        let Some(live) = &pty.live else {
            let [window, session, foreground, input, output] = std::array::from_fn(|_| String::new());
            table.row([name, format!("{number} (hung up)"), window, session, foreground, input, output]);
            continue;
        };
        let [rows, columns, ..] = live.window;
        let control = live.control.as_ref();
        let id = |id: Option<images::Pid>| id.map_or_else(|| "-".to_owned(), |id| id.to_string());
        let typed: usize = live.input.iter().map(|line| line.bytes.len()).sum();
        table.row([
            name,
            number,
            format!("{columns}x{rows}"),
            id(control.map(|control| control.sid)),
            id(control.map(|control| control.foreground)),
            bytes(typed as u64),
            bytes(live.output.len() as u64),
        ]);
    }
    table.to_string()
}
