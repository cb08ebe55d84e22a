"""The second level, a 32-bit Python: counts in one thread, passes on in another."""

import queue
import subprocess
import sys
import threading

child = subprocess.Popen(
    ["/host/bin/bash", "/scratch/chain/third.bash", "bash64"], stdin=subprocess.PIPE
)
lines = queue.Queue()


def pass_on():
    while True:
        child.stdin.write(lines.get())
        child.stdin.flush()


threading.Thread(target=pass_on, daemon=True).start()
for count, line in enumerate(sys.stdin.buffer, 1):
    lines.put(line.rstrip() + f" {sys.argv[1]}={count}\n".encode())
