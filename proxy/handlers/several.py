"""Commands about several keys of which PostgreSQL stands behind some: MGET EXISTS DEL UNLINK MSET.

`backed` gives them here. Each key is answered by the rule of its own keyspace, order and duplicates
kept; keys of others are Redis' alone.

Always true: one error makes the whole reply that error. A nil in the place of what could not be
had would be taken for "there is no such row".
"""

import asyncio
from collections.abc import Awaitable, Iterable

from proxy import errors, resp, wire
from proxy.errors import OriginError
from proxy.handlers import Session, in_redis, waiting
from proxy.handlers.ageing import lengthened
from proxy.handlers.forward import ask
from proxy.handlers.gathered import Gathered
from proxy.handlers.lookups import answer_of_string
from proxy.handlers.reading import Found, Reads, There
from proxy.handlers.targets import Target, targets_of
from proxy.handlers.told import Refused
from proxy.wire.rules import AWAY_WORDS

PTTL = b"PTTL"

READS = frozenset((b"mget", b"exists"))

# How many words belong to a key.
WRITES = {b"del": 1, b"unlink": 1, b"mset": 2}


async def read(session: Session, request: wire.Request, reads: Reads) -> bytes:
    """Answer MGET or EXISTS of several keys."""
    words = request.arguments
    keys, targets = list(dict.fromkeys(words[1:])), targets_of(request)
    places = _places(session, request, keys)
    if isinstance(places, bytes):
        return places
    await reads.leases.settled(targets.values())
    # What is owed, and what lives where changes may not have been heard of, counts as away.
    apart = {
        key for key, target in targets.items()
        if reads.leases.owes(target)
        or (target.plan.detour.reads != "error" and in_redis.passed_by(session, places[key]))
    }  # fmt: skip
    # All questions are queued before the first answer is waited for.
    asked = {
        key: _asked(session, request, place, targets.get(key))
        for key, place in places.items() if key not in apart
    }  # fmt: skip
    found: dict[bytes, bytes] = {}
    gathered = Gathered(session.downstream)

    async def fetch(key: bytes) -> None:
        # What a node has said is kept no longer than it takes to read it.
        said = asked.pop(key, None)
        element = await _element(session, request, reads, targets.get(key), said)
        if not gathered.add(len(element)):
            found.clear()
            raise Refused(errors.TIMEOUT)
        found[key] = element

    for error in await asyncio.gather(*map(fetch, keys), return_exceptions=True):
        if isinstance(error, Refused):
            return error.line
        if isinstance(error, BaseException):
            raise error
    elements = [found[key] for key in words[1:]]
    if request.name == b"mget":
        return resp.array(elements)
    return resp.integer(sum(int(element[1:-2]) for element in elements))


async def write(session: Session, request: wire.Request) -> bytes:
    """Delete the copies of several keys in Redis, or set them there."""
    words, targets = request.arguments, targets_of(request)
    step = WRITES[request.name]
    # Of a key that is named twice the last value stays.
    values = {words[at]: words[at + 1 : at + step] for at in range(1, len(words), step)}
    places = _places(session, request, values)
    if isinstance(places, bytes):
        return places
    if request.name == b"mset" and any(
        in_redis.unseen(session, places[key], [target]) for key, target in targets.items()
    ):
        return errors.CLUSTERDOWN
    reads = session.server.reads
    assert reads is not None
    for key in targets:
        reads.changed(key)
    sent: list[Awaitable[bytes]] = [
        in_redis.as_one(
            session, place, _frames(session, request, place, number, values[key], targets.get(key)),
            _own(targets, key), request.received,
        )
        for number, (key, place) in enumerate(places.items())
    ]  # fmt: skip
    replies = await asyncio.gather(*sent)
    failed = next((reply for reply in replies if reply[:1] == b"-"), None)
    if failed is not None:
        done = sum(reply[:1] != b"-" for reply in replies)
        return errors.partial(failed, done, len(replies))
    if request.name == b"mset":
        return resp.OK
    return resp.integer(sum(int(reply[1:-2]) for reply in replies))


def _frames(
    session: Session,
    request: wire.Request,
    place: wire.Location,
    number: int,
    value: list[bytes],
    target: Target | None,
) -> list[bytes]:
    """Return the command for one key, and what rules send behind it."""
    behind = session.downstream.followers(place, request.row, number, request.command)
    if place.keyspace < 0:
        behind = []
    window = 0 if target is None else target.plan.age.window_ms
    return [
        wire.pack([request.arguments[0], place.name, *value]),
        *(lengthened(request.ruleset, frame, window) for frame in behind),
    ]


def _own(targets: dict[bytes, Target], key: bytes) -> Iterable[Target]:
    return (targets[key],) if key in targets else ()


def _places(
    session: Session, request: wire.Request, keys: Iterable[bytes]
) -> dict[bytes, wire.Location] | bytes:
    """Return where each key lives, or the error line of the first that may not be asked for."""
    places: dict[bytes, wire.Location] = {}
    cluster = -1
    for key in keys:
        place = session.downstream.locate(key, request.row)
        if isinstance(place, bytes):
            return place
        if cluster not in (-1, place.cluster):
            return errors.CROSS_CLUSTER
        cluster = place.cluster
        places[key] = place
    return places


def _asked(
    session: Session, request: wire.Request, place: wire.Location, target: Target | None
) -> tuple[asyncio.Future[bytes] | None, asyncio.Future[bytes]]:
    """Queue the questions for one key: how long it lives, where that matters, and the command."""
    left = None
    if target is not None and target.plan.age.window_ms:
        left = ask(session, place, [PTTL, place.name], request.row, request.received)
    words = [request.arguments[0], place.name]
    return left, ask(session, place, words, request.row, request.received)


async def _element(
    session: Session,
    request: wire.Request,
    reads: Reads,
    target: Target | None,
    asked: tuple[asyncio.Future[bytes] | None, asyncio.Future[bytes]] | None,
) -> bytes:
    """Return one key's part of the reply; `asked` is None where its node is not. Raises Refused."""
    time, reply = None, errors.CLUSTERDOWN
    if asked is not None:
        time, reply = (None if asked[0] is None else await asked[0]), await asked[1]
    if target is None or target.plan.read is None:
        return _part(request, reply)
    if reply.startswith(AWAY_WORDS):
        kept = await waiting.found(session, target) or await reads.away(target)
        if kept is None:
            raise Refused(reply)
        return _of(session, request, reads, target, kept)
    part = _part(request, reply)
    old = _old(target, time)
    if part not in (b"$-1\r\n", b"_\r\n", b":0\r\n") and not old:
        left = _left(time)
        if left is not None and 0 <= left <= target.plan.age.window_ms:
            reads.refresh(target, left)
        return part
    value = await waiting.found(session, target) or await reads.value(target)
    if isinstance(value, There):
        value = await reads.bypass(target)
    if isinstance(value, OriginError) and old and _within(target, time):
        reads.metrics.answer(target.plan.name, "stale")
        return part
    return _of(session, request, reads, target, value)


def _left(time: bytes | None) -> int | None:
    return int(time[1:-2]) if time is not None and time[:1] == b":" else None


def _old(target: Target, time: bytes | None) -> bool:
    """Return whether a value is older than clients may see while PostgreSQL can be asked."""
    age, left = target.plan.age, _left(time)
    if time is None or (left is not None and left < 0):
        return False
    return left is None or age.past_ms(left) > age.stale_ms


def _within(target: Target, time: bytes | None) -> bool:
    left = _left(time)
    return left is not None and target.plan.age.bears_errors(left)


def _part(request: wire.Request, reply: bytes) -> bytes:
    """Return the element of a reply that is about one key. Raises Refused."""
    if reply[:1] == b"-":
        raise Refused(reply)
    try:
        return resp.elements(reply)[0] if request.name == b"mget" else reply
    except (ValueError, IndexError):
        raise Refused(errors.INTERNAL) from None


def _of(
    session: Session,
    request: wire.Request,
    reads: Reads,
    target: Target,
    found: Found | OriginError,
) -> bytes:
    reads.count(target.plan, found)
    if isinstance(found, OriginError):
        raise Refused(found.line)
    if request.name == b"mget":
        return answer_of_string(found, session.protocol)
    return resp.integer(int(found.value is not None))
