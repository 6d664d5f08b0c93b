"""Large requests that are refused: before they are whole, once, in their turn, and unkept."""

import random
from collections.abc import Sequence

import pytest

from proxy import errors, wire
from proxy.commands import ROWS
from proxy.wire.rules import Duty, Limits, Rule, Segment
from tests.wire import model
from tests.wire.stage import Stage, keyspace, role, ruleset

LARGE = b"x" * 300_000
TOO_LARGE = errors.line("POLICY value")
TOO_LARGE_MEMBER = errors.line("POLICY member")

# What a client may hold here: what is looked at before a request is whole, and one piece of it.
AHEAD = 64 * 1024
PIECE = 16 * 1024

REFUSED: list[tuple[list[bytes], bytes]] = [
    ([b"APPEND", b"k", LARGE], b"-NOPERM this user has no permissions to run"),
    ([b"append", b"k", *[b"y" * 1000] * 300], b"-ERR wrong number of arguments"),
    ([b"GET", LARGE, b"k"], b"-ERR wrong number of arguments"),
    ([b"CLIENT", b"LIST", LARGE, LARGE], b"-NOPERM this user has no permissions to run"),
    ([b"SHUTDOWN", LARGE], b"-ERR"),
    ([b"SET", b"sidecache:lease:k", LARGE], errors.DATA_PLANE.reserved),
    ([b"SET", b"a\nb", LARGE], errors.DATA_PLANE.bad_key),
    ([b"SET", b"k:1", LARGE, b"EX", b"5"], TOO_LARGE),
    ([b"SETEX", b"k:1", b"5", LARGE], TOO_LARGE),
    ([b"HSET", b"k:1", b"f", LARGE, b"g", b"v"], TOO_LARGE),
    ([b"HSET", b"k:1", LARGE, b"v"], TOO_LARGE_MEMBER),
    ([b"INCRBY", b"k:1", LARGE], b"-NOPERM denied in keyspace 'k'"),
]
TAKEN: list[list[bytes]] = [
    [b"SET", b"k", LARGE],
    [b"SET", b"k:1", b"v", b"EX", LARGE],
    [b"MSET", b"k", LARGE, b"{k}", b"v"],
]


def rules(**trials: int) -> wire.Ruleset:
    """Return the keyspace k:{id} of small values; neither APPEND nor CLIENT LIST is allowed."""
    space = keyspace(
        "k",
        [b"k:", Segment("id", "text")],
        denied=bytes(row.name == b"incrby" for row in ROWS),
        duties=bytes(Duty.VALUE | (Duty.COMMANDS if row.name == b"incrby" else 0) for row in ROWS),
        max_value_bytes=1000,
        max_member_bytes=1000,
        value_error=TOO_LARGE,
        member_error=TOO_LARGE_MEMBER,
        enforced=bytes(trials.get(rule.name.lower(), 100) for rule in Rule),
    )
    limits = Limits(argument_bytes=len(LARGE))
    return ruleset(keyspaces=(space,), roles=(role(limits, (b"append", b"client|list")),))


def pieces(data: bytes, sizes: Sequence[int] = (PIECE,)) -> list[bytes]:
    """Return data cut into pieces of these sizes in turn."""
    found, at, turn = [], 0, 0
    while at < len(data):
        size = sizes[turn % len(sizes)]
        found.append(data[at : at + size])
        at, turn = at + size, turn + 1
    return found


@pytest.mark.parametrize(("words", "line"), REFUSED)
def test_a_large_request_is_refused_and_not_kept(words: list[bytes], line: bytes) -> None:
    """It is refused with its usual line, once, before it is whole; what follows is answered."""
    client = Stage(rules()).client()
    data = model.frame(words)
    most, told = 0, b""
    for piece in pieces(data)[:-1]:
        assert client.receive_data(piece, 1.0) is None
        most = max(most, client.held_bytes)
        told += client.data_to_send()
    assert client.passing
    assert told.startswith(line)
    assert told.count(b"\r\n") == 1
    assert most <= AHEAD + PIECE
    assert client.receive_data(pieces(data)[-1] + model.frame([b"APPEND"]), 1.0) is None
    assert not client.passing
    assert client.held_bytes == 0
    assert client.data_to_send() == b"-ERR wrong number of arguments for 'append' command\r\n"


@pytest.mark.parametrize("seed", range(20))
def test_pieces_change_nothing(seed: int) -> None:
    """However a stream is cut, its replies are those of whole requests, in their order."""
    chance = random.Random(seed)
    requests = [words for words, _ in REFUSED] + TAKEN + [[b"GET", b"k"]] * 4
    chance.shuffle(requests)
    stream = b"".join(map(model.frame, requests))
    sizes = [chance.choice([1, 2, 3, 100, 5_000, 70_000, 200_000]) for _ in range(50)]
    assert conversation([model.frame(words) for words in requests]) == conversation(
        pieces(stream, sizes)
    )


def conversation(received: list[bytes]) -> tuple[bytes, bytes]:
    """Return what a client is told and what the node gets."""
    stage = Stage(rules())
    client, (node,) = stage.client(), stage.upstreams
    told, sent = b"", b""
    for data in [*received, b""]:
        assert client.receive_data(data, 1.0) is None
        while (frames := node.data_to_send(1.0)) or client.resumable:
            sent += frames
            node.receive_data(b"+OK\r\n" * (frames.count(b"\nGET\r") + frames.count(b"SET\r")), 1.0)
            told += client.data_to_send()
            assert client.receive_data(b"", 1.0) is None
        told += client.data_to_send()
    return told, sent


def test_a_refusal_waits_its_turn() -> None:
    """A command before it that a node has not answered yet is answered first."""
    stage = Stage(rules())
    client = stage.client()
    data = model.frame([b"GET", b"k"]) + model.frame([b"APPEND", b"k", LARGE])
    client.receive_data(data[:-1], 1.0)
    assert client.passing
    assert client.data_to_send() == b""
    stage.upstreams[0].data_to_send(1.0)
    stage.upstreams[0].receive_data(b"$-1\r\n", 1.0)
    assert client.data_to_send().startswith(b"$-1\r\n-NOPERM")
    client.receive_data(data[-1:], 1.0)
    assert client.data_to_send() == b""


@pytest.mark.parametrize(
    "rest",
    [b"x" * 300_000 + b"\n\n", b"x" * 300_000 + b"\r\r", b"x" * 300_000 + b"\r\nGET k\r\n",
     b"x" * 300_000 + b"\r\n$300001\r\n", b"x" * 300_000 + b"\r\n$-1\r\n"],
)  # fmt: skip
def test_what_is_passed_over_is_still_a_request(rest: bytes) -> None:
    """Bytes that cannot be one are a protocol error as ever, behind the refusal."""
    client = Stage(rules()).client()
    client.receive_data(b"*4\r\n$6\r\nAPPEND\r\n$1\r\nk\r\n$300000\r\n", 1.0)
    client.receive_data(rest, 1.0)
    refusal, error, nothing = client.data_to_send().split(b"\r\n")
    assert refusal.startswith(b"-ERR wrong number")
    assert error.startswith(b"-ERR Protocol error")
    assert nothing == b""
    assert client.closing


def test_a_transaction_is_spoiled() -> None:
    """What is refused before it is whole spoils a transaction like any refused command."""
    client = Stage(rules()).client()
    client.capture = True
    client.receive_data(model.frame([b"APPEND", b"k", LARGE])[:-1], 1.0)
    assert client.spoiled


def test_a_rule_on_trial_counts_once() -> None:
    """Where a keyspace has a rule on trial, a large request is judged once, when it is whole."""
    ruling = rules(commands=0)
    stage = Stage(ruling)
    client = stage.client()
    for piece in pieces(model.frame([b"INCRBY", b"k:1", LARGE])):
        assert not client.passing
        client.receive_data(piece, 1.0)
    assert stage.upstreams[0].pending == 1
    (breach,) = ruling.breaches.requests()
    assert (breach[1], breach[3]) == (Rule.COMMANDS, 1)


def test_new_rules_amid_a_refused_request() -> None:
    """The rest of it is passed over all the same, and the next command is judged by them."""
    stage = Stage(rules())
    client = stage.client()
    data = model.frame([b"APPEND", b"k", LARGE])
    client.receive_data(data[:-9], 1.0)
    assert client.data_to_send().startswith(b"-NOPERM")
    stage.router.ruleset = ruleset()
    client.receive_data(data[-9:] + model.frame([b"APPEND", b"k", b"v"]), 1.0)
    assert client.data_to_send() == b""
    assert stage.upstreams[0].data_to_send(1.0) == model.frame([b"APPEND", b"k", b"v"])
