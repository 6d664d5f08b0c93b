"""Commands of one slot that a handler sends on itself."""

from proxy import errors, wire
from proxy.handlers.forward import locate_all
from tests.handlers.desk import TIMEOUT, Desk, ruleset


async def test_a_lost_node_ends_the_wait() -> None:
    """A command whose node never answers is answered at its deadline, and only then."""
    desk = Desk()
    client = desk.connect()
    client.send(b"COPY", b"a", b"{a}b")
    node = desk.node(1)
    now = client.session.active + TIMEOUT + 1
    _, orphans = node.upstream.expire(now)
    for orphan in orphans:
        orphan.answer(errors.UNKNOWN_OUTCOME, now)
    assert await client.reply() == errors.UNKNOWN_OUTCOME


async def test_replies_keep_the_clients_order() -> None:
    """What is asked behind a forwarded command is answered behind it."""
    desk = Desk()
    client = desk.connect()
    client.send(b"COPY", b"a", b"{a}b")
    client.send(b"PING")
    assert client.take() == b""
    desk.node(1).answer(b":1\r\n")
    assert await client.reply() == b":1\r\n+PONG\r\n"


JSON = (
    ruleset()
    .keyspaces[0]
    ._replace(json_errors=(b"-POLICY\r\n",) * 20, part_error=b"-POLICY whole\r\n")
)


async def test_what_is_judged_later_is_judged_by_the_clients_own_rules() -> None:
    """Rules that come while a client has something under way are none of what it has sent."""
    desk = Desk()
    client = desk.connect()
    session = client.session
    old = desk.server.router.ruleset
    copy = session.downstream.receive_data(
        wire.pack([b"COPY", b"x", b"seat_lock:{x}:1"]), session.active
    )
    assert copy is not None
    desk.server.router.ruleset = judging_json(old)
    told = locate_all(session, copy, copy.arguments)
    assert told != JSON.part_error


def judging_json(old: wire.Ruleset) -> wire.Ruleset:
    """Return rules that look into the values of the keyspace."""
    return wire.Ruleset(
        commands=old.commands, keyspaces=[JSON], roles=old.roles, families=old.families,
        errors=old.errors, default_cluster=0, reject_unmatched=False, max_key_bytes=1024,
    )  # fmt: skip
