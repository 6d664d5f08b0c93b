"""What a command is judged by: slots, command names, key patterns, counters."""

from array import array

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy import wire
from proxy.commands import COMMANDS, FAMILIES, ROWS
from proxy.wire.rules import Segment
from tests.wire import model
from tests.wire.stage import SLOTS, Stage, evenly, keyspace, ruleset

quick = settings(max_examples=500, deadline=None)
texts = st.binary(max_size=24) | st.text("{}a:", max_size=12).map(str.encode)


@given(texts)
@quick
def test_slots(key: bytes) -> None:
    """A key's slot is the CRC-16 of its hash tag, or of all of it where there is none."""
    assert wire.key_slot(key) == model.key_slot(key)


def test_slots_of_the_specification() -> None:
    """The examples of the cluster specification hold."""
    assert wire.key_slot(b"123456789") == 0x31C3
    assert wire.key_slot(b"{user1000}.following") == wire.key_slot(b"user1000")
    assert wire.key_slot(b"foo{}{bar}") == model.key_slot(b"foo{}{bar}")
    assert wire.key_slot(b"foo{{bar}}zap") == wire.key_slot(b"{bar")
    assert wire.key_slot(b"foo{bar}{zap}") == wire.key_slot(b"bar")


@pytest.mark.parametrize("spelling", [bytes.lower, bytes.upper, bytes.title])
def test_every_command_is_found_in_any_case(spelling: object) -> None:
    """The name of a command is found whatever its case, and names near it are not."""
    rules = ruleset()
    for index, row in enumerate(COMMANDS):
        assert rules.find_command(spelling(row.name)) == index  # type: ignore[operator]
        assert rules.find_command(row.name + b"?") == -1
    assert rules.find_command(b"") == -1
    assert rules.find_command(b"g" * 100) == -1


def test_a_command_given_twice_is_refused() -> None:
    """Two rows of one name contradict each other."""
    with pytest.raises(ValueError, match="given twice"):
        ruleset(commands=(*ROWS, ROWS[0]))


SPACES: dict[str, list[bytes | Segment]] = {
    "user": [b"user:", Segment("id", "int")],
    "me": [b"user:me"],
    "profile": [b"user:", Segment("id", "int"), b":profile"],
    "any": [b"user:", Segment("id", "text")],
    "uuid": [b"s:", Segment("id", "uuid")],
    "hex": [b"s:", Segment("id", "hex")],
    "day": [b"d:", Segment("day", "date"), b":", Segment("n", "int")],
    "dash": [b"p:", Segment("a", "text"), b"-", Segment("b", "text")],
    "path": [b"f:", Segment("path", "path")],
    "ip": [b"ip:", Segment("ip", "ip"), b":api"],
}


@pytest.mark.parametrize(
    ("key", "name"),
    [
        (b"user:7", "user"),
        (b"user:-7", "user"),
        (b"user:-", "any"),
        (b"user:7-8", "any"),
        (b"user:me", "me"),
        (b"user:mex", "any"),
        (b"user:7:profile", "profile"),
        (b"user:x:profile", None),
        (b"user:", None),
        (b"user", None),
        (b"User:7", None),
        (b"user:7:", None),
        (b"s:00000000-0000-0000-0000-00000000000A", "uuid"),
        (b"s:00000000-0000-0000-0000-00000000000", None),
        (b"s:00ff", "hex"),
        (b"s:00fg", None),
        (b"d:2024-01-31:5", "day"),
        (b"d:2024/01/31:5", None),
        (b"p:a-b", "dash"),
        (b"p:a-b-c", "dash"),
        (b"p:-b", None),
        (b"p:a-", None),
        (b"f:a:b:c", "path"),
        (b"f:", None),
        (b"ip:10.0.0.1:api", "ip"),
        (b"ip:2001:db8::1:api", "ip"),
        (b"ip:10.0.0.1:apix", None),
        (b"", None),
    ],
)
def test_keyspace_of_a_key(key: bytes, name: str | None) -> None:
    """A key belongs to the keyspace with the narrowest pattern that fits all of it."""
    rules = ruleset(keyspaces=[keyspace(name, pattern) for name, pattern in SPACES.items()])
    index = rules.find_keyspace(key)
    assert (list(SPACES)[index] if index >= 0 else None) == name


def test_two_keyspaces_of_one_pattern() -> None:
    """Names of segments do not tell patterns apart."""
    with pytest.raises(ValueError, match="two keyspaces have one pattern"):
        ruleset(
            keyspaces=[keyspace(name, [b"a:", Segment(name, "text")]) for name in ("one", "two")]
        )


def test_names_at_the_node() -> None:
    """A hash tag is put round a segment or before the name, and decides the slot."""
    seat: list[bytes | Segment] = [
        b"seat:",
        Segment("event", "text"),
        b":",
        Segment("seat", "text"),
    ]
    rules = ruleset(
        keyspaces=[
            keyspace("seat", seat, hash_tag=1),
            keyspace("job", [b"job:", Segment("id", "text")], hash_tag=b"jobs"),
        ]
    )
    assert rules.upstream_name(b"seat:evt_1:7") == b"seat:{evt_1}:7"
    assert rules.upstream_name(b"job:7") == b"{jobs}job:7"
    assert rules.upstream_name(b"other") == b"other"
    client = Stage(rules).client()
    for key in (b"seat:evt_1:7", b"job:7", b"other"):
        place = client.locate(key, 0)
        assert isinstance(place, wire.Location)
        assert place.name == rules.upstream_name(key)
        assert place.slot == model.key_slot(place.name)


def test_slot_map() -> None:
    """A slot has the owner that it was given; wrong numbers of owners are refused."""
    node = wire.Upstream(wire.Batch(lambda: None), wire.Latencies(1), 0, 1.0)
    slots = wire.SlotMap([(True, evenly(2)), (False, array("h", [1]))], [((node,), (node,))] * 2)
    assert [slots.owner(0, slot) for slot in (0, SLOTS // 2 - 1, SLOTS // 2)] == [0, 0, 1]
    assert slots.owner(1, 0) == 1
    with pytest.raises(IndexError):
        slots.owner(2, 0)
    for sharded, owners in ((True, [0]), (False, [0, 0])):
        with pytest.raises(ValueError, match="owner"):
            wire.SlotMap([(sharded, array("h", owners))], [((node,), (node,))])


def test_requests_are_counted_once() -> None:
    """Each command ends as one outcome of its keyspace and family, when its client goes too."""
    seat = keyspace("seat", [b"seat:", Segment("id", "int")])
    stage = Stage(ruleset(keyspaces=[seat]))
    (node,) = stage.upstreams
    stay, go = stage.client(), stage.client()
    for client in (stay, go):
        for words in ([b"GET", b"seat:1"], [b"GET", b"x"], [b"HSET", b"x"], [b"SADD", b"x", b"1"]):
            client.receive_data(model.frame(words), 1.0)
    node.data_to_send(1.0)
    node.receive_data(b"+OK\r\n+OK\r\n-ERR no\r\n", 1.0)
    go.connection_lost()
    node.receive_data(b"+OK\r\n" * node.pending, 1.0)
    counted = {
        (keyspace, FAMILIES[family], wire.OUTCOMES[outcome]): count
        for keyspace, family, outcome, count in stage.router.ruleset.counters.requests()
    }
    assert counted == {
        (0, "string", "ok"): 1,
        (0, "string", "abandoned"): 1,
        (-1, "string", "ok"): 1,
        (-1, "string", "abandoned"): 1,
        (-1, "hash", "refused"): 2,
        (-1, "set", "error"): 1,
        (-1, "set", "abandoned"): 1,
    }


def test_counts_are_carried_over() -> None:
    """The counts of a ruleset can be added to those of the one that replaces it."""
    counters = wire.Counters(1, 2)
    counters.add(-1, 1, 2, 5)
    counters.add(0, 0, 0, 1)
    counters.add(0, 0, 0, 1)
    assert counters.requests() == [(-1, 1, 2, 5), (0, 0, 0, 2)]
    for place in ((1, 0, 0), (-2, 0, 0), (0, 2, 0), (0, 0, 4)):
        with pytest.raises(IndexError):
            counters.add(*place, 1)


def test_latencies_are_split() -> None:
    """Queue, node and total time of a command stand in their buckets."""
    stage = Stage()
    (node,) = stage.upstreams
    client = stage.client()
    client.receive_data(model.frame([b"GET", b"x"]), 1.0)
    node.data_to_send(1.001)
    node.receive_data(b"+OK\r\n", 1.011)
    times = {"queue": 0.001, "upstream": 0.010, "total": 0.011}
    for cluster, part, counts, total in stage.latencies.latencies():
        if cluster == 0:
            assert total == pytest.approx(times[part])
            bucket = sum(times[part] >= bound for bound in wire.LATENCY_BOUNDS)
            assert counts == [i == bucket for i in range(len(counts))]
