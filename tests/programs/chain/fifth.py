"""The fifth level, a 64-bit Python started by the 32-bit Perl."""

import subprocess
import sys

child = subprocess.Popen(
    ["/bin/busybox", "sh", "/scratch/chain/sixth.sh", "busybox32"], stdin=subprocess.PIPE
)
for count, line in enumerate(sys.stdin.buffer, 1):
    child.stdin.write(line.rstrip() + f" {sys.argv[1]}={count}\n".encode())
    child.stdin.flush()
