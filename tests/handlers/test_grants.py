"""Taking and giving up locks between a database and a cluster, also when answers are lost."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, cast

import pytest
from prometheus_client import CollectorRegistry

from proxy import errors
from proxy.embedded.postgres import Postgres as Server
from proxy.embedded.redis import Cluster
from proxy.errors import OriginBusy, OriginDown, OriginRefused
from proxy.handlers import gate
from proxy.handlers import grants as module
from proxy.handlers.claims import Claim, Hold, Taken
from proxy.handlers.grants import Grants, scope_of
from proxy.handlers.owners import member, said_by
from proxy.origin.postgres import Postgres
from proxy.plans import Plan, plans_in
from proxy.policy import compiler
from proxy.tallies import LockMetrics
from tests.handlers.lock_desk import grants_of
from tests.integration.rig import wait_for
from tests.origin.ticketing import Asker, Ticketing, ticketing
from tests.upstream.mirrored import KEY, Mirrored, mirrored

pytestmark = pytest.mark.integration


class Counter:
    """A `Grants`, and what stands on both sides of it."""

    def __init__(self, tickets: Ticketing, mirrored: Mirrored, grants: Grants) -> None:
        self.tickets = tickets
        self.mirrored = mirrored
        self.grants = grants

    @property
    def plan(self) -> Plan:
        return self.mirrored.plan

    async def asker(self) -> Asker:
        return await self.tickets.asker()


@pytest.fixture
async def counter(
    postgres_server: Server, locks_cluster: Cluster, tmp_path: Path
) -> AsyncIterator[Counter]:
    async with (
        ticketing(postgres_server, tmp_path) as tickets,
        mirrored(locks_cluster, tmp_path) as shown,
    ):
        postgres, grants = grants_of(tickets.url, shown.mirror)
        await postgres.start()
        try:
            yield Counter(tickets, shown, grants)
        finally:
            await postgres.stop()


async def test_a_grant_is_in_the_row_and_in_the_mirror(counter: Counter) -> None:
    """Both have owner and token; a release takes it from both before it is told."""
    taken = await counter.grants.take(counter.plan, [KEY], Claim("u1", 30, "b1"))
    assert (taken.outcome, taken.granted) == ("acquired", True)
    row = await (await counter.asker()).seat("s1")
    assert (row["locked_by"], [row["lock_token"]]) == ("u1", list(taken.tokens))

    async def mirrored() -> bool:
        shown = await counter.mirrored.mirror.look(counter.plan, KEY)
        return shown is not None and member(said_by(shown.value), ["user_id"]) == "u1"

    await wait_for(mirrored, "the mirror to show it")
    assert await counter.mirrored.token() == str(taken.tokens[0])
    assert await counter.grants.release(counter.plan, [Hold(KEY, "u1", taken.tokens[0])]) == [True]
    assert await counter.mirrored.value() is None
    assert await counter.grants.held(counter.plan, KEY) is None


async def test_what_is_known_of_a_lock(counter: Counter) -> None:
    """Row, value and list of an owner tell the same; of a free lock there is a row and no value."""
    assert (await counter.grants.row(counter.plan, KEY) or [""])[0] == "available"
    assert await counter.grants.value(counter.plan, KEY) is None
    assert await counter.grants.row(counter.plan, b"seat_lock:e1:nowhere") is None
    taken = await counter.grants.take(counter.plan, [KEY], Claim("u1", 30, "b1", "x1"))
    held = await counter.grants.held(counter.plan, KEY)
    assert held is not None
    assert (held.owner, held.token, held.booking, held.session) == (
        "u1", taken.tokens[0], "b1", "x1",
    )  # fmt: skip
    value = await counter.grants.value(counter.plan, KEY)
    assert value is not None
    assert member(said_by(value), ["booking_id"]) == "b1"
    (mine,) = await counter.grants.mine(counter.plan, "u1", "e1")
    assert (list(mine.columns), mine.token) == (["e1", "s1"], taken.tokens[0])
    assert await counter.grants.mine(counter.plan, "u1", "e2") == []


async def test_the_gate_believes_what_was_refused(counter: Counter) -> None:
    """After a refusal Redis alone refuses, until what it shows is over; not the holder itself."""
    await counter.grants.take(counter.plan, [KEY], Claim("u1", 30))
    await wait_for(lambda: shown(counter), "the mirror")
    assert (await counter.grants.take(counter.plan, [KEY], Claim("u2", 30))).holder == "u1"
    asker = await counter.asker()
    async with asker.connection.transaction():
        await asker.connection.execute("LOCK TABLE seats")
        async with asyncio.timeout(0.9):
            taken = await counter.grants.take(counter.plan, [KEY], Claim("u3", 30))
        assert (taken.outcome, taken.holder) == ("held", "u1")
        assert taken.lefts[0] > 25
    assert (await counter.grants.take(counter.plan, [KEY], Claim("u1", 30))).outcome == "extended"


async def test_a_crowd_before_a_row_in_hand_asks_once(
    counter: Counter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While another transaction has a row, one at a time asks for its lock and others hear so."""
    monkeypatch.setattr(gate, "IN_HAND", 5.0)
    asker, watcher = await counter.asker(), await counter.asker()
    waiting = (
        "SELECT count(*) FROM pg_stat_activity"
        " WHERE datname = current_database() AND wait_event_type = 'Lock'"
    )
    async with asker.connection.transaction():
        await asker.connection.execute("SELECT FROM seats WHERE seat = 's1' FOR UPDATE")
        crowd = [
            asyncio.create_task(counter.grants.take(counter.plan, [KEY], Claim(f"u{number}", 30)))
            for number in range(30)
        ]
        most = 0
        while not all(each.done() for each in crowd):
            most = max(most, await watcher.connection.fetchval(waiting))
        told = await asyncio.gather(*crowd, return_exceptions=True)
        assert {getattr(each, "line", None) for each in told} == {errors.ORIGIN_IN_HAND}
        with pytest.raises(OriginBusy):
            # Nor does who comes now.
            async with asyncio.timeout(1):
                await counter.grants.take(counter.plan, [KEY], Claim("late", 30))
    assert most == 1


async def test_the_gate_believes_what_is_offered(counter: Counter) -> None:
    """Who hears of its offer here finds the gate open, and others hear so without PostgreSQL."""
    await counter.grants.take(counter.plan, [KEY], Claim("u1", 30))
    await counter.grants.queue(counter.plan, KEY, "u2", leaving=False)
    asker = await counter.asker()
    await asker.expire("s1")
    waiting = await counter.grants.queue(counter.plan, KEY, "u2", leaving=False)
    assert waiting.outcome == "offered"
    refused = counter.grants.refused(counter.plan, KEY, "u3")
    assert refused is not None
    assert (refused.outcome, refused.holder) == ("queue", "u2")
    assert 0 < refused.lefts[0] <= 1
    assert counter.grants.refused(counter.plan, KEY, "u2") is None
    await counter.grants.queue(counter.plan, KEY, "u2", leaving=True)
    assert counter.grants.refused(counter.plan, KEY, "u3") is None


async def shown(counter: Counter) -> bool:
    return await counter.mirrored.mirror.look(counter.plan, KEY) is not None


async def test_a_lost_answer_is_asked_for_again(counter: Counter) -> None:
    """With every connection cut in the middle of a hundred calls, each is told what is so.

    Who is told "acquired" holds the lock, and who is told nothing has an error that says so.
    """
    asker = await counter.asker()
    cut = (
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
        " WHERE datname = current_database() AND pid <> pg_backend_pid()"
    )
    unknown = 0
    for number in range(1, 101):
        key, name = b"seat_lock:e1:s%d" % number, f"s{number}"
        calls = asyncio.gather(
            counter.grants.take(counter.plan, [key], Claim(f"u{number}", 30)),
            asker.connection.execute(cut), return_exceptions=True,
        )  # fmt: skip
        taken, _ = await calls
        row = await asker.seat(name)
        if isinstance(taken, BaseException):
            assert isinstance(taken, OriginDown)
            assert taken.sent or row["status"] == "available"
            unknown += 1
            continue
        assert (taken.outcome, row["locked_by"]) == ("acquired", f"u{number}")
        assert list(taken.tokens) == [row["lock_token"]]
    assert unknown < 50


# A trigger of the application that objects to one seat.
OBJECTION = """
CREATE FUNCTION object() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF new.seat = 's13' THEN RAISE 'not that one'; END IF;
    RETURN new;
END $$;
CREATE TRIGGER object BEFORE UPDATE ON seats FOR EACH ROW EXECUTE FUNCTION object()"""


async def test_what_is_refused_is_refused_to_one(counter: Counter) -> None:
    """A seat to which the database objects keeps nobody from others, to take or to release."""
    asker = await counter.asker()
    await counter.grants.take(counter.plan, [b"seat_lock:e1:s13"], Claim("u13", 30))
    await asker.connection.execute(OBJECTION)
    keys = [b"seat_lock:e1:s%d" % number for number in range(1, 31)]
    taken = await asyncio.gather(
        *(counter.grants.take(counter.plan, [key], Claim(f"u{number}", 30))
          for number, key in enumerate(keys, 1)), return_exceptions=True,
    )  # fmt: skip
    assert isinstance(taken.pop(12), OriginRefused)
    assert {each.outcome for each in taken if isinstance(each, Taken)} == {"acquired"}
    assert len(taken) == 29
    freed = await asyncio.gather(
        *(counter.grants.release(counter.plan, [Hold(key, f"u{number}", None)])
          for number, key in enumerate(keys, 1)), return_exceptions=True,
    )  # fmt: skip
    assert isinstance(freed.pop(12), OriginRefused)
    assert freed == [[True]] * 29


class Fails:
    """A database of which the first answer is lost and later ones are errors."""

    def __init__(self, *ends: Exception | list[object]) -> None:
        self.ends = list(ends)

    async def fetch(self, *_: object, **__: object) -> object:
        end = self.ends.pop(0) if len(self.ends) > 1 else self.ends[0]
        if isinstance(end, Exception):
            raise end
        return end


def failing(counter: Counter, *ends: Exception | list[Any]) -> Grants:
    return Grants(
        cast(Postgres, Fails(*ends)), counter.mirrored.mirror, LockMetrics(CollectorRegistry())
    )


async def test_what_was_lost_is_unknown_however_it_goes_on(
    counter: Counter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither "no room" nor "not yours" says that nothing was done by the call before."""
    monkeypatch.setattr(module, "RESOLVE", 0.1)
    lost = OriginDown("lost", sent=True)
    grants = failing(counter, lost, OriginBusy("no room"))
    with pytest.raises(OriginDown) as caught:
        await grants.take(counter.plan, [KEY], Claim("u1", 30))
    assert caught.value.sent
    # Asked with others again the lock is in other hands, and asked alone there is no room.
    left = [dict.fromkeys(("numbers", "outcomes", "tokens", "lefts", "stamps"))]
    grants = failing(counter, lost, left, OriginBusy("no room"))
    with pytest.raises(OriginDown) as caught:
        await grants.take(counter.plan, [KEY], Claim("u1", 30))
    assert caught.value.sent
    refused = OriginRefused("not that one", "P0001")
    for call in ("take", "release", "confirm"):
        grants = failing(counter, lost, refused)
        hold = [Hold(KEY, "u1", 3)]
        calls = {
            "take": lambda of=grants: of.take(counter.plan, [KEY], Claim("u1", 30)),
            "release": lambda of=grants, what=hold: of.release(counter.plan, what),
            "confirm": lambda of=grants, what=hold: of.confirm(counter.plan, what, "b"),
        }
        with pytest.raises(OriginDown) as caught:
            await calls[call]()
        assert caught.value.sent
    nothing = [{"numbers": None, "tokens": None, "looked": ["1"]}]
    held = [{"status": "available", "locked_by": None, "token": "3", "booking_id": None,
             "session_id": None, "remains": None}]  # fmt: skip
    grants = failing(counter, lost, nothing, held)
    with pytest.raises(OriginDown) as caught:
        await grants.release(counter.plan, [Hold(KEY, "u1", None)])
    assert caught.value.sent


async def test_a_refusal_behind_a_lost_call_is_none(counter: Counter) -> None:
    """What was lost may be granted when who holds the lock lets go, after the refusal was told."""
    lost = OriginDown("lost", sent=True)
    left = [dict.fromkeys(("numbers", "outcomes", "tokens", "lefts", "stamps"))]
    held = [{"outcome": "held", "tokens": None, "lefts": ["5"], "holder": "u2", "has": "0",
             "fresh": None, "stamps": None}]  # fmt: skip
    grants = failing(counter, lost, left, held)
    with pytest.raises(OriginDown) as caught:
        await grants.take(counter.plan, [KEY], Claim("u1", 30))
    assert caught.value.sent


async def test_a_client_that_has_gone_gives_up(counter: Counter) -> None:
    """What was granted to it is free again; that nobody holds it is no error."""
    claim = Claim("u1", 30)
    taken = await counter.grants.take(counter.plan, [KEY], claim)
    await counter.grants.vanish(counter.plan, [KEY], claim, taken)
    assert await counter.grants.held(counter.plan, KEY) is None
    await counter.grants.vanish(counter.plan, [KEY], claim, taken)


async def test_a_client_that_has_gone_keeps_what_it_had(counter: Counter) -> None:
    """Of several locks those go that were nobody's, whatever tokens the application gives out."""
    asker = await counter.asker()
    await asker.connection.execute("UPDATE seats SET lock_token = 9000 WHERE seat = 's1'")
    first, claim = [b"seat_lock:e1:s1"], Claim("u1", 30)
    party = [b"seat_lock:e1:s2", *first, b"seat_lock:e1:s3"]
    before = await counter.grants.take(counter.plan, first, claim)
    taken = await counter.grants.take(counter.plan, party, claim)
    assert list(taken.fresh) == [0, 2]
    await counter.grants.vanish(counter.plan, party, claim, taken)
    held = [await counter.grants.held(counter.plan, key) for key in party]
    assert [row and row.token for row in held] == [None, before.tokens[0], None]
    again = await counter.grants.take(counter.plan, first, claim)
    await counter.grants.vanish(counter.plan, first, claim, again)
    assert await counter.grants.held(counter.plan, first[0]) is not None


@pytest.mark.parametrize("names", [["s1"], ["s2", "s3"]])
async def test_who_asks_again_elsewhere_keeps_what_it_is_told(
    counter: Counter, names: list[str]
) -> None:
    """A connection that is lost gives up nothing that its owner was granted again on another."""
    keys, claim = [f"seat_lock:e1:{name}".encode() for name in names], Claim("u1", 30)
    first = await counter.grants.take(counter.plan, keys, claim)
    again = await counter.grants.take(counter.plan, keys, claim)
    assert (again.outcome, again.tokens) == ("extended", first.tokens)
    await counter.grants.vanish(counter.plan, keys, claim, first)
    held = [await counter.grants.held(counter.plan, key) for key in keys]
    assert [row and row.token for row in held] == list(again.tokens)


async def test_only_its_own_grant_is_extended(counter: Counter) -> None:
    """By the token of a grant that is over nothing becomes longer or shorter."""
    taken = await counter.grants.take(counter.plan, [KEY], Claim("u1", 30))
    (token,) = taken.tokens
    late = await counter.grants.extend(counter.plan, [KEY], Claim("u1", 1), token - 1)
    assert (late.outcome, late.granted) == ("held", False)
    held = await counter.grants.held(counter.plan, KEY)
    assert held is not None
    assert held.left > 25
    assert (await counter.grants.extend(counter.plan, [KEY], Claim("u1", 50), token)).granted


async def test_without_a_database_it_is_down(counter: Counter, postgres_server: Server) -> None:
    """Every operation raises what a client is told as PGDOWN."""
    away, grants = grants_of("postgresql://x@127.0.0.1:1/x", counter.mirrored.mirror)
    with contextlib.suppress(OriginDown):
        await Postgres.start(away)
    for call in (
        grants.take(counter.plan, [KEY], Claim("u1", 30)),
        grants.release(counter.plan, [Hold(KEY, "u1", None)]),
        grants.confirm(counter.plan, [Hold(KEY, "u1", 1)], "b"),
        grants.queue(counter.plan, KEY, "u1", leaving=False),
        grants.held(counter.plan, KEY),
    ):
        with pytest.raises(OriginDown) as caught:
            await call
        assert caught.value.line == errors.ORIGIN_DOWN
    await away.stop()


def test_locks_are_counted_by_a_segment_of_their_keys(tmp_path: Path) -> None:
    """Whichever it is, also where the application has no table of them."""
    rules = tmp_path / "rules.yaml"
    rules.write_text(
        "keyspaces:\n  job:\n    key: job:{tenant}:{name}\n    cluster: locks\n    kind: lock\n"
        "    ttl: {default: 60s}\n    lock: {owner: value, per_owner: {scope: name, max: 2}}\n"
    )
    (plan,) = plans_in(compiler.from_files(rules, ("locks",))[0]).by_keyspace.values()
    assert scope_of(plan, b"job:acme:7") == "7"
