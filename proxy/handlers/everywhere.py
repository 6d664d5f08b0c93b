"""One command to every primary of one or more clusters, and the ways to make one reply of many.

    replies = ask_primaries(session, request, words, [cluster, ...])
    return merged(replies, summed)

Always true: the command is queued at every primary before `ask_primaries` returns, on the client's
own connections, so it stands in the client's order at each of them; each primary gives one reply,
its own or an error line of ours; a cluster without a primary gives one error line instead of none.
Merging functions take replies as bytes, in the order of the clusters and their first slots.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from functools import partial

from proxy import errors, resp, wire
from proxy.handlers import Session
from proxy.upstream import aside

Merge = Callable[[Sequence[bytes]], bytes]


class _Collector:
    """Counts replies down; the future ends with the last of them."""

    __slots__ = ("future", "left", "replies")

    def __init__(self, places: int) -> None:
        self.future: asyncio.Future[list[bytes]] = asyncio.get_running_loop().create_future()
        self.replies = [b""] * places
        self.left = places

    def take(self, place: int, reply: bytes) -> None:
        self.replies[place] = reply
        self.left -= 1
        if not self.left and not self.future.done():
            self.future.set_result(self.replies)


def every_cluster(session: Session) -> Iterable[int]:
    """Return the indexes of all clusters."""
    return range(session.server.router.slots.clusters)


def database_clusters(session: Session) -> Iterable[int]:
    """Return the indexes of the clusters of a client's database: the one it chooses, or all."""
    chosen = session.downstream.default_cluster
    return every_cluster(session) if chosen < 0 else (chosen,)


def ask_primaries(
    session: Session, request: wire.Request, words: Sequence[bytes], clusters: Iterable[int]
) -> asyncio.Future[list[bytes]]:
    """Queue a command at every primary of these clusters; return a future of all replies.

    To be called before the handler returns or first awaits, as all that has a place in the order.
    """
    # A client that has something to say follows the router's newest map: see Downstream.
    slots = session.server.router.slots
    places: list[wire.Location | None] = []
    for cluster in clusters:
        places += slots.places(cluster) or [None]
    collector = _Collector(len(places))
    command = wire.pack(words)
    for place, location in enumerate(places):
        take = partial(collector.take, place)
        if location is None:
            take(errors.CLUSTERDOWN)
        else:
            session.downstream.submit(location, command, request.row, request.received, take)
    return collector.future


async def merged(replies: Awaitable[list[bytes]], merge: Merge) -> bytes:
    """Return one reply of many, when they are in."""
    return merge_of(await replies, merge)


def merge_of(replies: Sequence[bytes], merge: Merge) -> bytes:
    """Return one reply of many. What no node says in answer to the command is an internal error."""
    try:
        return merge(replies)
    except (ValueError, IndexError):
        return errors.INTERNAL


def succeeded(replies: Sequence[bytes]) -> list[bytes]:
    return [reply for reply in replies if reply[:1] != b"-"]


def all_succeeded(replies: Sequence[bytes]) -> bytes:
    """Return the first reply, or the first error with the number of those that took effect."""
    good = succeeded(replies)
    if len(good) == len(replies):
        return replies[0]
    error = next(reply for reply in replies if reply[:1] == b"-")
    return errors.partial(error, len(good), len(replies)) if good else error


def one_succeeded(replies: Sequence[bytes]) -> bytes:
    """Return the first success, or the first error."""
    return (succeeded(replies) or replies)[0]


def summed(replies: Sequence[bytes]) -> bytes:
    """Return the sum of integers; one error is the whole reply."""
    return _error(replies) or resp.integer(sum(int(reply[1:-2]) for reply in replies))


def each_true(replies: Sequence[bytes]) -> bytes:
    """Return an array of 0 or 1: by position, whether all say 1; one error is the whole reply."""
    error = _error(replies)
    if error:
        return error
    columns = zip(*(resp.elements(reply) for reply in replies), strict=True)
    return resp.array([min(column) for column in columns])


def _error(replies: Sequence[bytes]) -> bytes:
    return next((reply for reply in replies if reply[:1] == b"-"), b"")


async def ask_aside_everywhere(
    session: Session, words: Sequence[bytes], clusters: Iterable[int]
) -> list[bytes]:
    """Ask every primary on connections of their own, beside all order; return all replies."""
    slots, pools = session.server.router.slots, session.server.pools
    command = wire.pack(words)
    asked = [
        aside.ask_aside(node.connections[0][0].endpoint, command, session.protocol)
        for cluster in clusters
        for place in slots.places(cluster)
        if (node := pools.clusters[cluster].owner_of(place.slot)) is not None
    ]
    return await asyncio.gather(*asked) or [errors.CLUSTERDOWN]
