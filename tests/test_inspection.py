"""`sidecache check --database`: findings with their places."""

from pathlib import Path

import pytest

from proxy import inspection
from proxy.config import Database
from proxy.embedded import sample
from proxy.embedded.postgres import Postgres as Server
from proxy.origin import installing
from proxy.policy import compiler, planning
from proxy.secret import Secret
from tests.policy.rulebook import CLUSTERS, SHIPPED, Folder, compiled, load


async def said(dsn: str, path: Path) -> list[str]:
    policies, (ruleset, _) = load(path), compiler.from_files(path, CLUSTERS)
    database = Database(Secret(dsn), Secret(dsn))
    return [str(mistake) for mistake in await inspection.asked(database, policies, ruleset)]


@pytest.mark.integration
async def test_the_shipped_policies_fit_their_schema(postgres_server: Server) -> None:
    """Every statement and every watched table of them."""
    dsn = await postgres_server.create_database("inspected")
    await sample.load(dsn, seed=1)
    locks = planning.locks_of(load(SHIPPED))
    await installing.run(dsn, (), apply=True, remove=False, locks=locks)
    assert await said(dsn, SHIPPED) == []
    await postgres_server.drop_database("inspected")


@pytest.mark.integration
async def test_mistakes_have_the_places_of_the_files(postgres: str, tmp_path: Path) -> None:
    """A statement is where it is written, a table in the rule that names it."""
    file = Folder(tmp_path).write(
        "keyspaces:\n"
        "  k:\n"
        "    key: k:{id}\n"
        "    type: hash\n"
        "    origin: {read: SELECT * FROM gone WHERE id = :id}\n"
        "    invalidate:\n"
        "      - {table: gone, key: {id: id}}\n"
        "      - table: pg_class\n"
        "        key: {id: relname}\n"
        "        patch:\n"
        "          columns: [size]\n"
        "          sql: SELECT relname AS field FROM pg_class WHERE relname = :id OR 'x' = :size\n"
        "channels:\n"
        "  c:\n"
        "    channel: c\n"
        "    changes:\n"
        "      - {table: lost, columns: [x], sql: SELECT :x AS text}\n"
    )
    found = await said(postgres, tmp_path)
    columns = found[2].partition("it has: ")[2]
    assert found == [
        f'{file}:5:14: PostgreSQL refuses it: relation "gone" does not exist',
        f'{file}:7:9: there is no table "gone"',
        f'{file}:8:9: the table "pg_class" has no column "size"; it has: {columns}',
        f"{file}:12:11: PostgreSQL refuses it: column sidecache_now.value does not exist",
        f'{file}:17:9: there is no table "lost"',
        f"{file}:17:37: PostgreSQL refuses it: column sidecache_now.message does not exist",
    ]


async def test_a_database_that_is_away_is_one_sentence(tmp_path: Path) -> None:
    """And no mistake of the policies."""
    (sentence,) = await said("postgresql://x@127.0.0.1:1/x", SHIPPED)
    assert sentence.startswith("PostgreSQL cannot be reached: ")


def test_the_command_line_waits_for_it(tmp_path: Path) -> None:
    """Outside of an event loop, as the command line is."""
    policies = Folder(tmp_path).load("keyspaces:\n  k: {key: 'k:{id}'}\n")
    database = Database(Secret(""), Secret("postgresql://x@127.0.0.1:1/x"))
    assert len(inspection.mistakes(database, policies, compiled(policies))) == 1
