"""A proxy written in an afternoon: everybody's commands over one shared redis-py client.

    python shared_client.py LISTEN_PORT NODE_PORT

With redis-py 4.5.1 a cancelled command gives its connection back with the reply still on the way,
and the next caller reads it. The hunt for wrong replies must find that, or it proves nothing.
"""

import asyncio
import sys

import hiredis
import redis.asyncio
from redis.exceptions import RedisError, ResponseError


async def serve(client, reader, writer):
    """Run one client's commands in turn; cancelled when the client goes away."""
    requests = hiredis.Reader()
    running = None
    while data := await reader.read(65536):
        requests.feed(data)
        running = asyncio.ensure_future(answer(client, requests, writer, running))
    if running is not None:
        running.cancel()
    writer.close()


async def answer(client, requests, writer, before):
    if before is not None:
        await before
    while (words := requests.gets()) is not False:
        try:
            writer.write(render(await client.execute_command(*words)))
        except (RedisError, OSError) as error:
            text = str(error) if isinstance(error, ResponseError) else f"ERR {error}"
            writer.write(f"-{text}\r\n".encode())


def render(value):
    if isinstance(value, list):
        return b"*%d\r\n" % len(value) + b"".join(map(render, value))
    if isinstance(value, int):
        return b":%d\r\n" % value
    if value is None:
        return b"$-1\r\n"
    return b"+OK\r\n" if value == b"OK" else b"$%d\r\n%b\r\n" % (len(value), value)


async def main(port, node):
    client = redis.asyncio.Redis(port=node)
    client.response_callbacks.clear()
    server = await asyncio.start_server(lambda *ends: serve(client, *ends), "127.0.0.1", port)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]), int(sys.argv[2])))
