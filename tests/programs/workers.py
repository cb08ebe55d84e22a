"""multiprocessing over pipes: numbered jobs go to four worker processes and come back.

Pipes are one-way: a two-way multiprocessing.Pipe is a socket pair. The command `check` answers
`JOBS WRONG`: jobs that came back so far, and how many of them with a wrong answer or out of order.
"""

import multiprocessing
import threading

import desk

WORKERS = 4


def result(job):
    return (job, sum(i * i for i in range(job % 200)), f"{job:08d}" * 20)


def work(jobs, results):
    while True:
        results.send(result(jobs.recv()))


def main():
    context = multiprocessing.get_context("fork")
    pipes = []
    for _ in range(WORKERS):
        job_end, jobs = context.Pipe(duplex=False)
        results, result_end = context.Pipe(duplex=False)
        context.Process(target=work, args=(job_end, result_end), daemon=True).start()
        pipes.append((jobs, results))

    done, wrong, lock = 0, 0, threading.Lock()

    def checked():
        with lock:
            return f"{done} {wrong}"

    desk.serve(checked)
    sent = 0
    while True:
        # Several jobs are always on their way, in the pipes and in the workers.
        for jobs, _ in pipes:
            for _ in range(5):
                jobs.send(sent)
                sent += 1
        first = sent - 5 * WORKERS
        for number, (_, results) in enumerate(pipes):
            for nth in range(5):
                job = first + 5 * number + nth
                right = results.recv() == result(job)
                with lock:
                    done += 1
                    wrong += not right


main()
