"""Commands as PostgreSQL is told of them."""

import time

import pytest

from proxy import errors
from proxy.handlers.told import Refused, Told, fits, over, told
from proxy.origin.records import Change, Op
from proxy.plans import Parameter, Plan, Statement
from tests.origin.activity import plan_of, writing

SET, ADD, ERASE = Op.SET, Op.ADD, Op.ERASE
HASH = plan_of()
NOTE = Statement(
    "note write",
    "INSERT INTO notes (id, value, ttl) VALUES ($1, $2, $3) ON CONFLICT (id) DO NOTHING",
    (Parameter("id", "text"), Parameter("value", "field"), Parameter("ttl", "field")),
)
STRING = plan_of(writing(statement=NOTE, merge="replace"), "string")
COUNT = plan_of(
    writing(
        statement=NOTE._replace(text="UPDATE t SET n = n + $2", parameters=NOTE.parameters[:2])
    ),
    "counter",
)
TYPES = {b"views": "int4", b"calls": "int8", b"value": "float8"}
MS9 = b"0.009"
NO_TIME = Change(ERASE, b"ttl")


def tell(plan: Plan, *words: bytes) -> list[Told]:
    found = told(plan, words[0].lower(), words)
    for part in found:
        fits(plan, part.changes, TYPES)
    return found


@pytest.mark.parametrize(
    ("plan", "command", "changes"),
    [
        (HASH, b"HSET k name a score 1", (Change(SET, b"name", b"a"), Change(SET, b"score", b"1"))),
        (HASH, b"HMSET k name a", (Change(SET, b"name", b"a"),)),
        (HASH, b"HINCRBY k views -3", (Change(ADD, b"views", b"-3"),)),
        (HASH, b"HINCRBYFLOAT k views 1.50e1", (Change(ADD, b"views", b"15"),)),
        (HASH, b"HINCRBY k views -2147483648", (Change(ADD, b"views", b"-2147483648"),)),
        (HASH, b"HINCRBYFLOAT k calls 3e2", (Change(ADD, b"calls", b"300"),)),
        (HASH, b"HDEL k name score", (Change(ERASE, b"name"), Change(ERASE, b"score"))),
        (HASH, b"DEL k", (Change(Op.DROP),)),
        (STRING, b"SET k v", (Change(SET, b"value", b"v"), NO_TIME)),
        (STRING, b"SET k v EX 5", (Change(SET, b"value", b"v"), Change(SET, b"ttl", b"5"))),
        (STRING, b"SET k v get px 9", (Change(SET, b"value", b"v"), Change(SET, b"ttl", MS9))),
        (STRING, b"SET k v GET", (Change(SET, b"value", b"v"), NO_TIME)),
        (STRING, b"SETEX k 9 v", (Change(SET, b"value", b"v"), Change(SET, b"ttl", b"9"))),
        (STRING, b"PSETEX k 9 v", (Change(SET, b"value", b"v"), Change(SET, b"ttl", b"0.009"))),
        (COUNT, b"INCR k", (Change(ADD, b"value", b"1"),)),
        (COUNT, b"DECR k", (Change(ADD, b"value", b"-1"),)),
        (COUNT, b"INCRBY k 7", (Change(ADD, b"value", b"7"),)),
        (COUNT, b"DECRBY k -9223372036854775807", (Change(ADD, b"value", b"9223372036854775807"),)),
        (COUNT, b"INCRBYFLOAT k 0.1", (Change(ADD, b"value", b"0.1"),)),
    ],
)  # fmt: skip
def test_words_become_changes(plan: Plan, command: bytes, changes: tuple[Change, ...]) -> None:
    """One change for each field that is named."""
    assert tell(plan, *command.split()) == [Told(b"k", changes)]


def test_commands_of_several_keys() -> None:
    """Each key has its own changes."""
    assert tell(STRING, b"MSET", b"a", b"1", b"b", b"2") == [
        Told(b"a", (Change(SET, b"value", b"1"), NO_TIME)),
        Told(b"b", (Change(SET, b"value", b"2"), NO_TIME)),
    ]
    drop = (Change(Op.DROP),)
    assert tell(HASH, b"UNLINK", b"a", b"b") == [Told(b"a", drop), Told(b"b", drop)]


@pytest.mark.parametrize(
    ("plan", "command", "line"),
    [
        (HASH, b"HSET k name", errors.wrong_arity(b"hset")),
        (HASH, b"HINCRBY k views 1.0", errors.NOT_AN_INTEGER),
        (HASH, b"HINCRBY k views 9223372036854775808", errors.NOT_AN_INTEGER),
        (HASH, b"HINCRBYFLOAT k views inf", errors.NOT_A_FLOAT),
        (STRING, b"SET k v EX", errors.SYNTAX),
        (STRING, b"SET k v EX ten", errors.NOT_AN_INTEGER),
        (STRING, b"SET k v WORD", errors.SYNTAX),
        (STRING, b"SET k v EX 5 PX 2000", errors.SYNTAX),
        (STRING, b"SET k v EX 9223372036854775807", errors.invalid_expire("set")),
        (STRING, b"SETEX k -1 v", errors.line("ERR invalid expire time in 'setex' command")),
        (STRING, b"MSET a 1 b", errors.wrong_arity(b"mset")),
    ],
)  # fmt: skip
def test_what_redis_refuses_is_refused_in_its_words(
    plan: Plan, command: bytes, line: bytes
) -> None:
    """Nothing is journalled that the node would not do."""
    with pytest.raises(Refused) as refused:
        tell(plan, *command.split())
    assert refused.value.line == line


@pytest.mark.parametrize(
    ("plan", "command", "why"),
    [
        (HASH, b"HSETNX k name a", b"hsetnx cannot be journalled"),
        (STRING, b"SET k v XX", b"a condition cannot be journalled"),
        (STRING, b"SET k v EXAT 1", b"a time that is over"),
        (STRING, b"SET k v pxat 1000", b"a time that is over"),
        (COUNT, b"SET k 1 EXAT 1", b"a time that is over"),
        (STRING, b"APPEND k v", b"append cannot be journalled"),
        (HASH, b"HSET k other 1", b"no such field"),
        (HASH, b"HSET k views 1", b"counts the field up"),
        (HASH, b"HDEL k views", b"counts the field up"),
        (HASH, b"HINCRBY k name 1", b"sets the field"),
        (STRING, b"INCR k", b"sets the field"),
        (HASH, b"HINCRBY k views 2147483648", b"int4 has no such number"),
        (HASH, b"HINCRBY k views -2147483649", b"int4 has no such number"),
        (HASH, b"HINCRBYFLOAT k calls 0.5", b"int8 has no such number"),
        (HASH, b"HINCRBYFLOAT k calls 1e19", b"int8 has no such number"),
        (COUNT, b"INCRBYFLOAT k 1e309", b"float8 has no such number"),
        (COUNT, b"SET k 1", b"counts the field up"),
    ],
)  # fmt: skip
def test_what_would_not_arrive_is_refused(plan: Plan, command: bytes, why: bytes) -> None:
    """With the name of the keyspace."""
    with pytest.raises(Refused) as refused:
        tell(plan, *command.split())
    assert refused.value.line.startswith(b"-POLICY write refused by keyspace 'activity': ")
    assert why in refused.value.line


@pytest.mark.parametrize(
    ("command", "ends"),
    [
        (b"EXPIRE k 0", True), (b"PEXPIRE k -1", True), (b"EXPIRE k 1", False),
        (b"EXPIREAT k 1000", True), (b"PEXPIREAT k 9999999999999", False),
        (b"GETEX k PXAT 1", True), (b"GETEX k exat 1 ", True), (b"GETEX k EXAT 9999999999", False),
        (b"GETEX k EX 5", False), (b"GETEX k EX 0", False), (b"GETEX k PERSIST", False),
        (b"GETEX k", False), (b"EXPIRE k word", False), (b"EXPIRE k", False),
        (b"PERSIST k", False),
    ],
)  # fmt: skip
def test_a_time_may_be_over(command: bytes, ends: bool) -> None:
    """Then the command deletes its key, in whatever form the time is given."""
    words = command.split()
    assert over(words[0].lower(), words) == ends


def test_a_date_is_so_many_seconds() -> None:
    """PostgreSQL is told how long a value lasts, however the client has said it."""
    (told,) = tell(STRING, b"SET", b"k", b"v", b"EXAT", b"%d" % (time.time() + 100))
    (ttl,) = (change for change in told.changes if change.field == b"ttl")
    assert 98 < float(ttl.value) <= 100


def test_a_time_that_is_kept_cannot_be_told() -> None:
    """Where the statement takes a time, KEEPTTL would make it none."""
    with pytest.raises(Refused, match="KEEPTTL"):
        tell(STRING, b"SET", b"k", b"v", b"KEEPTTL")
