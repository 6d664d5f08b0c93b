"""Commands of one slot that a handler sends on itself.

Used by `renamed` and `guarded`. What they share: find where the keys live, refuse what spans two
places, give the command to the client's own queue and hand back a future of its reply.

Always true: `deliver` of every submitted command is called once, by the node's reply, its deadline
or its loss, so a future made here always ends.
"""

import asyncio
from collections.abc import Callable

from proxy import errors, wire
from proxy.handlers import Session


def locate_all(
    session: Session, request: wire.Request, arguments: list[bytes]
) -> list[wire.Location] | bytes:
    """Return where each key of a command lives, all in one slot, or the error line."""
    locations: list[wire.Location] = []
    for position in request.keys:
        location = session.downstream.locate(arguments[position], request.row)
        if isinstance(location, bytes):
            return location
        if locations and location.cluster != locations[0].cluster:
            return errors.CROSS_CLUSTER
        if locations and location.slot != locations[0].slot:
            return errors.CROSSSLOT
        locations.append(location)
    # No key where the table says that there are some: the arguments cannot be read for certain.
    return locations or errors.SYNTAX


def send(
    session: Session,
    request: wire.Request,
    location: wire.Location,
    arguments: list[bytes],
    translate: Callable[[bytes], bytes] | None = None,
) -> asyncio.Future[bytes]:
    """Queue the command for the node that owns the location; return a future of its reply."""
    future: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

    def deliver(reply: bytes) -> None:
        if future.done():
            return
        try:
            future.set_result(translate(reply) if translate is not None else reply)
        except (ValueError, IndexError):
            # A node that answers something else than this command can.
            future.set_result(errors.INTERNAL)

    session.downstream.submit(
        location, wire.pack(arguments), request.row, request.received, deliver
    )
    return future
