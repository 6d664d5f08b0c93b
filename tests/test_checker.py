"""The checker finds each kind of lie, and none where there is none."""

from collections.abc import AsyncIterator, Callable

import pytest

from tests.checker import Hunt, Plan, Tally
from tests.fakenode import Answer, FakeConnection, FakeNode

pytestmark = pytest.mark.integration


def answer(node: FakeNode, words: list[bytes]) -> Answer | None:
    """Answer what the checker asks and the fake node does not know by itself."""

    def bulk(value: bytes) -> bytes:
        return b"$%d\r\n%b\r\n" % (len(value), value)

    name, values = words[0], node.values
    match name:
        case b"GETRANGE":
            return Answer(bulk(values[words[1]][int(words[2]) : int(words[3]) + 1]))
        case b"STRLEN":
            return Answer(b":%d\r\n" % len(values[words[1]]))
        case b"ECHO":
            return Answer(bulk(words[1]))
        case b"MGET":
            parts = b"".join(bulk(values[key]) for key in words[1:])
            return Answer(b"*%d\r\n%b" % (len(words) - 1, parts))
        case b"SET" if len(words) == 4:
            return Answer(bulk(values[words[1]]))
    return None


class Liar:
    """A fake node whose every Nth reply is spoilt."""

    def __init__(self, node: FakeNode) -> None:
        self.node = node
        self.count = 0
        self.spoil: Callable[[bytes], Answer] | None = None
        node.script = self.script

    def script(self, connection: FakeConnection, words: list[bytes]) -> Answer | bytes | None:
        honest = answer(self.node, words)
        self.count += 1
        if self.spoil is None or words[0] != b"GET" or self.count < 700 or self.count % 50:
            return honest
        value = self.node.values[words[1]]
        return self.spoil(b"$%d\r\n%b\r\n" % (len(value), value))


@pytest.fixture
async def liar() -> AsyncIterator[Liar]:
    node = FakeNode()
    await node.start()
    yield Liar(node)
    await node.stop()


async def hunt(liar: Liar, **changes: float) -> Tally:
    return await Hunt(
        Plan(port=liar.node.port, clients=8, keys=200, replies=3000, seconds=20.0, **changes)  # type: ignore[arg-type]
    ).run()


async def test_an_honest_server_gives_no_finding(liar: Liar) -> None:
    """Aborts, half-closes and torn requests of the clients themselves are nobody's fault."""
    tally = await hunt(liar)
    assert tally.faults == 0, tally
    assert tally.right >= 3000
    assert tally.abandoned > 0
    assert tally.late == 0


@pytest.mark.parametrize(
    ("kinds", "spoil"),
    [
        (["wrong"], lambda reply: Answer(b"$1\r\nx\r\n")),
        (["wrong", "late"], lambda reply: Answer(b"")),
        (["wrong", "extra"], lambda reply: Answer(reply + reply)),
        (["malformed"], lambda reply: Answer(reply[:-2] + b"xx")),
        (["malformed", "late"], lambda reply: Answer(b"$-1")),
    ],
)
async def test_a_lie_is_found(
    liar: Liar, kinds: list[str], spoil: Callable[[bytes], Answer]
) -> None:
    """A changed, dropped, doubled or broken reply is a finding of its kind."""
    liar.spoil = spoil
    tally = await hunt(liar, stop_at_finding=True, patience=0.5)
    assert sum(getattr(tally, kind) for kind in kinds) > 0, tally


async def test_a_reply_too_many_is_found(liar: Liar) -> None:
    """A reply that nobody asked for is extra, also when the client is idle."""
    liar.spoil = lambda reply: Answer(reply + reply)
    tally = await hunt(liar, deepest=1, idle_share=1.0, stop_at_finding=True)
    assert tally.extra > 0, tally


async def test_errors_and_closed_connections_are_counted_and_no_finding(liar: Liar) -> None:
    """An explicit error or an end of the connection is allowed."""
    liar.spoil = lambda reply: Answer(b"-TRYAGAIN later\r\n")
    tally = await hunt(liar)
    assert tally.faults == 0, tally
    assert tally.errors == {"-TRYAGAIN later": tally.error}
    liar.spoil = lambda reply: Answer(reply[:5], close="reset")
    tally = await hunt(liar)
    assert tally.faults == 0, tally
    assert tally.closed > 0
