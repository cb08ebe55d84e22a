//! `crr show`: a checkpoint for people, or all of it as JSON.

mod ipc;
mod rounds;
mod sockets;
mod table;
mod terminals;
mod tree;

use super::{Format, Outcome, dirs, print, verbosity};
use crate::progress::bytes;
use crate::resource::external;
use crate::resource::namespace;
use crate::store::{Checkpoint, Round};
use clap::Args;
use images::Abi;
use images::container::Kind;
use images::file::{Description, Target};
use images::inventory::Inventory;
use images::late::Process;
use images::memory::{Backing, Memory, Method};
use serde_json::json;
use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::{Path, PathBuf};
use table::Table;

const EXAMPLES: &str = "\
Examples:
  crr show ckpt                       the tree, its files and pipes
  crr show -v ckpt                    and every thread and memory area
  crr show - < ckpt.tar               one that is a stream
  crr show --json ckpt | jq '.tree.tasks[].pid'";

#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Show {
    /// Directory of the images, or "-" for one stream from the standard input [default: .].
    #[arg(value_name = "DIR", conflicts_with = "images_dir")]
    dir: Option<PathBuf>,

    /// The same, as for the other commands.
    #[arg(short = 'D', long, value_name = "DIR")]
    images_dir: Option<PathBuf>,

    #[command(flatten)]
    format: Format,
}

impl Show {
    pub(super) fn run(&self, level: u8) -> Outcome {
        crate::log::start(None, level)?;
        let named = self.dir.as_ref().or(self.images_dir.as_ref());
        let source = dirs::source(named.map_or(Path::new("."), PathBuf::as_path))?;
        if let Some(round) = Round::open_if(&source)? {
            return print(&rounds::round(&round, self.format.json)?);
        }
        let checkpoint = Checkpoint::open(&source)?;
        if self.format.json {
            return print(&(json(&checkpoint)? + "\n"));
        }
        print(&text(&checkpoint, level >= verbosity::INFO))
    }
}

/// All records. Bytes are text where they are, else numbers or hexadecimal.
fn json(checkpoint: &Checkpoint) -> serde_json::Result<String> {
    let Checkpoint { inventory, tree, files, memory, .. } = checkpoint;
    serde_json::to_string_pretty(&json!({
        "inventory": inventory,
        "tree": tree,
        "files": files,
        "memory": memory,
    }))
}

/// The summary.
fn text(checkpoint: &Checkpoint, verbose: bool) -> String {
    let mut out = head(checkpoint);
    out.push('\n');
    out.push_str(&tree::tree(checkpoint));
    out.push('\n');
    out.push_str(&descriptions(checkpoint));
    if !checkpoint.files.pipes.is_empty() {
        out.push('\n');
        out.push_str(&pipes(checkpoint));
    }
    if !checkpoint.files.externals.is_empty() {
        out.push('\n');
        out.push_str(&externals(&checkpoint.files));
    }
    if !checkpoint.files.unix_sockets.is_empty() {
        out.push('\n');
        out.push_str(&sockets::unix(&checkpoint.files.unix_sockets));
    }
    if !checkpoint.files.inet_sockets.is_empty() {
        out.push('\n');
        out.push_str(&sockets::inet(&checkpoint.files.inet_sockets));
        if let Some(table) = &checkpoint.files.network_hold {
            let _ = writeln!(
                out,
                "\nTraffic of its connections is held by the nftables table inet {table} until the restore."
            );
        }
    }
    if !checkpoint.files.ptys.is_empty() {
        out.push('\n');
        out.push_str(&terminals::ptys(&checkpoint.files.ptys));
    }
    let used = &checkpoint.tree.ipc;
    if !used.semaphore_sets.is_empty() || !used.queues.is_empty() {
        out.push('\n');
        out.push_str(&ipc::ipc(used));
    }
    if verbose {
        for (task, space) in checkpoint.tree.tasks.iter().zip(&checkpoint.memory.spaces) {
            out.push('\n');
            out.push_str(&tree::threads(task));
            out.push_str(&areas(checkpoint, task.pid, space));
        }
    }
    out
}

/// Who made it, when, on what, how large; what is in it.
fn head(checkpoint: &Checkpoint) -> String {
    let inventory = &checkpoint.inventory;
    let count = |abi| checkpoint.tree.tasks.iter().filter(|task| task.abi == abi).count();
    let mut out = made(inventory);
    let _ = write!(
        out,
        "{} tasks ({} x86_64, {} ia32), {} threads, {} pages",
        inventory.tasks,
        count(Abi::X86_64),
        count(Abi::Ia32),
        inventory.threads,
        checkpoint.memory.page_count,
    );
    out + &packed(&checkpoint.memory, inventory) + "\n" + &rounds::chain(inventory, &checkpoint.ancestors)
}

/// The line about who made it.
fn made(inventory: &Inventory) -> String {
    let size: u64 = inventory.files.iter().map(|entry| entry.size).sum();
    format!(
        "crr {}, kernel {}, {}, {}\n",
        printable(inventory.crr_version.as_bytes()),
        printable(inventory.kernel_release.as_bytes()),
        date(inventory.created_ns),
        bytes(size),
    )
}

/// How small pages have become, if they were packed.
fn packed(memory: &Memory, inventory: &Inventory) -> String {
    let Some(packing) = &memory.packing else { return String::new() };
    let stored = inventory.files.iter().find(|entry| entry.kind == Kind::Pages).map_or(0, |entry| entry.size);
    let tenths = memory.page_count * images::id::PAGE_SIZE * 10 / stored.max(1);
    let method = match packing.method {
        Method::Lz4 => "lz4",
        Method::Zstd => "zstd",
    };
    format!(" ({method} {}.{}:1)", tenths / 10, tenths % 10)
}

/// `2026-11-23 16:25:00 UTC`.
fn date(nanoseconds: u64) -> String {
    jiff::Timestamp::from_second(i64::try_from(nanoseconds / 1_000_000_000).unwrap_or(i64::MAX))
        .map_or_else(|_| "unknown date".to_owned(), |time| time.strftime("%F %T UTC").to_string())
}

/// Open files, each once, with everyone who holds it.
fn descriptions(checkpoint: &Checkpoint) -> String {
    let mut holders = vec![String::new(); checkpoint.files.descriptions.len()];
    for task in &checkpoint.tree.tasks {
        let mut own: BTreeMap<usize, String> = BTreeMap::new();
        for entry in &task.fds {
            let _ = write!(own.entry(entry.description.0 as usize).or_default(), " {}", entry.fd);
        }
        for (description, fds) in own {
            let comma = if holders[description].is_empty() { "" } else { ", " };
            let _ = write!(holders[description], "{comma}{}:{fds}", task.pid);
        }
    }
    let mut table = Table::new(["FILE", "MODE", "OFFSET", "HELD AS (PID: FDS)"]);
    for (description, holders) in checkpoint.files.descriptions.iter().zip(holders) {
        let mode = ["r", "w", "rw", "-"][(description.flags & 3) as usize].to_owned();
        table.row([target(checkpoint, description), mode, description.position.to_string(), holders]);
    }
    table.to_string()
}

fn target(checkpoint: &Checkpoint, description: &Description) -> String {
    let path = |index: u32| name_of(&checkpoint.files.paths[index as usize]);
    match description.target {
        Target::Path(id) => path(id.0),
        Target::Terminal(id) => format!("{} (terminal)", path(id.0)),
        Target::Pipe(pipe) => match &checkpoint.files.pipes[pipe as usize].fifo {
            Some(fifo) => format!("{} (pipe#{pipe})", path(fifo.path.0)),
            None => format!("pipe#{pipe}"),
        },
        Target::UnixSocket(socket) => format!("socket#{socket}"),
        Target::InetSocket(socket) => format!("inet#{socket}"),
        Target::NetlinkSocket(socket) => {
            let socket = &checkpoint.files.netlink_sockets[socket as usize];
            format!("netlink socket of protocol {}, port {}", socket.protocol, socket.port)
        }
        Target::PacketSocket(socket) => {
            let socket = &checkpoint.files.packet_sockets[socket as usize];
            let interface = checkpoint.files.interfaces.iter().find(|one| one.number == socket.interface);
            let name = interface.map_or_else(|| "any".to_owned(), |interface| printable(&interface.name));
            format!("packet socket of protocol {:#06x}, interface {name}", socket.protocol)
        }
        Target::Pty { pty, path: id, .. } => format!("{} (pty#{pty})", path(id.0)),
        Target::External(id) => {
            format!("{} (external)", printable(&checkpoint.files.externals[id as usize].name))
        }
        Target::Eventfd(event) => format!("eventfd: {}", event.count),
        Target::Timerfd(timer) => format!("timerfd on clock {}", timer.clock),
        Target::Signalfd(signals) => format!("signalfd: {signals:#x}"),
        Target::Pidfd(Process::InTree(pid)) => format!("pidfd of {pid}"),
        Target::Pidfd(Process::Gone { .. }) => "pidfd of a process that is gone".to_owned(),
        Target::TaskFile(index) => {
            let file = &checkpoint.files.task_files[index as usize];
            format!("{}/{}/{}", printable(&file.procfs), file.pid, printable(&file.name))
        }
        Target::MessageQueue(index) => {
            let queue = &checkpoint.files.message_queues[index as usize];
            let gone = if queue.unlinked { " (deleted)" } else { "" };
            let contents = match &queue.contents {
                Some(messages) => format!("{} messages", messages.len()),
                None => "messages not recorded".to_owned(),
            };
            format!("message queue /{}{gone}, {contents}", printable(&queue.name))
        }
        Target::BpfMap(index) => {
            let map = &checkpoint.files.bpf_maps[index as usize];
            match map.pin.as_slice() {
                b"" => format!("BPF map {}, {} entries", printable(&map.name), map.entries()),
                pin => format!("BPF map {}", printable(pin)),
            }
        }
        Target::Namespace(kind) => format!("namespace {}", namespace::name(kind)),
        Target::Epoll(epoll) => {
            format!("epoll of {}", checkpoint.files.epolls[epoll as usize].watches.len())
        }
        Target::Inotify(group) => {
            format!("inotify of {}", checkpoint.files.inotifies[group as usize].watches.len())
        }
        Target::Fanotify(group) => {
            format!("fanotify of {}", checkpoint.files.fanotifies[group as usize].marks.len())
        }
    }
}

/// A path as `/proc` shows it.
fn name_of(path: &images::file::Path) -> String {
    printable(&path.path) + if path.is_gone() { " (deleted)" } else { "" }
}

fn pipes(checkpoint: &Checkpoint) -> String {
    let mut table = Table::new(["PIPE", "CAPACITY", "UNREAD"]);
    for (index, pipe) in checkpoint.files.pipes.iter().enumerate() {
        let unread = bytes(pipe.contents.len() as u64);
        table.row([format!("pipe#{index}"), bytes(pipe.capacity.into()), unread]);
    }
    table.to_string()
}

/// What stayed outside, and what a restore takes in its place.
fn externals(files: &images::file::Files) -> String {
    let mut table = Table::new(["OUTSIDE", "TO BE GIVEN AT RESTORE"]);
    for (external, argument) in files.externals.iter().zip(external::arguments(files)) {
        table.row([printable(&external.name), argument]);
    }
    table.to_string()
}

/// The memory map of one task, with the bytes saved of each area.
fn areas(checkpoint: &Checkpoint, pid: images::Pid, space: &images::memory::Space) -> String {
    let mut out = format!("memory of {pid}\n");
    let mut table = Table::new(["ADDRESS", "PROT", "SAVED", "BACKING"]);
    for vma in &space.vmas {
        let [from, to] = [vma.start, vma.end].map(|end| space.runs.partition_point(|run| run.start < end));
        let saved: u64 = space.runs[from..to].iter().map(|run| run.pages * images::id::PAGE_SIZE).sum();
        let bit = |bit, letter| if vma.prot & bit == 0 { '-' } else { letter };
        table.row([
            format!("{:08x}-{:08x}", vma.start.0, vma.end.0),
            [bit(1, 'r'), bit(2, 'w'), bit(4, 'x')].iter().collect(),
            bytes(saved),
            backing(checkpoint, vma.backing),
        ]);
    }
    let _ = write!(out, "{table}");
    out
}

fn backing(checkpoint: &Checkpoint, backing: Backing) -> String {
    let file = |id: images::PathId, offset: u64| {
        format!("{} +{offset:#x}", name_of(&checkpoint.files.paths[id.0 as usize]))
    };
    match backing {
        Backing::Anonymous => "anonymous".to_owned(),
        Backing::HugePages(_) => "huge pages".to_owned(),
        Backing::PrivateFile(id, offset) => file(id, offset),
        Backing::SharedFile(id, offset) => format!("{} shared", file(id, offset)),
        Backing::Shared(id, offset) => format!("{id} +{offset:#x}"),
        Backing::AioRing => "AIO context".to_owned(),
        Backing::Vdso(_) => "[vdso]".to_owned(),
        Backing::Vvar => "[vvar]".to_owned(),
        Backing::VvarVclock => "[vvar_vclock]".to_owned(),
    }
}

/// Names from images, safe for a terminal: control characters and what is no UTF-8 are escaped.
fn printable(bytes: &[u8]) -> String {
    let mut out = String::new();
    for chunk in bytes.utf8_chunks() {
        for character in chunk.valid().chars() {
            if character.is_control() {
                out.extend(character.escape_default());
            } else {
                out.push(character);
            }
        }
        for byte in chunk.invalid() {
            let _ = write!(out, "\\x{byte:02x}");
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_cannot_drive_a_terminal() {
        assert_eq!(printable(b"a\x1b[2Jb\n\xff\xc3\xa9"), "a\\u{1b}[2Jb\\n\\xff\u{e9}");
    }

    #[test]
    fn dates_are_utc() {
        assert_eq!(date(1_790_000_000_123_456_789), "2026-09-21 14:13:20 UTC");
        assert_eq!(date(u64::MAX), "2554-07-21 23:34:33 UTC");
    }
}
