"""WATCH: a transaction runs only if nothing that it looked at has changed, and never unguarded."""

import contextlib
from collections.abc import AsyncIterator

import pytest

from proxy import errors
from proxy.embedded.sidecar import Sidecar
from proxy.handlers.watch import Watch
from tests.conftest import Clusters
from tests.fakenode import Answer
from tests.front import TIMEOUT, Front, front
from tests.integration.rig import Caller, is_error, wait_for
from tests.quiet import Stopwatch
from tests.replies import pack

pytestmark = pytest.mark.integration

UNIT = pack("MULTI") + pack("SET", "k", "v") + pack("EXEC")
EXECUTED = b"*1\r\n+OK\r\n"


@contextlib.asynccontextmanager
async def house(**fields: object) -> AsyncIterator[Front]:
    async with front(**fields) as made:
        made.node.answers |= {"CLIENT ID": b":7\r\n", "EXEC": EXECUTED}
        made.node.answers["SET"] = b"+QUEUED\r\n"
        yield made


def held(made: Front) -> Watch:
    watch = made.session.holdings["watch"]
    assert isinstance(watch, Watch)
    return watch


async def test_a_transaction_runs_on_the_connection_that_watches() -> None:
    """WATCH, what is read meanwhile, and MULTI to EXEC behind it; then nothing is held."""
    async with house() as made:
        caller = await made.connect()
        assert await caller.call("WATCH", "k", "l") == b"OK"
        assert await caller.call("WATCH", "m") == b"OK"
        watch = held(made)
        assert watch.counts == {"watch": 3}
        assert made.session.downstream.serial
        assert await watch.execute(UNIT, 3) == EXECUTED
        (connection,) = [c for c in made.node.connections if c.asked(b"WATCH")]
        names = [words[0] for words in connection.commands]
        assert names[-5:] == [b"WATCH", b"WATCH", b"MULTI", b"SET", b"EXEC"]
        assert not made.session.holdings
        assert not made.session.downstream.serial
        assert await caller.call("WATCH", "k") == b"OK"
        assert len([c for c in made.node.connections if c.asked(b"WATCH")]) == 1


@pytest.mark.parametrize("word", ["UNWATCH", "RESET"])
async def test_watching_ends(word: str) -> None:
    """The node forgets what was watched before another client gets the connection."""
    async with house() as made:
        caller = await made.connect()
        await caller.call("WATCH", "k")
        await caller.call(word)
        assert not made.session.holdings
        await wait_for(lambda: made.node.received("UNWATCH"), "the node's UNWATCH")
        assert await caller.call("UNWATCH") == b"OK"
        assert len(made.node.received("UNWATCH")) == 1


async def test_a_client_that_goes_while_it_watches() -> None:
    """Nothing is left in use, also when it goes before WATCH is answered."""
    async with house() as made:
        await (await made.connect()).call("WATCH", "k")
        made.node.answers["WATCH"] = Answer(b"+OK\r\n", delay=0.02)
        (await made.connect()).writer.write(pack("WATCH", "k"))
        await wait_for(lambda: len(made.node.received("WATCH")) == 2, "the second WATCH")
        for session in list(made.server.sessions.values()):
            session.close()
        await wait_for(lambda: not made.server.tasks, "the end of both")
        await wait_for(
            lambda: 'sidecache_pins{use="watching"} 0.0' in made.stand.page(), "no connection"
        )


@pytest.mark.parametrize("protocol", [2, 3])
async def test_a_lost_connection_is_a_changed_key(protocol: int) -> None:
    """EXEC answers null in the client's protocol; a further WATCH does not heal it."""
    async with house() as made:
        caller = await made.connect()
        await caller.call("HELLO", protocol)
        await caller.call("WATCH", "k")
        watch = held(made)
        for connection in made.node.connections:
            if connection.asked(b"WATCH"):
                connection.close("reset")
        await wait_for(lambda: not watch.intact, "the loss")
        assert await caller.call("WATCH", "l") == b"OK"
        assert await watch.execute(UNIT, 3) == (b"_\r\n" if protocol == 3 else b"*-1\r\n")
        assert not made.node.received("MULTI")
        assert "sidecache_watches_lost_total 1.0" in made.stand.page()


@pytest.mark.parametrize(
    ("answers", "reply"),
    [
        ({"EXEC": b"-MOVED 1 127.0.0.1:1\r\n"}, b"*-1\r\n"),
        ({"EXEC": b"-ASK 1 127.0.0.1:1\r\n"}, b"*-1\r\n"),
        (
            {"SET": b"-MOVED 1 127.0.0.1:1\r\n", "EXEC": b"-EXECABORT Transaction discarded\r\n"},
            b"*-1\r\n",
        ),
        ({"EXEC": b"-READONLY no\r\n"}, b"*-1\r\n"),
        ({"EXEC": b"*-1\r\n"}, b"*-1\r\n"),
        ({"EXEC": Answer(b"", close="reset")}, errors.UNKNOWN_OUTCOME),
    ],
)
async def test_what_exec_comes_to(answers: dict[str, bytes | Answer], reply: bytes) -> None:
    """A slot that has left is a changed key; a loss after sending is an unknown outcome."""
    async with house() as made:
        made.node.answers |= answers
        caller = await made.connect()
        await caller.call("WATCH", "k")
        assert await held(made).execute(UNIT, 3) == reply


async def test_a_refused_command_aborts() -> None:
    """What is wrong with the transaction itself is said."""
    async with house() as made:
        made.node.answers |= {"SET": b"-OOM no\r\n", "EXEC": b"-EXECABORT Transaction\r\n"}
        caller = await made.connect()
        await caller.call("WATCH", "k")
        assert (await held(made).execute(UNIT, 3)).startswith(b"-EXECABORT")


async def test_idle_watches_are_given_up() -> None:
    """Who does not come back with a transaction loses the connection, and hears null."""
    async with house(watch_idle=0.01) as made:
        caller = await made.connect()
        await caller.call("WATCH", "k")
        watch = held(made)
        await wait_for(lambda: not watch.intact, "the end of the connection")
        assert await watch.execute(UNIT, 3) == b"*-1\r\n"


async def test_another_protocol_is_a_changed_key() -> None:
    """A transaction is not answered in a protocol that the client has left."""
    async with house() as made:
        caller = await made.connect()
        await caller.call("WATCH", "k")
        await caller.call("HELLO", "3")
        assert await held(made).execute(UNIT, 3) == b"_\r\n"


async def test_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Too many clients that watch, and too many keys of one, are refused; others go on."""
    monkeypatch.setattr("proxy.handlers.watch.MOST_KEYS", 2)
    async with house(watching=1) as made:
        first, second = await made.connect(), await made.connect()
        assert str(await first.call("WATCH", "a", "b", "c")).encode() == errors.MAX_WATCHED[1:-2]
        assert await first.call("WATCH", "k") == b"OK"
        assert str(await second.call("WATCH", "k")).encode() == errors.MAX_WATCHING[1:-2]
        assert str(await first.call("WATCH", "l", "m")).encode() == errors.MAX_WATCHED[1:-2]
        await first.call("UNWATCH")
        assert await second.call("WATCH", "k") == b"OK"


async def test_a_node_that_refuses() -> None:
    """The node's words, and nothing is watched."""
    async with house() as made:
        made.node.answers["WATCH"] = b"-NOPERM no\r\n"
        caller = await made.connect()
        assert str(await caller.call("WATCH", "k")) == "NOPERM no"
        assert not made.session.holdings


async def test_a_node_that_is_away() -> None:
    """It is said at once, in the words of every other command, and nothing is watched."""
    async with house() as made:
        caller = await made.connect()
        await made.node.stop()
        await wait_for(lambda: not made.stand.cluster.available, "the loss")
        watch = Stopwatch()
        assert str(await caller.call("WATCH", "k")).encode() == errors.CLUSTERDOWN[1:-2]
        assert watch.spent < TIMEOUT / 2
        assert not made.session.holdings
        await made.node.start()
        await wait_for(lambda: made.stand.cluster.available, "the return")
        assert await caller.call("WATCH", "k") == b"OK"


# From here on over real clusters.


async def test_slots_and_clusters(proxy: Sidecar, empty_clusters: Clusters) -> None:
    """All keys that are watched share a slot, of one WATCH or of several."""
    caller = await Caller.open(proxy.port)
    for words in (["WATCH", "a", "b"], ["WATCH", "{a}1"], ["WATCH", "b"], ["WATCH", "{a}2"]):
        reply = await caller.call(*words)
        wrong = words in (["WATCH", "a", "b"], ["WATCH", "b"])
        assert is_error(reply) == wrong
        if wrong:
            assert str(reply).encode() == errors.CROSSSLOT[1:-2]
    caller.close()


async def test_an_exec_with_words_ends_the_watches() -> None:
    """So it does in Redis, also where there is no transaction."""
    async with house() as made:
        caller = await made.connect()
        await caller.call("WATCH", "k")
        assert str(await caller.call("EXEC")).startswith("ERR EXEC without MULTI")
        assert "watch" in made.session.holdings
        assert str(await caller.call("EXEC", "1")).startswith("EXECABORT")
        assert not made.session.holdings
