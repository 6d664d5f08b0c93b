"""What PostgreSQL has of one key."""

import pytest
from prometheus_client import CollectorRegistry

from proxy.config import Database
from proxy.origin.budget import Share
from proxy.origin.postgres import Postgres
from proxy.origin.render import Value
from proxy.origin.rows import read_arguments, read_value
from proxy.plans import Age, Detour, Parameter, Plan, Statement
from proxy.secret import Secret
from proxy.tallies import OriginMetrics
from proxy.wire.rules import Segment

SHARE = Share("thing")


def plan_of(text: str) -> Plan:
    """Return a keyspace of hashes that is read by a statement over id and day."""
    parameters = (Parameter("day", "date"), Parameter("id", "int"))
    return Plan(
        0, "thing", (b"thing:", Segment("id", "int"), b":", Segment("day", "date")), 0, "cache",
        "hash", 0, 0.0, Statement("thing read", text, parameters), (), 1, Age(), None, Detour(),
        None, None, 0.0, False,
    )  # fmt: skip


def test_arguments_stand_in_the_order_of_the_statement() -> None:
    """Not in that of the key."""
    assert read_arguments(plan_of(""), b"thing:7:2026-01-02") == ["2026-01-02", "7"]


@pytest.mark.parametrize("key", [b"other:7:2026-01-02", b"thing:x:2026-01-02"])
def test_a_key_of_another_pattern_is_refused(key: bytes) -> None:
    """Nobody asks PostgreSQL with half of the arguments."""
    with pytest.raises(ValueError, match="pattern"):
        read_arguments(plan_of(""), key)


def test_bytes_that_no_text_has_are_refused() -> None:
    """A zero byte, and what is no UTF-8."""
    pattern = (b"t:", Segment("id", "text"), b":", Segment("day", "text"))
    plan = plan_of("")._replace(pattern=pattern)
    for key in (b"t:a\0:b", b"t:\xff:b"):
        with pytest.raises(ValueError, match=r"zero byte|decode"):
            read_arguments(plan, key)


@pytest.mark.integration
async def test_a_row_becomes_a_value_and_none_is_none(postgres: str) -> None:
    """As the plan reads it, from a real server."""
    database = Database(Secret(postgres), Secret(postgres))
    origin = Postgres(database, OriginMetrics(CollectorRegistry()))
    await origin.start()
    plan = plan_of("SELECT 1 AS one, NULL AS none WHERE $2::bigint = 7 AND $1::date IS NOT NULL")
    try:
        found = await read_value(origin, plan, ["2026-01-02", "7"], SHARE, primary=True)
        assert found == Value("hash", {b"one": b"1"})
        assert await read_value(origin, plan, ["2026-01-02", "8"], SHARE) is None
    finally:
        await origin.stop()
