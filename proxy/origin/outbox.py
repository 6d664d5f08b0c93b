"""Reading what has changed, in an order in which nothing is lost.

The applier of `control.invalidation` is the one reader, on a connection of its own. Transactions
become visible in another order than that of their numbers: one that began early may commit late.
So a cursor that remembers the last number it has seen loses rows. This one remembers the snapshot
of its last look, that is which transactions were finished then, and takes what that snapshot could
not see: transactions that began after it, and those that were under way in it.

  1. Rows and snapshot come from one statement, so they are of one moment.
  2. What is committed is read at the next look, however long an older transaction stays open.
  3. Nothing is read twice, and nothing about single rows is remembered: a snapshot lists at most
     the transactions that are open. Each look costs as much as there is new, by the index.
  4. What can be kept for a reader after us is the snapshot's `xmin`: everything before it is
     finished and has been read. From there it reads some rows again, and misses none.
  5. Many rows come in pages. All pages of a look are of its first page's snapshot.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

# Rows per page: some hundred kilobytes, and a few milliseconds of work for everybody.
PAGE = 500

# Rows that are deleted in one statement, which takes some milliseconds.
CLEANED = 5000

# What one look may take, in seconds, before the connection is given up.
TIMEOUT = 2.0

# Arguments and columns are text: the connection may have codecs of its own, and xid8 has none.
# The limit in each branch is what keeps PostgreSQL to the index, whatever its statistics say.
_NEXT = f"""(xid, id) > ($2::text::xid8, $3::text::bigint)
      AND ($4::text = '' OR pg_visible_in_snapshot(xid, nullif($4::text, '')::pg_snapshot))
    ORDER BY xid, id LIMIT {PAGE}"""
_POLL = f"""
SELECT pg_current_snapshot()::text AS snapshot,
       (extract(epoch FROM now()) * 1000)::bigint::text AS now,
       o.xid::text, o.id::text, o.tbl, o.op, o.key::text, o.origin,
       (extract(epoch FROM o.at) * 1000)::bigint::text AS at
  FROM (SELECT 1) AS always LEFT JOIN LATERAL (
       SELECT * FROM (
              (SELECT * FROM sidecache_outbox
                WHERE xid >= pg_snapshot_xmax($1::text::pg_snapshot) AND {_NEXT})
              UNION ALL
              SELECT page.* FROM pg_snapshot_xip($1::text::pg_snapshot) AS open
               CROSS JOIN LATERAL (
                     SELECT * FROM sidecache_outbox WHERE xid = open AND {_NEXT}) AS page) AS new
        ORDER BY xid, id LIMIT {PAGE}) AS o ON true
 ORDER BY o.xid, o.id"""  # noqa: S608

# A cluster of databases, and which of its histories: a promoted standby begins a new one, in
# which numbers of transactions that were lost are given out again.
_MOMENT = """
SELECT (SELECT system_identifier::text FROM pg_control_system()) AS system,
       left(pg_walfile_name(pg_current_wal_lsn()), 8) AS timeline,
       pg_current_snapshot()::text AS snapshot,
       (extract(epoch FROM clock_timestamp()) * 1000)::bigint::text AS now,
       coalesce((SELECT value->>'floor' FROM sidecache_progress WHERE name = 'outbox'), '0')
           AS floor"""

_SINCE = """
SELECT xid::text FROM sidecache_outbox
 WHERE at >= to_timestamp($1::text::float8 / 1000) ORDER BY xid LIMIT 1"""

# Only what this reader has read, whatever its age: a row that waited in an open transaction for
# longer than rows are kept becomes visible old.
_CLEAN = f"""
WITH oldest AS (
     SELECT xid, id FROM sidecache_outbox WHERE xid < $1::text::xid8
      ORDER BY xid, id LIMIT {CLEANED}),
gone AS (
     DELETE FROM sidecache_outbox o USING oldest
      WHERE o.xid = oldest.xid AND o.id = oldest.id
        AND o.at < clock_timestamp() - make_interval(secs => $2::text::float8)
  RETURNING o.xid),
newest AS (SELECT xid FROM gone ORDER BY xid DESC LIMIT 1),
noted AS (
     INSERT INTO sidecache_progress AS p (name, value)
     SELECT 'outbox', jsonb_build_object('floor', xid::text) FROM newest
         ON CONFLICT (name) DO UPDATE SET at = clock_timestamp(), value = CASE
            WHEN (p.value->>'floor')::xid8 < (excluded.value->>'floor')::xid8
            THEN excluded.value ELSE p.value END)
SELECT count(*)::text FROM gone"""  # noqa: S608

_TRIGGERS = """
SELECT count(*)::text FROM pg_trigger
 WHERE tgrelid = to_regclass($1::text) AND NOT tgisinternal AND tgenabled <> 'D'
   AND tgname LIKE 'sidecache\\_note\\_%'"""


class Connection(Protocol):
    """What is needed of a connection of asyncpg."""

    async def fetch(self, query: str, *args: Any, timeout: float | None = None) -> list[Any]: ...


class Snapshot(NamedTuple):
    """Which transactions were finished at a moment, as PostgreSQL writes it: xmin:xmax:xip."""

    text: str

    @classmethod
    def before(cls, xid: int) -> "Snapshot":
        """Return the snapshot that has seen all transactions before one, and nothing else."""
        return cls(f"{xid}:{xid}:")

    @property
    def xmin(self) -> int:
        return int(self.text.partition(":")[0])

    @property
    def finished(self) -> int:
        """Return how many transactions it shows: never fewer than an earlier one, as many only if
        they are the same, because one that begins raises both what is added here and what is taken.
        """
        _, xmax, open_ones = self.text.split(":")
        return int(xmax) - len(open_ones.split(",")) * bool(open_ones)


class Change(NamedTuple):
    """One key of a table of which rows have changed, or all of them."""

    table: str
    everything: bool
    key: Mapping[str, str | None]  # column to text
    origin: str | None  # the keyspace whose writer has seen to Redis, where nothing was lost there
    at: int  # milliseconds since the epoch, by the database's clock


class Moment(NamedTuple):
    """Where a database is, before anything is read."""

    history: str  # which database, and which of its histories
    snapshot: Snapshot
    now: int  # milliseconds since the epoch
    floor: int  # number of the newest transaction of which rows have been deleted


async def moment(connection: Connection) -> Moment:
    """Return where the database is. Fails on a standby, which leads nobody."""
    (row,) = await connection.fetch(_MOMENT, timeout=TIMEOUT)
    history = f"{int(row['system']):x}.{int(row['timeline'], 16)}"
    return Moment(history, Snapshot(row["snapshot"]), int(row["now"]), int(row["floor"]))


async def since(connection: Connection, at: int) -> int | None:
    """Return the first transaction with a row of that time (ms) or later, if there is one."""
    rows = await connection.fetch(_SINCE, str(at), timeout=TIMEOUT)
    return int(rows[0]["xid"]) if rows else None


async def noting(connection: Connection, table: str) -> bool:
    """Return whether all changes of a table are noted."""
    (row,) = await connection.fetch(_TRIGGERS, table, timeout=TIMEOUT)
    return int(row["count"]) >= len(("insert", "update", "delete", "truncate"))


class Outbox:
    """A reader, and how far it is."""

    def __init__(self, connection: Connection, start: Snapshot) -> None:
        self._connection = connection
        self._behind = start  # everything that it sees has been read
        self._ahead = ""  # snapshot of the look whose pages are being read
        self._last = (0, 0)
        self.complete = False  # all pages of the last look have been read
        self._again = False  # what comes next has been read before
        # Milliseconds since the epoch: before the last page, and before the look that it is of.
        # What was committed by then is in them, because a snapshot is taken behind that moment.
        self.now = self.began = 0
        self.finished = start.finished  # transactions that the last page shows

    @property
    def position(self) -> int:
        """Return before which transaction everything has been read."""
        return self._behind.xmin

    def rewind(self, xid: int) -> None:
        """Read again what was written by transactions from this one on."""
        if xid < self._behind.xmin or not self.complete:
            self._behind = Snapshot.before(min(xid, self._behind.xmin))
            self._ahead, self._last = "", (0, 0)
            self.complete = False
            self._again = True

    async def read(self, tables: Sequence[str] | None = None) -> list[Change]:
        """Return the next page, of some tables alone or of all.

        What the last one had must be seen to before. Who reads again does so because Redis has lost
        what it heard, also of those who had seen to it themselves: of no change they are named.
        """
        xid, number = self._last
        rows = await self._connection.fetch(
            _POLL, self._behind.text, str(xid), str(number), self._ahead, timeout=TIMEOUT
        )
        self.now = int(rows[0]["now"])
        if not self._ahead:
            self.began = self.now
        found = [row for row in rows if row["xid"] is not None]
        ahead = self._ahead or rows[0]["snapshot"]
        self.finished = Snapshot(ahead).finished
        self.complete = len(found) < PAGE
        again, self._again = self._again, self._again and not self.complete
        if self.complete:
            self._behind, self._ahead, self._last = Snapshot(ahead), "", (0, 0)
        else:
            self._ahead, self._last = ahead, (int(found[-1]["xid"]), int(found[-1]["id"]))
        # All of a page are read, or a look would have no end where few of many rows are wanted.
        wanted = [row for row in found if tables is None or row["tbl"] in tables]
        return _changes(wanted, named=not again)

    async def clean(self, keep: float) -> int:
        """Delete rows that are older than so many seconds and have been read; return how many."""
        (row,) = await self._connection.fetch(
            _CLEAN, str(self.position), str(keep), timeout=TIMEOUT
        )
        return int(row["count"])


def _changes(rows: Sequence[Any], *, named: bool) -> list[Change]:
    # One text of many objects is read in half the time of many texts.
    keys: list[dict[str, str | None]] = json.loads(f"[{','.join(row['key'] for row in rows)}]")
    return [
        Change(row["tbl"], row["op"] == "t", key, row["origin"] if named else None, int(row["at"]))
        for row, key in zip(rows, keys, strict=True)
    ]
