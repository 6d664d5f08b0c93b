"""Keyspaces that say `bound: connection`: what each client writes there is noted for its end.

The data plane forwards their writes as any other and hands a Request over when the reply is there;
the session calls `note` with it, and for what was under way when the client went. Reads are not
seen here, nor is what transactions, scripts and commands split over slots write.
"""

import hashlib
from collections.abc import Iterator, Sequence

from proxy import resp, wire
from proxy.handlers import Session
from proxy.handlers.bonds import Bond, Entry
from proxy.wire.rules import Found

_TAKES_AWAY = (b"del", b"unlink", b"getdel")


def note(session: Session, request: wire.Request) -> None:
    """Note what a write of a client has set, added or taken away; without a reply, as if done."""
    words, bonds = request.arguments, session.server.bonds
    if not _done(request.name, words, request.reply):
        return
    bond = session.holdings.get("bound")
    if not isinstance(bond, Bond):
        bond = session.holdings["bound"] = Bond(bonds)
    if request.reply is None:
        # A node may still have it before itself; what comes by another connection could overtake.
        clusters = session.server.config.clusters.values()
        bond.unsure = max((cluster.timeout for cluster in clusters), default=1.0)
    sure = request.reply is not None and not request.reply.startswith(b"-")
    whole = request.name != b"sadd" or _added_all(words, request.reply)
    for entry, value in _entries(request, words):
        if request.name in (*_TAKES_AWAY, b"srem"):
            # What may be there still is looked at again in the end.
            if sure:
                bonds.drop(entry)
        elif whole or bonds.knows(entry):
            bonds.add(bond, entry, value)


def _done(name: bytes, words: Sequence[bytes], reply: bytes | None) -> bool:
    """Return whether a write has, or may have, done what it says."""
    if reply is None:
        return True
    if reply.startswith(b"-"):
        return b"Outcome unknown" in reply
    if name in (b"setnx", b"msetnx"):
        return reply == b":1\r\n"
    if name == b"set" and reply != resp.OK:
        options = {word.upper() for word in words[3:]}
        return b"GET" in options and options.isdisjoint((b"NX", b"XX"))
    return True


def _added_all(words: Sequence[bytes], reply: bytes | None) -> bool:
    """Return whether none of the members of SADD was there before: which were, nobody is told."""
    if reply is None or reply.startswith(b"-"):
        return True
    return reply == b":%d\r\n" % len(set(words[2:]))


def _entries(request: wire.Request, words: Sequence[bytes]) -> Iterator[tuple[Entry, bytes]]:
    """Yield what a write names in bound keyspaces, each with the digest of its value."""
    rules, row = request.ruleset, request.ruleset.commands[request.row]
    for position in request.keys:
        index = rules.find_keyspace(words[position])
        if index < 0 or not rules.keyspaces[index].bound:
            continue
        cluster, name = rules.keyspaces[index].cluster, rules.upstream_name(words[position])
        if request.name in (b"sadd", b"srem"):
            for member in words[2:]:
                yield Entry(cluster, name, member), b""
        elif request.name in _TAKES_AWAY:
            yield Entry(cluster, name, None), b""
        else:
            at = position + 1 if row.values.first == Found.NEXT else row.values.first
            # Scripts of nodes know this digest; nothing is proven by it.
            value = hashlib.sha1(words[at], usedforsecurity=False).hexdigest().encode()
            yield Entry(cluster, name, None), value
