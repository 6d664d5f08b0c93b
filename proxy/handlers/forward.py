"""Commands of one slot that a handler sends itself.

Used by `renamed` and `guarded`. What they share: find where the keys live, refuse what spans two
places, give the command to the client's own queue and hand back a future of its reply.

Always true: `deliver` of every submitted command is called once, by the node's reply, its deadline
or its loss, so a future made here always ends.
"""

import asyncio
from collections.abc import Callable, Sequence

from proxy import errors, wire
from proxy.handlers import Session
from proxy.handlers.targets import followed, written_by
from proxy.wire.rules import Makes, Rule


def locate_all(
    session: Session,
    request: wire.Request,
    arguments: list[bytes],
    keys: Sequence[int] | None = None,
) -> list[wire.Location] | bytes:
    """Return where each key of a command lives, all in one slot, or the error line.

    keys are the positions of the keys, where the caller has asked the request for them already.
    """
    return place_all(session.downstream, request, arguments, request.keys if keys is None else keys)


def place_all(
    side: wire.Downstream, request: wire.Request, arguments: list[bytes], keys: Sequence[int]
) -> list[wire.Location] | bytes:
    """Return the same by the rules alone, for whoever has no session: `explain` asks it too."""
    locations: list[wire.Location] = []
    refusal = _taken_over(side.ruleset, request.row, [arguments[i] for i in keys])
    if refusal is not None:
        return refusal
    source = -1
    for place, position in enumerate(keys):
        location = side.locate(arguments[position], request.row, place=place, source=source)
        if isinstance(location, bytes):
            return location
        if locations and location.cluster != locations[0].cluster:
            return errors.CROSS_CLUSTER
        if locations and location.slot != locations[0].slot:
            return errors.CROSSSLOT
        locations.append(location)
        source = locations[0].keyspace
    # No key where the table says that there are some: the arguments cannot be read for certain.
    return locations or request.keys_error


def _taken_over(rules: wire.Ruleset, row: int, keys: list[bytes]) -> bytes | None:
    """Return the error line where a key would be given what another keyspace holds.

    Where values are looked into, nobody has looked into those. The data plane asks the same of the
    commands that it forwards.
    """
    if len(keys) < 2 or rules.commands[row].makes not in (Makes.SECOND, Makes.CARRIED):
        return None
    given = rules.find_keyspace(keys[-1])
    if given < 0 or not rules.keyspaces[given].json_errors:
        return None
    if all(rules.find_keyspace(key) == given for key in keys):
        return None
    return rules.keyspaces[given].part_error if rules.breach(given, Rule.VALUE) else None


def followers(
    session: Session, request: wire.Request, locations: Sequence[wire.Location]
) -> list[bytes]:
    """Return what is sent behind a command, given where each of its keys lives.

    It is what rules ask for, and what ends the fetches of keys that PostgreSQL stands behind.
    """
    own = followers_of(session.downstream, request, locations)
    if session.server.reads is None:
        return own
    return followed(request.ruleset, own, written_by(request).values())


def followers_of(
    side: wire.Downstream, request: wire.Request, locations: Sequence[wire.Location]
) -> list[bytes]:
    """Return what rules alone ask for."""
    return [
        frame
        for place, location in enumerate(locations)
        if location.keyspace >= 0
        for frame in side.followers(location, request.row, place, request.command)
    ]


def send_followed(
    session: Session,
    request: wire.Request,
    locations: Sequence[wire.Location],
    arguments: list[bytes],
    translate: Callable[[bytes], bytes] | None = None,
) -> asyncio.Future[bytes]:
    """Queue the command, and right behind it what rules ask for; return a future of its reply."""
    future = send(session, request, locations[0], arguments, translate)
    follow = followers(session, request, locations)
    if follow:
        session.downstream.follow(locations[0], follow, request.received)
    return future


def send(
    session: Session,
    request: wire.Request,
    location: wire.Location,
    arguments: list[bytes],
    translate: Callable[[bytes], bytes] | None = None,
) -> asyncio.Future[bytes]:
    """Queue the command for the node that owns the location; return a future of its reply."""
    return ask(session, location, arguments, request.row, request.received, translate)


def ask(
    session: Session,
    location: wire.Location,
    arguments: list[bytes],
    row: int,
    received: float,
    translate: Callable[[bytes], bytes] | None = None,
) -> asyncio.Future[bytes]:
    """Queue a command of our own, on the client's own lane; return a future of its reply.

    It is sent again, and measured, as the row of the command table says that it counts as.
    """
    return ask_packed(session, location, wire.pack(arguments), row, received, translate)


def ask_packed(
    session: Session,
    location: wire.Location,
    frame: bytes,
    row: int,
    received: float,
    translate: Callable[[bytes], bytes] | None = None,
) -> asyncio.Future[bytes]:
    """Queue a frame in the same way."""
    future: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

    def deliver(reply: bytes) -> None:
        if future.done():
            return
        try:
            future.set_result(translate(reply) if translate is not None else reply)
        except (ValueError, IndexError):
            # A node that answers something else than this command can.
            future.set_result(errors.INTERNAL)

    session.downstream.submit(location, frame, row, received, deliver)
    return future
