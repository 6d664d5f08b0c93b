"""How a form of the table becomes the words of a random command, and commands a transaction.

The table is `forms`. Everything comes from one source of chance, so a case can be played again.
"""

import hashlib
import random
import re
from collections.abc import Callable
from dataclasses import dataclass, field

from tests.integration.forms import BROKEN, FORMS, LIBRARY, SCRIPTS

TAGS = 4  # hash tags of one case; all but the first are only used by what the proxy splits

_WORDS = [
    b"a",
    b"b",
    b"red",
    b"green",
    b"10",
    b"-3",
    b"3.5",
    b"",
    b"x\x00y\r\n",
    b"\xff\xfe",
    b"A b",
]
_TYPES = [b"u8", b"i8", b"u4", b"i16", b"u63", b"i64", b"u1"]
_GARBAGE = [
    b"",
    b"abc",
    b"-1",
    b"0",
    b"1",
    b"99999999999999999999",
    b"nan",
    b"+inf",
    b"1e400",
    b"(",
    b"*",
]

# These stay unspoiled: without their count, which asks for everything, the first four answer at
# random, another number behind SELECT names a database that only a plain server has, and what
# waits would wait for ever.
_UNSPOILED = frozenset(
    b"SPOP SRANDMEMBER HRANDFIELD ZRANDMEMBER SELECT "
    b"BLPOP BRPOP BLMOVE BRPOPLPUSH BLMPOP BZPOPMIN BZPOPMAX BZMPOP".split()
)

_SHAS = [
    *(hashlib.sha1(script, usedforsecurity=False).hexdigest().encode() for script in SCRIPTS),
    hashlib.sha1(b"never loaded", usedforsecurity=False).hexdigest().encode(),
    b"too-short",
]

# Where a case's keys live by kind; two of each are enough for moves and stores to meet. Sorted sets
# for ranges by name (y) keep to themselves: with different scores such a range is unspecified.
# Short strings (c) do so too: LCS takes a node seconds for long ones.
KEY_KINDS = ("s", "l", "h", "set", "z", "g", "p", "x")
ALL_KINDS = (*KEY_KINDS, "y", "c")


@dataclass(slots=True)
class Case:
    """One run of commands over one set of keys."""

    chance: random.Random
    tags: list[bytes]
    payloads: list[bytes]
    kinds: dict[str, Callable[[], bytes]] = field(init=False)
    _watched: bool = False  # there was a WATCH, and no MULTI yet
    _left: int = 0  # commands of the transaction that goes on

    def __post_init__(self) -> None:
        pick, number = self.chance.choice, self.chance.randint
        self.kinds = {
            "v": self._value,
            "f": lambda: b"f%d" % number(0, 5),
            "m": lambda: b"m%d" % number(0, 8),
            "i": lambda: b"%d" % number(-6, 12),
            "n": lambda: b"%d" % number(0, 6),
            "b": lambda: b"%d" % number(0, 1),
            "d": lambda: pick([b"1", b"2.5", b"-0.125", b"1e3", b"0", b"inf", b"-inf", b"3.14159"]),
            "off": lambda: b"%d" % number(0, 80),
            "sec": lambda: pick([b"1000", b"5000", b"100000"]),
            "ms": lambda: pick([b"1000000", b"5000000"]),
            "at": lambda: b"%d" % number(4_102_444_800, 4_102_444_805),
            "atms": lambda: b"%d" % number(4_102_444_800_000, 4_102_444_800_005),
            "type": lambda: pick(_TYPES),
            "payload": lambda: pick(self.payloads),
            "glob": lambda: pick([b"*", b"f*", b"m[0-4]", b"?1", b"zz*"]),
            "min": lambda: pick([b"-inf", b"0", b"(1", b"2"]),
            "max": lambda: pick([b"+inf", b"3", b"(2.5", b"1000"]),
            "lex": lambda: pick([b"-", b"+", b"[m1", b"(m5", b"[m7"]),
            "lon": lambda: b"%.4f" % self.chance.uniform(13, 14),
            "lat": lambda: b"%.4f" % self.chance.uniform(52, 53),
            "radius": lambda: pick([b"1", b"20", b"100"]),
            "id": lambda: pick([b"%d" % number(1, 40), b"%d-%d" % (number(1, 40), number(0, 3))]),
            "gr": lambda: b"group%d" % number(0, 1),
            "part": lambda: pick(
                [b"%d-*" % number(1, 40), b"5-", b"*-1", b"18446744073709551616-0"]
            ),
            "co": lambda: b"worker%d" % number(0, 1),
            "name": lambda: pick([b"app", b"two words", b"", b"v1"]),
            "soon": lambda: pick([b"0.001", b"0.002", b"0.0015"]),
            "absent": lambda: b"{%b}absent" % self.tags[0],
            "script": lambda: pick(SCRIPTS),
            "broken": lambda: pick(BROKEN),
            "sha": lambda: pick(_SHAS),
            "library": lambda: LIBRARY,
            "any": lambda: self._key(pick(KEY_KINDS), 0),
            "*any": lambda: self._key(pick(KEY_KINDS), self._any_tag()),
            "*s": lambda: self._key("s", self._any_tag()),
        }
        for kind in ALL_KINDS:
            self.kinds[kind] = lambda kind=kind: self._key(kind, 0)

    def _any_tag(self) -> int:
        """Return a tag for what the proxy splits; in a transaction there is only one."""
        return self.chance.randrange(TAGS) if self._left == 0 else 0

    def _key(self, kind: str, tag: int) -> bytes:
        if kind in KEY_KINDS and self.chance.random() < 0.04:  # a key that holds something else
            kind = self.chance.choice(KEY_KINDS)
        return b"{%b}%b%d" % (self.tags[tag], kind.encode(), self.chance.randint(0, 1))

    def _value(self) -> bytes:
        dice = self.chance.random()
        if dice < 0.85:
            return self.chance.choice(_WORDS)
        return self.chance.randbytes(self.chance.randint(1, 20 if dice < 0.98 else 20_000))

    @property
    def keys(self) -> list[bytes]:
        """Return every key that this case can have written."""
        return [
            b"{%b}%b%d" % (tag, kind.encode(), number)
            for tag in self.tags
            for kind in ALL_KINDS
            for number in (0, 1)
        ]

    def command(self) -> list[bytes]:
        """Return the words of a random command, now and then with a mistake in it."""
        if self._left:
            return self._in_transaction()
        if self.chance.random() < 0.02:
            self._left = self.chance.choice((2, 3, 5, 12))
            self._watched = self.chance.random() < 0.3
            return expand(_WATCH, self) if self._watched else [b"MULTI"]
        return self._one()

    def _in_transaction(self) -> list[bytes]:
        """Return the next word of a transaction, which is not always one."""
        if self._watched and self.chance.random() < 0.6:
            self._watched = False
            return [b"MULTI"]
        self._left -= 1
        if self._left:
            if self.chance.random() < 0.01:
                return self.chance.choice(([b"MULTI"], expand(_WATCH, self)))
            return self._one()
        dice = self.chance.random()
        return [b"EXEC"] if dice < 0.85 else [b"DISCARD"] if dice < 0.97 else [b"RESET"]

    def _one(self) -> list[bytes]:
        form = self.chance.choice(_PARSED)
        if "soon" in form and self.chance.random() < 0.7:  # a wait takes as long as 50 others
            form = self.chance.choice(_PARSED)
        words = expand(form, self)
        dice = self.chance.random()
        if dice < 0.06 and words[0] not in _UNSPOILED and b"BLOCK" not in words:
            self._spoil(words)
        elif dice < 0.08:
            words[0] = words[0].lower()
        elif dice < 0.085:
            words[0] = self.chance.choice([b"NOSUCH", b"GETT", b"get2", words[0] + b"X"])
        return words

    def _spoil(self, words: list[bytes]) -> None:
        how = self.chance.randrange(4)
        if len(words) == 1 or how == 0:
            words.append(self.chance.choice(_GARBAGE))
            return
        at = self.chance.randrange(1, len(words))
        if how == 1:
            del words[at]
        elif how == 2:
            words.insert(at, words[at])
        elif not words[at].startswith(b"{"):
            garbage = self.chance.choice(_GARBAGE)
            # A time to live of one millisecond ends on one side before it does on the other.
            soon = garbage == b"1" and len(words[at]) > 3 and words[at].isdigit()
            # An id that is the time differs as well.
            words[at] = b"0" if soon or (garbage == b"*" and words[0] == b"XADD") else garbage


# A form is a list of words, of choices (a tuple of forms, None for "nothing"), and of repeated
# forms (a list).
Form = list["str | tuple[Form | None, ...] | Form"]
_CLOSING = {"[": "]", "(": ")", "{": "}"}


def parse_form(text: str) -> Form:
    """Return a form of the table in the shape that `expand` reads."""
    return _sequence(re.findall(r"[\[\](){}|]\+?|[^\s\[\](){}|]+", text), "")[0][0]


def _sequence(tokens: list[str], closing: str) -> tuple[list[Form], bool]:
    """Read up to the closing bracket; return the alternatives and whether a + follows it."""
    alternatives: list[Form] = [[]]
    while tokens:
        token = tokens.pop(0)
        if closing and token[0] == closing:
            return alternatives, token.endswith("+")
        if token == "|":
            alternatives.append([])
        elif token in _CLOSING:
            inner, repeated = _sequence(tokens, _CLOSING[token])
            if repeated:
                alternatives[-1].append(inner[0])
            else:
                alternatives[-1].append((*inner, None) if token == "[" else tuple(inner))
        else:
            alternatives[-1].append(token)
    return alternatives, False


def expand(form: Form, case: Case) -> list[bytes]:
    """Return the words of one random command of a form."""
    words: list[bytes] = []
    for part in form:
        if isinstance(part, tuple):
            chosen = case.chance.choice(part)
            words += expand(chosen, case) if chosen is not None else []
        elif isinstance(part, list):
            for _ in range(case.chance.randint(1, 3)):
                words += expand(part, case)
        elif part[0] == "#" and part[1:] in case.kinds:
            count = case.chance.randint(1, 3)
            words += [b"%d" % count, *(case.kinds[part[1:]]() for _ in range(count))]
        elif part in case.kinds:
            words.append(case.kinds[part]())
        else:
            words.append(part.encode())
    return words


_PARSED = [parse_form(line) for line in FORMS.strip().splitlines()]
_WATCH = parse_form("WATCH {any}+")
