"""i386 servers with clients of both ABIs, all in one tree and connected by TCP: redis and memcached.

Each client counts itself and the total up in redis, by transactions of which several are on their way at a time, and sees that each is answered
once and in order; and that memcached gives it what it has put there. The command `check` answers `COUNTED WRONG`: the
lowest of all counts, and what is not as it should be.
"""

import socket
import subprocess
import sys
import time

import desk

REDIS, MEMCACHED = 6410, 11311
SERVERS = [
    ["/usr/bin/redis-server", "--port", str(REDIS), "--save", "", "--dir", "/scratch"],
    ["/usr/bin/memcached", "-u", "root", "-l", "127.0.0.1", "-p", str(MEMCACHED), "-t", "2"],
]
PROGRAMS = ["/usr/bin/python3", "/host/usr/bin/python3"] * 2
BURST = 20


class Connection:
    """Lines to and from a server that may not listen yet."""

    def __init__(self, port):
        while True:
            try:
                self.socket = socket.create_connection(("127.0.0.1", port))
                break
            except ConnectionRefusedError:
                time.sleep(0.01)
        self.answers = self.socket.makefile("rb")

    def send(self, text):
        self.socket.sendall(text.encode())

    def hear(self, expected):
        heard = self.answers.readline().decode().removesuffix("\r\n")
        assert heard == expected, f"{heard!r} instead of {expected!r}"

    def number(self):
        return int(self.answers.readline().decode().removeprefix(":"))


def work(me):
    redis, memcached, mine, total = Connection(REDIS), Connection(MEMCACHED), 0, 0
    while True:
        redis.send(f"MULTI\r\nINCR count-{me}\r\nINCR total\r\nEXEC\r\n" * BURST)
        value = f"{me} has counted to {mine}, " * (mine % 300)
        memcached.send(f"set value-{me} 0 0 {len(value)}\r\n{value}\r\nget value-{me}\r\n")
        for _ in range(BURST):
            for expected in ("+OK", "+QUEUED", "+QUEUED", "*2"):
                redis.hear(expected)
            mine += 1
            redis.hear(f":{mine}")
            before, total = total, redis.number()
            assert total > before, f"{total} after {before}"
        for expected in ("STORED", f"VALUE value-{me} 0 {len(value)}", value, "END"):
            memcached.hear(expected)


def check(redis, children):
    keys = [f"count-{me}" for me in range(1, len(PROGRAMS) + 1)]
    redis.send(f"MGET total {' '.join(keys)}\r\n")
    redis.hear(f"*{len(keys) + 1}")
    counts = []
    for _ in range(len(keys) + 1):
        # `$-1` is of a key that there is not yet.
        length = redis.answers.readline()
        counts.append(0 if length == b"$-1\r\n" else redis.number())
    total, *each = counts
    wrong = (total != sum(each)) + sum(child.poll() is not None for child in children)
    return f"{min(each)} {wrong}"


def main():
    children = [subprocess.Popen(server) for server in SERVERS]
    children += [subprocess.Popen([program, __file__, str(me)]) for me, program in enumerate(PROGRAMS, 1)]
    redis = Connection(REDIS)
    for words, answer in desk.commands():
        assert words == ["check"], words
        answer(check(redis, children))


work(int(sys.argv[1])) if len(sys.argv) > 1 else main()
