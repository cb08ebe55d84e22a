"""A tmux server below this program, which takes in what loses its parent. `tmux ARGUMENTS` runs a command of tmux and answers what it prints;
`attach` and `detach` a client on a terminal, which then takes the commands of terminal.py."""

import ctypes
import os
import subprocess

import desk
from terminal import Terminal

PR_SET_CHILD_SUBREAPER = 36
TMUX = ["/usr/bin/tmux", "-S", "/scratch/tmux", "-f", "/scratch/tmux.conf"]

assert ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) == 0
os.environ["TERM"] = "vt100"
client = None
for words, answer in desk.commands():
    if words[0] == "tmux":
        answer(subprocess.run(TMUX + words[1:], capture_output=True, text=True, check=True).stdout)
    elif words[0] == "attach":
        client = Terminal(TMUX + ["attach-session"])
        answer("done")
    elif words[0] == "detach":
        os.write(client.master, b"\x02d")
        client.end()
        answer("done")
    else:
        answer(client.command(words))
