"""One command to one node on a connection of its own, opened for it and closed behind it.

For what must get through while the shared connections are stuck behind a script that does not end:
a busy node reads no more from the connection that the script came by, and answers BUSY elsewhere
to all but HELLO, AUTH and what ends or describes scripts.

Always true: it takes no longer than the endpoint's timeout and gives one reply, or an error line.
"""

import asyncio

from proxy import errors, wire
from proxy.upstream.connection import Endpoint

READ_BYTES = 65536


async def ask_aside(endpoint: Endpoint, command: bytes, protocol: int) -> bytes:
    """Return the node's reply to a frame; CLUSTERDOWN where the node cannot be asked."""
    hello = [b"HELLO", b"%d" % protocol]
    if endpoint.password is not None:
        user = endpoint.username or "default"
        hello += [b"AUTH", user.encode(), endpoint.password.reveal().encode()]
    try:
        async with asyncio.timeout(endpoint.timeout):
            reader, writer = await asyncio.open_connection(
                endpoint.host,
                endpoint.port,
                ssl=endpoint.tls,
                server_hostname=endpoint.server_name if endpoint.tls else None,
            )
            try:
                writer.write(wire.pack(hello) + command)
                greeting, rest = await _reply(reader, b"")
                return greeting if greeting[:1] == b"-" else (await _reply(reader, rest))[0]
            finally:
                writer.transport.abort()
    except (OSError, EOFError, ValueError):
        return errors.CLUSTERDOWN


async def _reply(reader: asyncio.StreamReader, received: bytes) -> tuple[bytes, bytes]:
    """Return one reply and what was received behind it."""
    while not received or (end := wire.frame_end(received, 0)) < 0:
        data = await reader.read(READ_BYTES)
        if not data:
            raise EOFError
        received += data
    return received[:end], received[end:]
