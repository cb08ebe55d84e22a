"""prompt.py TREE PROGRAM: a command processor of Windows, run by Wine in a tree of its own, below this process. That takes in what
leaves its parent, as the server of Wine does, so all of it is one tree of tasks. `type LINE` is answered by what the line printed."""

import ctypes
import os
import subprocess
import sys
import time

import desk

PR_SET_CHILD_SUBREAPER = 36

tree, program = sys.argv[1:]
# What a caller left open would reach out of the tree.
os.closerange(3, 1024)
assert ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) == 0
said = open(desk.SCRATCH + "/said", "w+b")


def enter():
    os.chroot(tree)
    os.chdir("/scratch")


environment = {"HOME": "/root", "PATH": "/usr/bin:/bin", "WINEDEBUG": "-all"}
# Without echo it prompts for nothing.
child = subprocess.Popen(["wine", program, "/q"], stdin=subprocess.PIPE, stdout=said, stderr=said, env=environment, preexec_fn=enter)


def typed(line, mark):
    """What is printed until the mark is."""
    start = os.path.getsize(said.name)
    # It reads more than a line from a pipe, and forgets what it has not carried out.
    child.stdin.write(f"{line}& echo {mark}\r\n".encode())
    child.stdin.flush()
    while True:
        with open(said.name, "rb") as file:
            file.seek(start)
            text = file.read().decode(errors="replace")
        if mark in text:
            return " ".join(text.partition(mark)[0].split())
        assert child.poll() is None, text
        time.sleep(0.01)


for number, (words, answer) in enumerate(desk.commands()):
    assert words[0] == "type", words
    answer(typed(" ".join(words[1:]), f"[{number}]"))
