"""Scripts: EVAL, EVALSHA and their read-only forms where their keys live, SCRIPT everywhere.

A client loads a script once and runs it for days by its SHA1; behind the proxy are several nodes,
and they come and go. So bodies that pass are kept (`shelf`), and `runs` sends one along to a node
that answers NOSCRIPT. A script without keys runs on the default cluster, on a node chosen by its
SHA1: never on several, and never on another cluster.

In a transaction nothing can be repaired: EXEC would have run the rest. `for_transaction` makes an
EVALSHA that can be an EVAL before it is queued.

Always true: all declared keys are in one slot of one cluster and no rule refuses them; nodes see
the keys under their names there. Keys that a script does not declare are the node's to refuse.
"""

import asyncio
import hashlib
from collections.abc import Awaitable, Mapping, Sequence

from proxy import errors, resp, wire
from proxy.handlers import Handler, Session
from proxy.handlers.connection import integer
from proxy.handlers.everywhere import (
    all_succeeded,
    ask_aside_everywhere,
    ask_primaries,
    each_true,
    every_cluster,
    merge_of,
    merged,
    one_succeeded,
    succeeded,
)
from proxy.handlers.forward import followers, locate_all
from proxy.handlers.runs import Frames, Mend
from proxy.handlers.shelf import Arrival, Shelf

NOSCRIPT = b"-NOSCRIPT No matching script"  # Redis and Valkey go on differently

# What is run by its SHA1, by what is run by its body.
_BY_BODY: Mapping[bytes, bytes] = {b"evalsha": b"EVAL", b"evalsha_ro": b"EVAL_RO"}

# What the proxy says where it could not ask a node: that a node is away is no fault of a script.
_UNASKED = (errors.CLUSTERDOWN, errors.TIMEOUT, errors.OVERLOADED, errors.UNKNOWN_OUTCOME)


def sha1(body: bytes) -> bytes:
    """Return what a script is called."""
    return hashlib.sha1(body, usedforsecurity=False).hexdigest().encode()


def body_of(session: Session, sha: bytes) -> bytes | None:
    """Return the body of a script that was seen here, or None."""
    return session.server.scripts.get(sha.lower())


def for_transaction(session: Session, words: list[bytes]) -> list[bytes]:
    """Return a command that needs no repair: an EVALSHA whose script is known, as EVAL."""
    name = _BY_BODY.get(words[0].lower())
    body = body_of(session, words[1]) if name is not None and len(words) > 1 else None
    return words if name is None or body is None else [name, body, *words[2:]]


def run_body(session: Session, request: wire.Request) -> bytes | Awaitable[bytes]:
    """EVAL and EVAL_RO."""
    words = request.arguments
    sha = sha1(words[1])
    session.server.scripts.put(sha, words[1])
    return run(session, request, words, sha, _not_mended)


def run_sha(session: Session, request: wire.Request) -> bytes | Awaitable[bytes]:
    """EVALSHA and EVALSHA_RO."""
    words = request.arguments

    def mend(error: bytes) -> Frames:
        if not error.startswith(NOSCRIPT):
            return ()
        whole = for_transaction(session, words)
        return () if whole is words else (wire.pack(whole),)

    return run(session, request, words, words[1].lower(), mend)


def _not_mended(error: bytes) -> Frames:
    return ()


def run(
    session: Session,
    request: wire.Request,
    words: list[bytes],
    name: bytes,
    mend: Mend,
) -> bytes | Awaitable[bytes]:
    """Send a script or function to where its keys live; without keys, to where its name says.

    The keys among the words get the names that nodes know.
    """
    keys = request.keys
    if not keys:
        if integer(words[2]) != 0:
            return request.keys_error
        place = session.server.router.slots.place_of(session.default_cluster, name)
        return session.runs.start(request, place, wire.pack(words), mend, [])
    locations = locate_all(session, request, words, keys)
    if isinstance(locations, bytes):
        return locations
    frame = request.command if words[0].lower() == request.name else b""
    for position, location in zip(keys, locations, strict=True):
        if location.name != words[position]:
            words[position] = location.name
            frame = b""
    behind = followers(session, request, locations)
    return session.runs.start(request, locations[0], frame or wire.pack(words), mend, behind)


def load(session: Session, request: wire.Request) -> Awaitable[bytes]:
    """SCRIPT LOAD, on every primary.

    A primary that is away does not fail it as long as another took the script: `runs` brings it
    later. Otherwise one cluster that is away would keep the clients of the others from starting.
    """
    words = request.arguments
    arrival = session.server.scripts.expect()
    replies = ask_primaries(session, request, words, every_cluster(session))
    return merged(replies, lambda told: _loaded(session, words[2], arrival, told))


def _loaded(session: Session, body: bytes, arrival: Arrival, replies: Sequence[bytes]) -> bytes:
    told = [reply for reply in replies if reply not in _UNASKED]
    session.server.scripts.arrive(arrival, {sha1(body): body} if succeeded(told) else {})
    return all_succeeded(told or replies)


def exists(session: Session, request: wire.Request) -> Awaitable[bytes]:
    """SCRIPT EXISTS: which scripts every primary has, and those that are known here.

    What is known and missing somewhere is loaded first: who asks may rely on it in a pipeline.
    """
    words = request.arguments
    return _exists(session, request, ask_primaries(session, request, words, every_cluster(session)))


async def _exists(
    session: Session, request: wire.Request, asked: asyncio.Future[list[bytes]]
) -> bytes:
    replies = await asked
    told = [reply for reply in replies if reply not in _UNASKED]
    reply = merge_of(told or replies, each_true)
    if reply[:1] == b"-":
        return reply
    found = resp.elements(reply)
    for place, sha in enumerate(request.arguments[2:]):
        body = body_of(session, sha)
        if found[place] == b":0\r\n" and body is not None:
            command = [b"SCRIPT", b"LOAD", body]
            loaded = await ask_primaries(session, request, command, every_cluster(session))
            if succeeded(loaded):
                found[place] = b":1\r\n"
    return resp.array(found)


def flush(session: Session, request: wire.Request) -> Awaitable[bytes]:
    return emptied(session, request, session.server.scripts)


def emptied(session: Session, request: wire.Request, shelf: Shelf) -> Awaitable[bytes]:
    """Send every primary what ends all that is kept on a shelf.

    It is forgotten here at once, so that nothing behind the command brings any back. Where no
    primary has done it, all is known here as before.
    """
    kept, arrival = shelf.forget_all(), shelf.expect()

    def conclude(replies: Sequence[bytes]) -> bytes:
        shelf.arrive(arrival, {} if succeeded(replies) else kept)
        return all_succeeded(replies)

    replies = ask_primaries(session, request, request.arguments, every_cluster(session))
    return merged(replies, conclude)


def kill(session: Session, request: wire.Request) -> Awaitable[bytes]:
    """SCRIPT KILL and FUNCTION KILL: whoever runs one ends it, and the others have nothing to do.

    On connections of their own, because the shared one may be stuck behind that very script.
    """
    replies = ask_aside_everywhere(session, request.arguments, every_cluster(session))
    return merged(replies, killed)


def killed(replies: Sequence[bytes]) -> bytes:
    """Return a success, or else what says more than that nothing runs."""
    telling = [reply for reply in replies if not reply.startswith(b"-NOTBUSY")]
    return one_succeeded(telling or replies)


def show(session: Session, request: wire.Request) -> Awaitable[bytes]:
    """SCRIPT SHOW: the body, from whoever has it."""
    replies = ask_primaries(session, request, request.arguments, every_cluster(session))
    return merged(replies, one_succeeded)


HANDLERS: dict[bytes, Handler] = {
    b"eval": run_body,
    b"eval_ro": run_body,
    b"evalsha": run_sha,
    b"evalsha_ro": run_sha,
    b"script|load": load,
    b"script|exists": exists,
    b"script|flush": flush,
    b"script|kill": kill,
    b"script|show": show,
}
