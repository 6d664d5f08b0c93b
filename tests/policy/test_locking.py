"""Policies of kind lock to what PostgreSQL is asked about them."""

from pathlib import Path

import pytest

from proxy.plans import Locking, plans_in
from proxy.policy.planning import locks_of
from tests.integration.holds import RULES
from tests.policy.rulebook import SHIPPED, Folder, load


def locking_of(folder: Path, name: str, text: str = RULES) -> Locking:
    ruleset = Folder(folder).compile(text)
    (plan,) = (plan for plan in plans_in(ruleset).by_keyspace.values() if plan.name == name)
    assert plan.locking is not None
    return plan.locking


def test_a_lock_of_a_table(tmp_path: Path) -> None:
    """What the block says arrives: columns in the order of the key, owner, limit, queue and end."""
    found = locking_of(tmp_path, "seat_lock")
    assert (found.table, found.columns) == ("seats", ("event", "seat"))
    assert (found.owner, found.scope, found.most) == (("user_id",), 0, 10)
    assert (found.longest, found.heartbeat, found.offer) == (120.0, 2.0, 1.0)
    assert (found.gate, found.blind) == (True, True)


def test_a_lock_of_no_table(tmp_path: Path) -> None:
    """All else has defaults: the value is the owner, without limit, queue or end."""
    found = locking_of(tmp_path, "mutex")
    assert (found.table, found.columns, found.owner) == (None, (), ())
    assert (found.most, found.longest, found.heartbeat) == (0, 0.0, 0.0)
    careful = locking_of(tmp_path, "careful")
    assert (careful.gate, careful.blind) == (False, False)


def test_keys_are_arrays_with_the_types_of_their_segments(tmp_path: Path) -> None:
    """Every function is called with texts, cast to what the columns are."""
    text = RULES.replace("seat_lock:{event}:{seat}", "seat_lock:{event:int}:{seat}")
    calls = locking_of(tmp_path, "seat_lock", text).calls
    assert calls.take.text.startswith('SELECT * FROM "sidecache_take_seat_lock_')
    assert '"($1::text[]::bigint[], $2::text[]::text[], $3::text::text, ' in calls.take.text
    assert calls.release.text.endswith(
        "$3::text[]::text[], $4::text[]::bigint[], $5::text[]::text[], $6::text::float8,"
        " $7::text::integer, $8::text::boolean)"
    )
    assert calls.sweep.text.endswith('"($1::text::float8, $2::text::integer)')
    assert '"event" = $1::text::bigint AND "seat" = $2::text::text' in calls.held.text
    assert all(call.place.startswith(str(tmp_path)) for call in calls)


def test_locks_of_no_table_are_told_apart_by_keyspace(tmp_path: Path) -> None:
    """What reads the common table asks for the rows of its keyspace alone."""
    calls = locking_of(tmp_path, "mutex").calls
    for call in (calls.held, calls.shown, calls.mine):
        assert "sidecache_locks WHERE keyspace = 'mutex' AND " in call.text


def test_a_lock_is_shown_by_what_restores_it(tmp_path: Path) -> None:
    """The value that clients read is the one that a restore writes, of one row."""
    shown = locking_of(tmp_path, "seat_lock").calls.shown.text
    assert "json_build_object('user_id', locked_by" in shown
    assert shown.endswith('AS held WHERE "event" = $1::text::text AND "seat" = $2::text::text')


def test_the_scope_of_a_limit_is_a_segment(tmp_path: Path) -> None:
    """What somebody holds is listed within the segment by which it is limited."""
    text = RULES.replace("per_owner: {scope: event, max: 10}", "per_owner: {scope: seat, max: 3}")
    found = locking_of(tmp_path, "seat_lock", text)
    assert (found.scope, found.most) == (1, 3)
    assert '"seat" = $2::text::text' in found.calls.mine.text


def test_where_redis_decides_there_is_nothing_to_ask(tmp_path: Path) -> None:
    """authority: redis has no locking, and nothing is installed for it."""
    text = RULES.replace("lock: {owner: value}", "lock: {owner: value, authority: redis}")
    policies = Folder(tmp_path).load(text)
    assert {plan.name for plan in locks_of(policies)} == {"seat_lock", "careful"}
    assert {plan.name for plan in locks_of(load(SHIPPED))} == {"seat_lock"}


@pytest.mark.parametrize(
    ("old", "new", "same"),
    [
        ("table: seats", "table: seats2", False), ("seat: seat}", "seat: chair}", False),
        ("{event}:{seat}", "{event:int}:{seat}", False), ("scope: event", "scope: seat", False),
        ("      per_owner: {scope: event, max: 10}\n", "", False), ("max: 10}", "max: 9}", True),
        ("max_hold: 120s", "max_hold: 240s", True), ("heartbeat: 2s", "heartbeat: 3s", True),
        ("hash_tag: event", "hash_tag: seat", True),
    ],
)  # fmt: skip
def test_what_the_functions_are_made_from_marks_their_calls(
    tmp_path: Path, old: str, new: str, same: bool
) -> None:
    """Policies that differ in that call other functions; what a call says itself makes no other."""
    text = RULES.replace(old, new)
    assert text != RULES
    before = locking_of(tmp_path, "seat_lock").calls
    after = locking_of(tmp_path, "seat_lock", text).calls
    for verb in ("take", "grab", "release", "confirm", "queue", "sweep"):
        one, other = (getattr(calls, verb).text.partition("(")[0] for calls in (before, after))
        assert (one == other) == same
        assert one.startswith(f'SELECT * FROM "sidecache_{verb}_seat_lock_')


def test_a_long_name_has_functions_of_its_own(tmp_path: Path) -> None:
    """Two keyspaces whose names differ behind what PostgreSQL keeps of a name stay two."""
    names = [f"{'x' * 60}{end}" for end in "ab"]
    text = "keyspaces:\n" + "".join(
        f"  {name}: {{key: '{name}:{{id}}', kind: lock, ttl: {{default: 9s}}}}\n" for name in names
    )
    one, other = (locking_of(tmp_path, name, text).calls.confirm.text for name in names)
    function = one.partition('"')[2].partition('"')[0]
    assert function not in other
    assert len(function) <= 63
