"""The table of what commands do to keys agrees with the command table and with itself."""

import pytest

from proxy import commands, effects
from proxy.wire.rules import KeyKind, Makes, Words

# Writes that neither make a key nor carry a value: they take away, or change what is there.
TAKE_AWAY = {
    "del", "unlink", "delifeq", "getdel", "hdel", "hgetdel", "hpersist", "blmpop", "blpop",
    "brpop", "lmpop", "lpop", "lrem", "ltrim", "rpop", "spop", "srem", "bzmpop", "bzpopmax",
    "bzpopmin", "zmpop", "zpopmax", "zpopmin", "zrem", "zremrangebylex", "zremrangebyrank",
    "zremrangebyscore", "xack", "xautoclaim", "xclaim", "xdel", "xgroup|createconsumer",
    "xgroup|delconsumer", "xgroup|destroy", "xgroup|setid", "xreadgroup", "xsetid", "xtrim",
}  # fmt: skip


def test_every_write_has_an_effect_or_none_on_purpose() -> None:
    """A write command that is offered cannot be forgotten: it makes keys, or is listed as not."""
    writes = {
        row.name.decode()
        for row in commands.COMMANDS
        if row.offered and row.write and row.keys.kind is not KeyKind.NONE
    }
    known = {name.decode() for name in effects.EFFECTS}
    assert writes - known == TAKE_AWAY
    assert known <= writes


@pytest.mark.parametrize(
    ("name", "family", "expected"),
    [
        (b"get", "string", ("string",)),
        (b"del", "generic", effects.TYPES),
        (b"zadd", "zset", ("zset",)),
        (b"pfadd", "string", ("string",)),
    ],
)
def test_types_follow_from_the_family(name: bytes, family: str, expected: tuple[str, ...]) -> None:
    """A command works on the type of its family, and one of none on all."""
    bits = sum(effects.TYPE_BITS[kind] for kind in expected)
    assert effects.types(name, family) == (bits, bits)


def test_a_union_may_read_sets() -> None:
    """ZUNIONSTORE writes a sorted set and reads plain sets too."""
    first, others = effects.types(b"zunionstore", "zset")
    assert first == effects.TYPE_BITS["zset"]
    assert others == effects.TYPE_BITS["zset"] | effects.TYPE_BITS["set"]


def test_what_makes_nothing_says_so() -> None:
    """A read has no effect at all."""
    assert effects.effect(b"get") == (Makes.NOTHING, 0, Words(), Words())


def test_what_grows_a_collection_is_a_write_that_may_make_it() -> None:
    """A trim goes behind writes only, and to a key of theirs that is known."""
    writes = {row.name for row in commands.COMMANDS if row.offered and row.write}
    assert set(effects.GROWS) <= writes
    needs_it = {b"lpushx", b"rpushx", b"linsert"}
    makers = {name for name in effects.GROWS if effects.effect(name).makes is not Makes.NOTHING}
    assert set(effects.GROWS) - makers == needs_it
