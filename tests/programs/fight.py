"""Processes of both ABIs that fight for a SQLite database and for a file behind a lock.

Each of them counts itself and the total up, in transactions of the database and in a file that is locked (flock) meanwhile, and sees
that its own count is as it left it. The command `check` answers `COUNTED WRONG`: the lowest of all
counts, and what is not as it should be.
"""

import fcntl
import sqlite3
import struct
import subprocess
import sys
import time

import desk

PROGRAMS = ["/usr/bin/python3", "/host/usr/bin/python3"] * 2
DATABASE, LOCKED = "/scratch/fight.sqlite", "/scratch/locked"
COUNTS = struct.Struct(f"<{len(PROGRAMS) + 1}Q")


def connect():
    return sqlite3.connect(DATABASE, timeout=600, isolation_level=None)


class Lock:
    """The file, locked, and read anew."""

    def __init__(self):
        self.file = open(LOCKED, "r+b", buffering=0)

    def __enter__(self):
        fcntl.flock(self.file, fcntl.LOCK_EX)
        self.file.seek(0)
        self.counts = list(COUNTS.unpack(self.file.read()))
        return self

    def write(self):
        self.file.seek(0)
        self.file.write(COUNTS.pack(*self.counts))

    def __exit__(self, *_):
        fcntl.flock(self.file, fcntl.LOCK_UN)


def work(me):
    db, locked, mine = connect(), Lock(), 0
    while True:
        db.execute("BEGIN IMMEDIATE")
        (stored,) = db.execute("SELECT n FROM count WHERE who = ?", (me,)).fetchone()
        assert stored == mine, f"{me} has counted to {mine}, not {stored}"
        db.execute("UPDATE count SET n = n + 1 WHERE who IN (?, 0)", (me,))
        db.execute("COMMIT")
        with locked:
            assert locked.counts[me] == mine, f"{me} has counted to {mine}, not {locked.counts[me]}"
            for who in (me, 0):
                locked.counts[who] += 1
                locked.write()
        mine += 1
        # So that no one has both all the time.
        time.sleep(0.001)


def check(db, locked, workers):
    db.execute("BEGIN IMMEDIATE")
    counts = [n for (n,) in db.execute("SELECT n FROM count ORDER BY who")]
    (integrity,) = db.execute("PRAGMA integrity_check").fetchone()
    db.execute("COMMIT")
    with locked:
        others = list(locked.counts)
    wrong = sum(total != sum(each) for total, *each in (counts, others))
    wrong += (integrity != "ok") + sum(worker.poll() is not None for worker in workers)
    return f"{min(counts + others)} {wrong}"


def main():
    with open(LOCKED, "wb") as file:
        file.write(bytes(COUNTS.size))
    db = connect()
    db.execute("PRAGMA journal_mode = DELETE")
    db.execute("PRAGMA synchronous = OFF")
    db.execute("CREATE TABLE count (who INTEGER PRIMARY KEY, n INTEGER)")
    db.executemany("INSERT INTO count VALUES (?, 0)", ((who,) for who in range(len(PROGRAMS) + 1)))
    workers = [subprocess.Popen([program, __file__, str(me)]) for me, program in enumerate(PROGRAMS, 1)]
    locked = Lock()
    for words, answer in desk.commands():
        assert words == ["check"], words
        answer(check(db, locked, workers))


work(int(sys.argv[1])) if len(sys.argv) > 1 else main()
