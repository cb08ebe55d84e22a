//! Records that are well-formed and make no sense together: one case per rule of [`crate::store::check`].

use super::sample::Sample;
use crate::store::check::records;
use images::aio::AioContext;
use images::bpf::BpfMap;
use images::container::Kind;
use images::event::{Eventfd, Notify, Timerfd, Watch};
use images::external::ExternalKind;
use images::fanotify::{Fanotify, Scope};
use images::file::{Deleted, OtherName, Target};
use images::inet::{InetProtocol, InetSocket, InetState, TcpUrgent};
use images::inotify::Inotify;
use images::late::{Process, TaskFile};
use images::memory::{Backing, Chunk, Guard, Method, Packing, Run, Shared, vm};
use images::mqueue::MessageQueue;
use images::pipe::{Buffer, Fifo};
use images::seccomp::Seccomp;
use images::signal::Pending;
use images::socket::{Credentials, Message, Peer, UnixKind, UnixSocket};
use images::socket_option::{SocketOption, SocketOptions};
use images::sysv::{Ipc, Object, UndoList};
use images::task::{End, GroupStop};
use images::terminal::{Control, Line, LineEnd, LivePty, PtyEnd};
use images::{Abi, Addr, DescriptionId, FilterId, PathId, SharedId};

/// Checks that a change of the golden checkpoint is refused with a message.
#[track_caller]
fn refused(message: &str, change: impl FnOnce(&mut Sample)) {
    let mut sample = Sample::golden();
    records(&sample.inventory, &sample.tree, &sample.files, &sample.memory).unwrap();
    change(&mut sample);
    let wrong = records(&sample.inventory, &sample.tree, &sample.files, &sample.memory).unwrap_err();
    let text = wrong.to_string();
    assert_eq!(text.replacen(": is inconsistent", "", 1), message);
}

/// A description that the golden checkpoint does not have, and what is said of it.
fn missing() -> (DescriptionId, String) {
    let count = Sample::golden().files.descriptions.len();
    (DescriptionId(u32::try_from(count).unwrap()), format!("description#{count} of {count}"))
}

/// The name of the second pipe.
fn named(sample: &mut Sample) -> &mut Fifo {
    sample.files.pipes[1].fifo.as_mut().unwrap()
}

#[test]
fn inventory() {
    refused("inventory.img: pages.img is not listed", |s| {
        s.inventory.files.retain(|f| f.kind != Kind::Pages)
    });
    refused("inventory.img: 5 files are listed, not 4", |s| {
        s.inventory.files.push(s.inventory.files[0].clone())
    });
    refused("inventory.img: pages.img has 1 bytes, the memory map 24576", |s| s.inventory.files[3].size = 1);
    refused("inventory.img: the root is task 7, not that of the tree", |s| s.inventory.root = 7);
    refused("inventory.img: 3 tasks, the tree has 2", |s| s.inventory.tasks = 3);
    refused("inventory.img: 1 threads, the tree has 4", |s| s.inventory.threads = 1);
    refused("inventory.img: ABIs {Ia32}, the tree has {X86_64, Ia32}", |s| {
        s.inventory.abis = vec![Abi::Ia32]
    });
}

#[test]
fn places_in_the_tree() {
    refused("tree.img: task 0: is no pid", |s| s.tree.tasks[0].pid = 0);
    refused("tree.img: task 4194305: is no pid", |s| s.tree.tasks[1].pid = (1 << 22) + 1);
    refused("tree.img: task 100: occurs twice", |s| s.tree.tasks[1].pid = 100);
    refused("tree.img: task 101: has negative relatives", |s| s.tree.tasks[1].sid = -1);
    refused("tree.img: task 101: its parent 55 does not stand before it", |s| s.tree.tasks[1].ppid = 55);
    refused("tree.img: task 101: its parent 101 does not stand before it", |s| s.tree.tasks[1].ppid = 101);
    refused("tree.img: task 100: its leader does not stand first", |s| s.tree.tasks[0].threads.swap(0, 1));
    refused("tree.img: task 100: its leader does not stand first", |s| s.tree.tasks[0].threads.clear());
    refused("tree.img: task 101: tid 1100 occurs twice", |s| s.tree.tasks[1].threads[1].tid = 1100);
    refused("tree.img: the parent of the root, 1101, is in the tree", |s| s.tree.tasks[0].ppid = 1101);
    refused("tree.img: the shell has session -5, group 100", |s| s.tree.shell_job.as_mut().unwrap().sid = -5);
    refused("tree.img: there is no task", |s| s.tree.tasks.clear());
}

#[test]
fn zombies() {
    refused("tree.img: zombie 0: is no pid", |s| s.tree.zombies[0].pid = 0);
    refused("tree.img: zombie 101: its pid occurs twice", |s| s.tree.zombies[0].pid = 101);
    refused("tree.img: zombie 103: its parent 102 is not in the tree", |s| s.tree.zombies[1].ppid = 102);
    refused("tree.img: zombie 102: has negative relatives", |s| s.tree.zombies[0].pgid = -2);
    refused("tree.img: zombie 102: a name of 16 bytes", |s| s.tree.zombies[0].comm = vec![b'x'; 16]);
    refused("tree.img: zombie 103: killed by signal 17", |s| s.tree.zombies[1].end = End::Killed(17));
    refused("tree.img: zombie 103: below or in the group of a task that has to be cloned", |s| {
        s.tree.zombies[1].ppid = 101
    });
}

#[test]
fn sharing() {
    refused("tree.img: task 101: exit signal 65", |s| s.tree.tasks[1].exit_signal = 65);
    refused("tree.img: no task could make 101 share as they do", |s| s.tree.tasks[1].exit_signal = 0);
    refused("tree.img: task 101: shares with 101, which does not stand before it", |s| {
        s.tree.tasks[1].shares.directories = Some(101)
    });
    refused("tree.img: task 101: has other directories than those of 100", |s| s.tree.tasks[1].umask = 0);
    refused("tree.img: task 101: has files beside those of 100", |s| {
        s.tree.tasks[1].shares.files = Some(100)
    });
    refused("tree.img: task 101: has actions beside those of 100", |s| {
        s.tree.tasks[1].shares.handlers = Some(100)
    });
    refused("tree.img: task 101: has another ABI than the memory of 100", |s| {
        s.tree.tasks[1].shares.memory = Some(100)
    });
    refused("tree.img: task 100: shares with 99, which does not stand before it", |s| {
        s.tree.tasks[0].shares.files = Some(99)
    });
    let same_abi = |s: &mut Sample| {
        let mut child = s.tree.tasks[0].clone();
        (child.pid, child.ppid) = (101, 100);
        child.threads.truncate(1);
        child.threads[0].tid = 101;
        child.shares.memory = Some(100);
        s.tree.tasks[1] = child;
    };
    refused("memory.img: task 101: has memory beside that of 100", |s| {
        same_abi(s);
        s.memory.spaces[1].vmas.clear();
        s.memory.spaces[1].runs.clear();
        s.memory.spaces[1].policies.clear();
        s.memory.spaces[1].guards.clear();
        s.memory.spaces[1].names.clear();
        s.memory.spaces[1].aio.clear();
        s.memory.spaces[1].auxv = vec![0; 16];
    });
    refused("tree.img: task 101: is dumpable unlike the memory of 100", |s| {
        same_abi(s);
        s.tree.tasks[1].dumpable = 0;
    });
    refused("tree.img: task 105: shares what is not the own of 101", |s| {
        same_abi(s);
        let mut third = s.tree.tasks[1].clone();
        (third.pid, third.threads[0].tid) = (105, 105);
        third.shares.memory = Some(101);
        s.tree.tasks.push(third);
    });
}

#[test]
fn properties_of_tasks() {
    refused("tree.img: task 100: exe: path#9 of 9 paths", |s| s.tree.tasks[0].exe = PathId(9));
    refused("tree.img: task 100: cwd: path#9 of 9 paths", |s| s.tree.tasks[0].cwd = PathId(9));
    refused("tree.img: task 100: root: path#4294967295 of 9 paths", |s| {
        s.tree.tasks[0].root = PathId(u32::MAX)
    });
    refused("tree.img: task 100: umask 0o1000", |s| s.tree.tasks[0].umask = 0o1000);
    refused("tree.img: task 100: dumpable 3", |s| s.tree.tasks[0].dumpable = 3);
    refused("tree.img: task 100: oom_score_adj 1001", |s| s.tree.tasks[0].oom_score_adj = 1001);
    refused("tree.img: task 100: 15 resource limits, not 16", |s| s.tree.tasks[0].rlimits.truncate(15));
    refused("tree.img: task 100: resource limit 3 is over its maximum", |s| {
        s.tree.tasks[0].rlimits[3] = (2, 1)
    });
    refused("tree.img: task 100: an action on signal 65", |s| s.tree.tasks[0].actions[0].signal = 65);
    refused("tree.img: task 100: an action on signal 9, which has none", |s| {
        s.tree.tasks[0].actions[0].signal = 9
    });
    refused("tree.img: task 100: two actions on signal 17", |s| {
        let action = s.tree.tasks[0].actions[0];
        s.tree.tasks[0].actions.push(action);
    });
    refused("tree.img: task 100: a lock by fd 8, which is not open", |s| s.tree.tasks[0].locks[0].fd.0 = 8);
    refused("tree.img: task 100: a lease on a part of a file", |s| s.tree.tasks[0].locks[1].len = 1);
    refused("tree.img: task 100: a lock from 0x8000000000000000 on", |s| {
        s.tree.tasks[0].locks[0].start = 1 << 63;
    });
    refused("tree.img: task 100: stopped by signal 10", |s| {
        s.tree.tasks[0].stopped = Some(GroupStop { signal: 10, told: false });
    });
    refused("tree.img: task 100: stopped with SIGCONT pending", |s| {
        s.tree.tasks[0].stopped = Some(GroupStop { signal: 19, told: false });
        let mut info = vec![0; 128];
        info[0] = 18;
        s.tree.tasks[0].threads[0].pending.push(Pending { info });
    });
    refused(&format!("tree.img: task 100: fd 1: {} descriptions", missing().1), |s| {
        s.tree.tasks[0].fds[1].description = missing().0;
    });
    refused("tree.img: task 100: fd 1 is out of order", |s| s.tree.tasks[0].fds.swap(1, 2));
    refused("tree.img: task 100: fd 4294967295 is no number of a file", |s| {
        s.tree.tasks[0].fds[3].fd.0 = u32::MAX
    });
}

#[test]
fn timers() {
    refused("tree.img: task 100: POSIX timer -1", |s| s.tree.tasks[0].timers[0].id = -1);
    refused("tree.img: task 100: POSIX timer 3 sends signal 65", |s| s.tree.tasks[0].timers[0].signal = 65);
    refused("tree.img: task 100: POSIX timer 3 signals thread 7, which is not there", |s| {
        s.tree.tasks[0].timers[0].thread = 7;
    });
    refused("tree.img: task 100: POSIX timer 3 is out of order", |s| {
        let timer = s.tree.tasks[0].timers[0];
        s.tree.tasks[0].timers.push(timer);
    });
}

#[test]
fn properties_of_threads() {
    refused("tree.img: task 100: thread -4: is no tid", |s| s.tree.tasks[0].threads[1].tid = -4);
    refused("tree.img: task 100: its leader has two personalities", |s| {
        s.tree.tasks[0].threads[0].personality = Some(0);
    });
    refused("tree.img: task 100: thread 100: a name of 16 bytes", |s| {
        s.tree.tasks[0].threads[0].comm = vec![b'x'; 16]
    });
    refused("tree.img: task 100: thread 100: a name with a NUL", |s| {
        s.tree.tasks[0].threads[0].comm = vec![0]
    });
    for size in [0, 511, 513, 575, 65_537] {
        refused(&format!("tree.img: task 100: thread 100: extended state of {size} bytes"), |s| {
            s.tree.tasks[0].threads[0].xstate = vec![0; size];
        });
    }
    refused("tree.img: task 100: thread 100: 65537 groups", |s| {
        s.tree.tasks[0].threads[0].creds.groups = vec![0; 65_537];
    });
    refused("tree.img: task 100: thread 100: death signal 65", |s| {
        s.tree.tasks[0].threads[0].parent_death_signal = 65;
    });
    refused("tree.img: task 100: thread 100: no processor to run on", |s| {
        s.tree.tasks[0].threads[0].sched.affinity.clear();
    });
    refused("tree.img: task 100: thread 100: has ended, and has what only the living have", |s| {
        s.tree.tasks[0].threads[0].exited = Some(7)
    });
    refused("tree.img: task 100: thread 1100: has ended, and is no leader", |s| {
        s.tree.tasks[0].threads[1].exited = Some(7)
    });
    refused("tree.img: task 100: all its threads have ended", |s| {
        s.tree.tasks[0].threads.truncate(1);
        s.tree.tasks[0].threads[0].exited = Some(7)
    });
    refused("tree.img: task 100: thread 100: nice value 20", |s| s.tree.tasks[0].threads[0].sched.nice = 20);
    refused("tree.img: task 101: thread 101: TLS in slot 6", |s| s.tree.tasks[1].threads[0].tls[0].entry = 6);
    refused("tree.img: task 101: thread 101: TLS slot 12 occurs twice", |s| {
        let entry = s.tree.tasks[1].threads[0].tls[0];
        s.tree.tasks[1].threads[0].tls.push(entry);
    });
    refused("tree.img: task 100: thread 100: a pending signal of 127 bytes, not 128", |s| {
        s.tree.tasks[0].threads[0].pending[0].info.pop();
    });
    refused("tree.img: task 100: thread 100: a pending signal 0", |s| {
        s.tree.tasks[0].threads[0].pending[0].info.fill(0);
    });
    for signal in [9, 19] {
        let message = format!("a pending signal {signal}, which no task survives");
        refused(&format!("tree.img: task 100: thread 100: {message}"), |s| {
            s.tree.tasks[0].threads[0].pending[0].info[0] = signal;
        });
    }
    refused("tree.img: task 100: thread 100: seccomp without a filter", |s| {
        s.tree.tasks[0].threads[0].seccomp = Seccomp::Filters { filters: Vec::new(), speculation: true };
    });
    refused("tree.img: task 100: thread 100: filter#2 of 2 filters", |s| {
        s.tree.tasks[0].threads[0].seccomp =
            Seccomp::Filters { filters: vec![FilterId(1), FilterId(2)], speculation: true };
    });
    refused("tree.img: task 101: LDT entry 8192", |s| s.tree.tasks[1].ldt[0].entry = 8192);
    refused("tree.img: task 101: LDT entry 3 is out of order", |s| {
        let entry = s.tree.tasks[1].ldt[0];
        s.tree.tasks[1].ldt.push(entry);
    });
    for (place, name, value) in [(17, "cs", 0x30), (20, "ss", 0), (26, "gs", 0x28), (21, "fs", 1 << 63)] {
        let message = format!("thread 101: its {name} cannot be {value:#x}");
        refused(&format!("tree.img: task 101: {message}"), |s| {
            s.tree.tasks[1].threads[0].regs.0[place] = value;
        });
    }
}

#[test]
fn files() {
    refused("files.img: path#1: is not absolute", |s| s.files.paths[1].path = b"bin/sh".to_vec());
    refused("files.img: path#1: is not absolute", |s| s.files.paths[1].path.clear());
    refused("files.img: path#1: has a NUL", |s| s.files.paths[1].path = b"/bin/\0".to_vec());
    refused("files.img: path#1: has 4096 bytes, the kernel takes 4095", |s| {
        s.files.paths[1].path = vec![b'/'; 4096]
    });
    refused("files.img: path#1: is of no kind of file (mode 0o30644)", |s| {
        s.files.paths[1].mode = 0o030_644;
    });
    refused("files.img: path#7: deleted, and a view of the kernel's state", |s| s.files.paths[7].view = true);
    let other = |s: &mut Sample, name: &[u8]| {
        s.files.paths[4].other_name = Some(Box::new(OtherName { name: name.to_vec(), helper: true }));
    };
    refused("files.img: path#4: other name: is not absolute", |s| other(s, b"helper"));
    let not_made = "other name: is none that a dump makes, and is to be removed";
    refused(&format!("files.img: path#4: {not_made}"), |s| other(s, b"/helper"));
    refused("files.img: path#4: under another name, and no file", |s| {
        let helper = format!("/.crr-link-{}-1", s.files.paths[4].ino);
        other(s, helper.as_bytes());
        s.files.paths[4].mode = 0o040_755;
    });
    refused("files.img: path#7: deleted, and under another name", |s| {
        s.files.paths[7].other_name = Some(Box::new(OtherName { name: b"/a".to_vec(), helper: false }));
    });
    refused("files.img: description#3: a name alone leads to path#4, without O_PATH", |s| {
        s.files.paths[4].other_name = None;
        s.files.paths[4].mode = 0o010_644;
    });
    refused("memory.img: task 100: 0x8048000-0x8058000: maps path#1, which is no file", |s| {
        s.files.paths[1].embedded = None;
        s.files.paths[1].mode = 0o010_644;
    });
    refused("files.img: path#1: has a time of 1000000000 ns", |s| s.files.paths[1].mtime.1 = 1_000_000_000);
    let deleted =
        |s: &mut Sample, change: fn(&mut Deleted)| change(s.files.paths[7].deleted.as_mut().unwrap());
    refused("files.img: path#7: a memfd has seals, and nothing else", |s| {
        deleted(s, |deleted| deleted.seals = None)
    });
    refused("files.img: path#7: has an attribute that cannot be named", |s| {
        deleted(s, |deleted| deleted.xattrs[0].0.push(0));
    });
    refused("files.img: path#7: deleted, and neither file, directory nor FIFO", |s| {
        s.files.paths[7].mode = 0o020_644
    });
    refused("files.img: path#1: embedded: a memfd has seals, and nothing else", |s| {
        s.files.paths[1].embedded.as_mut().unwrap().seals = Some(0);
    });
    refused("files.img: path#1: embedded, and no file", |s| s.files.paths[1].mode = 0o040_755);
    refused("files.img: path#1: contents up to 0x2000 of 0x10", |s| s.files.paths[1].size = 0x10);
    refused("files.img: path#7: contents up to 0x2000 of 0x1000", |s| s.files.paths[7].size = 0x1000);
    refused("files.img: path#7: contents at 0x1000: pages 6+1 of 6", |s| {
        deleted(s, |deleted| deleted.runs[0].first_page = 6);
    });
    refused("files.img: pipe#0: has a capacity of 2147483648 bytes", |s| s.files.pipes[0].capacity = 1 << 31);
    refused("files.img: pipe#1: holds 8 bytes in buffers of 9", |s| s.files.pipes[1].buffers[0].bytes = 4);
    refused("files.img: pipe#1: has a buffer with nothing in it", |s| {
        s.files.pipes[1].buffers.push(Buffer { bytes: 0, packet: true })
    });
    refused("files.img: pipe#1: path#99 of 9 paths", |s| named(s).path = PathId(99));
    refused("files.img: pipe#1: has the name of what is no FIFO (mode 0o100755)", |s| {
        named(s).path = PathId(1)
    });
    refused("files.img: pipe#1: description#1 is no read end of it", |s| {
        named(s).unpaired = vec![DescriptionId(1)]
    });
    refused("files.img: external#1: has the key of another one, pipe:[7001]", |s| {
        s.files.externals[1] = s.files.externals[0].clone()
    });
    refused("files.img: external#2: has no description", |s| {
        s.files.descriptions[16].target = Target::External(1)
    });
    refused("files.img: external#0: has the key \"pipe[7001]\"", |s| {
        s.files.externals[0].key = "pipe[7001]".into()
    });
    refused("files.img: external#0: is a Terminal by the key pipe:[7001]", |s| {
        s.files.externals[0].kind = ExternalKind::Terminal
    });
    refused("files.img: external#3: is a Pipe by the key unix[7004]", |s| {
        s.files.externals[3].kind = ExternalKind::Pipe
    });
    refused("files.img: external#2: is a File(33188) by the key file[1d:4d2]", |s| {
        s.files.externals[2].kind = ExternalKind::File(0o100_644)
    });
    refused("files.img: description#14: external#4 of 4 externals", |s| {
        s.files.descriptions.insert(14, s.files.descriptions[14].clone());
        s.files.descriptions[14].target = Target::External(4)
    });
    refused("files.img: pipe#0: holds 9 bytes, more than its capacity of 8", |s| {
        s.files.pipes[0].capacity = 8
    });
    refused("files.img: description#0: path#9 of 9 paths", |s| {
        s.files.descriptions[0].target = Target::Terminal(PathId(9));
    });
    refused("files.img: description#3: path#9 of 9 paths", |s| {
        s.files.descriptions[3].target = Target::Path(PathId(9))
    });
    refused("files.img: description#1: pipe#2 of 2 pipes", |s| {
        s.files.descriptions[1].target = Target::Pipe(2)
    });
    refused("files.img: description#4: socket#7 of 7 sockets", |s| {
        s.files.descriptions[4].target = Target::UnixSocket(7)
    });
    refused("files.img: socket#0 has two descriptions", |s| {
        s.files.descriptions[3].target = Target::UnixSocket(0)
    });
    refused("files.img: description#3: has offset 0x8000000000000000", |s| {
        s.files.descriptions[3].position = 1 << 63;
    });
}

/// Gives the first option a value that is longer than any.
fn lengthen(options: &mut SocketOptions) {
    let longer = options.iter().take(1).map(|option| SocketOption { value: &[0; 257], ..option });
    *options = longer.chain(options.iter().skip(1)).collect();
}

#[test]
fn unix_sockets() {
    for peer in [0, 2, 3, 7] {
        let what = format!("is connected to socket#{peer}, which is not connected to it");
        refused(&format!("files.img: socket#0: {what}"), |s| {
            s.files.unix_sockets[0].peer = Peer::Socket(peer)
        });
    }
    let refused = |what: &str, change: fn(&mut UnixSocket)| {
        refused(&format!("files.img: socket#0: {what}"), |s| change(&mut s.files.unix_sockets[0]));
    };
    refused("is shut down as 0x4", |s| s.shutdown = 4);
    refused("has messages that nobody can have sent", |s| s.peer = Peer::None);
    refused("option 7 has 257 bytes", |s| lengthen(&mut s.options));
    refused("message 0: is an empty part of a stream", |s| s.queue[0].bytes.clear());
    refused(&format!("message 0: {}", missing().1), |s| s.queue[0].descriptions[0] = missing().0);
    refused("message 0: carries 254 descriptions", |s| s.queue[0].descriptions = vec![DescriptionId(0); 254]);
    refused("has an address of 109 bytes", |s| s.address = vec![b'a'; 109]);
    refused("has a path with a NUL", |s| s.address = b"a\0".to_vec());
    refused("has a file and no path", |s| s.address.clear());
    refused("has a file that is no absolute path", |s| s.file.as_mut().unwrap().path = b"a".to_vec());
    refused("message 0: its sender: has an address of 109 bytes", |s| s.queue[0].sender = vec![0; 109]);
    refused("message 0: was sent by no process", |s| s.queue[0].credentials = Some(Credentials::default()));
    refused("has a filter of 9 bytes", |s| s.filter.push(0));
    refused("message 0: was sent out of band, and is no single byte of a stream", |s| {
        s.queue[0].out_of_band = true
    });
    refused("has 2 messages that were sent out of band last", |s| {
        s.queue = vec![Message { bytes: vec![1], out_of_band: true, ..Message::default() }; 2];
    });
}

#[test]
fn inet_sockets() {
    refused("files.img: inet#0 has two descriptions", |s| {
        s.files.descriptions[3].target = Target::InetSocket(0)
    });
    refused("files.img: description#11: internet socket#8 of 8", |s| {
        s.files.descriptions[11].target = Target::InetSocket(8);
    });
    refused("files.img: description#12: netlink socket#1 of 1", |s| {
        s.files.descriptions[12].target = Target::NetlinkSocket(1);
    });
    refused("files.img: description#12: packet socket#1 of 1", |s| {
        s.files.descriptions[12].target = Target::PacketSocket(1);
    });
    refused("files.img: packet#0 has two descriptions", |s| {
        s.files.descriptions[3].target = Target::PacketSocket(0);
    });
    refused("files.img: packet#0: option 8 has 257 bytes", |s| {
        lengthen(&mut s.files.packet_sockets[0].options);
    });
    refused("files.img: packet#0: has a membership with an address of 33 bytes", |s| {
        s.files.packet_sockets[0].memberships[0].address.resize(33, 0);
    });
    refused("files.img: packet#0: has a membership that nobody has added", |s| {
        s.files.packet_sockets[0].memberships[0].count = 0;
    });
    refused("files.img: interface 2 is there twice, or is none", |s| {
        s.files.interfaces.push(s.files.interfaces[0].clone());
    });
    refused("files.img: interface 2 cannot have its name", |s| {
        s.files.interfaces[0].name = vec![b'e'; 16];
    });
    refused("files.img: packet#0: has to do with interface 9, which has no name", |s| {
        s.files.packet_sockets[0].memberships[0].interface = 9;
    });
    refused("files.img: inet#0: has to do with interface 9, which has no name", |s| {
        s.files.inet_sockets[0].local.as_mut().unwrap().scope = 9;
    });
    refused("files.img: netlink#0 has two descriptions", |s| {
        s.files.descriptions[3].target = Target::NetlinkSocket(0);
    });
    refused("files.img: netlink#0: option 11 has 257 bytes", |s| {
        lengthen(&mut s.files.netlink_sockets[0].options);
    });
    for table in ["crr-", "crr-a; flush ruleset", "filter"] {
        refused(&format!("files.img: traffic is held by a table named {table:?}"), |s| {
            s.files.network_hold = Some(table.to_owned());
        });
    }
    for other in [0, 2, 3, 8] {
        let what = format!("is connected to inet#{other}, which is not connected to it");
        refused(&format!("files.img: inet#0: {what}"), |s| {
            let InetState::Connected(connection) = &mut s.files.inet_sockets[0].state else { panic!() };
            connection.other_end = Some(other);
        });
    }
    let refused = |index: usize, what: &str, change: fn(&mut InetSocket)| {
        refused(&format!("files.img: inet#{index}: {what}"), |s| change(&mut s.files.inet_sockets[index]));
    };
    refused(2, "is shut down as 0x4", |s| s.shutdown = 4);
    refused(2, "has the address 127.0.0.1, of another family", |s| s.v6 = true);
    refused(2, "option 1 has 257 bytes", |s| lengthen(&mut s.options));
    refused(2, "has a filter of 9 bytes", |s| s.filter.push(0));
    refused(2, "has a connection without addresses", |s| s.local = None);
    refused(2, "has a state of TCP", |s| s.protocol = InetProtocol::Udp);
    refused(2, "has not sent 3 of 2 bytes", |s| {
        let InetState::Connected(connection) = &mut s.state else { panic!() };
        connection.outgoing.truncate(2);
    });
    refused(2, "has byte 4 of 4 as urgent", |s| {
        let InetState::Connected(connection) = &mut s.state else { panic!() };
        connection.urgent = Some(TcpUrgent { at: 4, read: true });
    });
    refused(3, "listens without an address", |s| s.local = None);
    refused(3, "connects to nobody", |s| s.state = InetState::Connecting);
    refused(4, "has data and no address", |s| s.local = None);
    refused(5, "datagram 0 has 65536 bytes", |s| s.queue[0].bytes.resize(65536, 0));
    refused(5, "has datagrams or groups", |s| s.protocol = InetProtocol::Tcp);
    refused(5, "has packets in its queue, which nobody can put there", |s| {
        s.protocol = InetProtocol::Raw(17)
    });
}

#[test]
fn connections_of_unix_sockets() {
    refused("files.img: socket#5: waits at socket#4, which does not listen for it", |s| {
        s.files.unix_sockets[4].peer = Peer::Listening { backlog: 1, waiting: Vec::new() };
    });
    let refused = |index: usize, what: &str, change: fn(&mut UnixSocket)| {
        refused(&format!("files.img: socket#{index}: {what}"), |s| change(&mut s.files.unix_sockets[index]));
    };
    refused(2, "its peer: has a path with a NUL", |s| {
        s.peer = Peer::Closed { address: b"a\0".to_vec(), reset: false };
    });
    refused(3, "has messages that nobody can have sent", |s| s.address.clear());
    refused(3, "is connected to socket#2, which it cannot reach", |s| s.peer = Peer::Socket(2));
    refused(3, "is connected to socket#3, which it cannot reach", |s| s.peer = Peer::Socket(3));
    refused(4, "waits for socket#0, which does not wait for it", |s| {
        s.peer = Peer::Listening { backlog: 1, waiting: vec![0] };
    });
    refused(4, "listens without an address", |s| {
        s.address.clear();
        s.file = None;
    });
    refused(4, "listens for datagrams", |s| s.kind = UnixKind::Datagram);
    refused(6, "is to be connected to no absolute path", |s| {
        let Peer::Elsewhere { address, .. } = &mut s.peer else { panic!() };
        *address = b"bus".to_vec();
    });
    refused(6, "is connected by no process", |s| {
        let Peer::Elsewhere { connector, .. } = &mut s.peer else { panic!() };
        connector.pid = 0;
    });
    refused(6, "has messages from one that it is to be connected to again", |s| {
        s.queue.push(Message { bytes: b"a".to_vec(), ..Message::default() });
    });
}

#[test]
fn event_files() {
    let target = |s: &mut Sample, index: usize, target| s.files.descriptions[index].target = target;
    refused("files.img: description#7: has counted to 0xffffffffffffffff", |s| {
        target(s, 7, Target::Eventfd(Eventfd { count: u64::MAX, semaphore: false }));
    });
    let refused_timer = |what: &str, change: fn(&mut Timerfd)| {
        refused(&format!("files.img: description#8: {what}"), |s| {
            let Target::Timerfd(timer) = &mut s.files.descriptions[8].target else { panic!("no timerfd") };
            change(timer);
        });
    };
    refused_timer("goes by clock 2", |timer| timer.clock = 2);
    refused_timer("was set with flags 0x4", |timer| timer.flags = 4);
    refused_timer("has a time of 9223372036854775808 ns", |timer| timer.next_ns = 1 << 63);
    refused_timer("has a time of 9223372036854775808 ns", |timer| timer.interval_ns = 1 << 63);
    refused("files.img: description#10: epoll#1 of 1 epolls", |s| target(s, 10, Target::Epoll(1)));
    refused("files.img: epoll#0 has two descriptions", |s| target(s, 9, Target::Epoll(0)));
    refused("files.img: an epoll has no description", |s| target(s, 10, Target::Signalfd(1)));
    let refused_watch = |what: &str, change: fn(&mut Watch)| {
        refused(&format!("files.img: {what}"), |s| change(&mut s.files.epolls[0].watches[0]));
    };
    refused_watch("epoll#0: watches fd 2147483648", |watch| watch.fd = 1 << 31);
    refused_watch(&format!("epoll#0: watches {} descriptions", missing().1), |watch| {
        watch.description = missing().0;
    });
    refused_watch("epoll#0: epolls watch each other more than 5 deep", |watch| watch.description.0 = 10);
    refused_watch("epoll#0: watches a signalfd that no task can have added", |watch| watch.description.0 = 9);
    refused("files.img: epoll#0: watches description#1 as fd 9 twice", |s| {
        let watch = s.files.epolls[0].watches[0];
        s.files.epolls[0].watches.push(watch);
    });
}

#[test]
fn files_that_stand_for_tasks() {
    let pidfd = |s: &mut Sample, process| s.files.descriptions[18].target = Target::Pidfd(process);
    refused("files.img: description#18: of task 99, which is not in the tree", |s| {
        pidfd(s, Process::InTree(99))
    });
    // A thread, and PIDFD_THREAD is not among the flags.
    refused("files.img: description#18: of task 1100, which is not in the tree", |s| {
        s.files.descriptions[18].flags = 0o2;
    });
    refused("files.img: description#19: a process that was killed by signal 17", |s| {
        s.files.descriptions[19].target = Target::Pidfd(Process::Gone { ino: 1, end: Some(End::Killed(17)) });
    });
    refused("files.img: description#20: task file#1 of 1 task files", |s| {
        s.files.descriptions[20].target = Target::TaskFile(1);
    });
    let file = |what: &str, change: fn(&mut TaskFile)| {
        refused(&format!("files.img: task file#0: {what}"), |s| change(&mut s.files.task_files[0]));
    };
    file("of task 99, or a thread, which is not in the tree", |file| file.pid = 99);
    file("of task 1100, or a thread, which is not in the tree", |file| file.name = b"task/101/maps".to_vec());
    file("is in no procfs", |file| file.procfs = b"proc".to_vec());
    file("leads elsewhere", |file| file.name = b"root/../etc".to_vec());
    file("leads elsewhere", |file| file.name = b"/etc".to_vec());
    file("is no name", |file| file.name = b"a\0".to_vec());
    refused("files.img: socket#0: description#18 stands for a task, and is in its queue", |s| {
        s.files.unix_sockets[0].queue[0].descriptions = vec![DescriptionId(18)];
    });
}

#[test]
fn ipc() {
    let change = |what: &str, change: fn(&mut Ipc)| {
        refused(&format!("tree.img: {what}"), |s| change(&mut s.tree.ipc));
    };
    change("semaphores: id 32769 follows 32769", |ipc| {
        ipc.semaphore_sets.push(ipc.semaphore_sets[0].clone());
    });
    change("queues: id -1 follows -1", |ipc| ipc.queues[0].object.id = -1);
    change("queues: id 3 has mode 0o1600", |ipc| ipc.queues[0].object.mode = 0o1600);
    change("semaphores 32769: there are 0 of them", |ipc| ipc.semaphore_sets[0].semaphores.clear());
    change("semaphores 32769: a value of 32768", |ipc| {
        ipc.semaphore_sets[0].semaphores[0].value = 32_768;
    });
    change("semaphores 32769: -1 has used one", |ipc| ipc.semaphore_sets[0].semaphores[1].last_user = -1);
    change("queue 3: [-1, 101] have used it", |ipc| ipc.queues[0].last_sender = -1);
    change("queue 3: a message of type 0", |ipc| ipc.queues[0].messages[0].kind = 0);
    change("undo: thread 1100 follows 1100", |ipc| ipc.apart.push(1100));
    change("undo: no thread 1102 that could be apart", |ipc| ipc.apart.push(1102));
    change("undo: the list of thread 100 follows that of 100", |ipc| {
        ipc.undo_lists.push(ipc.undo_lists[0].clone());
    });
    change("undo: a list of thread 100 of task 101", |ipc| ipc.undo_lists[0].task = 101);
    change("undo: thread 1100 has a list that task 100 has too", |ipc| {
        ipc.undo_lists.push(UndoList { thread: 1100, ..ipc.undo_lists[0].clone() });
        ipc.apart.clear();
    });
    change("undo: thread 100: an empty list", |ipc| ipc.undo_lists[0].sums.clear());
    change("undo: thread 100: semaphore 0 of set 32769 out of order", |ipc| {
        ipc.undo_lists[0].sums.reverse();
    });
    change("undo: thread 100: semaphore 2 of 2 of set 32769", |ipc| ipc.undo_lists[0].sums[1].semaphore = 2);
    change("undo: thread 100: semaphore 1 of 0 of set 32770", |ipc| ipc.undo_lists[0].sums[1].set = 32_770);
    change("undo: thread 100: nothing to undo at semaphore 0 of set 32769", |ipc| {
        ipc.undo_lists[0].sums[0].sum = 0;
    });
}

#[test]
fn message_queues() {
    refused("files.img: description#22: queue#1 of 1 message queues", |s| {
        s.files.descriptions[22].target = Target::MessageQueue(1);
    });
    let name = |name: &'static [u8]| {
        refused("files.img: message queue#0: cannot have this name", |s| {
            s.files.message_queues[0].name = name.to_vec();
        });
    };
    name(b"");
    name(b"a/b");
    let change = |what: &str, change: fn(&mut MessageQueue)| {
        refused(&format!("files.img: message queue#0: {what}"), |s| change(&mut s.files.message_queues[0]));
    };
    change("has mode 0o100600", |queue| queue.mode = 0o100_600);
    change("has no name, and its messages are not known", |queue| {
        (queue.unlinked, queue.contents) = (true, None);
    });
    change("2 messages of 1", |queue| queue.messages = 1);
    change("a message of 6 bytes, of 5", |queue| queue.size = 5);
    change("its messages have no order", |queue| queue.contents.as_mut().unwrap().reverse());
    change("its messages have no order", |queue| queue.contents.as_mut().unwrap()[0].priority = 32_768);
}

#[test]
fn bpf_maps() {
    let target = |s: &mut Sample, index: usize, target| s.files.descriptions[index].target = target;
    refused("files.img: description#25: map#2 of 2 BPF maps", |s| target(s, 25, Target::BpfMap(2)));
    refused("files.img: a BPF map has no description", |s| target(s, 26, Target::BpfMap(0)));
    let change = |what: &str, change: fn(&mut [BpfMap])| {
        refused(&format!("files.img: BPF map#{what}"), |s| change(&mut s.files.bpf_maps));
    };
    change("0: cannot have this name", |maps| maps[0].name = b"a/b".to_vec());
    change("0: cannot have this name", |maps| maps[0].name = vec![b'a'; 16]);
    change("0: of type 10, which cannot be made again", |maps| maps[0].kind = 10);
    change("0: of type 12, which cannot be made again", |maps| maps[0].kind = 12);
    change("0: has flags 0x5", |maps| maps[0].flags |= 4);
    change("0: of type 5 with values for 0 processors", |maps| maps[0].processors = 0);
    change("0: of type 1 with values for 2 processors", |maps| maps[0].kind = 1);
    change("0: 3 bytes of keys of 2 bytes", |maps| maps[0].keys.truncate(3));
    change("0: 31 bytes of values of 16 bytes for 2 entries", |maps| maps[0].values.truncate(31));
    change("0: entries without values", |maps| {
        maps[0].value_size = 0;
        maps[0].values.clear();
    });
    change("0: 2 entries of 1", |maps| maps[0].max_entries = 1);
    change("1: cannot be pinned there", |maps| maps[1].pin = b"events".to_vec());
    change("1: is pinned, and has contents", |maps| maps[1].values = vec![1]);
    change("1: is pinned, with values for 2 processors", |maps| maps[1].processors = 2);
}

#[test]
fn fanotify_groups() {
    let target = |s: &mut Sample, index: usize, target| s.files.descriptions[index].target = target;
    refused("files.img: description#27: fanotify#1 of 1 fanotify groups", |s| {
        target(s, 27, Target::Fanotify(1))
    });
    refused("files.img: fanotify#0 has two descriptions", |s| target(s, 9, Target::Fanotify(0)));
    refused("files.img: a fanotify group has no description", |s| target(s, 27, Target::Signalfd(1)));
    let refused = |what: &str, change: fn(&mut Fanotify)| {
        refused(&format!("files.img: fanotify#0{what}"), |s| change(&mut s.files.fanotifies[0]));
    };
    refused(": has flags 0x606", |group| group.flags |= 4);
    refused(": mark 1: path#9 of 9 paths", |group| group.marks[1].path = PathId(9));
    refused(": mark 0 has flags 0x241", |group| group.marks[0].flags |= 1);
    refused(": mark 0 is no file, and can be evicted", |group| group.marks[0].scope = Scope::Mount);
}

#[test]
fn inotify_groups() {
    let target = |s: &mut Sample, index: usize, target| s.files.descriptions[index].target = target;
    refused("files.img: description#17: inotify#1 of 1 inotify groups", |s| {
        target(s, 17, Target::Inotify(1))
    });
    refused("files.img: inotify#0 has two descriptions", |s| target(s, 9, Target::Inotify(0)));
    refused("files.img: an inotify group has no description", |s| target(s, 17, Target::Signalfd(1)));
    let refused = |what: &str, change: fn(&mut Inotify)| {
        refused(&format!("files.img: inotify#0: {what}"), |s| change(&mut s.files.inotifies[0]));
    };
    refused("its next watch is 0", |group| group.next = 0);
    refused("its next watch is 2147483648", |group| group.next = 1 << 31);
    refused("watch 0", |group| group.watches[0].wd = 0);
    refused("watch 2147483648", |group| group.watches[0].wd = 1 << 31);
    refused("watch 3 twice", |group| group.watches.push(group.watches[0]));
    refused("watch 3: for events 0x1000", |group| group.watches[0].mask = 0x1000);
    refused("watch 3: path#9 of 9 paths", |group| group.watches[0].path = PathId(9));
}

#[test]
fn owners_of_descriptions() {
    let refused = |what: &str, change: fn(&mut Notify)| {
        refused(&format!("files.img: description#4: {what}"), |s| {
            change(s.files.descriptions[4].notify.as_mut().unwrap());
        });
    };
    refused("has an owner of kind 3", |notify| notify.kind = 3);
    refused("signals 65", |notify| notify.signal = 65);
    refused("has owner 99, which is not in the tree", |notify| notify.owner = 99);
    refused("has owner 101, which is not in the tree", |notify| notify.kind = 2);
    refused("has owner -100, which is not in the tree", |notify| notify.owner = -100);
}

#[test]
fn page_map() {
    refused("memory.img: 2 checksums for 1 blocks", |s| s.memory.block_crcs.push(0));
    refused("memory.img: 4503599627370496 pages are impossible", |s| s.memory.page_count = 1 << 52);
    refused("memory.img: 1 address spaces for 2 tasks", |s| drop(s.memory.spaces.pop()));
    refused("memory.img: a checksum for 0 pages", |s| s.memory.block_pages = 0);
    refused("memory.img: a checksum for 2 pages", |s| s.memory.block_pages = 2);
    refused("memory.img: 1 checksums for 6 blocks", |s| s.memory.block_pages = 1);
    refused("inventory.img: 5 pages of others, and it builds on none", |s| s.memory.first_page = 5);
    let packed = |s: &mut Sample, chunks: &[(u64, u32)]| {
        let chunks = chunks.iter().map(|&(place, size)| Chunk { place, size }).collect();
        s.memory.packing = Some(Packing { method: Method::Lz4, chunks });
    };
    refused("memory.img: 0 chunks for 1 times 32 pages", |s| packed(s, &[]));
    refused("memory.img: 2 chunks for 1 times 32 pages", |s| packed(s, &[(0, 1), (1, 1)]));
    refused("memory.img: a chunk of 0 bytes for pages of 24576", |s| packed(s, &[(0, 0)]));
    refused("memory.img: a chunk of 24577 bytes for pages of 24576", |s| packed(s, &[(0, 24577)]));
    refused("memory.img: a chunk at 0x1, the one before it ends at 0x0", |s| packed(s, &[(1, 5)]));
    let runs = |s: &mut Sample, change: fn(&mut Run)| change(&mut s.memory.spaces[0].runs[1]);
    let task = "memory.img: task 100: contents at";
    refused(&format!("{task} 0x9000001: not page-aligned"), |s| runs(s, |run| run.start.0 += 1));
    refused(&format!("{task} 0x9000000: no page"), |s| runs(s, |run| run.pages = 0));
    refused(&format!("{task} 0x9000000: pages 1+6 of 6"), |s| runs(s, |run| run.pages = 6));
    refused(&format!("{task} 0x9000000: pages 18446744073709551615+1 of 6"), |s| {
        runs(s, |run| run.first_page = u64::MAX);
    });
    refused(&format!("{task} 0x8049000: out of order"), |s| runs(s, |run| run.start = Addr(0x0804_9000)));
    refused(&format!("{task} 0xfffffffffffff000: end beyond all addresses"), |s| {
        runs(s, |run| run.start = Addr(u64::MAX - 4095));
    });
    let nowhere = "no private memory of that extent";
    refused(&format!("{task} 0x90c8000: {nowhere}"), |s| runs(s, |run| run.start = Addr(0x090c_8000)));
    refused(&format!("{task} 0xa000000: {nowhere}"), |s| runs(s, |run| run.start = Addr(0x0a00_0000)));
    // Two pages from the last of its area.
    refused(&format!("{task} 0x90c7000: {nowhere}"), |s| {
        s.memory.spaces[0].runs.pop();
        runs(s, |run| (run.start, run.pages) = (Addr(0x090c_7000), 2));
    });
}

#[test]
fn aio_contexts() {
    let context = |s: &mut Sample, change: fn(&mut AioContext)| change(&mut s.memory.spaces[0].aio[0]);
    let task = "memory.img: task 100:";
    refused(&format!("{task} 0 AIO contexts for 1 rings"), |s| s.memory.spaces[0].aio.clear());
    refused(&format!("{task} AIO context 0xd001000: its ring is at 0xd000000"), |s| {
        context(s, |context| context.start = Addr(0x0d00_1000));
    });
    refused(&format!("{task} AIO context 0xd000000: tail 127 of 127 places"), |s| {
        context(s, |context| context.tail = 127);
    });
    refused(&format!("{task} AIO context 0xd000000: 64 bytes of events, not 32"), |s| {
        context(s, |context| context.head = 127);
    });
}

#[test]
fn areas() {
    let vma = |s: &mut Sample, change: fn(&mut images::memory::Vma)| change(&mut s.memory.spaces[1].vmas[0]);
    let task = "memory.img: task 101:";
    refused(&format!("{task} 0x8048001-0x8058000: is not page-aligned"), |s| vma(s, |vma| vma.start.0 += 1));
    refused(&format!("{task} 0x8058000-0x8058000: is empty"), |s| vma(s, |vma| vma.start = vma.end));
    refused(&format!("{task} 0x8048000-0x100000000: is beyond what an ia32 task can map"), |s| {
        vma(s, |vma| vma.end = Addr(1 << 32));
    });
    refused(&format!("{task} 0x9000000-0x90c8000: begins below 0x9001000"), |s| {
        vma(s, |vma| vma.end = Addr(0x0900_1000));
    });
    refused(&format!("{task} 0x8048000-0x8058000: protection 0xf"), |s| vma(s, |vma| vma.prot = 15));
    refused(&format!("{task} 0x8048000-0x8058000: flags 0x80000"), |s| vma(s, |vma| vma.flags = 1 << 19));
    refused(&format!("{task} 0x8048000-0x8058000: is not made of huge pages"), |s| {
        vma(s, |vma| vma.flags = vm::HUGE_2_MIB);
    });
    refused(&format!("{task} 0x8048000-0x8058000: has huge pages of no size"), |s| {
        vma(s, |vma| vma.backing = Backing::HugePages(0));
    });
    refused(&format!("{task} 0x8048000-0x8058000: flags 0x20000 of memory that is not private"), |s| {
        vma(s, |vma| (vma.flags, vma.backing) = (vm::HUGE_2_MIB, Backing::SharedFile(PathId(1), 0)));
    });
    refused(&format!("{task} 0x8048000-0x8058000: path#9 of 9 paths"), |s| {
        vma(s, |vma| vma.backing = Backing::SharedFile(PathId(9), 0));
    });
    refused(&format!("{task} 0x8048000-0x8058000: offset 0x10 is not page-aligned"), |s| {
        vma(s, |vma| vma.backing = Backing::PrivateFile(PathId(1), 0x10));
    });
    refused(&format!("{task} 0x8048000-0x8058000: offset 0x7ffffffffffff000 is no place in a file"), |s| {
        vma(s, |vma| vma.backing = Backing::PrivateFile(PathId(1), 0x7fff_ffff_ffff_f000));
    });
    refused(&format!("{task} 0x8048000-0x8058000: shared#1 of 1 shared objects"), |s| {
        vma(s, |vma| vma.backing = Backing::Shared(SharedId(1), 0));
    });
    refused(&format!("{task} 0x8048000-0x8058000: reaches beyond the 0x10000 bytes of shared#0"), |s| {
        s.memory.shared[0].size = 0x10000;
        vma(s, |vma| vma.backing = Backing::Shared(SharedId(0), 0x1000));
    });
    refused(&format!("{task} auxv of 7 bytes"), |s| s.memory.spaces[1].auxv.truncate(7));
}

#[test]
fn guard_pages() {
    let guard = |s: &mut Sample, start, end| {
        s.memory.spaces[0].guards[0] = Guard { start: Addr(start), end: Addr(end) }
    };
    let wrong = "memory.img: task 100: guard";
    refused(&format!("{wrong} 0x9002001-0x9004000: is not page-aligned"), |s| {
        guard(s, 0x0900_2001, 0x0900_4000)
    });
    refused(&format!("{wrong} 0x9004000-0x9004000: out of order"), |s| guard(s, 0x0900_4000, 0x0900_4000));
    refused(&format!("{wrong} 0x90c7000-0x90c9000: is not inside of one area"), |s| {
        guard(s, 0x090c_7000, 0x090c_9000)
    });
    refused(&format!("{wrong} 0x9000000-0x9001000: has contents"), |s| guard(s, 0x0900_0000, 0x0900_1000));
}

#[test]
fn protection_keys() {
    let area = "memory.img: task 100: 0x8048000-0x8058000: protection key 3";
    refused(area, |s| s.memory.spaces[0].keys = 1 << 4);
    refused(area, |s| {
        s.memory.spaces[0].keys = 1 << 15;
        s.memory.spaces[0].vmas[0].prot = 6;
    });
    refused("memory.img: task 100: protection keys 0x9", |s| s.memory.spaces[0].keys = 9);
    refused("memory.img: task 100: 0xd000000-0xd001000: protection key 15", |s| {
        let ring = s.memory.spaces[0].vmas.iter_mut().find(|vma| vma.backing == Backing::AioRing);
        ring.unwrap().flags = 15 << vm::KEY_SHIFT;
    });
}

#[test]
fn area_names() {
    let wrong = "memory.img: task 100: name of 0x9000000";
    refused(&format!("{wrong}-0x90c7000: no area without a file, or out of order"), |s| {
        s.memory.spaces[0].names[0].end = Addr(0x090c_7000);
    });
    refused(
        "memory.img: task 100: name of 0x8048000-0x8058000: no area without a file, or out of order",
        |s| {
            let name = &mut s.memory.spaces[0].names[0];
            (name.start, name.end) = (Addr(0x0804_8000), Addr(0x0805_8000));
        },
    );
    refused(&format!("{wrong}-0x90c8000: is none"), |s| s.memory.spaces[0].names[0].name.clear());
    refused(&format!("{wrong}-0x90c8000: is none"), |s| s.memory.spaces[0].names[0].name = vec![b'a'; 80]);
    refused(&format!("{wrong}-0x90c8000: is none"), |s| s.memory.spaces[0].names[0].name = b"a\0b".to_vec());
}

#[test]
fn shared_memory_and_vdsos() {
    refused("memory.img: shared#0: contents up to 0x2000 of 0x1000", |s| s.memory.shared[0].size = 0x1000);
    refused("memory.img: shared#0: 0x8000000000000000 bytes", |s| s.memory.shared[0].size = 1 << 63);
    let segment =
        |s: &mut Sample, change: fn(&mut Object)| change(s.memory.shared[0].segment.as_mut().unwrap());
    refused("memory.img: shared#0: is no segment: id -1, 16384 bytes", |s| {
        segment(s, |segment| segment.id = -1)
    });
    refused("memory.img: shared#0: mode 0o4000", |s| segment(s, |segment| segment.mode = 0o4000));
    refused("memory.img: shared#1: segment 32769 occurs twice", |s| {
        let again = Shared { runs: Vec::new(), ..s.memory.shared[0].clone() };
        s.memory.shared.push(again);
    });
    refused("memory.img: vdso#2 is there twice", |s| s.memory.vdsos[2] = s.memory.vdsos[0].clone());
    refused("memory.img: vdso#1 has 4095 bytes, not whole pages", |s| s.memory.vdsos[1].image.truncate(4095));
    refused("memory.img: vdso#1 has 0 bytes, not whole pages", |s| s.memory.vdsos[1].image.clear());
    refused("memory.img: task 100: 0x7ffff7fc6000-0x7ffff7fc7000: vdso#0 is one of ia32", |s| {
        s.memory.vdsos[0].abi = Abi::Ia32;
    });
    refused("memory.img: task 101: 0xf7fc6000-0xf7fc7000: vdso#1 has 8192 bytes", |s| {
        s.memory.vdsos[1].image.resize(0x2000, 0);
    });
    refused("memory.img: task 101: 0xf7fc8000-0xf7fc9000: vdso#3 of 3 vDSOs", |s| {
        s.memory.vdsos.pop();
    });
    refused("memory.img: task 100: 0x8048000-0x8058000: flags 0x10000 of what is no vDSO", |s| {
        s.memory.spaces[0].vmas[0].flags = vm::PARKED;
    });
}

#[test]
fn programs_of_seccomp() {
    for size in [0, 7, 12, 32_776] {
        refused(&format!("tree.img: filter#1: a program of {size} bytes"), |s| {
            s.tree.filters[1].program = vec![0; size];
        });
    }
}

#[test]
fn attributes_and_policies() {
    refused("tree.img: task 100: huge pages are switched off by 2", |s| {
        s.tree.tasks[0].attributes.thp_disable = 2
    });
    refused("tree.img: task 100: memory to come is locked by 0x1", |s| {
        s.tree.tasks[0].attributes.lock_future = 1
    });
    refused("tree.img: task 100: registered for barriers 0x1", |s| s.tree.tasks[0].attributes.membarrier = 1);
    refused("tree.img: task 100: thread 100: mode 0 of the time stamp counter", |s| {
        s.tree.tasks[0].threads[0].attributes.tsc = 0
    });
    refused("tree.img: task 100: thread 1100: machine check policy 3", |s| {
        s.tree.tasks[0].threads[1].attributes.mce_kill = 3
    });
    refused("tree.img: task 100: thread 100: a memory policy of 17 words of nodes", |s| {
        s.tree.tasks[0].threads[0].attributes.policy.nodes = vec![1; 17]
    });
    let extent = "no memory of that extent, or out of order";
    refused(&format!("memory.img: task 100: policy of 0x9001000-0x90c8000: {extent}"), |s| {
        s.memory.spaces[0].policies[0].start = Addr(0x0900_1000)
    });
    refused("memory.img: task 100: policy of 0x9000000-0x90c8000: none", |s| {
        s.memory.spaces[0].policies[0].policy.mode = 0
    });
}

#[test]
fn pseudo_terminals() {
    fn live(s: &mut Sample) -> &mut LivePty {
        s.files.ptys[0].live.as_mut().unwrap()
    }
    fn end(s: &mut Sample, end: PtyEnd) {
        s.files.descriptions[6].target = Target::Pty { pty: 0, end, path: PathId(6) };
    }
    /// Has it control the session of the two tasks.
    fn control(s: &mut Sample) -> &mut Control {
        s.tree.shell_job = None;
        s.tree.tasks.iter_mut().for_each(|task| task.sid = 100);
        live(s).control.insert(Control { sid: 100, foreground: 100, without: vec![101] })
    }
    refused("files.img: description#5: pty#2 of 2 pseudo terminals", |s| {
        s.files.descriptions[5].target = Target::Pty { pty: 2, end: PtyEnd::Master, path: PathId(5) };
    });
    refused("files.img: description#5: path#9 of 9 paths", |s| {
        s.files.descriptions[5].target = Target::Pty { pty: 0, end: PtyEnd::Master, path: PathId(9) };
    });
    refused("files.img: pty#1: has number 1048576", |s| s.files.ptys[1].number = 1 << 20);
    refused("files.img: pty#1: has the number of another one, 7", |s| s.files.ptys[1].number = 7);
    refused("files.img: pty#0 has two masters", |s| end(s, PtyEnd::Master));
    refused("files.img: pty#0 has no master", |s| s.files.descriptions[5].target = Target::Pipe(0));
    refused("files.img: pty#0 has a master", |s| s.files.ptys[0].live = None);
    refused("files.img: description#6 is open on a closed pty#0", |s| end(s, PtyEnd::Slave));
    refused("files.img: pty#0 controls no session", |s| {
        live(s).closed = false;
        end(s, PtyEnd::Controlling);
    });
    refused("files.img: pty#0: has 18 control characters", |s| live(s).settings.characters.truncate(18));
    refused("files.img: pty#0: has 0 control characters", |s| live(s).locked_settings.characters.clear());
    refused("files.img: pty#0: has 5000 bytes of input", |s| {
        live(s).input = vec![Line { bytes: vec![0; 5000], end: LineEnd::Open }];
    });
    refused("files.img: pty#0: has an open line before others", |s| live(s).input[0].end = LineEnd::Open);
    refused("files.img: pty#0: has an empty line that ends by itself", |s| live(s).input[0].bytes.clear());
    refused("files.img: pty#0: controls session 50, which no task leads", |s| control(s).sid = 50);
    refused("files.img: pty#0: controls session 100, which no task leads", |s| {
        control(s).without = vec![100]
    });
    refused("files.img: pty#0: has process group 9 in the foreground, which is not of session 100", |s| {
        control(s).foreground = 9;
    });
    refused("files.img: pty#0: task 102 is not of session 100", |s| control(s).without = vec![102]);
    refused("files.img: pty#1: session 100 has two terminals", |s| {
        control(s);
        s.files.ptys[1].live = s.files.ptys[0].live.clone();
        s.files.descriptions[6].target = Target::Pty { pty: 1, end: PtyEnd::Master, path: PathId(5) };
    });
}
