"""A program with much in its memory, all of it known by checksums: blocks, some of which are replaced all the time.

    hoard.py MIB

The command `check` answers `REPLACED WRONG`: blocks that were replaced so far, and how many of all differ from their checksums.
"""

import random
import sys
import threading
import zlib

import desk

SIZE = 1 << 20


CONTENTS = random.Random(1).randbytes(SIZE)


def block(number):
    start = number * 4099 % SIZE
    return CONTENTS[start:] + CONTENTS[:start]


blocks = [block(number) for number in range(int(sys.argv[1]))]
sums = [zlib.crc32(one) for one in blocks]
replaced, lock = 0, threading.Lock()


def checked():
    with lock:
        return f"{replaced} {sum(zlib.crc32(one) != known for one, known in zip(blocks, sums))}"


desk.serve(checked)
while True:
    new = block(3 * replaced)
    with lock:
        blocks[replaced % len(blocks)], sums[replaced % len(blocks)] = new, zlib.crc32(new)
        replaced += 1
