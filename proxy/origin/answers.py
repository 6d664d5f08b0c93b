"""A value from PostgreSQL and the words of a command become the reply that a node would give.

Handlers use it for reads of a keyspace with an origin, while Redis is away or before a fill is
there. Replies equal those of Redis 7.2 and later and of Valkey byte for byte, in both protocols,
errors included; the order of hashes and sets is their own. Sorted sets have a file of their own,
`ordered`.

Always true: an argument is judged where Redis judges it, before or after the key is looked at; what
is in no table here is not answered.
"""

import time
from collections.abc import Callable, Mapping, Sequence

from proxy import errors, resp
from proxy.origin import ordered
from proxy.origin.asking import Asked, Refused, integer
from proxy.origin.render import Value

_LONG_MAX = 2**63 - 1


def answer(
    value: Value | None, words: Sequence[bytes], protocol: int, ttl_ms: int = 0
) -> bytes | None:
    """Return the reply to a read of one key; None: such a command is not answered from here.

    `value` is what the key holds, None where there is no such key; `ttl_ms` the time that it has
    left, 0 for one that lives for ever. The number of words is right already.
    """
    command = _COMMANDS.get(words[0].lower())
    if command is None:
        return None
    try:
        return command(Asked(value, words[2:], protocol, ttl_ms))
    except Refused as refused:
        return refused.line


# --- Any type


def _exists(asked: Asked) -> bytes:
    # A key that is named twice counts twice; all words are this key.
    return resp.integer(0 if asked.value is None else 1 + len(asked.words))


def _type(asked: Asked) -> bytes:
    return b"+none\r\n" if asked.value is None else b"+%b\r\n" % asked.value.type.encode()


def _time(unit_ms: int, absolute: bool) -> Callable[[Asked], bytes]:
    def reply(asked: Asked) -> bytes:
        if asked.value is None:
            return resp.integer(-2)
        if not asked.ttl_ms:
            return resp.integer(-1)
        at = asked.ttl_ms + (round(time.time() * 1000) if absolute else 0)
        return resp.integer((at + unit_ms // 2) // unit_ms)

    return reply


# --- Strings


def _get(asked: Asked) -> bytes:
    text = asked.string()
    return resp.null(asked.protocol) if text is None else resp.bulk(text)


def _strlen(asked: Asked) -> bytes:
    return resp.integer(len(asked.string() or b""))


def _getrange(asked: Asked) -> bytes:
    start, end = map(integer, asked.words)
    text = asked.string() or b""
    if start < 0 and end < 0 and start > end:
        return resp.bulk(b"")
    start, end = (max(0, each + len(text)) if each < 0 else each for each in (start, end))
    return resp.bulk(text[start : end + 1])


# --- Hashes


def _hget(asked: Asked) -> bytes:
    return asked.bulk_or_null(asked.fields().get(asked.words[0]))


def _hmget(asked: Asked) -> bytes:
    fields = asked.fields()
    return resp.array([asked.bulk_or_null(fields.get(word)) for word in asked.words])


def _hgetall(asked: Asked) -> bytes:
    pairs = ((resp.bulk(name), resp.bulk(text)) for name, text in asked.fields().items())
    return resp.mapping(pairs, asked.protocol)


def _hkeys(asked: Asked) -> bytes:
    return resp.array([resp.bulk(name) for name in asked.fields()])


def _hvals(asked: Asked) -> bytes:
    return resp.array([resp.bulk(text) for text in asked.fields().values()])


def _hlen(asked: Asked) -> bytes:
    return resp.integer(len(asked.fields()))


def _hexists(asked: Asked) -> bytes:
    return resp.integer(asked.words[0] in asked.fields())


def _hstrlen(asked: Asked) -> bytes:
    return resp.integer(len(asked.fields().get(asked.words[0], b"")))


# --- Sets


def _smembers(asked: Asked) -> bytes:
    return resp.distinct([resp.bulk(member) for member in asked.members()], asked.protocol)


def _sismember(asked: Asked) -> bytes:
    return resp.integer(asked.words[0] in asked.members())


def _smismember(asked: Asked) -> bytes:
    members = asked.members()
    return resp.array([resp.integer(word in members) for word in asked.words])


def _scard(asked: Asked) -> bytes:
    return resp.integer(len(asked.members()))


# --- Lists


def _lrange(asked: Asked) -> bytes:
    start, end = map(integer, asked.words)
    return resp.array([resp.bulk(each) for each in ordered.span(asked.elements(), start, end)])


def _llen(asked: Asked) -> bytes:
    return resp.integer(len(asked.elements()))


def _lindex(asked: Asked) -> bytes:
    elements = asked.elements()
    if not elements:
        return resp.null(asked.protocol)
    index = integer(asked.words[0])
    there = -len(elements) <= index < len(elements)
    return asked.bulk_or_null(elements[index] if there else None)


def _lpos(asked: Asked) -> bytes:
    rank, count, most = _lpos_options(asked.words[1:])
    found = _positions(asked.elements(), asked.words[0], abs(rank), count, most, rank < 0)
    if count is None:
        return resp.integer(found[0]) if found else resp.null(asked.protocol)
    return resp.array([resp.integer(position) for position in found])


def _lpos_options(words: Sequence[bytes]) -> tuple[int, int | None, int]:
    """Return rank, count (None where it is not said) and how many elements to look at (0: all)."""
    rank, count, most = 1, None, 0
    for place in range(0, len(words), 2):
        option = words[place].lower()
        if place + 1 == len(words) or option not in (b"rank", b"count", b"maxlen"):
            raise Refused(errors.SYNTAX)
        word = words[place + 1]
        if option == b"rank":
            rank = integer(word)
            if abs(rank) > _LONG_MAX:
                raise Refused(errors.out_of_range(-_LONG_MAX, _LONG_MAX))
            if rank == 0:
                raise Refused(errors.ZERO_RANK)
        elif option == b"count":
            count = _not_negative(word, errors.NEGATIVE_COUNT)
        else:
            most = _not_negative(word, errors.NEGATIVE_MAXLEN)
    return rank, count, most


def _not_negative(word: bytes, line: bytes) -> int:
    number = integer(word, line)
    if number < 0:
        raise Refused(line)
    return number


def _positions(
    elements: Sequence[bytes], wanted: bytes, rank: int, count: int | None, most: int, tail: bool
) -> list[int]:
    size = len(elements)
    places = range(size - 1, -1, -1) if tail else range(size)
    matches = [place for place in (places[:most] if most else places) if elements[place] == wanted]
    enough = 1 if count is None else count or size
    return matches[rank - 1 : rank - 1 + enough]


_COMMANDS: Mapping[bytes, Callable[[Asked], bytes | None]] = {
    b"exists": _exists,
    b"touch": _exists,
    b"type": _type,
    b"ttl": _time(1000, absolute=False),
    b"pttl": _time(1, absolute=False),
    b"expiretime": _time(1000, absolute=True),
    b"pexpiretime": _time(1, absolute=True),
    b"get": _get,
    b"strlen": _strlen,
    b"getrange": _getrange,
    b"substr": _getrange,
    b"hget": _hget,
    b"hmget": _hmget,
    b"hgetall": _hgetall,
    b"hkeys": _hkeys,
    b"hvals": _hvals,
    b"hlen": _hlen,
    b"hexists": _hexists,
    b"hstrlen": _hstrlen,
    b"smembers": _smembers,
    b"sismember": _sismember,
    b"smismember": _smismember,
    b"scard": _scard,
    b"lrange": _lrange,
    b"llen": _llen,
    b"lindex": _lindex,
    b"lpos": _lpos,
    **ordered.COMMANDS,
}

# By their names in lower case.
ANSWERED = frozenset(_COMMANDS)
