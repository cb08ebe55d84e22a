"""The bench behind ci/bench: runs as pid 1 of a pid namespace with a tmpfs to work in.

For every row a load is started; in each round, for each tool in turn, it is dumped with --leave-running (how
long was it frozen?), dumped and killed, restored, and asked whether all it has is right. A row is the median of
its rounds.

  dump, restore   wall time of the command, ms
  frozen          longest gap that the load itself saw during a dump that leaves it running, ms
  dump-peak,      peak resident memory of the tool, MiB
  restore-peak
  images          bytes in all images, MiB
  synced          with --disk: dump, and until the images are on the disk, ms. A restore reads them from there

Where crr takes more than half of the peer's time, the stages of the round in the middle follow, in ms (`--stats`).

Rows of memory are also compared with what the machine can do at best: as many bytes, copied by all its processors
from memory into a new file, and from that into new memory ("copy").
"""

import argparse
import json
import mmap
import os
import re
import resource
import shutil
import signal
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path

# The words of struct beat in load.c.
READY, BEATS, LONGEST, RESET, VERIFY, VERDICT = range(6)
RIGHT = 1

# name -> (load, kind, number): what load.c is asked for.
ROWS = {
    "tiny/ia32": ("load32", "memory", 1),
    "tiny/x86_64": ("load64", "memory", 1),
    "memory-1g/ia32": ("load32", "memory", 1024),
    "memory-1g+snapshot/ia32": ("load32", "memory", 1024),
    "memory-1g+direct/ia32": ("load32", "memory", 1024),
    "packable-1g/ia32": ("load32", "packable", 1024),
    "packable-1g+lz4/ia32": ("load32", "packable", 1024),
    "packable-1g+zstd/ia32": ("load32", "packable", 1024),
    "memory-2g/x86_64": ("load64", "memory", 2048),
    "memory-2g-8/x86_64": ("load64", "eight", 2048),
    "memory-8g/x86_64": ("load64", "memory", 8192),
    "memory-8g-8/x86_64": ("load64", "eight", 8192),
    "sparse-1g/x86_64": ("load64", "sparse", 1024),
    "threads-100/ia32": ("load32", "threads", 100),
    "threads-100/x86_64": ("load64", "threads", 100),
    "tasks-200/mixed": ("load64", "tasks", 200),
    "tasks-1000/mixed": ("load64", "tasks", 1000),
    "prefork-100/ia32": ("load32", "prefork", 101),
    "prefork-100/x86_64": ("load64", "prefork", 101),
    "fds-1000/ia32": ("load32", "fds", 1000),
    "fds-1000/x86_64": ("load64", "fds", 1000),
    "fds-10000/x86_64": ("load64", "fds", 10000),
    "connections-64/ia32": ("load32", "connections", 64),
    "connections-64/x86_64": ("load64", "connections", 64),
    "connections-5000/ia32": ("load32", "connections", 5000),
    "connections-5000/x86_64": ("load64", "connections", 5000),
    "served-64/ia32": ("load32", "served", 64),
    "served-64/x86_64": ("load64", "served", 64),
    "served-5000/ia32": ("load32", "served", 5000),
    "served-5000/x86_64": ("load64", "served", 5000),
    "vmas-10000/ia32": ("load32", "vmas", 10000),
    "vmas-10000/x86_64": ("load64", "vmas", 10000),
}
# What crr is given in rows with these names, to be compared with the row without: for the dump that leaves the load running, for the other one, for the restore.
VARIANTS = {
    "snapshot": (["--snapshot"], [], []),
    "lz4": (["--compress=lz4"], ["--compress=lz4"], []),
    "zstd": (["--compress=zstd"], ["--compress=zstd"], []),
    "direct": (["--direct-io=always"], ["--direct-io=always"], ["--direct-io=always"]),
}
# What is to grow in proportion, for --scaling: unit -> (load, its sizes as (kind, number)).
SCALES = {
    "task": ("load64", [("tasks", 50), ("tasks", 200), ("tasks", 1000)]),
    "thread": ("load64", [("threads", 50), ("threads", 200), ("threads", 1000)]),
    "descriptor": ("load64", [("fds", 1000), ("fds", 10000), ("ten-tables", 15000), ("ten-tables", 100000)]),
    "area": ("load64", [("vmas", 1000), ("vmas", 10000), ("vmas", 60000)]),
    "MiB": ("load64", [("memory", 64), ("memory", 512), ("memory", 4096)]),
}
# The kinds of load that are memory before all, by MiB.
MEMORY = ("memory", "sparse", "eight", "packable")
MEASURES = ["dump", "synced", "restore", "frozen", "dump-peak", "restore-peak", "images"]
PATIENCE = 120
# The kinds of load that are connections, within the tree or to a client elsewhere.
CONNECTED = ("connections", "served")
# What crr may take of the peer's time; of connections, by the command.
BAR = 0.5
CONNECTED_BAR = 0.1
# Milliseconds that CRIU 4.2 took, without nftables: one that knows nothing newer than Linux 6.15 can dump no internet sockets from 6.16 on.
RECORDED = {"connections-64": {"dump": 434, "restore": 2200}, "served-64": {"dump": 434, "restore": 2200}}


class Failed(Exception):
    """A tool or a load did not do what it had to."""


def until(what, condition):
    end = time.monotonic() + PATIENCE
    while not (value := condition()):
        if time.monotonic() > end:
            raise Failed(f"waited {PATIENCE} s for {what}")
        time.sleep(0.001)
    return value


class Load:
    """A running load and the page it shares with this script."""

    def __init__(self, work, row):
        program, kind, number = ROWS[row]
        self.dir = work / "load"
        self.dir.mkdir()
        beat = self.dir / "beat"
        beat.write_bytes(bytes(mmap.PAGESIZE))
        with open(beat, "r+b") as file:
            self.page = mmap.mmap(file.fileno(), mmap.PAGESIZE)
        other = work / ("load64" if program == "load32" else "load32")
        with open(self.dir / "said", "wb") as said:
            child = subprocess.Popen(
                [work / program, beat, kind, str(number), other],
                cwd=self.dir, stdin=subprocess.DEVNULL, stdout=said, stderr=said, start_new_session=True,
            )
        self.pid = child.pid
        # Once restored it is no child that subprocess knows of: reap() takes care of it.
        child.returncode = 0
        until("the load to be ready", lambda: self.word(READY) or self.check_alive())
        # Who is connected to it from elsewhere.
        self.clients = others() - {self.pid} if kind == "served" else set()

    def word(self, index, value=None):
        if value is not None:
            struct.pack_into("=Q", self.page, 8 * index, value)
        return struct.unpack_from("=Q", self.page, 8 * index)[0]

    def check_alive(self):
        pid, status = os.waitpid(self.pid, os.WNOHANG)
        if pid:
            said = (self.dir / "said").read_text()
            raise Failed(f"the load ended with status {status:#x}: {said}")

    def beats(self, count):
        """Waits until it has beaten that often again."""
        goal = self.word(BEATS) + count
        until("the load to go on", lambda: self.word(BEATS) >= goal or self.check_alive())

    def start_watch(self):
        self.word(RESET, 1)
        until("the load to start its watch", lambda: not self.word(RESET))

    def longest_gap(self):
        self.beats(2)
        return self.word(LONGEST) / 1e6

    def verify(self):
        self.word(VERDICT, 0)
        self.word(VERIFY, 1)
        verdict = until("the load to check itself", lambda: self.word(VERDICT) or self.check_alive())
        if verdict != RIGHT:
            raise Failed("the restored load is not what it was")

    def end(self):
        self.page.close()
        for pid in others():
            os.kill(pid, signal.SIGKILL)
        alone()
        shutil.rmtree(self.dir)


def others():
    return {int(e.name) for e in Path("/proc").iterdir() if e.name.isdigit()} - {os.getpid()}


def alone(but=frozenset()):
    """Reaps until no process of the namespace is left but this one, and those."""

    def nobody():
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            pass
        return others() <= but

    until("all processes to be gone", nobody)


def run(work, command):
    """Runs a tool; returns (wall ms, peak MiB)."""
    result = work / "measured"
    with open(work / "tool.log", "wb") as log:
        subprocess.run(
            [work / "measure", result, *command],
            stdin=subprocess.DEVNULL, stdout=log, stderr=log, check=True, timeout=PATIENCE,
        )
    status, wall, peak = result.read_text().split()
    if status != "0":
        said = (work / "tool.log").read_text(errors="replace")
        raise Failed(f"{' '.join(map(str, command))} ended with {status}:\n{said}")
    return int(wall) / 1e6, int(peak) / 1024


def variant(row, name):
    """What a tool is given in a row, for each of its three commands."""
    return VARIANTS.get(row.split("/")[0].partition("+")[2], ([], [], [])) if name == "crr" else ([], [], [])


def put_on_disk(files):
    """Has the disk take files, and the cache forget them."""
    for file in files:
        descriptor = os.open(file, os.O_RDONLY)
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def one_round(work, row, name, tool, disk=None):
    # A directory of its own: what else is on the disk stays.
    with tempfile.TemporaryDirectory(prefix="crr-bench.", dir=disk or work) as own:
        return one_round_in(Path(own) / "images", work, row, name, tool, disk)


def one_round_in(images, work, row, name, tool, disk):
    load = Load(work, row)
    # Only crr tells where its time went.
    stats = {command: work / f"{command}.json" for command in ("dump", "restore")} if name == "crr" else {}
    said = {command: ["--stats", file] for command, file in stats.items()}
    try:
        measured = {}
        options = ["--tcp-established"] if ROWS[row][1] in CONNECTED else []
        for_running, for_dump, for_restore = variant(row, name)
        dump = [tool, "dump", "-t", str(load.pid), "-D", images, *options]
        load.beats(10)
        images.mkdir()
        load.start_watch()
        run(work, [*dump, "-R", *for_running])
        measured["frozen"] = load.longest_gap()
        shutil.rmtree(images)
        images.mkdir()
        measured["dump"], measured["dump-peak"] = run(work, [*dump, *for_dump, *said.get("dump", [])])
        files = [f for f in images.rglob("*") if f.is_file() and f.suffix != ".log"]
        if disk:
            start = time.monotonic()
            put_on_disk(files)
            measured["synced"] = measured["dump"] + (time.monotonic() - start) * 1000
        alone(but=load.clients)
        measured["images"] = sum(f.stat().st_size for f in files) / 2**20
        restore = [tool, "restore", "-D", images, "-d", *options, *for_restore, *said.get("restore", [])]
        measured["restore"], measured["restore-peak"] = run(work, restore)
        for command, file in stats.items():
            measured[f"{command}-stages"] = stages(json.loads(file.read_text()))
        load.beats(2)
        load.verify()
        return measured
    finally:
        load.end()


def stages(stats):
    """Milliseconds by stage; what is none of them is the start and the end of the process."""
    return {stage["stage"]: stage["seconds"] * 1000 for stage in stats["stages"]}


def spell(stages, wall):
    """Where a command spent its time, the longest stages first."""
    parts = sorted(stages.items(), key=lambda part: -part[1]) + [("start and end", wall - sum(stages.values()))]
    return ", ".join(f"{name} {ms:.1f} ({ms / wall:.0%})" for name, ms in parts if ms > 0.03 * wall)


def copy_limit(work, row, disk):
    """Milliseconds for a plain copy to a file, and back, of as much memory as a row has."""
    _, kind, number = ROWS[row]
    if kind not in MEMORY or number < 64 or disk:
        return {}
    said = subprocess.run([work / "copy", work / "copied", str(number)], check=True, capture_output=True, timeout=PATIENCE)
    return dict(zip(("dump", "restore"), map(float, said.stdout.split())))


def enough_memory(row, disk=None):
    """The load and its images: one of them is gone while the other one is made."""
    _, kind, number = ROWS[row]
    need = (1 if disk else 2) * number + 1024 if kind in MEMORY else 512
    available = int(re.search(r"MemAvailable: +(\d+)", Path("/proc/meminfo").read_text())[1]) // 1024
    return need < available


def show(row, medians, limits):
    names = list(medians)
    for measure in (m for m in MEASURES if any(m in medians[name] for name in names)):
        values = [medians[name].get(measure) for name in names]
        texts = ["failed" if v is None else f"{v:.3f}" if v < 10 else f"{v:.1f}" for v in values]
        ratio = ""
        if len(values) == 2 and None not in values and values[1]:
            ratio = f"{values[0] / values[1]:.2f}"
        if measure in limits and values[0]:
            ratio = f"{ratio:>9}   copy {limits[measure]:.1f}, {limits[measure] / values[0]:.0%} of it reached"
        print(f"{row:24} {measure:14}" + "".join(f"{text:>12}" for text in texts) + f"{ratio:>9}", flush=True)
        row = ""


def scaling(args):
    """What one more of each costs, in small and in large trees."""
    print(f"{'what':22}{'dump':>10}{'each':>12}{'restore':>10}{'each':>12}{'peak, MiB':>12}", flush=True)
    for unit, (program, sizes) in SCALES.items():
        for kind, number in sizes:
            row = f"{number} {unit}s"
            ROWS[row] = (program, kind, number)
            # A restore has every file once, and those of pipes twice for a moment.
            limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
            if unit == "descriptor" and 1.3 * number > limit:
                print(f"{row:22} skipped: the hard limit of RLIMIT_NOFILE is {limit}")
                continue
            if not enough_memory(row, args.disk):
                print(f"{row:22} skipped: not enough memory")
                continue
            rounds = [one_round(args.work, row, "crr", args.crr, args.disk) for _ in range(args.rounds)]
            median = {m: statistics.median(r[m] for r in rounds) for m in MEASURES if m in rounds[0]}
            spelled = "".join(f"{median[m]:7.0f} ms{median[m] * 1000 / number:9.1f} us" for m in ("dump", "restore"))
            print(f"{row:22}{spelled}{max(median['dump-peak'], median['restore-peak']):12.1f}", flush=True)


def bar(row, measure):
    return CONNECTED_BAR if ROWS[row][1] in CONNECTED and measure != "frozen" else BAR


def ratio(medians, measure):
    ours, theirs = (medians.get(name, {}).get(measure) for name in ("crr", "criu"))
    return ours / theirs if ours and theirs else 0


def arguments():
    parser = argparse.ArgumentParser(prog="ci/bench", description=__doc__.split("\n\n", 1)[1],
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-n", "--rounds", type=int, default=5, metavar="N", help="rounds per row (default 5)")
    parser.add_argument("-r", "--rows", type=re.compile, default=re.compile(""), metavar="REGEX",
                        help="only rows that match: " + ", ".join(ROWS))
    parser.add_argument("--scaling", action="store_true",
                        help="only crr, with more and more of one thing: " + ", ".join(f"{unit}s" for unit in SCALES))
    parser.add_argument("--disk", type=Path, metavar="DIR",
                        help="images in this directory, of a disk, instead of a tmpfs: each is on the disk, and out of the cache, before it is restored")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every round to FILE")
    parser.add_argument("--bar", action="store_true", help=f"fail if crr takes more than {BAR} ({CONNECTED_BAR} of connections) of the peer's time in dump, restore or frozen")
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--crr", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--peer", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


def main():
    args = arguments()
    tools = {"crr": args.crr} | ({"criu": args.peer} if args.peer else {})
    # What tools find out once per machine is not part of any row.
    for tool in tools.values():
        subprocess.run([tool, "check"], stdin=subprocess.DEVNULL, capture_output=True, check=False, timeout=PATIENCE)
    alone()
    if args.scaling:
        return scaling(args)
    heading = "".join(f"{name:>12}" for name in tools) + ("    ratio" if args.peer else "")
    print(f"{'row':24} {'median of ' + str(args.rounds):14}{heading}", flush=True)
    rounds, slower, failed = {}, [], []
    for row in filter(args.rows.search, ROWS):
        if not enough_memory(row, args.disk):
            print(f"{row:24} skipped: not enough memory")
            continue
        seen = rounds[row] = {name: [] for name in tools}
        broken = set()
        copies = []
        for number in range(args.rounds):
            copies.append(copy_limit(args.work, row, args.disk))
            # Neither tool always has the warmer machine.
            for name in sorted(tools, reverse=number % 2 == 1):
                if name in broken:
                    continue
                try:
                    seen[name].append(one_round(args.work, row, name, tools[name], args.disk))
                except (Failed, subprocess.SubprocessError) as error:
                    broken.add(name)
                    print(f"{name}: {row}: {error}", file=sys.stderr, flush=True)
        medians = {
            name: {} if name in broken else {m: statistics.median(r[m] for r in list_) for m in MEASURES if m in list_[0]}
            for name, list_ in seen.items()
        }
        recorded = RECORDED.get(row.split("/")[0])
        if "criu" in broken and recorded:
            print(f"{row}: compared with what was recorded of the peer")
            medians["criu"] = recorded
        show(row, medians, {measure: statistics.median(c[measure] for c in copies) for measure in copies[0]})
        failed += [row] if "crr" in broken else []
        judged = () if row.partition("+")[1] else ("dump", "restore", "frozen")
        missed = [m for m in judged if ratio(medians, m) > bar(row, m)]
        slower += [f"{row} {measure} ({ratio(medians, measure):.2f} of {bar(row, measure)})" for measure in missed]
        for command in dict.fromkeys("dump" if measure == "frozen" else measure for measure in missed):
            middle = sorted(seen["crr"], key=lambda one: one[command])[len(seen["crr"]) // 2]
            print(f"{'':24} {command} spent: {spell(middle[f'{command}-stages'], middle[command])}", flush=True)
    if args.json:
        args.json.write_text(json.dumps(rounds, indent=1))
    if slower:
        print("more of the peer's time than may be: " + ", ".join(slower))
    if failed:
        sys.exit("failed: " + ", ".join(failed))
    sys.exit(1 if args.bar and slower else 0)


main()
