"""Functions: FCALL where its keys live, libraries on every primary.

Nodes keep libraries themselves, over restarts and failovers; a primary that was added without them
does not have any. So libraries that were loaded here are kept (`shelf`), and `runs` sends those
that could hold a function to a node that does not know it, and then the call. They are sent
without REPLACE: what a node has is never older for it.

A library may also be missing because another sidecar has deleted it. So the other primaries are
asked first: one that at least half of them have is lacking at the node, and one that none has is
forgotten. Half, so that what a deletion has left at one primary does not spread from there, and
that primaries may be doubled.

Always true: what changes libraries is sent to every primary of every cluster, and succeeds only
where all of them succeed, a deletion where all that had the library do; the error says how many
did. What is to be deleted is forgotten before the nodes are asked.
"""

import asyncio
from collections.abc import Awaitable, Mapping, Sequence

from proxy import errors, resp, wire
from proxy.handlers import Handler, Session
from proxy.handlers.everywhere import (
    all_succeeded,
    ask_aside_everywhere,
    ask_primaries,
    every_cluster,
    merge_of,
    merged,
    succeeded,
)
from proxy.handlers.forward import send
from proxy.handlers.runs import Frames
from proxy.handlers.scripts import emptied, kill, run
from proxy.upstream.errands import Errands

NOT_FOUND = b"-ERR Function not found\r\n"
LIBRARY_NOT_FOUND = b"-ERR Library not found\r\n"
NONE = b"*0\r\n"  # what FUNCTION LIST answers for a library that is not there


def call(session: Session, request: wire.Request) -> bytes | Awaitable[bytes]:
    """FCALL and FCALL_RO."""
    words = request.arguments
    name = words[1].lower()
    spellings = (b"'%b'" % name, b'"%b"' % name)

    def mend(error: bytes) -> Frames | Awaitable[Frames]:
        if error != NOT_FOUND:
            return ()
        # Who registers a function writes its name in quotes, so a slip of the name loads nothing.
        libraries = {
            library: code
            for library, code in session.server.libraries.bodies().items()
            if any(spelling in code.lower() for spelling in spellings)
        }
        return _mended(session, libraries, wire.pack(words)) if libraries else ()

    return run(session, request, words, name, mend)


async def _mended(session: Session, libraries: Mapping[bytes, bytes], call: bytes) -> Frames:
    """Return a call behind the libraries that its node lacks; nothing where it lacks none."""
    shelf = session.server.libraries
    lacking = await asyncio.gather(*(_is_lacking(session, name) for name in libraries))
    loads = [
        wire.pack([b"FUNCTION", b"LOAD", code])
        for (name, code), lacks in zip(libraries.items(), lacking, strict=True)
        # What was deleted while others were asked is not brought back.
        if lacks and shelf.get(name) is code
    ]
    return (*loads, call) if loads else ()


async def _is_lacking(session: Session, library: bytes) -> bool:
    """Return whether a library that a primary does not have is there but for that one."""
    server = session.server
    errands = Errands(server.router, server.batch)
    slots = server.router.slots
    places = [place for cluster in every_cluster(session) for place in slots.places(cluster)]
    words = [b"FUNCTION", b"LIST", b"LIBRARYNAME", library]
    replies = await asyncio.gather(*(errands.tell(place, words) for place in places))
    told = succeeded(replies)
    having = len(told) - told.count(NONE)
    # The primary that asks is among them. Without others there is nobody to know better.
    others = len(told) - 1
    if others > 0 and not having:
        server.libraries.drop(library)
    return len(places) == 1 or 0 < others <= 2 * having


def load(session: Session, request: wire.Request) -> Awaitable[bytes]:
    words, shelf = request.arguments, session.server.libraries
    arrival = shelf.expect()

    def remember(replies: Sequence[bytes]) -> bytes:
        names = [reply[reply.index(b"\r\n") + 2 : -2] for reply in succeeded(replies)[:1]]
        shelf.arrive(arrival, dict.fromkeys(names, words[-1]))
        return all_succeeded(replies)

    return merged(ask_primaries(session, request, words, every_cluster(session)), remember)


def delete(session: Session, request: wire.Request) -> Awaitable[bytes]:
    """FUNCTION DELETE: a primary that did not have the library has nothing to do."""
    words, shelf = request.arguments, session.server.libraries
    # Forgotten before the nodes are asked: a call behind this one must not bring it back.
    kept, arrival = shelf.forget(words[2]), shelf.expect()

    def conclude(replies: Sequence[bytes]) -> bytes:
        telling = [reply for reply in replies if reply != LIBRARY_NOT_FOUND]
        shelf.arrive(arrival, {} if succeeded(replies) or not telling else kept)
        return all_succeeded(telling or replies)

    return merged(ask_primaries(session, request, words, every_cluster(session)), conclude)


def replace(session: Session, request: wire.Request) -> Awaitable[bytes]:
    """FUNCTION FLUSH and RESTORE: what nodes have afterwards, is not known here."""
    return emptied(session, request, session.server.libraries)


def describe(session: Session, request: wire.Request) -> bytes | Awaitable[bytes]:
    """FUNCTION LIST and DUMP, of one primary of the default cluster: all have the same."""
    router = session.server.router
    places = router.slots.places(router.ruleset.default_cluster)
    if not places:
        return errors.CLUSTERDOWN
    return send(session, request, places[0], request.arguments)


def stats(session: Session, request: wire.Request) -> Awaitable[bytes]:
    """FUNCTION STATS: what runs, wherever that is, and the libraries of any primary.

    On connections of their own, as in SCRIPT KILL. So it is asked when all before it is answered,
    and nothing behind it is taken until it is answered itself.
    """
    session.downstream.hold()
    return _stats(session, request.arguments)


async def _stats(session: Session, words: Sequence[bytes]) -> bytes:
    try:
        replies = await ask_aside_everywhere(session, words, every_cluster(session))
    finally:
        session.downstream.release()
    return merge_of(replies, lambda told: running(told, session.protocol))


def running(replies: Sequence[bytes], protocol: int) -> bytes:
    """Return the first report that something runs, or else the first report."""
    reports = succeeded(replies)
    if not reports:
        return replies[0]
    nothing = resp.null(protocol)
    return next((report for report in reports if resp.elements(report)[1] != nothing), reports[0])


HANDLERS: dict[bytes, Handler] = {
    b"fcall": call,
    b"fcall_ro": call,
    b"function|load": load,
    b"function|delete": delete,
    b"function|flush": replace,
    b"function|restore": replace,
    b"function|list": describe,
    b"function|dump": describe,
    b"function|stats": stats,
    b"function|kill": kill,
}
