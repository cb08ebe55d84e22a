"""asyncio: an event loop over epoll with timers, socket pairs, a child that is watched, an eventfd and signals.

The command `check` answers `DONE WRONG`: what came back so far, and how much of it was wrong or too late.
"""

import asyncio
import os
import signal
import threading

import desk

PAIRS = 4
done, wrong = 0, 0


def count(right):
    global done, wrong
    done += 1
    wrong += not right


async def echo(reader, writer):
    while line := await reader.readline():
        writer.write(b"%d\n" % (int(line) * 3))
        await writer.drain()


async def ask(path):
    """Numbers go over a connection, and come back times three."""
    reader, writer = await asyncio.open_unix_connection(path)
    number = 0
    while True:
        numbers = range(number, number + 5)
        writer.writelines(b"%d\n" % n for n in numbers)
        for n in numbers:
            count(int(await reader.readline()) == n * 3)
        number += 5
        await asyncio.sleep(0.002)


async def child():
    """A child that doubles numbers, by pipes."""
    loop = asyncio.get_running_loop()
    there, back = os.pipe(), os.pipe()
    if os.fork() == 0:
        os.close(there[1])
        with open(there[0], "rb", 0) as numbers, open(back[1], "wb", 0) as answers:
            for line in numbers:
                answers.write(b"%d\n" % (int(line) * 2))
        os._exit(0)
    os.close(there[0])
    os.close(back[1])
    reader = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), open(back[0], "rb", 0))
    transport, _ = await loop.connect_write_pipe(asyncio.BaseProtocol, open(there[1], "wb", 0))
    number = 0
    while True:
        transport.write(b"%d\n" % number)
        count(int(await reader.readline()) == number * 2)
        number += 1
        await asyncio.sleep(0.001)


async def counter():
    """A thread counts an eventfd up; the loop is told."""
    if not hasattr(os, "eventfd"):
        return
    loop = asyncio.get_running_loop()
    fd = os.eventfd(0, os.EFD_NONBLOCK)
    counted = asyncio.Queue()
    loop.add_reader(fd, lambda: counted.put_nowait(os.eventfd_read(fd)))
    pause = threading.Semaphore(0)

    def write():
        while True:
            pause.acquire()
            os.eventfd_write(fd, 7)

    threading.Thread(target=write, daemon=True).start()
    while True:
        pause.release()
        count(await counted.get() == 7)
        await asyncio.sleep(0.003)


async def signals():
    """A signal to itself is told by way of the loop's own socket pair."""
    loop = asyncio.get_running_loop()
    told = asyncio.Event()
    loop.add_signal_handler(signal.SIGUSR2, told.set)
    while True:
        os.kill(os.getpid(), signal.SIGUSR2)
        await told.wait()
        told.clear()
        count(True)
        await asyncio.sleep(0.005)


async def main():
    loop = asyncio.get_running_loop()
    await asyncio.start_unix_server(echo, "/scratch/loop.socket")

    async def tell():
        return f"{done} {wrong}"

    desk.serve(lambda: asyncio.run_coroutine_threadsafe(tell(), loop).result())
    await asyncio.gather(child(), counter(), signals(), *(ask("/scratch/loop.socket") for _ in range(PAIRS)))


asyncio.run(main())
