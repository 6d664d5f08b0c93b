"""One table says what a keyspace with PostgreSQL behind it does with each command."""

import pytest

from proxy.commands import ROWS
from proxy.handlers.ways import WAYS, Way
from proxy.wire.rules import KeyKind, Path
from tests.handlers.backed_desk import BackedDesk, plan


def test_every_command_with_keys_has_a_way() -> None:
    """No command on keys goes past the table but those that name no data."""
    keyed = {
        row.name
        for row in ROWS
        if row.keys.kind is not KeyKind.NONE and row.path is not Path.REFUSED
    }
    assert keyed - WAYS.keys() == {b"spublish", b"ssubscribe", b"sunsubscribe"}
    looked_up = {row.name for row in ROWS if row.looks_up}
    assert {name for name, way in WAYS.items() if way is Way.LOOK_UP} == looked_up - {
        b"mget", b"exists",
    }  # fmt: skip


@pytest.mark.parametrize(
    "command",
    [
        b"GETEX user:1", b"GETDEL user:1", b"EXPIRE user:1 10", b"PERSIST user:1",
        b"APPEND user:1 x", b"SET user:1 x NX", b"HSCAN user:1 0", b"SSCAN user:1 0",
        b"ZSCAN user:1 0", b"DUMP user:1", b"OBJECT ENCODING user:1", b"TOUCH user:1",
        b"COPY user:1 {user:1}x", b"SORT user:1", b"SORT_RO user:1", b"BLPOP user:1 1",
        b"SUNION user:1 {user:1}x", b"RENAME user:1 {user:1}x", b"LCS user:1 {user:1}x",
    ],
)  # fmt: skip
async def test_what_looks_at_a_value_finds_the_row(command: bytes) -> None:
    """Before Redis carries the command out, the key is asked for: it would be nil otherwise."""
    table = BackedDesk(plan(type=None))
    client = table.connect()
    client.send(*command.split())
    assert (await table.asked())[0][:2] == [b"lease", b"sidecache:lease:{user:1}"]
