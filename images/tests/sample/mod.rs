//! A small checkpoint by hand: an x86_64 shell with an ia32 child, a pipe between them and shared memory.
//! It uses every record and every variant at least once.

use images::aio::AioContext;
use images::attribute::{AreaPolicy, MemoryPolicy, TaskAttributes, ThreadAttributes};
use images::bpf::{self, BpfMap};
use images::container::{Kind, TRAILER_SIZE, crc32c, encode};
use images::event::{Epoll, Eventfd, Notify, Timerfd, Watch};
use images::external::{External, ExternalKind};
use images::fanotify::{Fanotify, Mark, Scope};
use images::file::{Deleted, Description, FdEntry, Files, Namespace, OtherName, Path, Target};
use images::id::PAGE_SIZE;
use images::inet::{
    Datagram, InetAddress, InetProtocol, InetSocket, InetState, Membership, TcpAgreement, TcpConnection,
    TcpUrgent, TcpWindow,
};
use images::inotify::{FileWatch, Inotify};
use images::interface::Interface;
use images::inventory::{FileEntry, Inventory, StateComponent};
use images::late::{Process, TaskFile};
use images::lock::{Lock, LockKind};
use images::memory::{AreaName, Backing, Guard, HugePage, Layout, Memory, Run, Shared, Space, Vdso, Vma, vm};
use images::mqueue::{Message as Job, MessageQueue};
use images::netlink::NetlinkSocket;
use images::packet::{PacketMembership, PacketSocket};
use images::pipe::{Buffer, Fifo, Pipe};
use images::seccomp::{Filter, Seccomp};
use images::sharing::Shares;
use images::signal::{Action, AltStack, IntervalTimer, Pending};
use images::socket::{Credentials, Message, Peer, PeerCredentials, SocketFile, UnixKind, UnixSocket};
use images::socket_option::{SocketOption, SocketOptions};
use images::sysv::{
    Ipc, Message as QueuedMessage, Object, Queue, Semaphore, SemaphoreSet, UndoList, UndoSum,
};
use images::task::{End, GroupStop, ShellJob, Task, Tree, Zombie};
use images::terminal::{Flow, Line, LineEnd, LivePty, Pty, PtyEnd, Settings};
use images::thread::{Creds, Dispatch, Regs, RobustList, Rseq, Sched, Thread, UserDesc};
use images::timer::Timer;
use images::{Abi, Addr, DescriptionId, FilterId, PathId, Pid, SharedId, TaskFd, VdsoId};
use std::net::Ipv4Addr;

/// Pages of `pages.img`.
const PAGES: u64 = 6;

/// One that is set.
fn option(level: u32, name: u32, value: &[u8]) -> SocketOptions {
    [SocketOption { level, name, value }].into_iter().collect()
}

/// The files of the checkpoint, as they must look.
pub(crate) fn files_of_checkpoint() -> Vec<(Kind, Vec<u8>)> {
    let tree = encode(Kind::Tree, &tree()).unwrap();
    let files = encode(Kind::Files, &files()).unwrap();
    let memory = encode(Kind::Memory, &memory()).unwrap();
    let mut inventory = inventory();
    for (kind, bytes) in [(Kind::Tree, &tree), (Kind::Files, &files), (Kind::Memory, &memory)] {
        let crc = crc32c(&bytes[..bytes.len() - TRAILER_SIZE]);
        inventory.files.push(FileEntry { kind, size: bytes.len() as u64, crc });
    }
    inventory.files.push(FileEntry { kind: Kind::Pages, size: PAGES * PAGE_SIZE, crc: 0 });
    vec![
        (Kind::Inventory, encode(Kind::Inventory, &inventory).unwrap()),
        (Kind::Tree, tree),
        (Kind::Files, files),
        (Kind::Memory, memory),
        (Kind::Pages, pages()),
    ]
}

/// Each page is filled with its number.
fn pages() -> Vec<u8> {
    (0..PAGES).flat_map(|page| vec![u8::try_from(page).unwrap(); 4096]).collect()
}

fn inventory() -> Inventory {
    Inventory {
        crr_version: "0.1.0".into(),
        kernel_release: "6.18.0".into(),
        boot_id: "01234567-89ab-cdef-0123-456789abcdef".into(),
        created_ns: 1_790_000_000_000_000_000,
        root: 100,
        abis: vec![Abi::X86_64, Abi::Ia32],
        tasks: 2,
        threads: 4,
        xfeatures_in_use: 7,
        xstate_layout: vec![StateComponent { number: 2, offset: 576, size: 256 }],
        parent: None,
        pre_dump: None,
        files: Vec::new(),
    }
}

fn tree() -> Tree {
    Tree {
        tasks: vec![task(100, 1, Abi::X86_64), task(101, 100, Abi::Ia32)],
        shell_job: Some(ShellJob { sid: 50, pgid: 100 }),
        zombies: vec![zombie(102, End::Exit(3)), zombie(103, End::Killed(9))],
        filters: vec![allow(false), allow(true)],
        ipc: ipc(),
    }
}

/// A set with a key, and a queue without.
fn ipc() -> Ipc {
    Ipc {
        namespace: 4_026_531_839,
        semaphore_sets: vec![SemaphoreSet {
            object: object(32_769, 0x5eed_0001, 0o640),
            was_used: true,
            semaphores: vec![
                Semaphore { value: 1, last_user: 100 },
                Semaphore { value: 32_767, last_user: 0 },
            ],
        }],
        queues: vec![Queue {
            object: object(3, 0, 0o600),
            capacity: 16_384,
            last_sender: 100,
            last_receiver: 101,
            messages: vec![
                QueuedMessage { kind: 7, bytes: b"first".to_vec() },
                QueuedMessage { kind: i64::MAX, bytes: Vec::new() },
            ],
        }],
        undo_lists: vec![UndoList {
            task: 100,
            thread: 100,
            sums: vec![
                UndoSum { set: 32_769, semaphore: 0, sum: 1 },
                UndoSum { set: 32_769, semaphore: 1, sum: -32_768 },
            ],
        }],
        apart: vec![1100],
    }
}

fn object(id: i32, key: i32, mode: u32) -> Object {
    Object { id, key, mode, uid: 1000, gid: 1001, creator_uid: 1002, creator_gid: 1003 }
}

/// A child of the root that has ended.
fn zombie(pid: Pid, end: End) -> Zombie {
    Zombie {
        pid,
        ppid: 100,
        pgid: 100,
        sid: 50,
        comm: b"gone".to_vec(),
        end,
        uid: [1000; 4],
        gid: [1000; 4],
        groups: vec![10],
    }
}

/// `ret SECCOMP_RET_ALLOW`.
fn allow(log: bool) -> Filter {
    Filter { program: vec![6, 0, 0, 0, 0, 0, 0xff, 0x7f], log }
}

fn memory() -> Memory {
    Memory {
        spaces: vec![space(Abi::X86_64, 0), space(Abi::Ia32, 2)],
        shared: vec![Shared {
            size: 0x4000,
            ino: 9,
            runs: vec![Run { start: Addr(0x1000), pages: 1, first_page: 5 }],
            huge: None,
            segment: Some(object(32_769, 0x1234, 0o2640)),
        }],
        vdsos: vec![
            Vdso { abi: Abi::X86_64, image: vec![0x64; 0x1000] },
            Vdso { abi: Abi::Ia32, image: vec![0x32; 0x1000] },
            Vdso { abi: Abi::X86_64, image: vec![0x65; 0x1000] },
            Vdso { abi: Abi::Ia32, image: vec![0x33; 0x1000] },
        ],
        first_page: 0,
        page_count: PAGES,
        block_pages: 256,
        block_crcs: vec![crc32c(&pages())],
        packing: None,
    }
}

fn files() -> Files {
    let path = |path: &str, mode, size, rdev| Path {
        path: path.into(),
        mode,
        size,
        mtime: (1_700_000_000, 5),
        dev: 0x801,
        ino: 77,
        rdev,
        deleted: None,
        view: false,
        other_name: None,
        build_id: Vec::new(),
        embedded: None,
    };
    Files {
        paths: vec![
            path("/", 0o040_755, 4096, 0),
            Path {
                build_id: vec![0xb1; 20],
                embedded: Some(Box::new(Deleted {
                    uid: 0,
                    gid: 0,
                    atime: (1_700_000_002, 7),
                    xattrs: Vec::new(),
                    seals: None,
                    huge: None,
                    runs: vec![Run { start: Addr(0), pages: 2, first_page: 0 }],
                })),
                ..path("/bin/sh", 0o100_755, 125_688, 0)
            },
            path("/opt/i386/bin/counter", 0o100_755, 9_000, 0),
            path("/dev/pts/3", 0o020_620, 0, 0x8803),
            Path {
                other_name: Some(Box::new(OtherName { name: b"/tmp/.crr-link-77-0".to_vec(), helper: true })),
                ..path("/tmp/caf\u{e9}", 0o100_644, 12, 0)
            },
            path("/dev/ptmx", 0o020_666, 0, 0x502),
            path("/dev/pts/8", 0o020_620, 0, 0x8808),
            Path {
                deleted: Some(Box::new(Deleted {
                    uid: 1000,
                    gid: 100,
                    atime: (1_700_000_001, 6),
                    xattrs: vec![(b"user.a".to_vec(), b"b".to_vec())],
                    seals: Some(7),
                    huge: Some(HugePage::Mib2),
                    runs: vec![Run { start: Addr(0x1000), pages: 1, first_page: 5 }],
                })),
                ..path("/memfd:buffer", 0o100_777, 5000, 0)
            },
            path("/run/control", 0o010_600, 0, 0),
        ],
        descriptions: vec![
            description(Target::Terminal(PathId(3)), 0o2, 0),
            description(Target::Pipe(0), 0o0, 0),
            description(Target::Pipe(0), 0o1, 0),
            description(Target::Path(PathId(4)), 0o2001, 12),
            Description {
                notify: Some(Notify { kind: 1, owner: 101, uids: (33, 34), signal: 35 }),
                ..description(Target::UnixSocket(0), 0o24002, 0)
            },
            description(Target::Pty { pty: 0, end: PtyEnd::Master, path: PathId(5) }, 0o2, 0),
            description(Target::Pty { pty: 1, end: PtyEnd::HungUp, path: PathId(6) }, 0o2, 0),
            description(Target::Eventfd(Eventfd { count: 3, semaphore: true }), 0o2, 0),
            description(Target::Timerfd(TIMERFD), 0o4002, 0),
            description(Target::Signalfd(1 << 16), 0o2, 0),
            description(Target::Epoll(0), 0o2, 0),
            description(Target::InetSocket(0), 0o2, 0),
            description(Target::NetlinkSocket(0), 0o2, 0),
            description(Target::Pipe(1), 0o4000, 0),
            description(Target::External(0), 0o1, 0),
            description(Target::External(1), 0o2, 0),
            description(Target::External(2), 0o0, 7),
            description(Target::Inotify(0), 0o4000, 0),
            description(Target::Pidfd(Process::InTree(1100)), 0o4202, 0),
            description(Target::Pidfd(Process::Gone { ino: 79, end: Some(End::Exit(3)) }), 0o2, 0),
            description(Target::TaskFile(0), 0o100_000, u64::MAX - 4095),
            description(Target::Namespace(Namespace::Net), 0o100_000, 0),
            description(Target::MessageQueue(0), 0o4002, 0),
            description(Target::External(3), 0o2, 0),
            description(Target::PacketSocket(0), 0o2, 0),
            description(Target::BpfMap(0), 0o2, 0),
            description(Target::BpfMap(1), 0o1, 0),
            description(Target::Fanotify(0), 0o4002, 0),
        ],
        pipes: vec![
            Pipe { ino: 4242, capacity: 65_536, contents: b"in flight".to_vec(), ..Pipe::default() },
            Pipe {
                ino: 79,
                capacity: 4096,
                contents: b"one, two".to_vec(),
                buffers: vec![Buffer { bytes: 3, packet: true }, Buffer { bytes: 5, packet: false }],
                fifo: Some(Fifo { path: PathId(8), unpaired: vec![DescriptionId(13)] }),
            },
        ],
        unix_sockets: vec![
            unix_socket(UnixKind::Stream, Peer::Socket(1)),
            unix_socket(UnixKind::Stream, Peer::Socket(0)),
            unix_socket(UnixKind::Seqpacket, Peer::Closed { address: b"/run/gone".to_vec(), reset: true }),
            UnixSocket {
                address: b"\0abstract".to_vec(),
                file: None,
                ..unix_socket(UnixKind::Datagram, Peer::None)
            },
            UnixSocket {
                queue: Vec::new(),
                ..unix_socket(UnixKind::Stream, Peer::Listening { backlog: 128, waiting: vec![5] })
            },
            UnixSocket {
                queue: Vec::new(),
                address: Vec::new(),
                file: None,
                ..unix_socket(UnixKind::Stream, Peer::Waiting { listener: 4, connector: somebody() })
            },
            UnixSocket {
                queue: Vec::new(),
                ..unix_socket(
                    UnixKind::Stream,
                    Peer::Elsewhere { address: b"\0bus".to_vec(), connector: somebody() },
                )
            },
        ],
        ptys: vec![Pty { number: 7, live: Some(pty()) }, Pty { number: 8, live: None }],
        epolls: vec![Epoll {
            pending: true,
            watches: vec![Watch {
                fd: 9,
                description: DescriptionId(1),
                events: 0x8000_0019,
                data: 0xf7f0_1000,
            }],
        }],
        inet_sockets: inet_sockets(),
        netlink_sockets: vec![NetlinkSocket {
            ino: 4545,
            protocol: 15,
            kind: 3,
            port: 4711,
            peer: (0, 1),
            groups: vec![1, 33],
            mode: 0o140_777,
            uid: 33,
            gid: 34,
            options: option(270, 11, &[1]),
            filter: vec![6, 0, 0, 0, 255, 255, 0, 0],
        }],
        network_hold: Some("crr-0123456789abcdef".to_owned()),
        externals: vec![
            external("pipe:[7001]", ExternalKind::Pipe, "pipe:[7001]"),
            external("tty[8804:18]", ExternalKind::Terminal, "/dev/pts/4"),
            external("file[1d:4d2]", ExternalKind::File(0o100_000), "/var/log/shell"),
            external("unix[7004]", ExternalKind::UnixSocket(UnixKind::Seqpacket), "socket:[7004]"),
        ],
        inotifies: vec![Inotify {
            lost: true,
            next: 1027,
            watches: vec![FileWatch { wd: 3, path: PathId(4), mask: 0x8000_0fff }],
        }],
        task_files: vec![TaskFile { procfs: b"/proc".to_vec(), pid: 1100, name: b"mem".to_vec() }],
        message_queues: vec![MessageQueue {
            name: b"jobs".to_vec(),
            unlinked: false,
            mode: 0o640,
            uid: 33,
            gid: 34,
            messages: 10,
            size: 8192,
            contents: Some(vec![
                Job { priority: 32_767, bytes: b"urgent".to_vec() },
                Job { priority: 0, bytes: Vec::new() },
            ]),
        }],
        fanotifies: vec![Fanotify {
            flags: 0x602,
            event_flags: 0o100_000,
            privileged: true,
            lost: true,
            marks: vec![
                Mark { scope: Scope::Inode, path: PathId(4), flags: 0x240, mask: 0x4800_0002, ignored: 0x20 },
                Mark { scope: Scope::Mount, path: PathId(2), flags: 0, mask: 0x20, ignored: 0 },
                Mark { scope: Scope::FileSystem, path: PathId(2), flags: 0x440, mask: 0, ignored: 0x10 },
            ],
        }],
        bpf_maps: vec![
            BpfMap {
                kind: bpf::kind::PERCPU_HASH,
                key_size: 2,
                value_size: 3,
                max_entries: 9,
                flags: 1,
                name: b"hits".to_vec(),
                frozen: true,
                trusted: true,
                processors: 2,
                keys: vec![1, 2, 3, 4],
                values: vec![7; 32],
                ..BpfMap::default()
            },
            BpfMap { kind: 27, max_entries: 4096, pin: b"/sys/fs/bpf/events".to_vec(), ..BpfMap::default() },
        ],
        packet_sockets: vec![PacketSocket {
            ino: 4646,
            kind: 3,
            protocol: 0x0800,
            interface: 2,
            mode: 0o140_777,
            uid: 33,
            gid: 34,
            options: option(263, 8, &[1, 0, 0, 0]),
            filter: vec![6, 0, 0, 0, 255, 255, 0, 0],
            memberships: vec![PacketMembership {
                interface: 2,
                kind: 0,
                address: vec![1, 0, 0x5e, 0, 0, 1],
                count: 2,
            }],
            fanout: Some(0x0001_0007),
        }],
        interfaces: vec![Interface { number: 2, name: b"eth0".to_vec() }],
    }
}

fn inet_sockets() -> Vec<InetSocket> {
    let [here, there] =
        [80, 40_000].map(|port| InetAddress { ip: Ipv4Addr::LOCALHOST.into(), port, scope: 0 });
    let linked = InetAddress { ip: "fe80::1".parse().unwrap(), port: 5353, scope: 2 };
    let connection = |other_end| TcpConnection {
        send_seq: 4_294_967_290,
        receive_seq: 77,
        outgoing: b"question".to_vec(),
        unsent: 3,
        incoming: b"answ".to_vec(),
        urgent: Some(TcpUrgent { at: 3, read: false }),
        agreed: TcpAgreement { mss: 1460, window_scale: Some((7, 9)), sack: true, timestamp: Some(1 << 31) },
        window: TcpWindow { snd_wl1: 1, snd_wnd: 2, max_window: 3, rcv_wnd: 4, rcv_wup: 5 },
        ended_here: true,
        ended_there: false,
        other_end,
    };
    let plain = InetSocket {
        ino: 4444,
        v6: false,
        protocol: InetProtocol::Tcp,
        local: Some(here),
        peer: Some(there),
        state: InetState::Connected(connection(Some(1))),
        shutdown: 0,
        mode: 0o140_777,
        uid: 33,
        gid: 34,
        options: option(6, 1, &1u32.to_le_bytes()),
        filter: vec![6, 0, 0, 0, 255, 255, 0, 0],
        memberships: Vec::new(),
        queue: Vec::new(),
    };
    let unconnected = InetSocket { peer: None, ..plain.clone() };
    vec![
        plain.clone(),
        InetSocket {
            local: Some(there),
            peer: Some(here),
            state: InetState::Connected(connection(Some(0))),
            ..plain.clone()
        },
        InetSocket { state: InetState::Connected(connection(None)), ..plain },
        InetSocket { state: InetState::Listening(128), ..unconnected.clone() },
        InetSocket { state: InetState::Ended(b"last words".to_vec()), ..unconnected.clone() },
        InetSocket {
            v6: true,
            protocol: InetProtocol::Udp,
            local: Some(linked),
            state: InetState::Closed,
            shutdown: 2,
            memberships: vec![Membership {
                group: "ff02::fb".parse().unwrap(),
                interface: 2,
                only_these: true,
                sources: vec![linked.ip],
            }],
            queue: vec![Datagram { sender: linked, destination: linked, bytes: b"who?".to_vec() }],
            ..unconnected.clone()
        },
        InetSocket { protocol: InetProtocol::Ping, state: InetState::Closed, ..unconnected.clone() },
        InetSocket { protocol: InetProtocol::Raw(89), state: InetState::Closed, ..unconnected },
    ]
}

fn external(key: &str, kind: ExternalKind, name: &str) -> External {
    External { key: key.into(), kind, name: name.into() }
}

fn pty() -> LivePty {
    let settings = |speed| Settings {
        flags: [0o2400, 0o5, 0o277, 0o105_073],
        line: 0,
        characters: (1..=19).collect(),
        speeds: [speed; 2],
    };
    let line = |bytes: &[u8], end| Line { bytes: bytes.to_vec(), end };
    LivePty {
        settings: settings(38_400),
        locked_settings: settings(0),
        window: [24, 80, 640, 480],
        locked: true,
        packet: true,
        exclusive: false,
        master_exclusive: true,
        closed: true,
        flow: Flow::Stopped,
        mode: 0o020_620,
        uid: 33,
        gid: 5,
        control: None,
        input: vec![line(b"one\n", LineEnd::Own), line(b"", LineEnd::EndOfFile), line(b"tw", LineEnd::Open)],
        output: b"caf\xc3\xa9\r\n".to_vec(),
    }
}

/// Expires every second, at moments of CLOCK_REALTIME.
const TIMERFD: Timerfd =
    Timerfd { clock: 0, flags: 1, interval_ns: 1_000_000_000, next_ns: 1_790_000_000_000_000_000, ticks: 2 };

fn description(target: Target, flags: u32, position: u64) -> Description {
    Description { target, flags, position, notify: None }
}

fn somebody() -> PeerCredentials {
    PeerCredentials { pid: 99, uid: 33, gid: 34, groups: vec![4, 34] }
}

fn unix_socket(kind: UnixKind, peer: Peer) -> UnixSocket {
    UnixSocket {
        ino: 4343,
        kind,
        address: b"run/server".to_vec(),
        file: Some(SocketFile {
            path: b"/srv/run/server".to_vec(),
            mode: 0o140_755,
            uid: 33,
            gid: 34,
            dev: 0x801,
            ino: 78,
        }),
        peer,
        shutdown: 2,
        mode: 0o140_777,
        uid: 33,
        gid: 34,
        peer_credentials: Some(somebody()),
        options: option(1, 7, &425_984u32.to_le_bytes()),
        filter: vec![6, 0, 0, 0, 255, 255, 0, 0],
        queue: vec![Message {
            bytes: b"passed on".to_vec(),
            sender: Vec::new(),
            credentials: Some(Credentials { pid: 100, uid: 33, gid: 34 }),
            descriptions: vec![DescriptionId(4), DescriptionId(1)],
            out_of_band: false,
        }],
    }
}

fn task(pid: Pid, ppid: Pid, abi: Abi) -> Task {
    let fd =
        |fd, id, close_on_exec| FdEntry { fd: TaskFd(fd), description: DescriptionId(id), close_on_exec };
    Task {
        pid,
        ppid,
        pgid: 100,
        sid: 50,
        exit_signal: 17,
        shares: Shares { directories: (pid != 100).then_some(100), ..Shares::default() },
        abi,
        exe: PathId(if abi == Abi::Ia32 { 2 } else { 1 }),
        cwd: PathId(0),
        root: PathId(0),
        umask: 0o22,
        personality: 0,
        dumpable: 1,
        child_subreaper: false,
        oom_score_adj: -17,
        coredump_filter: 0x33,
        login_uid: 1000,
        xcomp_permission: 7,
        attributes: TaskAttributes {
            thp_disable: 3,
            memory_merge: true,
            mdwe: 1,
            lock_future: 6,
            membarrier: 0x14,
            timer_restore_ids: true,
        },
        rlimits: vec![(1024, u64::MAX); 16],
        actions: vec![Action {
            signal: 17,
            handler: Addr(0x0804_9000),
            flags: 0x1400_0000,
            restorer: Addr(0x0804_9100),
            mask: 1 << 16,
        }],
        pending: Vec::new(),
        stopped: (pid != 100).then_some(GroupStop { signal: 20, told: true }),
        interval_timers: [
            IntervalTimer { interval_us: 0, value_us: 1_500_000 },
            IntervalTimer::default(),
            IntervalTimer::default(),
        ],
        timers: vec![timer(abi)],
        fds: vec![fd(0, 0, false), fd(1, 2, false), fd(3, 1, true), fd(7, 3, false)],
        locks: vec![
            Lock { kind: LockKind::Ofd, exclusive: true, fd: TaskFd(7), start: 3, len: 1 << 33 },
            Lock { kind: LockKind::Lease, exclusive: false, fd: TaskFd(3), start: 0, len: 0 },
        ],
        ldt: vec![UserDesc { entry: 3, base: 0x1000_0000, limit: 0xfff, flags: 0x51 }],
        threads: vec![
            thread(pid, abi, Seccomp::Filters { filters: vec![FilterId(0), FilterId(1)], speculation: true }),
            thread(pid + 1000, abi, if abi == Abi::Ia32 { Seccomp::Strict } else { Seccomp::Off }),
        ],
    }
}

fn timer(abi: Abi) -> Timer {
    Timer {
        id: 3,
        clock: if abi == Abi::Ia32 { -6 } else { 1 },
        notify: 0,
        thread: 0,
        signal: 34,
        value: 0xf7f0_1000,
        interval_ns: 20_000_000,
        left_ns: 5_000_000,
        fired: false,
        overrun: 2,
    }
}

fn thread(tid: Pid, abi: Abi, seccomp: Seccomp) -> Thread {
    let mut info = vec![0u8; 128];
    info[0] = 10;
    Thread {
        tid,
        comm: if abi == Abi::Ia32 { b"counter".to_vec() } else { b"sh".to_vec() },
        exited: None,
        regs: match abi {
            Abi::X86_64 => regs(0x7fff_0000_1234, 0x33),
            Abi::Ia32 => regs(0xf7f0_1234, 0x23),
        },
        time_left_ns: (abi == Abi::Ia32).then_some(1_500_000_000),
        xstate: vec![0; 832],
        tls: match abi {
            Abi::X86_64 => Vec::new(),
            Abi::Ia32 => vec![UserDesc { entry: 12, base: 0xf7d0_0500, limit: 0xf_ffff, flags: 0x51 }],
        },
        sigmask: 0x1_0000,
        pending: vec![Pending { info }],
        altstack: AltStack { base: Addr(0x1000), size: 8192, flags: 0 },
        robust_list_64: (abi == Abi::X86_64).then_some(RobustList { head: Addr(0x7f00_0000_0010), len: 24 }),
        robust_list_32: (abi == Abi::Ia32).then_some(RobustList { head: Addr(0xf7d0_0510), len: 12 }),
        rseq: Some(Rseq { area: Addr(0xf7d0_0800), size: 32, signature: 0x5305_3053, flags: 0 }),
        clear_child_tid: Addr(0xf7d0_0568),
        sched: Sched {
            policy: 0,
            flags: 0,
            nice: 5,
            priority: 0,
            runtime: 2_800_000,
            deadline: 0,
            period: 0,
            affinity: vec![3],
            io_priority: 0,
        },
        creds: Creds {
            uid: [0, 1, 2, 3],
            gid: [4, 5, 6, 7],
            groups: vec![20, 100],
            cap_inheritable: 0,
            cap_permitted: 0x1ff,
            cap_effective: 0x1ff,
            cap_bounding: 0x1ff_ffff_ffff,
            cap_ambient: 0,
            securebits: 0,
            no_new_privs: true,
        },
        parent_death_signal: 15,
        personality: (tid > 1000).then_some(0x40_0008),
        timer_slack_ns: 50_000,
        seccomp,
        dispatch: (abi == Abi::X86_64).then_some(Dispatch {
            selector: Addr(0x7000),
            offset: 0x40_0000,
            len: 0x1000,
        }),
        attributes: ThreadAttributes {
            tsc: 2,
            mce_kill: 1,
            io_flusher: true,
            speculation: [5, 9, 3],
            policy: MemoryPolicy { mode: 0x8002, nodes: vec![3] },
        },
    }
}

/// All alike, but for the selectors: code, stack, ds, es, fs, gs.
fn regs(value: u64, cs: u64) -> Regs {
    let mut regs = [value; 27];
    for (place, selector) in [(17, cs), (20, 0x2b), (23, 0x2b), (24, 0x2b), (25, 0), (26, 0x63)] {
        regs[place] = selector;
    }
    Regs(regs)
}

fn space(abi: Abi, first_page: u64) -> Space {
    let vma = |start, pages: u64, prot, backing| Vma {
        start: Addr(start),
        end: Addr(start + pages * 4096),
        prot,
        flags: 0,
        backing,
    };
    let top = match abi {
        Abi::X86_64 => 0x7fff_f7fc_0000,
        Abi::Ia32 => 0xf7fc_0000,
    };
    let vdso = VdsoId(if abi == Abi::X86_64 { 0 } else { 1 });
    Space {
        vmas: vec![
            Vma { flags: 3 << vm::KEY_SHIFT, ..vma(0x0804_8000, 16, 5, Backing::PrivateFile(PathId(1), 0)) },
            vma(0x0900_0000, 200, 3, Backing::Anonymous),
            vma(0x0a00_0000, 4, 3, Backing::Shared(SharedId(0), 0)),
            Vma { flags: vm::SEALED, ..vma(0x0b00_0000, 1, 1, Backing::SharedFile(PathId(4), 0)) },
            Vma { flags: vm::HUGE_2_MIB, ..vma(0x0c00_0000, 512, 3, Backing::HugePages(1 << 21)) },
            vma(0x0d00_0000, 1, 3, Backing::AioRing),
            vma(top, 4, 1, Backing::Vvar),
            vma(top + 0x4000, 2, 1, Backing::VvarVclock),
            vma(top + 0x6000, 1, 5, Backing::Vdso(vdso)),
            Vma { flags: vm::PARKED, ..vma(top + 0x8000, 1, 5, Backing::Vdso(VdsoId(vdso.0 + 2))) },
            Vma { flags: vm::GROWS_DOWN | vm::ACCOUNTED, ..vma(top + 0x1_0000, 33, 3, Backing::Anonymous) },
        ],
        runs: vec![
            Run { start: Addr(0x0804_9000), pages: 1, first_page },
            Run { start: Addr(0x0900_0000), pages: 1, first_page: first_page + 1 },
            Run { start: Addr(top + 0x3_0000), pages: 1, first_page: first_page + 2 },
        ],
        policies: vec![AreaPolicy {
            start: Addr(0x0900_0000),
            end: Addr(0x090c_8000),
            policy: MemoryPolicy { mode: 3, nodes: vec![1, 1 << 63] },
        }],
        guards: vec![Guard { start: Addr(0x0900_2000), end: Addr(0x0900_4000) }],
        names: vec![AreaName { start: Addr(0x0900_0000), end: Addr(0x090c_8000), name: b"Go: heap".into() }],
        aio: vec![AioContext { start: Addr(0x0d00_0000), head: 126, tail: 1, events: vec![7; 64] }],
        keys: 1 << 3 | 1 << 15,
        layout: Layout { start_brk: Addr(0x0900_0000), brk: Addr(0x0900_1234), ..Layout::default() },
        auxv: vec![0; 2 * usize::try_from(abi.word()).unwrap()],
    }
}
