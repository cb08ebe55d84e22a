"""A terminal: a shell as its child on a pseudo terminal. `type TEXT` types a line, `half TEXT` one without its end, `key NUMBER` a control character; `screen`
gives all that has been shown, as one line. What is typed is shown by the terminal, so marks are made of two parts."""

import os
import pty
import select
import sys

import desk

pid, master = pty.fork()
if pid == 0:
    os.environ["PS1"] = "prompt> "
    os.environ["TERM"] = "dumb"
    os.execv(sys.argv[1], sys.argv[1:])

shown = b""


def look():
    """Reads what there is to read."""
    global shown
    while select.select([master], [], [], 0)[0]:
        try:
            shown += os.read(master, 4096)
        except OSError:
            return


for words, answer in desk.commands():
    if words[0] == "type":
        os.write(master, " ".join(words[1:]).encode() + b"\n")
    elif words[0] == "half":
        os.write(master, " ".join(words[1:]).encode())
    elif words[0] == "key":
        os.write(master, bytes([int(words[1])]))
    look()
    answer(shown.decode().replace("\r", "").replace("\n", "|") if words[0] == "screen" else "done")
