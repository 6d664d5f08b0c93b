"""Key patterns: named segments between literal text, and whether two of them can be told apart.

Used by the model (a pattern is parsed where it is read) and by the loader (overlaps). How a key is
matched is fixed by `wire.Ruleset`; this module refuses what that matcher could not decide:

  * text ends at a colon, or at the first byte of the literal behind it; path ends with the key;
  * at one place literal text is tried before segments, and segments in the order of `KINDS`,
    narrower types first; what was tried and does not fit is taken back;
  * so two patterns can only be confused where a segment of one kind ends in two ways.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from proxy.documents import quote, suggest
from proxy.wire.rules import Segment

# The types of segments, narrower ones first.
KINDS = ("int", "uuid", "date", "hex", "ip", "text", "path")

# wire keeps the bounds of this many segments while it matches.
MAX_SEGMENTS = 16

# The comparison of patterns walks them byte by byte. No key of anybody's is named with more.
MAX_PATTERN = 512  # characters

# Names that are ours: leases, markers and journals. They never reach a client.
RESERVED = b"sidecache:"

_DIGITS = frozenset(b"0123456789")
_HEX = _DIGITS | frozenset(b"abcdefABCDEF")
_BYTES = frozenset(range(256))
_CHARACTERS: dict[str, frozenset[int]] = {
    "int": _DIGITS | frozenset(b"-"),
    "uuid": _HEX | frozenset(b"-"),
    "date": _DIGITS | frozenset(b"-"),
    "hex": _HEX,
    "ip": _HEX | frozenset(b".:"),
    "text": _BYTES - frozenset(b":"),
    "path": _BYTES,
}

# What is surely meant in another language, and what it is called there. No text of a key: who has
# such keys writes a segment in its place.
_FOREIGN = (
    (re.compile(r"\*"), "* is no wildcard here; write a named segment, such as {id}"),
    (
        re.compile(r"\A\^|\\[A-Za-z.]|\(\?|\.\+|\[[^\]{}]*\][+?{]|\$\Z"),
        "this is no regular expression; write a named segment, such as {id} or {id:int}",
    ),
    (re.compile(r"\$\{|#\{"), "a segment is written {name}, without a sign before it"),
    (re.compile(r"<[A-Za-z_]\w*>|%[sd]\b"), "a segment is written {name}"),
)

_TOKEN = re.compile(r"\{\{|\}\}|\{[^{}]*\}|[{}]|[^{}]+")
_SEGMENT = re.compile(r"\{([a-z_][a-z0-9_]{0,31})(?::([^}]*))?\}\Z")


@dataclass(frozen=True)
class Pattern:
    """A pattern as written and taken apart."""

    text: str
    parts: tuple[bytes | Segment, ...]

    @property
    def segments(self) -> tuple[Segment, ...]:
        return tuple(part for part in self.parts if isinstance(part, Segment))

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(segment.name for segment in self.segments)

    @property
    def literal(self) -> bytes:
        """Return all literal text together."""
        return b"".join(part for part in self.parts if isinstance(part, bytes))

    def position(self, name: str) -> int:
        """Return where a segment stands among the parts."""
        return next(i for i, part in enumerate(self.parts) if getattr(part, "name", "") == name)

    def stop(self, position: int) -> int | None:
        """Return the byte that ends the segment at a position, or None at the end of the key."""
        after = self.parts[position + 1 :]
        return after[0][0] if after and isinstance(after[0], bytes) else None


def parse(value: object) -> Pattern:
    """Return the pattern, or raise ValueError saying what is wrong and what is allowed."""
    if isinstance(value, Pattern):
        return value
    if not isinstance(value, str) or not value:
        raise ValueError("expects a pattern such as seat_lock:{event_id}:{seat_id}")
    if len(value) > MAX_PATTERN:
        raise ValueError(f"has more than {MAX_PATTERN} characters")
    foreign = next((told for sign, told in _FOREIGN if sign.search(value)), None)
    if foreign is not None:
        raise ValueError(foreign)
    parts: list[bytes | Segment] = []
    for token in _TOKEN.findall(value):
        part = _part(token)
        if isinstance(part, bytes) and parts and isinstance(parts[-1], bytes):
            parts[-1] += part
        elif isinstance(part, Segment) and parts and isinstance(parts[-1], Segment):
            raise ValueError(f"{token} follows a segment at once; put literal text between them")
        else:
            parts.append(part)
    pattern = Pattern(value, tuple(parts))
    _check(pattern)
    return pattern


def _part(token: str) -> bytes | Segment:
    if token in ("{{", "}}"):
        return token[:1].encode()
    if token in ("{", "}"):
        raise ValueError(f"a single {token}; write {token * 2} for the character itself")
    if not token.startswith("{"):
        if not token.isprintable():
            raise ValueError("has a control character")
        return token.encode()
    match = _SEGMENT.match(token)
    if match is None:
        plain = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", token.replace(" ", "").replace("-", "_"))
        meant = plain.lower() if _SEGMENT.match(plain.lower()) else None
        raise ValueError(
            f"{quote(token)} is no segment; expects {{name}} or {{name:type}}, a name of at most "
            f"32 of a-z 0-9 _{f'; did you mean {quote(meant)}?' if meant else ''}"
        )
    name, kind = match[1], match[2] if match[2] is not None else "text"
    if kind not in KINDS:
        allowed = ", ".join(KINDS)
        raise ValueError(f"{quote(kind)} is no type of a segment; allowed: {allowed}"
                         f"{suggest(kind, KINDS)}")  # fmt: skip
    return Segment(name, kind)


def _check(pattern: Pattern) -> None:
    names = pattern.names
    twice = next((name for i, name in enumerate(names) if name in names[:i]), None)
    if twice is not None:
        raise ValueError(f"the segment {{{twice}}} stands in it twice")
    if len(names) > MAX_SEGMENTS:
        raise ValueError(f"has more than {MAX_SEGMENTS} segments")
    if pattern.text.encode().startswith(RESERVED):
        raise ValueError(f"names that begin with {RESERVED.decode()} are the proxy's own")
    for position, part in enumerate(pattern.parts[:-1]):
        if isinstance(part, Segment):
            _check_end(part, pattern.parts[position + 1])


def _check_end(segment: Segment, after: bytes | Segment) -> None:
    """Refuse a segment whose end in a key could not be told, or would never come."""
    if segment.kind == "path":
        raise ValueError(f"{{{segment.name}:path}} takes all that follows; it must stand last")
    if segment.kind == "text" or not isinstance(after, bytes):
        return
    # A minus stands only before an int, so it ends one.
    own = _DIGITS if segment.kind == "int" else _CHARACTERS[segment.kind]
    if segment.kind == "ip" and after[:1] == b":":
        # IPv6 has colons too: the address ends where a word follows that cannot be a part of it.
        word = after[1:].split(b":")[0]
        if own.issuperset(word):
            raise ValueError(
                f"behind {{{segment.name}:ip}} must stand a colon and a word with a letter beyond "
                "a-f, or it could be a part of an IPv6 address; or put the address last"
            )
    elif after[0] in own:
        raise ValueError(
            f"{quote(chr(after[0]))} behind {{{segment.name}:{segment.kind}}} may be a part of it, "
            "so its end cannot be told"
        )


def typed_characters(pattern: Pattern) -> frozenset[int]:
    """Return the bytes that the typed segments of a pattern may have."""
    typed = (_CHARACTERS[s.kind] for s in pattern.segments if s.kind not in ("text", "path"))
    return frozenset().union(*typed)


def parse_characters(spec: str) -> bytes:
    """Return 256 flags of a set such as A-Za-z0-9:_- or raise ValueError.

    A control character counts where it is written out, as "\\x06" in double quotes of YAML.
    """
    flags = bytearray(256)
    at = 0
    while at < len(spec):
        first = last = spec[at]
        if spec[at + 1 : at + 2] == "-" and at + 2 < len(spec):
            last = spec[at + 2]
            at += 2
        at += 1
        # Some applications put a control character between the parts of a name; never as a range.
        # A line end is never meant: it is what slips in.
        control = first == last and first < " " and first not in "\0\t\n\r"
        if not control and not "!" <= first <= last <= "~":
            raise ValueError(
                f"{quote(first + '-' + last)} is no range; expects printable ASCII characters and "
                "ranges such as A-Za-z0-9:_- with a minus last"
            )
        for code in range(ord(first), ord(last) + 1):
            flags[code] = 1
    return bytes(flags)


def confused(patterns: Sequence[Pattern]) -> Iterator[tuple[int, int]]:
    """Yield the indexes of patterns that can match one key without a rule which of them wins."""
    root = _Fork()
    for index, pattern in enumerate(patterns):
        twin = root.plant(pattern, index)
        if twin is not None:
            yield twin, index
    forks = [root]
    for fork in forks:
        forks.extend(fork.literals.values())
        forks.extend(fork.segments.values())
        # Only segments of one kind that end in different ways.
        ends = list(fork.segments.items())
        for i, ((kind, _), one) in enumerate(ends):
            for (other_kind, _), other in ends[i + 1 :]:
                if kind == other_kind and kind != "path":
                    yield from _overlaps(patterns, one, other)


def _overlaps(
    patterns: Sequence[Pattern], one: "_Fork", other: "_Fork"
) -> Iterator[tuple[int, int]]:
    """Yield for each pattern of the second fork the first one of the first that it meets."""
    for right in other.members:
        for left in one.members:
            if _ends_fit(patterns[left], patterns[right]) and intersects(
                patterns[left], patterns[right]
            ):
                yield min(left, right), max(left, right)
                break


def _ends_fit(left: Pattern, right: Pattern) -> bool:
    """Return whether one key can end as both do. Cheap, and decides most pairs."""
    one, other = left.parts[-1], right.parts[-1]
    if isinstance(one, bytes) and isinstance(other, bytes):
        return one.endswith(other) or other.endswith(one)
    return True


class _Fork:
    """A place up to which patterns are the same."""

    __slots__ = ("index", "literals", "members", "segments")

    def __init__(self) -> None:
        self.literals: dict[int, _Fork] = {}
        self.segments: dict[tuple[str, int | None], _Fork] = {}
        self.members: list[int] = []
        self.index: int | None = None

    def plant(self, pattern: Pattern, index: int) -> int | None:
        """Add a pattern; return the index of one that is the same, if there is one."""
        fork = self
        for position, part in enumerate(pattern.parts):
            if isinstance(part, bytes):
                for byte in part:
                    fork = fork.literals.setdefault(byte, _Fork())
            else:
                fork = fork.segments.setdefault((part.kind, pattern.stop(position)), _Fork())
                fork.members.append(index)
        if fork.index is not None:
            return fork.index
        fork.index = index
        return None


def intersects(left: Pattern, right: Pattern) -> bool:
    """Return whether some key fits both patterns: a walk over both at once."""
    one, other = list(_steps(left)), list(_steps(right))
    seen = {(0, 0)}
    todo = [(0, 0)]
    while todo:
        i, j = todo.pop()
        if i == len(one) and j == len(other):
            return True
        for a, letters in _moves(one, i):
            for b, other_letters in _moves(other, j):
                if (a, b) not in seen and not letters.isdisjoint(other_letters):
                    seen.add((a, b))
                    todo.append((a, b))
    return False


_Step = tuple[frozenset[int], bool]


def _steps(pattern: Pattern) -> Iterator[_Step]:
    """Yield the letters that may stand at each step, and whether the step may be repeated."""
    for position, part in enumerate(pattern.parts):
        if isinstance(part, bytes):
            yield from ((frozenset((byte,)), False) for byte in part)
            continue
        stop = pattern.stop(position)
        letters = _CHARACTERS[part.kind]
        yield (letters - {stop} if stop is not None and part.kind != "ip" else letters), True


def _moves(steps: list[_Step], at: int) -> Iterator[tuple[int, frozenset[int]]]:
    if at and steps[at - 1][1]:
        yield at, steps[at - 1][0]
    if at < len(steps):
        yield at + 1, steps[at][0]
