"""A prefork server: twenty workers with what their parent has loaded, shared copy-on-write.

The parent freezes its objects (gc.freeze), so that collections leave their pages alone, and forks. Each worker answers questions
about the common table over a pipe, and keeps a count of its own. The command `check` answers `QUESTIONS WRONG MEMORY`: answers
so far, how many were wrong, and the KiB of anonymous memory of the whole family, shared pages counted once.
"""

import gc
import os
import struct
import threading

import desk

WORKERS = 20
ROWS = 40000


def text_of(number):
    return f"row {number * 7919 % ROWS:06d}"


def work(questions, answers, table):
    count = 0
    while True:
        (number,) = struct.unpack("<I", os.read(questions, 4))
        count += 1
        os.write(answers, f"{count} {table[number]}".ljust(32).encode())


def family_kib(pids):
    kib = 0
    for pid in pids:
        with open(f"/proc/{pid}/smaps_rollup") as rollup:
            kib += sum(int(line.split()[1]) for line in rollup if line.startswith("Pss_Anon:"))
    return kib


def main():
    table = [text_of(number) for number in range(ROWS)]
    gc.disable()
    gc.freeze()
    pipes, pids = [], [os.getpid()]
    for _ in range(WORKERS):
        questions, ask = os.pipe()
        hear, answers = os.pipe()
        pid = os.fork()
        if pid == 0:
            gc.enable()
            work(questions, answers, table)
        os.close(questions)
        os.close(answers)
        pipes.append((ask, hear))
        pids.append(pid)

    done, wrong, lock = 0, 0, threading.Lock()

    def checked():
        with lock:
            return f"{done} {wrong} {family_kib(pids)}"

    desk.serve(checked)
    number = 0
    while True:
        for turn in range(50):
            # All are asked before the first is heard.
            for worker, (ask, _) in enumerate(pipes):
                os.write(ask, struct.pack("<I", (number + worker) % 500))
            for worker, (_, hear) in enumerate(pipes):
                right = f"{number // WORKERS + 1} {text_of((number + worker) % 500)}"
                heard = os.read(hear, 32).decode().rstrip()
                with lock:
                    done += 1
                    wrong += heard != right
            number += WORKERS


main()
