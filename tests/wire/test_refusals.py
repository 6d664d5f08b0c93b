"""Locks that others hold, refused by the data plane alone."""

from pathlib import Path
from typing import Any

import pytest

from proxy import wire
from proxy.commands import ROWS
from proxy.wire.rules import Duty
from tests.policy.rulebook import Folder
from tests.wire.player import pattern_of
from tests.wire.stage import Stage, keyspace, ruleset

KEY = b"seat_lock:e:1"
NULL = b"$-1\r\n"
HELD = b"*4\r\n$7\r\noutcome\r\n$4\r\nheld\r\n$13\r\nexpires_in_ms\r\n:%d\r\n"

RULES = """
keyspaces: {seat_lock: {key: "seat_lock:{e}:{s}", kind: lock, ttl: {default: 9s}}}
scripts:
  take: {name: SEAT.ACQUIRE, file: any.lua, keys: ["seat_lock:{e}:{s}"], lock: acquire,
         arguments: [e, s, owner, booking, session], more: seats, reply: map}
"""

ORIGIN = bytes(Duty.ORIGIN * bool(row.keys.kind) for row in ROWS)


class Desk:
    """One client before one keyspace of locks, at a time that stands still."""

    def __init__(
        self, path: tuple[str, ...] = ("user_id",), rules: wire.Ruleset | None = None
    ) -> None:
        space = keyspace("seat_lock", pattern_of("seat_lock:{e}:{s}"), duties=ORIGIN, decided=True)
        self.stage = Stage(rules or ruleset(keyspaces=(space,)))
        self.refusals = self.stage.router.refusals
        self.client = self.stage.client()
        self.path = path

    def hold(self, holder: str = "ann", until: float = 10.0, ends: float = 100.0) -> None:
        self.refusals.close(KEY, "held", until, holder, self.path, ends, 0.03)

    def say(self, *words: bytes, now: float = 1.0) -> bytes | None:
        """Return what is answered at once; None where Python has to."""
        found = self.client.receive_data(wire.pack(words), now)
        if found is not None:
            self.client.answer(found, b"")
            self.client.data_to_send()
            return None
        return self.client.data_to_send()


@pytest.fixture
def desk() -> Desk:
    desk = Desk()
    desk.hold()
    return desk


BOB = b'{"user_id": "bob"}'

# Names of owners that are too long by one letter, and that are not.
LONG = b"b" * (wire.LONGEST_NAME + 1)
LONGEST = LONG[1:]


@pytest.mark.parametrize(
    "options",
    [[b"NX"], [b"nx", b"EX", b"5"], [b"PX", b"100", b"Nx"]],
)
def test_a_lock_of_another_is_refused(desk: Desk, options: list[bytes]) -> None:
    """SET NX hears a null, SETNX a zero, whatever the order of its options."""
    assert desk.say(b"SET", KEY, BOB, *options) == NULL
    assert desk.say(b"SETNX", KEY, BOB) == b":0\r\n"
    assert desk.refusals.count == 2


def test_resp3_has_a_null_of_its_own(desk: Desk) -> None:
    """A client of RESP3 hears `_`."""
    desk.client.protocol = 3
    assert desk.say(b"SET", KEY, BOB, b"NX") == b"_\r\n"


@pytest.mark.parametrize(
    "words",
    [
        [b"SET", KEY, b'{"user_id": "ann"}', b"NX"],
        [b"SET", KEY, b'{"user_id":"ann","booking_id":"b"}', b"NX", b"EX", b"5"],
        [b"SET", KEY, b'{"user_id": "\\u0061nn"}', b"NX"],
        [b"SET", KEY, b'{"owner": "bob"}', b"NX"],
        [b"SET", KEY, b"bob", b"NX"],
        [b"SET", KEY, b"", b"NX"],
        [b"SET", KEY, b'"user_id"', b"NX"],
        [b"SET", KEY, b'{"user_id":true}', b"NX"],
        [b"SET", KEY, b'{"user_id":1.5}', b"NX"],
        [b"SET", KEY, b'{"user_id":-}', b"NX"],
        [b"SET", KEY, b'{"user_id":"","x":"y"}', b"NX"],
        [b"SET", KEY, b'{"x":{"user_id":"q"}}', b"NX"],
        [b"SET", KEY, b'[{"user_id":"q"}]', b"NX"],
        [b"SET", KEY, b'{"x":"user_id"}', b"NX"],
        [b"SET", KEY, b'{"user_id":"bob","user_id":""}', b"NX"],
        [b"SET", KEY, b'{"user_id":"bob"', b"NX"],
        [b"SET", KEY, '{"user_id":"b\u00f6b"}'.encode(), b"NX"],
        [b"SET", KEY, b'{"user_id":"%b"}' % LONG, b"NX"],
        [b"SET", KEY, b'{"user_id":%b}' % (b"7" * len(LONG)), b"NX"],
        [b"SETNX", KEY, b'{"user_id": "ann"}'],
        [b"SET", KEY, BOB],
        [b"SET", KEY, BOB, b"XX"],
        [b"SET", KEY, BOB, b"NX", b"GET"],
        [b"SET", KEY, BOB, b"NX", b"NX"],
        [b"SET", KEY, BOB, b"NX", b"EX"],
        [b"SET", KEY, BOB, b"NX", b"EX", b"0"],
        [b"SET", KEY, BOB, b"NX", b"EX", b"-1"],
        [b"SET", KEY, BOB, b"NX", b"EX", b"1e3"],
        [b"SET", KEY, BOB, b"NX", b"EX", b"9999999999"],
        [b"SET", KEY, BOB, b"NX", b"EX", b"5", b"PX", b"5"],
        [b"SET", KEY, BOB, b"NX", b"EXAT", b"99"],
        [b"SET", KEY + b"2", BOB, b"NX"],
        [b"GET", KEY],
        [b"DEL", KEY],
    ],
)
def test_all_else_is_for_python(desk: Desk, words: list[bytes]) -> None:
    """Who may be the holder, and what may be another answer, is not answered here."""
    assert desk.say(*words) is None
    assert desk.refusals.count == 0


@pytest.mark.parametrize(
    "value",
    [
        b'{"user_id":7}',
        b'{ "booking_id" : "b", "user_id" : "bob" }',
        b'{"a":1.5,"user_id":"bob","b":null}',
        b'{"user_id":"%b"}' % LONGEST,
        b'{"user_id":%b}' % (b"7" * len(LONGEST)),
        b'{"a":"%b","user_id":"bob"}' % LONG,
    ],
)
def test_plain_values_are_read_here(desk: Desk, value: bytes) -> None:
    """An owner is a text or a whole number among other members."""
    assert desk.say(b"SET", KEY, value, b"NX") == NULL


def test_an_owner_that_is_deeper(desk: Desk) -> None:
    """What a path of two members leads to is read by Python."""
    desk.path = ("user", "id")
    desk.hold()
    assert desk.say(b"SET", KEY, b'{"id":"bob"}', b"NX") is None
    assert desk.say(b"SET", KEY, b'{"user":{"id":"bob"}}', b"NX") is None


def test_a_value_that_is_its_owner() -> None:
    """Without a path the whole value is compared, and a part of it is somebody else."""
    desk = Desk(())
    desk.hold("ann")
    assert desk.say(b"SET", KEY, b"annabel", b"NX") == NULL
    assert desk.say(b"SET", KEY, b"ann", b"NX") is None
    assert desk.say(b"SETNX", KEY, LONGEST) == b":0\r\n"
    assert desk.say(b"SETNX", KEY, LONG) is None


@pytest.mark.parametrize(
    ("words", "asked"),
    [
        ([b"e", b"1", b"bob", b"b", b"s"], False),
        ([b"e", b"1", LONGEST, b"", b""], False),
        ([b"e", b"1", b"ann", b"b", b"s"], True),
        ([b"e", b"1", b"bob", b"b", b"s", b"2"], True),
        ([b"e", b"1", LONG, b"b", b"s"], True),
        ([b"e", b"1", b"b\0b", b"b", b"s"], True),
        ([b"e", b"1", b"bob", b"\xff", b"s"], True),
        ([b"e", b"1", b"bob", b"b", LONG], True),
    ],
)
def test_a_script_that_takes_a_lock(tmp_path: Path, words: list[bytes], asked: bool) -> None:
    """It is refused by its outcome; of several, and of what may be no text, Python is asked."""
    (tmp_path / "lua").mkdir()
    (tmp_path / "lua" / "any.lua").touch()
    desk = Desk(("user_id",), Folder(tmp_path).compile(RULES))
    desk.hold()
    assert desk.say(b"SEAT.ACQUIRE", *words) == (None if asked else HELD % 99000)


def test_what_is_known_ends(desk: Desk) -> None:
    """At its time, or when it is taken back, Python is asked."""
    assert desk.say(b"SETNX", KEY, BOB, now=9.99) == b":0\r\n"
    assert desk.say(b"SETNX", KEY, BOB, now=10.1) is None
    desk.hold(until=20.0)
    desk.refusals.open(KEY)
    assert desk.say(b"SETNX", KEY, BOB, now=11.0) is None


def test_one_of_a_crowd_asks_again(desk: Desk) -> None:
    """While that one asks others are refused, for a moment; the end of the lock ends it too."""
    assert desk.say(b"SETNX", KEY, BOB, now=10.0) is None
    assert desk.say(b"SETNX", KEY, BOB, now=10.01) == b":0\r\n"
    assert desk.say(b"SETNX", KEY, BOB, now=10.04) is None
    desk.hold(until=20.0, ends=20.0)
    assert desk.say(b"SETNX", KEY, BOB, now=20.0) is None
    assert desk.say(b"SETNX", KEY, BOB, now=20.01) is None


def test_a_busy_loop_goes_on_refusing(desk: Desk) -> None:
    """Where turns of the loop take longer than what is known lasts, it lasts two turns longer.

    That ends a quarter of a second after such a turn, and is a fifth of a second at most.
    """

    (node,), batch, moment = desk.stage.upstreams, desk.stage.batch, 0.0
    batch.clock = lambda: moment

    def ended() -> None:
        batch.take_ready()
        batch.take_touched()

    def turn(begins: float, ends: float) -> None:
        nonlocal moment
        ended()
        moment = begins
        desk.client.receive_data(wire.pack([b"GET", b"other"]), begins)
        moment = ends
        ended()
        moment = 0.0  # what is said between two turns takes none
        node.data_to_send(ends)
        node.receive_data(b"$1\r\nx\r\n", ends)
        desk.client.data_to_send()

    turn(9.9, 9.95)
    assert desk.say(b"SETNX", KEY, BOB, now=10.1) is None
    assert desk.say(b"SETNX", KEY, BOB, now=10.12) == b":0\r\n"
    turn(10.12, 10.121)
    assert desk.say(b"SETNX", KEY, BOB, now=10.125) == b":0\r\n"
    assert desk.say(b"SETNX", KEY, BOB, now=10.14) is None
    turn(10.3, 10.301)
    assert desk.say(b"SETNX", KEY, BOB, now=10.12) is None
    turn(11.0, 12.0)
    assert desk.say(b"SETNX", KEY, BOB, now=10.22) == b":0\r\n"
    assert desk.say(b"SETNX", KEY, BOB, now=10.24) is None


def test_what_is_sold_is_refused_to_everybody(desk: Desk) -> None:
    """Of a seat that nobody can hold there is no holder who may ask."""
    desk.refusals.close(KEY, "booked", 10.0, None, desk.path)
    assert desk.say(b"SET", KEY, b'{"user_id": "ann"}', b"NX") == NULL


def test_a_refusal_keeps_its_turn(desk: Desk) -> None:
    """It is no earlier than the reply of what was sent before."""
    desk.client.receive_data(wire.pack([b"GET", b"other"]), 1.0)
    desk.client.receive_data(wire.pack([b"SETNX", KEY, BOB]), 1.0)
    assert desk.client.data_to_send() == b""
    (node,) = desk.stage.upstreams
    node.data_to_send(1.0)
    node.receive_data(b"$1\r\nx\r\n", 1.0)
    assert desk.client.data_to_send() == b"$1\r\nx\r\n:0\r\n"


def test_nothing_is_refused_inside_a_transaction(desk: Desk) -> None:
    """What is captured is answered by who captures it."""
    desk.client.capture = True
    assert desk.say(b"SETNX", KEY, BOB) is None


def test_as_many_are_known_as_there_is_room_for(desk: Desk) -> None:
    """Of too many locks all are forgotten."""
    fields: dict[str, Any] = {"outcome": "held", "until": 10.0, "holder": "ann"}
    for number in range(10_000):
        desk.refusals.close(b"seat_lock:f:%d" % number, **fields)
    assert desk.say(b"SETNX", KEY, BOB) is None
    assert desk.say(b"SETNX", b"seat_lock:f:9999", BOB) == b":0\r\n"
