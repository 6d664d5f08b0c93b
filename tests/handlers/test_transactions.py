"""MULTI, EXEC and DISCARD: what is queued, what is refused, and what that does to EXEC."""

import asyncio
import logging

import pytest

from proxy import errors, wire
from proxy.commands import ROWS
from proxy.handlers import transactions
from proxy.wire import rules
from tests.fakenode import FakeNode
from tests.handlers.desk import Client, Desk, ruleset
from tests.upstream.stand import Stand, cluster_config

OK = b"+OK\r\n"
QUEUED = b"+QUEUED\r\n"


def multi(desk: Desk) -> Client:
    client = desk.connect()
    assert client.ask(b"MULTI") == OK
    return client


def nothing_sent(desk: Desk) -> bool:
    return all(node.commands() == [] for pair in desk.nodes for node in pair)


async def test_commands_wait_for_exec() -> None:
    """Nothing leaves before EXEC; then everything does, in one piece and in order."""
    desk = Desk()
    client = multi(desk)
    assert client.ask(b"SET", b"a", b"1") == client.ask(b"INCR", b"{a}n") == QUEUED
    assert nothing_sent(desk)
    client.send(b"EXEC")
    assert desk.node(1).commands() == [
        [b"MULTI"], [b"SET", b"a", b"1"], [b"INCR", b"{a}n"], [b"EXEC"],
    ]  # fmt: skip
    desk.node(1).answer(OK, QUEUED, QUEUED, b"*2\r\n+OK\r\n:1\r\n")
    assert await client.reply() == b"*2\r\n+OK\r\n:1\r\n"


async def test_exec_with_words_ends_the_transaction() -> None:
    """EXEC that is no EXEC drops what was queued and says why, as in Redis."""
    desk = Desk()
    client = multi(desk)
    client.ask(b"SET", b"a", b"1")
    assert client.ask(b"EXEC", b"now") == errors.line(
        "EXECABORT Transaction discarded because of: wrong number of arguments for 'exec' command"
    )
    assert client.ask(b"EXEC") == errors.EXEC_WITHOUT_MULTI
    assert nothing_sent(desk)


@pytest.mark.parametrize("watching", [False, True])
async def test_a_denied_exec_ends_the_transaction(watching: bool) -> None:
    """Whoever may not EXEC is told so in Redis' words, and no command is queued any more."""
    desk = Desk(denied=[b"exec"])
    client = multi(desk)
    client.session.downstream.serial = watching
    client.ask(b"SET", b"a", b"1")
    told = client.ask(b"EXEC")
    assert told == b"-EXECABORT Transaction discarded because of: " + errors.no_command(b"exec")[1:]
    assert "transaction" not in client.session.holdings
    assert client.ask(b"PING") == b"+PONG\r\n"
    assert client.ask(b"EXEC") == told
    assert nothing_sent(desk)


async def test_a_refused_exec_of_any_size_and_name_ends_the_transaction() -> None:
    """Also one that is large enough to be refused before it is whole, and one that is renamed."""
    desk = Desk()
    rows = [row._replace(alias=b"run" if row.name == b"exec" else b"") for row in ROWS]
    desk.server.router.ruleset = with_rows(desk, rows)
    client = multi(desk)
    client.ask(b"SET", b"a", b"1")
    data = wire.pack([b"RUN", bytes(300_000)])
    for start in range(0, len(data), 60_000):
        client.session.get_buffer(-1)[:60_000] = data[start : start + 60_000].ljust(60_000)
        client.session.buffer_updated(len(data[start : start + 60_000]))
        desk.settle()
    assert client.take().startswith(b"-EXECABORT Transaction discarded because of: wrong number")
    assert client.ask(b"PING") == b"+PONG\r\n"


def with_rows(desk: Desk, rows: list[rules.Command]) -> wire.Ruleset:
    """Return the desk's rules with other rows of commands."""
    old = desk.server.router.ruleset
    return wire.Ruleset(
        commands=rows, keyspaces=old.keyspaces, roles=old.roles, families=old.families,
        errors=old.errors, default_cluster=0, reject_unmatched=False, max_key_bytes=1024,
    )  # fmt: skip


async def test_new_rules_end_a_transaction() -> None:
    """What was queued was judged by rules that are over: EXEC discards it, and says why."""
    desk = Desk()
    client = multi(desk)
    assert client.ask(b"SET", b"a", b"1") == QUEUED
    desk.server.router.ruleset = ruleset(denied=[b"incr"])
    assert client.ask(b"INCR", b"a") == errors.no_command(b"incr")
    assert client.ask(b"SET", b"a", b"2") == QUEUED
    assert client.ask(b"EXEC") == errors.TRANSACTION_OUTLIVED
    assert nothing_sent(desk)
    assert client.ask(b"MULTI") == OK
    assert client.ask(b"EXEC") == b"*0\r\n"


async def test_new_rules_before_exec_end_a_transaction() -> None:
    """It makes no difference whether anything is queued after them."""
    desk = Desk()
    client = multi(desk)
    assert client.ask(b"SET", b"a", b"1") == QUEUED
    desk.server.router.ruleset = ruleset()
    assert client.ask(b"EXEC") == errors.TRANSACTION_OUTLIVED
    assert nothing_sent(desk)


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (b"SET a", errors.wrong_arity(b"set")),
        (b"DISCARD now", errors.wrong_arity(b"discard")),
        (b"FLY a", errors.unknown_command(b"FLY", [b"a"])),
        (b"SWAPDB 0 1", errors.unknown_command(b"swapdb")),
        (b"GETDEL a", errors.no_command(b"getdel")),
        (b"SET {a\x01}x 1", errors.DATA_PLANE.bad_key),
        (b"TOUCH seat_lock:a:1", b"-NOPERM denied\r\n"),
        (b"SET b 1", errors.CROSSSLOT),
        (b"SET seat_lock:a:1 1", errors.CROSS_CLUSTER),
        (b"MGET {a}b c", errors.CROSSSLOT),
        (b"COPY a {a}b DB 3", errors.COPY_DB_REFUSED),
        (b"COPY a b", errors.CROSSSLOT),
        (b"SORT a BY w_*", errors.SORT_BY_REFUSED),
        (b"ZUNION 2 a", errors.SYNTAX),
        (b"HELLO 3", errors.NOT_IN_TRANSACTION),
        (b"AUTH secret", errors.NOT_IN_TRANSACTION),
    ],
)
async def test_a_refused_command_spoils_the_transaction(words: bytes, line: bytes) -> None:
    """It is answered with its own error, later ones are queued, and EXEC discards them all."""
    desk = Desk(denied=[b"getdel"])
    client = multi(desk)
    assert client.ask(b"SET", b"a", b"1") == QUEUED
    assert client.ask(*words.split(b" ")) == line
    assert client.ask(b"SET", b"a", b"2") == QUEUED
    assert client.ask(b"EXEC") == errors.EXECABORT
    assert nothing_sent(desk)
    assert client.ask(b"EXEC") == errors.EXEC_WITHOUT_MULTI


async def test_nested_multi_and_watch_spoil_nothing() -> None:
    """They are errors, and the transaction goes on."""
    desk = Desk()
    client = multi(desk)
    assert client.ask(b"MULTI") == errors.NESTED_MULTI
    assert client.ask(b"PING") == QUEUED
    assert client.ask(b"EXEC") == b"*1\r\n+PONG\r\n"


async def test_discard_forgets_all() -> None:
    """Afterwards commands go their way again, and a new transaction begins empty and clean."""
    desk = Desk()
    client = multi(desk)
    client.ask(b"SET", b"a")
    assert client.ask(b"DISCARD") == OK
    assert client.ask(b"DISCARD") == errors.DISCARD_WITHOUT_MULTI
    client.send(b"GET", b"a")
    assert desk.node(1).commands() == [[b"GET", b"a"]]
    desk.node(1).answer(b"$-1\r\n")
    desk.settle()
    assert client.take() == b"$-1\r\n"
    assert client.ask(b"MULTI") == OK
    assert client.ask(b"EXEC") == b"*0\r\n"


async def test_reset_and_quit_end_it() -> None:
    """They act at once, whatever is queued."""
    desk = Desk()
    client = multi(desk)
    client.ask(b"SET", b"a", b"1")
    assert client.ask(b"RESET") == b"+RESET\r\n"
    assert client.ask(b"EXEC") == errors.EXEC_WITHOUT_MULTI
    leaving = multi(desk)
    assert leaving.ask(b"QUIT") == OK
    assert leaving.transport.closed
    assert nothing_sent(desk)


async def test_a_pause_of_writes_holds_exec() -> None:
    """CLIENT PAUSE is about what a transaction does as well: its EXEC waits for the end."""
    desk = Desk()
    client = multi(desk)
    client.ask(b"SET", b"a", b"1")
    desk.server.router.pause = rules.Pause.WRITE
    client.send(b"EXEC")
    assert nothing_sent(desk)
    desk.server.router.pause = rules.Pause.NEVER
    client.session.flush()
    desk.settle()
    assert len(desk.node(1).commands()) == 3


async def test_the_list_of_clients_shows_it() -> None:
    """CLIENT LIST counts what is queued and marks the client."""
    desk = Desk()
    client, other = multi(desk), desk.connect()
    client.ask(b"SET", b"a", b"1")
    text = other.value(b"CLIENT", b"LIST", b"ID", b"%d" % client.session.id).decode()
    assert " flags=x " in text
    assert " multi=1 " in text
    client.ask(b"DISCARD")
    text = other.value(b"CLIENT", b"LIST", b"ID", b"%d" % client.session.id).decode()
    assert " flags=N " in text
    assert " multi=-1 " in text


async def test_names_are_those_of_the_node() -> None:
    """Renamed keys go out under the node's names, guarded commands' too."""
    desk = Desk()
    client = multi(desk)
    client.ask(b"SET", b"seat_lock:a:1", b"u")
    client.ask(b"COPY", b"seat_lock:a:1", b"seat_lock:a:2")
    client.send(b"EXEC")
    assert desk.node(3).commands()[1:3] == [
        [b"SET", b"seat_lock:{a}:1", b"u"],
        [b"COPY", b"seat_lock:{a}:1", b"seat_lock:{a}:2"],
    ]


async def test_blocking_reads_are_sent_as_they_are() -> None:
    """Inside a transaction a node does not block."""
    desk = Desk()
    client = multi(desk)
    words = [b"XREAD", b"BLOCK", b"0", b"STREAMS", b"a", b"0"]
    assert client.ask(*words) == QUEUED
    client.send(b"EXEC")
    assert desk.node(1).commands()[1] == words


async def test_commands_are_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    """One command too many is an error that says so, and what was queued is let go."""
    monkeypatch.setattr(transactions, "MOST_COMMANDS", 2)
    client = multi(Desk())
    assert client.ask(b"SET", b"a", b"1") == client.ask(b"SET", b"a", b"2") == QUEUED
    assert client.ask(b"SET", b"a", b"3") == errors.transaction_too_large(2, "commands")
    assert client.session.holdings["transaction"].counts == {"multi": 0}
    assert client.ask(b"EXEC") == errors.EXECABORT


async def test_bytes_are_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    """So are bytes."""
    monkeypatch.setattr(transactions, "MOST_BYTES", 100)
    client = multi(Desk())
    refused = errors.transaction_too_large(100, "bytes")
    assert client.ask(b"SET", b"a", bytes(100)) == refused
    assert client.ask(b"EXEC") == errors.EXECABORT


LARGE = (b"SET", b"a", bytes(60_000))


@pytest.mark.parametrize("end", [b"DISCARD", b"RESET", b"EXEC", b"SET"])
async def test_what_is_queued_counts_as_begun(end: bytes) -> None:
    """Beyond one read a transaction counts as a request that is not whole does, to its end."""
    desk = Desk()
    client = multi(desk)
    client.ask(*LARGE)
    assert desk.server.begun.total == 0
    client.ask(*LARGE)
    assert 120_000 < desk.server.begun.total == client.session.queued_bytes < 125_000
    client.send(end)  # without its words a SET spoils the transaction,
    client.send(*LARGE)  # and what comes next finds nothing queued
    desk.server.begun.look(0.0)
    assert desk.server.begun.total == client.session.queued_bytes == 0


async def test_small_commands_count_as_what_they_take() -> None:
    """A command of a few bytes takes hundreds until it is executed."""
    desk = Desk()
    client = multi(desk)
    client.send_all([[b"PING"]] * 1000)
    assert desk.server.begun.total > 200_000
    assert b"multi-mem=%d " % client.session.queued_bytes in desk.connect().ask(b"CLIENT", b"LIST")


async def test_over_the_total_the_largest_transaction_goes(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Transactions that are open come to the total at most; the others are executed."""
    desk = Desk()
    limit = desk.server.config.limits.input_total_bytes
    small, large, last = multi(desk), multi(desk), multi(desk)
    with caplog.at_level(logging.INFO, "sidecache"):
        for client, share in ((small, 4), (large, 2), (last, 3)):
            for _ in range(limit // len(LARGE[2]) // share):
                client.ask(*LARGE)
                assert desk.server.begun.total <= limit
        desk.server.begun.look(0.0)
    assert [each.transport.closed for each in (small, large, last)] == [False, True, False]
    assert [each.message for each in caplog.records] == ["input_over_limit", "input_within_limit"]
    small.send(b"EXEC")
    assert desk.node(1).commands()[1] == list(LARGE)


async def test_an_open_transaction_has_a_time_of_its_own() -> None:
    """Its client is not closed for what it does not send, but for a request that stays begun is."""
    desk = Desk()
    client, amid = multi(desk), multi(desk)
    for each in (client, amid):
        each.ask(*LARGE)
        each.ask(*LARGE)
    for _ in range(2):
        data = b"*2\r\n$4\r\nECHO\r\n$500000\r\n" if not amid.session.amid_request else b""
        data += bytes(60_000)
        amid.session.get_buffer(-1)[: len(data)] = data
        amid.session.buffer_updated(len(data))
    desk.server.begun.look(amid.session.active + 61.0)
    assert [each.transport.closed for each in (client, amid)] == [False, True]
    assert client.ask(b"DISCARD") == OK


async def test_a_large_one_does_not_stay_open(monkeypatch: pytest.MonkeyPatch) -> None:
    """What holds more than any client may is let go after a while, and EXEC says why."""
    monkeypatch.setattr(transactions, "IDLE_BYTES", 10)
    client = multi(Desk())
    client.ask(b"SET", b"a", bytes(100))
    transaction = client.session.holdings["transaction"]
    assert isinstance(transaction, transactions.Transaction)
    assert transaction._timer is not None
    transaction._expire()
    assert transaction.counts == {"multi": 0}
    assert client.ask(b"EXEC") == errors.TRANSACTION_EXPIRED


def split_rules(desk: Desk) -> None:
    """Let transactions over keys of no keyspace be split."""
    old = desk.server.router.ruleset
    desk.server.router.ruleset = wire.Ruleset(
        commands=old.commands, keyspaces=old.keyspaces, roles=old.roles, families=old.families,
        errors=old.errors, default_cluster=0, reject_unmatched=False, max_key_bytes=1024,
        split_unmatched=True,
    )  # fmt: skip


async def test_a_split_transaction_is_one_per_slot() -> None:
    """Where the policy says so, each slot gets its own; replies come back in their places."""
    desk = Desk()
    split_rules(desk)
    client = multi(desk)
    for words in (b"SET a 1", b"SET b 2", b"GET a", b"PING"):
        assert client.ask(*words.split()) == QUEUED
    client.send(b"EXEC")
    assert desk.node(1).commands()[1:3] == [[b"SET", b"a", b"1"], [b"GET", b"a"]]
    assert desk.node(0).commands()[1:2] == [[b"SET", b"b", b"2"]]
    desk.node(0).answer(OK, QUEUED, b"*1\r\n+OK\r\n")
    desk.node(1).answer(OK, QUEUED, QUEUED, b"*2\r\n+OK\r\n$1\r\n1\r\n")
    assert await client.reply() == b"*4\r\n+OK\r\n+OK\r\n$1\r\n1\r\n+PONG\r\n"


async def test_what_splits_outside_splits_inside() -> None:
    """In a split transaction each slot gets its part of an MSET or MGET, and one reply is made."""
    desk = Desk()
    split_rules(desk)
    client = multi(desk)
    for words in (b"MSET a 1 b 2", b"MGET b a b"):
        assert client.ask(*words.split()) == QUEUED
    client.send(b"EXEC")
    assert desk.node(1).commands()[1:3] == [[b"MSET", b"a", b"1"], [b"MGET", b"a"]]
    assert desk.node(0).commands()[1:3] == [[b"MSET", b"b", b"2"], [b"MGET", b"b", b"b"]]
    desk.node(0).answer(OK, QUEUED, QUEUED, b"*2\r\n+OK\r\n*2\r\n$1\r\n2\r\n$1\r\n2\r\n")
    desk.node(1).answer(OK, QUEUED, QUEUED, b"*2\r\n+OK\r\n*1\r\n$1\r\n1\r\n")
    expected = b"*2\r\n+OK\r\n*3\r\n$1\r\n2\r\n$1\r\n1\r\n$1\r\n2\r\n"
    assert await client.reply() == expected


async def test_what_splits_outside_is_refused_inside() -> None:
    """Without such a policy, keys of several slots spoil a transaction."""
    client = multi(Desk())
    assert client.ask(b"MGET", b"a", b"b").startswith(b"-CROSSSLOT")
    assert client.ask(b"EXEC") == errors.EXECABORT


@pytest.mark.parametrize("commands", [
    (b"SET a 1", b"SET seat_lock:b:1 1"), (b"SET seat_lock:a:1 1", b"SET b 1"),
    (b"SET seat_lock:a:1 1", b"SET seat_lock:b:1 1"),
])  # fmt: skip
async def test_locks_are_never_split(commands: tuple[bytes, bytes]) -> None:
    """One key of a keyspace that does not allow it keeps the transaction in one slot."""
    desk = Desk()
    split_rules(desk)
    client = multi(desk)
    assert client.ask(*commands[0].split()) == QUEUED
    assert client.ask(*commands[1].split()).startswith(b"-CROSSSLOT")
    assert client.ask(b"EXEC") == errors.EXECABORT


async def test_a_failed_part_of_a_split_one_has_its_error_in_its_places() -> None:
    """The other parts took effect, and say so."""
    desk = Desk()
    split_rules(desk)
    client = multi(desk)
    client.ask(b"SET", b"a", b"1")
    client.ask(b"SET", b"b", b"2")
    desk.node(0).upstream.available = False
    client.send(b"EXEC")
    desk.node(1).answer(OK, QUEUED, b"*1\r\n+OK\r\n")
    assert await client.reply() == b"*2\r\n+OK\r\n" + errors.CLUSTERDOWN


def publishing() -> tuple[Desk, Client]:
    """Return a desk that knows a cluster's pool, and a client in a transaction."""
    desk = Desk()
    desk.server.pools = Stand(cluster_config([FakeNode(port=1)])).pools
    return desk, multi(desk)


async def test_a_message_rides_with_the_keys_of_its_cluster() -> None:
    """PUBLISH stands in the unit where it stood in the transaction, whatever its channel's slot."""
    desk, client = publishing()
    client.ask(b"PUBLISH", b"news", b"first")
    client.ask(b"PING")
    client.ask(b"SETEX", b"a", b"9", b"1")
    client.ask(b"PUBLISH", b"news", b"last")
    client.send(b"EXEC")
    assert desk.node(1).commands() == [
        [b"MULTI"], [b"PUBLISH", b"news", b"first"], [b"SETEX", b"a", b"9", b"1"],
        [b"PUBLISH", b"news", b"last"], [b"EXEC"],
    ]  # fmt: skip
    desk.node(1).answer(OK, *[QUEUED] * 3, b"*3\r\n:1\r\n+OK\r\n:2\r\n")
    assert await client.reply() == b"*4\r\n:1\r\n+PONG\r\n+OK\r\n:2\r\n"
    assert nothing_sent(desk)


async def test_a_shard_message_rides_only_in_its_slot() -> None:
    """SPUBLISH of another slot follows when the unit has run; its channel is not renamed."""
    desk, client = publishing()
    client.ask(b"SPUBLISH", b"{b}c", b"apart")
    client.ask(b"SET", b"a", b"1")
    client.ask(b"SPUBLISH", b"{a}c", b"along")
    client.send(b"EXEC")
    assert desk.node(1).commands() == [
        [b"MULTI"], [b"SET", b"a", b"1"], [b"SPUBLISH", b"{a}c", b"along"], [b"EXEC"],
    ]  # fmt: skip
    assert nothing_sent(desk)
    desk.node(1).answer(OK, *[QUEUED] * 2, b"*2\r\n+OK\r\n:1\r\n")
    while not desk.node(0).sent:
        await asyncio.sleep(0)
        desk.settle()
    assert desk.node(0).commands() == [[b"SPUBLISH", b"{b}c", b"apart"]]
    desk.node(0).answer(b":3\r\n")
    assert await client.reply() == b"*3\r\n:3\r\n+OK\r\n:1\r\n"


async def test_a_message_of_another_cluster_follows() -> None:
    """It is published once the keys are written, and not at all where they were not."""
    desk, client = publishing()
    client.ask(b"PUBLISH", b"news", b"x")
    client.ask(b"SET", b"seat_lock:a:1", b"1")
    client.send(b"EXEC")
    number = next(number for number in (2, 3) if desk.node(number).sent)
    assert len(desk.node(number).commands()) == 3
    assert nothing_sent(desk)
    desk.node(number).answer(OK, QUEUED, b"-EXECABORT no\r\n")
    assert await client.reply() == b"-EXECABORT no\r\n"
    assert nothing_sent(desk)
