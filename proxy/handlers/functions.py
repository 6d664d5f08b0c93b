"""Functions: FCALL where its keys live, libraries on every primary.

Nodes keep libraries themselves, over restarts and failovers; a primary that was added without them
does not have any. So libraries that were loaded here are kept (`shelf`), and `runs` sends those
that could hold a function to a node that does not know it, and then the call. They are sent
without REPLACE: what a node has is never older for it.

Always true: what changes libraries is sent to every primary of every cluster, and succeeds only
where all of them succeed; the error says how many did.
"""

from collections.abc import Awaitable, Sequence

from proxy import errors, resp, wire
from proxy.handlers import Handler, Session
from proxy.handlers.everywhere import (
    all_succeeded,
    ask_aside_everywhere,
    ask_primaries,
    every_cluster,
    merged,
    succeeded,
)
from proxy.handlers.forward import send
from proxy.handlers.runs import Frames
from proxy.handlers.scripts import kill, run

NOT_FOUND = b"-ERR Function not found\r\n"


def call(session: Session, request: wire.Request) -> bytes | Awaitable[bytes]:
    """FCALL and FCALL_RO."""
    words = request.arguments
    name = words[1].lower()
    spellings = (b"'%b'" % name, b'"%b"' % name)

    def mend(error: bytes) -> Frames:
        if error != NOT_FOUND:
            return ()
        # Who registers a function writes its name in quotes, so a slip of the name loads nothing.
        loads = [
            wire.pack([b"FUNCTION", b"LOAD", code])
            for code in session.server.libraries.bodies()
            if any(spelling in code.lower() for spelling in spellings)
        ]
        return (*loads, wire.pack(words)) if loads else ()

    return run(session, request, words, name, mend)


def load(session: Session, request: wire.Request) -> Awaitable[bytes]:
    words = request.arguments

    def remember(replies: Sequence[bytes]) -> bytes:
        for reply in succeeded(replies)[:1]:
            name = reply[reply.index(b"\r\n") + 2 : -2]
            session.server.libraries.put(name, words[-1])
        return all_succeeded(replies)

    return merged(ask_primaries(session, request, words, every_cluster(session)), remember)


def delete(session: Session, request: wire.Request) -> Awaitable[bytes]:
    words = request.arguments

    def forget(replies: Sequence[bytes]) -> bytes:
        if succeeded(replies):
            session.server.libraries.drop(words[2])
        return all_succeeded(replies)

    return merged(ask_primaries(session, request, words, every_cluster(session)), forget)


def replace(session: Session, request: wire.Request) -> Awaitable[bytes]:
    """FUNCTION FLUSH and RESTORE: what nodes have afterwards, is not known here."""

    def forget(replies: Sequence[bytes]) -> bytes:
        if succeeded(replies):
            session.server.libraries.clear()
        return all_succeeded(replies)

    replies = ask_primaries(session, request, request.arguments, every_cluster(session))
    return merged(replies, forget)


def describe(session: Session, request: wire.Request) -> bytes | Awaitable[bytes]:
    """FUNCTION LIST and DUMP, of one primary of the default cluster: all have the same."""
    router = session.server.router
    places = router.slots.places(router.ruleset.default_cluster)
    if not places:
        return errors.CLUSTERDOWN
    return send(session, request, places[0], request.arguments)


def stats(session: Session, request: wire.Request) -> Awaitable[bytes]:
    """FUNCTION STATS: what runs, wherever that is, and the libraries of any primary."""
    replies = ask_aside_everywhere(session, request.arguments, every_cluster(session))
    return merged(replies, lambda told: running(told, session.protocol))


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
