"""Replies about sorted sets, of which a value has the members by score and then by bytes.

Used by `answers`. ZRANGE and the older commands that it replaced share one parser, as in Redis.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import NamedTuple, TypeVar

from proxy import errors, resp
from proxy.origin.asking import Asked, Refused, double, integer
from proxy.origin.doubles import double_text

Pair = tuple[bytes, float]
Element = TypeVar("Element")


class _Options(NamedTuple):
    """What ZRANGE is told behind its range, or what an older command means by its name."""

    by: bytes = b""  # "" for by rank until it is said
    reverse: bool = False
    scores: bool = False
    offset: int = 0
    limit: int = -1  # all


def span(elements: Sequence[Element], start: int, end: int) -> Sequence[Element]:
    """Return the elements from start to end, both included; negative ones count from the end."""
    size = len(elements)
    start, end = (each + size if each < 0 else each for each in (start, end))
    return elements[max(0, start) : end + 1] if end >= 0 else elements[:0]


def score(number: float, protocol: int) -> bytes:
    text = double_text(number)
    return b",%b\r\n" % text if protocol == 3 else resp.bulk(text)


# --- Ranges


def _range(default: _Options, asked: Asked) -> bytes | None:
    low, high, *words = asked.words
    options = _options(words, default)
    if options.reverse and options.by:
        low, high = high, low
    chosen = _CHOICES[options.by](asked, low, high, options)
    if chosen is None:
        return None
    if not options.scores:
        return resp.array([resp.bulk(member) for member, _ in chosen])
    parts = [[resp.bulk(member), score(number, asked.protocol)] for member, number in chosen]
    if asked.protocol == 3:
        return resp.array([resp.array(part) for part in parts])
    return resp.array([text for part in parts for text in part])


def _options(words: Sequence[bytes], default: _Options) -> _Options:
    options, fixed, place = default, default.by or default.reverse, 0
    while place < len(words):
        word, left = words[place].lower(), len(words) - place - 1
        if word == b"withscores":
            options = options._replace(scores=True)
        elif word == b"limit" and left >= 2:
            offset, limit = integer(words[place + 1]), integer(words[place + 2])
            options = options._replace(offset=offset, limit=limit)
            place += 2
        elif word == b"rev" and not fixed and not options.reverse:
            options = options._replace(reverse=True)
        elif word in (b"bylex", b"byscore") and not fixed and not options.by:
            options = options._replace(by=word)
        else:
            raise Refused(errors.SYNTAX)
        place += 1
    if options.limit != -1 and not options.by:
        raise Refused(errors.LIMIT_BY_RANK)
    if options.scores and options.by == b"bylex":
        raise Refused(errors.SCORES_BY_LEX)
    return options


def _by_rank(asked: Asked, low: bytes, high: bytes, options: _Options) -> Sequence[Pair]:
    start, end = integer(low), integer(high)
    pairs = asked.pairs()
    return span(pairs[::-1] if options.reverse else pairs, start, end)


def _by_score(asked: Asked, low: bytes, high: bytes, options: _Options) -> Sequence[Pair]:
    return _limited(_scored(asked, low, high), options)


def _by_lex(asked: Asked, low: bytes, high: bytes, options: _Options) -> Sequence[Pair] | None:
    found = _lexical(asked, low, high)
    return None if found is None else _limited(found, options)


def _limited(pairs: Sequence[Pair], options: _Options) -> Sequence[Pair]:
    pairs = pairs[::-1] if options.reverse else pairs
    if options.offset < 0:
        return []
    rest = pairs[options.offset :]
    return rest if options.limit < 0 else rest[: options.limit]


def _scored(asked: Asked, low: bytes, high: bytes) -> Sequence[Pair]:
    bounds = [
        (word[:1] == b"(", double(word.removeprefix(b"("), errors.NO_FLOAT)) for word in (low, high)
    ]
    (above, least), (below, most) = bounds
    return [
        pair
        for pair in asked.pairs()
        if (pair[1] > least if above else pair[1] >= least)
        and (pair[1] < most if below else pair[1] <= most)
    ]


def _lexical(asked: Asked, low: bytes, high: bytes) -> Sequence[Pair] | None:
    """Return a range by bytes; None where scores differ: then Redis promises nothing."""
    least, most = _lexical_bound(low, 1), _lexical_bound(high, -1)
    pairs = asked.pairs()
    if pairs and pairs[0][1] != pairs[-1][1]:
        return None
    return [pair for pair in pairs if least <= (0, pair[0], 0) <= most]


def _lexical_bound(word: bytes, beyond: int) -> tuple[int, bytes, int]:
    """Return what compares with (0, member, 0) as the bound does, itself left out where it says."""
    first, rest = word[:1], word[1:]
    if word in (b"-", b"+"):
        return (-1 if word == b"-" else 1), b"", 0
    if first not in (b"(", b"["):
        raise Refused(errors.NO_LEXICAL_RANGE)
    return 0, rest, beyond if first == b"(" else 0


_CHOICES: Mapping[bytes, Callable[[Asked, bytes, bytes, _Options], Sequence[Pair] | None]] = {
    b"": _by_rank,
    b"byscore": _by_score,
    b"bylex": _by_lex,
}


# --- Single members and counts


def _zscore(asked: Asked) -> bytes:
    return _score_or_null(asked, dict(asked.pairs()).get(asked.words[0]))


def _zmscore(asked: Asked) -> bytes:
    scores = dict(asked.pairs())
    return resp.array([_score_or_null(asked, scores.get(word)) for word in asked.words])


def _score_or_null(asked: Asked, number: float | None) -> bytes:
    return resp.null(asked.protocol) if number is None else score(number, asked.protocol)


def _rank(reverse: bool, asked: Asked) -> bytes:
    member, *words = asked.words
    if words and words[0].lower() != b"withscore":
        raise Refused(errors.SYNTAX)
    pairs = asked.pairs()
    for rank, (name, number) in enumerate(reversed(pairs) if reverse else pairs):
        if name == member:
            place = resp.integer(rank)
            return resp.array([place, score(number, asked.protocol)]) if words else place
    return resp.null_array(asked.protocol) if words else resp.null(asked.protocol)


def _zcard(asked: Asked) -> bytes:
    return resp.integer(len(asked.pairs()))


def _zcount(asked: Asked) -> bytes:
    return resp.integer(len(_scored(asked, *asked.words)))


def _zlexcount(asked: Asked) -> bytes | None:
    found = _lexical(asked, *asked.words)
    return None if found is None else resp.integer(len(found))


COMMANDS: Mapping[bytes, Callable[[Asked], bytes | None]] = {
    b"zrange": partial(_range, _Options()),
    b"zrevrange": partial(_range, _Options(reverse=True)),
    b"zrangebyscore": partial(_range, _Options(b"byscore")),
    b"zrevrangebyscore": partial(_range, _Options(b"byscore", reverse=True)),
    b"zrangebylex": partial(_range, _Options(b"bylex")),
    b"zrevrangebylex": partial(_range, _Options(b"bylex", reverse=True)),
    b"zscore": _zscore,
    b"zmscore": _zmscore,
    b"zrank": partial(_rank, False),
    b"zrevrank": partial(_rank, True),
    b"zcard": _zcard,
    b"zcount": _zcount,
    b"zlexcount": _zlexcount,
}
