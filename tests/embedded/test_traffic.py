"""Clients of the outage: nothing that is no answer is taken for one."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence

import pytest

from proxy.embedded import sample
from proxy.embedded.postgres import Postgres
from proxy.embedded.traffic import KINDS, Tally, Traffic, questions
from tests.integration.rig import wait_for

pytestmark = pytest.mark.integration

REEL = [("GET", "venue:venue_1")]


@contextlib.asynccontextmanager
async def answering(replies: Sequence[bytes]) -> AsyncIterator[tuple[str, int]]:
    """Have a server that gives each request the next reply, and closes for an empty one."""
    turn = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal turn
        with contextlib.suppress(ConnectionError):
            while await reader.read(1000):
                reply = replies[turn % len(replies)]
                turn += 1
                if not reply:
                    break
                writer.write(reply)
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        yield server.sockets[0].getsockname()[:2]


async def heard(traffic: Traffic, answers: int) -> Tally:
    """Let the clients ask until there are so many answers or errors."""
    total = Tally()

    def enough() -> bool:
        total.add(traffic.take())
        return len(total.latencies) + total.errors >= answers

    async with traffic.running():
        await wait_for(enough, "answers")
    return total


async def test_values_are_answers_with_a_latency() -> None:
    """Nothing is an error where everybody gets a value."""
    async with answering([b"$2\r\n{}\r\n", b"*2\r\n$1\r\na\r\n$1\r\nb\r\n"]) as address:
        found = await heard(Traffic(address, REEL), 30)
    assert found.errors == 0
    assert 0 < found.percentile(0.5) <= found.percentile(0.99) < 5000


@pytest.mark.parametrize(
    ("reply", "kind"),
    [
        (b"-CLUSTERDOWN x\r\n", "CLUSTERDOWN x"),
        (b"$-1\r\n", "a row that exists was said to be missing"),
        (b"*0\r\n", "a row that exists was said to be missing"),
        (b"", "connection lost: closed by the proxy"),
    ],
)
async def test_what_is_no_value_is_an_error(reply: bytes, kind: str) -> None:
    """An error line, nothing for a row that exists, and a connection that ends."""
    async with answering([reply]) as address:
        traffic = Traffic(address, REEL)
        found = await heard(traffic, 20)
    assert found.errors >= 20 or len(found.latencies) == found.errors
    assert set(traffic.kinds) == {kind}


async def test_nobody_there_is_an_error_as_well(unused_tcp_port: int) -> None:
    """A proxy that is gone does not make the story look well."""
    traffic = Traffic(("127.0.0.1", unused_tcp_port), REEL)
    assert (await heard(traffic, 10)).errors >= 10


async def test_kinds_of_errors_are_few() -> None:
    """Errors that all differ are told as others."""
    async with answering([b"-ERR %d\r\n" % number for number in range(100)]) as address:
        traffic = Traffic(address, REEL)
        await heard(traffic, 100)
    assert len(traffic.kinds) == KINDS + 1
    assert traffic.kinds["others"] > 0


async def test_questions_are_about_rows_that_exist(postgres_server: Postgres) -> None:
    """The same sample gives the same questions, about six keyspaces."""
    dsn = await postgres_server.create_database("traffic")
    await sample.load(dsn, 1)
    reel = await questions(dsn, 500)
    assert reel == await questions(dsn, 500)
    assert {words[1].partition(":")[0] for words in reel} == {
        *("event", "venue", "org", "user_prefs", "user_perms", "event_availability")
    }
    assert ("GET", "venue:venue_1") in reel
    await postgres_server.drop_database("traffic")
