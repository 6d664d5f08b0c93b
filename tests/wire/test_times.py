"""Times to live and trims in the data plane: the bytes that a node gets, and who hears of them."""

import pytest

from proxy import errors, wire
from proxy.commands import ROWS
from proxy.wire.rules import Duty, Growth, Lifetime, Missing, Refresh, Segment
from tests.wire.stage import Stage, keyspace, ruleset

NO_TIME = errors.line("POLICY no time")
PLAIN = Lifetime(100_000, 10_000, 1_000_000, 0.0, Missing.APPLY)


def rules(lifetime: Lifetime = PLAIN, most: int = 3, tag: bytes | None = None) -> wire.Ruleset:
    """Return one keyspace, k:{id}, whose collections have so many members at most."""
    space = keyspace(
        "k",
        [b"k:", Segment("id", "path")],
        hash_tag=tag,
        duties=bytes([Duty.TTL | Duty.COLLECTION * bool(row.grows) for row in ROWS]),
        lifetime=lifetime,
        growth=Growth(most),
        ttl_error=NO_TIME,
    )
    return ruleset(keyspaces=(space,))


def sent(stage: Stage) -> list[str]:
    """Return the commands that the node has been sent."""
    data, commands, at = stage.upstreams[0].data_to_send(1.0), [], 0
    while at < len(data):
        end = wire.frame_end(data, at)
        words = data[at:end].split(b"\r\n")[2::2]
        commands.append(b" ".join(words).decode())
        at = end
    return commands


def pack(command: str) -> bytes:
    return wire.pack([word.encode() for word in command.split()])


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        ("SET k:1 v", ["SET k:1 v PX 100000"]),
        ("set k:1 v EX 5 NX", ["set k:1 v PX 10000 NX"]),
        ("SET k:1 v EX 50", ["SET k:1 v EX 50"]),
        ("SET k:1 v KEEPTTL", ["SET k:1 v KEEPTTL", "PEXPIRE k:1 100000 NX"]),
        ("SETEX k:1 5000 v", ["PSETEX k:1 1000000 v"]),
        ("EXPIRE k:1 5000 GT", ["PEXPIRE k:1 1000000 GT"]),
        ("HEXPIRE k:1 5000 FIELDS 1 f", ["HPEXPIRE k:1 1000000 FIELDS 1 f"]),
        ("HGETEX k:1 EX 5000 FIELDS 1 f", ["HGETEX k:1 PX 1000000 FIELDS 1 f"]),
        ("PERSIST k:1", ["PEXPIRE k:1 100000"]),
        ("GETEX k:1 PERSIST", ["GETEX k:1 PX 100000"]),
        ("RESTORE k:1 0 x REPLACE", ["RESTORE k:1 100000 x REPLACE", "EVAL"]),
        (
            "RENAME {1} k:{1}",
            ["RENAME {1} k:{1}", "PEXPIRE k:{1} 100000 NX", "PEXPIRE k:{1} 1000000 XX LT", "EVAL"],
        ),
        ("RENAME k:{1} {1}", ["RENAME k:{1} {1}"]),
        ("SET k:1 v EX 05", ["SET k:1 v EX 05", "PEXPIRE k:1 100000 NX"]),
        ("SET other v", ["SET other v"]),
        ("HSET k:1 f v", ["HSET k:1 f v", "PEXPIRE k:1 100000 NX", "EVAL"]),
        ("ZADD k:1 1 a", ["ZADD k:1 1 a", "PEXPIRE k:1 100000 NX", "ZREMRANGEBYRANK k:1 0 -4"]),
        ("LPUSH k:1 a", ["LPUSH k:1 a", "PEXPIRE k:1 100000 NX", "LTRIM k:1 0 2"]),
        ("XADD k:1 * f v", ["XADD k:1 MAXLEN = 3 * f v", "PEXPIRE k:1 100000 NX"]),
        ("GET k:1", ["GET k:1"]),
    ],
)
def test_what_a_node_is_sent(command: str, expected: list[str]) -> None:
    """A time goes into the command where it has room, and behind it where not; so does a trim."""
    stage = Stage(rules())
    client = stage.client()
    assert client.receive_data(pack(command), 1.0) is None
    commands = sent(stage)
    assert len(commands) == len(expected), commands
    for got, wanted in zip(commands, expected, strict=True):
        assert (got.split()[0] if wanted == "EVAL" else got) == wanted


def test_renamed_keys_are_renamed_in_what_follows() -> None:
    """A rewritten command and the one behind it name the key as nodes know it."""
    stage = Stage(rules(tag=b"t"))
    client = stage.client()
    for command in ("SET k:1 v", "SET k:1 v EX 5000", "RPUSH k:1 a"):
        client.receive_data(pack(command), 1.0)
    assert sent(stage) == [
        "SET {t}k:1 v PX 100000",
        "SET {t}k:1 v PX 1000000",
        "RPUSH {t}k:1 a",
        "PEXPIRE {t}k:1 100000 NX",
        "LTRIM {t}k:1 -3 -1",
    ]


def test_replies_to_what_follows_reach_nobody() -> None:
    """Between two commands of a client their replies are dropped, errors too, and counted."""
    ruling = rules()
    stage = Stage(ruling)
    client = stage.client()
    client.receive_data(pack("RPUSH k:1 a") + pack("GET k:1"), 1.0)
    assert (client.pending, client.following, client.sent) == (2, 2, 2)
    stage.upstreams[0].data_to_send(1.0)
    stage.upstreams[0].receive_data(b":1\r\n:1\r\n-WRONGTYPE x\r\n$1\r\nv\r\n", 1.0)
    assert client.data_to_send() == b":1\r\n$1\r\nv\r\n"
    assert (client.pending, client.following) == (0, 0)
    assert ruling.amended.requests() == [(0, 1, 0, 1), (0, 1, 1, 1)]


def test_what_follows_outlives_its_client() -> None:
    """A client that has gone leaves its keys with their times all the same."""
    stage = Stage(rules())
    client = stage.client()
    client.receive_data(pack("INCR k:1"), 1.0)
    client.connection_lost()
    stage.upstreams[0].data_to_send(1.0)
    orphans = stage.upstreams[0].receive_data(b":1\r\n-MOVED 1 10.0.0.1:1\r\n", 1.0)
    assert orphans is None  # another slot than the key's is no word of a node's
    client = stage.client()
    client.receive_data(pack("INCR k:1"), 1.0)
    client.connection_lost()
    stage.upstreams[0].data_to_send(1.0)
    slot = wire.key_slot(b"k:1")
    orphans = stage.upstreams[0].receive_data(f":1\r\n-MOVED {slot} 10.0.0.1:1\r\n".encode(), 1.0)
    assert orphans is not None
    assert [(orphan.wanted, orphan.repeatable) for orphan in orphans] == [(True, True)]
    orphans[0].answer(errors.CLUSTERDOWN, 1.0)
    assert client.following == 0


def test_a_barrier_waits_for_what_follows() -> None:
    """A command for another connection is not taken before ours have had their effect."""
    stage = Stage(rules())
    client = stage.client()
    assert client.receive_data(pack("INCR k:1") + pack("WATCH k:1"), 1.0) is None
    stage.upstreams[0].data_to_send(1.0)
    stage.upstreams[0].receive_data(b":1\r\n", 1.0)
    assert not client.resumable
    assert stage.batch.take_ready() == [client]
    assert client.data_to_send() == b":1\r\n"
    stage.upstreams[0].receive_data(b":1\r\n", 1.0)
    assert client.resumable
    assert stage.batch.take_ready() == [client]
    request = client.receive_data(b"", 1.0)
    assert request is not None
    assert request.name == b"watch"


def test_new_rules_wait_for_what_follows() -> None:
    """Rules and slots change for a client only when nothing of the old ones is under way."""
    stage = Stage(rules())
    client = stage.client()
    client.receive_data(pack("INCR k:1"), 1.0)
    stage.upstreams[0].data_to_send(1.0)
    stage.upstreams[0].receive_data(b":1\r\n", 1.0)
    stage.router.ruleset = ruleset()
    client.receive_data(pack("SET k:1 v"), 1.0)
    assert stage.upstreams[0].pending == 1
    stage.upstreams[0].receive_data(b":1\r\n", 1.0)
    client.receive_data(b"", 1.0)
    assert sent(stage) == ["SET k:1 v"]


def hundred_times(lifetime: Lifetime) -> list[int]:
    """Return the times that a hundred SET are given, in milliseconds."""
    stage = Stage(rules(lifetime))
    client = stage.client()
    times: list[int] = []
    for _ in range(100):
        client.receive_data(pack("SET k:1 v"), 1.0)
        times += [int(command.split()[-1]) for command in sent(stage)]
        stage.upstreams[0].receive_data(b"+OK\r\n", 1.0)
    return times


def test_jitter_shortens_the_default() -> None:
    """Jitter takes a part off and adds none, another one each time."""
    times = hundred_times(Lifetime(1000, 0, 0, 0.2, Missing.APPLY))
    assert 800 <= min(times) < 850
    assert 950 < max(times) <= 1000


def test_jitter_leaves_the_shortest_time() -> None:
    """What jitter takes off is a part of what is above the shortest time, so few end at that."""
    times = hundred_times(Lifetime(1000, 900, 0, 1.0, Missing.APPLY))
    assert 900 <= min(times) < 925
    assert 975 < max(times) <= 1000
    assert times.count(900) < 10


@pytest.mark.parametrize("command", ["GETEX k:1", "HGETEX k:1 FIELDS 1 f", "GET k:1"])
def test_a_look_that_may_set_a_time_is_no_write(command: str) -> None:
    """Under `on_write` GETEX and HGETEX start nothing anew, though nodes take them for writes."""
    stage = Stage(rules(PLAIN._replace(refresh=Refresh.ON_WRITE)))
    assert stage.client().receive_data(pack(command), 1.0) is None
    assert sent(stage) == [command]


def test_a_time_that_is_carried_is_cut_and_none_is_given() -> None:
    """Where keys may live for ever, one that is renamed gets no time, but its own has an end."""
    stage = Stage(rules(Lifetime(0, 0, 1000)))
    stage.client().receive_data(pack("RENAME {1} k:{1}"), 1.0)
    assert sent(stage)[:2] == ["RENAME {1} k:{1}", "PEXPIRE k:{1} 1000 XX LT"]


def test_what_would_have_no_time_is_refused_at_once() -> None:
    """Under reject the client hears of it and the node does not."""
    stage = Stage(rules(Lifetime(missing=Missing.REJECT)))
    client = stage.client()
    client.receive_data(pack("SET k:1 v") + pack("HSET k:1 f v") + pack("SET k:1 v EX 5"), 1.0)
    assert client.data_to_send() == NO_TIME * 2
    assert sent(stage) == ["SET k:1 v EX 5"]


def test_silence_hides_what_the_client_asked_and_no_more() -> None:
    """CLIENT REPLY SKIP leaves out the reply of the client's own next command."""
    stage = Stage(rules())
    client = stage.client()
    client.silence = 2
    client.receive_data(pack("INCR k:1") + pack("GET k:1"), 1.0)
    stage.upstreams[0].data_to_send(1.0)
    stage.upstreams[0].receive_data(b":1\r\n:1\r\n$1\r\n1\r\n", 1.0)
    assert client.data_to_send() == b"$1\r\n1\r\n"


def test_a_sliding_read_is_a_read_and_its_time() -> None:
    """A read of a sliding keyspace is followed by its time, but not while its client watches."""
    stage = Stage(rules(PLAIN._replace(refresh=Refresh.ON_READ)))
    client = stage.client()
    client.receive_data(pack("GET k:1"), 1.0)
    assert sent(stage) == ["GET k:1", "PEXPIRE k:1 100000"]
    stage.upstreams[0].receive_data(b"$-1\r\n:0\r\n", 1.0)
    client.serial = True
    client.receive_data(pack("GET k:1"), 1.0)
    assert sent(stage) == ["GET k:1"]
