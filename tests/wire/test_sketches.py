"""What is looked at closer, and what is known of keys afterwards."""

import itertools
import math
import random
from bisect import bisect
from collections import Counter
from collections.abc import Iterator

import pytest

from proxy import wire
from tests.replies import pack
from tests.wire.stage import Stage, keyspace, ruleset

SECRET = bytes(range(16))
REFUSED = wire.OUTCOMES.index("refused")
ABANDONED = wire.OUTCOMES.index("abandoned")

# SipHash-2-4 of 00 01 02 … under the key 00 … 0f: the vectors of its authors, as numbers.
VECTORS = {
    0: 0x726FDB47DD0E0E31,
    1: 0x74F839C593DC67FD,
    8: 0x93F5F5799A932462,
    15: 0xA129CA6149BE45E5,
}


def zipf(keys: int, seed: int) -> Iterator[bytes]:
    """Yield names of keys without end, the n-th one as often as 1/n says."""
    chance = random.Random(seed)
    steps = list(itertools.accumulate(1 / n for n in range(1, keys + 1)))
    while True:
        yield b"key:%d" % bisect(steps, chance.random() * steps[-1])


def traced(stage: Stage) -> list[wire.Trace]:
    """Return where everything that is told of commands arrives."""
    seen: list[wire.Trace] = []
    stage.batch.sketches = wire.Sketches(SECRET, len(stage.router.ruleset.keyspaces), True)
    stage.batch.sketches.look(1.0, 1.0)
    stage.batch.on_seen = lambda owner, traces: seen.extend(traces)
    return seen


@pytest.mark.parametrize(("size", "hash_"), VECTORS.items())
def test_the_hash_is_siphash(size: int, hash_: int) -> None:
    """Keys are known by SipHash-2-4, so nobody without the secret makes two of one hash."""
    assert wire.Sketches(SECRET).name_hash(bytes(range(size))) == hash_
    assert wire.Sketches(bytes(16)).name_hash(bytes(range(size))) != hash_


def found_by(sketches: wire.Sketches, looks: int, keys: int = 100_000) -> None:
    """Look at keys so often; the ten hottest must be known, and how hot they are."""
    true = Counter[bytes]()
    for key in itertools.islice(zipf(keys, 7), looks):
        true[key] += 1
        sketches.add(key, -1)
    found = sketches.hot_keys(100)
    assert [name for _, _, name, _, _ in found[:10]] == [name for name, _ in true.most_common(10)]
    for _, _, name, count, error in found:
        assert name is not None
        assert count - error <= true[name] <= count
    for _, _, name, count, _ in found[:10]:
        assert name is not None
        assert count == pytest.approx(true[name], rel=0.1)


def test_the_hottest_keys_are_found() -> None:
    """Of 100,000 keys that follow Zipf's law the ten hottest are known within a tenth."""
    found_by(wire.Sketches(SECRET, plain=True), 100_000)


def test_bounds_hold_for_any_order_of_keys() -> None:
    """However keys come and go, a count is too high by at most its error, and none is lost."""
    chance = random.Random(3)
    sketches = wire.Sketches(SECRET, plain=True)
    true = Counter[bytes]()
    for turn in range(30_000):
        # New keys all the time, which throw others out, and a few that come back.
        key = b"%d" % (chance.randrange(3000) if turn % 3 else turn // 100 + 10_000)
        true[key] += 1
        sketches.add(key, -1)
    found = sketches.hot_keys(10_000)
    assert len({hash_ for hash_, _, _, _, _ in found}) == len(found) == 1024
    assert sum(count for _, _, _, count, _ in found) == 30_000
    for hash_, _, name, count, error in found:
        assert name is not None
        assert hash_ == sketches.name_hash(name)
        assert count - error <= true[name] <= count


def test_memory_is_fixed() -> None:
    """A hundred thousand keys take no more room than one, in hot and in big keys."""
    sketches = wire.Sketches(SECRET, 3, plain=True)
    before = sketches.memory
    for number in range(100_000):
        sketches.add(b"key:%d" % number, number % 3)
        sketches.see(b"key:%d" % number, number % 3, number, False, 1.0)
    assert sketches.memory == before < 1 << 20
    assert len(sketches.hot_keys(10**6)) == 1024
    assert [size for _, _, _, size, _, _ in sketches.big_keys()] == [*range(99_999, 99_951, -1)]


def test_what_is_long_ago_counts_less() -> None:
    """Counts and their errors are halved."""
    sketches = wire.Sketches(SECRET)
    for _ in range(3):
        sketches.add(b"a", 5)
    sketches.halve()
    assert sketches.hot_keys(1) == [(sketches.name_hash(b"a"), 5, None, 1.5, 0.0)]


def test_a_key_is_as_big_as_it_was_at_most() -> None:
    """Of a key the largest size counts, of a keyspace its sixteen largest keys."""
    sketches = wire.Sketches(SECRET, 2, plain=True)
    for size in (5, 9, 7):
        sketches.see(b"a", 1, size, size == 9, float(size))
    hash_ = sketches.name_hash(b"a")
    assert sketches.big_keys() == [(hash_, 1, b"a", 9, True, 9.0)]
    for number in range(100):
        sketches.see(b"%d" % number, 0, 1000 + number, False, 1.0)
    big = sketches.big_keys()
    assert len(big) == 17
    assert big[-1][2] == b"a"
    sketches.see(b"far", 99, 1, False, 1.0)
    assert sketches.big_keys()[-1][1:4] == (-1, b"far", 1)


def test_other_rules() -> None:
    """What is known of a keyspace goes with it to its new number, and ends with it."""
    sketches = wire.Sketches(SECRET, 3, plain=True)
    for place in range(-1, 3):
        sketches.add(b"k%d" % place, place)
        sketches.see(b"k%d" % place, place, 10 + place, False, 1.0)
    sketches.adopt([1, -1, 0], 2)
    assert [(space, name) for _, space, name, *_ in sketches.big_keys()] == [
        (0, b"k2"), (1, b"k0"), (-1, b"k-1"),
    ]  # fmt: skip
    assert {(name, space) for _, space, name, _, _ in sketches.hot_keys(9)} == {
        (b"k-1", -1), (b"k0", 1), (b"k1", -1), (b"k2", 0),
    }  # fmt: skip


def test_bad_arguments() -> None:
    """A secret has its size, and a share is one."""
    with pytest.raises(ValueError, match="16 bytes"):
        wire.Sketches(b"short")
    with pytest.raises(ValueError, match="between 0 and 1"):
        wire.Sketches(SECRET).look(1.5, 0.0)


def test_shares_are_kept_apart() -> None:
    """A share of the commands is traced, another has its keys counted, neither in step."""
    stage = Stage()
    seen = traced(stage)
    stage.batch.sketches.look(0.05, 0.25)
    client = stage.client()
    node = stage.upstreams[0]
    turns, frame = 20_000, pack(b"GET", b"k")
    for _ in range(turns // 50):
        client.receive_data(frame * 50, 1.0)
        while client.pending:
            sent = node.data_to_send(1.0).count(b"GET")
            node.receive_data(b"$-1\r\n" * sent, 1.0)
            client.data_to_send()
            client.receive_data(b"", 1.0)
    for count, share in ((len(seen), 0.05), (stage.batch.sketches.looks, 0.25)):
        assert abs(count - share * turns) < 5 * math.sqrt(share * (1 - share) * turns)


def test_nothing_is_looked_at_unless_asked_for() -> None:
    """At first no command is traced and no key is counted, however large it is."""
    stage = Stage()
    seen: list[object] = []
    stage.batch.on_seen = lambda owner, traces: seen.extend(traces)
    client = stage.client()
    client.receive_data(pack(b"SET", b"k", b"v" * 50_000) + pack(b"NOPE"), 1.0)
    stage.upstreams[0].data_to_send(1.0)
    stage.upstreams[0].receive_data(b"+OK\r\n", 1.0)
    client.data_to_send()
    assert seen == []
    assert stage.batch.sketches.looks == 0
    assert stage.batch.sketches.big_keys() == []


def test_a_trace_tells_the_whole_way() -> None:
    """A trace has words, keys, sizes, times, node and outcome of a command that a node answered."""
    spaces = [keyspace("thing", [b"thing:", wire.rules.Segment("id", "text")])]
    stage = Stage(ruleset(keyspaces=spaces))
    seen = traced(stage)
    stage.batch.clock = lambda: 1.25
    node = stage.upstreams[0]
    node.owner = "node"
    client = stage.client()
    frame = pack(b"SET", b"thing:1", b"v" * 300, b"EX", b"9")
    client.receive_data(frame, 1.0)
    node.data_to_send(1.5)
    node.receive_data(b"-OOM no memory\r\n", 1.75)
    assert seen == []
    client.data_to_send()
    (trace,) = seen
    assert trace.words == [b"SET", b"thing:1", b"v" * 256, b"EX", b"9"]
    assert (trace.sizes, trace.total, trace.keys) == ([3, 7, 300, 2, 1], 5, [1])
    assert (trace.keyspace, trace.size, trace.reply_size) == (0, len(frame), 16)
    assert (trace.received, trace.judged, trace.sent, trace.replied) == (1.0, 1.25, 1.5, 1.75)
    assert (trace.outcome, trace.error, trace.node) == (1, b"OOM", "node")
    assert trace.sampled
    assert not trace.handled


def test_a_trace_of_what_is_refused() -> None:
    """A refusal is traced at its place among the replies, with its code."""
    stage = Stage(ruleset(roles=()))
    seen = traced(stage)
    stranger = stage.client(None)
    stranger.receive_data(pack(b"GET", b"k"), 1.0)
    line = stranger.data_to_send()
    assert [(t.outcome, t.error, t.reply_size) for t in seen] == [(REFUSED, b"NOAUTH", len(line))]
    stage = Stage()
    seen = traced(stage)
    client = stage.client()
    client.receive_data(pack(b"GET", b"k") + pack(b"GET"), 1.0)
    client.data_to_send()
    assert seen == []
    stage.upstreams[0].data_to_send(1.0)
    stage.upstreams[0].receive_data(b"$-1\r\n", 1.0)
    client.data_to_send()
    assert [(t.total, t.outcome, t.error) for t in seen] == [(2, 0, None), (1, REFUSED, b"ERR")]


def test_a_trace_of_what_a_handler_answers() -> None:
    """A command of a handler has the times of its first and its last part at the nodes."""
    stage = Stage(nodes=2)
    seen = traced(stage)
    moment = 1.25
    stage.batch.clock = lambda: moment
    client = stage.client()
    request = client.receive_data(pack(b"MGET", b"a", b"b"), 1.0)
    assert request is not None
    moment = 3.0
    row, replies = request.row, list[bytes]()
    for key in (b"a", b"b"):
        place = client.locate(key, row)
        assert isinstance(place, wire.Location)
        client.submit(place, pack(b"MGET", key), row, 1.0, replies.append)
    for number, node in enumerate(stage.upstreams):
        node.data_to_send(1.5 + number / 10)
        node.receive_data(b"*1\r\n$-1\r\n", 2.0 + number / 10)
    assert len(replies) == 2
    client.answer(request, b"*0\r\n")
    client.data_to_send()
    (trace,) = seen
    assert (trace.judged, trace.sent, trace.replied) == (1.25, 1.5, 2.1)
    assert (trace.handled, trace.outcome, trace.keys) == (True, 0, [1, 2])


def test_a_slow_handler_is_traced() -> None:
    """A command that its handler answered late is told, though nobody sampled it."""
    stage = Stage()
    seen = traced(stage)
    stage.batch.sketches.look(0.0, 0.0)
    moment = 0.0
    stage.batch.clock = lambda: moment
    stage.batch.slow_after = 0.5
    client = stage.client()
    for received, answered in ((1.0, 1.2), (2.0, 2.6)):
        moment = received
        request = client.receive_data(pack(b"PING"), received)
        assert request is not None
        moment = answered
        client.answer(request, b"+PONG\r\n")
        client.data_to_send()
    assert [(t.words, t.replied, t.handled, t.sampled) for t in seen] == [
        ([b"PING"], 2.6, True, False)
    ]


def test_a_client_that_goes_leaves_its_traces() -> None:
    """What a client that has gone was not answered is told as abandoned."""
    stage = Stage()
    seen = traced(stage)
    client = stage.client()
    client.receive_data(pack(b"GET", b"k"), 1.0)
    client.connection_lost()
    assert [(t.words, t.outcome) for t in seen] == [([b"GET", b"k"], ABANDONED)]
    stage.upstreams[0].data_to_send(1.0)
    stage.upstreams[0].receive_data(b"$-1\r\n", 1.0)
    assert len(seen) == 1


def test_keys_are_counted_of_what_is_let_through() -> None:
    """Every key of a command counts with its keyspace, one of a refused command does not."""
    spaces = [
        keyspace("thing", [b"thing:", wire.rules.Segment("id", "text")]),
        keyspace("no", [b"no:", wire.rules.Segment("id", "text")], max_key_bytes=4),
    ]
    stage = Stage(ruleset(keyspaces=spaces))
    traced(stage)
    client = stage.client()
    for words in ((b"GET", b"thing:1"), (b"MGET", b"thing:1", b"x"), (b"GET", b"no:12345")):
        request = client.receive_data(pack(*words), 1.0)
        if request is not None:
            client.answer(request, b"*0\r\n")
    found = stage.batch.sketches.hot_keys(9)
    assert [(name, space, count) for _, space, name, count, _ in found] == [
        (b"thing:1", 0, 2.0), (b"x", -1, 1.0),
    ]  # fmt: skip


@pytest.mark.parametrize("tag", [1, b"word", None])
def test_big_keys_are_known_by_the_names_of_clients(tag: int | bytes | None) -> None:
    """Large requests and replies are known by their key as clients name it, renamed or not."""
    space = keyspace(
        "thing",
        [b"thing:", wire.rules.Segment("a", "text"), b":", wire.rules.Segment("b", "text")],
        hash_tag=tag,
    )
    stage = Stage(ruleset(keyspaces=[space]))
    traced(stage)
    stage.batch.sketches.look(0.0, 1e-9)
    node = stage.upstreams[0]
    client = stage.client()
    client.receive_data(pack(b"SET", b"thing:1:2", b"v" * 20_000), 1.0)
    client.receive_data(pack(b"GET", b"thing:3:4"), 2.0)
    client.receive_data(pack(b"MGET", b"thing:3:4", b"thing:3:4"), 2.0)
    place = client.locate(b"thing:5:6", 0)
    assert isinstance(place, wire.Location)
    row = stage.router.ruleset.find_command(b"get")
    client.submit(place, pack(b"GET", place.name), row, 2.0, len)
    node.data_to_send(2.0)
    large, larger = (b"$%d\r\n%b\r\n" % (size, b"v" * size) for size in (30_000, 40_000))
    node.receive_data(b"+OK\r\n" + large, 3.0)
    node.receive_data(b"*2\r\n" + large + large, 4.0)
    node.receive_data(larger, 5.0)
    assert [row[1:] for row in stage.batch.sketches.big_keys()] == [
        (0, b"thing:5:6", len(larger), True, 5.0),
        (0, b"thing:3:4", len(large), True, 3.0),
        (0, b"thing:1:2", 20_038, False, 1.0),
    ]
