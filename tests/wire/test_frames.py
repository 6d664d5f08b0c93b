"""Requests and replies are read as the reference reads them, however they are cut."""

import random

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from proxy import wire
from proxy.wire.rules import Limits
from tests.rounds import in_rounds, resident
from tests.wire import model, streams
from tests.wire.stage import Stage, role, ruleset

LIMITS = Limits(arguments=64, argument_bytes=64, inline_bytes=64)
BOUNDS = model.Bounds(*LIMITS[:3])
# Without a command table every command becomes a Request, so that all its words are seen.
OPEN = ruleset(commands=(), roles=(role(LIMITS)._replace(allowed=b""),))
REPLY = b"+OK\r\n"
# Shared, because making one costs more than what is shown with it.
READER = Stage(OPEN)
NODE = Stage()

quick = settings(max_examples=60, deadline=None)
# Twenty thousand streams at every cut are some ten minutes.
thorough = pytest.mark.timeout(1800)


def read(pieces: list[bytes], stage: Stage = READER) -> tuple[list[list[bytes]], bytes]:
    """Return the commands that a client's bytes hold, and what the client gets."""
    client = stage.client()
    found = []
    for piece in pieces:
        request = client.receive_data(piece, 1.0)
        while request is not None:
            found.append(request.arguments)
            assert request.command == model.frame(request.arguments)
            client.answer(request, REPLY)
            request = client.receive_data(b"", 1.0)
    stage.batch.take_ready()
    return found, client.data_to_send()


def expected(data: bytes) -> tuple[list[list[bytes]], bytes]:
    found, fault = model.requests(data, BOUNDS)
    return found, REPLY * len(found) + (fault or b"")


def deliver(pieces: list[bytes]) -> tuple[bytes, list[bytes], bool]:
    """Return what a client gets of a node's bytes, what must go elsewhere, and whether it ended."""
    (node,) = NODE.upstreams
    client = NODE.client()
    get = model.frame([b"GET", b"k"])
    for _ in range(4):
        client.receive_data(get, 1.0)
    node.data_to_send(1.0)
    elsewhere = []
    for piece in pieces:
        for orphan in node.receive_data(piece, 1.0) or ():
            elsewhere.append(orphan.reply or b"")
            orphan.answer(b"", 1.0)
    fault = node.fault is not None
    node.connection_lost()
    NODE.batch.take_ready()
    NODE.batch.take_touched()
    out = client.data_to_send()
    # Otherwise it waits for ever for the replies that did not come.
    client.connection_lost()
    return out, elsewhere, fault


def delivered(data: bytes) -> tuple[bytes, list[bytes], bool]:
    """Return what `deliver` must return: four replies are waited for, a fifth is a fault."""
    whole, fault = model.replies(data)
    answers: list[bytes] = []
    out = b""
    elsewhere = []
    for reply in whole:
        if reply.startswith(b">"):
            continue
        if len(answers) == 4:
            fault = True
            break
        answers.append(reply)
        if any(reply.startswith(mark) and len(reply) > len(mark) for mark in MARKS):
            elsewhere.append(reply)
        else:
            out += reply
    return out, elsewhere, fault


MARKS = (
    b"-MOVED ", b"-ASK ", b"-TRYAGAIN", b"-CLUSTERDOWN", b"-LOADING", b"-MASTERDOWN", b"-READONLY"
)  # fmt: skip


@pytest.mark.parametrize(
    "data",
    [
        b"*2\r\n$3\r\nGET\r\n$1\r\nk\r\n" * 3,
        b'GET k\r\n  set  k "a\\x41\\r\\n" \n\r\n*0\r\n*-1\r\n*1\r\n$0\r\n\r\n',
        b"*1\r\n$4\r\nPING\r\n*1\r\n$4\r\nPINGxx",
        b"*12\r\n" + b"$2\r\n\r\n\r\n" * 12,
        b"*1\r\n$64\r\n" + b"x" * 64 + b"\r\n*1\r\n$65\r\n",
    ],
)
def test_requests_at_every_cut(data: bytes) -> None:
    """A stream means the same whole, byte by byte, and cut in two at every place."""
    for pieces in streams.every_cut(data):
        assert read(pieces) == expected(data)


def same_requests(data: bytes, places: list[int]) -> None:
    for pieces in ([data], streams.cuts(data, places), streams.cuts(data, range(len(data)))):
        assert read(pieces) == expected(data)


places = st.lists(st.integers(0, 400), max_size=6)


@given(streams.mutated(streams.request_streams), places)
@example(b"*-0\r\n", [])
@example(b"SET k 'it\\\\'s'\r\n", [])
@quick
def test_requests_are_read_as_the_reference_reads_them(data: bytes, where: list[int]) -> None:
    """Commands, empty requests and protocol errors are those of the reference, at any cut."""
    same_requests(data, where)


def same_requests_at_every_cut(data: bytes, where: list[int]) -> None:
    same_requests(data, where)
    for pieces in streams.every_cut(data):
        assert read(pieces) == expected(data)


@pytest.mark.long
@thorough
def test_many_requests() -> None:
    """The same for twenty thousand streams, each at every single cut."""
    in_rounds(20_000, same_requests_at_every_cut, streams.mutated(streams.request_streams), places)


def same_replies(data: bytes, places: list[int]) -> None:
    for pieces in ([data], streams.cuts(data, places), streams.cuts(data, range(len(data)))):
        assert deliver(pieces) == delivered(data)
    try:
        end = model.reply_end(data, 0)
    except model.Incomplete:
        end = -1
    except model.Fault:
        with pytest.raises(ValueError, match="no reply"):
            wire.frame_end(data, 0)
        return
    assert wire.frame_end(data, 0) == end


@given(streams.mutated(streams.reply_streams), places)
@example(b"$-0\r\n\r\n", [])
@quick
def test_replies_are_read_as_the_reference_reads_them(data: bytes, where: list[int]) -> None:
    """Each reply is given to its command and to no other, at any cut; what is none is a fault."""
    same_replies(data, where)


def same_replies_at_every_cut(data: bytes, where: list[int]) -> None:
    same_replies(data, where)
    for pieces in streams.every_cut(data):
        assert deliver(pieces) == delivered(data)


@pytest.mark.long
@thorough
def test_many_replies() -> None:
    """The same for twenty thousand streams, each at every single cut."""
    in_rounds(20_000, same_replies_at_every_cut, streams.mutated(streams.reply_streams), places)


@pytest.mark.parametrize("end", [b"\r\n", b"\r", b""])
@pytest.mark.parametrize("size", [65535, 65536, 65537])
def test_a_line_is_judged_by_its_length_alone(size: int, end: bytes) -> None:
    """A line of a node is refused at one byte over its limit, whether it came whole or cut."""
    data = b"+" + b"x" * size + end
    for pieces in ([data], [data[:-1], data[-1:]], [data[:65000], data[65000:]]):
        assert deliver(pieces) == delivered(data)
    assert deliver([data])[2] == (size > 65536)


@pytest.mark.parametrize("step", [-1, 0, 1])
@pytest.mark.parametrize("limit", ["arguments", "argument_bytes", "inline_bytes"])
@pytest.mark.parametrize("allowed", [3, 10, 512, 4096])
def test_limits_are_exact(limit: str, allowed: int, step: int) -> None:
    """As much as a limit says is taken; one more is a protocol error as soon as it is announced."""
    limits = Limits(**{limit: allowed})
    stage = Stage(ruleset(commands=(), roles=(role(limits)._replace(allowed=b""),)))
    size = allowed + step
    data = {
        "arguments": model.frame([b"w"] * size),
        "argument_bytes": model.frame([b"w" * size]),
        "inline_bytes": b"w" * (size - 1) + b"\n",
    }[limit]
    found, out = read([data], stage)
    assert (found, out.startswith(b"-ERR Protocol error")) == (
        ([], True) if step > 0 else (model.requests(data)[0], False)
    )
    if step > 0 and limit != "inline_bytes":
        header = data[: data.index(b"\r\n", 4 if limit == "argument_bytes" else 0) + 2]
        assert read([header], stage)[1].startswith(b"-ERR Protocol error")


BOMBS = [
    b"*2000000\r\n", b"*1048576\r\n", b"*2147483647\r\n", b"*1\r\n$536870912\r\n",
    b"*1048576\r\n$536870912\r\n", b"*1\r\n$9999999999\r\n", b"*" + b"9" * 1000, b"$" + b"1" * 1000,
    b"%1000000000\r\n", b"~1000000000\r\n", b"*100000000\r\n" * 5, b"*1\r\n" * 20_000,
    b">1000000000\r\n", b"|1000000000\r\n", b"*9999999999\r\n" * 200, b"$9999999999\r\n",
]  # fmt: skip
ALLOWED_GROWTH = 1024 * 1024  # bytes for 200 connections


STAGE = Stage(nodes=200)


@pytest.mark.parametrize("bomb", BOMBS, ids=lambda bomb: repr(bomb[:16]) + f"x{len(bomb)}")
def test_headers_allocate_nothing(bomb: bytes) -> None:
    """Counts and sizes in headers cost no memory, only bytes that have come do."""
    clients = [STAGE.client() for _ in STAGE.upstreams]
    before = resident()
    for client, node in zip(clients, STAGE.upstreams, strict=True):
        client.receive_data(bomb, 1.0)
        node.receive_data(bomb, 1.0)
    room = 4 * 200 * (len(bomb) + 512)  # what has come lies in buffers that grow by doubling
    assert resident() - before <= ALLOWED_GROWTH + (room if len(bomb) > 1000 else 0)
    for node in STAGE.upstreams:
        node.connection_lost()


def test_a_deeply_nested_reply_needs_no_stack() -> None:
    """Nesting is counted, not followed: a million levels end like one."""
    data = b"*1\r\n" * 1_000_000 + b":1\r\n"
    assert wire.frame_end(data, 0) == len(data)
    assert deliver([data])[0] == data


def test_a_frame_of_many_pieces_is_scanned_once() -> None:
    """A large command in small pieces costs about as much as its bytes, not their square."""
    chance = random.Random(7)
    words = [bytes([chance.randrange(256)]) * chance.randrange(4) for _ in range(60_000)]
    data = model.frame(words)
    client = Stage(ruleset(commands=(), roles=(role()._replace(allowed=b""),))).client()
    found = None
    for at in range(0, len(data), 40):
        found = client.receive_data(data[at : at + 40], 1.0)
    assert found is not None
    assert found.arguments == words


@given(st.lists(st.binary(max_size=40), min_size=1, max_size=6))
@quick
def test_pack(words: list[bytes]) -> None:
    """A packed command is the canonical frame of its words."""
    assert wire.pack(words) == model.frame(words)
