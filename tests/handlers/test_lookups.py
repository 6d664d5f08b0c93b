"""Look-ups that Redis has no answer for, and questions of time."""

import asyncio

import pytest

from proxy import errors
from proxy.handlers import lookups
from proxy.plans import Age
from tests.handlers.backed_desk import BackedDesk, plan
from tests.handlers.desk import Client

THERE, WON = b"$5\r\nthere\r\n", b"$3\r\nwon\r\n"


@pytest.fixture
async def table() -> BackedDesk:
    return BackedDesk(plan())


async def ask(table: BackedDesk, client: Client, *words: bytes) -> list[list[bytes]]:
    client.send(*words)
    return await table.asked()


async def test_a_field_that_a_hash_has_not_costs_no_statement(table: BackedDesk) -> None:
    """The key is there: Redis is asked again, and nil is the answer."""
    client = table.connect()
    assert await ask(table, client, b"HGET", b"user:1", b"f") == [
        [b"PTTL", b"user:1"], [b"HGET", b"user:1", b"f"],
    ]  # fmt: skip
    await table.answer(b":80000\r\n", b"$-1\r\n")
    assert (await table.asked())[0][0] == b"lease"
    await table.answer(THERE)
    question = [b"PTTL", b"user:1"]
    assert await table.asked() == [question, [b"HGET", b"user:1", b"f"], question]
    await table.answer(b":80000\r\n", b"$-1\r\n", b":80000\r\n")
    assert await client.reply() == b"$-1\r\n"


async def told_again(kind: str, first: bytes, before: bytes, after: bytes) -> bytes:
    """Return what is told of a part of nothing, by its time at first and round the second look."""
    table = BackedDesk(plan(type=kind))
    client = table.connect()
    await ask(table, client, b"GETRANGE", b"user:1", b"0", b"9")
    await table.answer(first, b"$0\r\n\r\n")
    await table.asked()
    await table.answer(THERE)
    await table.asked()
    await table.answer(before, b"$0\r\n\r\n", after)
    return await client.reply()


@pytest.mark.parametrize("kind", ["hash", "string"])
@pytest.mark.parametrize(
    ("before", "after"),
    [(b":80000\r\n", b":-2\r\n"), (b":-2\r\n", b":80000\r\n"), (b":3\r\n", b":3\r\n")],
)
async def test_a_key_that_came_and_went_is_asked_of_postgres(
    kind: str, before: bytes, after: bytes
) -> None:
    """Nil of a key that is gone again, has just come, or is too old by now, is no answer."""
    assert await told_again(kind, b":-2\r\n", before, after) == errors.ORIGIN_DOWN


async def test_an_empty_string_costs_no_statement() -> None:
    """What is there and has nothing in it is the answer."""
    there = b":80000\r\n"
    assert await told_again("string", there, there, there) == b"$0\r\n\r\n"


async def test_a_time_that_came_and_went_is_asked_of_postgres(table: BackedDesk) -> None:
    """TTL of a key that is gone again is what its row says, and not -2."""
    client = table.connect()
    await ask(table, client, b"TTL", b"user:1")
    await table.answer(b":-2\r\n")
    await table.asked()
    await table.answer(THERE)
    await table.asked()
    await table.answer(b":-2\r\n")
    assert await client.reply() == errors.ORIGIN_DOWN


async def test_an_error_of_postgres_is_no_nil(table: BackedDesk) -> None:
    """What cannot be had is said to be so."""
    client = table.connect()
    await ask(table, client, b"HGETALL", b"user:1")
    await table.answer(b":-2\r\n", b"*0\r\n")
    await table.asked()
    await table.answer(WON)
    await table.asked()
    await table.answer(b":1\r\n")
    assert await client.reply() == errors.ORIGIN_DOWN


@pytest.mark.parametrize(("left", "shown"), [(b":1000\r\n", True), (b":-3\r\n", False)])
async def test_what_is_old_is_shown_where_postgres_fails(
    table: BackedDesk, left: bytes, shown: bool
) -> None:
    """Inside the window of errors the old value is better than an error; beyond it is not."""
    client = table.connect()
    await ask(table, client, b"HGET", b"user:1", b"f")
    await table.answer(left if shown else b"-ERR no\r\n", b"$3\r\nold\r\n")
    await table.asked()
    await table.answer(WON)
    await table.asked()
    await table.answer(b":1\r\n")
    assert await client.reply() == (b"$3\r\nold\r\n" if shown else errors.ORIGIN_DOWN)


@pytest.mark.parametrize(
    ("command", "question", "reply", "said"),
    [
        (b"TTL", b"PTTL", b":40400\r\n", b":10\r\n"),
        (b"PTTL", b"PTTL", b":40400\r\n", b":10400\r\n"),
        (b"TTL", b"PTTL", b":20000\r\n", b":0\r\n"),
        (b"TTL", b"PTTL", b":-1\r\n", b":-1\r\n"),
        (b"PTTL", b"PTTL", b"-ERR no\r\n", b"-ERR no\r\n"),
    ],
)
async def test_times_are_told_without_the_window(
    table: BackedDesk, command: bytes, question: bytes, reply: bytes, said: bytes
) -> None:
    """A client hears of the time that it knows of."""
    client = table.connect()
    assert await ask(table, client, command, b"user:1") == [[question, b"user:1"]]
    await table.answer(reply)
    assert await client.reply() == said


async def test_without_redis_and_postgres_errors_say_so(table: BackedDesk) -> None:
    """Both are away: an error, and soon."""
    client = table.connect()
    table.away()
    for words in ((b"HGETALL", b"user:1"), (b"TTL", b"user:2")):
        client.send(*words)
        assert await client.reply() == errors.ORIGIN_DOWN


async def test_what_nobody_can_answer_is_degraded(table: BackedDesk) -> None:
    """A random pick needs Redis; that is said, where there is a value to pick from."""
    table = BackedDesk(plan(age=Age()))
    client = table.connect()
    table.away()
    client.send(b"HRANDFIELD", b"user:\xff")
    assert await client.reply() == errors.DEGRADED


async def test_who_waits_without_redis_costs_no_task(table: BackedDesk) -> None:
    """All who ask for a key while no node is there wait for one fetch, and for nothing else."""
    clients = [table.connect() for _ in range(50)]
    table.away()
    before = asyncio.all_tasks()
    for client in clients:
        client.send(b"HGETALL", b"user:1")
    assert len(asyncio.all_tasks() - before) == 1
    assert {await client.reply() for client in clients} == {errors.ORIGIN_DOWN}


async def test_a_fault_is_one_clients_alone(
    table: BackedDesk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of those who wait for one fetch, one whose answer cannot be made gets an error of its own."""
    first, second = table.connect(), table.connect()
    table.away()

    def fail(*arguments: object) -> bytes:
        monkeypatch.undo()
        raise ZeroDivisionError

    first.send(b"HGETALL", b"user:1")
    second.send(b"HGETALL", b"user:1")
    monkeypatch.setattr(lookups, "_said", fail)
    assert await first.reply() == errors.INTERNAL
    assert await second.reply() == errors.ORIGIN_DOWN
