"""`sidecache check --database`: what PostgreSQL says against the policies.

Statements are prepared and watched tables looked up by `origin.preparing`; here each finding gets
its place in the files. Nothing is changed, and nothing is run.
"""

import asyncio
from collections.abc import AsyncIterator, Sequence

from proxy import wire
from proxy.config import Database
from proxy.documents import Mistake
from proxy.errors import OriginDown
from proxy.origin import pool, preparing
from proxy.plans import plans_in
from proxy.policy import planning
from proxy.policy.model import Policies

# For all statements together: a thousand take a few seconds.
TIMEOUT = 60.0  # seconds


def mistakes(
    database: Database, policies: Policies, ruleset: wire.Ruleset
) -> Sequence[Mistake | str]:
    """Return what is wrong with statements and tables; a sentence where PostgreSQL is away."""
    return asyncio.run(asked(database, policies, ruleset))


async def asked(
    database: Database, policies: Policies, ruleset: wire.Ruleset
) -> Sequence[Mistake | str]:
    """Return what PostgreSQL says against the statements and tables of policies."""
    try:
        async with asyncio.timeout(TIMEOUT):
            connection = await pool.connect(database.direct_url, database, "sidecache check")
            try:
                found = {finding async for finding in _findings(connection, policies, ruleset)}
            finally:
                connection.terminate()
    except (OriginDown, *pool.LOST, TimeoutError) as error:
        return [str(error) or "PostgreSQL did not answer in time"]
    return sorted(_placed(*finding) for finding in found)


async def _findings(
    connection: pool.Connection, policies: Policies, ruleset: wire.Ruleset
) -> AsyncIterator[preparing.Finding]:
    for plan in plans_in(ruleset).by_keyspace.values():
        async for finding in preparing.findings(connection, plan):
            yield finding
    for rows in plans_in(ruleset).by_table.values():
        for patch in (row.patch for row in rows if row.patch is not None):
            async for finding in preparing.about_present(connection, patch.present):
                yield finding
    for told in (each for rules in plans_in(ruleset).news.values() for each in rules):
        async for finding in preparing.about_present(connection, told.present):
            yield finding
    for table, at, columns in planning.named(policies):
        said = await preparing.about_table(connection, table, [column for _, column in columns])
        if said is not None:
            yield policies.place(at), said


def _placed(place: str, message: str) -> Mistake:
    path, line, column = place.rsplit(":", 2)
    return Mistake(path, int(line), int(column), message)
