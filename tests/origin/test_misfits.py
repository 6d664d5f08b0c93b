"""Policies and the functions about their locks that are in the database, which may be others'."""

import logging
from pathlib import Path

import pytest

from proxy.embedded.postgres import Postgres
from proxy.origin import installing
from proxy.plans import Plan, plans_in
from proxy.policy import compiler
from tests.handlers.lock_desk import LockDesk, lock_desk, told
from tests.integration.holds import RULES, TABLES, held_by

pytestmark = pytest.mark.integration

KEY = "seat_lock:e1:s1"
TAKE = ("SET", KEY, held_by("u1"), "NX")
MOVED = RULES.replace("table: seats\n", "table: seats2\n").replace("FROM seats ", "FROM seats2 ")
UNCOUNTED = RULES.replace("      per_owner: {scope: event, max: 10}\n", "")


def put_in_force(desk: LockDesk, folder: Path, rules: str) -> list[Plan]:
    """Let the desk have other policies; return their locks."""
    path = folder / "others.yaml"
    path.write_text(rules)
    ruleset = desk.server.router.ruleset = compiler.from_files(path, ("cache", "locks"))[0]
    plans = plans_in(ruleset).by_keyspace.values()
    return [plan for plan in plans if plan.locking is not None]


async def test_other_policies_grant_nothing_before_their_functions_are_there(
    postgres_server: Postgres, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A lock of another table is granted by nobody until the install, and then in that table."""
    caplog.set_level(logging.INFO)
    async with lock_desk(postgres_server, tmp_path) as desk:
        database = (await desk.tickets.asker()).connection
        await database.execute(TABLES.replace("seats", "seats2"))
        held = "SELECT count(*) FROM {} WHERE status = 'locked'"
        misfits, client = desk.postgres.misfits, desk.connect()
        plans = put_in_force(desk, tmp_path, MOVED)
        for words in (TAKE, TAKE, ("DEL", KEY), ("EXPIRE", KEY, "9")):
            said = str(await told(client, *words))
            assert "lacks the functions" in said or words[0] != "SET", said
            assert said != "b'OK'"
        assert misfits.among(plans)
        assert caplog.messages.count("lock_functions_misfit") == 1
        for table in ("seats", "seats2"):
            assert await database.fetchval(held.format(table)) == 0
        assert await told(client, "SET", "mutex:1", "me", "NX") == b"OK"

        await installing.run(desk.tickets.url, (), apply=True, remove=False, locks=plans)
        assert await told(client, *TAKE) == b"OK"
        assert await database.fetchval(held.format("seats2")) == 1
        assert not misfits.among(plans)
        assert caplog.messages.count("lock_functions_fit") == 1

        # Who has the older policies still can grant nothing any more.
        put_in_force(desk, tmp_path, RULES)
        assert "lacks the functions" in str(await told(desk.connect(), *TAKE))
        assert await database.fetchval(held.format("seats")) == 0


async def test_an_install_leaves_one_set_of_functions(
    postgres_server: Postgres, tmp_path: Path
) -> None:
    """Those of other marks go, and those of none; those of a keyspace with a like name stay."""
    async with lock_desk(postgres_server, tmp_path) as desk:
        database = (await desk.tickets.asker()).connection
        like = ("sidecache_take_seat_lock", "sidecache_take_seat_lock_0123abcd_0123abcd")
        for name in like:
            await database.execute(f"CREATE FUNCTION {name}() RETURNS int RETURN 1")
        plans = put_in_force(desk, tmp_path, UNCOUNTED)
        await installing.run(desk.tickets.url, (), apply=True, remove=False, locks=plans)
        names = "SELECT proname FROM pg_proc WHERE proname LIKE 'sidecache_take_seat_lock%'"
        (plan,) = (plan for plan in plans if plan.name == "seat_lock")
        left = {row["proname"] for row in await database.fetch(names)}
        assert plan.locking is not None
        assert left == {f"sidecache_take_seat_lock_{plan.locking.mark}", like[1]}
        await database.execute(f"DROP FUNCTION {like[1]}()")
        await installing.run(desk.tickets.url, (), apply=True, remove=True, locks=plans)
        assert await database.fetch(names) == []


async def test_what_fails_within_a_function_is_no_misfit(
    postgres_server: Postgres, tmp_path: Path
) -> None:
    """Nobody is sent to install what is there: an operator that lacks is told as what it is."""
    async with lock_desk(postgres_server, tmp_path) as desk:
        database = (await desk.tickets.asker()).connection
        await database.execute("ALTER TABLE seats ALTER locked_by TYPE uuid USING NULL")
        assert "SQLSTATE 42883" in str(await told(desk.connect(), *TAKE))
        assert not desk.postgres.misfits.among([desk.plan("seat_lock")])
