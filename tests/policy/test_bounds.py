"""Bounds on arguments, from policies to the data plane."""

from proxy import wire
from proxy.commands import INDEX
from proxy.policy import bounds
from proxy.policy.blocks import CommandRights
from proxy.wire.rules import Duty
from tests.policy.rulebook import Folder
from tests.wire.stage import Stage

RULES = """
defaults: {commands: {bounds: {LRANGE span: 100}}}
keyspaces:
  cart: {key: "cart:{user}"}
  feed: {key: "feed:{user}", commands: {bounds: {LRANGE span: 1000}}}
roles:
  default: {}
  tight: {commands: {bounds: {LRANGE span: 5, SCAN COUNT: 100}}}
"""


def said(rules: wire.Ruleset, role: str, line: bytes) -> bytes:
    side = Stage(rules).client(role)
    side.receive_data(line + b"\r\n", 0.0)
    reply = side.data_to_send()
    return reply if reply.startswith(b"-POLICY") else b""


def test_keyspaces_and_roles(folder: Folder) -> None:
    """Defaults reach every keyspace that says nothing else, and a role's bounds reach all keys."""
    rules = folder.compile(RULES)
    line = b"-POLICY argument refused by %b: LRANGE span is at most %d\r\n"
    assert said(rules, "default", b"LRANGE cart:1 0 100") == line % (b"keyspace 'cart'", 100)
    assert said(rules, "default", b"LRANGE feed:1 0 100") == b""
    assert said(rules, "default", b"LRANGE feed:1 0 1000") == line % (b"keyspace 'feed'", 1000)
    assert said(rules, "default", b"LRANGE free 0 1000000") == b""
    assert said(rules, "tight", b"LRANGE free 0 5") == line % (b"role 'tight'", 5)
    assert said(rules, "tight", b"SCAN 0 COUNT 101").startswith(b"-POLICY")


def test_only_commands_with_a_bound_are_looked_at(folder: Folder) -> None:
    """The flag of a bound is set for the commands of the bound and for no other."""
    [cart, _] = folder.compile(RULES).keyspaces
    assert [i for i, flags in enumerate(cart.duties) if flags & Duty.BOUNDS] == [INDEX[b"lrange"]]
    rights = CommandRights(bounds={"ZRANGE span": 1})
    rows = folder.compile(RULES).commands
    assert sum(bounds.bounded(rights.bounds, row) for row in rows) == 7


def test_names_of_bounds(folder: Folder) -> None:
    """A name that is no bound is a mistake with what is allowed."""
    [found] = folder.keyspace("commands: {bounds: {LRANGE spam: 5}}")
    assert '"LRANGE spam" is no bound' in found
    assert "MATCH stars" in found
