"""Rows that PostgreSQL does not take, written without what is at fault."""

import json
from collections.abc import AsyncIterator, Mapping, Sequence

import asyncpg
import pytest

from proxy.origin.batching import Connection, prepared
from proxy.origin.letters import Letters, Misfit
from proxy.origin.merging import Batch
from proxy.origin.records import Change, Entry, Op
from tests.origin.activity import UPSERT, key_of, plan_of, rows_of, views

pytestmark = pytest.mark.integration

Apart = Mapping[tuple[str, bytes], Sequence[Entry]]
TWO = "SELECT views, calls FROM activity ORDER BY id"
PAYLOADS = "SELECT payload::text FROM sidecache_dead_letters ORDER BY id"


def entry(sequence: int, *changes: Change, number: int = 1) -> Entry:
    return Entry(sequence, float(sequence), "activity", key_of(number), changes)


def calls(amount: int) -> Change:
    return Change(Op.ADD, b"calls", b"%d" % amount)


@pytest.fixture
async def connection(activity: str) -> AsyncIterator[Connection]:
    connection = await asyncpg.connect(activity, timeout=5)
    yield connection
    connection.terminate()


async def written(
    connection: Connection, entries: Sequence[Entry], apart: Apart, attempt: int = 1
) -> Letters:
    """Write the rows of these writes in one transaction; apart is what the journal has of them."""
    batch = Batch()
    for each in entries:
        batch.add(each, "add")

    async def read(_: Batch) -> Apart:
        return apart

    async with connection.transaction():
        letters = Letters(connection, batch, "me", attempt, read)
        many = await prepared(connection, UPSERT)
        await letters.write(plan_of(), many, list(batch.rows.values()))
    return letters


async def test_what_is_innocent_is_written(connection: Connection, activity: str) -> None:
    """Of a row of many writes only those that PostgreSQL refuses by themselves are dead."""
    entries = [entry(n, *views(n), calls(1)) for n in range(1, 10)]
    entries[4] = entry(5, *views(2**31))
    entries[7] = entry(8, *views(2**32))
    other = entry(10, *views(1), number=2)
    letters = await written(
        connection, [*entries, other], {("activity", key_of(1)): entries}
    )  # fmt: skip
    assert await rows_of(activity, TWO) == [(45 - 5 - 8, 7), (1, 0)]
    assert letters.dead == [("activity", key_of(1))] * 2
    found = [json.loads(text)["fields"] for (text,) in await rows_of(activity, PAYLOADS)]
    assert found == [
        {"views": {"op": "add", "value": f"{amount}"}} for amount in (2**31, 2**32)
    ]  # fmt: skip


@pytest.mark.parametrize("known", [0, 1, 3])
async def test_a_row_that_nobody_can_take_apart_is_dead(
    connection: Connection, activity: str, known: int
) -> None:
    """What is read again must be all that it was merged of, and nothing else."""
    entries = [entry(1, *views(3)), entry(2, *views(2**31))]
    read = [*entries, entry(3, *views(1))][:known]
    letters = await written(connection, entries, {("activity", key_of(1)): read})
    assert await rows_of(activity, TWO) == []
    assert letters.dead == [("activity", key_of(1))]
    ((text,),) = await rows_of(activity, PAYLOADS)
    assert json.loads(text)["fields"] == {"views": {"op": "add", "value": f"{2**31 + 3}"}}


async def test_a_row_that_is_refused_like_a_statement(
    connection: Connection, activity: str
) -> None:
    """Where it is still so after the statement was prepared again, the row is at fault."""
    await connection.execute(
        """CREATE FUNCTION judge() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN
               RAISE EXCEPTION 'not this one' USING ERRCODE = '42P01'; END$$;
           CREATE TRIGGER t BEFORE INSERT ON activity FOR EACH ROW
               WHEN (NEW.id = 'u1') EXECUTE FUNCTION judge()"""
    )
    entries = [entry(1, *views(3)), entry(2, *views(1), number=2)]
    with pytest.raises(Misfit):
        await written(connection, entries, {})
    letters = await written(connection, entries, {}, attempt=2)
    assert letters.dead == [("activity", key_of(1))]
    assert await rows_of(activity, TWO) == [(1, 0)]
