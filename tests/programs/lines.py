"""lines.py COUNT PAUSE: COUNT chunks of 500 pseudo-random lines on stdout, PAUSE seconds after each; the
chunk it is at stands in /scratch/progress."""

import os
import sys
import time

count, pause = int(sys.argv[1]), float(sys.argv[2])
progress = os.open("/scratch/progress", os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o644)
seed = 1
for chunk in range(count):
    lines = []
    for _ in range(500):
        seed = (seed * 6364136223846793005 + 1442695040888963407) % 2**64
        lines.append(f"{seed:016x} {chunk}\n")
    sys.stdout.write("".join(lines))
    sys.stdout.flush()
    os.pwrite(progress, b"%8d" % (chunk + 1), 0)
    time.sleep(pause)
