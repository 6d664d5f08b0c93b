"""What PostgreSQL is told of a command: its words become changes of fields.

Used by `behind` before a write is journalled, and by `through`. What cannot be told without knowing
what the key holds (conditions, elements that are taken out, parts of values) is refused, and so is
what the keyspace's statement has no place for: nothing is acknowledged that does not arrive.

Always true: words that Redis would refuse are refused here, in its words.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from typing import NamedTuple

from proxy import errors
from proxy.handlers.ageing import OPTIONS
from proxy.handlers.connection import integer
from proxy.origin.batching import shape_of, summed
from proxy.origin.merging import number, plain
from proxy.origin.records import Change, Op
from proxy.plans import Plan, Statement

# The parameter of a statement that takes the value of a string, JSON or a counter, and the one
# that takes the seconds that it lives.
VALUE, TTL = b"value", b"ttl"

INTEGERS = range(-(2**63), 2**63)

# How far numbers go from zero, by PostgreSQL's name of their type; integers have one more below.
_WHOLE = {"int2": 2**15 - 1, "int4": 2**31 - 1, "int8": 2**63 - 1}
_DOUBLES = {"float4": Decimal("3.4028235e38"), "float8": Decimal("1.7976931348623157e308")}


def not_here(plan: Plan, name: bytes) -> bytes:
    """Return the error line for a command that no journal can hold, or no statement carry out."""
    return _never(plan, f"{errors.quoted(name)} cannot be journalled")


def _never(plan: Plan, why: str) -> bytes:
    """Return the error line for what PostgreSQL is not told of."""
    if plan.mode == "through":
        return errors.no_statement(plan.name)
    return errors.not_behind(plan.name, why)


class Told(NamedTuple):
    """One key's part in a command."""

    key: bytes
    changes: tuple[Change, ...]


class Refused(Exception):
    """The command is answered with an error line, and nothing is changed."""

    def __init__(self, line: bytes) -> None:
        super().__init__(line)
        self.line = line


def told(plan: Plan, name: bytes, words: Sequence[bytes]) -> list[Told]:
    """Return what a write of a key of this plan changes. Raises Refused."""
    read = _READERS.get(name)
    if read is None or (plan.mode == "through" and name not in _ONE_STATEMENT):
        raise Refused(not_here(plan, name))
    return read(plan, words)


def fields_of(statement: Statement) -> set[bytes]:
    """Return the fields that a statement writes."""
    return {name.encode() for name, kind in statement.parameters if kind == "field"}


def fits(plan: Plan, changes: Sequence[Change], types: Mapping[bytes, str]) -> None:
    """Raise Refused for a change that the statement of a plan has no place for.

    types names those of its parameters, as far as they are known. Whether a sum fits only
    PostgreSQL knows.
    """
    assert plan.writing is not None
    statement = plan.writing.statement
    names = fields_of(statement)
    counted = {name.encode() for name in summed(statement)}
    if plan.writing.merge == "add" and shape_of(statement.text) is None:
        counted = names
    for op, field, value in changes:
        if op is Op.DROP:
            continue
        if field not in names:
            raise Refused(errors.not_behind(plan.name, "its statement has no such field"))
        if op is Op.ADD and field not in counted:
            raise Refused(errors.not_behind(plan.name, "its statement sets the field"))
        if op is Op.ADD and not _holds(types.get(field, ""), value):
            raise Refused(errors.not_behind(plan.name, f"{types[field]} has no such number"))
        if op is not Op.ADD and field in counted:
            raise Refused(errors.not_behind(plan.name, "its statement counts the field up"))


def _holds(kind: str, value: bytes) -> bool:
    """Return whether a type has a number."""
    amount = number(value)
    if amount is None:
        return False
    if kind in _WHOLE:
        return amount == amount.to_integral_value() and abs(amount + (amount < 0)) <= _WHOLE[kind]
    return kind not in _DOUBLES or abs(amount) <= _DOUBLES[kind]


def _times(plan: Plan, seconds: bytes | None) -> tuple[Change, ...]:
    """Return the change of the time to live, where the statement asks for it."""
    assert plan.writing is not None
    if TTL not in fields_of(plan.writing.statement):
        return ()
    return (Change(Op.ERASE, TTL) if seconds is None else Change(Op.SET, TTL, seconds),)


def _whole(value: bytes) -> bytes:
    found = integer(value)
    if found is None or found not in INTEGERS:
        raise Refused(errors.NOT_AN_INTEGER)
    return b"%d" % found


def time_of(value: bytes, name: str, unit_ms: int, *, date: bool = False) -> int:
    """Return a time to live of a command, or its date. Raises Refused where Redis does."""
    amount = int(_whole(value))
    latest = INTEGERS.stop - 1 - (0 if date else round(time.time() * 1000))
    if not 0 < amount * unit_ms <= latest:
        raise Refused(errors.invalid_expire(name))
    return amount


# The same of the commands that give one as of the options.
_ENDS = OPTIONS | {
    b"expire": (1000, False), b"pexpire": (1, False), b"expireat": (1000, True),
    b"pexpireat": (1, True),
}  # fmt: skip


def over(name: bytes, words: Sequence[bytes]) -> bool:
    """Return whether a command about times ends its key at once, which no journal would hear of."""
    option = name == b"getex"
    if option:
        name, words = (words[2].upper() if len(words) > 2 else b""), words[1:]
    if name not in _ENDS or len(words) < 3 or (amount := integer(words[2])) is None:
        return False
    unit, date = _ENDS[name]
    if option and not date:
        return False  # such an option is refused by Redis
    return amount * unit <= (time.time() * 1000 if date else 0)


def _decimal(value: bytes) -> bytes:
    amount = number(value)
    if amount is None:
        raise Refused(errors.NOT_A_FLOAT)
    return plain(amount)


def _set(plan: Plan, words: Sequence[bytes]) -> list[Told]:
    _, key, value, *options = words
    seconds: bytes | None = None
    timed = False
    left = iter(options)
    for option in left:
        word = option.upper()
        if word in (*OPTIONS, b"KEEPTTL"):
            if timed:
                raise Refused(errors.SYNTAX)
            timed = True
        if word in (b"NX", b"XX", b"IFEQ"):
            raise Refused(_never(plan, "a condition cannot be journalled"))
        if word in OPTIONS:
            seconds = _seconds(plan, word, next(left, None))
        elif word == b"KEEPTTL" and _times(plan, None):
            raise Refused(_never(plan, "PostgreSQL is told a time, and KEEPTTL none"))
        elif word == b"GET" and plan.mode == "through":
            raise Refused(errors.no_statement(plan.name))
        elif word not in (b"KEEPTTL", b"GET"):
            raise Refused(errors.SYNTAX)
    return [Told(key, (Change(Op.SET, VALUE, value), *_times(plan, seconds)))]


def _seconds(plan: Plan, word: bytes, said: bytes | None) -> bytes:
    """Return what an option of SET says as a time to live. Raises Refused."""
    if said is None:
        raise Refused(errors.SYNTAX)
    unit, date = OPTIONS[word]
    amount = time_of(said, "set", unit, date=date)
    if word == b"EX":
        return b"%d" % amount
    seconds = amount * unit / 1000 - (time.time() if date else 0)
    if seconds <= 0:
        raise Refused(errors.not_behind(plan.name, "a time that is over would delete the key"))
    return b"%.3f" % seconds


def _setex(plan: Plan, words: Sequence[bytes]) -> list[Told]:
    seconds = time_of(words[2], "setex", 1000)
    return [Told(words[1], (Change(Op.SET, VALUE, words[3]), *_times(plan, b"%d" % seconds)))]


def _psetex(plan: Plan, words: Sequence[bytes]) -> list[Told]:
    seconds = b"%.3f" % (time_of(words[2], "psetex", 1) / 1000)
    return [Told(words[1], (Change(Op.SET, VALUE, words[3]), *_times(plan, seconds)))]


def _mset(plan: Plan, words: Sequence[bytes]) -> list[Told]:
    if len(words) % 2 == 0:
        raise Refused(errors.wrong_arity(b"mset"))
    return [
        Told(key, (Change(Op.SET, VALUE, value), *_times(plan, None)))
        for key, value in zip(words[1::2], words[2::2], strict=True)
    ]


def _counting(sign: int, given: bool) -> Callable[[Plan, Sequence[bytes]], list[Told]]:
    def read(plan: Plan, words: Sequence[bytes]) -> list[Told]:
        delta = sign * (int(_whole(words[2])) if given else 1)
        return [Told(words[1], (Change(Op.ADD, VALUE, b"%d" % delta),))]

    return read


def _incrbyfloat(plan: Plan, words: Sequence[bytes]) -> list[Told]:
    return [Told(words[1], (Change(Op.ADD, VALUE, _decimal(words[2])),))]


def _hset(plan: Plan, words: Sequence[bytes]) -> list[Told]:
    if len(words) % 2:
        raise Refused(errors.wrong_arity(words[0].lower()))
    pairs = zip(words[2::2], words[3::2], strict=True)
    return [Told(words[1], tuple(Change(Op.SET, field, value) for field, value in pairs))]


def _hincrby(plan: Plan, words: Sequence[bytes]) -> list[Told]:
    return [Told(words[1], (Change(Op.ADD, words[2], _whole(words[3])),))]


def _hincrbyfloat(plan: Plan, words: Sequence[bytes]) -> list[Told]:
    return [Told(words[1], (Change(Op.ADD, words[2], _decimal(words[3])),))]


def _hdel(plan: Plan, words: Sequence[bytes]) -> list[Told]:
    return [Told(words[1], tuple(Change(Op.ERASE, field) for field in words[2:]))]


def _del(plan: Plan, words: Sequence[bytes]) -> list[Told]:
    return [Told(key, (Change(Op.DROP),)) for key in words[1:]]


_READERS: dict[bytes, Callable[[Plan, Sequence[bytes]], list[Told]]] = {
    b"set": _set, b"setex": _setex, b"psetex": _psetex, b"mset": _mset,
    b"incr": _counting(1, given=False), b"decr": _counting(-1, given=False),
    b"incrby": _counting(1, given=True), b"decrby": _counting(-1, given=True),
    b"incrbyfloat": _incrbyfloat,
    b"hset": _hset, b"hmset": _hset, b"hincrby": _hincrby, b"hincrbyfloat": _hincrbyfloat,
    b"hdel": _hdel, b"del": _del, b"unlink": _del,
}  # fmt: skip

# What one statement carries out at once, without a journal that counts.
_ONE_STATEMENT = frozenset((b"set", b"setex", b"psetex", b"hset", b"hmset"))
