"""How often: what limits let through, what they charge, and what they do when a table is full."""

from bisect import bisect_left
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy import wire
from proxy.commands import INDEX, ROWS
from proxy.wire import rules
from proxy.wire.rules import Algorithm, Duty, Per, Scope, Segment, Unavailable
from tests.wire.stage import Stage, keyspace, role, ruleset

START = 1000.0  # seconds on the caller's clock


def row(**changes: Any) -> rules.Rate:
    """Return a limit of five a minute for each key."""
    plain = rules.Rate(
        owner="keyspace k", label="5/min per key", words="", per=Per.KEY, segment=-1,
        amount=5, seconds=60.0, burst=0, algorithm=Algorithm.WINDOW, scope=Scope.LOCAL,
        unavailable=Unavailable.LOCAL, cluster=0, enforced=100, noted=False, commands=None,
        error=b"-RATELIMITED k retry_after_ms=",
    )  # fmt: skip
    return plain._replace(**changes)


def gcra(**changes: Any) -> rules.Rate:
    return row(algorithm=Algorithm.GCRA, **changes)


def most_in_a_window(accepted: list[float], period: float) -> int:
    """Return the most acceptances in any half-open window of a period."""
    # A window that ends a little early: clocks are floating point numbers.
    ends = (bisect_left(accepted, at + period * (1 - 2e-8)) for at in accepted)
    return max((end - start for start, end in enumerate(ends)), default=0)


@given(
    algorithm=st.sampled_from(Algorithm),
    amount=st.sampled_from([1, 2, 3, 7, 50]),
    burst=st.sampled_from([0, 1, 4]),
    period=st.sampled_from([0.1, 1.0, 60.0]),
    gaps=st.lists(st.floats(0, 3), max_size=200),
)
def test_no_window_holds_more_than_the_limit(
    algorithm: Algorithm, amount: int, burst: int, period: float, gaps: list[float]
) -> None:
    """However commands arrive, no window holds more than the limit, or limit and burst of gcra."""
    burst = burst if algorithm is Algorithm.GCRA else 0
    limit = wire.Rate(row(amount=amount, seconds=period, burst=burst, algorithm=algorithm))
    now, accepted = START, list[float]()
    for gap in gaps:
        now += gap * period / amount
        if limit.take(b"a", now) == 0:
            accepted.append(now)
        elif algorithm is Algorithm.WINDOW:
            # And nothing is refused while there is room.
            assert sum(at > now - period * (1 + 1e-5) for at in accepted) == amount
    assert most_in_a_window(accepted, period) <= amount + burst


@given(
    now=st.floats(1, 1e8), amount=st.integers(1, 1000), burst=st.integers(0, 1000),
    period=st.sampled_from([1.0, 60.0, 3600.0, 86400.0]),
)  # fmt: skip
def test_a_burst_is_whole(now: float, amount: int, burst: int, period: float) -> None:
    """Whatever the clock says, as many are let through at once as the burst and one."""
    limit = wire.Rate(gcra(amount=amount, seconds=period, burst=burst))
    assert sum(limit.take(b"a", now) == 0 for _ in range(burst + 5)) == burst + 1


@pytest.mark.parametrize("algorithm", Algorithm)
@pytest.mark.parametrize("load", [0.01, 1.0, 10.0])
@pytest.mark.parametrize("amount", [100, 300])
def test_what_is_accepted_is_what_is_allowed(
    algorithm: Algorithm, load: float, amount: int
) -> None:
    """At 1 %, 100 % and 1,000 % load any window accepts within 1 % of its load or the limit."""
    limit = wire.Rate(row(amount=amount, burst=max(1, amount // 100), algorithm=algorithm))
    gap = 60 / (amount * load)
    sent = [START + number * gap for number in range(round(max(6, 1 / load) * amount * load))]
    accepted = [at for at in sent if limit.take(b"a", at) == 0]
    # Windows that begin with a command, and those between them.
    for start in (at + shift for at in sent if at + 60 <= sent[-1] for shift in (0, gap / 3)):
        asked, passed = (
            bisect_left(x, start + 60) - bisect_left(x, start) for x in (sent, accepted)
        )
        assert abs(passed - min(amount, asked)) <= max(1, amount * 0.01)


def test_a_window_is_no_shorter_than_its_period() -> None:
    """Times are kept in millionths of a period, rounded so that a cell is never back too early."""
    tick = 60 / (1 << 20)
    for part in range(10):
        limit, first = wire.Rate(row(amount=1)), START + part * tick / 10
        assert limit.take(b"a", first) == 0
        assert limit.take(b"a", first + 60 - tick / 5) > 0
        assert limit.take(b"a", first + 60 + 2 * tick) == 0


def test_the_time_until_there_is_room_is_told() -> None:
    """Who waits as long as he was told is let through; who waits a little less is not."""
    for limit in (wire.Rate(row()), wire.Rate(gcra(burst=4))):
        for _ in range(5):
            assert limit.take(b"a", START) == 0
        wait = limit.take(b"a", START + 1)
        assert 0 < wait <= 60.001
        assert limit.take(b"a", START + 1 + wait - 0.001) > 0
        assert limit.take(b"a", START + 1 + wait + 0.001) == 0


@pytest.mark.parametrize("algorithm", Algorithm)
def test_a_full_table_gives_nothing_away(algorithm: Algorithm) -> None:
    """Ids beyond its cells share some: nobody gets more than the limit, or his count back."""
    # A limit that few share has the smallest table: a thousand cells.
    limit = wire.Rate(row(per=Per.KEYSPACE, burst=4, algorithm=algorithm))
    early = [b"early:%d" % number for number in range(300)]
    for name in early:
        assert [limit.take(name, START) for _ in range(5)] == [0] * 5
    crowd = [b"crowd:%d" % number for number in range(20_000)]
    for name in crowd:
        limit.take(name, START + 1)
    assert limit.table.overflows > 0
    assert limit.table.fill(START + 1) > 0.95
    assert all(limit.take(name, START + 2) > 0 for name in early)
    got = [sum(limit.take(name, START + 2) == 0 for _ in range(6)) for name in crowd[:200]]
    assert max(got) <= 5
    # When the crowd has gone, everybody has a cell again.
    assert limit.take(b"late", START + 100) == 0


@pytest.mark.parametrize(("algorithm", "free", "most"), [("WINDOW", 60.5, 5), ("GCRA", 13, 6)])
def test_who_leaves_a_shared_cell_brings_its_count_along(
    algorithm: str, free: float, most: int
) -> None:
    """An id that shared a cell, and finds one of its own when others go, goes on where it was."""
    limit = wire.Rate(row(per=Per.KEYSPACE, burst=4, algorithm=Algorithm[algorithm]))
    for number in range(900):
        limit.take(b"crowd:%d" % number, START)
    before = limit.table.overflows
    late = [b"late:%d" % number for number in range(900)]
    got = {name: sum(limit.take(name, START + 1) == 0 for _ in range(6)) for name in late}
    assert limit.table.overflows > before + 100
    for name in late:
        got[name] += sum(limit.take(name, START + free) == 0 for _ in range(6))
    assert max(got.values()) == most


@pytest.mark.long
def test_a_million_ids_take_32_mebibytes() -> None:
    """A million ids of one gcra limit are told apart within 32 MiB."""
    limit = wire.Rate(gcra())
    assert limit.table.buckets * limit.table.stride <= 32 << 20
    for number in range(1_000_000):
        assert limit.take(b"user_%d" % number, START) == 0
    assert limit.table.overflows == 0
    assert all(limit.take(b"user_%d" % number, START) > 0 for number in range(1000))


# --- Commands


def stage(*limits: rules.Rate, **roles: rules.Rate) -> Stage:
    """Return keyspace `k`, k:{user}:{id}, with limits, and the role `default` with others."""
    space = keyspace(
        "k",
        [b"k:", Segment("user", "text"), b":", Segment("id", "text")],
        duties=bytes([Duty.RATE] * len(ROWS)),
        rates=limits,
    )
    other = keyspace("other", [b"other:", Segment("id", "text")])
    ruling = ruleset(
        keyspaces=(space, other), roles=(role()._replace(rates=tuple(roles.values())),)
    )
    return Stage(ruling)


def refused(client: wire.Downstream, *words: bytes, now: float = START) -> bytes:
    """Return the error line that a command gets at once; nothing where it is let through."""
    request = client.receive_data(wire.pack(words), now)
    if request is not None:
        client.answer(request, b"")
    return client.data_to_send()


def test_a_refusal_names_the_limit_and_not_the_id() -> None:
    """The error line tells the limit and the time; the client goes on."""
    scene = stage(row(amount=1))
    assert refused(scene.client(), b"GET", b"k:secret:1") == b""
    client = scene.client()
    line = refused(client, b"GET", b"k:secret:1")
    assert line == b"-RATELIMITED k retry_after_ms=60001\r\n"
    assert refused(client, b"GET", b"k:secret:1", now=START + 59.5).endswith(b"=501\r\n")
    assert not client.closing
    assert refused(client, b"GET", b"k:other:1") == b""
    assert client.sent == 1


def test_each_kind_of_sharing() -> None:
    """A limit is per connection, user, address, key, segment, or one for all."""
    cases = {
        Per.CLIENT: (False, False, True, True),
        Per.USER: (True, True, False, True),
        Per.IP: (True, True, True, False),
        Per.KEY: (False, False, False, False),
        Per.SEGMENT: (True, False, False, False),
        Per.KEYSPACE: (True, True, True, True),
        Per.GLOBAL: (True, True, True, True),
    }
    for per, shared in cases.items():
        segment = 0 if per is Per.SEGMENT else -1
        for number, want in enumerate(shared):
            scene = stage(row(per=per, segment=segment, amount=1))
            first, second = scene.client(lane=1), scene.client(lane=1 if number in (2, 3) else 2)
            # What differs: the key; the whole key; the user; the address.
            first.user, second.user = b"ann", b"bob" if number == 2 else b"ann"
            first.address, second.address = b"10.0.0.1", b"10.0.0.2" if number == 3 else b"10.0.0.1"
            keys = {0: b"k:a:2", 1: b"k:b:2", 2: b"k:c:3", 3: b"k:d:3"}
            assert refused(first, b"GET", b"k:a:1") == b""
            scene.batch.take_touched()
            assert bool(refused(second, b"GET", keys[number])) == want, (per, number)


def test_all_limits_or_none_are_charged() -> None:
    """A command that one limit refuses leaves the others as they were."""
    narrow = row(per=Per.SEGMENT, segment=0, amount=1, label="narrow")
    wide = row(per=Per.GLOBAL, amount=3, label="wide")
    for limits in ((wide, narrow), (narrow, wide)):
        for algorithm in Algorithm:
            scene = stage(*(limit._replace(algorithm=algorithm, burst=2) for limit in limits))
            narrow_one = next(r for r in scene.router.ruleset.rates if r.row.label == "narrow")
            clients = [scene.client(lane=number) for number in range(20)]
            passed = 0
            for number, client in enumerate(clients[:10]):
                user = b"a" if number < 8 else b"b%d" % number
                passed += refused(client, b"GET", b"k:%b:1" % user) == b""
            if algorithm is Algorithm.WINDOW:
                # One of a's, and both of the others: what was refused took nothing.
                assert passed == 3
                assert narrow_one.statistics()[:2] == (3, 7)


def test_a_command_of_many_keys_is_charged_for_each() -> None:
    """Each key counts in limits per key, one command once in all others; refused, in none."""
    scene = stage(row(amount=2), row(per=Per.USER, amount=2, label="per user"))
    client = scene.client()
    assert refused(client, b"MGET", b"k:a:1", b"k:a:1", b"k:a:1").startswith(b"-RATELIMITED")
    # Nothing was charged: both limits still have room for two.
    assert refused(scene.client(), b"MGET", b"k:a:1", b"k:a:1") == b""
    assert refused(scene.client(), b"MGET", b"k:a:2", b"k:a:3", b"other:1") == b""
    assert refused(scene.client(), b"GET", b"k:a:4").startswith(b"-RATELIMITED")


@pytest.mark.parametrize(
    "keys", ["k:a:1 other:1 k:a:2", "other:1 k:a:1 k:a:2", "k:a:1 k:a:2 x k:b:1"]
)
def test_a_keyspace_is_used_once_by_a_command(keys: str) -> None:
    """In limits per keyspace a command counts once for each, however its keys are ordered."""
    scene = stage(row(per=Per.KEYSPACE, amount=2))
    for _ in range(2):
        assert refused(scene.client(), b"MGET", *keys.encode().split()) == b""
    assert refused(scene.client(), b"MGET", *keys.encode().split()).startswith(b"-RATELIMITED")
    (limit,) = scene.router.ruleset.rates
    assert limit.statistics()[:2] == (2, 1)


@pytest.mark.parametrize("name", [b"MULTI", b"EXEC", b"DISCARD", b"UNWATCH", b"QUIT", b"RESET"])
def test_what_ends_costs_nothing(name: bytes) -> None:
    """Whoever has no room left may still end its watches, its connection and a transaction.

    One begins whatever room there is: its commands pay for it.
    """
    scene = stage(user=row(per=Per.USER, amount=1))
    client = scene.client()
    assert refused(client, name) == b""
    assert refused(client, b"PING") == b""
    assert refused(client, b"PING").startswith(b"-RATELIMITED")
    assert refused(client, name) == b""


def test_only_some_commands_count() -> None:
    """A limit of some commands lets the others through, and they take nothing from it."""
    flags = bytes(index == INDEX[b"incr"] for index in range(len(ROWS)))
    scene = stage(row(amount=1, commands=flags))
    for _ in range(3):
        assert refused(scene.client(), b"GET", b"k:a:1") == b""
    assert refused(scene.client(), b"INCR", b"k:a:1") == b""
    assert refused(scene.client(), b"INCR", b"k:a:1").startswith(b"-RATELIMITED")


def test_limits_of_a_role() -> None:
    """A role's limits count every command of its users, but for saying who one is and leaving."""
    scene = stage(all=row(owner="role default", per=Per.USER, amount=2))
    client = scene.client()
    assert refused(client, b"GET", b"other:1") == b""
    request = scene.client().receive_data(wire.pack([b"TIME"]), START)
    assert request is not None
    assert refused(scene.client(), b"GET", b"x").startswith(b"-RATELIMITED")
    assert refused(scene.client(), b"PING").startswith(b"-RATELIMITED")
    for words in ([b"AUTH", b"x"], [b"QUIT"], [b"HELLO"]):
        request = scene.client().receive_data(wire.pack(words), START)
        assert request is not None


def test_commands_that_wait_for_keys_count_as_well() -> None:
    """A blocking command, and one that only a handler can answer, count in limits of their keys."""
    scene = stage(row(amount=1))
    assert scene.client().receive_data(wire.pack([b"BLPOP", b"k:a:1", b"0"]), START) is not None
    assert refused(scene.client(), b"BLPOP", b"k:a:1", b"0").startswith(b"-RATELIMITED")


def test_a_limit_on_trial_refuses_nothing() -> None:
    """A limit that is not enforced counts what it would have refused; a part of it a part."""
    scene = stage(row(amount=1, enforced=0))
    for _ in range(5):
        assert refused(scene.client(), b"GET", b"k:a:1") == b""
    (limit,) = scene.router.ruleset.rates
    assert limit.statistics() == (1, 0, 4, 0)
    assert scene.router.ruleset.breaches.requests() == [(0, rules.Rule.RATE, 0, 4)]
    scene = stage(row(amount=1, enforced=30))
    lines = [refused(scene.client(), b"GET", b"k:a:1") for _ in range(1001)]
    assert 250 < sum(map(bool, lines)) < 350


def test_new_rules_go_on_with_what_was_counted() -> None:
    """Of rules that replace others, limits that are the same keep their counts; others begin."""
    before = stage(row(amount=1), row(per=Per.GLOBAL, amount=3, label="3/min"))
    assert refused(before.client(), b"GET", b"k:a:1") == b""
    after = stage(row(amount=1, enforced=0), row(per=Per.GLOBAL, amount=4, label="4/min"))
    after.router.ruleset.take_over(before.router.ruleset)
    assert refused(after.client(), b"GET", b"k:a:1") == b""
    first, second = after.router.ruleset.rates
    assert first.statistics() == (1, 0, 1, 0)
    assert second.statistics() == (1, 0, 0, 0)


# --- Shared limits


class Asked:
    """Who asks Redis: here a list of who waits for what."""

    def __init__(self, scene: Stage) -> None:
        self.questions: list[tuple[wire.Rate, int, bytes, wire.Downstream]] = []
        for limit in scene.router.ruleset.rates:
            limit.reserve = self.reserve

    def reserve(self, rate: wire.Rate, mark: int, name: bytes, client: wire.Downstream) -> None:
        client.hold()
        self.questions.append((rate, mark, name, client))


def shared(**changes: Any) -> rules.Rate:
    return row(scope=Scope.SHARED, **changes)


def test_a_client_without_reserved_cells_is_held() -> None:
    """What needs a cell waits, what is behind it too; with a cell it goes on in its order."""
    scene = stage(shared())
    asked = Asked(scene)
    client = scene.client()
    client.receive_data(wire.pack([b"GET", b"k:a:1"]) + wire.pack([b"GET", b"other:1"]), START)
    assert client.blocked
    assert not client.resumable
    assert client.sent == 0
    ((limit, mark, name, waiting),) = asked.questions
    assert (name, waiting) == (b"k:a:1", client)
    limit.grant(mark, 1, START)
    client.release()
    assert client.resumable
    client.receive_data(b"", START)
    (node,) = scene.upstreams
    assert node.data_to_send(START).index(b"k:a:1") > 0
    assert client.sent == 2
    assert limit.statistics() == (1, 0, 0, 0)


def test_a_limit_that_redis_has_closed_refuses() -> None:
    """Until the time that Redis has told, nobody asks again."""
    scene = stage(shared())
    asked = Asked(scene)
    client = scene.client()
    client.receive_data(wire.pack([b"GET", b"k:a:1"]), START)
    ((limit, mark, _, _),) = asked.questions
    limit.close(mark, START + 2, START)
    client.release()
    client.receive_data(b"", START)
    assert client.data_to_send() == b"-RATELIMITED k retry_after_ms=2000\r\n"
    assert refused(scene.client(), b"GET", b"k:a:1", now=START + 1).endswith(b"=1000\r\n")
    assert len(asked.questions) == 1
    assert refused(scene.client(), b"GET", b"k:a:1", now=START + 3) == b""
    assert len(asked.questions) == 2


def test_nothing_is_asked_for_a_command_that_is_refused() -> None:
    """Where a local limit has no room, the shared ones are not asked, and spend nothing."""
    scene = stage(shared(label="shared"), row(per=Per.GLOBAL, amount=1))
    asked = Asked(scene)
    ours, _ = scene.router.ruleset.rates
    assert refused(scene.client(), b"GET", b"k:a:1") == b""
    _, mark, _, client = asked.questions.pop()
    ours.grant(mark, 2, START)
    client.release()
    client.receive_data(b"", START)
    assert refused(scene.client(), b"GET", b"k:a:1").startswith(b"-RATELIMITED")
    assert refused(scene.client(), b"GET", b"k:a:2").startswith(b"-RATELIMITED")
    assert not asked.questions
    # The second cell is still there, for when the other limit has room again.
    assert refused(scene.client(), b"GET", b"k:a:1", now=START + 59.999).startswith(b"-RATE")
    assert ours.statistics()[0] == 1


@pytest.mark.parametrize(
    ("choice", "passed"),
    [(Unavailable.ALLOW, 9), (Unavailable.DENY, 0), (Unavailable.LOCAL, 2)],
)
def test_without_redis_a_limit_does_as_it_says(choice: Unavailable, passed: int) -> None:
    """While Redis is away everything passes, nothing, or this sidecar's share of the limit."""
    for algorithm in Algorithm:
        scene = stage(shared(unavailable=choice, amount=6, algorithm=algorithm, burst=1))
        (limit,) = scene.router.ruleset.rates
        limit.shared_by(3)
        asked = Asked(scene)
        refused(scene.client(), b"GET", b"k:a:1")
        _, mark, _, _ = asked.questions.pop()
        limit.give_up(mark, START + 100, START)
        lines = [refused(scene.client(), b"GET", b"k:a:1", now=START + 0.1) for _ in range(9)]
        assert sum(not line for line in lines) == passed
        assert not asked.questions


def test_who_is_always_too_late_is_refused() -> None:
    """A command does not wait for ever for cells that others take."""
    scene = stage(shared())
    asked = Asked(scene)
    client = scene.client()
    client.receive_data(wire.pack([b"GET", b"k:a:1"]), START)
    for _ in range(4):
        asked.questions[-1][3].release()
        client.receive_data(b"", START)
    assert client.data_to_send().startswith(b"-RATELIMITED")
    assert not client.blocked


def test_batches_grow_while_cells_are_spent_quickly() -> None:
    """An id that is asked for again within a second gets twice as many cells, up to a share."""
    limit = wire.Rate(gcra(amount=1000, scope=Scope.SHARED))
    assert limit.batch == 4
    sizes = []
    for _ in range(4):
        sizes.append(limit.wanted(7, 1, START))
        limit.grant(7, sizes[-1], START)
    assert sizes == [1, 2, 4, 4]
    assert limit.wanted(7, 1, START + 5) == 1
    assert limit.wanted(7, 9, START) == 9
    assert wire.Rate(shared(amount=1000)).batch == 1
