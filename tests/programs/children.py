"""asyncio with children that are watched by pidfds: many short ones, and some that outlive dumps.

The command `check` answers `DONE WRONG`: how many children have ended, and how many not as they were to.
"""

import asyncio

import desk

SHORT, LONG = 3, 2
done, wrong = 0, 0


async def run(status, pause):
    """A child that ends with a status when it is told to."""
    global done, wrong
    program = "read -r status; exit $status"
    process = await asyncio.create_subprocess_exec("/bin/sh", "-c", program, stdin=asyncio.subprocess.PIPE)
    await asyncio.sleep(pause)
    process.stdin.write(b"%d\n" % status)
    await process.stdin.drain()
    ended = await process.wait()
    done += 1
    wrong += ended != status


async def keep_running(first, pause):
    status = first
    while True:
        await run(status % 256, pause)
        status += 7


async def main():
    loop = asyncio.get_running_loop()
    watcher = asyncio.PidfdChildWatcher()
    watcher.attach_loop(loop)
    asyncio.set_child_watcher(watcher)

    async def tell():
        return f"{done} {wrong}"

    desk.serve(lambda: asyncio.run_coroutine_threadsafe(tell(), loop).result())
    short = (keep_running(n, 0.002) for n in range(SHORT))
    long = (keep_running(n + 100, 0.5) for n in range(LONG))
    await asyncio.gather(*short, *long)


asyncio.run(main())
