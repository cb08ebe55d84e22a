# A server of asyncio that sends back what it hears, line by line, to as many clients as there are. SIGTERM ends it.

import asyncio
import signal


async def serve(reader, writer):
    async for line in reader:
        writer.write(line)
        await writer.drain()
    writer.close()


async def main():
    ended = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, ended.set)
    await asyncio.start_server(serve, "127.0.0.1", 7007, backlog=1000)
    await ended.wait()


asyncio.run(main())
