"""Commands over all keys that are no cursor: KEYS, RANDOMKEY, DBSIZE, FLUSHDB, FLUSHALL.

Who may send them is said by roles. What FLUSHDB and FLUSHALL may empty is said by the policies, and
is never a cluster with locks or state unless it is named there. In a database that chooses a
cluster, FLUSHDB and DBSIZE concern that cluster alone.

Always true: names are those of clients, each once; no reply grows beyond what a client may leave
unread. DBSIZE counts what the nodes count: keys of the proxy itself too, and those that no client
can reach, because a node does not count them apart.
"""

import asyncio
import random
from collections.abc import Awaitable, Sequence

from proxy import errors, resp, wire
from proxy.handlers import Handler, Session
from proxy.handlers.everywhere import (
    all_succeeded,
    ask_primaries,
    database_clusters,
    every_cluster,
    merged,
    summed,
)
from proxy.handlers.forward import ask
from proxy.handlers.names import reached
from proxy.handlers.scan import MOST_PER_PAGE, Question, wanted_of
from proxy.handlers.walk import Walk

# Far more than the largest list takes; whoever waits longer waits for others, or for a node.
KEYS_DEADLINE = 10.0  # seconds

# What a name takes beside its own bytes while the list is made.
KEPT_BYTES = 64

# Keys that RANDOMKEY asks for at once, and how often: only keys that no client can reach make a
# second time necessary.
DRAWN = 4
DRAWS = 5


def keys(session: Session, request: wire.Request) -> bytes | Awaitable[bytes]:
    question = Question(request.arguments[1], MOST_PER_PAGE, ())
    wanted = wanted_of(session, question, request.row)
    if isinstance(wanted, bytes):
        return wanted
    return _keys(session, Walk(session, request.row, wanted))


async def _keys(session: Session, walk: Walk) -> bytes:
    found: dict[bytes, None] = {}
    left = session.server.config.limits.output_bytes
    position = walk.start()
    try:
        async with asyncio.timeout(KEYS_DEADLINE), session.server.scans.lists:
            while position is not None and not session.downstream.closing:
                page = await walk.page(position, MOST_PER_PAGE)
                if isinstance(page, bytes):
                    return page
                for name in page.names:
                    if name not in found:
                        found[name] = None
                        left -= len(name) + KEPT_BYTES
                if left < 0:
                    return errors.KEYS_TOO_MANY
                position = page.position
    except TimeoutError:
        return errors.KEYS_TOO_MANY
    return resp.array([resp.bulk(name) for name in found])


def dbsize(session: Session, request: wire.Request) -> Awaitable[bytes]:
    return merged(ask_primaries(session, request, [b"DBSIZE"], database_clusters(session)), summed)


def randomkey(session: Session, request: wire.Request) -> Awaitable[bytes]:
    # Asked for here, before anything of the same client that comes later.
    slots = session.server.router.slots
    places = [place for cluster in every_cluster(session) for place in slots.places(cluster)]
    sizes = ask_primaries(session, request, [b"DBSIZE"], every_cluster(session))
    return _randomkey(session, request, places, sizes)


async def _randomkey(
    session: Session,
    request: wire.Request,
    places: Sequence[wire.Location],
    sizes: Awaitable[list[bytes]],
) -> bytes:
    replies = await sizes
    for reply in replies:
        if not reply.startswith(b":"):
            return reply if reply[:1] == b"-" else errors.INTERNAL
    weights = [int(reply[1:-2]) for reply in replies]
    if len(weights) != len(places) or not any(weights):
        return resp.null(session.protocol)
    for _ in range(DRAWS):
        drawn = random.choices(places, weights, k=DRAWN)
        now = asyncio.get_running_loop().time()
        asked = [ask(session, place, [b"RANDOMKEY"], request.row, now) for place in drawn]
        for place, reply in zip(drawn, await asyncio.gather(*asked), strict=True):
            if reply[:1] == b"-":
                return reply
            if not reply.startswith(b"$") or reply.startswith(b"$-1"):
                continue
            name = reply[reply.index(b"\r\n") + 2 : -2]
            location = reached(session, request.row, place.cluster, name)
            if location is not None:
                return resp.bulk(location[0])
    return resp.null(session.protocol)


def flush(session: Session, request: wire.Request) -> bytes | Awaitable[bytes]:
    words = request.arguments
    if len(words) > 2 or (len(words) == 2 and words[1].upper() not in (b"ASYNC", b"SYNC")):
        return errors.SYNTAX
    clusters: Sequence[int] = session.server.router.ruleset.flushable
    if request.name == b"flushdb":
        own = database_clusters(session)
        clusters = [cluster for cluster in clusters if cluster in own]
    if not clusters:
        return errors.FLUSH_REFUSED
    return merged(ask_primaries(session, request, words, clusters), all_succeeded)


HANDLERS: dict[bytes, Handler] = {
    b"keys": keys,
    b"dbsize": dbsize,
    b"randomkey": randomkey,
    b"flushdb": flush,
    b"flushall": flush,
}
