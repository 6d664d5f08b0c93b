"""SLOWLOG and LATENCY HISTOGRAM answer from what was measured here."""

from proxy import errors
from proxy.handlers.glimpse import Parts
from tests.handlers.desk import Desk
from tests.handlers.test_tenants import USERS, signed_in


async def test_slow_commands_are_listed() -> None:
    """GET lists the newest first with Redis' six fields; LEN counts; RESET forgets."""
    desk = Desk()
    client = desk.connect()
    client.value(b"CLIENT", b"SETNAME", b"worker")
    log = desk.server.slowlog
    for number in range(12):
        log.note(client.session, [b"GET", b"k%d" % number], Parts(0, 0, 250_000, 0), dict)
    assert client.value(b"SLOWLOG", b"LEN") == 12
    entries = client.value(b"SLOWLOG", b"GET")
    assert len(entries) == 10
    number, _, took, words, peer, name = entries[0]
    assert (number, took, words, name) == (11, 250_000, [b"GET", b"k11"], b"worker")
    assert peer == client.session.peer.encode()
    assert len(client.value(b"SLOWLOG", b"GET", b"-1")) == 12
    assert len(client.value(b"SLOWLOG", b"GET", b"3")) == 3
    assert client.ask(b"SLOWLOG", b"RESET") == b"+OK\r\n"
    assert client.value(b"SLOWLOG", b"GET") == []


async def test_what_others_sent_is_theirs() -> None:
    """A user's clients list, count and forget its own commands; the admin those of everybody."""
    desk = Desk(USERS)
    app, other, boss = (signed_in(desk, name) for name in (b"app", b"other", b"boss"))
    for client, key in ((app, b"mine"), (other, b"secret")):
        desk.server.slowlog.note(client.session, [b"GET", key], Parts(0, 0, 250_000, 0), dict)
    assert [entry[3] for entry in app.value(b"SLOWLOG", b"GET")] == [[b"GET", b"mine"]]
    assert app.value(b"SLOWLOG", b"LEN") == 1
    assert len(boss.value(b"SLOWLOG", b"GET")) == 2
    assert app.ask(b"SLOWLOG", b"RESET") == b"+OK\r\n"
    assert [entry[3] for entry in boss.value(b"SLOWLOG", b"GET")] == [[b"GET", b"secret"]]


async def test_bad_counts() -> None:
    """A count below -1, or none, is refused in Redis' words."""
    client = Desk().connect()
    assert client.ask(b"SLOWLOG", b"GET", b"-2") == errors.SLOWLOG_COUNT
    assert client.ask(b"SLOWLOG", b"GET", b"x") == errors.SLOWLOG_COUNT
    assert client.ask(b"SLOWLOG", b"GET", b"1", b"2") == errors.line(
        "ERR unknown subcommand or wrong number of arguments for 'GET'. Try SLOWLOG HELP."
    )


async def test_a_command_over_the_limit_is_noted() -> None:
    """The data plane tells the log of a command that took longer than the limit."""
    desk = Desk()
    client = desk.connect()
    client.send(b"GET", b"a")
    answer_all(desk, 1e9)
    client.take()
    assert client.value(b"SLOWLOG", b"GET")[0][3] == [b"GET", b"a"]


async def test_histograms_by_command() -> None:
    """The histogram of a command counts what took no longer than each power of two."""
    desk = Desk()
    client = desk.connect()
    assert client.value(b"LATENCY", b"HISTOGRAM", b"get") == []
    for late in (100e-6, 400e-6):
        client.send(b"GET", b"a")
        answer_all(desk, client.session.active + late)
        client.take()
    found = client.value(b"LATENCY", b"HISTOGRAM", b"GET", b"set")
    assert found == [b"get", [b"calls", 2, b"histogram_usec", [128, 1, 512, 2]]]
    assert client.value(b"LATENCY", b"HISTOGRAM") == found


def answer_all(desk: Desk, now: float) -> None:
    """Have every node that was asked say that there is nothing."""
    for pair in desk.nodes:
        for node in pair:
            if node.upstream.pending:
                node.upstream.receive_data(b"$-1\r\n", now)
    desk.settle()
