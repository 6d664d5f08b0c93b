"""What a node took from a collection for a client that had gone in the meantime.

Nobody but the proxy knows both: `blocking` hands in the reply of a wait whose client is not there
to take it. It is counted, and put back at the same end where the keyspace says `push_back`. Putting
back is a write of its own: a consumer that pops in between sees the elements behind it first, and
one that is put back into a full or expired collection makes it anew.

Always true: no element is dropped without being counted, except in the first moment of a wait
(`blocked.MOMENT`), where a client that closes its end may have said all and still listen. What a
command moved from one key to another, or left pending in a group, is not gone and not counted.
"""

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

from proxy import log, resp, wire
from proxy.commands import INDEX
from proxy.handlers import Session
from proxy.upstream.carrier import Brief, carry
from proxy.upstream.dedicated import Missing, Reply

Undo = Callable[[list[bytes], Any], list[bytes]]


def _to_list(end: bytes) -> Undo:
    return lambda words, value: [end, value[0], value[1]]


def _to_list_all(words: list[bytes], value: Any) -> list[bytes]:
    # The first one taken was the outermost, so it goes back last.
    end = b"LPUSH" if words[3 + int(words[2])].upper() == b"LEFT" else b"RPUSH"
    return [end, value[0], *reversed(value[1])]


def _to_set(words: list[bytes], value: Any) -> list[bytes]:
    return _scored(value[0], [(value[1], value[2])])


def _to_set_all(words: list[bytes], value: Any) -> list[bytes]:
    return _scored(value[0], value[1])


def _scored(key: bytes, pairs: Any) -> list[bytes]:
    """Return the ZADD of members that nobody has given another score since."""
    flat = [part for member, score in pairs for part in (_score(score), member)]
    return [b"ZADD", key, b"NX", *flat]


def _score(score: Any) -> bytes:
    return score if isinstance(score, bytes) else repr(score).encode()


# By command, how its reply is made undone.
UNDO: Mapping[bytes, Undo] = {
    b"blpop": _to_list(b"LPUSH"),
    b"brpop": _to_list(b"RPUSH"),
    b"blmpop": _to_list_all,
    b"bzpopmin": _to_set,
    b"bzpopmax": _to_set,
    b"bzmpop": _to_set_all,
}


async def account_for(
    session: Session,
    request: wire.Request,
    reply: Reply,
    place: wire.Location,
    names: Mapping[bytes, bytes],
) -> None:
    """Count what was taken for nobody, and put it back where a policy asks for that.

    Names are the client's, by those of the nodes.
    """
    undo = UNDO.get(request.name)
    if undo is None:
        return
    metrics = session.server.pools.plumbing.metrics.pins
    if reply is Missing.UNKNOWN:
        metrics.undelivered.count("unknown")
        return
    value = resp.decode(reply) if isinstance(reply, bytes) else None
    if not isinstance(value, list):
        return
    rules = session.downstream.ruleset
    space = rules.find_keyspace(names[value[0]])
    outcome = "dropped"
    if space >= 0 and rules.keyspaces[space].push_back:
        words = undo(request.arguments, value)
        outcome = await _put_back(session, place, wire.pack(words))
        _follow(session, names[value[0]], words)
    metrics.undelivered.count(outcome, amount=_elements(value))
    keyspace = rules.keyspaces[space].name if space >= 0 else "none"
    log.event(log.WARNING, "elements_undelivered", keyspace=keyspace, outcome=outcome)


async def _put_back(session: Session, place: wire.Location, command: bytes) -> str:
    """Return what became of elements that are put back."""
    pools = session.server.pools
    errand = Brief(pools.pins, place, command)
    reply = await carry(pools.pins, pools.clusters[place.cluster], errand)
    if reply is Missing.UNKNOWN:
        return "unknown"
    return "pushed_back" if isinstance(reply, bytes) and reply[:1] == b":" else "dropped"


def _follow(session: Session, key: bytes, words: list[bytes]) -> None:
    """Send what rules ask for behind a write of ours: it may have made the key anew."""
    downstream, row = session.downstream, INDEX[words[0].lower()]
    location = downstream.locate(key, row, False)
    if not isinstance(location, bytes):
        frames = downstream.followers(location, row, 0, wire.pack(words))
        downstream.follow(location, frames, asyncio.get_running_loop().time())


def _elements(value: list[Any]) -> int:
    return len(value[1]) if isinstance(value[1], list) else 1
