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

quick = settings(max_examples=200, deadline=None)
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


@pytest.mark.parametrize("owner", [-2, 1, 32767])
def test_an_owner_must_be_a_node(owner: int) -> None:
    """A slot map refuses owners that are none of its nodes, and nodes that cannot be asked."""
    node = wire.Upstream(wire.Batch(lambda: None), wire.Latencies(1), 0, 1.0)
    owners = array("h", [0] * 100 + [owner] + [-1] * (SLOTS - 101))
    with pytest.raises(ValueError, match=f"owner {owner} is no node"):
        wire.SlotMap([(True, owners)], [((node,), (node,))])
    for lanes in [(), ((node,),), ((node,), ())]:
        with pytest.raises(ValueError, match="owner 0 is no node"):
            wire.SlotMap([(False, array("h", [0]))], [lanes])


def test_a_cluster_must_have_a_place() -> None:
    """Rules count clusters from 0, and one that no slot map has is one that is down."""
    with pytest.raises(ValueError, match="counted from 0"):
        ruleset(default_cluster=-1)
    with pytest.raises(ValueError, match="counted from 0"):
        ruleset(keyspaces=[keyspace("job", [b"job:", Segment("id", "int")], cluster=-1)])
    stage = Stage(ruleset(default_cluster=2))
    client = stage.client()
    client.receive_data(model.frame([b"GET", b"k"]), 1.0)
    assert client.data_to_send() == stage.router.ruleset.errors.clusterdown
    assert stage.upstreams[0].pending == 0


def counts(rules: wire.Ruleset) -> dict[tuple[int, str, str], int]:
    return {
        (space, FAMILIES[family], wire.OUTCOMES[outcome]): count
        for space, family, outcome, count in rules.counters.requests()
    }


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
    assert counts(stage.router.ruleset) == {
        (0, "string", "ok"): 1,
        (0, "string", "abandoned"): 1,
        (-1, "string", "ok"): 1,
        (-1, "string", "abandoned"): 1,
        (-1, "hash", "refused"): 2,
        (-1, "set", "error"): 1,
        (-1, "set", "abandoned"): 1,
    }


def test_counts_go_on_under_new_rules() -> None:
    """What was counted by old rules, and what comes later, stands under the names of the new."""
    stage = Stage(ruleset(keyspaces=[keyspace("gone", [b"gone"]), keyspace("kept", [b"kept"])]))
    first, client = stage.router.ruleset, stage.client()
    for key in (b"gone", b"kept", b"none", b"kept", b"gone"):
        client.receive_data(model.frame([b"GET", key]), 1.0)
    stage.upstreams[0].data_to_send(1.0)
    stage.upstreams[0].receive_data(b"+OK\r\n" * 3, 1.0)
    second = ruleset(keyspaces=[keyspace("fresh", [b"fresh"]), keyspace("kept", [b"kept"])])
    third = ruleset(keyspaces=[keyspace("kept", [b"kept"])])
    first.counters.follow(second.counters, [-1, 1])
    assert first.counters.requests() == []
    assert counts(second) == {(1, "string", "ok"): 1, (-1, "string", "ok"): 1}
    second.counters.follow(third.counters, [-1, 0])
    stage.upstreams[0].receive_data(b"+OK\r\n" * 2, 1.0)
    assert counts(third) == {(0, "string", "ok"): 2, (-1, "string", "ok"): 1}


def test_several_are_counted_at_once() -> None:
    """A count of several stands in its cell, and one without a cell is refused."""
    counters = wire.Counters(1, 2)
    counters.add(-1, 1, 2, 5)
    counters.add(0, 0, 0, 1)
    counters.add(0, 0, 0, 1)
    assert counters.requests() == [(-1, 1, 2, 5), (0, 0, 0, 2)]
    for place in ((1, 0, 0), (-2, 0, 0), (0, 2, 0), (0, 0, 4)):
        with pytest.raises(IndexError):
            counters.add(*place, 1)


def test_counts_go_on_only_where_they_fit() -> None:
    """Counts cannot follow themselves, twice, or to where there is no place for them."""
    counters = wire.Counters(1, 2)
    gone = wire.Counters(1, 2)
    gone.follow(wire.Counters(1, 2), [0])
    for successor, places in (
        (counters, [0]),
        (gone, [0]),
        (wire.Counters(1, 3), [0]),
        (wire.Counters(1, 2), [0, 0]),
        (wire.Counters(1, 2), [1]),
        (wire.Counters(1, 2), [-2]),
    ):
        with pytest.raises(ValueError, match="cannot go on"):
            counters.follow(successor, places)
    with pytest.raises(ValueError, match="cannot go on"):
        gone.follow(counters, [0])


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


def test_what_has_no_key_has_a_place() -> None:
    """A word decides the slot as a key would, and a cluster without shards has one slot."""
    everything = array("h", [0] * SLOTS)
    node = wire.Upstream(wire.Batch(lambda: None), wire.Latencies(1), 0, 1.0)
    both = [(True, everything), (False, array("h", [0]))]
    slots = wire.SlotMap(both, [((node,), (node,))])
    place = slots.place_of(0, b"foo")
    assert (place.cluster, place.slot, place.name) == (0, model.key_slot(b"foo"), b"")
    assert slots.place_of(1, b"foo").slot == 0
    with pytest.raises(IndexError):
        slots.place_of(2, b"foo")
