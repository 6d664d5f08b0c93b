"""SCAN over all primaries of all clusters, and what a pattern of clients means for nodes.

Always true: MATCH speaks of the names that clients know. It is left to the nodes wherever no key
that may fit has another name there; else they are told how such names begin, and we judge the rest.
"""

import asyncio
from collections.abc import Awaitable, Iterable
from dataclasses import dataclass

from proxy import errors, resp, wire
from proxy.handlers import Handler, Session
from proxy.handlers.connection import integer
from proxy.handlers.cursors import Position
from proxy.handlers.glob import expression, literal_prefix
from proxy.handlers.walk import Walk, Wanted
from proxy.wire.rules import Keyspace

# COUNT is a hint. A page of a thousand keys takes 3 ms to translate, and while it is, nobody else
# is served.
MOST_PER_PAGE = 1000
USUAL_PER_PAGE = 10  # as Redis

# A longer pattern is compiled in more than a millisecond.
LONGEST_PATTERN = 4096  # bytes

LARGEST_CURSOR = 1 << 64  # as Redis reads it


def scan(session: Session, request: wire.Request) -> bytes | Awaitable[bytes]:
    words = request.arguments
    if not (words[1].isdigit() and int(words[1][:20]) < LARGEST_CURSOR and len(words[1]) <= 20):
        return errors.INVALID_CURSOR
    question = read_question(words[2:])
    if isinstance(question, bytes):
        return question
    wanted = wanted_of(session, question, request.row)
    if isinstance(wanted, bytes):
        return wanted
    walk = Walk(session, request.row, wanted)
    cursor, key = int(words[1]), _key(session, question)
    now = asyncio.get_running_loop().time()
    if cursor:
        position = session.server.scans.find(session.user, cursor, key, now)
        if position is None:
            return errors.INVALID_CURSOR
    else:
        position = walk.start()
        if position is None:
            return _reply(0, [])
    return _page(session, walk, position, cursor, question)


@dataclass(frozen=True)
class Question:
    """What the words behind the cursor say."""

    match: bytes  # * for all
    count: int
    others: tuple[bytes, ...]  # TYPE, and whatever a node's version knows


async def _page(
    session: Session, walk: Walk, position: Position, cursor: int, question: Question
) -> bytes:
    user, scans = session.user, session.server.scans
    page = await walk.page(position, question.count)
    if isinstance(page, bytes):
        # A first page that failed has no cursor yet, and needs none: the client begins again.
        return page
    key = _key(session, question)
    now = asyncio.get_running_loop().time()
    if cursor:
        following = scans.turn(user, cursor, page.position, now)
    else:
        following = scans.begin(user, key, page.position, now) if page.position is not None else 0
    return _reply(following, page.names)


def _key(session: Session, question: Question) -> tuple[bytes, ...]:
    """Return what must stay the same for a cursor to be good."""
    return (question.match, b"%d" % session.database, *question.others)


def _reply(cursor: int, names: list[bytes]) -> bytes:
    return resp.array([resp.bulk(b"%d" % cursor), resp.array([resp.bulk(name) for name in names])])


def read_question(words: list[bytes]) -> Question | bytes:
    """Return the options of SCAN, or the error line. What is not known here is left to nodes."""
    match, count = b"*", USUAL_PER_PAGE
    others: list[bytes] = []
    position = 0
    while position < len(words):
        option = words[position].upper()
        if option not in (b"MATCH", b"COUNT", b"TYPE"):
            others.append(option)
            position += 1
            continue
        if position + 1 == len(words):
            return errors.SYNTAX
        value = words[position + 1]
        position += 2
        if option == b"MATCH":
            match = value
        elif option == b"TYPE":
            others += (option, value.lower())
        else:
            number = integer(value)
            if number is None:
                return errors.NOT_AN_INTEGER
            count = number
            if count < 1:
                return errors.SYNTAX
    return Question(match, min(count, MOST_PER_PAGE), tuple(others))


def wanted_of(session: Session, question: Question, row: int) -> Wanted | bytes:
    """Return what a pattern over clients' names means for clusters, slots and nodes."""
    ruleset, match = session.downstream.ruleset, question.match
    prefix = literal_prefix(match)
    if prefix == match:
        # A key without a star is one key, and its name at its node is known.
        location = session.downstream.locate(match, row, False)
        if isinstance(location, bytes):
            return Wanted((), None, (), None)
        options = (b"MATCH", escaped(location.name), *question.others)
        return Wanted((location.cluster,), location.slot, options, None)
    possible = [space for space in ruleset.keyspaces if _may_begin(space, prefix)]
    clusters = {space.cluster for space in possible}
    if not ruleset.reject_unmatched:
        clusters.add(session.default_cluster)
    ordered = tuple(sorted(clusters, key=lambda index: (index != session.default_cluster, index)))
    # Keys with a tag of their own are not renamed, so the tag in the pattern is the node's.
    slot = tagged_slot(prefix)
    renaming = [space for space in possible if space.hash_tag is not None]
    if slot is not None or not renaming:
        options = (b"MATCH", match) if match != b"*" else ()
        return Wanted(ordered, slot, (*options, *question.others), None)
    if len(match) > LONGEST_PATTERN:
        return errors.LONG_PATTERN
    shared = _shared_prefix(renaming, prefix)
    options = (b"MATCH", escaped(shared) + b"*") if shared else ()
    pattern = expression(match) if match != b"*" else None
    return Wanted(ordered, None, (*options, *question.others), pattern)


def escaped(text: bytes) -> bytes:
    """Return the pattern that fits this text only."""
    for mark in (b"\\", b"*", b"?", b"["):
        text = text.replace(mark, b"\\" + mark)
    return text


def tagged_slot(prefix: bytes) -> int | None:
    """Return the slot of all keys that begin so, if they have a hash tag there."""
    opened = prefix.find(b"{")
    closed = prefix.find(b"}", opened) if opened >= 0 else -1
    return wire.key_slot(prefix) if closed > opened + 1 else None


def _first_literal(space: Keyspace) -> bytes:
    first = space.pattern[0]
    return first if isinstance(first, bytes) else b""


def _may_begin(space: Keyspace, prefix: bytes) -> bool:
    """Return whether a key of this keyspace can begin so."""
    first = _first_literal(space)
    return first.startswith(prefix) or prefix.startswith(first)


def _shared_prefix(renaming: Iterable[Keyspace], prefix: bytes) -> bytes:
    """Return how the names at nodes begin, renamed or not, of keys that begin so."""
    for space in renaming:
        # A word is put in front of the name; a segment's brace stands behind the first literal.
        prefix = prefix[: 0 if isinstance(space.hash_tag, bytes) else len(_first_literal(space))]
    return prefix


HANDLERS: dict[bytes, Handler] = {b"scan": scan}
