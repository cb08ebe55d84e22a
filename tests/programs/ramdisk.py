"""A disk in memory: a memfd with holes, written by system calls and read through a mapping, and the other way round. The
command `check` answers `BLOCKS WRONG`: blocks that were read so far, and how many of them were not what had been written."""

import fcntl
import hashlib
import mmap
import os
import threading

import desk

BLOCK, BLOCKS, SPREAD = 4096, 2000, 8

disk = os.memfd_create("disk", os.MFD_ALLOW_SEALING)
os.ftruncate(disk, BLOCK * BLOCKS * SPREAD)
fcntl.fcntl(disk, 1033, 0x2 | 0x4)  # F_ADD_SEALS: it neither shrinks nor grows.
view = mmap.mmap(disk, BLOCK * BLOCKS * SPREAD)
written, done, wrong, lock = {}, 0, 0, threading.Lock()


def contents(number, turn):
    return hashlib.sha256(b"%d %d" % (number, turn)).digest() * (BLOCK // 32)


def checked():
    with lock:
        return f"{done} {wrong}"


desk.serve(checked)
turn = 0
while True:
    turn += 1
    number = turn * 7919 % BLOCKS
    at = number * SPREAD * BLOCK
    expected = contents(number, written[number]) if number in written else bytes(BLOCK)
    right = view[at : at + BLOCK] == expected and os.pread(disk, BLOCK, at) == expected
    right &= view[at + BLOCK : at + 2 * BLOCK] == bytes(BLOCK)
    if turn % 2:
        os.pwrite(disk, contents(number, turn), at)
    else:
        view[at : at + BLOCK] = contents(number, turn)
    written[number] = turn
    with lock:
        done += 1
        wrong += not right
