#!/usr/bin/env python3
"""tree.py ROOT_PID [NAME=VALUE...]: prints a process tree with each task's ABI and code segment.

The ABI of a task is the ELF class of its executable; the code segment is what the kernel says the first
thread stands in now: 0x33 is 64-bit code, 0x23 is 32-bit code. NAME=VALUE pairs fill the last column for
the tasks that carry that NAME on their command line.
"""

import ctypes
import os
import struct
import sys

PTRACE_DETACH, PTRACE_GETREGSET, PTRACE_SEIZE, PTRACE_INTERRUPT = 17, 0x4204, 0x4206, 0x4207
NT_PRSTATUS = 1
WALL = 0x40000000

libc = ctypes.CDLL(None, use_errno=True)
libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
libc.ptrace.restype = ctypes.c_long


class Iovec(ctypes.Structure):
    _fields_ = [("base", ctypes.c_void_p), ("len", ctypes.c_size_t)]


def ptrace(request, pid, addr=None, data=None):
    if libc.ptrace(request, pid, addr, data) < 0:
        raise OSError(ctypes.get_errno(), f"ptrace {request:#x} of {pid}")


def code_segment(pid):
    """The cs register; the kernel answers in the layout of the mode the thread stands in."""
    buffer = ctypes.create_string_buffer(512)
    iov = Iovec(ctypes.addressof(buffer), len(buffer))
    ptrace(PTRACE_SEIZE, pid)
    try:
        ptrace(PTRACE_INTERRUPT, pid)
        os.waitpid(pid, WALL)
        ptrace(PTRACE_GETREGSET, pid, NT_PRSTATUS, ctypes.addressof(iov))
    finally:
        ptrace(PTRACE_DETACH, pid)
    if iov.len == 68:  # struct user_regs_struct of i386: 17 words, cs is the 14th
        return struct.unpack_from("<I", buffer, 13 * 4)[0]
    return struct.unpack_from("<Q", buffer, 17 * 8)[0]


def abi(pid):
    with open(f"/proc/{pid}/exe", "rb") as exe:
        return {1: "ia32", 2: "x86_64"}[exe.read(5)[4]]


def children(pid):
    with open(f"/proc/{pid}/task/{pid}/children", encoding="ascii") as file:
        return sorted(int(child) for child in file.read().split())


def walk(pid, depth=0):
    yield pid, depth
    for child in children(pid):
        yield from walk(child, depth + 1)


def main():
    root = int(sys.argv[1])
    counters = dict(pair.split("=", 1) for pair in sys.argv[2:])
    print(f"  {'PID':>6}  {'ABI':6}  {'CS':4}  {'PROGRAM':30} COUNTER")
    for pid, depth in walk(root):
        with open(f"/proc/{pid}/comm", encoding="utf-8") as file:
            comm = file.read().strip()
        with open(f"/proc/{pid}/cmdline", encoding="utf-8", errors="replace") as file:
            words = file.read().split("\0")
        level = next((word for word in words if word in counters), "")
        name = "  " * depth + (f"{comm} ({level})" if level else comm)
        print(f"  {pid:6}  {abi(pid):6}  {code_segment(pid):#x}  {name:30} {counters.get(level, '-')}")


main()
