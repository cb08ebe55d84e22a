"""Threads that grow data structures of every kind, checked by hash.

    growing.py            run; the command `check` answers `STEPS HASH`, with the threads held meanwhile
    growing.py STEPS      print the hash that STEPS steps of each thread must have, and end

Each thread owns its structures and derives step N from step N-1 alone, so that the hash after any number of
steps is known. Run for a control under another Python and no checkpoint.
"""

import hashlib
import sys
import threading

THREADS = 6


class Grower:
    def __init__(self, number):
        self.number = number
        self.steps = 0
        self.seed = number + 1
        self.words = {}
        self.row = []
        self.raw = bytearray()
        self.big = 1

    def step(self):
        # A linear congruential generator: exact on every machine.
        self.seed = (self.seed * 6364136223846793005 + 1442695040888963407) % 2**64
        key = f"key-{self.seed % 5000}"
        self.words[key] = self.words.get(key, ()) [-3:] + (self.seed,)
        self.row.append(self.seed / 2**64)
        if len(self.row) > 3000:
            del self.row[:1000]
        self.raw += self.seed.to_bytes(8, "little")
        if len(self.raw) > 200_000:
            del self.raw[:100_000]
        self.big = (self.big * (self.seed | 1)) % (2**521 - 1)
        self.steps += 1

    def digest(self):
        state = (sorted(self.words.items()), [x.hex() for x in self.row], bytes(self.raw), self.big)
        return hashlib.sha256(repr(state).encode()).hexdigest()


def digest(growers):
    return hashlib.sha256("".join(g.digest() for g in growers).encode()).hexdigest()[:32]


def replay(steps):
    growers = [Grower(n) for n in range(THREADS)]
    for grower in growers:
        for _ in range(steps):
            grower.step()
    print(digest(growers))


def run():
    import desk

    growers = [Grower(n) for n in range(THREADS)]
    # Every round all threads take ten steps, then meet: between two meetings all have done the same.
    meeting = threading.Barrier(THREADS + 1)

    def grow(grower):
        while True:
            meeting.wait()
            for _ in range(10):
                grower.step()
            meeting.wait()

    for grower in growers:
        threading.Thread(target=grow, args=(grower,), daemon=True).start()

    pending = []
    lock = threading.Lock()

    def listen():
        for words, answer in desk.commands():
            with lock:
                pending.append((words, answer))

    threading.Thread(target=listen, daemon=True).start()
    while True:
        meeting.wait()
        meeting.wait()
        with lock:
            for words, answer in pending:
                assert words == ["check"], words
                assert len({g.steps for g in growers}) == 1
                answer(f"{growers[0].steps} {digest(growers)}")
            pending.clear()


if len(sys.argv) > 1:
    replay(int(sys.argv[1]))
else:
    run()
