"""A program on a pseudo terminal of this one: what is typed there, and all that has been shown. What is typed is shown by the terminal,
so marks to wait for are made of two parts."""

import os
import pty
import select


class Terminal:
    def __init__(self, program, **environment):
        self.pid, self.master = pty.fork()
        if self.pid == 0:
            os.environ.update(environment)
            os.execv(program[0], program)
        self.shown = b""

    def command(self, words):
        """`type TEXT` types a line, `half TEXT` one without its end, `key NUMBER` a control character. The answer to `screen` is all that
        has been shown, as one line; to others, `done`."""
        if words[0] == "type":
            os.write(self.master, " ".join(words[1:]).encode() + b"\n")
        elif words[0] == "half":
            os.write(self.master, " ".join(words[1:]).encode())
        elif words[0] == "key":
            os.write(self.master, bytes([int(words[1])]))
        self.look()
        return self.shown.decode().replace("\r", "").replace("\n", "|") if words[0] == "screen" else "done"

    def look(self):
        """Reads what there is to read; false when the program has left the terminal."""
        while select.select([self.master], [], [], 0)[0]:
            try:
                self.shown += os.read(self.master, 4096)
            except OSError:
                return False
        return True

    def end(self):
        """Waits until the program has ended."""
        while self.look():
            select.select([self.master], [], [])
        os.waitpid(self.pid, 0)
        os.close(self.master)
